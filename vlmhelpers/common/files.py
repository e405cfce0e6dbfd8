"""Atomic writes: a file or a folder appears under its name whole and on the disk, or what was there stays.

Until then it has a temporary name beside its own that says which process writes it. What ended processes have left
there is removed by the next process that writes.
"""

import errno
import glob
import os
import platform
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO

import psutil
from filelock import FileLock, Timeout

from vlmhelpers.common.digests import digest

_PART, _OLD = ".part", ".old"  # endings: what is being written, and a folder that is being replaced
_TEMPORARY = re.compile(r"(.*)-([0-9a-f]{8})-(\d+)-(\d+)-\w{8}\.(?:part|old)", re.DOTALL)
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_FAILED_WRITE = ["PytorchStreamWriter", "inline_container", "iostream error"]  # of torch
_FAILED_WRITE += [f"os error {number})" for number in _DISK]  # of safetensors
CLOCK_SECONDS = 5  # by which a process's time of creation may seem to have moved
_DAY = 24 * 3600


def user_cache() -> Path:
    """The package's folder in the user's cache. It need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmhelpers"


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder in the system's folder for such, which goes with the object and, at the latest, with the process."""
    remove_abandoned(tempfile.gettempdir(), "vlmhelpers")
    return tempfile.TemporaryDirectory(_PART, f"vlmhelpers-{_owner()}-", ignore_cleanup_errors=True)


def temporary_name(name: str, ending: str = _PART) -> str:
    """A name that no other call gives, and that says which process uses it."""
    return f"{name}-{_owner()}-{uuid.uuid4().hex[:8]}{ending}"


def _owner():
    """This process: its machine, number and time of creation, as another may have the same number later."""
    process = psutil.Process()
    return f"{machine_id()}-{process.pid}-{int(process.create_time())}"


@cache
def machine_id() -> str:
    """8 hex digits of the computer and, as in another container a number means another process, the namespace."""
    with suppress(OSError):
        return digest(platform.node(), os.readlink("/proc/self/ns/pid"))[:8]
    return digest(platform.node())[:8]


def remove_abandoned(folder: str | os.PathLike, name: str = "") -> None:
    """Removes from `folder` the temporary files and folders of ended processes, of all or of one `name`.

    A folder that was about to be replaced by one that is not there is put back. What another machine, or container,
    writes counts as abandoned after a day without change: a folder, whose own time says little, after 30 days.
    """
    for ending in (_PART, _OLD):
        for path in map(Path, glob.glob(os.path.join(glob.escape(folder), f"{glob.escape(name)}*-*-*-*-*{ending}"))):
            found = _TEMPORARY.fullmatch(path.name)
            with suppress(OSError):  # another process may have been first
                if not found or (name and found[1] != name):
                    continue
                put_away = ending == _OLD and not path.with_name(found[1]).exists()
                if _is_abandoned(path, *found.groups()[1:]) or (put_away and time.time() - path.stat().st_ctime > 60):
                    path.rename(path.with_name(found[1])) if put_away else _remove(path)


def _is_abandoned(path, machine, pid, created):
    seconds = time.time() - path.stat().st_mtime
    if machine != machine_id():
        return seconds > (30 * _DAY if path.is_dir() else _DAY)
    try:
        process = find_process(int(pid))
        # Where the clock was set, the times differ for the very same process.
        return process is None or (abs(process.create_time() - int(created)) > CLOCK_SECONDS and seconds > 3600)
    except psutil.Error:
        return False


def find_process(pid: int) -> psutil.Process | None:
    """The process of that number on this machine; None where it has ended, even if its parent has not asked for it."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.NoSuchProcess:
        return None


def _remove(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w", durable: bool = True, **open_options: object) -> Iterator[IO]:
    """A file to write to, opened as by `open`, which replaces `path` in one step when the block ends. Makes folders.

    On any error it is removed, and `path` stays. `durable=False`, for caches that notice what a power cut has damaged,
    neither waits for the disk nor looks for what ended processes have left. Raises OSError where a folder, a pipe or a
    device has the name, before anything is written, and as `name_full_disk` does.
    """
    path = Path(path)
    _refuse_what_is_no_file(path)
    temporary = path.with_name(temporary_name(path.name))
    with name_full_disk(path), ExitStack() as held:
        path.parent.mkdir(parents=True, exist_ok=True)
        if durable:
            remove_abandoned(path.parent, path.name)
        held.callback(temporary.unlink, missing_ok=True)
        with open(temporary, mode, **open_options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
        if durable:
            sync(path.parent)


def _refuse_what_is_no_file(path):
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and (not path.is_file() or path.absolute().parent == Path("/dev")):  # /dev/stdout leads to a file
        raise OSError(errno.EINVAL, "a pipe or a device, which would be replaced: name a file", str(path))


@contextmanager
def atomic_folder(folder: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """As `atomic_file`, a temporary folder that becomes `folder`, which may be there and not empty with `replace`.

    Raises FileExistsError otherwise, also where another process was first, OSError for a mount point, and as
    `name_full_disk` does.
    """
    folder = Path(folder).resolve()  # of a link, what it leads to
    if os.path.ismount(folder):
        raise OSError(errno.EBUSY, "a mount point cannot be replaced: name a folder inside it", str(folder))
    remove_abandoned(folder.parent, folder.name)
    if not replace and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is not empty: choose another folder, or remove what is there")
    temporary = folder.with_name(temporary_name(folder.name))
    with name_full_disk(folder), ExitStack() as held:
        held.callback(shutil.rmtree, temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        done = _rename(temporary, folder)
        while not done:
            if not replace:
                raise FileExistsError(f"{folder} was made by another process in the meantime")
            done = _replace(temporary, folder)


def _rename(temporary, folder):
    """Whether the temporary folder has got its name: not where a folder with files has it."""
    try:
        temporary.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not folder.is_dir():
            raise
        return False
    sync(folder.parent)
    return True


def _replace(temporary, folder):
    """Puts the temporary folder in the place of another, which comes back if that fails."""
    old = folder.with_name(temporary_name(folder.name, _OLD))
    with suppress(FileNotFoundError):  # another process has just put it away
        folder.rename(old)
    try:
        return _rename(temporary, folder)
    finally:
        if not folder.exists() and old.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def sync(path: str | os.PathLike) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder on Windows
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # this disk cannot say
            raise
    finally:
        os.close(descriptor)


class _FullDisk(OSError):
    """A sentence that names the file: what was written around it has nothing to add."""


@contextmanager
def name_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Says that the disk took no more of `path`, in an OSError, in place of the many errors that libraries have."""
    try:
        yield
    except _FullDisk:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number not in _DISK and not any(text in str(error) for text in _FAILED_WRITE):
            raise
        there = next(folder for folder in Path(path).absolute().parents if folder.is_dir())
        free = shutil.disk_usage(there).free / 2**30
        remedy = "Choose another place" if number == errno.EROFS else "Make room there, and start again"
        text = f"the disk took no more of {path}, {free:.2f} GiB are free: {error}. {remedy}"
        full = _FullDisk(text)
        full.errno = number or errno.ENOSPC
        raise full from error


@contextmanager
def one_process(path: str | os.PathLike, task: str) -> Iterator[None]:
    """While it lasts, no other process enters it for the file or folder `path`: BlockingIOError says who is there.

    The lock is a hidden file beside a file, or in a folder, and ends with the process. Disks without locks have none.
    """
    path = Path(path)
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    owner = lock.with_suffix(".owner")  # on Windows nobody else can read a locked file
    lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(FileLock(lock, timeout=0))
        except Timeout:
            who = "another process"
            with suppress(OSError):
                who = owner.read_text()
            remedy = "Wait for it, stop it, or choose another place"
            raise BlockingIOError(f"{path}: {who} writes there. {remedy}") from None
        except NotImplementedError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
        else:
            held.callback(owner.unlink, missing_ok=True)
            owner.write_text(f"process {os.getpid()} on {platform.node()} ({task}, since {time.strftime('%X')})")
        yield
