"""Processes of their own: what they print comes back, and they end in time."""

import subprocess
import sys
import time

import psutil
import pytest

from vlmhelpers.common.processes import run_python, running_python

LIMITED = """
from vlmhelpers.common.processes import limit_resources
limit_resources(seconds=1, gibibytes=1)
{}
"""


@pytest.fixture
def run(tmp_path):
    """Runs code in a process of its own."""

    def script(code, **options):
        (tmp_path / "script.py").write_text(code)
        return run_python([tmp_path / "script.py"], **options)

    return script


def test_output_errors_and_code_come_back(run):
    done = run("import sys; print('out'); sys.exit('wrong')")
    assert (done.stdout, done.stderr, done.returncode) == ("out\n", "wrong\n", 1)


def test_what_takes_longer_than_its_timeout_is_ended(run):
    assert run("import time; time.sleep(60)", timeout=0.5).returncode != 0


SLEEPING = "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)"
PARENT = """
import sys, time
from vlmhelpers.common.processes import running_python
with running_python(sys.argv[1:2], sys.argv[2]):
    print("runs", flush=True)
    time.sleep(60)
"""


def wait_for_number(log):
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.02)
    return int(log.read_text())


def test_what_runs_beside_ends_with_its_block(tmp_path):
    (tmp_path / "script.py").write_text(SLEEPING)
    with running_python([tmp_path / "script.py"], tmp_path / "log") as child:
        assert wait_for_number(tmp_path / "log") == child.pid and child.poll() is None
    assert child.returncode != 0


@pytest.mark.slow
def test_what_runs_beside_ends_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "script.py").write_text(SLEEPING)
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, tmp_path / "parent.py", tmp_path / "script.py", tmp_path / "log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        parent.stdout.readline()
        child = psutil.Process(wait_for_number(tmp_path / "log"))
        parent.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_time_and_memory_are_limited(run):
    assert run(LIMITED.format("while True: pass"), timeout=60).returncode < 0
    if sys.platform == "linux":
        assert "MemoryError" in run(LIMITED.format("'x' * 2**31"), timeout=60).stderr
