"""Notebook 01 runs from the first to the last cell, and measures what it claims."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("01")


def test_the_base_does_not_know_the_task(records):
    assert records["test_rows"] >= 200
    assert records["base_exact_percent"] <= 5


def test_the_tuned_model_does(records):
    assert records["tuned_exact_percent"] >= 95
    low, high = records["tuned_interval_percent"]
    assert low <= records["tuned_exact_percent"] <= high
    assert 0 < records["validation_loss"] < 0.2


def test_answers_depend_on_the_image(records):
    assert records["tuned_exact_percent"] - records["blank_exact_percent"] >= 50


def test_validation_lost_no_row(records):
    assert records["rows_kept"] == 384
    assert records["broken_kept"] + records["broken_rejected"] == records["broken_read"]
    assert records["broken_rejected"] >= 10


def test_all_claims_are_asked_and_met(records):
    assert len(records["claims"]) == 8 and set(records["claims"].values()) == {"met"}
