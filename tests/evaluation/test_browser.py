"""The panel shows what its controls ask for; the static table says the same without a kernel."""

import re
import time
from types import SimpleNamespace

import pytest

from vlmhelpers.evaluation.browser import browse, mark_difference
from vlmhelpers.evaluation.comparison import compare
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.samples.drawing import caption, sample_products

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def found(rows_of):
    """(dataset, base answers, tuned answers): rows 0-2 are gained, 3-4 lost, 5 wrong twice, 6-19 right twice."""
    dataset = rows_of([("What is it?", caption(p), [image]) for p, image in sample_products(20, "browser", 48)])
    wanted = [message[1]["content"][0]["text"] for message in dataset["messages"]]
    base = ["<b>wrong</b>"] * 3 + wanted[3:5] + ["no"] + wanted[6:]
    tuned = wanted[:3] + ["a lost one"] * 2 + ["no"] + wanted[6:]
    return dataset, base, tuned


def rows_in(page):
    """The indices of the rows in a table."""
    return [int(place) for place in re.findall(r"<tr><td [^>]*>(\d+)<br>", page)]


def controls(view):
    first, second, page = view.children
    return *first.children, *second.children, page


def test_the_filter_shows_exactly_the_rows_of_its_kind(found):
    dataset, base, tuned = found
    view = browse(dataset, base=base, tuned=tuned)
    kind, search, back, on, place, page = controls(view.panel)
    expected = {"lost": [3, 4], "gained": [0, 1, 2], "wrong": [3, 4, 5], "right": [0, 1, 2, *range(6, 20)]}
    assert dict(kind.options) == {f"{k} ({len(r)})": k for k, r in {"all": range(20), **expected}.items()}
    for name, places in expected.items():
        kind.value = name
        assert view.shown() == places and rows_in(page.value) == places[:4]
    kind.value = "lost"
    assert place.value == "2 rows, page 1 of 1" and back.disabled and on.disabled
    assert "a" in page.value and page.value.count("<img") == 2


def test_buttons_turn_the_pages(found):
    view = browse(found[0], tuned=found[2])
    kind, search, back, on, place, page = controls(view.panel)
    assert "gained" not in view.kinds
    on.click()
    assert rows_in(page.value) == [4, 5, 6, 7] and place.value == "20 rows, page 2 of 5"
    for _ in range(9):
        on.click()
    assert rows_in(page.value) == [16, 17, 18, 19] and on.disabled and not back.disabled
    back.click()
    assert rows_in(page.value) == [12, 13, 14, 15]
    kind.value = "wrong"  # begins at its first page
    assert rows_in(page.value) == [3, 4, 5]


def test_search_looks_into_prompts_and_answers(found):
    view = browse(found[0], base=found[1], tuned=found[2])
    kind, search, *_, place, page = controls(view.panel)
    search.value = "A LOST"
    assert rows_in(page.value) == [3, 4]
    search.value = "what is"
    assert len(view.shown()) == 20
    search.value = "nowhere"
    assert page.value == "<p>no rows</p>" and place.value == "0 rows, page 1 of 1"


def test_a_comparison_names_the_gained_and_lost_rows(found):
    dataset, base, tuned = found
    comparison = compare(evaluate(tuned, dataset), evaluate(base, dataset))
    assert browse(dataset, comparison, tuned=tuned).kinds["lost"] == [0, 1, 2]


def test_the_static_table_needs_no_kernel(found):
    dataset, base, tuned = found
    bundle = browse(dataset, base=base, tuned=tuned)._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    page = bundle["text/html"]
    assert rows_in(page) == [3, 4, 5, 0, 1, 2, 6, 7, 8] and len(page.encode()) < 60_000
    assert "&lt;" in page and "<b>wrong" not in page and "<script" not in page
    assert bundle["text/plain"] == "20 rows: 3 wrong, 17 right, 3 gained, 2 lost."


def test_the_static_table_stays_small(rows_of):
    image = sample_products(1, "large", 96)[0][1]
    dataset = rows_of([("é" * 4000, "<" * 4000, [image] * 5)] * 30)
    answers = [">" * 4000, *["<" * 4000] * 29]
    assert 5_000 < len(browse(dataset, base=answers, tuned=answers[::-1])._repr_html_().encode()) < 60_000


def test_a_live_notebook_gets_the_panel_too(found, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=None))
    view = browse(found[0], tuned=found[2])
    bundle = view._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == view.panel.model_id and "text/html" in bundle
    monkeypatch.setattr("vlmhelpers.common.display.find_spec", lambda name: None)  # as without ipywidgets
    assert VIEW not in view._repr_mimebundle_()


def test_widgets_of_ipywidgets_7_do_not_describe_themselves(found, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=None))
    monkeypatch.delattr("ipywidgets.Widget._repr_mimebundle_", raising=False)  # as on Colab
    view = browse(found[0], tuned=found[2])
    assert view._repr_mimebundle_()[VIEW] == {
        "version_major": 2, "version_minor": 0, "model_id": view.panel.model_id
    }  # fmt: skip


def test_words_that_differ_are_marked():
    mark = '<mark style="background:#d9534f55">'
    assert mark_difference("a red hat", "a red hat") == "a red hat"
    assert mark_difference("a <blue> hat", "a <red> hat") == f"a &lt;{mark}blue</mark>&gt; hat"
    assert mark_difference("a hat", "a red hat") == f"a {mark}‸</mark>hat"


def test_an_answer_that_repeats_itself_is_marked_at_once():
    start = time.perf_counter()
    assert mark_difference("the " * 1000, "the cat " * 500).count("<mark") == 500
    assert time.perf_counter() - start < 10  # it took two minutes


def test_answers_have_to_fit(found):
    with pytest.raises(ValueError, match="1 answers of 'tuned' for 20 rows"):
        browse(found[0], tuned=["a"])
    with pytest.raises(ValueError, match="no answers"):
        browse(found[0])
