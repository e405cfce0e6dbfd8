"""A table with types, wherever it comes from: a CSV or parquet file, a Dataset, a DataFrame, the Hugging Face Hub."""

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Value, load_dataset
from datasets.table import InMemoryTable

from vlmhelpers.data.readers.csv_file import read_table

_ROWS_PER_BATCH = 1000
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class Table:
    """`records()` yields (dict of values by column, (reason, remedy) pairs, note) for each row, as often as called.

    name: for messages. features: of the columns, by their names. folder: where the table lies, None if nowhere.
    """

    name: str
    features: dict
    records: Callable
    folder: Path | None = None


def open_table(source, numbers):
    """The Table in `source`.

    source: the path of a .csv or .parquet file, a Dataset, a DatasetDict with one split, a pandas DataFrame, or the
        name of a dataset on the Hub ("owner/name"), of which the split "train" is taken.
    numbers: column -> "int64" or "float64". A CSV's cells in these columns are read as numbers, empty ones as None;
        what is no number is a problem of its row.

    Raises ValueError for several splits or an unreadable file, TypeError for what is no table, and OSError.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_named(source, numbers)
    if isinstance(source, dict):
        if len(source) != 1:
            splits = ", ".join(map(repr, source)) or "none"
            raise ValueError(f"the table has the splits {splits}. Pass the one to read, such as table['train'].")
        (source,) = source.values()
    if isinstance(source, pd.DataFrame):
        source = _make_dataset("the DataFrame", Dataset.from_pandas, source, preserve_index=False)
    if not isinstance(source, Dataset):
        raise TypeError(f"a {type(source).__name__} is no table; pass a file, a Dataset or a DataFrame")
    return _from_dataset("the table", source)


def _open_named(source, numbers):
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        return _from_csv(source, numbers)
    if suffix == ".parquet":
        dataset = _make_dataset(source, Dataset, InMemoryTable(_read_parquet(source)))
        return _from_dataset(str(source), dataset, Path(source).parent)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(source):
        return _from_dataset(source, load_dataset(source, split="train"))
    raise ValueError(f"{source} is no .csv or .parquet file, and no name of a dataset on the Hub (owner/name).")


def _read_parquet(path):
    try:
        with pq.ParquetFile(path) as file:
            rows = file.read()
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}. Copy or download it again.") from None
    twice = sorted({name for name in rows.column_names if rows.column_names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}. Rename or remove one of them.")
    return rows


def _make_dataset(name, make, *arguments, **options):
    """The Dataset that `make` returns. Raises ValueError that names `name` for columns which no Dataset can hold."""
    try:
        return make(*arguments, **options)
    except (pa.ArrowException, ValueError) as error:
        reason = "; ".join(map(str, error.args)).rstrip(".")
        remedy = "Give each column a name of its own and one plain type, such as text or numbers, or leave it out."
        raise ValueError(f"{name} cannot be read: {reason}. {remedy}") from None


def _from_dataset(name, dataset, folder=None):
    def records():
        for batch in dataset.with_format("arrow").iter(_ROWS_PER_BATCH):
            for values in batch.to_pylist():
                yield values, [], ""

    return Table(name, dict(dataset.features), records, folder)


def _from_csv(path, numbers):
    header, _ = read_table(path)

    def records():
        for record in read_table(path)[1]:
            values, problems = dict(zip(header, record.cells, strict=True)), list(record.problems)
            for name in filter(values.__contains__, numbers):
                values[name], problem = _number(name, values[name], numbers[name])
                problems += problem
            yield values, problems, record.note

    features = {name: Value(numbers.get(name, "string")) for name in header}
    return Table(str(path), features, records, Path(path).parent)


def _number(name, text, kind):
    """The number that `text` writes, or None, and a list of at most one problem."""
    if not text:
        return None, []
    try:
        number = int(text) if kind == "int64" else float(text)
        if "_" not in text and (number in _INT64 if kind == "int64" else math.isfinite(number)):
            return number, []
    except ValueError:
        pass
    form = "a whole number in digits" if kind == "int64" else "a number like 1234.5"
    return None, [(f"no number in {name}: {text[:40]!r}", f"write {form}, or leave the cell empty")]
