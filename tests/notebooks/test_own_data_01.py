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


def write_photos(folder, number):
    """Photos of a phone, lying on their side, with the turn in EXIF; gives their rows."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(number):
        with Image.open(DATA / "images" / f"{i + 1:03}.jpg") as image:
            photo = image.convert("RGB").resize((1600, 1200))
        photo.save(folder / f"IMG_{i}.JPG", exif=exif)
        yield [f"IMG_{i}.JPG", "Beschreibe das Stück; kurz.", ["an umbrella; black", "a scarf"][i % 2]]


def test_ten_photos_of_a_phone_in_a_table_as_excel_saves_it(execute_cells, tmp_path):
    """Fewer than the rows that the notebook would hold back.

    The table has semicolons, which quoted cells hold, too, and UTF-16 behind its byte order mark.
    """
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=";").writerows([COLUMNS, *write_photos(tmp_path, 10)])
    (tmp_path / "table.csv").write_bytes(text.getvalue().encode("utf-16"))
    parameters = {"CSV_PATH": str(tmp_path / "table.csv"), "IMAGE_ROOT": str(tmp_path), "TEST_ROWS": 200}
    notebook = execute_cells("01", parameters | {"OUTPUT_DIR": str(tmp_path / "out"), "MORE": {"max_steps": 4}})
    records = read_records(notebook)
    assert (records["rows_kept"], records["test_rows"]) == (10, 2)
    shown = json.dumps(notebook, ensure_ascii=False)
    assert "10 repaired" in shown and "Beschreibe das Stück; kurz." in shown and "an umbrella; black" in shown
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    verdicts = list(records["claims"].values())
    assert verdicts.count("met") == 3
    assert sum(verdict.startswith("not asked of this model") for verdict in verdicts) == len(verdicts) - 3 > 0
