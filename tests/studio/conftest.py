"""A panel without a kernel or a browser, runs that only their files tell of, and what their HTML comes to."""

import json
import os
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from vlmhelpers.studio import Studio
from vlmhelpers.training.background import CONFIG, LOG, TrainingRun
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.progress import SAMPLES, describe_process, say, write_process

EVIL = '<img src=x onerror="alert(1)">"\'</pre></textarea><script>alert(1)</script>'


@pytest.fixture
def rows(tmp_path_factory, monkeypatch):
    """The working directory has a file of one row, rows.jsonl."""
    monkeypatch.chdir(tmp_path_factory.mktemp("work"))
    Path("rows.jsonl").write_text('{"text": "What?", "response": "a hat"}\n', encoding="utf-8")


@pytest.fixture
def make(tmp_path, rows):
    """Makes a panel of `tmp_path`/studio, which looks at its run only when it is told to."""
    return partial(Studio, tmp_path / "studio", clock="none")


@pytest.fixture
def evil():
    """A text that does harm wherever it is taken for HTML."""
    return EVIL


@pytest.fixture
def fake_run(tmp_path):
    """Writes what a run leaves in a folder of the panel's; without `end` it is going on, in this process."""

    def write(name="run-1", end=None, error=None, entries=(), log="", samples=(), **settings):
        folder = tmp_path / "studio" / name
        folder.mkdir(parents=True, exist_ok=True)
        settings = {"model_id": "qwen3-vl", "dataset": "rows.jsonl", "output_dir": str(folder)} | settings
        RunConfig(**settings).save(folder / CONFIG)
        process = describe_process(os.getpid(), started=time.time() - 1, own=False)
        write_process(folder, process | ({"end": end, "error": error} if end else {}))
        for entry in entries:
            say(folder, **entry)
        (folder / LOG).write_text(log, encoding="utf-8")
        if samples:
            (folder / SAMPLES).write_text(json.dumps(samples), encoding="utf-8")
        return TrainingRun(folder)

    return write


class Elements(HTMLParser):
    """The `tags` of a page with their attributes, and its `text`."""

    def __init__(self, *pages):
        super().__init__()
        self.tags, self.text = [], ""
        for page in pages:
            self.feed(str(page))  # slices of Markup escape what they are added to
            self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def elements():
    return Elements


def _inside(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from _inside(child)


@pytest.fixture
def shown():
    """The `Elements` of all that a widget shows as HTML; none may be what `EVIL` would make."""
    import ipywidgets as widgets

    def parse(widget):
        pages = [part.value for part in _inside(widget) if isinstance(part, widgets.HTML)]
        found = Elements(*pages)
        for tag, attributes in found.tags:
            assert tag != "script" and not any(name.startswith("on") for name in attributes), (tag, attributes)
            assert tag != "img" or attributes["src"].startswith("data:image/"), attributes
        return found

    return parse


@pytest.fixture
def inside():
    """A widget and all that it holds."""
    return _inside
