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
            for name in ("data", "tools", "pyproject.toml"):  # as in a checkout: the set-up cell looks for them
                (shared / name).symlink_to(ROOT / name)
            (shared / "executed").mkdir()
            shutil.copytree(ROOT / "notebooks", shared / "notebooks", ignore=shutil.ignore_patterns("outputs"))
    return shared / "notebooks"


def find(folder, number):
    """The notebook of that number; the one of that name where it has none."""
    (notebook,) = folder.glob(f"{number}_*.ipynb" if number.isdigit() else f"{number}.ipynb")
    return notebook


@pytest.fixture(scope="session")
def records_of(folder):
    """Runs a notebook, by its number or name, from its first cell to its last, and gives the values that it recorded.

    The notebooks whose outputs it uses are run before it.
    """
    run_notebooks.prepare_kernels(one_thread=True)

    def records(number):
        notebook = find(folder, number)
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

    `keep` is asked about each cell; it may change the cell. Then each text of `replaced` becomes its value, wherever it
    stands: smaller numbers, for what the test does not ask about. The working folder is a new one with `fresh`.
    """
    run_notebooks.prepare_kernels(one_thread=True)

    def execute(number, parameters, keep=lambda cell: True, replaced=None, fresh=False):
        name = f"part_of_{number}_{uuid.uuid4().hex[:8]}"
        copy = (folder.parent / name if fresh else folder) / f"{name}.ipynb"
        copy.parent.mkdir(exist_ok=True)
        node = nbformat.read(find(folder, number), as_version=4)
        node.cells = [cell for cell in node.cells if keep(cell)]
        for words, others in (replaced or {}).items():
            found = [cell for cell in node.cells if words in cell.source]
            assert found, f"notebook {number} has no {words!r} any more"
            for cell in found:
                cell.source = cell.source.replace(words, others)
        nbformat.write(node, copy)
        run = run_notebooks.Run(copy, folder.parent / "executed" / copy.name, parameters)
        assert run_notebooks.run_all([run], at_once=1), "what was printed says which cell failed"
        return nbformat.read(run.executed, as_version=4)

    return execute
