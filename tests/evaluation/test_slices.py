"""Slices and worst rows of small tables."""

import numpy as np
import pytest
from PIL import Image

from vlmhelpers.evaluation.scoring import Evaluation, by_slice, evaluate, slice_names, worst_rows
from vlmhelpers.evaluation.statistics import Score, share


def of_hits(hits):
    """An Evaluation of these hits."""
    return Evaluation({"exact match": share(list(hits))}, tuple(hits), {"exact match": tuple(hits)})


def graded(values):
    """An Evaluation whose score "similarity" has these values."""
    known = [value for value in values if value is not None]
    scores = {"similarity": Score(float(np.mean(known)), 0.0, 1.0, len(known))}
    return Evaluation(scores, (False,) * len(values), {"similarity": tuple(values)})


@pytest.fixture
def products(rows_of):
    """24 rows: a color by threes, prices from 10 to 240, three sizes of images."""
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
    assert slice_names(dataset, "image size") == ["no image", "no image"]


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
