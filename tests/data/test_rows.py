"""Rows on disk: they go with their process, however it ends."""

import os
import subprocess
import sys

import pytest

STORE = """
import sys, time
from vlmhelpers.data.rows import store_rows
from vlmhelpers.data.schema import FEATURES, make_row
dataset = store_rows((make_row("What?", f"Answer {i}.") for i in range(1000)), FEATURES)
print(len(dataset), flush=True)
time.sleep(sys.argv[1:] == ["wait"] and 60)
"""


def start(*arguments, folder):
    command = [sys.executable, "-c", STORE, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": str(folder)})
    assert process.stdout.readline().strip() == b"1000"
    return process


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="kills")
def test_rows_of_a_killed_process_go_at_the_next_start_and_those_of_a_living_one_stay(tmp_path):
    killed, living = start("wait", folder=tmp_path), start("wait", folder=tmp_path)
    killed.kill()
    killed.communicate()
    assert len(os.listdir(tmp_path)) == 2
    start(folder=tmp_path).communicate()
    (left,) = os.listdir(tmp_path)
    assert f"-{living.pid}-" in left and len(os.listdir(tmp_path / left)) == 1
    living.kill()
    living.communicate()
