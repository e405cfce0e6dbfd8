"""Tables show the rows they were given, and nothing of the rows can break them."""

from vlmhelpers.data.report import show_rows


def test_rows_with_prompts_and_answers(rows_of, picture):
    dataset = rows_of([("What <b>is</b> it?", "A hat.", [picture]), ("Why?", "Because.", [])])
    shown = show_rows(dataset, [0, 1], base=["A bag.", "Because."])
    html = shown._repr_html_()
    assert html.count("<img") == 1 and html.count("<tr>") == 3
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in html and "<b>" not in html
    assert html.count("background") == 1  # the wrong answer only
    assert "expected: A hat." in repr(shown) and "base: A bag." in repr(shown)
