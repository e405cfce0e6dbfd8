"""What one row has in common with others: repeated rows, other answers, near-duplicates, leaks between splits."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vlmhelpers.common.digests import digest
from vlmhelpers.common.images import ImageFacts
from vlmhelpers.data.report import Finding

# Of 100 drawn images, 95 saved again at JPEG quality 40, or at half the size, move no cell of their 8 x 8 thumbnails by
# over 9 levels; another coin or color moves one by 39 at least, but can leave all bits of a difference hash.
CELL_TOLERANCE = 12  # no channel of any cell may differ by more levels (of 255)
RMS_TOLERANCE = 8  # nor all of them by more on average
_AXES = 24  # directions, of the 192 of a thumbnail, that hold most of the differences between images
_BLOCK = 128  # images compared with all others at a time: 50 MB of distances for 100,000 images


class _Row(NamedTuple):
    split: str
    index: int
    number: int
    contents: tuple  # digests of its images' pixels; of a row without images, one digest of its texts
    has_images: bool


class DuplicateFinder:
    """Collects sound rows, split by split in the order of `splits`; `warnings` are Findings about rows to review."""

    def __init__(self, splits: Iterable[str]):
        self.warnings = []
        self._ranks = {split: rank for rank, split in enumerate(splits)}
        self._rows, self._thumbnails = [], {}  # digest of pixels -> thumbnail
        self._homes = {}  # digest -> {split: its first row with that content}
        self._first_rows, self._first_questions = {}, {}  # (split, digest) -> number of the first such row
        self._near = {}  # (split, digest of pixels) -> the row of a near-duplicate in another split

    def add(
        self, split: str, index: int, number: int, messages: list[dict], facts: Sequence[ImageFacts]
    ) -> Finding | None:
        """Takes in a row and the facts of its images: a Finding if it repeats a row of its split."""
        pixels = tuple(found.pixels for found in facts)
        asked = digest(messages[:-1], pixels)
        question, whole = (split, asked), (split, digest(asked, messages[-1]))
        if whole in self._first_rows:
            reason = f"duplicate: the same as row {self._first_rows[whole]}"
            return Finding(split, index, reason, "nothing to do: the first one is kept")
        if question in self._first_questions:
            what = "the same question about the same image" if pixels else "the same question"
            reason = f"another answer: row {self._first_questions[question]} has {what}"
            self.warnings.append(Finding(split, index, reason, "keep one, unless both answers are right"))
        self._first_rows[whole] = number
        self._first_questions.setdefault(question, number)
        row = _Row(split, index, number, pixels or whole[1:], bool(pixels))
        self._rows.append(row)
        self._thumbnails.update((found.pixels, found.thumbnail) for found in facts)
        for content in row.contents:
            self._homes.setdefault(content, {}).setdefault(split, row)
        return None

    def find_near_duplicates(self) -> None:
        """Warns of near-duplicates within a split, and keeps those between splits for `leaks`."""
        images = [(pixels, row) for pixels, rows in self._homes.items() for row in rows.values() if row.has_images]
        for split in self._ranks:
            self._warn_within([image for image in images if image[1].split == split])
        if len(self._ranks) > 1:
            ranks = [self._ranks[row.split] for _, row in images]
            for (pixels, row), (other_pixels, other) in self._pairs(images, ranks):
                self._near[row.split, pixels] = other
                self._near.setdefault((other.split, other_pixels), row)

    def _pairs(self, images, groups):
        found = closest_others([self._thumbnails[pixels] for pixels, _ in images], groups)
        return [(image, images[other]) for image, other in zip(images, found, strict=True) if other >= 0]

    def _warn_within(self, images):
        pairs = [(row, other) for (_, row), (_, other) in self._pairs(images, range(len(images)))]
        remedy = "leave one out, or group both when you split: split(..., group_by=...)"
        for earlier, later in dict.fromkeys(tuple(sorted(pair, key=lambda row: row.index)) for pair in pairs):
            if earlier != later:
                reason = f"near-duplicate: nearly the same image as row {earlier.number}"
                self.warnings.append(Finding(later.split, later.index, reason, remedy))

    def leaks(self) -> list[Finding]:
        """A Finding for each row that shows or says what a row of a later split does."""
        remedy = "nothing to do: it is left out, so that the later split stays honest"
        found = ((row, next(self._leaks_of(row), None)) for row in self._rows)
        return [Finding(row.split, row.index, reason, remedy) for row, reason in found if reason]

    def _leaks_of(self, row):
        same = "the same image" if row.has_images else "the same text"
        for content in row.contents:
            found = [(same, other) for other in self._homes[content].values()]
            if near := self._near.get((row.split, content)):
                found.append(("nearly the same image", near))
            for what, other in found:
                if self._ranks[other.split] > self._ranks[row.split]:
                    yield f"leak: {what} as row {other.number} of {other.split}"


def closest_others(thumbnails: Sequence[bytes], groups: Sequence[int]) -> np.ndarray:
    """For each of n images, the index of a near-duplicate from another group, or -1; int64, shape (n,).

    thumbnails: byte strings of equal length, RGB cells. groups: integers. Only the closest image of another group
    is considered: one matrix product per block of images.
    """
    found = np.full(len(thumbnails), -1)
    if len(thumbnails) < 2:
        return found
    cells = np.frombuffer(b"".join(thumbnails), np.uint8).reshape(len(thumbnails), -1)
    centered = cells - cells.mean(0, dtype=np.float32)
    _, directions = np.linalg.eigh(centered.T @ centered)
    axes = np.ascontiguousarray(centered @ directions[:, : -_AXES - 1 : -1])  # distances only shrink
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
        difference = cells[block].astype(np.float32) - cells[closest]
        near = (np.abs(difference).max(1) <= CELL_TOLERANCE) & (np.square(difference).mean(1) <= RMS_TOLERANCE**2)
        found[order[block]] = np.where(near & (groups[block] != groups[closest]), order[closest], -1)
    return found
