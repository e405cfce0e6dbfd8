"""Ctrl-C and SIGTERM for a command: it is interrupted once, and then left to clean up. Loads nothing heavy."""

import os
import signal
import sys
import threading
import time


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a command as Ctrl-C does."""


class Signals:
    """Handles SIGINT and SIGTERM while this process lives: the first one interrupts it, then it is left to clean up.

    One that follows within two seconds is ignored, as launchers pass signals on; a later one ends the process at once.
    So does the first one before `begin`, when there is nothing to clean up. `received`: what it was raised as, or None.
    """

    def __init__(self):
        self.process, self._first, self._begun = os.getpid(), None, False
        self.received: KeyboardInterrupt | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup and a shell's background jobs set it
                signal.signal(number, self._handle)
        sys.unraisablehook = self._raise_again

    def begin(self) -> None:
        """The imports are done: a signal is a KeyboardInterrupt now."""
        self._begun = True

    def finish(self) -> None:
        """From now on nothing is interrupted: the process is about to end."""
        self._first = self._first or time.monotonic()

    def _handle(self, number, frame):
        if os.getpid() != self.process:  # a forked worker
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif not self._begun and self._first is None:
            os.write(2, f"vlmhelpers: {'terminated' if number == signal.SIGTERM else 'interrupted'}\n".encode())
            os._exit(128 + number)
        elif self._first is None:
            self._first = time.monotonic()
            self.received = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
            raise self.received
        elif time.monotonic() > self._first + 2:
            os._exit(128 + number)

    def _raise_again(self, unraisable):
        """An interruption that came in a destructor, which Python would print and forget, comes again later."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            return sys.__unraisablehook__(unraisable)
        number = signal.SIGTERM if isinstance(unraisable.exc_value, Terminated) else signal.SIGINT
        self._first = None
        threading.Timer(0.1, signal.raise_signal, [number]).start()
