"""The command line, `python -m vlmhelpers`: 2 is the exit code where the command could not work.

1: rows cannot be used, a run cannot fit, or an export does not answer as it should. 130 is Ctrl-C, 143 SIGTERM.
"""

import os
import signal
import sys
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout
from functools import partial

from vlmhelpers.cli import data, moving, runs, steps
from vlmhelpers.cli.parser import make_parser
from vlmhelpers.common.printable import PrintableStream, one_line
from vlmhelpers.training.progress import Stopped

__all__ = ["Signals", "Terminated", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Runs one command, by default that of sys.argv, and returns its exit code. All that it prints is printable."""
    out, err = (stream and PrintableStream(stream) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        try:
            return _run(arguments)
        except Stopped as stop:
            print(f"vlmhelpers: {stop}")
            return 0
        except (ValueError, OSError) as error:
            print(f"vlmhelpers: {one_line(str(error))}", file=sys.stderr)
            return 2
        except Exception as error:
            if _lacks_memory(error):
                print("vlmhelpers: no memory is left: end other programs, and start again", file=sys.stderr)
            else:
                traceback.print_exc()
            return 2
        except KeyboardInterrupt as stop:
            terminated = isinstance(stop, Terminated)
            print(f"vlmhelpers: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
            return 143 if terminated else 130


_NO_MEMORY = ("can't start new thread", "could not create a primitive", "can't allocate memory")  # Python, torch


def _lacks_memory(error):
    """Whether memory was missing, even for a thread, here or in what led to it: pools of threads raise other errors."""
    while error is not None:
        if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_MEMORY):
            return True
        error = error.__cause__ or error.__context__
    return False


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Signals:
    """Handles SIGINT and SIGTERM while this process lives: the first one interrupts it, then it is left to clean up.

    One that follows within two seconds is ignored, as launchers pass signals on; a later one ends the process at once.
    """

    def __init__(self):
        self.process, self.first = os.getpid(), None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background jobs set it
                signal.signal(number, self._handle)

    def _handle(self, number, frame):
        if os.getpid() != self.process:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif self.first is None:
            self.first = time.monotonic()
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        elif time.monotonic() > self.first + 2:
            os._exit(128 + number)

    def finish(self) -> None:
        """From now on nothing is interrupted: the process is about to end."""
        self.first = self.first or time.monotonic()


def _run(arguments):
    options = vars(make_parser().parse_args(arguments))
    command = options.pop("command")
    found = next((getattr(module, command) for module in (runs, steps, moving) if command in module.__all__), None)
    run = found or {"check": data.check, "sample": data.sample}.get(command) or partial(data.convert, command)
    return int(run(**options) or 0)
