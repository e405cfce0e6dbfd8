"""Notebook 02 goes to its last cell with files and a model of one's own, and asks nothing of them about the sample."""

import csv
import json
import shutil
from pathlib import Path

import pytest

from vlmhelpers.common.records import read_records
from vlmhelpers.families import tiny_model
from vlmhelpers.samples.drawing import sample_products

pytestmark = pytest.mark.slow

DATA = Path(__file__).parents[2] / "data"
FEWER_TALKS = {"for i in range(64)": "for i in range(16)"}  # which are timed, whatever the rows are


def write_alpaca(path, first, last):
    """An Alpaca file without `topic`: every third row has an `input`, every fifth an earlier turn."""
    rows = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"It is {2 * n}."} for n in range(first, last)]
    for row in rows[::3]:
        row["input"] = "Answer in words."
    for row in rows[1::5]:
        row["history"] = [["Hello.", "Hello to you."]]
    path.write_text(json.dumps(rows), encoding="utf-8")


def write_pictures(folder, number):
    """Drawn pictures and a table of questions about them; gives the table's path."""
    with open(folder / "pictures.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image_path", "instruction", "description"])
        for i, (product, image) in enumerate(sample_products(number, "own", 64)):
            image.save(folder / f"{i}.png")
            table.writerow([f"{i}.png", "What is this?", f"A {product.category}."])
    return folder / "pictures.csv"


def test_rows_without_topic_beside_pictures_of_ones_own_for_a_thinking_model(execute_cells, tmp_path):
    """The template of such a model refuses dialogues, unless they are cut into a row for each answer."""
    shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "thinking")
    shutil.copy(DATA / "templates" / "qwen3_vl_thinking.jinja", tmp_path / "thinking" / "chat_template.jinja")
    write_alpaca(tmp_path / "train.json", 0, 30)
    write_alpaca(tmp_path / "test.json", 30, 36)
    parameters = {
        "MODEL_ID": str(tmp_path / "thinking"), "ALPACA_PATH": str(tmp_path / "train.json"),
        "TEST_PATH": str(tmp_path / "test.json"), "PICTURES_PATH": str(write_pictures(tmp_path, 12)),
        "MORE": {"max_steps": 4, "replay": 0.1}, "EXPERIMENTS": False, "OUTPUT_DIR": str(tmp_path / "my out"),
    }  # fmt: skip
    records = read_records(execute_cells("02", parameters, replaced=FEWER_TALKS))
    assert (records["test_questions"], records["test_pictures"], records["replayed_rows"]) == (6, 7, 3)
    assert records["everyday_questions_percent"] is None
    verdicts = set(records["claims"].values())
    assert "met" in verdicts and "not run" in verdicts and "not met" not in verdicts
    assert (tmp_path / "my out" / "adapter" / "adapter_model.safetensors").is_file()
    converted = (tmp_path / "my out" / "converted.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(converted) == 30
    first = json.loads(converted[0])["messages"][0]["content"][0]["text"]
    assert first == "Add 0 and 0.\n\nAnswer in words."
