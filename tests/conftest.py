"""Set-up for all tests: no network, one thread, no window, long files first, and no GPU tests where there is no GPU."""

import copy
import functools
import os
import sys
from pathlib import Path

import matplotlib
import pytest

# Before any test imports torch, which reads these once. Processes that tests start inherit them. One thread each,
# because `make test` runs two processes, and because sums over another number of threads round differently.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", TOKENIZERS_PARALLELISM="false")

# Where the machine forbids .pyc files, every kernel and process of a test would compile torch and transformers anew:
# 16 of the 26 CPU seconds that their import takes then.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

matplotlib.use("agg")  # no MPLBACKEND: the kernels of notebooks would inherit that and show no images

TESTS = Path(__file__).parent
FIRST = "test_notebook_04.py"  # notebook 05 needs its outputs
VOCABULARY = "not tried with the real vocabulary"
NOT_TRIED = {"not tried in a browser": "The panel", VOCABULARY: "The real vocabularies"}  # reasons of skips, titles
LONG = ("notebooks", "training", "tools", "browser")  # folders with files of a minute and more


def pytest_collection_modifyitems(items):
    """Mark and skip tests that need a GPU, and sort the files: two workers finish together if the short ones are last.

    Within a file the order stays.
    """
    for item in items:
        if TESTS / "gpu" in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name != FIRST, item.path not in slow, _rank(item.path)))


def pytest_terminal_summary(terminalreporter):
    """Say at the end, beside the other skips, what was not there to try the package with."""
    for words, title in NOT_TRIED.items():
        if reasons := sorted(reason for reason in _skipped(terminalreporter) if words in reason):
            terminalreporter.section(title, yellow=True)
            for reason in reasons:
                terminalreporter.line(reason.removeprefix("Skipped: "))


def pytest_sessionfinish(session):
    """Where a variable asks for it (.ci/run), a run without any of the real vocabularies is a failure."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("VLMHELPERS_NEED_VOCABULARIES") or hasattr(session.config, "workerinput") or not terminal:
        return
    passed = any(report.nodeid.startswith("tests/real/") for report in terminal.stats.get("passed", ()))
    if not passed and any(VOCABULARY in reason for reason in _skipped(terminal)):
        terminal.line("\nAll tests with the real vocabularies were skipped: PyPI and npm have to be within reach here")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _skipped(terminalreporter):
    """The reasons of all skips."""
    return {report.longrepr[2] for report in terminalreporter.stats.get("skipped", ()) if report.longrepr}


def _rank(path):
    folder = path.relative_to(TESTS).parts[0]
    return LONG.index(folder) if folder in LONG else len(LONG)


def _cuda():
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def data():
    """The folder of the sample data."""
    return TESTS.parent / "data"


@pytest.fixture(scope="session")
def picture():
    """A drawn product, 48 x 48 pixels."""
    from vlmhelpers.samples.drawing import sample_products

    return sample_products(1, "picture", 48)[0][1]


@pytest.fixture(scope="session")
def rows_of():
    """Makes a Dataset of the schema from (question, answer, images) triples."""
    from datasets import Dataset

    from vlmhelpers.data.schema import FEATURES, make_row

    return lambda triples: Dataset.from_list([make_row(*triple) for triple in triples], features=FEATURES)


@pytest.fixture(scope="session")
def tiny():
    """Gives (model, processor) of a family's tiny base: `tiny("qwen3-vl")`, or with `bits=4`.

    Each call gives copies, which a test may change; what they are copied from is loaded once per process.
    """
    from vlmhelpers.families import tiny_model
    from vlmhelpers.models import load_model

    @functools.cache
    def loaded(family, bits):
        return load_model(tiny_model(family), bits=bits, backend="transformers")

    return lambda family, bits=16: copy.deepcopy(loaded(family, bits))
