"""Notebook 04 runs from the first to the last cell, and measures what it claims."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("04")


def test_all_its_claims_are_met(records):
    assert len(records["claims"]) == 9
    assert set(records["claims"].values()) == {"met"}


def test_the_sample_is_drawn_and_kept_whole(records):
    assert (records["rows_kept"], records["test_rows"]) == (1000, 200)


def test_it_learns_json_by_looking_at_the_picture(records):
    assert records["base_exact_percent"] <= 5
    assert records["tuned_exact_percent"] >= 95
    assert records["blank_exact_percent"] <= 5
    assert records["same_answers_after_loading_percent"] == 100


def test_the_run_went_on_from_its_checkpoint(records):
    assert records["resumed_at_step"] == 100


def test_adapters_in_the_vision_tower_are_compared_on_the_same_rows(records):
    difference, low, high = records["vision_change_points"]
    assert low <= difference <= high
    assert round(records["tuned_exact_percent"] + difference, 1) == records["vision_exact_percent"]


def test_the_cap_makes_a_photo_fit(records):
    before, after = records["photo_tokens_before_and_after"]
    assert before > 15_301 and after <= 2048
