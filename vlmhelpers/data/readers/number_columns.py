"""A table's column of numbers as people write them: what can be read in two ways goes by the whole column."""

import math
from contextlib import suppress

import pyarrow as pa

from vlmhelpers.common.numbers import CONVENTIONS, SharedConventions, is_price, readings
from vlmhelpers.data.readers.source import SourceRow


class NumberColumn:
    """A column of numbers of one type, "float64" or "int64"; whole numbers, which may be codes, are digits alone.

    `learn` is called with every cell before `read` is with the first row.
    """

    def __init__(self, name: str, kind: str):
        self.name, self.kind = name, kind
        self._shared, self._has_numbers, self._has_texts = SharedConventions(), False, False

    @property
    def is_text(self) -> bool:
        """Whether there are texts, and none of them is a number without a currency."""
        return self._has_texts and not self._has_numbers

    def learn(self, text: str) -> None:
        """Leaves those conventions by which this cell, if it is a number, can be read."""
        self._has_texts = self._has_texts or bool(text)
        if readings(text):
            self._shared.learn(text)
        self._has_numbers = self._has_numbers or bool(_readings(text) and not is_price(text))

    def read(self, row: SourceRow) -> int | float | None:
        """The number in the row's cell; None where it is empty or, which is a problem, no number, or one of several."""
        if not (text := row.fields[self.name]):
            return None
        if self.kind == "int64":
            number = _cast(text, self.kind)
            return self._refuse(row, text, "a whole number in digits") if number is None else number
        known, shared = _readings(text), self._shared.names
        known = {name: known[name] for name in shared if name in known} or known
        return (
            self._choose(row, text, known, shared or is_price(text))
            if known
            else self._refuse(row, text, "a number like 1234.5")
        )

    def _refuse(self, row, text, form):
        row.reject(f"no number in {self.name}: {text[:40]!r}", f"write {form}, or leave the cell empty")

    def _choose(self, row, text, known, may_differ):
        """The number by the likeliest convention; where nothing tells which it is, there may be no other."""
        convention, number = next(iter(known.items()))
        others = " or ".join(map(str, sorted({*known.values()} - {number})))
        if others and not may_differ:
            what = f"{number} or {others}, as {self.name} has numbers in several forms"
            row.reject(f"{text[:40]!r} in {self.name} can be {what}", "write all of them like 1234.5")
            return None
        if others or _cast(text, self.kind) != number:
            doubt = f", and could be {others}" if others else ""
            row.notes.append(f"{text[:40]!r} in {self.name} read as {number}, written like {convention}{doubt}")
        return number


def _readings(text):
    """What a text is by each of CONVENTIONS that allows it; what programs write is the same in all that do."""
    if known := readings(text):
        return known
    number = _cast(text, "float64")
    return {} if number is None else dict.fromkeys(CONVENTIONS, number)


def _cast(text, kind):
    """The finite number that a text holds as programs write it; None where there is none."""
    with suppress(pa.ArrowInvalid):
        if math.isfinite(number := pa.scalar(text).cast(kind).as_py()):
            return number
    return None
