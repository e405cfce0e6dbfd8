"""Nearly the same picture: found among many by small thumbnails, without comparing every pair in Python.

A difference hash was tried first and tells too little here: drawn pictures that differ in color or by one coin
share its bits, while the same picture at half the size loses up to six of them. Thumbnails of 8 x 8 cells part
the two. Of 100 drawn pictures of 96 pixels, 95 saved again at JPEG quality 40, or at half the size, move no
cell by more than 9 of 255 levels; one coin more or another color moves one by at least 39 in all of 300.
"""

import numpy as np

CELL_TOLERANCE = 12  # no channel of any cell may differ by more levels (of 255)
RMS_TOLERANCE = 8  # nor all of them by more on average
_AXES = 24  # directions, of the 192 of a thumbnail, that hold most of the differences between pictures
_BLOCK = 128  # pictures compared with all others at a time: 50 MB of distances for 100,000 pictures


def closest_others(thumbnails, groups):
    """For each of n pictures, the place of a near-duplicate from another group, or -1; int64, shape (n,).

    thumbnails: n byte strings of equal length, RGB cells. groups: n integers. Only the closest picture of
    another group is looked at, so the work is one matrix product per block of pictures.
    """
    found = np.full(len(thumbnails), -1)
    if len(thumbnails) < 2:
        return found
    cells = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1)
    groups, axes = np.asarray(groups), _main_axes(cells)
    order = np.argsort(axes[:, 0], kind="stable")
    closest = np.empty(len(order), np.int64)
    closest[order] = order[_closest_in_order(axes[order], groups[order], cells.shape[1])]
    for start in range(0, len(cells), 1000):
        place = slice(start, start + 1000)
        near = _alike(cells[place], cells[closest[place]]) & (groups[place] != groups[closest[place]])
        found[place] = np.where(near, closest[place], -1)
    return found


def _alike(first, second):
    """Whether each thumbnail of `first` is nearly that of `second`, row by row."""
    difference = first.astype(np.float32) - second
    largest, mean_square = np.abs(difference).max(1), np.square(difference).mean(1)
    return (largest <= CELL_TOLERANCE) & (mean_square <= RMS_TOLERANCE**2)


def _main_axes(cells):
    """The thumbnails in the coordinates of their first principal components; distances only shrink."""
    centered = cells - cells.mean(0, dtype=np.float32)
    _, directions = np.linalg.eigh(centered.T @ centered)
    return np.ascontiguousarray(centered @ directions[:, : -_AXES - 1 : -1])


def _closest_in_order(axes, groups, channels):
    """For each row of `axes`, sorted by the first column, the place of the closest row of another group.

    A near-duplicate is at most `reach` away, and so on the first axis alone: the others are not compared.
    """
    reach = RMS_TOLERANCE * channels**0.5
    first, squares = axes[:, 0], np.square(axes).sum(1)
    closest = np.empty(len(axes), np.int64)
    for start in range(0, len(axes), _BLOCK):
        block = slice(start, start + _BLOCK)
        low = np.searchsorted(first, first[block][0] - reach)
        high = np.searchsorted(first, first[block][-1] + reach, side="right")
        distances = (-2 * axes[block]) @ axes[low:high].T
        distances += squares[low:high]
        distances[groups[block, None] == groups[low:high]] = np.inf
        closest[block] = distances.argmin(1) + low
    return closest
