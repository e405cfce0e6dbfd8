"""Every notebook has a model and short parameters in `make real`, and those are its own."""

import papermill
import pytest
import readme_tables
import run_real
from real_models import NAMES

NOTEBOOKS = readme_tables.find_notebooks(readme_tables.ROOT / "notebooks")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_gets_parameters_that_it_has(notebook, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_real, "model_folder", lambda name: asked.append(name) or tmp_path / name)
    monkeypatch.setattr(run_real.shutil, "rmtree", lambda folder, **_: None)
    run = run_real.make_run(notebook, tmp_path)
    assert set(asked) <= set(NAMES) and str(tmp_path / asked[0]) in run.parameters.values()
    assert not run.parameters.keys() - papermill.inspect_notebook(notebook)
    assert run.parameters["OUTPUT_DIR"].startswith("outputs/real/")


def test_a_notebook_without_a_model_is_named(tmp_path):
    with pytest.raises(ValueError, match="08_new.ipynb has no model in run_real.py: add one"):
        run_real.make_run(tmp_path / "08_new.ipynb", tmp_path)


def test_one_failing_notebook_does_not_keep_the_others_from_running(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run_real.readme_tables, "ROOT", tmp_path)
    monkeypatch.setattr(run_real, "select", lambda folder, only: [tmp_path / "01_a.ipynb", tmp_path / "02_b.ipynb"])
    monkeypatch.setattr(run_real, "prepare_kernels", lambda one_thread: None)
    monkeypatch.setattr(run_real, "make_run", lambda notebook, outputs: FakeRun(notebook))
    monkeypatch.setattr(run_real, "execute", lambda run: ["it broke"] if run.notebook.name == "01_a.ipynb" else None)
    assert run_real.main([]) == 1
    printed = capsys.readouterr().out
    assert "it broke" in printed and "FAILED  01_a" in printed and "done    02_b" in printed


class FakeRun:
    class progress:
        number, total = 3, 5

    def __init__(self, notebook):
        self.notebook = notebook
