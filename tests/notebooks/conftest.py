"""Each notebook is run once, by the runner of `make notebooks`, whichever tests and workers use its records."""

import shutil
import uuid
from pathlib import Path

import nbformat
import pytest
import run_notebooks
from filelock import FileLock

from vlmhelpers.common.records import read_records

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, request):
    """A copy of the notebooks beside the data, to run them in: one for all workers of pytest-xdist."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if hasattr(request.config, "workerinput") else shared
    with FileLock(shared / "notebooks.lock"):
        if not (shared / "notebooks").exists():
            (shared / "data").symlink_to(ROOT / "data")
            (shared / "executed").mkdir()
            shutil.copytree(ROOT / "notebooks", shared / "notebooks", ignore=shutil.ignore_patterns("outputs"))
    return shared / "notebooks"


@pytest.fixture(scope="session")
def records_of(folder):
    """Runs the notebook of that number from its first cell to its last, and gives the values that it recorded.

    The notebooks whose outputs it uses are run before it.
    """
    run_notebooks.prepare_kernels(one_thread=True)

    def records(number):
        (notebook,) = folder.glob(f"{number}_*.ipynb")
        executed = folder.parent / "executed" / notebook.name
        run = run_notebooks.Run(notebook, executed.with_name(f"unfinished_{notebook.name}"), {})
        for other in run.needs():
            records(other)
        with FileLock(executed.with_suffix(".lock")):
            if not executed.exists():
                assert run_notebooks.run_all([run], at_once=1), "what was printed says which cell failed"
                run.executed.rename(executed)
        return read_records(executed)

    return records


@pytest.fixture(scope="session")
def execute_cells(folder):
    """Runs the cells of a notebook that `keep` says, with other parameters: the executed notebook.

    `keep` is asked about each cell; it may change the cell.
    """
    run_notebooks.prepare_kernels(one_thread=True)

    def execute(number, parameters, keep):
        (notebook,) = folder.glob(f"{number}_*.ipynb")
        copy = folder / f"part_of_{number}_{uuid.uuid4().hex[:8]}.ipynb"
        node = nbformat.read(notebook, as_version=4)
        node.cells = [cell for cell in node.cells if keep(cell)]
        nbformat.write(node, copy)
        run = run_notebooks.Run(copy, folder.parent / "executed" / copy.name, parameters)
        assert run_notebooks.run_all([run], at_once=1), "what was printed says which cell failed"
        return nbformat.read(run.executed, as_version=4)

    return execute
