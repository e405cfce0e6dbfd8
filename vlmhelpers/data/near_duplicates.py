"""Nearly the same image: found among many by small thumbnails, without comparing every pair in Python.

A difference hash was tried first and tells too little here: drawn images that differ in color or by one coin
share its bits, while the same image at half the size loses up to six of them. Thumbnails of 8 x 8 cells part
the two. Of 100 drawn images of 96 pixels, 95 saved again at JPEG quality 40, or at half the size, move no
cell by more than 9 of 255 levels; one coin more or another color moves one by at least 39 in all of 300.
"""

from collections.abc import Sequence

import numpy as np

CELL_TOLERANCE = 12  # no channel of any cell may differ by more levels (of 255)
RMS_TOLERANCE = 8  # nor all of them by more on average
_AXES = 24  # directions, of the 192 of a thumbnail, that hold most of the differences between images
_BLOCK = 128  # images compared with all others at a time: 50 MB of distances for 100,000 images


def closest_others(thumbnails: Sequence[bytes], groups: Sequence[int]) -> np.ndarray:
    """For each of n images, the index of a near-duplicate from another group, or -1; int64, shape (n,).

    thumbnails: byte strings of equal length, RGB cells. groups: integers. Of each image only the closest one of
    another group is considered, so the work is one matrix product per block of images.
    """
    found = np.full(len(thumbnails), -1)
    if len(thumbnails) < 2:
        return found
    cells = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1)
    axes = _main_axes(cells)
    order = np.argsort(axes[:, 0], kind="stable")
    cells, axes, groups = cells[order], axes[order], np.asarray(groups)[order]
    first, squares = axes[:, 0], np.square(axes).sum(1)
    reach = 1 + RMS_TOLERANCE * cells.shape[1] ** 0.5  # a near-duplicate is closer, also on the first axis alone
    for start in range(0, len(order), _BLOCK):
        block = slice(start, start + _BLOCK)
        low, high = np.searchsorted(first, [first[block][0] - reach, first[block][-1] + reach])
        distances = (-2 * axes[block]) @ axes[low:high].T  # squared, less what is the same for a whole line
        distances += squares[low:high]
        distances[groups[block, None] == groups[low:high]] = np.inf
        closest = low + distances.argmin(1)
        near = _alike(cells[block], cells[closest]) & (groups[block] != groups[closest])
        found[order[block]] = np.where(near, order[closest], -1)
    return found


def _main_axes(cells):
    """The thumbnails in the coordinates of their first principal components; distances only shrink."""
    centered = cells - cells.mean(0, dtype=np.float32)
    _, directions = np.linalg.eigh(centered.T @ centered)
    return np.ascontiguousarray(centered @ directions[:, : -_AXES - 1 : -1])


def _alike(first, second):
    """Whether each thumbnail of `first` is nearly that of `second`, row by row."""
    difference = first.astype(np.float32) - second
    return (np.abs(difference).max(1) <= CELL_TOLERANCE) & (np.square(difference).mean(1) <= RMS_TOLERANCE**2)
