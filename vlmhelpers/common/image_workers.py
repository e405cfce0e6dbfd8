"""Images inspected by processes that can be ended: whatever an image is, it costs no more than `image_costs` says.

They are started when they are needed, and end when nobody has needed them for a while, or with this process.
"""

import atexit
import errno
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from concurrent.futures import Executor
from contextlib import suppress

from PIL import Image

from vlmhelpers.common.image_costs import SECONDS
from vlmhelpers.common.images import MAX_PIXELS, ImageFacts, UnusableImage, machine_error, open_image, read_through

_BATCH_BYTES = 2**20
_IDLE = 10  # seconds after which workers that nobody needs end
_CRASHES = ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE")
_TOO_SLOW = (
    f"too slow to decode: it takes more than {SECONDS} s",
    "make it smaller, or save it again as a baseline JPEG",
)
_COMMAND = ["-m", "vlmhelpers.common.image_worker"]
# One thread each: more would take from one another, and reserve memory.
_ALONE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def inspect_apart(source: str | os.PathLike | bytes | dict, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """As `images.inspect_image`, in another process; several threads may ask at a time, and get one each.

    Raises UnusableImage also for an image that takes more than image_costs.SECONDS of CPU time (a minute of any time on
    Windows), or more than image_costs.BYTES of memory beyond its pixels (on Linux), or that crashes its decoder.
    """
    (answer,) = _ask([source], max_pixels)
    if isinstance(answer, Exception):
        raise answer
    return answer


def open_apart(source: str | os.PathLike | bytes) -> Image.Image:
    """As `images.open_image`, of an image that `inspect_apart` takes: for one that a user hands over, from anywhere."""
    inspect_apart(source)
    return open_image(source)


def inspect_all(sources: Collection[dict], max_pixels: int, threads: Executor) -> Iterator[ImageFacts | UnusableImage]:
    """What `inspect_apart` returns or raises for each image, {"path", "bytes"} as in Arrow, in their order.

    Raises OSError where the machine fails. Each of the `threads` keeps a process at work.
    """
    for answers in threads.map(lambda batch: _ask(batch, max_pixels), _batches(sources)):
        for answer in answers:
            if isinstance(answer, Exception) and not isinstance(answer, UnusableImage):
                raise answer
            yield answer


def _batches(sources):
    """Several images at a time: a process is not woken for each small one."""
    most, batch, size = max(1, min(16, len(sources) // 16)), [], 0
    for source in sources:
        batch.append(source)
        size += len(source.get("bytes") or b"")
        if len(batch) == most or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _ask(sources, max_pixels):
    """ImageFacts or an exception for each."""
    with _WORKERS.places:
        worker = _WORKERS.take()
        try:
            answers = worker.ask(sources, max_pixels)
        except BaseException:
            worker.end()
            raise
        _WORKERS.give_back(worker)
    if len(sources) > 1 and len(answers) < len(sources):  # one of them has ended it
        return [answer for source in sources for answer in _ask([source], max_pixels)]
    return answers


def _folder():
    """What tells the current folder from others, also where it was moved or removed."""
    status = os.stat(os.curdir)
    return status.st_dev, status.st_ino


class _Workers:
    """The workers of this process that are idle, and how many there may be besides."""

    def __init__(self):
        self.idle, self.lock, self.used, self.clock = [], threading.Lock(), 0, None
        self.places = threading.BoundedSemaphore(max(8, os.cpu_count() or 1))

    def take(self):
        with self.lock:
            while self.idle:
                worker = self.idle.pop()
                if worker.child.poll() is None and worker.folder == _folder():
                    return worker
                worker.end()
        return _Worker()

    def give_back(self, worker):
        if worker.child.poll() is not None:
            return worker.release()
        with self.lock:
            self.idle.append(worker)
            self.used = time.monotonic()
            if self.clock is None:
                self._wind()

    def _wind(self):
        self.clock = threading.Timer(_IDLE, self._after_a_while)
        self.clock.daemon = True
        try:
            self.clock.start()
        except RuntimeError:  # there can be no more threads
            self.clock = None

    def _after_a_while(self):
        with self.lock:
            if time.monotonic() - self.used < _IDLE:
                return self._wind()
        self.end()

    def end(self):
        with self.lock:
            self.clock, idle, self.idle = None, self.idle, []
        for worker in idle:
            worker.end()

    def forget(self):
        """In a forked process: the workers are its parent's, whose end they would not see past pipes held here."""
        for worker in self.idle:
            worker.release()
            worker.child.returncode = 0  # to be waited for by the parent alone
        self.__init__()


_WORKERS = _Workers()
atexit.register(_WORKERS.end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_WORKERS.forget)


class _Worker:
    """A process that answers one question at a time, and takes paths from the folder in which it was started."""

    def __init__(self):
        self.folder = _folder()
        environment = os.environ | _ALONE | {"PYTHONPATH": os.pathsep.join(sys.path)}
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        try:
            self.child = subprocess.Popen([sys.executable, "-P", *_COMMAND], env=environment, **pipes)
        except OSError as error:  # descriptors, processes or memory
            raise machine_error(error.errno, None) from error

    def ask(self, sources, max_pixels):
        """What `inspect_image` returns or raises for each; the one reason where the process has ended."""
        try:
            pickle.dump((sources, max_pixels), self.child.stdin)
            self.child.stdin.flush()
            return pickle.load(self.child.stdout)
        except (EOFError, OSError, ValueError, pickle.UnpicklingError):
            return [self._why_it_ended(sources[0].get("path") if isinstance(sources[0], dict) else None)]

    def _why_it_ended(self, path):
        """The error, of the image or of the machine."""
        code, said = self.child.wait(), self.child.stderr.read().decode(errors="replace").strip()
        name = signal.Signals(-code).name if code < 0 else ""
        late = code == 1 and not said
        if name == "SIGPROF" or (late and os.name == "nt"):
            return UnusableImage(*_TOO_SLOW)
        if name in _CRASHES:
            read_through(path)
            return UnusableImage("truncated or damaged image: its decoder crashed")
        if name == "SIGKILL" or late:
            return machine_error(errno.ETIMEDOUT if late else errno.ENOMEM, path)
        return OSError(f"the process that inspects images has ended: {said.splitlines()[-1] if said else name or code}")

    def end(self):
        self.child.kill()
        self.child.wait()
        self.release()

    def release(self):
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            with suppress(OSError):  # what it has not read
                pipe.close()
