"""A process that a run may seem to be."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def sleeper():
    """A process that does nothing, of a session of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    yield child
    child.kill()
    child.wait()
