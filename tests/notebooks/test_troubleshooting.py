"""The page on troubleshooting runs to its last cell; each failure shows itself, and each remedy helps."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("troubleshooting")


def test_all_its_claims_are_met(records):
    assert len(records["claims"]) == 14
    assert set(records["claims"].values()) == {"met"}


def test_the_remedies_for_memory_are_worth_it(records):
    before, after = records["memory_before_and_after_gib"]
    assert after < before / 2


def test_only_one_way_to_set_a_cap_has_an_effect(records):
    tokens = records["tokens_with_each_cap"]
    assert tokens.pop("vlm.models.set_max_pixels") < min(tokens["none"], tokens["image_processor.max_pixels"])


def test_the_collator_trains_the_answer_alone(records):
    trained = records["trained_tokens"]
    assert 0 < trained["here"] < trained["TRL"]
