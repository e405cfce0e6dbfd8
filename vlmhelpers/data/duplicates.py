"""What one row has in common with others: repeated rows, other answers, near-duplicates, leaks between splits."""

import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vlmhelpers.common.digests import digest
from vlmhelpers.data.report import Finding

# Of 100 drawn images, 95 saved again at JPEG quality 40, or at half the size, move no cell of their 8 x 8 thumbnails by
# over 9 levels; another coin or color moves one by 39 at least, but can leave all bits of a difference hash.
CELL_TOLERANCE = 12  # no channel of any cell may differ by more levels (of 255)
RMS_TOLERANCE = 8  # nor all of them by more on average
_AXES = 24  # directions, of the 192 of a thumbnail, that hold most of the differences between images
_BLOCK = 128  # images compared with others at a time
_OTHERS = 2**14  # of these: 8 MB of distances

_TABLES = """
CREATE TABLE rows (id INTEGER PRIMARY KEY, split, place, number, question, whole, images);
CREATE TABLE shown (id INTEGER PRIMARY KEY, row, image);
CREATE TABLE leaks (image, split, later, what, PRIMARY KEY (image, split)) WITHOUT ROWID;
"""
# Rows whose question, or all of which, an earlier one of their split has, and the number of the first.
_LATER = """
SELECT * FROM (SELECT id, split, place, images, first_value(number) OVER same, row_number() OVER same AS nth
               FROM rows WINDOW same AS (PARTITION BY split, {} ORDER BY id)) WHERE nth > 1 ORDER BY id
"""
# Of each split that shows an image, its first row with that image.
_HOMES = """
CREATE TABLE homes AS SELECT image, split, row, min(shown.id) AS first
FROM shown CROSS JOIN rows ON rows.id = row GROUP BY image, split
"""
_IN_ORDER = "SELECT image, split, row FROM homes ORDER BY min(first) OVER (PARTITION BY image), split"
_SAME_IMAGES = """
INSERT INTO leaks SELECT * FROM (SELECT image, split, lead(row) OVER (PARTITION BY image ORDER BY split) AS later,
                                 'the same image' FROM homes) WHERE later IS NOT NULL
"""
_LEAKS = """
SELECT rows.split, rows.place, later, what, min(shown.id) FROM shown CROSS JOIN rows ON rows.id = shown.row
CROSS JOIN leaks ON leaks.image = shown.image AND leaks.split = rows.split GROUP BY rows.id
UNION ALL
SELECT * FROM (SELECT split, place, lead(id) OVER (PARTITION BY whole ORDER BY split) AS later, 'the same text', id
               FROM rows WHERE images = 0) WHERE later IS NOT NULL
"""


class DuplicateFinder:
    """Collects sound rows, split by split in the order of `splits`, in a database. Then its methods are called once.

    Each returns Findings, in this order: `repeats`, `other_answers`, `near_duplicates` (or not), `leaks`.
    """

    def __init__(self, splits: Iterable[str], database: sqlite3.Connection):
        self._splits, self._database = list(splits), database
        self._ranks = {split: rank for rank, split in enumerate(self._splits)}
        self._near = {}  # (rank of a split, image) -> the row of a near-duplicate in another split
        database.executescript(_TABLES)

    def add(self, split: str, index: int, number: int, question: object, answer: object, images: Sequence[int]) -> None:
        """Takes in a row; `images` are numbers that are equal for the same pixels only."""
        asked = digest(question, images)
        digests = (bytes.fromhex(text) for text in (asked, digest(asked, answer)))
        row = self._ranks[split], index, number, *digests, len(images)
        key = self._database.execute("INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?)", row).lastrowid
        self._database.executemany("INSERT INTO shown VALUES (NULL, ?, ?)", [(key, image) for image in images])

    def repeats(self) -> list[Finding]:
        """A Finding for each row that repeats one of its split; these are no longer compared with others."""
        remedy = "nothing to do: the first one is kept"
        found = self._database.execute(_LATER.format("whole")).fetchall()
        self._database.executemany("DELETE FROM rows WHERE id = ?", [row[:1] for row in found])
        self._database.execute("DELETE FROM shown WHERE row NOT IN (SELECT id FROM rows)")
        self._database.execute(_HOMES)
        return [
            Finding(self._splits[split], index, f"duplicate: the same as row {first}", remedy)
            for _, split, index, _, first, _ in found
        ]

    def other_answers(self) -> list[Finding]:
        """A Finding for each row that asks what an earlier one of its split asks."""
        findings = []
        for _, split, index, images, first, _ in self._database.execute(_LATER.format("question")):
            what = "the same question about the same image" if images else "the same question"
            reason = f"another answer: row {first} has {what}"
            findings.append(Finding(self._splits[split], index, reason, "keep one, unless both answers are right"))
        return findings

    def near_duplicates(self, thumbnails: np.ndarray) -> list[Finding]:
        """Findings for near-duplicates within a split; those between splits are kept for `leaks`.

        thumbnails: the RGB cells of the images by their numbers, uint8, shape (images, cells).
        """
        (count,) = self._database.execute("SELECT count(*) FROM homes").fetchone()
        kinds = [(name, np.int32) for name in ("image", "split", "row")]
        homes = np.fromiter(self._database.execute(_IN_ORDER), kinds, count)
        findings = []
        for rank in range(len(self._splits)):
            of_split = homes[homes["split"] == rank]
            pairs = _pairs(thumbnails, of_split, np.arange(len(of_split), dtype=np.int32))
            rows = (tuple(sorted((int(home["row"]), int(other["row"])))) for home, other in pairs)
            findings += [self._near_duplicate(*pair) for pair in dict.fromkeys(rows) if pair[0] != pair[1]]
        if len(self._splits) > 1:
            for home, other in _pairs(thumbnails, homes, homes["split"]):
                self._near[int(home["split"]), int(home["image"])] = int(other["row"])
                self._near.setdefault((int(other["split"]), int(other["image"])), int(home["row"]))
        return findings

    def _near_duplicate(self, earlier, later):
        split, index, _ = self._row(later)
        reason = f"near-duplicate: nearly the same image as row {self._row(earlier)[2]}"
        remedy = "leave one out, or group both when you split: split(..., group_by=...)"
        return Finding(self._splits[split], index, reason, remedy)

    def _row(self, key):
        return self._database.execute("SELECT split, place, number FROM rows WHERE id = ?", (key,)).fetchone()

    def leaks(self) -> list[Finding]:
        """A Finding for each row that shows or says what a row of a later split does."""
        remedy = "nothing to do: it is left out, so that the later split stays honest"
        self._database.execute(_SAME_IMAGES)
        near = ((image, rank, row) for (rank, image), row in self._near.items() if self._row(row)[0] > rank)
        self._database.executemany("INSERT OR IGNORE INTO leaks VALUES (?, ?, ?, 'nearly the same image')", near)
        findings = []
        for split, index, later, what, _ in self._database.execute(_LEAKS):
            other, _, number = self._row(later)
            reason = f"leak: {what} as row {number} of {self._splits[other]}"
            findings.append(Finding(self._splits[split], index, reason, remedy))
        return findings


def _pairs(thumbnails, homes, groups):
    found = closest_others(thumbnails, homes["image"], groups)
    return ((homes[index], homes[found[index]]) for index in np.flatnonzero(found >= 0))


def closest_others(cells: np.ndarray, images: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each of n images, the place of a near-duplicate from another group, or -1; int64, shape (n,).

    cells: RGB cells of thumbnails, uint8, shape (any, cells), on disk or not; of these, `images` names n rows. groups:
    n integers. Only the closest image of another group is considered: matrix products of blocks of images.
    """
    found = np.full(len(images), -1)
    if len(images) < 2:
        return found
    with tempfile.TemporaryFile() as unsorted, tempfile.TemporaryFile() as file:
        axes = _principal_axes(cells, images, unsorted)
        order = np.argsort(axes[:, 0], kind="stable")
        axes = _store((axes[order[block]] for block in _blocks(len(order), _OTHERS)), len(order), file)
        images, groups = images[order], groups[order]
        first, squares = axes[:, 0].copy(), np.square(axes).sum(1)
        reach = 1 + RMS_TOLERANCE * cells.shape[1] ** 0.5  # a near-duplicate is closer, also on the first axis alone
        for block in _blocks(len(order), _BLOCK):
            others = slice(*np.searchsorted(first, [first[block][0] - reach, first[block][-1] + reach]))
            closest = _closest(axes, squares, groups, block, others)
            difference = cells[images[block]].astype(np.float32) - cells[images[closest]]
            near = (np.abs(difference).max(1) <= CELL_TOLERANCE) & (np.square(difference).mean(1) <= RMS_TOLERANCE**2)
            found[order[block]] = np.where(near & (groups[block] != groups[closest]), order[closest], -1)
    return found


def _blocks(count, size) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _principal_axes(cells, images, file):
    """The images on the axes that hold most of their differences, in `file`: distances only shrink."""
    blocks = list(_blocks(len(images), _OTHERS))
    mean = sum(cells[images[block]].sum(0, dtype=np.float32) for block in blocks) / np.float32(len(images))
    centered = (cells[images[block]] - mean for block in blocks)
    _, directions = np.linalg.eigh(sum(part.T @ part for part in centered))
    directions = directions[:, : -_AXES - 1 : -1]
    return _store(((cells[images[block]] - mean) @ directions for block in blocks), len(images), file)


def _store(parts, count, file):
    """Rows of numbers as one array in `file`."""
    array = np.memmap(file, np.float32, "w+", shape=(count, _AXES))
    for block, part in zip(_blocks(count, _OTHERS), parts, strict=True):
        array[block] = part
    return array


def _closest(axes, squares, groups, block, others):
    """Of the images in `others`, the one of another group that is closest to each in `block`."""
    lowest, closest = np.full(block.stop - block.start, np.inf, np.float32), np.full(block.stop - block.start, -1)
    for part in _blocks(others.stop - others.start, _OTHERS):
        part = slice(others.start + part.start, others.start + part.stop)
        distances = (-2 * axes[block]) @ axes[part].T  # squared, less what is the same for a whole line
        distances += squares[part]
        distances[groups[block, None] == groups[part]] = np.inf
        place = distances.argmin(1)
        nearest = np.take_along_axis(distances, place[:, None], 1)[:, 0]
        closest = np.where(nearest < lowest, part.start + place, closest)
        lowest = np.minimum(lowest, nearest)
    return closest
