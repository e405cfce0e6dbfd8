"""A table with types, wherever it comes from: a CSV or parquet file, a Dataset, a DataFrame, the Hugging Face Hub."""

import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Value, load_dataset
from datasets.table import InMemoryTable

from vlmhelpers.data.readers.csv_reader import read_table
from vlmhelpers.data.readers.source import SourceRow


@dataclass(frozen=True)
class Table:
    """`rows()` yields each row, as often as called. name: for messages. features: of the columns, by their names.
    folder: where the table lies, None if nowhere.
    """

    name: str
    features: dict
    rows: Callable[[], Iterator[SourceRow]]
    folder: Path | None = None


def open_table(source: str | os.PathLike | Dataset | DatasetDict | pd.DataFrame, numbers: dict[str, str]) -> Table:
    """The Table in `source`.

    source: the path of a .csv or .parquet file, a Dataset, a DatasetDict with one split, a pandas DataFrame, or the
        name of a dataset on the Hub ("owner/name"), of which the split "train" is taken.
    numbers: column -> "int64" or "float64". A CSV's cells in these columns are read as numbers, empty ones as None;
        what is no number is a problem of its row.

    Raises ValueError for several splits or an unreadable file, TypeError for what is no table, and OSError.
    """
    if isinstance(source, dict):
        if len(source) != 1:
            splits = ", ".join(map(repr, source)) or "none"
            raise ValueError(f"the table has the splits {splits}. Pass the one to read, such as table['train'].")
        (source,) = source.values()
    if isinstance(source, pd.DataFrame):
        remedy = "Give each column a name of its own and one plain type, such as text or numbers, or leave it out"
        with _explained("the DataFrame cannot be read", remedy):
            source = Dataset.from_pandas(source, preserve_index=False)
    if isinstance(source, Dataset):
        return _from_dataset("the table", source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"a {type(source).__name__} is no table; pass a file, a Dataset or a DataFrame")
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        return _from_csv(source, numbers)
    if suffix == ".parquet":
        return _from_dataset(str(source), _read_parquet(source), Path(source).parent)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(source):
        return _from_dataset(source, load_dataset(source, split="train"))
    raise ValueError(f"{source} is no .csv or .parquet file, and no name of a dataset on the Hub (owner/name).")


@contextmanager
def _explained(text, remedy):
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        raise ValueError(f"{text}: {'; '.join(map(str, error.args)).rstrip('.')}. {remedy}.") from None


def _read_parquet(path):
    with _explained(f"{path} cannot be read as parquet", "Copy or download it again"), pq.ParquetFile(path) as file:
        table = file.read()
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}. Rename or remove one of them.")
    return Dataset(InMemoryTable(table))


def _from_dataset(name, dataset, folder=None):
    def rows():
        for batch in dataset.with_format("arrow").iter(1000):
            yield from map(SourceRow, batch.to_pylist())

    return Table(name, dict(dataset.features), rows, folder)


def _from_csv(path, numbers):
    header, _ = read_table(path)

    def rows():
        for row in read_table(path)[1]:
            for name in numbers.keys() & row.fields.keys():
                row.fields[name] = _number(row, name, numbers[name])
            yield row

    features = {name: Value(numbers.get(name, "string")) for name in header}
    return Table(str(path), features, rows, Path(path).parent)


def _number(row, name, kind):
    """The number in a field of text; None where it is empty or, which is a problem, no number."""
    text = row.fields[name]
    if not text:
        return None
    try:
        number = pa.scalar(text).cast(kind).as_py()
    except pa.ArrowInvalid:
        number = math.nan
    if math.isfinite(number):
        return number
    form = "a whole number in digits" if kind == "int64" else "a number like 1234.5"
    row.reject(f"no number in {name}: {text[:40]!r}", f"write {form}, or leave the cell empty")
    return None
