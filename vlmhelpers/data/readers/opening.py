"""Sources of rows, whatever they lie in: JSON and JSONL, CSV, Parquet, WebDataset shards, folders, Datasets.

No source is held in memory as a whole.
"""

import glob
import itertools
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk

from vlmhelpers.data.readers.csv_table import read_table
from vlmhelpers.data.readers.json_file import EXPECTED, read_objects
from vlmhelpers.data.readers.source import DataError, SourceRow, explain_missing, to_dataset
from vlmhelpers.data.rows import ENCODED_ROWS_PER_BATCH

ROWS_AHEAD = 1000  # of which the fields become columns
_BYTES_AHEAD = 2**26  # of embedded images, after which no more rows are read ahead
_IMAGES = (  # what is an image among the members of a WebDataset shard
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm"),
)
OTHER_FILES = (".tsv", ".parquet", ".arrow", ".tar", ".tgz", ".gz")  # that are no CSV and no JSON
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an imagefolder
_SIDE_FILES = ("dataset_info.json", "state.json", "dataset_infos.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """Where rows come from. `rows()` yields each row, as often as called.

    folder: that its image paths start from, None for no file. columns: None where the rows alone tell them. is_table:
    its header is the same for all rows, and a cell may hold a list as JSON.
    """

    name: str
    rows: Callable[[], Iterator[SourceRow]]
    folder: Path | None = None
    columns: list[str] | None = None
    is_table: bool = False

    def ahead(self) -> list[SourceRow]:
        """The first rows, by which the source is recognized."""
        return _take_ahead(self.rows())

    def read(
        self,
        build: Callable[[SourceRow], dict],
        wanted: dict[str, tuple[str, ...]],
        also: Collection[str],
        reader: str,
        kind: str = "messages",
        given: Collection[str] = (),
        usual_case: Callable[[dict], dict] = lambda fields: {},
    ) -> Dataset:
        """The Dataset of the rows of this kind that `build` makes.

        `wanted` maps arguments of `reader` (its name) to the names that their field may have, `usual_case` fields to
        those of them that they are. Raises ValueError where the first rows, or the header, have no field for one of
        them, nor one of `also`; for a field in `given` that no row has; and what the source raises.
        """
        rows = self.rows()
        ahead = _take_ahead(rows)
        objects = [row.fields for row in ahead if row.text is None]
        if not objects and self.columns is None:
            _check_first(self.name, ahead)
        names = self.columns if self.columns is not None else dict.fromkeys(n for fields in objects for n in fields)
        there = {*names, *usual_case(dict.fromkeys(names)).values()}
        missing = [argument for argument, of_argument in wanted.items() if not {*of_argument} & there]
        if missing and not {*also} & there:
            _explain(self.name, {argument: wanted[argument][0] for argument in missing}, objects, reader)
        columns = dict.fromkeys(names, Value("string"))

        def build_noted(row):
            if late := [name for name in row.fields if name not in columns]:
                row.notes.append(f"not kept as a column, being new after row {len(ahead)}: {', '.join(late)}")
            return build(row)

        return to_dataset(itertools.chain(ahead, rows), build_noted, columns, self.name, kind, given)


def _check_first(name, ahead):
    if not ahead:
        raise DataError(f"{name} holds no rows. {EXPECTED}")
    reason, remedy = ahead[0].problems[0]
    raise DataError(f"{name}, row 1: {reason}; nor are the next rows. {EXPECTED} Remedy: {remedy}.")


def _explain(source, missing, objects, reader):
    for name, value in objects[0].items() if objects else ():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and not {"role", "from", "bytes", "path"} & first.keys():
            held = f"{source} holds its rows inside an object, under {name!r}"
            raise DataError(f"{held}. {EXPECTED} Save that list as a file.")
    text = explain_missing(source, "field", missing, objects[0] if objects else (), reader)
    captions = reader in ("read_jsonl", "read_csv", "read_dataset") and len(missing) == 1
    more = " Where every row is asked the same, pass instruction='...' in place of a text_field." if captions else ""
    raise DataError(text + more)


def _take_ahead(rows):
    ahead, size = [], 0
    for row in itertools.islice(rows, ROWS_AHEAD):
        ahead.append(row)
        size += sum(map(_bytes_in, row.fields.values()))
        if size > _BYTES_AHEAD:
            break
    return ahead


def _bytes_in(value):
    if isinstance(value, dict):
        value = value.get("bytes")
    if isinstance(value, list):
        return sum(map(_bytes_in, value))
    return len(value) if isinstance(value, bytes) else 0


def open_source(source: object) -> Source:
    """The Source in a file by its ending (CSV, Parquet, WebDataset's .tar, any other is JSON or JSONL), a folder, a
    pattern such as `shards/*.parquet`, a Dataset, a DatasetDict of one split, or a dataset of the Hub (owner/name).

    A folder is one that `save_to_disk` wrote, one of images with their metadata file (imagefolder), or one of files of
    one kind. Raises ValueError, TypeError for what is none of these, FileNotFoundError and OSError.
    """
    if isinstance(source, dict):
        if len(source) != 1:
            splits = ", ".join(map(repr, source)) or "none"
            raise DataError(f"the source has the splits {splits}. Pass the one to read, such as source['train'].")
        (source,) = source.values()
    if isinstance(source, Dataset):
        return _of_dataset("the dataset", source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"a {type(source).__name__} is no source of rows; pass a file, a folder or a Dataset")
    if os.path.isdir(source):
        return _of_folder(Path(source))
    if glob.has_magic(os.fspath(source)) and not os.path.exists(source):
        return _of_files(os.fspath(source), sorted(glob.glob(os.fspath(source), recursive=True)))
    if not os.path.exists(source) and isinstance(source, str) and _is_hub_id(source):
        return _of_dataset(source, load_dataset(source, split="train"))
    return open_file(source)


def _is_hub_id(text):
    owner, slash, name = text.partition("/")
    return bool(slash and owner and name) and "/" not in name and not Path(name).suffix and owner not in (".", "..")


def open_file(path: str | os.PathLike) -> Source:
    """The Source in one file, by its ending."""
    opener = {".csv": open_csv, ".tsv": open_csv, ".parquet": _of_parquet, ".arrow": _of_arrow}
    opener |= dict.fromkeys([".tar", ".tgz"], _of_tar)
    ending = ".tgz" if str(path).lower().endswith(".tar.gz") else Path(path).suffix.lower()
    return opener.get(ending, open_json)(path)


def open_json(path: str | os.PathLike) -> Source:
    """The Source in a JSON or JSONL file."""
    return Source(str(path), lambda: read_objects(path), Path(path).parent)


def open_csv(path: str | os.PathLike) -> Source:
    """The Source in a CSV, see read_table."""
    return Source(str(path), lambda: read_table(path)[1], Path(path).parent, read_table(path)[0], is_table=True)


@contextmanager
def _explained(path):
    """Errors of Arrow's readers as ValueError; those of the disk as they are."""
    try:
        yield
    except (pa.ArrowException, ValueError, OSError) as error:
        if getattr(error, "errno", None) or isinstance(error, DataError):
            raise
        what = "; ".join(map(str, error.args)).splitlines()[0][:200].rstrip(".")
        raise DataError(f"{path} cannot be read as parquet: {what}. Copy or download it again.") from None


def _of_parquet(path):
    with _explained(path), pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        names = schema.names
        features = _features(schema)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has two columns named {twice[0]!r}. Rename or remove one of them.")

    def rows():
        with _explained(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ENCODED_ROWS_PER_BATCH):
                batch.validate(full=True)  # its texts are UTF-8
                yield from map(SourceRow, _named(batch.to_pylist(), features))

    return Source(str(path), rows, Path(path).parent, names)


def _features(schema):
    """The features that `datasets` wrote beside the schema; none where another program wrote the file."""
    try:
        return Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    except (ValueError, TypeError, KeyError):
        return {}


def _named(rows, features):
    """The rows, with the names of classes in the place of their numbers."""
    classes = {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}
    lists = {n: f.feature for n, f in features.items() if isinstance(f, List) and isinstance(f.feature, ClassLabel)}
    for row in rows:
        yield {
            name: _class_name(classes[name], value)
            if name in classes
            else [_class_name(lists[name], one) for one in value or []]
            if name in lists
            else value
            for name, value in row.items()
        }


def _class_name(feature, value):
    return feature.int2str(value) if isinstance(value, int) and 0 <= value < feature.num_classes else None


def _of_arrow(path):
    with _explained(path):
        return replace(_of_dataset(str(path), Dataset.from_file(str(path))), folder=Path(path).parent)


def _of_dataset(name, dataset):
    def rows():
        for batch in dataset.with_format("arrow").iter(ENCODED_ROWS_PER_BATCH):
            yield from map(SourceRow, _named(batch.to_pylist(), dataset.features))

    return Source(name, rows, None, dataset.column_names)


def _of_tar(path):
    return Source(str(path), lambda: read_tar(path), Path(path).parent)


def read_tar(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields the rows of a WebDataset shard: neighbors whose names are the same up to the first dot.

    Pictures are the field "image", in the order of the members; those of a `.json` object are fields, every other
    member is a text, named by its ending.
    """
    try:
        with tarfile.open(path) as archive:
            members = (m for m in archive if m.isfile() and not os.path.basename(m.name).startswith((".", "__")))
            for _, group in itertools.groupby(members, lambda m: _stem_and_ending(m)[0]):
                yield _row_of([(_stem_and_ending(m)[1], archive.extractfile(m).read()) for m in group])
    except tarfile.TarError as error:
        raise DataError(f"{path} cannot be read as a tar archive: {error}. Copy or download it again.") from None


def _stem_and_ending(member):
    folder, name = os.path.split(member.name)
    stem, _, ending = name.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _row_of(members):
    """The row of a shard's (ending, content) pairs."""
    pictures = [content for ending, content in members if f".{ending}".endswith(_IMAGES)]
    others = [member for member in members if not f".{member[0]}".endswith(_IMAGES)]
    if twice := [ending for ending, count in Counter(ending for ending, _ in others).items() if count > 1]:
        return SourceRow({}, [(f"two members of the ending .{twice[0]}", "keep one of them")])
    try:
        texts = {ending: content.decode() for ending, content in others}
        fields = json.loads(texts.pop("json", "{}"))
    except UnicodeDecodeError as error:
        return SourceRow({}, [(f"a member that is no UTF-8 text: {error.reason}", "leave it out, or save it as text")])
    except (ValueError, RecursionError) as error:
        return SourceRow({}, [(f"not JSON: {error}", "write one whole object into the row's .json")])
    if not isinstance(fields, dict):
        return SourceRow({}, [("no object in the row's .json", 'write {"name": value, ...}')])
    return SourceRow(texts | fields | ({"image": pictures} if pictures else {}))


def _of_folder(folder):
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        found = load_from_disk(str(folder))
        source = open_source(found) if isinstance(found, DatasetDict) else _of_dataset(str(folder), found)
        return replace(source, name=str(folder), folder=folder)
    files = sorted(file for file in folder.rglob("*") if file.name in _METADATA)
    if not files:
        endings = (".parquet", ".tar", ".jsonl", ".json", ".csv", ".arrow")
        found = (file for file in folder.rglob("*") if file.is_file() and file.name not in _SIDE_FILES)
        files = sorted(file for file in found if file.suffix.lower() in endings)
    return _of_files(str(folder), files)


def _of_files(name, files):
    """One Source of several files of one kind, each of which has its own folder for its images."""
    if not files:
        raise FileNotFoundError(f"{name} holds no file of rows: name one, or a folder that holds metadata.jsonl")
    sources = [open_file(file) for file in files]
    if len(sources) == 1:
        return sources[0]
    if len({Path(file).suffix.lower() for file in files}) > 1:
        raise DataError(f"{name} holds files of several kinds ({', '.join(map(str, files[:3]))}): name the one to read")
    folder = Path(os.path.commonpath([os.path.abspath(source.folder) for source in sources]))
    columns = None
    if all(source.columns is not None for source in sources):
        columns = list(dict.fromkeys(column for source in sources for column in source.columns))

    def rows():
        for source in sources:
            for row in source.rows():
                row.folder = source.folder
                yield row

    return Source(name, rows, folder, columns, sources[0].is_table)
