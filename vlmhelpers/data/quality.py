"""Lines of the report on what images and questions are like, for which no row is rejected."""

import os
import sqlite3
from collections.abc import Iterator

from vlmhelpers.common.digests import digest
from vlmhelpers.common.images import ImageFacts

# Guides advise a long side in these bounds, in pixels, files below this size, in bytes, and these formats.
_SMALL, _LARGE, _HEAVY = 224, 512, 5_000_000
_USUAL = {"JPEG": "JPEG", "MPO": "JPEG", "PNG": "PNG", "WEBP": "WebP"}  # MPO: a phone's JPEG with its preview

_TABLES = """
CREATE TABLE sizes (width, height, long, format, bytes);
CREATE TABLE questions (digest PRIMARY KEY, rows) WITHOUT ROWID;
"""
_SIZES = "SELECT count(*), min(long), max(long), max(bytes) FROM sizes"
_KINDS = "SELECT width || ' x ' || height FROM sizes GROUP BY 1 LIMIT 2"
_MEDIAN = "SELECT long FROM sizes ORDER BY long LIMIT 1 OFFSET (SELECT (count(*) - 1) / 2 FROM sizes)"
_FORMATS = "SELECT format, count(*) FROM sizes GROUP BY 1 ORDER BY 2 DESC"
_UNUSUAL = {
    f"long < {_SMALL}": f"with a long side under {_SMALL} pixels, where a large model sees few details",
    f"long > {_LARGE}": f"over {_LARGE}, which take more tokens or are made smaller (preflight tells)",
    f"bytes > {_HEAVY}": f"over {_HEAVY / 1e6:.0f} MB",
    f"format NOT IN {tuple(_USUAL.values())}": "neither JPEG, PNG nor WebP",
}
_QUESTIONS = "SELECT count(*), sum(rows), max(rows) FROM questions"


class Quality:
    """Collects the different images of a check, and what its sound rows ask, in a database."""

    def __init__(self, database: sqlite3.Connection):
        self._database = database
        database.executescript(_TABLES)

    def add_image(self, facts: ImageFacts, image: dict) -> None:
        """Takes in a sound image, {"path", "bytes"} as in Arrow, that was not met before."""
        size = len(image["bytes"]) if image.get("bytes") is not None else os.path.getsize(image["path"])
        row = *facts.size, max(facts.size), _USUAL.get(facts.format, facts.format), size
        self._database.execute("INSERT INTO sizes VALUES (?, ?, ?, ?, ?)", row)

    def add_question(self, asked: object) -> None:
        """Takes in what a sound row asks, without its images."""
        counted = "INSERT INTO questions VALUES (?, 1) ON CONFLICT DO UPDATE SET rows = rows + 1"
        self._database.execute(counted, (bytes.fromhex(digest(asked)),))

    def lines(self) -> list[str]:
        """Sentences about all of them: sizes, formats, what is unusual, and how many questions there are."""
        return [*self._on_images(), *self._on_questions()]

    def _ask(self, *queries):
        return [self._database.execute(query).fetchall() for query in queries]

    def _on_images(self) -> Iterator[str]:
        ((count, least, most, heaviest),), kinds, median, formats = self._ask(_SIZES, _KINDS, _MEDIAN, _FORMATS)
        if not count:
            return
        (size,), *others = kinds
        sizes = f"long side {least:,} to {most:,} pixels, median {median[0][0]:,}" if others else f"all {size} pixels"
        named = ", ".join(f"{name} {number:,}" for name, number in formats) if formats[1:] else formats[0][0]
        yield f"Images: {count:,} different ones; {sizes}; {named}; files up to {heaviest / 1000:,.0f} kB."
        ((numbers,),) = self._ask(f"SELECT {', '.join(f'sum({condition})' for condition in _UNUSUAL)} FROM sizes")
        found = [f"{number:,} {text}" for number, text in zip(numbers, _UNUSUAL.values(), strict=True) if number]
        if found:
            yield f"Beside the usual advice: {'; '.join(found)}."

    def _on_questions(self) -> Iterator[str]:
        (((different, rows, most),),) = self._ask(_QUESTIONS)
        if different == 1 < rows:
            yield f"Questions: all {rows:,} sound rows ask the same; other wordings are not trained."
        elif different > 1:
            yield f"Questions: {different:,} different ones in {rows:,} sound rows, the most frequent in {most:,}."
