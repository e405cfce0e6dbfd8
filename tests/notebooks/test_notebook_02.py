"""Notebook 02 runs from the first to the last cell, and measures what it claims."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("02")


def test_new_behavior_on_wordings_that_were_not_trained(records):
    assert records["test_questions"] >= 100
    assert records["base_behavior_percent"] <= 5
    assert records["tuned_behavior_percent"] >= 95


def test_the_model_still_sees(records):
    assert records["test_pictures"] == 200
    assert records["base_pictures_percent"] >= 95
    assert abs(records["tuned_pictures_percent"] - records["base_pictures_percent"]) <= 2
    difference, low, high = records["pictures_change_points"]
    assert low <= difference <= high
    assert records["vision_bit_identical"] is True


def test_everyday_questions_keep_their_answers(records):
    assert records["everyday_questions_percent"] >= 90


def test_catastrophic_forgetting_and_replay(records):
    """Each run differs from one other run in one thing, and two seeds say the same."""
    kept = records["tuned_pictures_percent"]
    assert max(records["captain_only_pictures_of_each_seed"]) <= kept - 10
    assert max(records["all_layers_pictures_of_each_seed"]) <= kept - 8
    for run in ("text_alone", "replayed"):
        assert min(records[f"{run}_pictures_of_each_seed"]) >= max(records["all_layers_pictures_of_each_seed"]) + 5
    twice, once = (records[f"{run}_pictures_of_each_seed"] for run in ("twice_the_rate", "all_layers"))
    assert all(fewer < more for fewer, more in zip(twice, once, strict=True))
    for run in ("text_alone", "captain_only", "all_layers", "replayed"):
        assert len(records[f"{run}_pictures_of_each_seed"]) == 2
        assert records[f"{run}_behavior_percent"] >= 75


def test_content_is_asked_of_pictures_too(records):
    for run in ("captain_only", "all_layers", "replayed"):
        assert records[f"{run}_pictures_by_content_percent"] >= records[f"{run}_pictures_percent"]
    assert records["captain_only_pictures_by_content_percent"] > records["captain_only_pictures_percent"]


def test_rows_with_an_input_are_learned(records):
    assert records["as_an_input_percent"] >= 80


def test_checkpoints_are_kept_and_lead_to_the_same_adapter(records):
    assert records["checkpoints_kept"] == ["checkpoint-270", "checkpoint-360"]
    assert records["same_adapter_from_a_checkpoint"] is True


def test_the_guides_optimizer_trains_as_well(records):
    losses = records["optimizer_losses"]
    assert set(losses) == {"as above", "adamw_8bit", "the guide's"}
    assert max(losses.values()) <= 2 * losses["as above"]


def test_the_guide_trains_on_padding(records):
    assert records["guide_padding_trained_percent"] > 90


def test_every_claim_is_asked_and_met(records):
    assert set(records["claims"].values()) == {"met"}
    assert len(records["claims"]) == 13
    assert records["replayed_rows"] == 37
    assert set(records["headline"]) < set(records)
