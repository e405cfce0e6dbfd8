"""The short form of `make chaos`, with a fixed seed, and that it notices what is not kept."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Jobs that each break one promise, and the attack that shows it.
CARELESS = """
import json, random, subprocess, sys, time
from pathlib import Path
from chaos.attacks import Failed, Try, undisturbed
from chaos.jobs import Job
from chaos.loop import failure_of, folder_of_try
from vlmhelpers.common.files import atomic_file

def write_slowly(file):
    for number in range(30):
        print(number, file=file, flush=True)
        time.sleep(0.02)

def careful():
    with atomic_file("out") as file:
        write_slowly(file)

def half():
    with open("out", "w") as file:
        write_slowly(file)

def other():
    with open("out", "a") as file:
        file.write("more")

def leaving():
    Path("out.part").touch()
    Path("out").touch()

def raising():
    files = [open("out", "w") for _ in range(30)]

def silent():
    try:
        raising()
    except OSError:
        return 1

def parent():
    child = subprocess.Popen(["sleep", "60"])
    Path("out").touch()

def failure(run, attack):
    job = Job(run.__name__, run, {"out": "out"})
    try:
        with folder_of_try(scratch, False) as base:
            plain = undisturbed(Try(job, base, False, random.Random(0)))
        with folder_of_try(scratch, False) as base:
            return failure_of(Try(job, base, False, random.Random(0), plain), attack)
    except Failed as failed:
        return str(failed)

scratch = Path(sys.argv[1])
pairs = [(careful, "KILL"), (half, "KILL"), (other, "cut"), (leaving, "TERM"), (parent, "KILL")]
pairs += [(raising, "open files"), (silent, "open files")]
print(json.dumps({run.__name__: failure(run, attack) for run, attack in pairs}))
"""


def run(*arguments):
    paths = [str(ROOT / name) for name in (".", "tools", "tests/helpers")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_every_job_survives_an_attack():
    done = run("-m", "chaos", "--tries", "1", "--seed", "15")
    assert done.returncode == 0 and "14 of 14 tries survived" in done.stdout, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
def test_broken_promises_are_noticed(tmp_path):
    done = run("-c", CARELESS, str(tmp_path))
    found = json.loads(done.stdout)
    assert found.pop("careful") is None and found.pop("raising").startswith("ended with a traceback: OSError")
    assert found == {
        "half": "half is there: out",
        "other": "ended well with another result: out",
        "leaving": "left behind: work/out.part",
        "parent": "runs on: sleep 60",
        "silent": "ended without a word, with 1",
    }
