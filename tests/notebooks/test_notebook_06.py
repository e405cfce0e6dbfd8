"""Notebook 06 runs from the first to the last cell: every method trains, and what goes wrong is shown."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("06")


def test_every_claim_is_met(records):
    assert len(records["claims"]) == 16
    assert set(records["claims"].values()) == {"met"}


def test_each_choice_of_weights_learns_the_task_and_replay_keeps_the_captions(records):
    assert records["task_percent"].keys() == {"full", "freeze", "LoRA", "QLoRA", "LoRA + replay"}
    assert min(records["task_percent"].values()) >= 95
    kept = dict(records["captions_kept_percent"])
    assert kept.pop("LoRA + replay") >= 90
    assert max(kept.values()) <= 66


def test_more_trained_weights_take_more_memory(records):
    full, freeze, lora = (records["weights"][way] for way in ("full", "freeze", "LoRA"))
    assert full["trained"] > lora["trained"] > freeze["trained"]
    assert full["AdamW, MB"] > lora["AdamW, MB"] > freeze["AdamW, MB"]
    assert full["saved, MB"] > lora["saved, MB"]


def test_preferred_answers_are_written_freely(records):
    preferred = dict(records["preferred_percent"])
    assert preferred.pop("base") == 0
    assert preferred.pop("KTO") >= 90
    assert min(preferred.values()) >= 95


def test_a_perfect_accuracy_can_hide_a_collapse(records):
    alone, held = records["collapse"]["sigmoid"], records["collapse"]["sigmoid + sft"]
    assert alone["accuracy"] == held["accuracy"] == 1
    assert alone["margin"] > held["margin"]
    assert alone["preferred"] <= 0.05 < 0.9 <= held["preferred"]


def test_rewards_lead_to_right_answers_until_they_are_hacked(records):
    exact = dict(records["exact_by_rewards_percent"])
    assert exact.pop("start") < 60
    assert len(exact) == 6 and min(exact.values()) >= 95
    free, held = (records["hacking"][f"PPO, beta {beta}"] for beta in (0.0, 0.3))
    assert free["last reward"] > free["of right answers"] and free["exact"] <= 0.2
    assert held["exact"] >= 0.5


def test_the_reward_model_knows_the_style_and_not_the_truth(records):
    ranks = records["reward_model_ranks_percent"]
    assert ranks["held-out"] >= 95
    assert ranks["held-out and untrue"] >= 70
    assert 35 <= ranks["untrue"] <= 65


def test_forward_kl_teaches_what_the_student_never_said(records):
    distilled = records["distilled_percent"]
    assert distilled["base"] == 0
    assert distilled["forward KL"] >= 90 > distilled["reverse KL"]
