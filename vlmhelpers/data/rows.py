"""What all readers share: image paths that stay inside their folder, rows that remember what is wrong with
them, and the way from rows to a Dataset on disk.
"""

import functools
import itertools
import os
import re
import tempfile
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm

from vlmhelpers.data.rules import join_problems
from vlmhelpers.data.schema import FEATURES, make_row

# What a reader adds to the schema. `row` counts the source's data rows from 1. `problem` is empty for a
# sound row, else the reason on its first line and the remedy on its second. `note` says what was guessed or
# repaired.
READER_FEATURES = {"row": Value("int64"), "problem": Value("string"), "note": Value("string")}
_ROWS_PER_BATCH = 1000


class ImageRoot:
    """The folder that image paths start from, and that no path may leave, not even through a symbolic link.

    Raises NotADirectoryError when there is no such folder.
    """

    def __init__(self, folder):
        if not Path(folder).is_dir():
            raise NotADirectoryError(
                f"image_root: there is no folder {folder}. Pass the one that your image paths start from."
            )
        self.folder = os.path.realpath(folder)
        self._prefix = os.path.normcase(os.path.join(self.folder, ""))
        self._real_folder = functools.lru_cache(maxsize=1024)(self._real_path)  # many images share a folder

    def resolve(self, written):
        """A path as a user wrote it -> (absolute path or None, (reason, remedy) pairs, note).

        The file need not exist. Backslashes count as slashes on every system; the note says so where it
        matters.
        """
        if problem := _no_path(written):
            return None, [problem], ""
        slashed = written.replace("\\", "/")
        has_drive = os.name != "nt" and re.match("[A-Za-z]:", written)
        path = None if has_drive else self._find(slashed)
        if path is None:
            looks_inside = not has_drive and self._contains(os.path.normpath(self._join(slashed)))
            reason = f"path leaves the image root: {written!r}{', through a link' if looks_inside else ''}"
            return None, [(reason, "move the picture into the image root, or pass another image_root")], ""
        guessed = os.name != "nt" and "\\" in written
        return path, [], "backslashes in the image path read as slashes" if guessed else ""

    def resolve_all(self, paths):
        """Paths as a user wrote them -> (images of a row, None for an unusable path; (reason, remedy) pairs; notes)."""
        resolved = [self.resolve(written) for written in paths]
        images = [path and {"path": path, "bytes": None} for path, _, _ in resolved]
        return images, [problem for _, found, _ in resolved for problem in found], [note for _, _, note in resolved]

    def relative(self, path):
        """`path` as seen from the folder, written with slashes, or None where it lies outside."""
        found = self._find(os.path.abspath(path))
        return found and os.path.relpath(found, self.folder).replace(os.sep, "/")

    def _find(self, written):
        """The absolute path behind `written`, links resolved, or None when that lies outside the root."""
        folder, name = os.path.split(written)
        path = os.path.join(self._real_folder(folder), name)
        if name in ("", ".", "..") or os.path.islink(path):
            path = self._real_path(path)
        return path if self._contains(path) else None

    def _contains(self, path):
        return os.path.normcase(path + os.sep).startswith(self._prefix)

    def _join(self, path):
        return os.path.join(self.folder, path)

    def _real_path(self, path):
        return os.path.realpath(self._join(path))


def _no_path(written):
    """The (reason, remedy) why `written` cannot be the path of a file, or None."""
    if not written:
        return "empty image path", "write the picture's path, or leave the row out"
    if "\0" in written:
        return "NUL character in the image path", "type the path anew"
    if re.match(r"\w+://", written):
        return f"not a local file: {written!r}", "download the picture and write its path"
    return None


def source_column(name):
    """The name under which a dataset keeps a column of its source: `row` and the like get an underscore."""
    return f"{name}_" if name in FEATURES or name in READER_FEATURES else name


def build_row(number, question, answer, image_paths, root, problems=(), note=""):
    """A row of the schema with the reader's columns.

    `image_paths` are as the user wrote them, `root` is their ImageRoot. `problems` are (reason, remedy)
    pairs the reader already has; with any, its cells cannot be trusted and are not judged further.
    """
    images, image_problems, guesses = root.resolve_all(image_paths)
    problems = list(problems)
    if not problems:
        problems += [("empty instruction", "write the question")] * (not question)
        problems += [("empty description", "write the answer that the model should give")] * (not answer)
        problems += image_problems
    row = make_row(question, answer, images)
    return finish_row(number, row["messages"], row["images"], problems, [note, *guesses])


def finish_row(number, messages, images, problems=(), notes=()):
    """Messages and images of the schema as a row with the reader's columns; empty and repeated notes are dropped."""
    note = "; ".join(filter(None, dict.fromkeys(notes)))
    return {
        "messages": messages,
        "images": images,
        "row": number,
        "problem": join_problems(problems),
        "note": note,
    }


def rows_to_dataset(rows, columns, source):
    """Writes finished rows to a file, a batch at a time, and returns them as a memory-mapped Dataset.

    `columns` is what each row has besides the schema's and the reader's: a dict of names and their features, or
    names alone, all of strings. `source` is named in messages. The file lives as long as the process: which file
    a link leads to can change while the source stays the same, so nothing is cached from one call to the next.
    Raises ValueError when there are no rows.
    """
    types = columns if isinstance(columns, dict) else dict.fromkeys(columns, Value("string"))
    features = Features({**FEATURES, **READER_FEATURES, **types})
    rows = iter(tqdm(rows, desc=f"reading {Path(source).name}", unit=" rows", delay=1))
    dataset = batches_to_dataset(iter(lambda: list(itertools.islice(rows, _ROWS_PER_BATCH)), []), features)
    if not len(dataset):
        raise ValueError(f"{source} holds no rows.")
    return dataset


def batches_to_dataset(batches, features):
    """Writes batches (lists of rows) to a file of this process, one at a time, and returns it, memory-mapped."""
    schema = features.arrow_schema
    handle, file = tempfile.mkstemp(suffix=".arrow", dir=_scratch().name)
    with os.fdopen(handle, "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=schema))
    return Dataset.from_file(file)


@functools.cache
def _scratch():
    """A folder that is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="vlmhelpers-", ignore_cleanup_errors=True)


def plain_rows(dataset, indices):
    """Rows as plain Python values, with images still encoded: {"path", "bytes"} or None."""
    return dataset.with_format("arrow")[indices].to_pylist()


def stream_plain_rows(dataset, columns, task):
    """Yields every row as plain_rows gives it, with one batch in memory; only those of `columns` that are there.

    `task` names the progress bar that shows after a second.
    """
    dataset = dataset.select_columns([name for name in columns if name in dataset.column_names])
    with tqdm(total=len(dataset), desc=task, unit=" rows", delay=1) as bar:
        for start in range(0, len(dataset), _ROWS_PER_BATCH):
            rows = plain_rows(dataset, range(start, min(start + _ROWS_PER_BATCH, len(dataset))))
            yield from rows
            bar.update(len(rows))
