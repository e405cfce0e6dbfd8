"""Turns at a host: few requests at once, with pauses, none before the time that it asked to wait for."""

import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial

from vlmhelpers.data.download.connections import FetchError

_FAILURES = 20  # of a host in a row, each with all its attempts, before the host is given up


class Stopped(Exception):
    """The download was ended from outside."""


class Hosts:
    """The hosts of one download by their names; `stop` is a threading.Event that ends all waiting."""

    def __init__(self, rules, stop):
        self._hosts = defaultdict(partial(_Host, rules, stop))
        self._lock = threading.Lock()

    def turn(self, name):
        """A context manager: it waits for a turn at that host, and learns from the FetchError of the request in it.

        Raises FetchError where the host is given up, and Stopped.
        """
        with self._lock:
            host = self._hosts[name]
        return host.turn()


class _Host:
    def __init__(self, rules, stop):
        self._slots = threading.BoundedSemaphore(rules.per_host)
        self._lock, self._stop = threading.Lock(), stop
        self._pause, self._patience = rules.pause, _FAILURES * rules.attempts
        self._next, self._failed = 0.0, 0  # when the next request may start; requests that failed in a row

    @contextmanager
    def turn(self):
        with self._slots:
            self._await_start()
            try:
                yield
            except FetchError as error:
                self._learn(error)
                raise
            self._failed = 0

    def _await_start(self):
        while True:
            if self._stop.is_set():
                raise Stopped
            if self._failed >= self._patience:
                reason = f"host given up: {self._patience} requests to it failed in a row"
                raise FetchError(reason, "run it again when the host works; what is downloaded is kept")
            delay = self._take_start()
            if not delay:
                return
            self._stop.wait(delay)

    def _take_start(self):
        """Seconds until a request may start; with 0, one may now, and the next one after a pause."""
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return self._next - now
            self._next = now + self._pause
            return 0

    def _learn(self, error):
        with self._lock:
            self._failed = self._failed + 1 if error.host_fault else 0
            self._next = max(self._next, time.monotonic() + error.wait)
