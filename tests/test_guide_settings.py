"""Every flag of the guide's command line has a row in docs/guide-settings.md, and every row a setting that is there."""

import argparse
import re
from pathlib import Path

import pytest

from vlmhelpers.cli.parser import make_parser
from vlmhelpers.training.config import RunConfig

PAGE = Path(__file__).parents[1] / "docs" / "guide-settings.md"
FLAGS = (
    "base-model dataset output-dir epochs batch-size learning-rate gradient-accumulation-steps max-seq-length lora-r "
    "lora-alpha logging-steps save-steps text-field image-field"
).split()
OTHERS = "output num-examples image prompt".split()
FIELDS = "name base_model dataset_path num_epochs model_type".split()

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| (?!---|in the guide)", line)
]


def test_every_flag_of_the_guide_has_its_row():
    named = [theirs for theirs, *_ in ROWS]
    expected = {f"`--{flag}`" for flag in FLAGS} | {f"`{field}`" for field in FIELDS}
    assert expected <= set(named)
    assert {theirs.strip("`").rpartition("--")[2] for theirs in named if "vision" in theirs} >= {*OTHERS}


@pytest.mark.parametrize(("ours", "default"), [row[1:3] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_row_names_a_setting_and_its_default(ours, default):
    name = ours.strip("`")
    if " " in name:
        command, _, argument = name.partition(" ")
        found = find_argument(command, argument)
        documented = re.search(r"\(?default: (\w+)\)?", found.help or "")
        actual = "required" if found.required else documented[1] if documented else "none"
    else:
        setting = RunConfig.described()[name]
        actual = "required" if setting.is_required else str(setting.default)
    assert default.strip("`") == actual


def find_argument(command, argument):
    """What argparse knows of a command's argument, or of a positional one."""
    commands = next(action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    known = commands.choices[command]._actions
    return next(action for action in known if argument in action.option_strings or argument == action.metavar)
