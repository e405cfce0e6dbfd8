"""Differences, intervals and p-values against formulas and by hand; charts show what they were given."""

from math import comb

import numpy as np
import pytest

from vlmhelpers.common.chart import Chart
from vlmhelpers.evaluation.comparison import compare, plot_scores, plot_tradeoff
from vlmhelpers.evaluation.scoring import Evaluation, evaluate
from vlmhelpers.evaluation.statistics import Score, permutation_test, share


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
    found = compare(base, tuned)
    n, fewer = gained + lost, min(gained, lost)
    exact = min(1, sum(comb(n, k) + comb(n, n - k) for k in range(fewer + 1)) / 2**n)
    assert found.mcnemar == pytest.approx(exact)
    changes = np.array([1.0] * gained + [-1.0] * lost)
    for p in (found.p_value, permutation_test(changes, resamples=40_000)):
        assert p == pytest.approx(exact, abs=0.01)  # of hits, both are the sign test


@pytest.mark.parametrize("gained, lost, disagree", [(5, 0, True), (6, 0, False), (3, 3, False), (30, 2, False)])
def test_where_interval_and_p_disagree_it_is_said(gained, lost, disagree):
    """All of 5 changed rows gained: few resamples have none of them, yet one in 16 coins falls so, on either side."""
    base = of_hits([False] * gained + [True] * lost + [True] * 180)
    found = compare(base, of_hits([True] * gained + [False] * lost + [True] * 180))
    assert ((not found.low <= 0 <= found.high) != (found.p_value < 0.05)) == disagree
    assert ("interval and p disagree: go by p" in repr(found)) == disagree
    assert ("interval and p disagree" in found._repr_html_()) == disagree


def test_a_p_value_is_never_zero():
    found = compare(of_hits([False] * 200), of_hits([True] * 200))
    assert found.p_value == 1 / 10_001 and found.mcnemar == 2 / 2**200
    assert permutation_test(np.ones(200), resamples=999) == 1 / 1000
    assert (found.difference, found.high) == (1, 1) and found.low > 0.98


def test_p_values_of_no_difference_are_uniform():
    """Of pairs that differ by chance only, about 5 in 100 fall below 0.05."""
    rng = np.random.default_rng(0)
    pairs = rng.random((400, 2, 150)) < 0.6
    values = [permutation_test(b.astype(float) - a, resamples=400) for a, b in pairs]
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


def test_bars_stand_as_high_as_the_scores(rows_of, picture):
    dataset = rows_of([("?", "Color: Red, Price: 3", [picture])] * 4)
    half = evaluate(["Color: Red, Price: 3", "Color: Red, Price: 4"] * 2, dataset)
    none = evaluate(["?"] * 4, dataset)
    figure = plot_scores({"base": none, "tuned": half}, dataset, [0, 3], {"base": ["?"] * 4})
    *cells, bars = figure.axes
    assert [len(axes.images) for axes in cells] == [1, 0, 1, 0]  # a text below each image
    assert cells[3].texts[0].get_text() == "expected: Color: Red, Price: 3\nbase: ?"
    heights = [patch.get_height() for patch in bars.patches]
    assert heights == [0, 0, 0, 50, 100, 50]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["exact match", "Color", "Price"]
    assert figure._repr_png_().startswith(b"\x89PNG")


AWKWARD = [
    "Sure! Here is a long description of the product that you have shown me. " * 20,
    '```json\n{"price": "$5_% & $6"}\n```',
    "\u8fd9\u662f\u4e00\u9876\u5e3d\u5b50" * 40,  # Chinese
    "\u0647\u0630\u0647 \u0642\u0628\u0639\u0629",  # Arabic
    "a" * 3000,
    "",
]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.filterwarnings("error")
def test_awkward_answers_are_no_formulas_and_leave_the_bars_their_room(rows_of, picture, count):
    dataset = rows_of([("?", text, [picture]) for text in AWKWARD[:count]])
    answers = {f"$m_{k}$ " * 9: (AWKWARD[k:] + AWKWARD[:k])[:count] for k in range(6)}
    scored = {name: evaluate(given, dataset) for name, given in answers.items()}
    figure = plot_scores(scored, dataset, range(count), answers)
    assert figure._repr_png_().startswith(b"\x89PNG")
    boxes = {axes: axes.get_position().bounds for axes in figure.axes}
    assert all(height * figure.get_figheight() > 1 for *_, height in list(boxes.values())[::2])
    for axes in figure.axes[1:-1:2]:
        (text,) = axes.texts
        assert text.get_text().count("\n") < 5 * 7 and "…" in text.get_text()
        assert text.get_window_extent().y0 >= axes.get_window_extent().y0 - 1
    names = ("$a_$ ", "owner/a-long-name-of-a-model-" * 3)
    compare(*list(scored.values())[:2], names=names).plot()._repr_png_()
    plot_tradeoff({name: (share([True]), share([False])) for name in names}, "$a_%$", "b")._repr_png_()


def test_a_tradeoff_shows_each_point_with_its_intervals():
    half, all_of_it = share([True, False] * 20), share([True] * 40)
    figure = plot_tradeoff({"base": (half, all_of_it), "tuned": (all_of_it, half)}, "learned", "kept")
    (axes,) = figure.axes
    drawn = {c.get_label(): c.lines[0].get_xydata().tolist() for c in axes.containers}
    assert drawn == {"base": [[50, 100]], "tuned": [[100, 50]]}
    (across, up) = axes.containers[0].lines[2]
    assert across.get_segments()[0][:, 0] == pytest.approx([100 * half.low, 100 * half.high])
    assert up.get_segments()[0][:, 1] == pytest.approx([100 * all_of_it.low, 100])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("learned, %", "kept, %")
