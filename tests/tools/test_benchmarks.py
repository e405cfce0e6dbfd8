"""Every benchmark runs at its smallest size, and prints its ratios."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = {
    "answers.py": ("--rows 4 --side 64 --batch 2 --tokens 8 --pairs 1", "generate"),
    "photo_batches.py": ("--rows 2 --side 400 --tokens 16 --batch 2 --pairs 1", "ours, later epochs"),
    "training_loop.py": (
        "--rows 4 --side 32 --batch 2 --steps 1 --pairs 1 --ways 'ours, later epochs'",
        "ours, later epochs",
    ),
}


def test_there_is_a_size_for_each_script():
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if "argparse" in path.read_text()}
    assert scripts == set(SMALLEST)


@pytest.mark.slow  # a process of its own for each way of training
@pytest.mark.parametrize("script", SMALLEST)
def test_the_script_runs(script):
    arguments, way = SMALLEST[script]
    command = [sys.executable, BENCHMARKS / script, *shlex.split(arguments)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    measured = json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))
    (reference,) = measured["seconds"].keys() - measured["ratios"].keys()
    assert measured["ratios"][way] > 0 and measured["seconds"][reference] > 0
    assert f"{measured['ratios'][way]:.2f} x as fast as {reference}" in run.stdout
