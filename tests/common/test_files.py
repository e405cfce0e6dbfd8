"""Atomic writes: whatever is killed, full or done twice, a name holds something whole; what is left goes."""

import errno
import multiprocessing
import os
import platform
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vlmhelpers.common import files
from vlmhelpers.common.files import (
    atomic_file,
    atomic_folder,
    one_process,
    remove_abandoned,
    temporary_folder,
    temporary_name,
)

HOUR, DAY = 3600, 24 * 3600
posix = pytest.mark.skipif(os.name == "nt", reason="forks and kills")


def run(code, *arguments, **options):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def contents(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


# Whose a temporary name is


def leave(folder, pid=None, created=None, machine=None, age=0, ending=".part", is_folder=False, name="out"):
    """A temporary file or folder as a process of that number would have left it."""
    pid = os.getpid() if pid is None else pid
    created = psutil.Process().create_time() if created is None else created
    path = folder / f"{name}-{machine or files.machine_id()}-{pid}-{int(created)}-0123abcd{ending}"
    path.mkdir() if is_folder else path.write_text("left")
    os.utime(path, (time.time() - age,) * 2)
    return path


def stays(path, **options):
    remove_abandoned(path.parent, **options)
    return path.exists()


@pytest.fixture
def ended():
    """The number of a process that has ended, and has been waited for."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_living_process_writes_stays_and_that_of_an_ended_one_goes(tmp_path, ended):
    assert stays(leave(tmp_path, age=100 * DAY)) and stays(tmp_path / temporary_name("out")) is False
    assert not stays(leave(tmp_path, ended)) and not stays(leave(tmp_path, ended, is_folder=True))


@posix
def test_a_zombie_writes_nothing_more(tmp_path):
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    try:
        assert not stays(leave(tmp_path, zombie.pid, time.time()))
    finally:
        zombie.wait()


def test_a_number_that_another_process_has_by_now_protects_for_an_hour_only(tmp_path):
    assert stays(leave(tmp_path, created=10**9, age=HOUR / 2))  # or the clock was set
    assert not stays(leave(tmp_path, created=10**9, age=2 * HOUR))


@pytest.mark.parametrize(("is_folder", "days"), [(False, 1), (True, 30)])
def test_what_another_machine_writes_stays_until_it_is_old(tmp_path, is_folder, days):
    options = {"machine": "00000000", "is_folder": is_folder}
    assert stays(leave(tmp_path, age=days * DAY - HOUR, **options))
    os.rename(*(tmp_path / name for name in (os.listdir(tmp_path)[0], "other")))
    assert not stays(leave(tmp_path, age=days * DAY + HOUR, **options))


def test_only_the_temporary_files_of_a_name_are_removed(tmp_path, ended):
    others = [leave(tmp_path, ended, name="out2"), leave(tmp_path, ended, name="an-out")]
    named = leave(tmp_path, ended, name="out[1]*")
    assert all(stays(path, name="out") for path in [*others, named])
    assert not stays(named, name="out[1]*") and all(path.exists() for path in others)
    strangers = [tmp_path / name for name in ("film.mkv.part", "out-1-2-3-4.part", "a-b-c-d-e.old")]
    for path in strangers:
        path.write_text("of another program")
    assert all(map(stays, strangers)) and not any(path.exists() for path in others)


def test_a_folder_that_was_put_away_comes_back_whoever_did_it(tmp_path, monkeypatch, ended):
    leave(tmp_path, ended, ending=".old", is_folder=True)
    remove_abandoned(tmp_path, "out")
    assert os.listdir(tmp_path) == ["out"]
    assert not stays(leave(tmp_path, ended, ending=".old", is_folder=True))  # it has been replaced
    os.rmdir(tmp_path / "out")
    of_a_container = leave(tmp_path, machine="00000000", ending=".old", is_folder=True)
    assert stays(of_a_container)  # that may be about to put the new one there
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 120)
    assert not stays(of_a_container) and os.listdir(tmp_path) == ["out"]


HOLD = """
import sys, time
from vlmhelpers.common.files import temporary_folder
folder = temporary_folder()
print(folder.name, flush=True)
time.sleep(sys.argv[1:] == ["wait"] and 60)
"""


@posix
@pytest.mark.slow
def test_temporary_folders_go_with_their_process_however_it_ends(tmp_path, monkeypatch):
    env = os.environ | {"TMPDIR": str(tmp_path)}
    holders = []
    for _ in range(2):
        holders.append(subprocess.Popen([sys.executable, "-c", HOLD, "wait"], stdout=subprocess.PIPE, env=env))
        assert Path(holders[-1].stdout.readline().decode().strip()).is_dir()
    killed, living = holders
    killed.kill()
    killed.communicate()
    assert len(os.listdir(tmp_path)) == 2
    assert run(HOLD, env=env).returncode == 0  # which also removes its own
    (left,) = os.listdir(tmp_path)
    assert f"-{living.pid}-" in left
    living.kill()
    living.communicate()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
    assert not os.listdir(tmp_path)


# Files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    with atomic_file(path) as file:
        file.write("new")
        assert not path.exists()
    assert path.read_text() == "new" and os.listdir(path.parent) == ["file.txt"]


@pytest.mark.parametrize(
    ("step", "durable"), [("write", True), ("write", False), ("replace", True), ("replace", False), ("fsync", True)]
)
def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch, step, durable):
    (tmp_path / "file.txt").write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step != "write":
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"), atomic_file(tmp_path / "file.txt", durable=durable) as file:
        file.write("new")
        if step == "write":
            full()
    assert contents(tmp_path) == {"file.txt": "old"}


FULL = """
import resource, sys
from vlmhelpers.common.files import atomic_file, atomic_folder
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    if sys.argv[1].endswith("file"):
        with atomic_file(sys.argv[1]) as file:
            file.write("x" * 200_000)
    else:
        with atomic_folder(sys.argv[1], replace=True) as folder:
            (folder / "small").write_text("new")
            with atomic_file(folder / "large") as file:
                file.write("x" * 200_000)
except OSError as error:
    print(error)
"""


@posix
@pytest.mark.parametrize("name", ["file", "folder"])
def test_on_a_full_disk_what_was_there_stays(tmp_path, name):
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    (path / "small" if name == "folder" else path).write_text("old")
    done = run(FULL, path)
    named = f"the disk took no more of {path}"  # once, also where a folder holds a file that is written atomically
    assert done.stdout.startswith(named) and done.stdout.count("Make room there") == 1, done.stderr
    assert os.listdir(tmp_path) == [name]
    assert contents(tmp_path if name == "file" else path) == {"file" if name == "file" else "small": "old"}


# A process forks others that are killed at their first, second, ... call of the system that changes or opens a file.
KILLED = """
import os, sys
from pathlib import Path
from vlmhelpers.common.files import atomic_file, atomic_folder, remove_abandoned

base, kind = Path(sys.argv[1]), sys.argv[2]
out = base / "out"

def write(text):
    if kind == "file":
        with atomic_file(out) as file:
            file.write(text)
    else:
        with atomic_folder(out, replace=True) as folder:
            for name in ("a", "b"):
                (folder / name).write_text(text)

def read():
    texts = [path.read_text() for path in ([out] if kind == "file" else sorted(out.iterdir()))]
    assert len(texts) == (1 if kind == "file" else 2) and len(set(texts)) == 1, texts
    return texts[0]

def kill_at(step):
    left = [step]
    def hook(event, arguments):
        if event.startswith(("os.", "shutil.")) or event == "open":
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), 9)
    sys.addaudithook(hook)

write("0")
step, status, put_away, before = 0, None, 0, "0"
while status != 0:
    step += 1
    child = os.fork()
    if child == 0:
        kill_at(step)
        write(str(step))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    put_away += not out.exists()
    remove_abandoned(base, "out")  # as the next process that writes there
    assert os.listdir(base) == ["out"], (step, os.listdir(base))
    assert read() in (before, str(step)), (step, before, read())
    before = read()
assert before == str(step)
print(step, put_away)
"""


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "least"), [("file", 5), ("folder", 15)])
def test_killed_at_any_step_the_old_or_the_new_is_there_whole(tmp_path, kind, least):
    done = run(KILLED, tmp_path, kind)
    assert done.returncode == 0, done.stderr
    steps, put_away = map(int, done.stdout.split())
    assert steps > least and put_away == (1 if kind == "folder" else 0)  # between its two renames


# Folders


def test_a_folder_with_files_is_replaced_only_on_purpose(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as folder:  # an empty one is nothing to lose
        (folder / "a").write_text("1")
    with pytest.raises(FileExistsError, match="out is not empty: choose another"), atomic_folder(tmp_path / "out"):
        pytest.fail("entered")
    with atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "b").write_text("2")
        assert contents(tmp_path / "out") == {"a": "1"}
    assert contents(tmp_path / "out") == {"b": "2"} and os.listdir(tmp_path) == ["out"]


def test_a_folder_comes_back_where_its_successor_cannot_get_its_name(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("1")

    def full(self, target):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError), atomic_folder(tmp_path / "out", replace=True) as folder:
        (folder / "a").write_text("2")
    assert contents(tmp_path / "out") == {"a": "1"} and os.listdir(tmp_path) == ["out"]


def write_often(folder, who, replace, results):
    done = 0
    for _ in range(8 if replace else 1):
        try:
            with atomic_folder(folder, replace=replace) as temporary:
                (temporary / "a").write_text(who)
                time.sleep(0.001)
                (temporary / "b").write_text(who)
            done += 1
        except FileExistsError:
            pass
    results.put(done)


@pytest.mark.slow
@pytest.mark.parametrize(("replace", "expected"), [(True, [8, 8, 8]), (False, [0, 0, 1])])
def test_processes_that_write_one_folder_do_not_mix(tmp_path, replace, expected):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    arguments = [(tmp_path / "out", who, replace, results) for who in "xyz"]
    workers = [context.Process(target=write_often, args=argument) for argument in arguments]
    for worker in workers:
        worker.start()
    done = sorted(results.get(timeout=300) for _ in workers)
    for worker in workers:
        worker.join()
    assert done == expected
    assert len(set(contents(tmp_path / "out").values())) == 1 and os.listdir(tmp_path) == ["out"]


# One process


ENTER = """
import sys, time
from vlmhelpers.common.files import one_process
with one_process(sys.argv[1], "training"):
    print("in", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("is_folder", [True, False])
def test_the_second_process_says_who_works_there_until_it_ends(tmp_path, is_folder):
    path = tmp_path / "out"
    if is_folder:
        path.mkdir()
    first = subprocess.Popen([sys.executable, "-c", ENTER, path], stdout=subprocess.PIPE)
    try:
        assert first.stdout.readline().strip() == b"in"
        who = rf"out: process {first.pid} on {platform.node()} \(training, since .*Wait for it, stop it"
        with pytest.raises(BlockingIOError, match=who), one_process(path, "training"):
            pytest.fail("entered")
    finally:
        first.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        first.communicate()
    with one_process(path, "training"), one_process(tmp_path / "another", "training"):
        pass
    with one_process(path, "training"):  # again
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_disk_without_locks_is_used_without_one(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", refuse)
    with one_process(tmp_path, "train"), one_process(tmp_path, "train"):
        pass


def test_a_link_is_followed_and_a_mount_point_refused(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for text in "ab":
        with atomic_folder(tmp_path / "link", replace=True) as folder:
            (folder / "file").write_text(text)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk" / "file").read_text() == "b"
    monkeypatch.chdir(tmp_path / "disk")
    with atomic_folder(".", replace=True) as folder:
        (folder / "file").write_text("c")
    assert (tmp_path / "disk" / "file").read_text() == "c" and sorted(os.listdir(tmp_path)) == ["disk", "link"]
    with pytest.raises(OSError, match="a mount point cannot be replaced"), atomic_folder("/proc", replace=True):
        pass


@pytest.mark.skipif(os.name == "nt", reason="no such files")
def test_what_is_no_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for path, reason in [("folder", "Is a directory"), ("pipe", "a pipe or a device"), ("/dev/stdout", "a pipe or")]:
        with pytest.raises(OSError, match=reason), atomic_file(tmp_path / path):
            pass
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and sorted(os.listdir(tmp_path)) == ["folder", "pipe"]
