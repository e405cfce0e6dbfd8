"""The panel as a page of its own, served by the command line."""

import browsing
import psutil
import pytest
from served_page import ServedPage
from studio_page import Panel

import vlmhelpers as vlm
from vlmhelpers.training.background import TrainingRun

expect = pytest.importorskip("playwright.sync_api", reason=browsing.NO_PLAYWRIGHT).expect
pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path):
    """The run that the page starts, ended when the test ends."""
    run = TrainingRun(tmp_path / "runs" / "run-1")
    yield run
    run.abort()


@pytest.fixture
def served(tmp_path, run):
    vlm.samples.write_sample(tmp_path / "rows.jsonl", 40, size=48)
    served = ServedPage(tmp_path, "runs", "--port", browsing.free_port())
    yield served
    served.end()


def test_a_run_is_started_and_found_again_when_the_page_is_loaded_anew(browser, served, run, tmp_path):
    page = browsing.open_page(browser, f"{served.url}?token={served.token}")
    panel = Panel(page)
    panel.tab("Data")
    panel.fill("dataset", "rows.jsonl")
    panel.fill("test_rows", "8")
    panel.fill("validation_rows", "4")
    panel.tab("Training")
    panel.fill("max_steps", "30")
    panel.fill("logging_steps", "1")
    panel.tab("Run")
    panel.press("start")
    panel.wait_for_state("training")
    panel.wait_for_step(above=0)
    page.reload()
    panel.wait_for_step(above=0)
    assert len(psutil.Process(served.process.pid).children()) == 1, "the first page's kernel has ended"
    panel.wait_for_state("finished")
    assert run.state == "finished" and list(run.folder.rglob("adapter_model.safetensors"))
    page.close()
