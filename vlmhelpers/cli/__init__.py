"""The command line, `python -m vlmhelpers`: 2 is the exit code where the command could not work.

1: rows cannot be used, a run cannot fit, or an export does not answer as it should. 130 is Ctrl-C, 143 SIGTERM; 141:
the program that read the output has ended.
"""

import errno
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial

from vlmhelpers.cli import data, moving, runs, steps
from vlmhelpers.cli.advice import with_options
from vlmhelpers.cli.parser import make_parser
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.printable import NotWritten, PrintableStream, one_line, shortened
from vlmhelpers.common.signals import Signals, Terminated
from vlmhelpers.training.progress import Stopped

__all__ = ["main"]

_GONE = (errno.EPIPE, errno.EINVAL)  # the reader of a pipe; on Windows, too
_REMEDIES = {
    errno.ENOENT: ". Check the name, and the folder that it starts from",
    errno.EISDIR: ". Name a file inside it",
    errno.EEXIST: ", and no folder: choose another",
    errno.ENOTDIR: ". A part of the path is a file: choose another",
    errno.EACCES: ". Choose another place, or change who may read and write it",
    errno.EROFS: ". Choose another place to write to",
    errno.ENOSPC: ". Make room there, and start again",
    errno.ENAMETOOLONG: ". Choose a shorter name",
    errno.EMFILE: ". Allow more (`ulimit -n 4096`), and start again",
}
_NO_MEMORY = ("can't start new thread", "could not create a primitive", "can't allocate memory")  # Python, torch
_NO_GPU_MEMORY = ("CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def main(arguments: list[str] | None = None, signals: Signals | None = None) -> int:
    """Runs one command, by default that of sys.argv, and returns its exit code. All that it prints is printable.

    `signals`: of the process, which tell an interruption from the errors that libraries make of one.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # None where a shell has closed it
    out, err = (PrintableStream(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            return _run_flushed(arguments, signals)
        except SystemExit:  # of argparse
            raise
        except BaseException as error:
            code, text = _ending(signals and signals.received or error)
            with suppress(NotWritten):  # nobody reads it
                print(text or traceback.format_exc(), end="\n" * bool(text), file=err, flush=True)
            return code


def _run_flushed(arguments, signals):
    try:
        if signals:
            signals.begin()
        return _run(arguments)
    except Stopped as stop:
        print(f"vlmhelpers: {stop}")
        return 0
    finally:
        sys.stdout.flush()


def _ending(error):
    """The exit code for what has ended a command, and a line about it; an empty one where nobody has expected it."""
    if isinstance(error, KeyboardInterrupt):
        return (143, "vlmhelpers: terminated") if isinstance(error, Terminated) else (130, "vlmhelpers: interrupted")
    if isinstance(error, NotWritten) and error.errno in _GONE:
        return 141, "vlmhelpers: the program that read the output has ended"
    if isinstance(error, ValueError | OSError | ImportError | CannotRun):
        return 2, shortened(f"vlmhelpers: {one_line(_sentence(error))}")
    return 2, _lack_of_memory(error)


def _sentence(error):
    """What an error says; one of the system with the file's name first, and a remedy."""
    if not getattr(error, "strerror", None):
        return str(error)
    place = f"{os.fsdecode(error.filename) or 'an empty name'}: " if isinstance(error.filename, str | bytes) else ""
    return f"{place}{error.strerror}{_REMEDIES.get(error.errno, '')}"


def _lack_of_memory(error):
    """A line where memory was missing, even for a thread, here or in what led to it: pools of threads raise others."""
    while error is not None:
        text = str(error)
        if any(part in text for part in _NO_GPU_MEMORY):
            return "vlmhelpers: no memory is left on the GPU: see preflight, or end other programs there"
        if isinstance(error, MemoryError) or any(part in text for part in _NO_MEMORY):
            return "vlmhelpers: no memory is left: end other programs, and start again"
        error = error.__cause__ or error.__context__
    return ""


def _run(arguments):
    options = vars(make_parser().parse_args(arguments))
    command = options.pop("command")
    found = next((getattr(module, command) for module in (runs, steps, moving) if command in module.__all__), None)
    run = found or {"check": data.check, "sample": data.sample}.get(command) or partial(data.convert, command)
    try:
        return int(run(**options) or 0)
    except ValueError as error:
        raise ValueError(with_options(command, str(error))) from error
