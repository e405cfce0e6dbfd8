"""Notebook 07 runs from the first to the last cell: the panel, driven by code, does all that it promises."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("07")


def test_every_claim_is_met(records):
    assert len(records["claims"]) == 14
    assert set(records["claims"].values()) == {"met"}


def test_the_run_learns_from_the_picture(records):
    assert records["base_exact_percent"] == 0 and records["tuned_exact_percent"] >= 90
    assert records["blank_exact_percent"] <= 10 and records["verdict"] == "It uses the image"


def test_it_was_stopped_on_the_way_and_its_answers_were_sampled_to_the_end(records):
    first, *_, last = records["sampled_at_steps"]
    assert 0 == first < records["stopped_at_step"] < last == 120


def test_the_panel_and_its_code_make_the_same_adapter(records):
    assert records["same_bits"] is True


def test_a_file_of_llama_factory_and_a_job_by_http_learn(records):
    first, *_, last = records["job_losses"]
    assert records["moved_exact_percent"] >= 90 and last < first / 2
