"""Atomic writes: a file or a folder appears under its name whole, or what was there stays."""

import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


def _temporary(path):
    return path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}.part")


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w", **open_options) -> Iterator[IO]:
    """A file to write to, opened as by `open`, which replaces `path` in one step when the block ends. Makes folders.

    Until then it has a name of its own, which ends in ".part". On any error it is removed, and `path` stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with open(temporary, mode, **open_options) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_file`, a temporary folder that becomes `folder`. Raises FileExistsError where that is not empty."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose another folder, or remove what is there")
    temporary = _temporary(folder)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_abandoned(folder: str | os.PathLike, hours: float = 24) -> None:
    """Removes temporary files that killed processes left in `folder`: those not written to for so many hours."""
    for path in Path(folder).glob("?*-" + 8 * "[0-9a-f]" + ".part"):
        with suppress(OSError):  # another process may have been first
            if time.time() - path.stat().st_mtime > 3600 * hours:
                path.unlink()
