"""Images decoded and resized once: what the image processor made of them lies on disk, and comes back bit for bit."""

import copy
import functools
import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from datasets import Dataset, Features, List, Value
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from vlmhelpers.common.digests import digest
from vlmhelpers.common.files import remove_abandoned
from vlmhelpers.common.images import UnusableImage, image_identity, open_image, repair, strict_pillow
from vlmhelpers.common.tensor_files import load_tensors, save_tensors
from vlmhelpers.common.version import VERSION
from vlmhelpers.data.rows import store_rows
from vlmhelpers.families import FAMILIES, family_of
from vlmhelpers.families.family import ImageProcessorStandIn, SizedImage

# How a row names an image whose pixels are stored: `path` is the image's own file, where it has one, `pixels` the
# file of its tensors, `settings` what they were made with; width and height are the image's, upright.
REFERENCE = {
    "path": Value("string"),
    "pixels": Value("string"),
    "settings": Value("string"),
    "width": Value("int32"),
    "height": Value("int32"),
}
_LIBRARIES = ("torch", "torchvision", "transformers", "pillow")  # what decides over pixels, beside this package
_ZEROS, _BYTES, _FLOATS = range(3)  # how three planes of pixels are stored
_ROWS_IN_MEMORY = 32  # at a time, with their encoded images where the dataset embeds those
_MEASURED = 16  # rows, drawn from the dataset, whose pixels tell how much disk the others will take


def precompute(
    dataset: Dataset, processor: ProcessorMixin, folder: str | Path, workers: int | None = None, progress: bool = True
) -> Dataset:
    """The rows of `dataset` with the pixels of their images on disk, so that no epoch decodes or resizes them again.

    A VisionCollator of `processor` makes the same batches of the result as of `dataset`, bit for bit. Its `images` name
    files (`REFERENCE`) and are no images: what shows or checks images takes `dataset`. It lives as long as
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
            written = save_tensors(features_to_store(repaired, self.image_processor), path)
        reference = {"path": image["path"], "pixels": str(path), "settings": self.settings}
        return {**reference, "width": size[0], "height": size[1]}, written


def _size_of(path):
    """(width, height) of the image whose tensors are in `path`, or None where no whole file is."""
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.get_tensor("size").tolist())
    except (OSError, SafetensorError):
        return None


# What a batch is made of


class StoredImage(SizedImage):
    """An image whose tensors lie on disk."""

    def __init__(self, reference: dict):
        super().__init__((reference["width"], reference["height"]))
        self.file, self.settings = reference["pixels"], reference["settings"]


def as_images(images: list) -> list:
    """The images of a row, with a StoredImage for each that `precompute` has put on disk."""
    return [StoredImage(image) if isinstance(image, dict) and "pixels" in image else image for image in images]


def settings_key(image_processor) -> str:
    """What tells the tensors of one image processor from those of others: a hash of its settings and its libraries."""
    return digest(image_processor.to_json_string(), *_versions())


@functools.cache
def _versions():
    return VERSION, *map(version, _LIBRARIES)


def for_images(processor: ProcessorMixin, images: list) -> ProcessorMixin:
    """The processor to call with `images`: itself, or a copy that reads the tensors of stored images from disk.

    Raises ValueError for stored images of other settings, or beside images that are not stored.
    """
    settings = {image.settings if isinstance(image, StoredImage) else None for image in images}
    if settings <= {None}:
        return processor
    if settings != {settings_key(processor.image_processor)}:
        raise ValueError(
            "the pixels on disk were made with other settings of the image processor, or by other versions of the "
            "libraries: call precompute again, with the dataset as it was read and this processor"
        )
    reading = copy.copy(processor)
    reading.image_processor = _ReadsPixels(processor.image_processor)
    return reading


class _ReadsPixels(ImageProcessorStandIn):
    """Gives what the image processor gave for the stored images."""

    def __call__(self, images, **_):
        """The tensors of `images`: StoredImages, flat or in a list per row."""
        rows = images if isinstance(images[0], list) else [images]
        rows = [[_load(image.file) for image in row] for row in rows]
        join = _in_slots if "num_tiles" in rows[0][0] else _one_after_another
        return join(rows, self.image_processor)


def _load(file):
    try:
        return load_tensors(Path(file))
    except FileNotFoundError as error:
        raise ValueError(f"{error}; call precompute again, or start the run again, which makes it anew") from error


def _one_after_another(rows, image_processor):
    """As the families do that put all images of a batch into one row of patches, or of tiles."""
    stored = [image for row in rows for image in row]
    shapes = [image["shape"].tolist() for image in stored]
    pixels = torch.empty(sum(length for length, *_ in shapes), *shapes[0][1:])
    for image, part in zip(stored, pixels.split([length for length, *_ in shapes]), strict=True):
        unpack(image, part, image_processor)
    others = {name: torch.cat([image[name] for image in stored]) for name in _others(stored[0])}
    if "num_img_tokens" in others:
        others["num_img_tokens"] = others["num_img_tokens"].tolist()
    return {"pixel_values": pixels, **others}


def _in_slots(rows, image_processor):
    """As Mllama does: a slot per image of each row. Rows with fewer images get zeros, which the collator fills."""
    pixels = torch.zeros(len(rows), max(map(len, rows)), *rows[0][0]["shape"].tolist()[2:])
    for row, slots in zip(rows, pixels, strict=True):
        for image, slot in zip(row, slots, strict=False):
            unpack(image, slot, image_processor)
    joined = {name: [torch.cat([image[name][0] for image in row]) for row in rows] for name in _others(rows[0][0])}
    tiles = [counts.tolist() for counts in joined.pop("num_tiles")]
    others = {name: pad_sequence(tensors, batch_first=True) for name, tensors in joined.items()}
    return {"pixel_values": pixels, **others, "num_tiles": tiles}


def _others(image):
    return [name for name in image if name not in ("shape", "kinds", "bytes", "floats", "size")]


def features_to_store(image: Image.Image, image_processor) -> dict[str, torch.Tensor]:
    """What `image_processor` gives for one PIL image, as a dict of tensors for a file that `for_images` reads."""
    features = dict(image_processor([image], return_tensors="pt"))
    packed = pack(features.pop("pixel_values"), image_processor)
    return {"size": torch.tensor(image.size)} | {k: torch.as_tensor(v) for k, v in features.items()} | packed


def pack(pixels: torch.Tensor, image_processor) -> dict[str, torch.Tensor]:
    """Float32 `pixels` of one image as a dict of small tensors, from which `unpack` makes the same bit for bit.

    An image processor makes nearly all values from bytes. Of each group of three planes (red, green and blue of a
    patch or a tile) the bytes are stored where they give exactly its values; nothing is, where all values are zero;
    the values themselves otherwise. Planes of two equal halves, as Qwen's two frames of a still image, are halved.
    """
    groups = _groups(pixels)
    first, second = groups.view(torch.int32).tensor_split(2, dim=2)
    groups = groups[..., : first.shape[2] if torch.equal(first, second) else None].contiguous()
    nearest = _nearest_bytes(groups, image_processor)
    same = _values(nearest, image_processor).view(torch.int32) == groups.view(torch.int32)
    kinds = torch.full((len(groups),), _BYTES, dtype=torch.uint8)
    if not same.all():
        kinds[~same.flatten(1).all(dim=1)] = _FLOATS
        kinds[(groups.view(torch.int32) == 0).flatten(1).all(dim=1)] = _ZEROS
        nearest = nearest[kinds == _BYTES]
    shape = torch.tensor(pixels.shape)
    return {"shape": shape, "kinds": kinds, "bytes": nearest, "floats": groups[kinds == _FLOATS]}


def unpack(packed: dict[str, torch.Tensor], pixels: torch.Tensor, image_processor) -> None:
    """Writes into `pixels` what `pack` was given."""
    groups, kinds = _groups(pixels), packed["kinds"]
    groups = groups.unflatten(2, (-1, packed["bytes"].shape[2]))  # both halves of a plane, where only one is stored
    values = _values(packed["bytes"], image_processor)[:, :, None]
    if len(values) == len(groups):
        groups[:] = values
    else:
        groups[kinds == _ZEROS] = 0
        groups[kinds == _BYTES] = values.expand(-1, -1, groups.shape[2], -1)
        groups[kinds == _FLOATS] = packed["floats"][:, :, None].expand(-1, -1, groups.shape[2], -1)


def _groups(pixels):
    """`pixels` as (groups, 3, values per plane): of patches (n, 3 * values), or of tiles (..., 3, height, width)."""
    return pixels.unflatten(1, (3, -1)) if pixels.dim() == 2 else pixels.view(-1, 3, pixels.shape[-2:].numel())


def _nearest_bytes(groups, image_processor):
    mean, std = _mean_and_std(image_processor)
    return (groups * (std * 255)).add_(mean * 255).round_().clamp_(0, 255).to(torch.uint8)


def _values(bytes_, image_processor):
    """The values of bytes (groups, 3, n), by the very arithmetic of the image processor."""
    mean, std = _mean_and_std(image_processor)
    if not hasattr(image_processor, "rescale_factor"):  # it divides by 255 first; transformers' own fuse the two steps
        return bytes_.float().div_(255).sub_(mean).div_(std)
    scale = 1 / image_processor.rescale_factor
    return bytes_.float().sub_(mean * scale).div_(std * scale)


def _mean_and_std(image_processor):
    return [torch.tensor(values)[:, None] for values in (image_processor.image_mean, image_processor.image_std)]
