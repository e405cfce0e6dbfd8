"""Rows of Arrow tables: Parquet files, files of `datasets` and Datasets, with the values that their features mean."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Json, LargeList, List

from vlmhelpers.common.image_costs import largest_file
from vlmhelpers.common.images import MAX_PIXELS
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.readers.source import DataError, SourceRow
from vlmhelpers.data.rows import BYTES_PER_BATCH, ENCODED_ROWS_PER_BATCH, unpacked_rows

COPY = "Copy it again, or write it anew"
_LARGE = 2**15  # bytes of a column, of which each row may have all
_INDEX = 5  # bytes, at most, of one value in a dictionary
_MOST, _RATIO = largest_file(MAX_PIXELS), 100  # bytes of a row group, and how much more than in the file


def rows_of_dataset(dataset: Dataset) -> Iterator[SourceRow]:
    """Yields the rows of a Dataset, its images still encoded."""
    decode = row_decoder(dataset.features)
    for batch in dataset.with_format("arrow").iter(ENCODED_ROWS_PER_BATCH):
        yield from map(SourceRow, map(decode, unpacked_rows(batch)))


def rows_of_parquet(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields the rows of a Parquet file. Raises ValueError, which names it, where it cannot be read."""
    with explained(f"{path} cannot be read as Parquet", COPY):
        decode = row_decoder(_features(pq.read_schema(path)))
        yield from map(SourceRow, map(decode, stored_rows(path)))


def stored_rows(path: str | os.PathLike) -> Iterator[dict]:
    """Yields the rows of a Parquet file as they are stored, for which it raises what rows_of_parquet does."""
    with explained(f"{path} cannot be read as Parquet", COPY), pq.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            rows, dictionaries = _plan(path, file.metadata, number)
            with pq.ParquetFile(path, metadata=file.metadata, read_dictionary=dictionaries) as group:
                for batch in group.iter_batches(rows, row_groups=[number]):
                    batch.validate(full=True)  # its texts are UTF-8
                    yield from unpacked_rows(batch)


def _plan(path, metadata, number):
    """How many rows of a row group are read at once, and which columns stay dictionaries until a row is asked for.

    A text of 5 MB that all rows have stands in the file once, and counts once in total_uncompressed_size. So columns
    that each row could have whole stay dictionaries, unless those would hold many large values in memory.
    Raises ValueError for a row group that unpacks to more than is sensible.
    """
    group = metadata.row_group(number)
    columns = [group.column(i) for i in range(group.num_columns)]
    unpacked = sum(max(column.total_uncompressed_size, 8 * column.num_values) for column in columns)
    if unpacked > max(_MOST, _RATIO * sum(column.total_compressed_size for column in columns)):
        what = f"row group {number + 1} of {path} would unpack to {unpacked / 1e6:,.0f} MB"
        raise DataError(f"{what}, over {_RATIO} times its size. Leave out what fills it, or write smaller row groups.")
    large = [column for column in columns if column.total_uncompressed_size > _LARGE]
    texts = [column for column in large if column.physical_type == "BYTE_ARRAY" and column.has_dictionary_page]
    dictionaries = [c.path_in_schema for c in texts if unpacked <= BYTES_PER_BATCH or _has_indices_alone(c)]
    small = sum(column.total_uncompressed_size for column in columns) - sum(c.total_uncompressed_size for c in large)
    bounds = BYTES_PER_BATCH // max(small, 1), BYTES_PER_BATCH * group.num_rows // max(unpacked, 1)
    return max(1, min(ENCODED_ROWS_PER_BATCH, *bounds)), dictionaries


def _has_indices_alone(column):
    """Whether what follows a column's dictionary is so small that no value can stand there."""
    dictionary = column.data_page_offset - column.dictionary_page_offset
    return column.total_compressed_size - dictionary <= _INDEX * column.num_values + _LARGE


def columns_of_parquet(path: str | os.PathLike) -> tuple[list[str], Features | dict]:
    """The names of a Parquet file's columns, and the features that `datasets` wrote of all of them, else {}.

    Raises ValueError where it cannot be read, or has one name twice.
    """
    with explained(f"{path} cannot be read as Parquet", COPY):
        schema = pq.read_schema(path)
    names, features = schema.names, _features(schema)
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
