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
    kept = records["tuned_pictures_percent"]
    assert records["captain_only_pictures_percent"] <= kept - 10
    assert records["all_layers_pictures_percent"] <= kept - 8
    assert records["all_layers_pictures_percent"] + 8 <= records["replayed_pictures_percent"]
    for run in ("captain_only", "all_layers", "replayed"):
        assert records[f"{run}_behavior_percent"] >= 75


def test_the_guide_trains_on_padding(records):
    assert records["guide_padding_trained_percent"] > 90


def test_every_claim_is_asked_and_met(records):
    assert set(records["claims"].values()) == {"met"}
    assert len(records["claims"]) == 9
    assert records["replayed_rows"] == 0
    assert set(records["headline"]) < set(records)
