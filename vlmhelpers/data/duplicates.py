"""What one row has in common with others: repeated rows, other answers to the same, leaks between splits."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from vlmhelpers.common.digests import digest
from vlmhelpers.common.images import ImageFacts
from vlmhelpers.data.near_duplicates import closest_others
from vlmhelpers.data.report import Finding


class _Row(NamedTuple):
    split: str
    index: int
    number: int
    contents: tuple  # digests of its images' pixels; of a row without images, one digest of its texts
    has_images: bool


class DuplicateFinder:
    """Collects sound rows, split by split in the order of `splits`, and compares them.

    `warnings` are Findings about rows that should be reviewed; what `add` and `leaks` return are Findings against a
    row.
    """

    def __init__(self, splits: Iterable[str]):
        self.warnings = []
        self._ranks = {split: rank for rank, split in enumerate(splits)}
        self._rows, self._thumbnails = [], {}  # digest of pixels -> thumbnail
        self._homes = {}  # digest -> {split: its first row with that content}
        self._first_rows, self._first_questions = {}, {}  # (split, digest) -> number of the first such row
        self._near = {}  # (split, digest of pixels) -> the same for a near-duplicate in another split

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
        images = [
            (row.split, pixels) for pixels, homes in self._homes.items() for row in homes.values() if row.has_images
        ]
        for split in self._ranks:
            self._warn_within([image for image in images if image[0] == split])
        if len(self._ranks) > 1:
            for image, other in self._pairs(images, [self._ranks[split] for split, _ in images]):
                self._near[image] = other
                self._near.setdefault(other, image)

    def _pairs(self, images, groups):
        found = closest_others([self._thumbnails[pixels] for _, pixels in images], groups)
        return [(image, images[other]) for image, other in zip(images, found, strict=True) if other >= 0]

    def _warn_within(self, images):
        warned = set()
        for pair in self._pairs(images, range(len(images))):
            earlier, later = sorted((self._homes[pixels][split] for split, pixels in pair), key=lambda row: row.index)
            if earlier != later and (earlier.index, later.index) not in warned:
                warned.add((earlier.index, later.index))
                reason = f"near-duplicate: nearly the same image as row {earlier.number}"
                remedy = "leave one out, or group both when you split: split(..., group_by=...)"
                self.warnings.append(Finding(later.split, later.index, reason, remedy))

    def leaks(self) -> list[Finding]:
        """A Finding for each row that shows or says what a row of a later split does."""
        remedy = "nothing to do: it is left out, so that the later split stays honest"
        found = []
        for row in self._rows:
            reasons = (self._leak(row, content) for content in row.contents)
            if reason := next(filter(None, reasons), None):
                found.append(Finding(row.split, row.index, reason, remedy))
        return found

    def _leak(self, row, content):
        """Where else, in a later split, `content` of `row` is: the reason of a Finding, or None."""
        what = "the same image" if row.has_images else "the same text"
        for split, other in self._homes[content].items():
            if self._ranks[split] > self._ranks[row.split]:
                return f"leak: {what} as row {other.number} of {split}"
        split, near = self._near.get((row.split, content), (row.split, None))
        if self._ranks[split] > self._ranks[row.split]:
            return f"leak: nearly the same image as row {self._homes[near][split].number} of {split}"
        return None
