"""Recorded values come back from a notebook as they went in."""

import json
import subprocess
import sys

import nbformat
import numpy as np
import papermill
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from vlmhelpers.common.records import MIMETYPE, read_records, record

CELLS = [
    "from vlmhelpers import record\nrecord('exact', 0.25)",
    "record('exact', 0.975)\nrecord('interval', (0.94, 0.99))",
    "record('by field', {'color': 1, 'known': True, 'note': 'größer', 'none': None})",
]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """A notebook whose cells record values, run for real."""
    folder = tmp_path_factory.mktemp("records")
    nbformat.write(new_notebook(cells=[new_code_cell(cell) for cell in CELLS]), folder / "in.ipynb")
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    papermill.execute_notebook(folder / "in.ipynb", folder / "out.ipynb", **options)
    return folder / "out.ipynb"


EXPECTED = {
    "exact": 0.975,
    "interval": [0.94, 0.99],
    "by field": {"color": 1, "known": True, "note": "größer", "none": None},
}


@pytest.mark.slow
def test_records_come_back_and_the_later_one_of_a_name_wins(executed):
    assert read_records(executed) == EXPECTED


@pytest.mark.slow
def test_a_loaded_notebook_reads_the_same(executed):
    assert read_records(nbformat.read(executed, as_version=4)) == EXPECTED
    assert read_records(json.loads(executed.read_text(encoding="utf-8"))) == EXPECTED


@pytest.mark.slow
def test_a_reader_of_the_notebook_sees_one_plain_line(executed):
    output = nbformat.read(executed, as_version=4).cells[0].outputs[0]
    assert output.data["text/plain"] == "exact = 0.25"
    assert set(output.data) == {"text/plain", MIMETYPE}


def test_outside_a_notebook_the_line_is_printed(capsys):
    record("loss", 1.5)
    assert capsys.readouterr().out == "loss = 1.5\n"


def test_outside_a_notebook_ipython_is_not_needed():
    code = "import sys, vlmhelpers; vlmhelpers.record('a', 1); assert 'IPython' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_long_value_is_shown_short(capsys):
    record("losses", list(range(1000)))
    line = capsys.readouterr().out.strip()
    assert len(line) < 140
    assert line.endswith("…")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (np.float32(0.5), "0.5"),
        (np.int64(7), "7"),
        (np.bool_(True), "true"),
        (torch.tensor(2.5), "2.5"),
        ([np.float64(1.0), (2, 3)], "[1.0, [2, 3]]"),
    ],
)
def test_scalars_of_other_libraries_become_plain(capsys, value, shown):
    record("x", value)
    assert capsys.readouterr().out == f"x = {shown}\n"


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (np.arange(3), TypeError, r"record x: JSON cannot hold a ndarray; pass value\.tolist\(\)"),
        ({"a": [{1, 2}]}, TypeError, r"record x\['a'\]\[0\]: JSON cannot hold a set"),
        ({1: "a"}, TypeError, "the key 1 is no string"),
        ([1.0, float("nan")], ValueError, r"record x\[1\]: nan is no measurement"),
        (np.float32("inf"), ValueError, "record x: inf"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_a_remedy(value, error, message):
    with pytest.raises(error, match=message):
        record("x", value)


@pytest.mark.parametrize("name", ["", 3, None])
def test_a_name_is_a_string(name):
    with pytest.raises(TypeError, match="a record's name"):
        record(name, 1)


def test_an_error_cuts_a_long_name():
    with pytest.raises(TypeError) as error:
        record("x\n" * 500, {1: 2})
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
