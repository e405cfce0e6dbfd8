"""Image paths that stay inside their folder, and the way from rows to a Dataset and back."""

import functools
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value
from tqdm.auto import tqdm

from vlmhelpers.common.files import name_full_disk, temporary_folder
from vlmhelpers.common.printable import printable
from vlmhelpers.data.rules import Problem
from vlmhelpers.data.schema import FEATURES, KINDS, REJECTED_IMAGES, kind_of

# What a reader adds: the number of the source's data row, from 1; rules.join_problems; what was guessed or repaired.
READER_FEATURES = {"row": Value("int64"), "problem": Value("string"), "note": Value("string")}
_ROWS_PER_BATCH, BYTES_PER_BATCH = 1000, 2**26
_UNUSED = "Fields of the source that are not used:"
ENCODED_ROWS_PER_BATCH = 200  # where the dataset may embed images


def is_read(dataset: Dataset) -> bool:
    """Whether a reader has made the Dataset: it has all of READER_FEATURES, and not a column of such a name alone."""
    return all(dataset.features.get(name) == feature for name, feature in READER_FEATURES.items())


class ImageRoot:
    """The folder, which has to exist, that image paths start from and may not leave, not even through a link."""

    def __init__(self, folder: str | os.PathLike):
        if not os.path.isdir(folder):
            remedy = "Pass the one that your image paths start from."
            raise NotADirectoryError(printable(f"image_root: there is no folder {folder}. {remedy}"))
        self.folder = os.path.realpath(folder)
        self._prefix = os.path.normcase(os.path.join(self.folder, ""))

    def resolve(self, written: str) -> tuple[str | None, list[Problem], str]:
        """A written path, with slashes or backslashes -> (absolute path or None, problems, note); no file is needed."""
        if problem := _no_path(written):
            return None, [problem], ""
        joined = os.path.join(self.folder, written.replace("\\", "/"))
        path, foreign = os.path.realpath(joined), os.name != "nt"
        has_drive = foreign and re.match("[A-Za-z]:", written)
        if has_drive or not self._holds(path):
            link = ", through a link" if not has_drive and self._holds(os.path.normpath(joined)) else ""
            reason = f"path leaves the image root: {written!r}{link}"
            return None, [(reason, "move the image into the image root, or pass another image_root")], ""
        return path, [], "backslashes in the image path read as slashes" if foreign and "\\" in written else ""

    def relative(self, path: str) -> str | None:
        """`path` as seen from the folder, written with slashes, or None where it lies outside."""
        path = os.path.realpath(path)
        return os.path.relpath(path, self.folder).replace(os.sep, "/") if self._holds(path) else None

    def _holds(self, path):
        return os.path.normcase(path + os.sep).startswith(self._prefix)


def _no_path(written):
    if not written:
        return "empty image path", "write the image's path, or leave the row out"
    if "\0" in written:
        return "NUL character in the image path", "type the path anew"
    if re.match(r"\w+://", written):
        return f"not a local file: {written!r}", "download the image and write its path"
    return None


def taken_columns(kind: str = "messages") -> set[str]:
    """The names that a dataset of this kind leaves to no column of its source; so its columns tell its kind."""
    kinds = [FEATURES] if kind == "messages" else [*KINDS.values(), REJECTED_IMAGES]
    return {*READER_FEATURES, *(name for features in kinds for name in features)}


def source_column(name: str, kind: str = "messages") -> str:
    """The name under which a dataset keeps a column of its source: `row` and the like get an underscore.

    Arrow cuts names at a NUL character, which becomes U+FFFD.
    """
    name = name.replace("\0", "\ufffd")
    return f"{name}_" if name in taken_columns(kind) else name


def store_rows(rows: Iterable[dict], features: Features) -> Dataset:
    """Rows as a memory-mapped Dataset, written a batch at a time to a file that is removed when the process ends."""
    return store_batches(batches_of(rows), features)


def store_batches(batches: Iterable[list[dict]], features: Features) -> Dataset:
    """The same of batches of rows."""
    schema = features.arrow_schema
    handle, file = tempfile.mkstemp(suffix=".arrow", dir=_scratch().name)
    with name_full_disk(file), os.fdopen(handle, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    return Dataset.from_file(file)


def batches_of(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Rows in lists of 1,000, or fewer where their texts or embedded images are large: some 64 MB each."""
    batch, size = [], 0
    for row in rows:
        batch.append(row)
        size += bytes_in(row)
        if len(batch) >= _ROWS_PER_BATCH or size > BYTES_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def bytes_in(value: object) -> int:
    """The bytes, or characters, of what stands anywhere in a value."""
    size, parts = 0, [value]
    for part in parts:  # which grow
        kind = type(part)
        if kind is str or kind is bytes:
            size += len(part)
        elif kind is dict or kind is list:
            parts += part.values() if kind is dict else part
    return size


def unpacked_rows(table: pa.Table | pa.RecordBatch) -> Iterator[dict]:
    """The rows as plain Python values, a few at a time: a dictionary of Arrow holds once what many rows have."""
    step = max(1, BYTES_PER_BATCH // max(1, table.nbytes))
    for start in range(0, table.num_rows, step):
        yield from table.slice(start, step).to_pylist()


def note_unused(dataset: Dataset, names: Iterable[str]) -> None:
    """Keeps the names of fields that a reader did not use in the description of the Dataset that it made."""
    dataset.info.description = "\n".join([_UNUSED, *sorted(names)]) if names else ""


def unused_fields(dataset: Dataset) -> list[str]:
    """The names that `note_unused` has kept, also of a Dataset made from that one; else its further columns."""
    first, *names = (dataset.info.description or "").split("\n")
    return names if first == _UNUSED else further_columns(dataset)


def further_columns(dataset: Dataset) -> list[str]:
    """The columns that no step reads.

    None where a reader's `row` says that they are what it has read, and of prompts, of which a reward may need them.
    """
    kind = kind_of(dataset.column_names)
    if kind == "prompts" or dataset.features.get("row") == READER_FEATURES["row"]:
        return []
    return [name for name in dataset.column_names if name not in {*KINDS[kind], "images", *REJECTED_IMAGES}]


@functools.cache
def _scratch():
    return temporary_folder()


def first_rows(dataset: Dataset | IterableDataset, number: int) -> Dataset:
    """The first rows, or all where there are fewer; those of a stream are stored as store_rows does it."""
    if isinstance(dataset, Dataset):
        return dataset.select(range(min(number, len(dataset))))
    return store_rows(dataset.decode(False).take(number), dataset.decode(True).features)


def plain_rows(dataset: Dataset, indices: Sequence[int]) -> list[dict]:
    """Rows as plain Python values, with images still encoded: {"path", "bytes"} or None."""
    return dataset.with_format("arrow")[indices].to_pylist()


def rows_of(columns: dict[str, Sequence]) -> list[dict]:
    """The rows of a slice of a Dataset, which is a dict of columns."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def stream_plain_rows(dataset: Dataset, columns: Iterable[str], task: str) -> Iterator[dict]:
    """Yields rows as plain_rows gives them, with those of `columns` that are there; `task` names the progress bar."""
    names = [name for name in columns if name in dataset.column_names]
    batches = dataset.select_columns(names).with_format("arrow").iter(_ROWS_PER_BATCH)
    rows = itertools.chain.from_iterable(map(unpacked_rows, batches))
    yield from tqdm(rows, desc=task, total=len(dataset), unit=" rows", delay=1)


def map_plain_rows(dataset: Dataset, change: Callable[[dict], Iterable[dict]], task: str) -> Dataset:
    """The Dataset, in its format, of the rows that `change` makes of each row, both as plain_rows gives them."""

    def change_table(table):
        return pa.Table.from_pylist([new for row in table.to_pylist() for new in change(row)], schema=table.schema)

    options = {"batched": True, "batch_size": ENCODED_ROWS_PER_BATCH, "features": dataset.features}
    changed = dataset.with_format("arrow").map(change_table, desc=task, **options)
    shown = dataset.format
    changed.set_format(shown["type"], shown["columns"], shown["output_all_columns"], **shown["format_kwargs"])
    return changed
