"""A first user's file goes through notebook 04 to its last cell: photos of a phone, pictures, rows of text alone."""

import json

import pytest
from PIL import Image

from vlmhelpers.common.records import read_records
from vlmhelpers.samples import write_sample
from vlmhelpers.samples.drawing import sample_products

pytestmark = pytest.mark.slow

LEFT_OUT = ("memory_table(", 'gpu="T4"', "show_cap(")  # take long, and do not depend on the rows
ORIENTATION, TURNED = 0x0112, 6


def write_photos(folder, number):
    """Photos as a phone writes them: 1600 x 1200 pixels that EXIF says to turn by a quarter; gives their rows."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    for i, (product, image) in enumerate(sample_products(number, "phone", 300)):
        name = f"IMG_{i:04}.jpg"
        image.resize((1600, 1200)).save(folder / name, exif=exif)
        yield {"text": "What is this?", "image": name, "response": f"A {product.category}."}


def test_photos_pictures_and_text_go_through_to_the_last_cell(tmp_path, execute_cells):
    write_sample(tmp_path / "pictures.jsonl", 10, answers="json")
    rows = [json.loads(line) for line in (tmp_path / "pictures.jsonl").read_text().splitlines()]
    rows += write_photos(tmp_path, 10)
    rows += [{"text": f"What is {i} and {i}?", "response": f"{2 * i}."} for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parameters = {
        "DATASET": str(tmp_path / "rows.jsonl"), "OUTPUT_DIR": str(tmp_path / "out"), "MORE": {"max_steps": 4},
    }  # fmt: skip

    notebook = execute_cells("04", parameters, lambda cell: not any(words in cell.source for words in LEFT_OUT))

    records = read_records(notebook)
    assert (records["rows_kept"], records["test_rows"]) == (30, 6)
    verdicts = list(records["claims"].values())
    assert verdicts.count("met") == 3 and "not met" not in verdicts  # what holds for any rows; the sample's are shown
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "vision" / "results.json").is_file()
