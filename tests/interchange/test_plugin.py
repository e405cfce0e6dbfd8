"""The plugin with the rewards of a run, executed as ms-swift does it, against the rewards here."""

import sys
from types import ModuleType

import pytest

from vlmhelpers.interchange.rewards import SCORES, unknown_rewards, write_plugin
from vlmhelpers.training.rewards import parse_rewards, split_rewards

REWARDS = r"exact_match; 0.1*length_within:3; matches:(An?|The) \w+\; no; number_within:0.5; -2*number_within:5%"
ANSWERS = [
    "A red hat.",
    "the RED hat",
    "<think>no</think>It costs $20",
    "20.4",
    "21",
    "A hat; no",
    "-19",
    "",
    "1 2 3 4",
    "20,40 €",
]
EXPECTED = ["a red hat 20", "It costs 20 dollars: $20"]


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """The rewards that a plugin makes known, by name."""
    package, known = ModuleType("swift.rewards"), {}
    package.ORM, package.orms = object, known
    monkeypatch.setitem(sys.modules, "swift", ModuleType("swift"))
    monkeypatch.setitem(sys.modules, "swift.rewards", package)

    def load(text):
        write_plugin(tmp_path / "rewards.py", text)
        exec(compile((tmp_path / "rewards.py").read_text(), "rewards.py", "exec"), {"__name__": "rewards"})
        return known

    return load


@pytest.mark.parametrize("expected", EXPECTED)
def test_the_plugin_scores_as_the_rewards_here(expected, plugin):
    known = plugin(REWARDS)
    assert list(known) == split_rewards(REWARDS)
    for text, ours in zip(split_rewards(REWARDS), parse_rewards(REWARDS), strict=True):
        answers = [expected] * len(ANSWERS)
        theirs = known[text]()(ANSWERS, solution=answers, prompt_id=["x"])
        assert theirs == pytest.approx(ours(completions=ANSWERS, answer=answers))
        assert len(set(theirs)) > 1 or text.startswith(("exact", "matches"))


def test_only_a_plugin_that_reads_numbers_needs_babel(tmp_path):
    for text, needed in (("exact_match", False), ("exact_match; 2*number_within:1", True)):
        write_plugin(tmp_path / "rewards.py", text)
        assert ("babel" in (tmp_path / "rewards.py").read_text()) is needed


def test_rewards_that_it_does_not_have():
    assert unknown_rewards("json_fields:0.1; exact_match") == ["json_fields:0.1"]
    assert not unknown_rewards("; ".join(SCORES))
