"""The tests in a browser rest on this: cells run, widgets answer, reloads and restarts are waited for."""

import browsing
import pytest

expect = pytest.importorskip("playwright.sync_api", reason=browsing.NO_PLAYWRIGHT).expect
pytestmark = pytest.mark.slow
CELL = """\
import ipywidgets
button, shown = ipywidgets.Button(description="Press"), ipywidgets.HTML("<p class='shown'>0</p>")
presses = []

def press(_):
    presses.append(1)
    shown.value = f"<p class='shown'>{len(presses)}</p>"

button.on_click(press)
ipywidgets.VBox([button, shown])
"""


def test_widget_lives_through_a_reload_and_not_through_a_restart(open_notebook):
    notebook = open_notebook("smoke.ipynb", CELL, "print('presses:', len(presses))")
    notebook.run(0)
    shown = notebook.page.locator(".shown")
    notebook.page.get_by_role("button", name="Press").click()
    expect(shown).to_have_text("1")
    notebook.run(1)
    assert notebook.output(1) == "presses: 1"
    notebook.save()
    notebook.reload()
    notebook.page.get_by_role("button", name="Press").click()
    expect(shown).to_have_text("2")
    notebook.restart()
    notebook.run(1)
    assert "NameError" in notebook.output(1)
    notebook.run(0)
    expect(shown).to_have_text("0")
