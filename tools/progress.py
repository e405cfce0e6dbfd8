"""Shows how far each notebook is while papermill runs several of them, on a terminal as well as in a log."""

import shutil
import sys
import threading
import time

from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import Engine, papermill_engines

ENGINE = "watched"  # the name under which papermill finds the engine below


class Progress:
    """Where one notebook is: the running cell, the time since its start, and the last line that the cell printed.

    It is also the file that papermill copies the cells' output to.
    """

    def __init__(self, total, name=""):
        self.total, self.name = total, name
        self.number, self.message = 0, "starting Python"
        self.started = time.monotonic()
        self.client = None
        self.stopped = False

    def begin(self, number):
        """A cell begins: `number` counts from 1."""
        self.number, self.message = number, ""
        if self.stopped:
            raise RuntimeError("stopped")

    def write(self, text):
        lines = text.replace("\r", "\n").split("\n")
        self.message = next((line.strip() for line in reversed(lines) if line.strip()), self.message)

    def flush(self):
        pass  # part of being a file; the display draws

    def stop(self):
        """End the notebook by killing its kernel; papermill raises what a dead kernel raises."""
        self.stopped = True
        if self.client is not None and self.client.km is not None and self.client.km.has_kernel:
            self.client.km.provisioner.process.kill()

    def elapsed(self):
        """Minutes and seconds since the start, as 2:05."""
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def line(self):
        """What is shown now, no wider than the terminal."""
        text = f"      {self.name}cell {self.number}/{self.total}  {self.elapsed()}  {self.message}"
        return text[: shutil.get_terminal_size().columns - 1]


class Display:
    """Draws a line for each running notebook: again and again on a terminal, every ten seconds in a log.

    Use it as a context manager, and `print` through it, so that nothing is drawn over.
    """

    SECONDS_ON_TERMINAL, SECONDS_IN_LOG = 0.5, 10

    def __init__(self):
        self.running = []
        self._on_terminal = sys.stdout.isatty()
        self._drawn = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_over, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        self.print()

    def print(self, *lines):
        """Print lines that stay, above those of the running notebooks."""
        with self._lock:
            self._show(lines)
            self._drawn = 0

    def _draw_until_over(self):
        while not self._over.wait(self.SECONDS_ON_TERMINAL if self._on_terminal else self.SECONDS_IN_LOG):
            with self._lock:
                lines = [progress.line() for progress in self.running]
                self._show(lines)
                self._drawn = len(lines)

    def _show(self, lines):
        erase = f"\r\033[{self._drawn}A\033[J" if self._on_terminal and self._drawn else ""
        print(erase + "".join(f"{line}\n" for line in lines), end="", flush=True)


class WatchedEngine(Engine):
    """Papermill's engine, which also keeps a `Progress` up to date. `folder` is where the kernel runs.

    Papermill's own option for the folder would move the whole process there, and other notebooks with it.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, stdout_file, folder, start_timeout, **_):
        progress, mark_start = stdout_file, nb_man.cell_start

        def cell_start(cell, index, **more):
            cells = nb_man.nb.cells[: index + 1]  # the cell that papermill puts in for -p is not counted
            progress.begin(sum("injected-parameters" not in c.metadata.get("tags", []) for c in cells))
            mark_start(cell, index, **more)

        nb_man.cell_start = cell_start
        progress.client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            startup_timeout=start_timeout,
            stdout_file=progress,
            resources={"metadata": {"path": str(folder)}},
            extra_arguments=["--log-level=ERROR"],  # it warns that its local sockets are not encrypted
        )
        return progress.client.execute()


papermill_engines.register(ENGINE, WatchedEngine)
