"""The table of forms of data: the pages have it as it is, and every sample is in it."""

from forms_page import FORMS, PAGES, ROOT, rewritten


def test_the_pages_have_the_table_of_today():
    for page, in_full in PAGES.items():
        assert "OpenAI preferences" in (text := page.read_text(encoding="utf-8"))
        assert text == rewritten(page, in_full), "run python tools/forms_page.py"


def test_every_sample_has_a_form():
    folder = ROOT / "tests" / "data" / "forms"
    assert {sample for form in FORMS for sample in form.samples} == {file.name for file in folder.iterdir()}
