"""Every flag of the guide's command line has its effect in notebook 04, and a first user's file goes to its end."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

from vlmhelpers.common.records import read_records
from vlmhelpers.samples import sample_products, write_sample

pytestmark = pytest.mark.slow

# Cells that do not depend on the parameters and take long.
LEFT_OUT = ("memory_table(", 'gpu="T4"', "show_cap(", "-m vlmhelpers")
TINY = {'published, "Qwen/Qwen2.5-VL-3B-Instruct"': "published, model_id"}  # whose memory is computed in less time
ORIENTATION, TURNED = 0x0112, 6


def needed(cell):
    return not any(words in cell.source for words in LEFT_OUT)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, execute_cells):
    """(settings, output folder, records) of a run with every parameter changed, on a first user's file."""
    folder = tmp_path_factory.mktemp("changed")
    names = {"text": "question", "image": "img_path", "response": "answer"}
    write_sample(folder / "sample.jsonl", 10, seed=1, answers="json")
    rows = [json.loads(line) for line in (folder / "sample.jsonl").read_text().splitlines()]
    rows += write_photos(folder, 10)
    rows += [{"text": f"What is {i} and {i}?", "response": f"{2 * i}."} for i in range(10)]
    renamed = [json.dumps({names[name]: value for name, value in row.items()}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(renamed))
    flags = {
        "model_id": "qwen2.5-vl", "dataset": str(folder / "rows.jsonl"), "output_dir": str(folder / "out"),
        "epochs": 2, "batch_size": 2, "learning_rate": 1e-3, "lora_r": 8,
    }  # fmt: skip
    more = {
        "lora_alpha": 12, "logging_steps": 2, "save_steps": 3, "text_field": "question", "image_field": "img_path",
        "response_field": "answer", "bits": 16, "max_pixels": 32 * 32, "test_rows": 6, "warmup_steps": 0, "seed": 3,
        "gradient_accumulation_steps": 3, "max_length": 200, "adam_beta2": 0.9, "max_grad_norm": 0.5,
        "validation_rows": 2,
    }  # fmt: skip
    parameters = {name.upper(): value for name, value in flags.items()} | {"MORE": more}
    notebook = execute_cells("04", parameters, needed, TINY)
    return flags | more, folder / "out", read_records(notebook)


def write_photos(folder, number):
    """Photos as a phone writes them: 1600 x 1200 pixels that EXIF says to turn by a quarter; gives their rows."""
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    for i, (product, image) in enumerate(sample_products(number, "phone", 300)):
        image.resize((1600, 1200)).save(folder / f"IMG_{i:04}.jpg", exif=exif)
        yield {"text": "What is this?", "image": f"IMG_{i:04}.jpg", "response": f"A {product.category}."}


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


def test_every_flag_is_in_the_file_for_the_command_line(changed):
    settings, output, _ = changed
    written = yaml.safe_load((output / "run.yaml").read_text())
    written |= {name: str((output / written[name]).resolve()) for name in ("dataset", "output_dir")}
    expected = settings | {"dataset": str(Path(settings["dataset"]).resolve()), "output_dir": str(output / "again")}
    assert {name: written[name] for name in settings} == expected


def test_every_flag_has_its_effect(changed):
    settings, output, _ = changed
    adapter = read_json(output, "adapter", "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"]) == (8, 12)
    assert adapter["base_model_name_or_path"].endswith("qwen2.5-vl")
    processor = read_json(output, "adapter", "processor_config.json")["image_processor"]
    assert processor["size"]["longest_edge"] == 32 * 32
    state = read_json(output, "checkpoint-8", "trainer_state.json")
    assert (state["num_train_epochs"], state["max_steps"]) == (2, 8)  # 22 rows, 6 of them per step
    assert (state["logging_steps"], state["save_steps"], state["train_batch_size"]) == (2, 3, 2)
    assert max(line.get("learning_rate", 0) for line in state["log_history"]) <= settings["learning_rate"]
    assert [line["step"] for line in state["log_history"] if "eval_loss" in line] == [2, 4, 6, 8]
    assert (output / "checkpoint-6").is_dir() and not (output / "checkpoint-4").exists()
    result = read_json(output, "vision", "results.json")
    assert result["rows"] == {"read": 30, "rejected": 0, "trained": 22, "test": 6}


def test_photos_pictures_and_text_go_through_to_the_last_cell(changed):
    """Only what holds for any rows is asked of them."""
    _, output, records = changed
    assert (records["rows_kept"], records["test_rows"]) == (30, 6)
    verdicts = list(records["claims"].values())
    assert verdicts.count("met") == 3 and "not met" not in verdicts
    assert (output / "adapter" / "adapter_model.safetensors").is_file()
