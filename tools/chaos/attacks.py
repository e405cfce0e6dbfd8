"""A try: a job in a folder of its own, what is done to it there, and what has to hold afterwards."""

import atexit
import mmap
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from chaos.jobs import Job, found

_STARTS = 3  # of the command after the attack
_HANGS = 120  # seconds after which a start counts as hanging
_LEFT_BEHIND = re.compile(r".*\.(part|old|draft)|vlmhelpers-.*|tmp-checkpoint.*")

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")  # of Python's audit events


class Failed(Exception):
    """A promise that was not kept, in one sentence."""


@dataclass
class Plain:
    """The undisturbed run of a job."""

    results: dict[str, dict[str, str]]  # see `found`
    seconds: float
    writes: int  # calls that open for writing, rename or remove
    bytes: int  # on the disk at its end, beyond what was there before


@dataclass
class Try:
    """One job under one attack. `plain` is None for the undisturbed run itself."""

    job: Job
    base: Path  # on a tmpfs, where `tmpfs`
    tmpfs: bool
    random: random.Random
    plain: Plain | None = None
    damaged: bool = False
    log: list[str] = field(default_factory=list)  # what was done, and what the job said
    writes: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))

    @property
    def work(self) -> Path:
        return self.base / "work"

    def prepare(self) -> None:
        for name in ("work", "tmp", "cache"):
            (self.base / name).mkdir(parents=True)
        self._wait(self._fork(self.job.prepare))
        self.before = found(self.job, self.work)

    def start(self, *changes) -> int:
        """The job in a process and a session of its own, after `changes` to that process."""
        self.writes[:] = bytes(8)
        return self._fork(self.job.run, partial(_watch_writes, self.base, self.writes), *changes)

    def _fork(self, run, *changes):
        sys.stdout.flush(), sys.stderr.flush()
        signals = (signal.SIGINT, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            return pid
        code = 70
        try:
            _become_process(self.base, f"{self.base}.log")
            for change in changes:
                change()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            code = _exit_code(run)
        finally:
            os._exit(code)

    def _wait(self, pid):
        """The exit code, that of a signal negative, and what was printed, once the process has ended."""
        end = time.monotonic() + _HANGS
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.killpg(pid, signal.SIGKILL), os.waitpid(pid, 0)
                raise Failed(f"hangs for {_HANGS} seconds")
            time.sleep(0.002)
        code, text = os.waitstatus_to_exitcode(ended[1]), Path(f"{self.base}.log").read_text(errors="replace")
        self.log.append(f"--- ended with {code}\n{text}")
        _no_children(pid)
        return code, text

    def run(self, *changes):
        """One start of the job to its end: (exit code, what it printed)."""
        return self._wait(self.start(*changes))

    def strike(self, *signals) -> None:
        """One start that gets signals at a random moment."""
        pid = self.start()
        moment = self.random.random() * self.plain.seconds
        self.log.append(f"--- after {moment:.3f} seconds: {', '.join(s.name for s in signals)}")
        time.sleep(moment)
        for number in signals:
            os.kill(pid, number)
            time.sleep(self.random.random() * 0.1)
        self._wait(pid)

    def check_whole(self) -> None:
        """What is there now is what was there before, or the result, or not there: nothing is half."""
        for name, files in found(self.job, self.work).items():
            if files not in (self.before.get(name), self.plain.results[name]):
                raise Failed(f"half is there: {self._differing(name, files)}")

    def _differing(self, name, files):
        """The paths of the files that are not those of the undisturbed run."""
        expected, path = self.plain.results[name], Path(self.job.results[name])
        return ", ".join(str(path / file) for file in expected | files if expected.get(file) != files.get(file))

    def check_says(self, code: int, text: str, words: str = "") -> None:
        """A job that could not work ended with one sentence, which has one of `words`."""
        lines = [line for line in text.splitlines() if line.strip()]
        if "Traceback (most recent call last)" in text:
            raise Failed(f"ended with a traceback: {lines[-1]}")
        if code < 0 or not lines:
            raise Failed(f"ended without a word, with {code}")
        if not re.search(words, lines[-1], re.IGNORECASE):
            raise Failed(f"ended without the reason: {lines[-1]}")

    def finish(self) -> None:
        """Starts the job until it ends well, and checks what it has made and left."""
        for _ in range(_STARTS):
            code, text = self.run()
            if code == 0:
                break
        results = found(self.job, self.work)
        if code:
            self.check_says(code, text)
            if results != self.plain.results and not (self.damaged and self.job.may_refuse):
                raise Failed(f"cannot go on: {text.strip().splitlines()[-1]}")
        elif results != self.plain.results:
            names = [name for name in self.plain.results if results.get(name) != self.plain.results[name]]
            raise Failed(f"ended well with another result: {self._differing(names[0], results.get(names[0], {}))}")
        left = [path for path in self.base.rglob("*") if _LEFT_BEHIND.fullmatch(path.name)]
        if left:
            raise Failed(f"left behind: {', '.join(str(path.relative_to(self.base)) for path in left)}")


def _become_process(base, log):
    """What tells a process that a user starts from this one."""
    os.setsid()
    for stream, name in enumerate((os.devnull, log, log)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC * (stream == 1) | os.O_APPEND), stream)
    os.environ |= {"TMPDIR": f"{base}/tmp", "XDG_CACHE_HOME": f"{base}/cache"}
    tempfile.tempdir = None
    os.chdir(base / "work")


def _exit_code(run):
    """Runs a function as Python runs a program: with its exit code, and what is to be done at exit."""
    code = 1
    try:
        code = int(run() or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    return code


def _watch_writes(base, count, kill_at=0):
    """Counts the calls that change the folder `base`, and kills the process just before one of them."""

    def hook(event, arguments):
        changes = event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and not isinstance(arguments[0], int) and _is_inside(base, os.fsdecode(arguments[0])):
            done = int.from_bytes(count[:], "little") + 1
            count[:] = done.to_bytes(8, "little")
            if done == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _is_inside(base, path):
    return os.path.abspath(path).startswith(f"{base}/")


def _no_children(pid):
    """Nothing that the ended process `pid` has started runs on: its session is empty, after a moment."""
    for _ in range(60):
        if not (left := [p for p in psutil.process_iter() if _session(p.pid) == pid]):
            return
        time.sleep(0.05)
    names = ", ".join(" ".join(process.cmdline()[:3]) for process in left)
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    raise Failed(f"runs on: {names}")


def _session(pid):
    with suppress(OSError):
        return os.getsid(pid)


def undisturbed(trial: Try) -> Plain:
    """Runs the job of `trial` as it is. Raises Failed where that fails."""
    trial.prepare()
    before, started = _disk_usage(trial.base), time.monotonic()
    code, text = trial.run()
    seconds = time.monotonic() - started
    results = found(trial.job, trial.work)
    if code or results.keys() != trial.job.results.keys():
        raise Failed(f"{trial.job.name} fails undisturbed, with {code}:\n{text}")
    writes = int.from_bytes(trial.writes[:], "little")
    return Plain(results, seconds, writes, _disk_usage(trial.base) - before)


def _disk_usage(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# The attacks


def signals(*numbers):
    """Signals at a random moment of one to three starts."""

    def attack(trial):
        for _ in range(trial.random.randint(1, 3)):
            trial.strike(*numbers)
            trial.check_whole()

    return attack


def kill_at_a_write(trial: Try) -> None:
    """SIGKILL just before a file is opened for writing, renamed or removed."""
    for _ in range(trial.random.randint(1, 3)):
        number = trial.random.randint(1, max(1, trial.plain.writes))
        trial.log.append(f"--- SIGKILL before write {number} of {trial.plain.writes}")
        trial.run(partial(_watch_writes, trial.base, mmap.mmap(-1, 8), number))
        trial.check_whole()


def full_disk(trial: Try) -> None:
    """A disk on which a random part of what the job writes has room; or, without a tmpfs, no file may be longer."""
    room = int(trial.random.random() * trial.plain.bytes)
    trial.log.append(f"--- a disk with {room:,} bytes free")
    words = "space|disk|too large|GiB|GB"
    if not trial.tmpfs:
        _limited(trial, resource.RLIMIT_FSIZE, room, words)
        return
    pages = shutil.disk_usage(trial.base).used // 4096 + room // 4096 + 1
    mount("-o", f"remount,size={pages * 4096}", trial.base)
    _check_limited(trial, *trial.run(), words)
    mount("-o", "remount,size=1g", trial.base)


def open_files(trial: Try) -> None:
    """A few file descriptors more than are open."""
    more = trial.random.randint(1, 24)
    trial.log.append(f"--- {more} more open files")
    _limited(trial, resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) + more, "open files|descriptor|EMFILE")


def memory(trial: Try) -> None:
    """Some address space more than is used. What C++ code does then, such as to abort, counts as a kill."""
    more = int(2 ** trial.random.uniform(20, 29))
    trial.log.append(f"--- {more:,} bytes more memory")
    _limited(trial, resource.RLIMIT_AS, psutil.Process().memory_info().vms + more, "memory|alloc|thread")


def _limited(trial, limit, value, words):
    hard = resource.getrlimit(limit)[1]
    _check_limited(trial, *trial.run(lambda: resource.setrlimit(limit, (value, hard))), words)


def _check_limited(trial, code, text, words):
    if code > 0:
        trial.check_says(code, text, words if found(trial.job, trial.work) != trial.plain.results else "")
    elif code < 0 and "memory" not in words:
        raise Failed(f"died of signal {-code}")
    trial.check_whole()


def damage(change):
    """`change` to the bytes of some of the files that a killed or finished start has left."""

    def attack(trial):
        trial.strike(signal.SIGKILL) if trial.random.random() < 0.6 else trial.run()
        folders = trial.work, trial.base / "cache"
        files = sorted(
            path for folder in folders for path in folder.rglob("*") if path.is_file() and path.stat().st_size
        )
        inputs = [trial.work / name for name in trial.job.inputs]
        files = [file for file in files if not any(map(file.is_relative_to, inputs)) or _shows(file, change)]
        for file in trial.random.sample(files, min(len(files), trial.random.randint(1, 2))):
            trial.log.append(f"--- {change.__name__}: {file.relative_to(trial.base)}")
            file.write_bytes(change(file.read_bytes(), trial.random))
        trial.damaged = True

    return attack


def _shows(file, change):
    """Whether a job can tell from an input itself that something was done to it."""
    return change is not flipped and file.suffix in (".json", ".safetensors")


def zeroed(data: bytes, random: random.Random) -> bytes:
    """As files can be after a power cut: of the right size, with zeros from some place on."""
    start = random.choice((0, random.randrange(len(data))))
    return data[:start] + bytes(len(data) - start)


def cut(data: bytes, random: random.Random) -> bytes:
    return data[: random.randrange(len(data))]


def flipped(data: bytes, random: random.Random) -> bytes:
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True)


ATTACKS = {
    "KILL": signals(signal.SIGKILL),
    "TERM": signals(signal.SIGTERM),
    "INT twice": signals(signal.SIGINT, signal.SIGINT),
    "STOP, KILL": signals(signal.SIGSTOP, signal.SIGKILL),
    "KILL at a write": kill_at_a_write,
    "full disk": full_disk,
    "open files": open_files,
    "memory": memory,
    "zeroed": damage(zeroed),
    "cut": damage(cut),
    "flipped": damage(flipped),
}
