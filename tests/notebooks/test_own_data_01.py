"""Notebook 01 goes to its last cell with a table of one's own, and asks nothing of it that is about the sample."""

import csv
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from vlmhelpers.common.records import read_records

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"
COLUMNS = ["image_path", "instruction", "description"]


@pytest.fixture
def executed(execute_cells, tmp_path):
    """Runs the notebook with a table, given as text in an encoding: the executed notebook."""

    def execute(rows, image_root, test_rows, encoding="utf-8", **dialect):
        text = io.StringIO(newline="")
        csv.writer(text, **dialect).writerows([COLUMNS, *rows])
        (tmp_path / "table.csv").write_bytes(text.getvalue().encode(encoding))
        parameters = {"CSV_PATH": str(tmp_path / "table.csv"), "IMAGE_ROOT": str(image_root), "TEST_ROWS": test_rows}
        parameters |= {"OUTPUT_DIR": str(tmp_path / "out"), "MORE": {"max_steps": 4}}
        return execute_cells("01", parameters, keep=lambda cell: True)

    return execute


def check(records):
    """The claims about the sample are only reported, those about any table are met."""
    verdicts = list(records["claims"].values())
    assert verdicts.count("met") == 2
    assert sum(verdict.startswith("not asked of this model") for verdict in verdicts) == len(verdicts) - 2 > 0


def test_a_table_of_40_rows_as_excel_saves_it(executed, tmp_path):
    """Semicolons, which quoted cells hold, too, and UTF-16 behind its byte order mark."""
    with open(DATA / "products.csv", encoding="utf-8", newline="") as file:
        sample = [list(row.values()) for row in csv.DictReader(file)][:40]
    rows = [[path, "Beschreibe das Stück; kurz.", text.replace(", ", "; ")] for path, _, text in sample]
    notebook = executed(rows, DATA, 6, encoding="utf-16", delimiter=";")
    records = read_records(notebook)
    assert (records["rows_kept"], records["test_rows"]) == (40, 6)
    assert "Beschreibe das Stück; kurz." in json.dumps(notebook, ensure_ascii=False)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    check(records)


def test_ten_photos_of_a_phone(executed, tmp_path):
    """Lying on their side, with the turn in EXIF, and fewer than the rows that the notebook would hold back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = []
    for number in range(10):
        with Image.open(DATA / "images" / f"{number + 1:03}.jpg") as image:
            photo = image.convert("RGB").resize((1600, 1200))
        photo.save(tmp_path / f"IMG_{number}.JPG", exif=exif)
        rows.append([f"IMG_{number}.JPG", "What is this?", ["an umbrella", "a scarf"][number % 2]])
    notebook = executed(rows, tmp_path, 200)
    records = read_records(notebook)
    assert (records["rows_kept"], records["test_rows"]) == (10, 2)
    assert "10 repaired" in json.dumps(notebook)
    check(records)
