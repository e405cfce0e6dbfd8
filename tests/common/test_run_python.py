"""Processes of their own: what they print comes back, and they end in time."""

import sys

import pytest

from vlmhelpers.common.processes import run_python

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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_time_and_memory_are_limited(run):
    assert run(LIMITED.format("while True: pass"), timeout=60).returncode < 0
    if sys.platform == "linux":
        assert "MemoryError" in run(LIMITED.format("'x' * 2**31"), timeout=60).stderr
