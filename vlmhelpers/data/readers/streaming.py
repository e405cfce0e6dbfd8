"""Streams: rows of shards that are too large to be read before a training, or of a `datasets.IterableDataset`."""

import csv
import glob
import os
from pathlib import Path

from datasets import Features, Image, IterableDataset, List, Value

from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.image_workers import inspect_apart
from vlmhelpers.common.images import UnusableImage
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.readers.arrow_rows import row_decoder
from vlmhelpers.data.readers.conversations import read_turns
from vlmhelpers.data.readers.field_names import FieldNames
from vlmhelpers.data.readers.made_rows import made_kind, said_in
from vlmhelpers.data.readers.opening import open_file
from vlmhelpers.data.readers.source import TOO_DEEP, DataError, SourceRow
from vlmhelpers.data.rows import ImageRoot
from vlmhelpers.data.rules import merge_problems, row_problems
from vlmhelpers.data.schema import FEATURES, with_train
from vlmhelpers.data.spreadsheets import REASON, REMEDY, SOURCE_ROW, text_cell

_SHOWN = 20  # rows left out, and fields not used, that are named while the stream is read
_SHARDS = (".jsonl", ".json", ".parquet", ".tar")
_OF_FILES = ("shard", "row", "fields", "problems")


def read_stream(
    source: IterableDataset | str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    response_field: str | None = None,
    instruction: str | None = None,
) -> IterableDataset:
    """The sound rows of a stream, each read and checked when it is asked for, as a `datasets.IterableDataset`.

    source: an IterableDataset, as `load_dataset(..., streaming=True)` returns it, or a file or a pattern (`*.parquet`)
        of JSONL, Parquet and WebDataset (`.tar`) shards, read in the order of their names. Several processes divide the
        shards where each gets one.
    Rows have the forms that read_jsonl takes. An image is a path, encoded bytes, {"bytes", "path"} or of PIL; paths
    start from image_root, by default the shard's folder. In a WebDataset shard the members of one name are a row: those
    of its `.json` object are fields, its pictures the images, every other member a text, named by its ending.

    The columns are `messages`, `images`, still encoded, and `row`, the number in the shard. A row that
    rules.row_problems finds unusable, or whose image cannot be decoded, is left out: the attribute `left_out` of what
    is returned holds all that were met, {(shard, row): (reason, remedy)}, and the first are printed. So is one for
    which its `check.more_rules`, if set, finds problems, as `check_dataset`'s. `unused` holds the fields that were met
    and not read, which are printed, too. Repeated rows are not looked for. Raises ValueError for no rows, no shards or
    others.
    """
    rows = source if isinstance(source, IterableDataset) else _of_files(source)
    rows = rows.decode(False) if rows.features else rows
    first = next(iter(rows), None)
    if first is None:
        raise DataError(f"{source} holds no rows.")
    names = FieldNames(text_field, image_field, response_field, instruction)
    check = _Check(image_root, names, _decoder(rows.features))
    features = with_train(FEATURES)  # as the rows to come are not known
    features = Features({**features, "images": List(Image(decode=False)), "row": Value("int64")})
    options = {"batched": True, "batch_size": 1, "with_indices": True, "remove_columns": list(first)}
    stream = rows.map(check, features=features, **options)
    stream.check, stream.left_out, stream.unused = check, check.left_out, check.unused
    return stream


def _of_files(source):
    files = sorted(glob.glob(os.fspath(source), recursive=True))
    if not files:
        raise DataError(f"there is no {source}: name a file, or a pattern such as shards/*.parquet")
    if other := next((file for file in files if Path(file).suffix.lower() not in _SHARDS), None):
        raise DataError(f"{other} cannot be streamed: name shards that end in {', '.join(_SHARDS)}")
    return IterableDataset.from_generator(_read, gen_kwargs={"files": files})


def _read(files):
    for file in files:
        source = open_file(file)
        for number, row in enumerate(source.rows(), start=1):
            fields = said_in(row.fields, source.made) if source.made else row.fields
            yield dict(zip(_OF_FILES, (file, number, fields, row.problems), strict=True))


def _decoder(features):
    """What makes of a stored row the fields that are meant."""
    decode, made = row_decoder(features or {}), made_kind(features)
    return (lambda row: said_in(row, made)) if made else decode


class _Check:
    """Makes a row of the schema of a stream's row, or of an unsound one an entry in `left_out`."""

    def __init__(self, image_root, names, decode):
        self.image_root, self.names, self.decode = image_root, names, decode
        self.left_out, self.unused, self.more_rules = {}, set(), None

    def __call__(self, columns: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Columns of the one row as a list each, and its place in the stream, which counts where no shard is known."""
        fields, shard, number, problems = {name: values[0] for name, values in columns.items()}, "", indices[0] + 1, []
        if tuple(fields) == _OF_FILES:
            shard, number, fields, problems = fields.values()
        row = SourceRow(self.decode(fields), problems)
        messages, sources = self._read(row)
        root = self._root(shard) if any(isinstance(source, str) for source in sources) else None
        found = row.get_images(sources, root)
        built = {"messages": messages, "images": found}
        problems, sizes = row.problems or row_problems(built), []
        problems = problems or _unusable(found, sizes)
        if problems := problems or (self.more_rules(built, sizes) if self.more_rules else []):
            self._leave_out((shard, number), merge_problems(problems))
            return {name: [] for name in (*built, "row")}
        self._note_unused({*row.unused, *row.leave()} - self.unused)
        return {name: [value] for name, value in (built | {"row": number}).items()}

    def _read(self, row):
        try:
            return read_turns(row, self.names)
        except RecursionError:
            row.reject(*TOO_DEEP)
            return [], []

    def _root(self, shard):
        if self.image_root is None and not shard:
            raise DataError("the stream has paths of images: pass image_root, the folder that they start from")
        return ImageRoot(self.image_root or Path(shard).parent)

    def _note_unused(self, names):
        if names and len(self.unused) < _SHOWN:
            print(one_line(f"fields that are not used: {', '.join(sorted(names))}"))
        self.unused |= names

    def _leave_out(self, name, problem):
        if name not in self.left_out and len(self.left_out) < _SHOWN:
            more = "; further ones are only counted" if len(self.left_out) == _SHOWN - 1 else ""
            print(one_line(f"{_name_of(*name)} is left out: {problem[0]} -> {problem[1]}{more}"))
        self.left_out[name] = problem


def _name_of(shard, number):
    return f"{shard}, row {number}" if shard else f"row {number} of the stream"


def _unusable(images, sizes):
    """The problems of images; to `sizes` goes that of each sound one."""
    problems = []
    for image in images:
        try:
            sizes.append(inspect_apart(image).size)
        except UnusableImage as error:
            problems.append((" ".join(error.reason.split()), error.remedy))
    return problems


def save_left_out(left_out: dict[tuple[str, int], tuple[str, str]], path: str | os.PathLike) -> None:
    """Writes what a stream has left out to a CSV: the shard, the row in it, the reason and the remedy."""
    with atomic_file(path, encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["shard", SOURCE_ROW, REASON, REMEDY])
        table.writerows([*map(text_cell, (*name, *problem))] for name, problem in left_out.items())
