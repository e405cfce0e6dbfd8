"""The panel in JupyterLab, used as a learner uses it, from the first value to a chat with what was trained."""

import re

import browsing
import pytest
from studio_page import Panel

import vlmhelpers as vlm
from vlmhelpers.training.background import TrainingRun

expect = pytest.importorskip("playwright.sync_api", reason=browsing.NO_PLAYWRIGHT).expect
pytestmark = pytest.mark.slow

CELL = """\
from vlmhelpers.studio import Studio

studio = Studio("runs")
studio
"""


@pytest.fixture
def data(lab):
    """A file of products in JupyterLab's folder."""
    vlm.samples.write_sample(lab.folder / "rows.jsonl", 80, size=48)
    return "rows.jsonl"


@pytest.fixture
def run(lab):
    """The panel's first run, ended when the test ends."""
    run = TrainingRun(lab.folder / "runs" / "run-1")
    yield run
    run.abort()


def test_from_the_first_value_to_a_chat(open_notebook, data, run):
    notebook = open_notebook("panel.ipynb", CELL, "print(studio.run.state)", "")
    notebook.run(0)
    panel = Panel(notebook.page)
    the_panel_speaks(panel)
    the_data_are_shown(panel, data)
    wrong_values_are_refused(panel)
    it_trains_while_other_cells_run(panel, notebook)
    it_stops_and_goes_on(panel, run)
    the_page_is_loaded_anew(panel, notebook)
    the_kernel_is_restarted(panel, notebook, run)
    panel.wait_for_state("finished", seconds=300)
    it_chats_about_an_image(panel, notebook.lab.folder)
    its_code_runs_in_a_cell(panel, notebook)


def the_panel_speaks(panel):
    panel.tab("Training")
    panel.fill("max_steps", "60")
    panel.fill("save_steps", "1000")
    panel.fill("logging_steps", "1")
    panel.speak("中文")
    expect(panel.root.locator(".lm-TabBar-tab").first).not_to_have_text("Model")
    assert panel.value("max_steps") == "60"
    panel.speak("English")
    expect(panel.root.locator(".lm-TabBar-tab").first).to_have_text("Model")
    assert panel.value("max_steps") == "60"


def the_data_are_shown(panel, data):
    panel.tab("Data")
    panel.fill("dataset", data)
    panel.fill("test_rows", "8")
    panel.fill("validation_rows", "4")
    panel.press("preview")
    images = panel.find("data-out").locator("img")
    expect(images.first).to_be_visible()
    assert images.first.evaluate("image => image.naturalWidth") > 0


def wrong_values_are_refused(panel):
    panel.tab("Training")
    panel.fill("learning_rate", "fast")
    problem = panel.root.locator(".studio-refused:has(.studio-learning_rate) .studio-problem")
    expect(problem).to_contain_text("fast")
    panel.tab("Run")
    expect(panel.find("start")).to_be_disabled()
    panel.tab("Training")
    panel.fill("learning_rate", "2e-3")
    expect(problem).to_have_count(0)
    panel.tab("Run")
    expect(panel.find("start")).to_be_enabled()


def it_trains_while_other_cells_run(panel, notebook):
    panel.press("start")
    panel.wait_for_state("training")
    panel.wait_for_step(above=0)
    panel.wait_for_step(above=panel.last_step)
    notebook.run(1)
    assert notebook.output(1) in ("training", "evaluating")


def it_stops_and_goes_on(panel, run):
    panel.press("stop")
    panel.wait_for_state("stopped")
    assert list(run.folder.glob("checkpoint-*"))
    step = panel.last_step
    panel.press("start")
    panel.wait_for_state("training")
    panel.wait_for_step(above=step)


def the_page_is_loaded_anew(panel, notebook):
    notebook.save()
    notebook.reload()
    panel.wait_for_step(above=-1)
    panel.wait_for_step(above=panel.last_step)


def the_kernel_is_restarted(panel, notebook, run):
    notebook.restart()
    assert run.is_running
    notebook.run(0)
    panel.wait_for_step(above=0)
    panel.tab("Training")
    assert panel.value("max_steps") == "60"
    notebook.run(1)
    assert notebook.output(1) in ("training", "evaluating", "finished")


def it_chats_about_an_image(panel, folder):
    panel.tab("Chat")
    panel.fill("question", "What color is the product?")
    with panel.page.expect_file_chooser() as chooser:
        panel.press("upload")
    chooser.value.set_files(min((folder / "images").iterdir()))
    expect(panel.find("upload")).to_contain_text("1")
    panel.press("send")
    turns = panel.root.locator(".studio-turn")
    expect(turns.locator("img")).to_be_visible()
    expect(turns.nth(1).locator("div")).to_have_text(re.compile(r"\w"))
    expect(panel.find("send")).to_be_enabled()


def its_code_runs_in_a_cell(panel, notebook):
    panel.tab("Training")
    panel.fill("max_steps", "2")
    panel.tab("Run")
    panel.press("new")
    expect(panel.find("code-cells")).to_contain_text("run-2")
    panel.copy_code()
    notebook.paste(2)
    notebook.run(2)
    assert "Error" not in notebook.output(2)
    assert list((notebook.lab.folder / "runs" / "run-2").rglob("adapter_model.safetensors"))
