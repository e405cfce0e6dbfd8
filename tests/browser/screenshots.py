"""Takes the screenshots of the panel for README and notebook: `python tests/browser/screenshots.py`, two minutes."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory

from browsing import PROJECT, Lab, chromium
from PIL import Image
from studio_page import Panel

import vlmhelpers as vlm
from vlmhelpers.training.background import TrainingRun

OUTPUT = PROJECT / "docs" / "images"
LARGEST = 120_000  # bytes
DARK = {"@jupyterlab/apputils-extension/themes": {"theme": "JupyterLab Dark"}}
SIZE = {"viewport": {"width": 1100, "height": 2200}}
SETTINGS = {"dataset": "products.jsonl", "test_rows": 8, "validation_rows": 8, "max_steps": 160}
SETTINGS |= {"logging_steps": 4, "eval_steps": 40, "learning_rate": 2e-3}
CELL = f"from vlmhelpers.studio import Studio\n\nStudio('runs', **{SETTINGS})"
QUESTION = "Describe this product as JSON."


def main():
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as place, chromium() as browser:
        folder, run = Path(place) / "notebooks", TrainingRun(Path(place) / "notebooks" / "runs" / "run-1")
        folder.mkdir()
        vlm.samples.write_sample(folder / "products.jsonl", 240, answers="json")
        try:
            with_lab(browser, Lab(folder, Path(place) / "light"), in_light)
            with_lab(browser, Lab(folder, Path(place) / "dark", **DARK), in_dark)
        finally:
            run.abort()


def with_lab(browser, lab, take):
    """Shows the panel in JupyterLab, and lets `take` take what it wants."""
    try:
        lab.write("panel.ipynb", CELL)
        notebook = lab.open(browser, "panel.ipynb", **SIZE)
        notebook.run(0)
        take(Panel(notebook.page), lab.folder)
    finally:
        lab.close()


def in_light(panel, folder):
    panel.tab("Run")
    panel.press("start")
    panel.wait_for_step(above=128)
    save("studio-training", top(panel))
    panel.wait_for_state("finished")
    save("studio-code", panel.root.locator(".widget-tab").last)
    panel.tab("Chat")
    panel.find("side_by_side").locator("input").check()
    panel.fill("question", QUESTION)
    with panel.page.expect_file_chooser() as chooser:
        panel.press("upload")
    chooser.value.set_files(max((folder / "images").iterdir()))
    panel.page.locator(".studio-upload", has_text="1").wait_for()
    panel.press("send")
    panel.page.locator('.studio-turn[data-by="tuned"]', has_text="}").wait_for()
    save("studio-chat", top(panel))
    panel.speak("中文")
    panel.tab(3)
    panel.root.get_by_text("学习率", exact=True).first.wait_for()
    save("studio-chinese", top(panel))
    panel.speak("English")


def in_dark(panel, folder):
    panel.tab("Run")
    panel.wait_for_step(above=128)
    save("studio-dark", top(panel))


def top(panel):
    """The tabs, without the code below them."""
    return panel.root.locator(".widget-tab").first


def save(name, element):
    """Saves what an element shows, in 256 colors."""
    element.page.mouse.move(0, 0)
    shown = Image.open(io.BytesIO(element.screenshot(animations="disabled"))).convert("RGB")
    path = OUTPUT / f"{name}.webp"
    shown.quantize(256).convert("RGB").save(path, lossless=True, quality=100, method=6)
    print(f"{path.relative_to(PROJECT)}: {shown.width} x {shown.height}, {path.stat().st_size:,} bytes")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path} has more than {LARGEST:,} bytes: show less")


if __name__ == "__main__":
    main()
