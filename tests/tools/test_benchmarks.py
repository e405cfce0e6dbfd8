"""Every benchmark runs at its smallest size, and prints its ratios."""

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from several_processes import call

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SMALLEST = {
    "answers.py": ("--rows 4 --side 64 --batch 2 --tokens 8 --pairs 1", "generate"),
    "photo_batches.py": ("--rows 2 --side 400 --tokens 16 --batch 2 --pairs 1", "ours, later epochs"),
    "training_loop.py": (
        "--rows 4 --side 32 --batch 2 --steps 1 --pairs 1 --ways 'ours, later epochs'",
        "ours, later epochs",
    ),
    "whole_commands.py": ("--rows 2 --side 32 --tokens 4 --tasks help --pairs 1", None),
    "whole_epochs.py": ("--rows 4 --side 32 --steps 1 --pairs 1", "Trl"),
}


def test_there_is_a_size_for_each_script():
    scripts = {path.name for path in BENCHMARKS.glob("*.py") if "argparse" in path.read_text()}
    assert scripts == set(SMALLEST)


def run_script(path, arguments):
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path), *arguments]
    runpy.run_path(str(path), run_name="__main__")


@pytest.mark.slow  # a process of its own for each way of training
@pytest.mark.parametrize("script", SMALLEST)
def test_the_script_runs(script, tmp_path):
    arguments, way = SMALLEST[script]
    path = {"PYTHONPATH": str(BENCHMARKS.parent)}
    codes, printed = call(
        tmp_path / "printed.txt", run_script, BENCHMARKS / script, shlex.split(arguments), environment=path
    )
    assert codes == [0], printed[-3000:]
    measured = json.loads(next(line for line in printed.splitlines() if line.startswith("{")))
    if way is None:
        assert measured["seconds"]["Ours"] > 0
        return
    (reference,) = measured["seconds"].keys() - measured["ratios"].keys()
    assert measured["ratios"][way] > 0 and measured["seconds"][reference] > 0
    assert f"{measured['ratios'][way]:.2f} x as fast as {reference}" in printed
