"""JupyterLab sets formulas in outputs; the dollars of a row's texts are not theirs."""

import browsing
import pytest

expect = pytest.importorskip("playwright.sync_api", reason=browsing.NO_PLAYWRIGHT).expect
pytestmark = pytest.mark.slow
PRICES = "4 coins of $10, 5 of $20"
TABLE = f"""\
from vlmhelpers.common.display import Html, html_table

Html(html_table(["price in $a$"], [[{PRICES!r}]]), "")
"""
FORMULA = "from IPython.display import HTML\n\nHTML('<p>$x^2$</p>')"


def test_prices_in_a_table_stay_as_they_are(open_notebook):
    notebook = open_notebook("prices.ipynb", TABLE, FORMULA)
    notebook.run(0)
    notebook.run(1)
    expect(notebook.cell(1).locator("mjx-container")).to_have_count(1)  # formulas are set by now
    assert notebook.output(0).split("\n")[-2:] == ["price in $a$", PRICES]
