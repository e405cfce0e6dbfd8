"""Train and test without leakage: what belongs together lands on one side."""

import random
from collections import Counter

from datasets import DatasetDict

from vlmhelpers.common.images import image_identity
from vlmhelpers.data.rows import plain_rows
from vlmhelpers.data.schema import message_text

_ROWS_PER_CHUNK = 1000
_EXACT_ROWS, _EXACT_GROUPS = 1000, 2000  # how much of the test set is fitted exactly, from how many groups


def split(dataset, test_size, group_by=None, seed=0):
    """Splits a Dataset into a DatasetDict of `train` and `test`; the rows keep their order.

    test_size: rows (an int) or a share of them (a float between 0 and 1). Groups stay whole, so the test set is as
        near to it as they allow; when every group is one row, it is exact.
    group_by: what must not be on both sides: a column's name, or a function of a row, whose images come
        undecoded as {"path", "bytes"}. By default rows that share a picture (a file, or bytes) are one group,
        and rows without pictures are grouped by what the user says.
    seed: the same rows, arguments and seed give the same split, on every machine.

    Raises ValueError for a test_size that leaves a side empty, an unknown column, or fewer than two groups.
    """
    wanted = _rows_wanted(test_size, len(dataset))
    groups = _groups(dataset, group_by)
    sizes = Counter(groups)
    if len(sizes) < 2:
        by = "their pictures and texts" if group_by is None else repr(group_by)
        raise ValueError(f"all {len(dataset)} rows are one group by {by}: a split needs at least two groups")
    names = list(sizes)  # in the order of the rows
    random.Random(seed).shuffle(names)
    test = _choose(names, sizes, wanted)
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
    """The group of each row, in order: equal values for rows that belong together."""
    if isinstance(group_by, str):
        if group_by not in dataset.column_names:
            raise ValueError(f"group_by: no column {group_by!r}; there are {', '.join(dataset.column_names)}")
        return [_hashable(value) for value in dataset.with_format("arrow")[group_by].to_pylist()]
    if group_by is None:
        return _linked([_shown(row) for row in _each(dataset)])
    return [_hashable(group_by(row)) for row in _each(dataset)]


def _hashable(value):
    return repr(value) if isinstance(value, list | dict | set) else value


def _each(dataset):
    for start in range(0, len(dataset), _ROWS_PER_CHUNK):
        yield from plain_rows(dataset, range(start, min(start + _ROWS_PER_CHUNK, len(dataset))))


def _shown(row):
    """The keys of the row's pictures; without pictures, what its user says."""
    pictures = [image_identity(image) for image in row["images"] or [] if image]
    said = tuple(message_text(message) for message in row["messages"] if message["role"] == "user")
    return pictures or [said]


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


def _choose(names, sizes, wanted):
    """The groups of the test set: early `names`, with together as nearly `wanted` rows as can be.

    Whole groups are taken in order until few rows are missing; these are then fitted exactly, over all sums
    that the groups left can make. Bit s of an integer says whether s rows can be had.
    """
    chosen, missing, rest = set(), wanted, []
    for name in names:
        if missing > _EXACT_ROWS and sizes[name] <= missing:
            chosen.add(name)
            missing -= sizes[name]
        else:
            rest.append(name)
    rest = rest[:_EXACT_GROUPS]
    limit = (1 << 2 * missing + min(sizes[name] for name in rest) + 1) - 1
    sums = [1]  # after reversal: sums[k] of rest[k:]
    for name in reversed(rest):
        sums.append((sums[-1] | sums[-1] << sizes[name]) & limit)
    sums.reverse()
    everything = sum(sizes.values()) - sum(sizes[name] for name in chosen)
    best = _nearest_bit(sums[0], missing, {0 if not chosen else -1, everything})
    for name, later in zip(rest, sums[1:], strict=True):
        if sizes[name] <= best and later >> best - sizes[name] & 1:
            chosen.add(name)
            best -= sizes[name]
    return chosen


def _nearest_bit(bits, wanted, excluded):
    """The place of the set bit nearest to `wanted`, the lower of two, but none of `excluded`."""
    places = (place for place in range(bits.bit_length()) if bits >> place & 1 and place not in excluded)
    return min(places, key=lambda place: abs(place - wanted))
