"""Streams: rows of shards that are too large to be read before a training, or of a `datasets.IterableDataset`."""

import csv
import glob
import itertools
import json
import os
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Features, Image, IterableDataset, List, Value
from PIL.Image import Image as PilImage

from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.images import UnusableImage, inspect_image, strict_pillow
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.readers.conversations import read_turns
from vlmhelpers.data.readers.json_file import read_objects
from vlmhelpers.data.readers.source import DataError, SourceRow
from vlmhelpers.data.rows import ENCODED_ROWS_PER_BATCH, ImageRoot
from vlmhelpers.data.rules import merge_problems, row_problems
from vlmhelpers.data.schema import FEATURES
from vlmhelpers.data.spreadsheets import REASON, REMEDY, SOURCE_ROW, text_cell

_SHOWN = 20  # rows left out that are named while the stream is read
_PICTURES = ("jpg", "jpeg", "png", "webp")  # what is an image among the members of a WebDataset shard
_OF_FILES = ("shard", "row", "fields", "problems")


def read_stream(
    source: IterableDataset | str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str = "text",
    image_field: str = "image",
    response_field: str = "response",
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
    which its `check.more_rules`, if set, finds problems, as `check_dataset`'s. Repeated rows are not looked for. Raises
    ValueError for no rows, no shards or others.
    """
    rows = source if isinstance(source, IterableDataset) else _of_files(source, image_field)
    rows = rows.decode(False) if rows.features else rows
    first = next(iter(rows), None)
    if first is None:
        raise DataError(f"{source} holds no rows.")
    check = _Check(image_root, (text_field, image_field, response_field))
    features = Features({**FEATURES, "images": List(Image(decode=False)), "row": Value("int64")})
    options = {"batched": True, "batch_size": 1, "with_indices": True, "remove_columns": list(first)}
    stream = rows.map(check, features=features, **options)
    stream.check, stream.left_out = check, check.left_out
    return stream


def _of_files(source, image_field):
    files = sorted(glob.glob(os.fspath(source), recursive=True))
    if not files:
        raise DataError(f"there is no {source}: name a file, or a pattern such as shards/*.parquet")
    if other := next((file for file in files if Path(file).suffix.lower() not in _SHARDS), None):
        raise DataError(f"{other} cannot be streamed: name shards that end in {', '.join(_SHARDS)}")
    return IterableDataset.from_generator(_read, gen_kwargs={"files": files, "image_field": image_field})


def _read(files, image_field):
    for file in files:
        for number, row in enumerate(_SHARDS[Path(file).suffix.lower()](file, image_field), start=1):
            yield dict(zip(_OF_FILES, (file, number, row.fields, row.problems), strict=True))


def _read_parquet(file, _):
    for batch in pq.ParquetFile(file).iter_batches(ENCODED_ROWS_PER_BATCH):
        yield from map(SourceRow, batch.to_pylist())


def _read_tar(file, image_field):
    """The rows of a WebDataset shard: neighbors whose names are the same up to the first dot."""
    with tarfile.open(file) as archive:
        for _, members in itertools.groupby(filter(tarfile.TarInfo.isfile, archive), lambda m: _name_and_ending(m)[0]):
            yield _row_of({_name_and_ending(m)[1]: archive.extractfile(m).read() for m in members}, image_field)


def _name_and_ending(member):
    folder, name = os.path.split(member.name)
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _row_of(members, image_field):
    pictures = [members.pop(ending) for ending in list(members) if ending.endswith(_PICTURES)]
    texts = {ending: content.decode(errors="replace") for ending, content in members.items()}
    try:
        fields = json.loads(texts.pop("json", "{}"))
    except ValueError as error:
        return SourceRow({}, [(f"not JSON: {error}", "write one whole object into the row's .json")])
    if not isinstance(fields, dict):
        return SourceRow({}, [("no object in the row's .json", 'write {"name": value, ...}')])
    return SourceRow(texts | fields | ({image_field: pictures} if pictures else {}))


_SHARDS = {
    ".jsonl": lambda file, _: read_objects(file),
    ".json": lambda file, _: read_objects(file),
    ".parquet": _read_parquet,
    ".tar": _read_tar,
}


class _Check:
    """Makes a row of the schema of a stream's row, or of an unsound one an entry in `left_out`."""

    def __init__(self, image_root, fields):
        self.image_root, self.fields, self.left_out, self.more_rules = image_root, fields, {}, None

    def __call__(self, columns: dict[str, list], indices: list[int]) -> dict[str, list]:
        """Columns of the one row as a list each, and its place in the stream, which counts where no shard is known."""
        fields, shard, number, problems = {name: values[0] for name, values in columns.items()}, "", indices[0] + 1, []
        if tuple(fields) == _OF_FILES:
            shard, number, fields, problems = fields.values()
        row, images = SourceRow(fields, problems), {}
        row.fields = _take_out(fields, images)
        messages, sources = read_turns(row, *self.fields)
        found = [images.get(name) or row.get_images([name], self._root(shard))[0] for name in sources]
        built = {"messages": messages, "images": found}
        problems, sizes = row.problems or row_problems(built), []
        problems = problems or _unusable(found, sizes)
        if problems := problems or (self.more_rules(built, sizes) if self.more_rules else []):
            self._leave_out((shard, number), merge_problems(problems))
            return {name: [] for name in (*built, "row")}
        return {name: [value] for name, value in (built | {"row": number}).items()}

    def _root(self, shard):
        if self.image_root is None and not shard:
            raise DataError("the stream has paths of images: pass image_root, the folder that they start from")
        return ImageRoot(self.image_root or Path(shard).parent)

    def _leave_out(self, name, problem):
        if name not in self.left_out and len(self.left_out) < _SHOWN:
            more = "; further ones are only counted" if len(self.left_out) == _SHOWN - 1 else ""
            print(one_line(f"{_name_of(*name)} is left out: {problem[0]} -> {problem[1]}{more}"))
        self.left_out[name] = problem


def _name_of(shard, number):
    return f"{shard}, row {number}" if shard else f"row {number} of the stream"


def _take_out(value, images):
    """The value with a name in the place of each image in it, which joins `images` by that name; paths stay texts."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"} and value["bytes"] is None:
        return value["path"]
    if isinstance(value, bytes | PilImage) or (isinstance(value, dict) and isinstance(value.get("bytes"), bytes)):
        name = f"\0{len(images)}"  # no path has this character
        images[name] = value if isinstance(value, dict) else Image().encode_example(value)
        return name
    if isinstance(value, dict):
        return {name: _take_out(part, images) for name, part in value.items()}
    return [_take_out(part, images) for part in value] if isinstance(value, list) else value


def _unusable(images, sizes):
    """The problems of images; to `sizes` goes that of each sound one."""
    problems = []
    for image in images:
        try:
            with strict_pillow():
                sizes.append(inspect_image(image).size)
        except UnusableImage as error:
            problems.append((" ".join(error.reason.split()), error.remedy))
    return problems


def save_left_out(left_out: dict[tuple[str, int], tuple[str, str]], path: str | os.PathLike) -> None:
    """Writes what a stream has left out to a CSV: the shard, the row in it, the reason and the remedy."""
    with atomic_file(path, encoding="utf-8-sig", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["shard", SOURCE_ROW, REASON, REMEDY])
        table.writerows([*map(text_cell, (*name, *problem))] for name, problem in left_out.items())
