"""Set-up for all tests: no network, few threads, no window, and no GPU tests where there is no GPU."""

import os
from pathlib import Path

import matplotlib
import pytest

# Before any test imports torch, which reads these once. Processes that tests start inherit them.
os.environ.update(
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="2",
    OMP_WAIT_POLICY="PASSIVE",
    TOKENIZERS_PARALLELISM="false",
)

matplotlib.use("agg")  # no MPLBACKEND: the kernels of notebooks would inherit that and show no pictures

GPU_TESTS = Path(__file__).parent / "gpu"
NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def pytest_collection_modifyitems(items):
    """Mark the tests under tests/gpu/, and skip all that are marked so where there is no CUDA device."""
    for item in items:
        if GPU_TESTS in item.path.parents:
            item.add_marker(pytest.mark.gpu)
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _cuda():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _cuda():
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def data():
    """The folder of the sample data."""
    return Path(__file__).parents[1] / "data"


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


@pytest.fixture(scope="module")
def records_of(tmp_path_factory):
    """Runs the notebook of that name from its first cell to its last, and gives the values that it recorded."""
    import papermill

    from vlmhelpers.common.records import read_records

    def run(name):
        folder = tmp_path_factory.mktemp(name)
        papermill.execute_notebook(
            NOTEBOOKS / f"{name}.ipynb",
            folder / "executed.ipynb",
            {"OUTPUT_DIR": str(folder / "run")},
            kernel_name="python3",
            cwd=NOTEBOOKS,
            progress_bar=False,
        )
        return read_records(folder / "executed.ipynb")

    return run
