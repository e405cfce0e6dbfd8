"""What validation knows of rows and images, on disk: memory does not grow with their number."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmhelpers.common.files import temporary_folder
from vlmhelpers.common.images import THUMBNAIL, ImageFacts
from vlmhelpers.data.rules import Problem


@contextmanager
def temporary_database() -> Iterator[sqlite3.Connection]:
    """An empty database in a temporary folder, which goes when the block ends; no more than 16 MB of it in memory.

    Raises OSError where it cannot be written, as on a full disk.
    """
    with temporary_folder() as folder:
        try:
            with closing(sqlite3.connect(Path(folder) / "rows.sqlite")) as database:
                database.executescript(
                    "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -16000"
                )
                yield database
        except sqlite3.OperationalError as error:
            remedy = "Free some space on that disk, or set TMPDIR to a folder on another"
            raise OSError(f"temporary files in {folder}: {error}. {remedy}") from error


class CheckedImage(NamedTuple):
    """An image that was decoded once: `number` is equal for the same pixels only, None for an unusable one.

    `size` is (width, height) in pixels after the repair, None for an unusable one.
    """

    number: int | None
    size: tuple[int, int] | None
    repairs: list[str]
    problem: Problem | None


class CheckedImages:
    """The images of a check by their identity, kept in `database` and, the thumbnails, in a file beside it."""

    def __init__(self, database: sqlite3.Connection):
        self._database, self._count = database, 0
        columns = "identity TEXT PRIMARY KEY, number, width, height, repairs, reason, remedy"
        database.execute(f"CREATE TABLE images ({columns}) WITHOUT ROWID")
        database.execute("CREATE TABLE pixels (digest TEXT PRIMARY KEY, number) WITHOUT ROWID")
        (folder,) = {Path(file).parent for _, _, file in database.execute("PRAGMA database_list")}
        self._file = open(folder / "thumbnails", "w+b")

    def find(self, identities: Iterable[str]) -> dict[str, CheckedImage]:
        """Those images that are known."""
        query = "SELECT number, width, height, repairs, reason, remedy FROM images WHERE identity = ?"
        found = ((identity, self._database.execute(query, (identity,)).fetchone()) for identity in identities)
        return {identity: _checked(*values) for identity, values in found if values}

    def add(self, identity: str, facts: ImageFacts | Problem) -> CheckedImage:
        """Keeps what `inspect_image` found, or the problem that the image is unusable for."""
        if isinstance(facts, ImageFacts):
            values = self._number(facts), *facts.size, "\n".join(facts.repairs), None, None
        else:
            values = None, None, None, "", *facts
        self._database.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", (identity, *values))
        return _checked(*values)

    def _number(self, facts):
        query = "SELECT number FROM pixels WHERE digest = ?"
        if known := self._database.execute(query, (facts.pixels,)).fetchone():
            return known[0]
        self._database.execute("INSERT INTO pixels VALUES (?, ?)", (facts.pixels, self._count))
        self._file.write(facts.thumbnail)
        self._count += 1
        return self._count - 1

    def thumbnails(self) -> np.ndarray:
        """The RGB cells of the thumbnails by the images' numbers, in the file: uint8, (images, cells)."""
        self._file.flush()
        shape = self._count, THUMBNAIL * THUMBNAIL * 3
        return np.memmap(self._file, np.uint8, "r", shape=shape) if self._count else np.empty(shape, np.uint8)


def _checked(number, width, height, repairs, reason, remedy):
    size = (width, height) if width else None
    return CheckedImage(number, size, repairs.split("\n") if repairs else [], reason and (reason, remedy))
