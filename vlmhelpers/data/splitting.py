"""Train and test without leakage: what belongs together is on one side."""

import random
from collections import Counter
from collections.abc import Callable

from datasets import Dataset, DatasetDict

from vlmhelpers.common.images import image_identity
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import message_text


def split(
    dataset: Dataset, test_size: int | float, group_by: str | Callable[[dict], object] | None = None, seed: int = 0
) -> DatasetDict:
    """Splits a Dataset into a DatasetDict of `train` and `test`; the rows keep their order, groups stay whole.

    test_size: rows (an int) or a share of them (a float between 0 and 1). Groups join the test set in random order
        while they fit: it lacks fewer rows than the smallest training group has. Where none fits, it is the smallest.
    group_by: a column's name, or a function of a row, whose images come undecoded as {"path", "bytes"}. By default
        rows that share an image are one group, and rows without images are grouped by what the user says.
    The same seed gives the same split on every machine. Raises ValueError for a test_size that leaves a side empty, an
    unknown column, or fewer than two groups.
    """
    missing = _rows_wanted(test_size, len(dataset))
    groups = _groups(dataset, group_by)
    sizes = Counter(groups)
    if len(sizes) < 2:
        by = "their images and texts" if group_by is None else repr(group_by)
        raise ValueError(f"all {len(dataset)} rows are one group by {by}: a split needs at least two groups")
    shuffled = list(sizes)  # in the order of the rows
    random.Random(seed).shuffle(shuffled)
    test = set()
    for group in shuffled:
        if sizes[group] <= missing:
            test.add(group)
            missing -= sizes[group]
    test = test or {min(shuffled, key=sizes.get)}
    sides = {"train": [], "test": []}
    for index, group in enumerate(groups):
        sides["test" if group in test else "train"].append(index)
    return DatasetDict({side: dataset.select(indices) for side, indices in sides.items()})


def _rows_wanted(test_size, rows):
    if isinstance(test_size, float) and 0 < test_size < 1:
        return min(max(1, round(test_size * rows)), rows - 1)
    if isinstance(test_size, int) and not isinstance(test_size, bool) and 0 < test_size < rows:
        return test_size
    raise ValueError(f"test_size is {test_size!r}: a number of rows from 1 to {rows - 1} or a share in 0.0 to 1.0")


def _groups(dataset, group_by):
    named = isinstance(group_by, str)
    if named and group_by not in dataset.column_names:
        raise ValueError(f"group_by: no column {group_by!r}; there are {', '.join(dataset.column_names)}")
    rows = stream_plain_rows(dataset, [group_by] if named else dataset.column_names, "grouping")
    if group_by is None:
        return _linked([_content(row) for row in rows])
    values = (row[group_by] if named else group_by(row) for row in rows)
    return [repr(value) if isinstance(value, list | dict | set) else value for value in values]


def _content(row):
    """The identities of the row's images; without images, what its user says."""
    said = tuple(message_text(message) for message in row["messages"] if message["role"] == "user")
    return list(filter(None, map(image_identity, row.get("images") or []))) or [said]


def _linked(keys_of_rows):
    """One value per row, the same for rows that share a key, also by way of other rows."""
    parent = {}

    def root(key):
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for keys in keys_of_rows:
        for key in keys:
            parent[root(key)] = root(keys[0])
    return [root(keys[0]) for keys in keys_of_rows]
