"""The digest of a file, read again only after a change."""

import errno
import os
import sqlite3
import stat
import threading
import time
from contextlib import suppress

import xxhash

from vlmhelpers.common.files import user_cache

_CHUNK = 2**20  # bytes
_SETTLED = 2  # seconds after which a file system gives another time to another change
_MOST = 2_000_000  # files that are remembered
_LOCK = threading.Lock()
if hasattr(os, "register_at_fork"):  # a forked process would wait for ever for a thread that it does not have
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)


def file_digest(path: str | os.PathLike) -> str:
    """32 hex digits of all bytes of a file: `digest(its bytes)`. Raises OSError, also for a folder, a device or a pipe.

    It is kept in the user's cache under inode, size and times, of which one differs in every file that was changed or
    replaced, whatever `cp -p` or an archive pretends: other processes need not read the file again. Windows has no time
    of the last change that nobody can set: there it is always read.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise OSError(errno.EINVAL, "not a file", os.fspath(path))
    key = f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    with _LOCK:
        known = _table().get(key)
    if known is None:
        known = read_digest(path)
        if os.name != "nt" and time.time() - max(status.st_ctime, status.st_mtime) > _SETTLED:
            with _LOCK:
                _table().add(key, known)
    return known


def read_digest(path: str | os.PathLike) -> str:
    """As `file_digest`, from the file's bytes as they are on the disk now: what has decayed there is found, too."""
    found = xxhash.xxh3_128(os.stat(path).st_size.to_bytes(8, "little"))
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


class _Table:
    """Digests by key: on disk where that can be, else in memory."""

    def __init__(self):
        self.process, self.known, self.disk = os.getpid(), {}, None
        with suppress(OSError, RuntimeError, sqlite3.Error):  # RuntimeError: a user without a home
            user_cache().mkdir(parents=True, exist_ok=True)
            file = user_cache() / "file_digests.sqlite"
            try:
                self._open(file)
            except sqlite3.OperationalError:  # not to be written, or in use
                self.disk = None
            except sqlite3.DatabaseError:  # damaged
                self.disk.close()
                file.unlink()
                self._open(file)

    def _open(self, file):
        self.disk = sqlite3.connect(file, 1, isolation_level=None, check_same_thread=False)  # seconds that it waits
        self.disk.execute("PRAGMA journal_mode = TRUNCATE")  # WAL does not go over a network
        self.disk.execute("PRAGMA synchronous = OFF")  # what a power cut takes is only read again
        self.disk.execute("CREATE TABLE IF NOT EXISTS files (key TEXT PRIMARY KEY, digest TEXT)")
        self.disk.execute("DELETE FROM files WHERE rowid < (SELECT max(rowid) FROM files) - ?", (_MOST,))

    def get(self, key):
        found = self._execute("SELECT digest FROM files WHERE key = ?", key)
        return found[0][0] if found else self.known.get(key)

    def add(self, key, digest):
        if self._execute("INSERT OR REPLACE INTO files VALUES (?, ?)", key, digest) is None:
            self.known[key] = digest

    def _execute(self, statement, *values):
        """The rows that it gives, or None without a disk: one that fails once is not asked, and waited for, again."""
        try:
            return self.disk and self.disk.execute(statement, values).fetchall()
        except sqlite3.Error:
            self.disk = None


_TABLES = []


def _table():
    """The table of this process: a connection must be neither used nor closed in a forked one."""
    if not _TABLES or _TABLES[-1].process != os.getpid():
        _TABLES.append(_Table())
    return _TABLES[-1]
