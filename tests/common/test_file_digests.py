"""Digests of files: read once, and again after every change, whatever the file pretends."""

import os
import shutil
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from vlmhelpers.common import file_digests
from vlmhelpers.common.digests import digest
from vlmhelpers.common.file_digests import file_digest

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own, in which files count as settled at once."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(file_digests, "_SETTLED", -1)
    monkeypatch.setattr(file_digests, "_TABLES", [])
    return tmp_path / "cache" / "vlmhelpers" / "file_digests.sqlite"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"first")
    return path


@pytest.fixture
def reads(monkeypatch):
    """The paths of files that were read."""
    read, paths = file_digests.read_digest, []
    monkeypatch.setattr(file_digests, "read_digest", lambda path: paths.append(path) or read(path))
    return paths


def new_process(monkeypatch):
    monkeypatch.setattr(file_digests, "_TABLES", [])


def test_it_is_the_digest_of_the_bytes_and_read_once_by_all_processes(path, reads, monkeypatch, tmp_path):
    assert file_digest(path) == file_digest(str(path)) == digest(b"first") and len(reads) == 1
    new_process(monkeypatch)
    (tmp_path / "link").symlink_to(path)
    assert file_digest(path) == file_digest(tmp_path / "link") == digest(b"first") and len(reads) == 1
    large = bytes(range(256)) * 10_000
    path.write_bytes(large)
    assert file_digest(path) == digest(large)
    path.write_bytes(b"")
    assert file_digest(path) == digest(b"")


def keep_times(path, change):
    status = os.stat(path)
    change()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the change")
def test_a_file_of_the_same_size_and_time_is_read_again(path, tmp_path):
    assert file_digest(path) == digest(b"first")
    keep_times(path, lambda: path.write_bytes(b"other"))  # in place
    assert file_digest(path) == digest(b"other")
    (tmp_path / "new").write_bytes(b"third")
    keep_times(path, lambda: os.replace(tmp_path / "new", path))
    assert file_digest(path) == digest(b"third")
    (tmp_path / "new").write_bytes(b"forth")
    shutil.copystat(path, tmp_path / "new")
    shutil.copy2(tmp_path / "new", path)  # cp -p
    assert file_digest(path) == digest(b"forth")


def test_a_file_that_may_yet_change_within_one_tick_is_not_remembered(path, reads, monkeypatch):
    monkeypatch.setattr(file_digests, "_SETTLED", 2)
    assert file_digest(path) == file_digest(path) and len(reads) == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3)
    assert file_digest(path) == file_digest(path) and len(reads) == 3


def test_without_a_folder_to_write_to_it_remembers_in_memory(path, reads, cache):
    cache.parent.parent.write_text("a file, where a folder should be")
    assert file_digest(path) == file_digest(path) == digest(b"first") and len(reads) == 1


@pytest.mark.parametrize("content", [b"no database, but a text of some length" * 100, bytes(4096)])
def test_a_damaged_cache_is_made_anew(path, reads, cache, monkeypatch, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content)
    assert file_digest(path) == digest(b"first")
    new_process(monkeypatch)
    assert file_digest(path) == digest(b"first") and len(reads) == 1


def test_a_cache_that_is_damaged_while_it_is_open_costs_reading_only(path, cache):
    file_digest(path)
    for file in cache.parent.iterdir():
        file.write_bytes(b"\xff" * 8192)
    assert file_digest(path) == digest(b"first") == file_digest(path)


@pytest.mark.parametrize("kind", ["folder", "pipe", "nothing"])
def test_what_is_no_file_is_an_error_at_once(path, kind):
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with names")
        os.mkfifo(path)
    with pytest.raises(OSError):
        file_digest(path)


def test_threads_share_it(tmp_path):
    paths = [tmp_path / str(number) for number in range(50)]
    for path in paths:
        path.write_text(path.name)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(file_digest, paths * 10))
    assert found == [digest(path.name.encode()) for path in paths] * 10


def in_fork(path):
    """Whether a forked process gets the digest within seconds."""
    child = os.fork()
    if child == 0:
        signal.alarm(5)
        os._exit(file_digest(path) != digest(path.read_bytes()))
    return os.waitpid(child, 0)[1] == 0


@forks
def test_a_forked_process_has_a_table_of_its_own(path, reads):
    assert file_digest(path) and in_fork(path)
    other = path.with_name("other")
    other.write_bytes(b"other")
    assert in_fork(other)
    assert file_digest(path) == digest(b"first") and file_digest(other) == digest(b"other")
    assert reads == [path]  # the child has told of the other one


@forks
def test_a_process_that_is_forked_while_a_thread_looks_up_a_digest_does_not_wait_for_ever(path):
    held = threading.Event()

    def look_up():
        with file_digests._LOCK:
            held.set()
            time.sleep(0.2)

    thread = threading.Thread(target=look_up)
    thread.start()
    held.wait()
    assert in_fork(path)
    thread.join()


@pytest.mark.slow
def test_a_cache_that_another_process_holds_is_asked_once(path, cache, tmp_path, monkeypatch):
    file_digest(path)
    other = sqlite3.connect(cache, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    waited = []
    monkeypatch.setattr(
        file_digests.sqlite3, "connect", lambda *a, **k: waited.append(a[1]) or sqlite3.Connection(*a, **k)
    )
    new_process(monkeypatch)
    for number in range(3):
        (tmp_path / f"{number}").write_bytes(b"x")
        assert file_digest(tmp_path / f"{number}") == digest(b"x")
    assert waited == [1]  # seconds
    other.close()
