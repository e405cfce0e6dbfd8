"""What buttons stand for, done beside the kernel's other cells where a page shows what a thread does."""

import threading
from collections.abc import Callable

_EXPECTED = (ValueError, OSError, RuntimeError, MemoryError, ImportError)  # their sentence says it all


class Worker:
    """Does one thing at a time, but for what is `beside`. `threads`: in threads; else at once."""

    def __init__(self, threads: bool, busy: Callable[[], str], after: Callable[[], object]):
        """`busy`: what is said while something is going on. `after`: called when it has ended."""
        self._threads, self._say_busy, self._after = threads, busy, after
        self._busy = threading.Lock()

    @property
    def is_busy(self) -> bool:
        return self._busy.locked()

    def do(
        self,
        act: Callable[[], object],
        done: Callable[[object], object],
        fail: Callable[[BaseException], object],
        beside: bool = False,
    ) -> None:
        """Calls `done` with what `act` returns, or `fail` with its error."""
        if not beside and not self._busy.acquire(blocking=False):
            fail(ValueError(self._say_busy()))
        elif self._threads:
            threading.Thread(target=self._do, args=(act, done, fail, beside), daemon=True).start()
        else:
            self._do(act, done, fail, beside)

    def _do(self, act, done, fail, beside):
        try:
            done(act())
        except _EXPECTED as error:
            fail(error)
        except Exception as error:
            fail(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            if not beside:
                self._busy.release()
                self._after()
