"""Charts show the scores and intervals that they were given."""

import pytest

from vlmhelpers.evaluation.charts import plot_scores, plot_tradeoff
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.evaluation.statistics import share


def test_bars_stand_as_high_as_the_scores(rows_of, picture):
    dataset = rows_of([("?", "Color: Red, Price: 3", [picture])] * 4)
    half = evaluate(["Color: Red, Price: 3", "Color: Red, Price: 4"] * 2, dataset)
    none = evaluate(["?"] * 4, dataset)
    figure = plot_scores({"base": none, "tuned": half}, dataset, [0, 3], {"base": ["?"] * 4})
    *pictures, bars = figure.axes
    assert len(pictures) == 2 and all(len(axes.images) == 1 for axes in pictures)
    heights = [patch.get_height() for patch in bars.patches]
    assert heights == [0, 0, 0, 50, 100, 50]
    assert [label.get_text() for label in bars.get_xticklabels()] == ["exact match", "Color", "Price"]
    assert figure._repr_png_().startswith(b"\x89PNG")


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
