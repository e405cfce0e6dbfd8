"""Rows of Arrow tables: Parquet files, files of `datasets` and Datasets, with the values that their features mean."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Json, LargeList, List

from vlmhelpers.common.printable import one_line
from vlmhelpers.data.readers.source import DataError, SourceRow
from vlmhelpers.data.rows import ENCODED_ROWS_PER_BATCH

COPY = "Copy it again, or write it anew"


def rows_of_dataset(dataset: Dataset) -> Iterator[SourceRow]:
    """Yields the rows of a Dataset, its images still encoded."""
    decode = row_decoder(dataset.features)
    for batch in dataset.with_format("arrow").iter(ENCODED_ROWS_PER_BATCH):
        yield from _rows_of(batch, decode)


def rows_of_parquet(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields the rows of a Parquet file. Raises ValueError, which names it, where it cannot be read."""
    with explained(f"{path} cannot be read as Parquet", COPY), pq.ParquetFile(path) as file:
        decode = row_decoder(_features(file.schema_arrow))
        for batch in file.iter_batches(ENCODED_ROWS_PER_BATCH):
            batch.validate(full=True)  # its texts are UTF-8
            yield from _rows_of(batch, decode)


def columns_of_parquet(path: str | os.PathLike) -> tuple[list[str], Features | dict]:
    """The names of a Parquet file's columns, and the features that `datasets` wrote of all of them, else {}.

    Raises ValueError where it cannot be read, or has one name twice.
    """
    with explained(f"{path} cannot be read as Parquet", COPY), pq.ParquetFile(path) as file:
        names, features = file.schema_arrow.names, _features(file.schema_arrow)
    refuse_twice(path, names)
    return names, features if features.keys() == {*names} else {}


def refuse_twice(path: str | os.PathLike, names: list[str]) -> None:
    """Raises ValueError where two columns have one name."""
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{path} has two columns named {twice[0]!r}. Rename or remove one of them.")


@contextmanager
def explained(text: str, remedy: str) -> Iterator[None]:
    """Errors of Arrow's readers as ValueError, which begins with `text`; those of the disk as they are."""
    try:
        yield
    except (pa.ArrowException, ValueError, OverflowError, KeyError, OSError) as error:
        if getattr(error, "errno", None) or isinstance(error, DataError):
            raise
        why = one_line("; ".join(map(str, error.args)))[:200].rstrip(".")
        raise DataError(f"{text}: {why}. {remedy}.") from None


def _rows_of(batch, decode):
    return map(SourceRow, map(decode, batch.to_pylist()))


def _features(schema):
    """The features that `datasets` wrote beside the schema; none where another program wrote the file."""
    try:
        return Features.from_arrow_schema(schema) if b"huggingface" in (schema.metadata or {}) else {}
    except (ValueError, TypeError, KeyError):
        return {}


def row_decoder(features: Features | dict) -> Callable[[dict], dict]:
    """What makes of a stored row the one that is meant: names of classes for their numbers, and JSON for its text."""
    decoders = _decoders(features.items())
    return lambda row: _decoded_object(row, decoders) if decoders else row


def _decoders(features: Iterable):
    return {name: decoder for name, feature in features if (decoder := _decoder(feature))}


def _decoder(feature):
    """The function for the values of a feature, or None where they are what is meant."""
    if isinstance(feature, ClassLabel):
        names = feature.names
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    if isinstance(feature, Json):
        return lambda value: json.loads(value) if isinstance(value, str) else value
    if isinstance(feature, List | LargeList):
        inner = _decoder(feature.feature)
        return inner and (lambda values: [inner(value) for value in values] if isinstance(values, list) else values)
    if isinstance(feature, dict):
        decoders = _decoders(feature.items())
        return decoders and (lambda value: _decoded_object(value, decoders))
    return None


def _decoded_object(value, decoders):
    if not isinstance(value, dict):
        return value
    return {name: decoders[name](part) if name in decoders else part for name, part in value.items()}
