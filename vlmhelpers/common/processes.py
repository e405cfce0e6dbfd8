"""Python in a process of its own, which ends with this one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Its standard input is a pipe from this process, whose end it sees however this process dies.
_TIED = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv = sys.argv[1:]
if sys.argv[0] == "-m":
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
else:
    sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_python(
    arguments: Sequence[str | Path], python: str = sys.executable, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Runs `python SCRIPT ...` or `python -m MODULE ...` to its end, with the text that it printed in the result.

    It is ended when this process is interrupted, terminated or killed.
    """
    command = [python, "-c", _TIED, *map(str, arguments)]
    options = {"text": True, "encoding": "utf-8", "errors": "replace", "env": env}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, **options) as child:
        try:
            # communicate() would close standard input at once.
            with child.stderr, child.stdout:
                outputs = _read_both(child)
            return subprocess.CompletedProcess(command, child.wait(), *outputs)
        except BaseException:
            child.kill()
            raise


def _read_both(child):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(child.stderr.read)
        return child.stdout.read(), errors.result()
