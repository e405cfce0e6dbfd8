"""Images decoded and resized once, before training, instead of in every epoch."""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, Features, List
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from vlmhelpers.batches.pixel_files import REFERENCE, features_to_store, settings_key
from vlmhelpers.common.files import atomic_file, remove_abandoned
from vlmhelpers.common.images import UnusableImage, image_identity, open_image, repair, strict_pillow
from vlmhelpers.data.rows import store_rows
from vlmhelpers.families import FAMILIES, family_of

_ROWS_IN_MEMORY = 32  # at a time, with their encoded images where the dataset embeds those
_MEASURED = 16  # rows, drawn from the dataset, whose pixels tell how much disk the others will take


def precompute(
    dataset: Dataset, processor: ProcessorMixin, folder: str | Path, workers: int | None = None, progress: bool = True
) -> Dataset:
    """The rows of `dataset` with the pixels of their images on disk, so that no epoch decodes or resizes them again.

    A VisionCollator of `processor` makes the same batches of the result as of `dataset`, bit for bit. Its `images` name
    files (`pixel_files.REFERENCE`) and are no images: what shows or checks images takes `dataset`. It lives as long as
    the process; one that is precomputed already is returned as it is.

    folder: takes a file per image, for later calls and other processes, too. An image is computed again when it
    (`image_identity`), the image processor's settings or the libraries have changed; an interrupted call goes on.
    workers: threads; by default one per processor, 8 at most. progress: show a bar, and the disk space needed.

    Raises ValueError, with the row and a remedy, for an image that cannot be read, for a dataset with a transform, and
    for a family whose pixels cannot be stored; OSError for a disk without room; TypeError for what is no Dataset.
    """
    if not family_of(processor).caches_pixels:
        able = ", ".join(name for name, family in FAMILIES.items() if family.caches_pixels)
        raise ValueError(f"{type(processor).__name__}: its pixels cannot be stored, only those of {able}")
    if not isinstance(dataset, Dataset):
        raise TypeError(f"a {type(dataset).__name__} is no Dataset; of a DatasetDict, precompute each split")
    if dataset.format["type"] == "custom":
        raise ValueError("the dataset has a transform, which would be passed over: use dataset.with_format(None)")
    if dataset.features.get("images") == List(REFERENCE):
        return dataset
    store, total = _PixelStore(folder, processor.image_processor), len(dataset)
    with _pool(workers or min(8, os.cpu_count() or 1)) as pool:
        stored = partial(_stored_rows, dataset, partial(_store_row, store), pool)
        _check_space(total, stored, store.folder, progress)
        rows = (row for row, _ in stored(range(total)))
        rows = tqdm(rows, "precomputing", total, unit=" rows", delay=1, disable=not progress)
        features = Features({**dataset.features, "images": List(REFERENCE)})
        return store_rows(rows, features)


@contextmanager
def _pool(workers):
    """Threads, each of which lets torch compute without threads of its own: more would only wait."""
    before = torch.get_num_threads()
    try:
        with strict_pillow(), ThreadPoolExecutor(workers, "precompute", torch.set_num_threads, (1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


def _stored_rows(dataset, store_row, pool, indices):
    """Yields (row with references for images, bytes newly written) in order, with few rows in memory."""
    undecoded = dataset.with_format("arrow")
    for start in range(0, len(indices), _ROWS_IN_MEMORY):
        chunk = indices[start : start + _ROWS_IN_MEMORY]
        yield from pool.map(store_row, undecoded[chunk].to_pylist(), chunk)


def _store_row(store, row, index):
    references, written = [], 0
    for number, image in enumerate(row.get("images") or [], 1):
        try:
            reference, size = store.keep(image)
        except ValueError as error:
            name = f"row {row['row']}" if row.get("row") is not None else f"row {index + 1} of the dataset"
            raise ValueError(
                f"{name}, image {number}: {error} Or run check_dataset and leave out the rows that it rejects. What is "
                "precomputed already stays, so call precompute again afterwards"
            ) from error
        references.append(reference)
        written += size
    return {**row, "images": references}, written


def _check_space(rows, stored, folder, progress):
    """Stores some rows to see how much disk all will take, says so, and raises OSError where that is too much."""
    # Drawn anew by each call: of rows that an interrupted call has measured, nothing would be missing.
    written = [size for _, size in stored(sorted(random.Random().sample(range(rows), min(_MEASURED, rows))))]
    needed = sum(written) / max(1, len(written)) * (rows - len(written))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"precompute needs about {needed / 1e9:.3g} GB more in {folder}, and {free / 1e9:.3g} GB are free "
            "there. Name a folder on a larger disk, or load the processor with a smaller max_pixels"
        )
    if needed and progress:
        print(f"precompute: about {needed / 1e9:.3g} GB more in {folder}; {free / 1e9:.3g} GB are free.")


class _PixelStore:
    """The tensors that one image processor makes, in `folder`, a file per image."""

    def __init__(self, folder, image_processor):
        self.image_processor, self.settings = image_processor, settings_key(image_processor)
        self.folder = Path(folder).absolute() / self.settings
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in self.folder.iterdir():
            remove_abandoned(part)

    def keep(self, image):
        """(reference, bytes newly written) for {"path", "bytes"} as in Arrow. Raises UnusableImage."""
        key = image_identity(image)
        if key is None:
            raise UnusableImage("no image: it is None", "give the row its image")
        path = self.folder / key[:2] / f"{key}.safetensors"
        size, written = _size_of(path), 0
        if size is None:
            repaired = repair(open_image(image))
            size = repaired.size
            with atomic_file(path, "wb") as file:
                written = file.write(save(features_to_store(repaired, self.image_processor)))
        reference = {"path": image["path"], "pixels": str(path), "settings": self.settings}
        return {**reference, "width": size[0], "height": size[1]}, written


def _size_of(path):
    """(width, height) of the image whose tensors are in `path`, or None where no whole file is."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_tensor("size").tolist())
    except (OSError, SafetensorError):
        return None
