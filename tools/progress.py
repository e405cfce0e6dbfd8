"""Shows how far a notebook is while papermill runs it, on a terminal as well as in a log."""

import shutil
import sys
import threading
import time

from papermill.engines import NBClientEngine, papermill_engines

ENGINE = "watched"  # the name under which papermill finds the engine below


class Progress:
    """Shows the cell that runs, the time since the notebook began, and the last line that the cell printed.

    On a terminal one line is drawn again and again; a log gets a line every ten seconds. Use it as a context
    manager, and as the file that papermill copies the cells' output to.
    """

    def __init__(self, total):
        self.total = total
        self.number = 0
        self.message = "starting Python"
        self.started = time.monotonic()
        self.on_terminal = sys.stdout.isatty()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._draw_until_over, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()
        if self.on_terminal:
            print("\r\033[K", end="", flush=True)

    def begin(self, number):
        """A cell begins: `number` counts from 1."""
        self.number, self.message = number, ""

    def write(self, text):
        lines = text.replace("\r", "\n").split("\n")
        self.message = next((line.strip() for line in reversed(lines) if line.strip()), self.message)

    def flush(self):
        pass  # part of being a file; the thread draws

    def elapsed(self):
        """Minutes and seconds since the notebook began, as 2:05."""
        seconds = int(time.monotonic() - self.started)
        return f"{seconds // 60}:{seconds % 60:02d}"

    def line(self):
        """What is shown now, no wider than the terminal."""
        text = f"      cell {self.number}/{self.total}  {self.elapsed()}  {self.message}"
        return text[: shutil.get_terminal_size().columns - 1]

    def _draw_until_over(self):
        while not self._over.wait(0.5 if self.on_terminal else 10):
            if self.on_terminal:
                print(f"\r\033[K{self.line()}", end="", flush=True)
            else:
                print(self.line(), flush=True)


class WatchedEngine(NBClientEngine):
    """Papermill's engine, which also tells each cell that begins to the `Progress` it copies stdout to."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, stdout_file=None, **options):
        mark_start = nb_man.cell_start

        def cell_start(cell, index, **more):
            cells = nb_man.nb.cells[: index + 1]  # the cell that papermill puts in for -p is not counted
            stdout_file.begin(sum("injected-parameters" not in c.metadata.get("tags", []) for c in cells))
            mark_start(cell, index, **more)

        nb_man.cell_start = cell_start
        return super().execute_managed_notebook(nb_man, kernel_name, stdout_file=stdout_file, **options)


papermill_engines.register(ENGINE, WatchedEngine)
