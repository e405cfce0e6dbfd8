"""Differences, intervals and p-values against formulas and by hand; slices and worst rows of small tables."""

from math import comb

import numpy as np
import pytest
from PIL import Image

from vlmhelpers.common.chart import Chart
from vlmhelpers.data.prompting import prompted
from vlmhelpers.data.schema import answer_of, message_text
from vlmhelpers.evaluation.comparison import compare
from vlmhelpers.evaluation.scoring import Evaluation, Score, evaluate, share
from vlmhelpers.evaluation.slices import by_slice, slice_names, worst_rows


def of_hits(hits):
    """An Evaluation of these hits."""
    return Evaluation({"exact match": share(list(hits))}, tuple(hits), {"exact match": tuple(hits)})


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
    assert repr(found).startswith("tuned minus base: +48.0 points [")
    assert repr(found).endswith("], p < 0.001; 49 rows gained, 1 lost")
    assert repr(compare(base, tuned, names=("one", "other"))).startswith("other minus one: +48.0 points [")
    assert compare(base, base).difference == 0.0
    assert compare(base, base).p_value == compare(base, base).mcnemar == 1.0
    with pytest.raises(ValueError, match="100 rows against 1"):
        compare(base, evaluate(["0"], dataset.select([0])))


@pytest.mark.parametrize("before, after, ends", [(0, 0, (-1, 1)), (0, 1, (0, 1)), (1, 0, (-1, 0))])
def test_where_all_rows_changed_alike_the_interval_still_has_a_width(before, after, ends):
    found = compare(of_hits([bool(before)] * 50), of_hits([bool(after)] * 50))
    unseen = share([False] * 50).high
    change = after - before
    assert found.difference == change and 0.05 < unseen < 0.1
    assert (found.low, found.high) == pytest.approx((max(-1, change - unseen), min(1, change + unseen)))
    assert ends[0] <= found.low < found.high <= ends[1]


@pytest.mark.parametrize("gained, lost", [(9, 2), (2, 9), (5, 5), (12, 0), (1, 0), (30, 14)])
def test_p_values_by_hand(gained, lost):
    base = of_hits([False] * gained + [True] * lost + [True] * 20)
    tuned = of_hits([True] * gained + [False] * lost + [True] * 20)
    found = compare(base, tuned, resamples=40_000)
    n, fewer = gained + lost, min(gained, lost)
    exact = min(1, sum(comb(n, k) + comb(n, n - k) for k in range(fewer + 1)) / 2**n)
    assert found.mcnemar == pytest.approx(exact)
    assert found.p_value == pytest.approx(exact, abs=0.01)  # of hits, both are the sign test


def test_a_p_value_is_never_zero():
    found = compare(of_hits([False] * 200), of_hits([True] * 200), resamples=999)
    assert found.p_value == 1 / 1000 and found.mcnemar == 2 / 2**200
    assert (found.difference, found.high) == (1, 1) and found.low > 0.98


def test_p_values_of_no_difference_are_uniform():
    """Of pairs that differ by chance only, about 5 in 100 fall below 0.05."""
    rng = np.random.default_rng(0)
    pairs = rng.random((400, 2, 150)) < 0.6
    values = [compare(of_hits(a.tolist()), of_hits(b.tolist()), resamples=400).p_value for a, b in pairs]
    assert 0.02 <= np.mean(np.array(values) < 0.05) <= 0.08


def graded(values):
    """An Evaluation whose score "similarity" has these values."""
    known = [value for value in values if value is not None]
    scores = {"similarity": Score(float(np.mean(known)), 0.0, 1.0, len(known))}
    return Evaluation(scores, (False,) * len(values), {"similarity": tuple(values)})


def test_any_row_wise_score_is_compared_over_the_rows_that_have_it():
    base, tuned = graded([0.5, 0.5, None, 0.75, 0.25]), graded([0.75, 0.25, 1.0, 1.0, None])
    found = compare(base, tuned, metric="similarity")
    assert (found.difference, found.n) == (pytest.approx(0.25 / 3), 3)
    assert (found.gained, found.lost) == ((0, 3), (1,))
    # of the eight ways to put the signs before three times 0.25, all reach the observed sum
    assert found.p_value == 1.0
    assert "points of similarity" in repr(found)
    with pytest.raises(ValueError, match="no value per row of 'BLEU': choose one of exact match, similarity"):
        compare(base, tuned, metric="BLEU")


def test_three_models_make_three_pairs():
    base, asked, tuned = of_hits([False] * 40), of_hits([True] * 20 + [False] * 20), of_hits([True] * 39 + [False])
    found = compare(base, tuned, asked)
    assert [pair.names for pair in found.pairs] == [("base", "tuned"), ("base", "prompted"), ("prompted", "tuned")]
    assert [pair.difference for pair in found.pairs] == pytest.approx([39 / 40, 20 / 40, 19 / 40])
    assert repr(found).count("\n") == 2
    page = found._repr_html_()
    assert page.count("<tr>") == 2 + 3 + 3 and "prompted minus base" in page and "+97.5" in page
    assert compare(base, tuned).pairs == (compare(base, tuned),)
    named = compare(base, tuned, asked, names=("old", "<new>"))
    assert named.pairs[2].names == ("prompted", "<new>") and "&lt;new&gt;" in named._repr_html_()


def test_the_figure_shows_scores_and_differences():
    base, tuned = of_hits([False] * 40), of_hits([True] * 39 + [False])
    figure = compare(base, tuned).plot()
    assert isinstance(figure, Chart)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["base", "tuned"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["tuned minus base"]
    assert {text.get_text() for text in left.texts} == {"0.0", "97.5"}
    assert [0, 0] in [list(line.get_xdata()) for line in right.lines]  # the line at zero
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_a_prompted_row_begins_with_the_instruction(rows_of, picture):
    dataset = rows_of([("What is it?", "a mug", [picture]), ("Say hi.", "hi", [])])
    asked = prompted(dataset, "Answer in one line.", examples=["a hat", "a bag"])
    prompt = message_text(asked[0]["messages"][0])
    assert prompt == "Answer in one line.\nExamples of answers:\na hat\na bag\n\nWhat is it?"
    assert [part["type"] for part in asked[0]["messages"][0]["content"]] == ["image", "text", "text"]
    assert message_text(prompted(dataset, "Be brief.")[1]["messages"][0]) == "Be brief.\n\nSay hi."
    assert answer_of(asked[1]) == "hi" and asked.features == dataset.features
    assert asked[0]["images"][0].tobytes() == dataset[0]["images"][0].tobytes()
    assert message_text(dataset[0]["messages"][0]) == "What is it?"  # the given rows stay


@pytest.fixture
def products(rows_of):
    """24 rows: a color by threes, prices from 10 to 240, three sizes of pictures."""
    rows = []
    for i in range(24):
        image = [Image.new("RGB", (10 * (1 + i % 3), 10))]
        rows.append(
            ("?", f"Product: hat {'x' * i}, Color: {['Red', 'Blue', 'Jade'][i // 8]}, Price: ${10 * i + 10}", image)
        )
    return rows_of(rows).add_column("shop", ["a"] * 20 + ["b"] * 4)


def test_slices_put_the_worst_first(products):
    base = of_hits([False] * 24)
    tuned = of_hits([True] * 8 + [False] * 6 + [True] * 10)
    table = by_slice(products, {"base": base, "tuned": tuned}, "Color")
    assert list(table.index) == ["Blue", "Red", "Jade"] and table.index.name == "Color"
    assert table["tuned %"].to_list() == [25.0, 100.0, 100.0] and table["rows"].to_list() == [8, 8, 8]
    assert table["difference"].to_list() == [25.0, 100.0, 100.0]
    assert table.loc["Blue", "tuned 95%"] == f"[{100 * share([True] * 2 + [False] * 6).low:.1f}, 59.1]"
    assert set(table["note"]) == {"under 10 rows"} and "<table" in table._repr_html_()
    by_shop = by_slice(products, {"tuned": tuned}, "shop")
    assert by_shop["note"].to_dict() == {"a": "", "b": "under 10 rows"} and "difference" not in by_shop


def test_slices_of_a_graded_score_leave_out_rows_without_a_value(products):
    scored = graded([0.25, 0.75, None, 0.5] * 6)
    table = by_slice(products, {"tuned": scored}, "Color", metric="similarity")
    assert table["tuned %"].to_list() == [50.0] * 3 and table["rows"].to_list() == [8] * 3
    low, high = map(float, table.loc["Red", "tuned 95%"].strip("[]").split(", "))
    assert 25 <= low < 50 < high <= 75


def test_slices_of_numbers_are_bands(products):
    assert slice_names(products, "image size")[:4] == ["100", "200", "300", "100"]
    bands = slice_names(products, "price band")
    assert sorted(set(bands), key=bands.index) == ["10 to 60", "70 to 120", "130 to 180", "190 to 240"]
    lengths = slice_names(products, "answer length")
    assert len(set(lengths)) == 4
    assert slice_names(products, lambda row: len(row["images"])) == ["1"] * 24


def test_rows_without_the_field_are_a_slice_of_their_own(rows_of):
    dataset = rows_of([("?", "Color: Red", []), ("?", "plain words", [])])
    assert slice_names(dataset, "Color") == ["Red", "no Color"]
    assert slice_names(dataset, "image size") == ["no picture", "no picture"]


def test_unknown_slices_are_refused_with_a_list(products):
    with pytest.raises(ValueError, match="'Size': choose one of shop, Product, Color, Price, price band, image size"):
        by_slice(products, {"tuned": of_hits([True] * 24)}, "Size")
    with pytest.raises(ValueError, match="'tuned' has 25 rows, the dataset 24"):
        by_slice(products, {"tuned": of_hits([True] * 25)}, "Color")


def test_worst_rows_are_the_least_similar(rows_of):
    dataset = rows_of([("?", "a red hat", [])] * 4)
    answers = ["a red hat", "a red bat", "xyz", "<think>a red hat</think>a red"]
    found = evaluate(answers, dataset)
    assert worst_rows(dataset, found, answers=answers) == [2, 3, 1]
    assert worst_rows(dataset, found, k=1, answers=answers) == [2]
    assert worst_rows(dataset, [1.0, 0.5, None, 0.25]) == [3, 1]
    with pytest.raises(ValueError, match="2 values for 4 rows"):
        worst_rows(dataset, [1.0, 0.5])
