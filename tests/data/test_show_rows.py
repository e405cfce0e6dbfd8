"""Tables show the rows they were given, and nothing of the rows can break them."""

import numpy as np
import pytest
from datasets import Image, List

from vlmhelpers.data.report import show_rows


def test_rows_with_prompts_and_answers(rows_of, picture):
    dataset = rows_of([("What <b>is</b> it?", "A hat.", [picture]), ("Why?", "Because.", [])])
    shown = show_rows(dataset, [0, 1], base=["A bag.", "Because."])
    html = shown._repr_html_()
    assert html.count("<img") == 1 and html.count("<tr>") == 3
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in html and "<b>" not in html
    assert html.count("background") == 1  # the wrong answer only
    assert "expected: A hat." in repr(shown) and "base: A bag." in repr(shown)


def test_rows_that_there_are_of_any_form(rows_of, picture):
    dataset = rows_of([(f"q{i}", "a", [picture]) for i in range(3)])
    forms = [
        dataset,
        dataset.with_format("torch"),
        dataset.cast_column("images", List(Image(decode=False))),
        [*dataset],
    ]
    shown = {repr(show_rows(rows, range(8), tuned=["a", "b", "a"])) for rows in forms}
    assert len(shown) == 1 and shown.pop().count("expected: a") == 3
    assert repr(show_rows(dataset, [-1, np.int64(0)])).startswith("2: q2")
    with pytest.raises(ValueError, match="there is no row 3"):
        show_rows(dataset, [0, 3])
    assert "tuned: b" in repr(show_rows(dataset, [0], tuned=["b"]))  # an answer to each row that is shown
    for few in (["a"], ["a"] * 4):
        with pytest.raises(ValueError, match=f"{len(few)} answers of 'tuned' for 3 rows"):
            show_rows(dataset, [1], tuned=few)
