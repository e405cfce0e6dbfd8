"""Python in a process of its own, which ends with this one."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.files import temporary_folder

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
    arguments: Sequence[str | Path],
    python: str = sys.executable,
    env: dict[str, str] | None = None,
    timeout: float | None = None,
) -> subprocess.CompletedProcess:
    """Runs `python SCRIPT ...` or `python -m MODULE ...` to its end, with the text that it printed in the result.

    It is ended when this process is interrupted, terminated or killed, and after `timeout` seconds: its return code is
    then not 0.
    """
    command = _tied(arguments, python)
    options = {"text": True, "encoding": "utf-8", "errors": "replace", "env": env}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, **pipes, **options) as child:
        clock = threading.Timer(timeout or 0, child.kill)
        try:
            if timeout:
                clock.start()
            # communicate() would close standard input at once.
            with child.stderr, child.stdout:
                outputs = _read_both(child)
            return subprocess.CompletedProcess(command, child.wait(), *outputs)
        except BaseException:
            child.kill()
            raise
        finally:
            clock.cancel()


@contextmanager
def running_python(
    arguments: Sequence[str | Path], log: str | Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen]:
    """`python SCRIPT ...` or `python -m MODULE ...` while the context lasts; what it prints goes to the file `log`.

    It is ended with the context, and when this process is interrupted, terminated or killed.
    """
    with open(log, "wb") as file:
        pipes = {"stdin": subprocess.PIPE, "stdout": file, "stderr": file}
        with subprocess.Popen(_tied(arguments), **pipes, env=env) as child:
            try:
                yield child
            finally:
                child.kill()


def _tied(arguments, python=sys.executable):
    return [python, "-c", _TIED, *map(str, arguments)]


def run_trial(what: str, module: str, content: object, timeout: float) -> tuple[bool, str]:
    """(whether `python -m MODULE FILE` ended well, what it printed), of a FILE with `content` as JSON.

    For what others wrote, which the module tries within `limit_resources`. Raises RuntimeError, which names `what`, for
    an error of the module's own.
    """
    with temporary_folder() as folder:
        file = Path(folder) / "content.json"
        file.write_text(json.dumps(content), encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        done = run_python(["-m", module, file], env=environment, timeout=timeout)
    if done.returncode == 1 and "Traceback" in done.stderr:
        raise CannotRun(f"the trial of {what} failed: {done.stderr.strip().splitlines()[-1]}")
    return done.returncode == 0, done.stdout.strip()


def limit_resources(seconds: int, gibibytes: int) -> None:
    """Gives this process so much more CPU time (it is killed then) and memory (MemoryError then). Not on Windows."""
    try:
        import resource
    except ImportError:
        return
    used = int(time.process_time()) + 1
    memory = psutil.Process().memory_info().vms + gibibytes * 2**30
    for kind, most in ((resource.RLIMIT_CPU, used + seconds), (resource.RLIMIT_AS, memory)):
        hard = resource.getrlimit(kind)[1]
        with suppress(ValueError, OSError):  # macOS does not limit memory
            resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _read_both(child):
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        errors = pool.submit(child.stderr.read)
        return child.stdout.read(), errors.result()
