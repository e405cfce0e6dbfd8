"""Scores against numbers worked out by hand or by another library."""

import numpy as np
import pytest
from PIL import Image

from vlmhelpers.evaluation import (
    blank_images,
    compare,
    evaluate,
    parse_fields,
    parsed,
    price_error,
    share,
    word_shift,
)

GOOD = "Product: Red Hat, Color: Navy, Full Price: $20.00"


def test_fields_are_read_from_lines_and_commas():
    assert parse_fields(GOOD) == {"Product": "Red Hat", "Color": "Navy", "Full Price": "$20.00"}
    assert parse_fields("Title: a, b and c\nPrice: 3") == {"Title": "a, b and c", "Price": "3"}
    assert parse_fields("A red hat for $20.") == {}


def test_fields_are_read_from_a_json_object():
    assert parse_fields('{"Product": "Red Hat", "sizes": [1, 2], "price": 20}') == {
        "Product": "Red Hat", "sizes": "[1, 2]", "price": "20",
    }  # fmt: skip
    assert parse_fields('["Red Hat"]') == parse_fields('{"Product": ') == {}
    assert parse_fields("12") == {}


@pytest.mark.parametrize("right, n", [(0, 200), (200, 200), (190, 200), (1, 2)])
def test_wilson_interval_solves_its_equation(right, n):
    score = share([True] * right + [False] * (n - right))
    assert (score.value, score.n) == (right / n, n)
    assert 0 <= score.low <= score.value <= score.high <= 1 and score.low < score.high
    for bound in {score.low, score.high} - {0.0, 1.0}:  # the bounds are the shares 1.96 standard errors away
        assert abs(score.value - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows to score"):
        share([])


def test_exact_match_overall_and_by_field(rows_of):
    dataset = rows_of([("?", GOOD, []), ("?", GOOD, []), ("?", "plain words", [])])
    found = evaluate([f" {GOOD}\n", GOOD.replace("Navy", "Rose"), "plain words"], dataset)
    assert found.hits == (True, False, True)
    assert {name: (score.value, score.n) for name, score in found.scores.items()} == {
        "exact match": (2 / 3, 3),
        "Product": (1.0, 2),
        "Color": (0.5, 2),
        "Full Price": (1.0, 2),
    }
    assert "66.7%" in repr(found)


def test_a_missing_answer_is_refused(rows_of):
    with pytest.raises(ValueError, match="1 answers for 2 rows"):
        evaluate([GOOD], rows_of([("?", GOOD, []), ("?", GOOD, [])]))


def test_comparison_is_paired(rows_of):
    dataset = rows_of([("?", str(i % 2), []) for i in range(100)])
    base = evaluate(["0"] * 100, dataset)
    tuned = evaluate(["1"] + ["0"] + [str(i % 2) for i in range(2, 100)], dataset)
    found = compare(base, tuned)
    assert found.gained == tuple(range(3, 100, 2)) and found.lost == (0,)
    assert found.difference == pytest.approx(0.48)
    # the normal approximation of a paired difference
    change = np.array(tuned.hits, float) - np.array(base.hits, float)
    half = 1.96 * change.std() / 10
    assert (found.low, found.high) == pytest.approx((0.48 - half, 0.48 + half), abs=0.015)
    assert repr(found).startswith("tuned minus base: +48.0% [")
    assert repr(compare(base, tuned, names=("one", "other"))).startswith("other minus one: +48.0% [")
    assert compare(base, base).difference == compare(base, base).high == 0.0
    with pytest.raises(ValueError, match="100 rows against 1"):
        compare(base, evaluate(["0"], dataset.select([0])))


def test_blank_pictures_keep_size_and_text(rows_of):
    dataset = rows_of([("?", "a", [Image.new("RGB", (30, 20), "red")]), ("?", "b", [])])
    blank = blank_images(dataset)
    assert blank[0]["images"][0].size == (30, 20)
    assert blank[0]["images"][0].getcolors() == [(600, (128, 128, 128))]
    assert blank[1]["images"] == [] and blank[0]["messages"] == dataset[0]["messages"]
    assert evaluate(["a", "b"], blank).scores["exact match"].value == 1.0


def test_words_that_came_and_went_are_counted_once_per_answer():
    before = ["A red hat.", "A red bag.", "It is 20."]
    after = ["Aye aye. A red hat.", "Aye. A bag.", "AYE"]
    assert word_shift(before, after, top=2) == [("aye", 0, 1), ("is", pytest.approx(1 / 3), 0)]
    assert ("hat", pytest.approx(1 / 3), pytest.approx(1 / 3)) in word_shift(before, after)
    assert all(word.isalpha() for word, _, _ in word_shift(before, after))


@pytest.mark.parametrize("before, after", [(["a"], ["a", "b"]), ([], [])])
def test_words_of_different_prompts_are_not_compared(before, after):
    with pytest.raises(ValueError, match="answers to the same prompts"):
        word_shift(before, after)


def test_the_share_of_answers_that_parse(rows_of):
    dataset = rows_of([("?", GOOD, [])] * 4)
    answers = [GOOD, "Full Price: 1, Color: Red, Product: x", "Product: x, Color: Red", "A hat."]
    assert parsed(answers, dataset).value == 0.5


def test_price_errors_in_the_currency(rows_of):
    prices = ["$2,150.00", "100.0", "10", "1 USD"]
    dataset = rows_of([("?", f"Product: hat, Full Price: {price}", []) for price in prices])
    answers = ["Full Price: 2150", "Full Price: $90.50", "Product: hat", "Full Price: about a dollar"]
    error = price_error(answers, dataset)  # errors of 0, 9.5, 10 and 1
    assert (error.value, error.mean, error.n) == (5.25, 5.125, 4) and 0 <= error.low < error.value < error.high <= 10
    assert str(error).startswith("5.25")
    assert price_error(["Full Price: 50"] * 4, dataset).value == pytest.approx((49 + 50) / 2)
    with pytest.raises(ValueError, match="no reference has a number under 'Weight'"):
        price_error(answers, dataset, field="Weight")


def test_the_interval_of_the_price_error_covers_the_true_median(rows_of):
    """Of errors drawn with a known median, about 95 in 100 intervals hold it."""
    rng, inside = np.random.default_rng(0), 0
    dataset = rows_of([("?", "Full Price: 0", [])] * 41)
    for _ in range(60):
        answers = [f"Full Price: {value:.3f}" for value in rng.exponential(10, size=41)]
        error = price_error(answers, dataset, resamples=400)
        inside += error.low <= 10 * np.log(2) <= error.high
    assert inside >= 52
