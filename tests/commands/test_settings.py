"""The settings of the steps: each is in one group, and what they come to for a model that answers."""

import pytest

from vlmhelpers.commands.settings import (
    Answering,
    Chatting,
    Evaluating,
    Exporting,
    Generating,
    Merging,
    Pushing,
    grouped,
)


@pytest.mark.parametrize("kind", [Chatting, Evaluating, Exporting, Generating, Merging, Pushing])
def test_every_setting_is_described_and_in_one_group(kind):
    names = [name for group in grouped(kind).values() for name in group]
    assert sorted(names) == sorted(kind.described())
    assert all(setting.description for setting in kind.described().values())
    assert grouped(kind)[""][0] in ("model", "folder")


def test_answers_are_greedy_unless_a_temperature_is_set():
    assert Answering(system="Be brief.").options == {}
    assert Answering(max_new_tokens=7, top_p=0.5).options == {"max_new_tokens": 7}
    sampled = Answering(temperature=0.7, top_p=0.9).options
    assert sampled == {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0}


def test_texts_are_converted_and_wrong_ones_named():
    settings = Evaluating(model="run", rows="5", base="no", metrics="none")
    assert (settings.rows, settings.base, settings.metrics) == (5, False, None)
    assert Evaluating.problems({"model": "", "top_p": "2"}).keys() == {"model", "top_p"}
