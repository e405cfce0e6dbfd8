"""Sources of rows, whatever they lie in: JSON and JSONL, CSV, Parquet, WebDataset shards, folders, Datasets.

No source is held in memory as a whole.
"""

import glob
import itertools
import os
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk

from vlmhelpers.data.readers.arrow_rows import COPY, columns_of_parquet, explained, rows_of_dataset, rows_of_parquet
from vlmhelpers.data.readers.csv_table import read_table
from vlmhelpers.data.readers.json_file import EXPECTED, read_objects
from vlmhelpers.data.readers.made_rows import made_again, made_kind
from vlmhelpers.data.readers.shards import read_shard
from vlmhelpers.data.readers.source import MOST_COLUMNS, DataError, SourceRow, explain_missing, to_dataset
from vlmhelpers.data.rows import BYTES_PER_BATCH, ImageRoot, bytes_in, unused_fields
from vlmhelpers.data.schema import KINDS

ROWS_AHEAD = 1000  # of which the fields become columns
OTHER_FILES = (".tsv", ".parquet", ".arrow", ".tar", ".tgz", ".gz")  # that are no CSV and no JSON
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of an imagefolder
_OF_ROWS = (".parquet", ".tar", ".jsonl", ".json", ".csv", ".arrow")
_SPLIT = re.compile(r"(?<![a-z])(train|training|test|validation|valid|val|dev|eval)(?![a-z])", re.IGNORECASE)
_SAME_SPLIT = {"training": "train", "valid": "validation", "val": "validation", "dev": "validation"}
_SIDE_FILES = ("dataset_info.json", "state.json", "dataset_infos.json", "dataset_dict.json")


@dataclass(frozen=True)
class Source:
    """Where rows come from. `rows()` yields each row, as often as called.

    folder: that its image paths start from, None for no file. columns: None where the rows alone tell them. is_table:
    its header is the same for all rows, and a cell may hold a list as JSON. features: of its columns, where datasets
    wrote them; unused: what the reader that made its rows has not used.
    """

    name: str
    rows: Callable[[], Iterator[SourceRow]]
    folder: Path | None = None
    columns: list[str] | None = None
    is_table: bool = False
    features: Features | None = None
    unused: Collection[str] = ()

    @property
    def made(self) -> str | None:
        """The kind of its rows where a reader has made them, see made_kind."""
        return made_kind(self.features)

    def ahead(self) -> list[SourceRow]:
        """The first rows, by which the source is recognized."""
        return _take_ahead(self.rows())

    def read(
        self,
        build: Callable[[SourceRow], dict],
        root_of: Callable[[SourceRow], ImageRoot | None],
        wanted: dict[str, tuple[str, ...]],
        also: Collection[str],
        reader: str,
        kind: str = "messages",
        given: Collection[str] = (),
        usual_case: Callable[[dict], dict] = lambda fields: {},
    ) -> Dataset:
        """The Dataset of the rows of this kind that `build` makes; rows that a reader has made stay as they are.

        root_of: where a row's image paths start from. `wanted` maps arguments of `reader` (its name) to the names that
        their field may have, `usual_case` fields to those of them that they are. Raises ValueError where the first
        rows, or the header, have no field for one of them, nor one of `also`; for a field in `given` that no row has;
        and what the source raises.
        """
        if self.made == kind:
            return self._read_again(root_of, given)
        rows = self.rows()
        ahead = _take_ahead(rows)
        objects = [row.fields for row in ahead if row.text is None and (row.fields or not row.problems)]
        if not objects and self.columns is None:
            _check_first(self.name, ahead)
        names = self.columns if self.columns is not None else dict.fromkeys(n for fields in objects for n in fields)
        there = {*names, *usual_case(dict.fromkeys(names)).values()}
        missing = [argument for argument, of_argument in wanted.items() if not {*of_argument} & there]
        if missing and not {*also} & there:
            taken = {*usual_case(dict.fromkeys(names)), *itertools.chain(*wanted.values())}
            _explain(self.name, {argument: wanted[argument][0] for argument in missing}, objects, reader, taken)
        columns = dict.fromkeys(names, Value("string"))

        def build_noted(row):
            late = [name for name in row.fields if name not in columns] if len(columns) <= MOST_COLUMNS else []
            if late:
                row.notes.append(f"not kept as a column, being new after row {len(ahead)}: {', '.join(late)}")
            return build(row)

        return to_dataset(itertools.chain(ahead, rows), build_noted, columns, self.name, kind, given)

    def _read_again(self, root_of, given):
        if named := [name for name in given if name not in KINDS[self.made]]:
            raise DataError(f"{self.name} holds rows that were read already. Leave out the field {named[0]!r}.")

        def build(row):
            row.unused.update(self.unused)
            return made_again(row, self.made, root_of(row))

        return to_dataset(self.rows(), build, self.features, self.name, self.made, again=True)


def _check_first(name, ahead):
    if not ahead:
        raise DataError(f"{name} holds no rows. {EXPECTED}")
    reason, remedy = ahead[0].problems[0]
    raise DataError(f"{name}, row 1: {reason}; nor are the next rows. {EXPECTED} Remedy: {remedy}.")


def _explain(source, missing, objects, reader, taken):
    for name, value in objects[0].items() if objects else ():
        first = value[0] if isinstance(value, list) and value else None
        if isinstance(first, dict) and not {"role", "from", "bytes", "path"} & first.keys():
            held = f"{source} holds its rows inside an object, under {name!r}"
            raise DataError(f"{held}. {EXPECTED} Save that list as a file.")
    text = explain_missing(source, "field", missing, objects[0] if objects else (), reader, taken)
    captions = reader in ("read_jsonl", "read_csv", "read_dataset") and len(missing) == 1
    more = " Where every row is asked the same, pass instruction='...'." if captions else ""
    raise DataError(text + more)


def _take_ahead(rows):
    ahead, size = [], 0
    for row in itertools.islice(rows, ROWS_AHEAD):
        ahead.append(row)
        size += bytes_in(row.fields)
        if size > BYTES_PER_BATCH:
            break
    return ahead


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
        opened = _of_dataset("the dataset", source)
        return replace(opened, folder=Path(os.path.abspath(os.sep))) if opened.made else opened  # its paths are whole
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
    _refuse_pipe(path)
    opener = {".csv": open_csv, ".tsv": open_csv, ".parquet": _of_parquet, ".arrow": _of_arrow}
    opener |= dict.fromkeys([".tar", ".tgz"], _of_shard)
    ending = ".tgz" if str(path).lower().endswith(".tar.gz") else Path(path).suffix.lower()
    return opener.get(ending, open_json)(path)


def _refuse_pipe(path):
    """Raises ValueError for what can be read but once, and in no other order."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise DataError(f"{path} is a pipe or a device. Save its rows as a file, and read that.")


def open_json(path: str | os.PathLike) -> Source:
    """The Source in a JSON or JSONL file."""
    _refuse_pipe(path)
    return Source(str(path), lambda: read_objects(path), Path(path).parent)


def open_csv(path: str | os.PathLike) -> Source:
    """The Source in a CSV, see read_table."""
    _refuse_pipe(path)
    return Source(str(path), lambda: read_table(path)[1], Path(path).parent, read_table(path)[0], is_table=True)


def _of_parquet(path):
    columns, features = columns_of_parquet(path)
    return Source(str(path), lambda: rows_of_parquet(path), Path(path).parent, columns, features=features)


def _of_arrow(path):
    with explained(f"{path} cannot be read as a stream of Arrow, as datasets writes it", COPY):
        dataset = Dataset.from_file(str(path))
    return replace(_of_dataset(str(path), dataset), folder=Path(path).parent)


def _of_dataset(name, dataset):
    unused = unused_fields(dataset) if made_kind(dataset.features) else ()
    columns, features = dataset.column_names, dataset.features
    return Source(name, lambda: rows_of_dataset(dataset), None, columns, features=features, unused=unused)


def _of_shard(path):
    return Source(str(path), lambda: read_shard(path), Path(path).parent)


def _of_folder(folder):
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        found = load_from_disk(str(folder))
        source = open_source(found) if isinstance(found, DatasetDict) else _of_dataset(str(folder), found)
        return replace(source, name=str(folder), folder=folder)
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and not _is_hidden(file, folder)]
    metadata = [file for file in files if file.name in _METADATA]
    rows = [file for file in files if file.suffix.lower() in _OF_ROWS and file.name not in _SIDE_FILES]
    return _of_files(str(folder), metadata or rows)


def _is_hidden(file, folder):
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _check_splits(name, files):
    """Raises ValueError for files of several splits: one for training and one for the test are not one source."""
    start = len(os.path.commonpath([os.path.dirname(file) for file in files]))
    found = {}
    for file in files:
        for split in _SPLIT.findall(str(file)[start:]):
            found.setdefault(_SAME_SPLIT.get(split.lower(), split.lower()), file)
    if len(found) > 1:
        example = next(iter(found.values()))
        raise DataError(f"{name} holds the splits {', '.join(found)}: name the files of one, such as {example}")


def _of_files(name, files):
    """One Source of several files of one kind, each of which has its own folder for its images."""
    if not files:
        raise FileNotFoundError(f"{name} holds no file of rows: name one, or a folder that holds metadata.jsonl")
    if len(files) == 1:
        return open_file(files[0])
    _check_splits(name, files)
    sources = [open_file(file) for file in files]
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

    features = sources[0].features if all(source.features == sources[0].features for source in sources) else None
    return Source(name, rows, folder, columns, sources[0].is_table, features)
