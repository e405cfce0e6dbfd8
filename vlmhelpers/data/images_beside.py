"""Images that a file of rows can name wherever it goes: those outside its folder are linked into one beside it."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from datasets import Dataset

from vlmhelpers.common.digests import digest
from vlmhelpers.common.files import atomic_file, sync
from vlmhelpers.common.images import image_header, image_identity, short_path
from vlmhelpers.data.rows import ImageRoot, store_rows, stream_plain_rows
from vlmhelpers.data.rules import Problem

_UNSAFE = re.compile(r"[^\w.()-]+")  # what some system has no names with, or a reader takes for something else
_LONGEST = 100  # characters of a name without its ending


@contextmanager
def images_beside(dataset: Dataset, folder: str | os.PathLike) -> Iterator[tuple[Dataset, int]]:
    """Yields the Dataset of messages with all images inside the parent of `folder`, and how many lie in `folder`.

    An image outside, or one that is embedded, gets a hard link there, or a copy, under its own name where that is free.
    What is there with the same content is taken, and nothing is overwritten: the same call again changes nothing. If
    the block fails, what is new goes. Raises OSError.
    """
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    places = _Places(Path(folder))
    try:
        for row in stream_plain_rows(dataset, ["images"], "linking images"):
            for image in filter(places.is_outside, row["images"] or []):
                places.add(image)
        if places.made:
            sync(folder)
        yield places.put(dataset), len(places)
    except BaseException:
        places.remove()
        raise


def missing_images(row: dict) -> list[Problem]:
    """The problems of a row with images that are not there, so that nothing can be linked."""
    paths = [image["path"] for image in row["images"] or [] if image and image["bytes"] is None]
    gone = [path for path in paths if path and not os.path.isfile(path)]
    return [(f"image not found: {short_path(path)}", "put the file there or correct the path") for path in gone]


class _Places:
    """The images in a folder. `found`: path or digest -> path there; `made`: the new ones of these."""

    def __init__(self, folder):
        self.folder, self.root = folder, ImageRoot(folder.parent)
        self.found, self.made = {}, []

    def __len__(self):
        return len(set(self.found.values()))

    def is_outside(self, image):
        return bool(image) and (image["bytes"] is not None or not self.root.relative(image["path"]))

    def add(self, image):
        if (key := _key(image)) not in self.found:
            self.folder.mkdir(exist_ok=True)
            self.found[key] = os.path.realpath(self._place(image))

    def _place(self, image):
        content, name = image_identity(image), Path(_name(image))
        for path in (self.folder / name, self.folder / f"{name.stem}-{content[:16]}{name.suffix}"):
            if not os.path.lexists(path):
                self.made.append(path)
                _write(image, path)
                return path
            if image_identity({"path": str(path), "bytes": None}) == content:
                return path
        raise FileExistsError(f"{path} holds something else. Remove it, or write to another file")

    def put(self, dataset):
        """The Dataset with the new paths."""
        if not self.found:
            return dataset
        rows = stream_plain_rows(dataset, dataset.column_names, "linking images")
        moved = (row | {"images": list(map(self._moved, row["images"] or []))} for row in rows)
        return store_rows(moved, dataset.features)

    def _moved(self, image):
        return {"path": self.found[_key(image)], "bytes": None} if self.is_outside(image) else image

    def remove(self):
        for path in self.made:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it holds other files, or is not there
            self.folder.rmdir()


def _key(image):
    return image["path"] if image["bytes"] is None else digest(image["bytes"])


def _name(image):
    """An image's own name, without what some systems and readers cannot have in one; its digest where it has none."""
    path = Path((image["path"] or "").replace("\\", "/"))
    stem = _UNSAFE.sub("_", path.stem)[:_LONGEST] or digest(image["bytes"])[:16]
    return stem + (_UNSAFE.sub("", path.suffix) or f".{_format(image['bytes'])}")


def _format(encoded):
    header = image_header(encoded or b"")
    return header[0].lower() if header else "img"


def _write(image, path):
    if image["bytes"] is None:
        with suppress(OSError):  # another disk, or one without links
            return os.link(image["path"], path)
    with atomic_file(path, "wb", durable=False) as file:
        if image["bytes"] is not None:
            file.write(image["bytes"])
        else:
            with open(image["path"], "rb") as source:
                shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())
