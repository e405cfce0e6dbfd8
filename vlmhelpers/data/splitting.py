"""Train and test without leakage: what belongs together is on one side."""

import random
from array import array
from collections.abc import Callable, Iterable
from decimal import Decimal
from numbers import Integral, Real

import numpy as np
from datasets import Dataset, DatasetDict, IterableDataset

from vlmhelpers.common.digests import digest
from vlmhelpers.common.images import image_identity
from vlmhelpers.data.given import given_rows, refuse_nulls
from vlmhelpers.data.rows import first_rows, stream_plain_rows
from vlmhelpers.data.schema import all_images, conversations, message_text


def split(
    dataset: Dataset, test_size: int | float, group_by: str | Callable[[dict], object] | None = None, seed: int = 0
) -> DatasetDict:
    """Splits a Dataset of rows of any kind into a DatasetDict of `train` and `test`.

    The rows keep their order, groups stay whole.

    test_size: rows (an int) or a share of them (a float between 0 and 1). Groups join the test set in random order
        while they fit: it lacks fewer rows than the smallest training group has. Where none fits, it is the smallest.
    group_by: a column's name, or a function of a row, whose images come undecoded as {"path", "bytes"}. By default
        rows that share an image are one group, and rows without images are grouped by what the user says.
    The same seed gives the same split on every machine. `dataset` may also be a list of rows. Raises ValueError for a
    test_size that leaves a side empty, an unknown column, or fewer than two groups.
    """
    dataset = dataset if isinstance(dataset, Dataset) else given_rows(dataset, None)
    refuse_nulls(dataset)
    missing = _rows_wanted(test_size, len(dataset))
    groups = _groups(dataset, group_by)
    sizes = np.bincount(groups)
    if len(sizes) < 2:
        by = "their images and texts" if group_by is None else repr(group_by)
        raise ValueError(f"all {len(dataset)} rows are one group by {by}: a split needs at least two groups")
    shuffled = array("q", range(len(sizes)))
    random.Random(_scalar(seed)).shuffle(shuffled)
    in_test = np.zeros(len(sizes), bool)
    for group in shuffled:
        if sizes[group] <= missing:
            in_test[group] = True
            missing -= sizes[group]
    if not in_test.any():
        in_test[min(shuffled, key=sizes.__getitem__)] = True
    sides = {"train": ~in_test[groups], "test": in_test[groups]}
    return DatasetDict({side: dataset.select(np.flatnonzero(rows)) for side, rows in sides.items()})


def hold_out(stream: IterableDataset, rows: int) -> tuple[Dataset, IterableDataset]:
    """The first rows of a stream of read_stream, and an endless stream of the others: it begins again where it ends.

    The others share no image, or question without images, with the first. Raises ValueError where there are none.
    """
    held = first_rows(stream, rows)
    known = {key for row in stream_plain_rows(held, held.column_names, "holding out") for key in _content(row)}
    others = stream.filter(lambda row: known.isdisjoint(_content(row)))
    if not len(first_rows(others, 1)):
        raise ValueError(f"the stream has no sound row besides the {len(held)} that are held out: choose fewer of them")
    return held, others.repeat(None)


def _rows_wanted(test_size, rows):
    if rows < 2:
        raise ValueError(f"{rows} rows cannot be split: give at least 2")
    size = _scalar(test_size)
    if isinstance(size, Integral) and not isinstance(size, bool) and 0 < size < rows:
        return int(size)
    if isinstance(size, Real | Decimal) and not isinstance(size, Integral) and 0 < size < 1:
        return min(max(1, round(float(size) * rows)), rows - 1)
    raise ValueError(f"test_size is {test_size!r}: a number of rows from 1 to {rows - 1} or a share in 0.0 to 1.0")


def _scalar(value):
    """The number that numpy or torch has in an array without dimensions; anything else as it is."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value


def _groups(dataset, group_by):
    """The number of each row's group, counted in the order of the rows: int64, shape (rows,)."""
    named = isinstance(group_by, str)
    if named and group_by not in dataset.column_names:
        raise ValueError(f"group_by: no column {group_by!r}; there are {', '.join(dataset.column_names)}")
    if not (named or group_by is None or callable(group_by)):
        raise ValueError(f"group_by is {group_by!r}: give a column's name, or a function of a row")
    rows = stream_plain_rows(dataset, [group_by] if named else dataset.column_names, "grouping")
    if group_by is None:
        return _in_order(_linked(map(_content, rows)))
    values = (row[group_by] if named else group_by(row) for row in rows)
    numbers = {}
    return np.fromiter((numbers.setdefault(_key(value), len(numbers)) for value in values), np.int64)


def _key(value):
    """What stands for a group: a value, or the text of one that cannot be hashed."""
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


def _content(row):
    """Digests of the row's images; without images, of what its user says. 64 bits each."""
    conversation = next(iter(conversations(row).values()))
    said = [message_text(message) for message in conversation if message["role"] == "user"]
    keys = list(filter(None, map(image_identity, all_images(row)))) or [said]
    return [int(digest(key)[:16], 16) for key in keys]


def _linked(keys_of_rows: Iterable[list[int]]) -> np.ndarray:
    """One number per row, the same for rows that share a key, also by way of other rows."""
    keys, rows = array("Q"), array("q")
    for row, of_row in enumerate(keys_of_rows):
        keys.extend(of_row)
        rows.extend([row] * len(of_row))
    rows = np.frombuffer(rows, np.int64)
    distinct, keys = np.unique(np.frombuffer(keys, np.uint64), return_inverse=True)
    parent = array("q", range(len(distinct)))

    def root(key):
        while parent[key] != key:
            parent[key] = key = parent[parent[key]]
        return key

    for place in np.flatnonzero(rows[1:] == rows[:-1]):  # two keys of one row
        parent[root(keys[place + 1])] = root(keys[place])
    firsts = keys[np.flatnonzero(np.diff(rows, prepend=-1))]
    return np.fromiter((root(key) for key in firsts), np.int64, len(firsts))


def _in_order(numbers):
    """Other numbers for the same groups: from 0, in the order in which they come."""
    _, first, groups = np.unique(numbers, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[groups]
