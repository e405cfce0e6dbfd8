"""What one row has in common with others: repeated rows, other answers to the same, leaks between splits."""

import hashlib
from typing import NamedTuple

from vlmhelpers.data.near_duplicates import closest_others
from vlmhelpers.data.report import Finding


class _Row(NamedTuple):
    split: str
    index: int
    number: int
    shows: tuple  # hashes of its pictures' pixels; of a row without pictures, one hash of its texts
    has_images: bool


class Comparison:
    """Collects sound rows, split by split in the order of `splits`, and compares them.

    `warnings` are Findings about rows that are worth a look; what `add` and `leaks` return are Findings
    against a row.
    """

    def __init__(self, splits):
        self.warnings = []
        self._ranks = {split: rank for rank, split in enumerate(splits)}
        self._rows = []
        self._thumbnails = {}  # hash of pixels -> thumbnail
        self._first_rows, self._first_questions = {}, {}  # (split, hash) -> number of the first such row
        self._near = {}  # (split, hash of pixels) -> the same for a near-duplicate in another split

    def add(self, split, index, number, messages, facts):
        """Takes in a row and the ImageFacts of its pictures: a Finding if it repeats a row of its split."""
        pixels = tuple(found.pixels for found in facts)
        asked = _hash(messages[:-1], pixels)
        question, whole = (split, asked), (split, _hash(asked, messages[-1]))
        if whole in self._first_rows:
            reason = f"duplicate: the same as row {self._first_rows[whole]}"
            return Finding(split, index, reason, "nothing to do: the first one is kept")
        if question in self._first_questions:
            what = "the same question about the same picture" if pixels else "the same question"
            reason = f"another answer: row {self._first_questions[question]} has {what}"
            self.warnings.append(Finding(split, index, reason, "keep one, unless both answers are right"))
        self._first_rows[whole] = number
        self._first_questions.setdefault(question, number)
        self._rows.append(_Row(split, index, number, pixels or whole[1:], bool(pixels)))
        self._thumbnails.update((found.pixels, found.thumbnail) for found in facts)
        return None

    def find_near_duplicates(self):
        """Warns of near-duplicates within a split, and remembers those between splits for `leaks`."""
        firsts = {}  # (split, hash of pixels) -> the first row that shows it
        for row in self._rows:
            for pixels in row.shows if row.has_images else ():
                firsts.setdefault((row.split, pixels), row)
        for split in self._ranks:
            self._warn_within([place for place in firsts if place[0] == split], firsts)
        if len(self._ranks) > 1:
            places = list(firsts)
            for place, other in self._pairs(places, [self._ranks[split] for split, _ in places]):
                self._near[place] = other
                self._near.setdefault(other, place)

    def _pairs(self, places, groups):
        found = closest_others([self._thumbnails[pixels] for _, pixels in places], groups)
        return [(place, places[other]) for place, other in zip(places, found, strict=True) if other >= 0]

    def _warn_within(self, places, firsts):
        told = set()
        for pair in self._pairs(places, range(len(places))):
            earlier, later = sorted((firsts[place] for place in pair), key=lambda row: row.index)
            if earlier != later and (earlier.index, later.index) not in told:
                told.add((earlier.index, later.index))
                reason = f"near-duplicate: nearly the same picture as row {earlier.number}"
                remedy = "leave one out, or group both when you split: split(..., group_by=...)"
                self.warnings.append(Finding(later.split, later.index, reason, remedy))

    def leaks(self):
        """A Finding for each row that shows or says what a row of a later split does."""
        homes = {}  # hash -> {split: number of the first row there}
        for row in self._rows:
            for shown in row.shows:
                homes.setdefault(shown, {}).setdefault(row.split, row.number)
        found = []
        for row in self._rows:
            if reason := next(filter(None, (self._leak(row, shown, homes) for shown in row.shows)), None):
                remedy = "nothing to do: it is left out, so that the later split stays honest"
                found.append(Finding(row.split, row.index, reason, remedy))
        return found

    def _leak(self, row, shown, homes):
        """Where else, in a later split, is what `row` shows? As the reason of a Finding, or None."""
        for split, number in homes[shown].items():
            if self._ranks[split] > self._ranks[row.split]:
                what = "the same picture" if row.has_images else "the same text"
                return f"leak: {what} as row {number} of {split}"
        split, near = self._near.get((row.split, shown), (row.split, None))
        if self._ranks[split] > self._ranks[row.split]:
            return f"leak: nearly the same picture as row {homes[near][split]} of {split}"
        return None


def _hash(*values):
    return hashlib.blake2b(repr(values).encode(), digest_size=16).digest()
