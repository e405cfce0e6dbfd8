"""Notebook 03 runs from the first to the last cell, and measures what it claims."""

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("03")


def test_rows_whose_picture_failed_are_left_out_and_counted(records):
    assert (records["rows_read"], records["rows_kept"]) == (850, 840)
    assert records["test_rows"] == 168


def test_every_claim_is_met(records):
    assert len(records["claims"]) == 14
    assert set(records["claims"].values()) == {"met"}


def test_titles_and_categories_are_read_from_the_picture(records):
    for name in ("product", "category"):
        assert records[f"base_{name}_percent"] <= 5
        assert records[f"tuned_{name}_percent"] >= 90
    assert records["blank_product_percent"] <= 10 and records["blank_category_percent"] <= 40
    assert records["parsed_percent"] >= 95


def test_prices_are_better_than_the_median_price(records):
    assert records["price_error"] <= records["price_error_of_the_median"] / 2


def test_tokens_are_those_of_the_published_model(records):
    assert records["tokens_of_1_4_16_crops"] == [313, 757, 2509]


def test_shapes_of_the_published_model(records):
    shapes = records["published_shapes"]
    assert shapes["tiles"] == [1, 5, 3, 336, 336] and shapes["CLIP features"] == [5, 577, 1024]
    assert shapes["HD transform"] == [757, 4096] and shapes["projector"] == [757, 3072]
    assert shapes["put together"] == shapes["text embeddings"] and shapes["put together"][2] == 3072
    assert shapes["logits"] == [*shapes["put together"][:2], 32064]


def test_the_validation_loss_falls_to_the_end(records):
    losses = records["evaluation_losses"]
    assert len(losses) == 10 and losses[-1] <= losses[0] / 5  # a tenth to a seventh, by the machine
    assert records["tensorboard_losses"] == {"train/loss": 10, "eval/loss": 5}


def test_the_guides_adapters_miss_the_language_model_and_its_labels_are_padding(records):
    assert records["guide_language_parameters_trained"] == 0
    assert records["guide_padding_trained_percent"] > 80


def test_the_saved_adapter_answers_as_before(records):
    assert records["same_answers_after_loading_percent"] == 100
    assert records["pipeline_answers"] == 4


def test_the_onnx_export_answers_as_the_model_does(records):
    assert records["onnx_distance"] <= 1e-4
