"""Pictures decoded and resized once, before training, instead of in every epoch."""

import hashlib
import os
import random
import shutil
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path

import torch
from datasets import Dataset, Features, List
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm

from vlmhelpers.batches.pixel_files import REFERENCE, features_to_store, settings_key
from vlmhelpers.common.image_errors import UnusableImage
from vlmhelpers.common.images import open_image, repair, strict_pillow
from vlmhelpers.data.rows import batches_to_dataset

_ROWS_PER_BATCH = 8  # read at a time, with their encoded pictures where the dataset embeds those
_MEASURED = 16  # rows, drawn from the dataset, whose pixels tell how much disk the others will take
_OLD_DRAFTS = 24 * 3600  # seconds after which no process is still writing there


def precompute(dataset, processor, folder, workers=None, progress=True):
    """The rows of `dataset` with the pixels of their pictures on disk, so that no epoch decodes or resizes them again.

    dataset: a Dataset of the schema. processor: the one that the model is trained with; a VisionCollator of it makes
        the same batches of the result as of `dataset`, bit for bit, and so does `generate`.
    folder: where the pixels go, a file per picture. They stay there, for the next call and for other processes; a
        picture is computed again when it, the image processor's settings or the libraries have changed. One in a file
        counts as the same by its path, size and time, an embedded one by its bytes. Delete the folder to free the disk.
    workers: threads; by default one per processor, 8 at most. progress: show a bar, and the disk space needed.

    An interrupted call loses nothing: the next one goes on. In memory are only the rows that the threads work on.

    The Dataset returned has all columns, and lives as long as the process. Its `images` name files (see
    pixel_files.REFERENCE) and are no pictures: `show_rows`, `blank_images`, `check_dataset` and all else that
    looks at pictures takes `dataset`, whose rows are the same. One that is precomputed already is returned as it is.

    Raises ValueError, with the row and a remedy, for a picture that cannot be read, and for a dataset with a transform;
    OSError where the disk has not enough room; TypeError for what is no Dataset.
    """
    _check(dataset)
    if dataset.features.get("images") == List(REFERENCE):
        return dataset
    workers = workers or min(8, os.cpu_count() or 1)
    with _PixelStore(folder, processor.image_processor) as store, _threads(workers) as pool:
        stored = partial(_stored_rows, dataset, partial(pool.submit, _store_row, store), ahead=2 * workers)
        _check_space(dataset, stored, store.folder, progress)
        rows = stored(range(len(dataset)))
        rows = tqdm((row for row, _ in rows), "precomputing", len(dataset), unit=" rows", delay=1, disable=not progress)
        features = Features({**dataset.features, "images": List(REFERENCE)})
        return batches_to_dataset(iter(lambda: list(islice(rows, 1000)), []), features)


def _check(dataset):
    if not isinstance(dataset, Dataset):
        raise TypeError(f"a {type(dataset).__name__} is no Dataset; of a DatasetDict, precompute each split")
    if dataset.format["type"] == "custom":
        raise ValueError("the dataset has a transform, which would be passed over: use dataset.with_format(None)")


@contextmanager
def _threads(workers):
    """A pool of threads, each of which lets torch compute without threads of its own: more would only wait."""
    before = torch.get_num_threads()
    try:
        with strict_pillow(), ThreadPoolExecutor(workers, "precompute", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _stored_rows(dataset, submit, places, ahead):
    """Yields (row with references for images, bytes newly written) in order, with `ahead` rows being worked on."""
    undecoded = dataset.with_format("arrow")
    chunks = (places[start : start + _ROWS_PER_BATCH] for start in range(0, len(places), _ROWS_PER_BATCH))
    rows = chain.from_iterable(zip(chunk, undecoded[chunk].to_pylist(), strict=True) for chunk in chunks)
    waiting = deque()
    for place, row in rows:
        waiting.append(submit(row, place))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _store_row(store, row, place):
    references, written = [], 0
    for number, image in enumerate(row.get("images") or [], 1):
        try:
            reference, size = store.keep(image)
        except ValueError as error:
            name = f"row {row['row']}" if row.get("row") is not None else f"row {place + 1} of the dataset"
            raise ValueError(
                f"{name}, image {number}: {error} Or run check_dataset and leave out the rows that it rejects. What is "
                "precomputed already stays, so call precompute again afterwards"
            ) from error
        references.append(reference)
        written += size
    return {**row, "images": references}, written


def _check_space(dataset, stored, folder, progress):
    """Stores some rows to see how much disk all will take, says so, and raises OSError where that is too much."""
    # Drawn anew by each call: of rows that an interrupted call has measured, nothing would be missing.
    places = sorted(random.Random().sample(range(len(dataset)), min(_MEASURED, len(dataset))))
    written = [size for _, size in stored(places)]
    needed = sum(written) / max(1, len(written)) * (len(dataset) - len(written))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"precompute needs about {needed / 1e9:.3g} GB more in {folder}, and {free / 1e9:.3g} GB are free "
            "there. Name a folder on a larger disk, or load the processor with a smaller max_pixels"
        )
    if needed and progress:
        print(f"precompute: about {needed / 1e9:.3g} GB more in {folder}; {free / 1e9:.3g} GB are free.")


class _PixelStore:
    """The tensors that one image processor makes, in `folder`, a file per picture; a context manager."""

    def __init__(self, folder, image_processor):
        self.image_processor = image_processor
        self.settings = settings_key(image_processor)
        self.folder = Path(folder).absolute() / self.settings

    def __enter__(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        for drafts in self.folder.glob("drafts-*"):  # of processes that were killed
            if time.time() - drafts.stat().st_mtime > _OLD_DRAFTS:
                shutil.rmtree(drafts, ignore_errors=True)
        self._drafts = tempfile.TemporaryDirectory(prefix="drafts-", dir=self.folder)
        return self

    def __exit__(self, *_):
        self._drafts.cleanup()

    def keep(self, image):
        """(reference, bytes newly written) for {"path", "bytes"} as in Arrow. Raises UnusableImage."""
        if image is None or (image["path"] is None and image["bytes"] is None):
            raise UnusableImage("no picture: an image is None", "give the row its picture")
        key = _key(image)
        path = self.folder / key[:2] / f"{key}.safetensors"
        size, written = _size_of(path), 0
        if size is None:
            picture = repair(open_image(image))
            size, written = picture.size, self._write(path, features_to_store(picture, self.image_processor))
        width, height = size
        reference = {"path": image["path"], "pixels": str(path), "settings": self.settings}
        return {**reference, "width": width, "height": height}, written

    def _write(self, path, tensors):
        """Writes a file whole: other processes see all of it or nothing. Returns its size in bytes."""
        draft = tempfile.NamedTemporaryFile(dir=self._drafts.name, delete=False)
        with draft:
            written = draft.write(save(tensors))
        path.parent.mkdir(exist_ok=True)
        os.replace(draft.name, path)
        return written


def _size_of(path):
    """(width, height) of the picture whose tensors are in `path`, or None where no whole file is."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_tensor("size").tolist())
    except (OSError, SafetensorError):
        return None


def _key(image):
    """What tells a picture from others: a hash of its bytes, or of its file's path, size and time."""
    if image["bytes"] is not None:
        return hashlib.blake2b(image["bytes"], digest_size=16).hexdigest()
    path = os.path.realpath(image["path"])
    try:
        status = os.stat(path)
        told = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    except (OSError, ValueError):  # open_image says what is wrong with it
        told = path
    return hashlib.blake2b(told.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
