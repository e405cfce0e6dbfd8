"""Notebook 04 goes on from the checkpoints in a folder that outlives the machine, as a mounted drive does."""

import os

import pytest

from vlmhelpers.common.records import read_records
from vlmhelpers.samples import write_sample

pytestmark = pytest.mark.slow

BROKEN_OFF, TRAINS = "mock.DEFAULT", "resume_from_checkpoint=checkpoint"  # words of the cells that train
LEFT_OUT = ("memory_table(", "photo", "base_answers", "preflight(")  # cells that no other one needs
COLAB = "class drive:\n    mount = staticmethod(lambda folder: print('mounted', folder))\n"


def session(execute_cells, parameters, last):
    """What the cells up to the one with the words `last` record of their training, and print, in a new kernel."""
    cells = []

    def keep(cell):
        if cells and last in cells[-1].source or any(words in cell.source for words in LEFT_OUT):
            return False
        if last in cell.source:
            cell.source += '\nvlm.record("last_step", trainer.state.global_step)'
        cells.append(cell)
        return True

    notebook = execute_cells("04", parameters, keep, fresh=True)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return read_records(notebook), "".join(output.get("text", "") for output in outputs)


def test_a_second_session_goes_on_from_the_checkpoint_on_the_drive(tmp_path, execute_cells, monkeypatch):
    (tmp_path / "google" / "colab").mkdir(parents=True)
    (tmp_path / "google" / "colab" / "__init__.py").write_text(COLAB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    drive = tmp_path / "drive"
    write_sample(drive / "rows.jsonl", 20, answers="json")
    parameters = {
        "DATASET": str(drive / "rows.jsonl"), "DRIVE": str(drive), "OUTPUT_DIR": "run", "BATCH_SIZE": 2,
        "MORE": {"max_steps": 8, "save_steps": 3, "logging_steps": 2},
    }  # fmt: skip

    records, printed = session(execute_cells, parameters | {"EXPERIMENTS": True}, BROKEN_OFF)
    assert "mounted /content/drive" in printed and "connection lost after step 7" in printed
    assert records["last_step"] == 7 and (drive / "run" / "checkpoint-6").is_dir()

    records, printed = session(execute_cells, parameters | {"EXPERIMENTS": False}, TRAINS)
    assert f"going on from {drive / 'run' / 'checkpoint-6'}" in printed
    assert records["last_step"] == 8 and (drive / "run" / "checkpoint-8").is_dir()
