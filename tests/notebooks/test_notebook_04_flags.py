"""Every flag of the guide's command line has its effect in notebook 04."""

import json
from pathlib import Path

import pytest
import yaml

from vlmhelpers.samples import write_sample

pytestmark = pytest.mark.slow

# Cells that do not depend on the parameters and take long.
LEFT_OUT = ("memory_table(", 'gpu="T4"', "show_cap(")


def needed(cell):
    return not any(words in cell.source for words in LEFT_OUT)


@pytest.fixture(scope="module")
def changed(tmp_path_factory, execute_cells):
    """(the settings, the output folder) of a run with every parameter changed: the guide's command line."""
    folder = tmp_path_factory.mktemp("changed")
    write_sample(folder / "sample.jsonl", 30, seed=1, answers="json")
    names = {"text": "question", "image": "img_path", "response": "answer"}
    rows = [json.loads(line) for line in (folder / "sample.jsonl").read_text().splitlines()]
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
    execute_cells("04", {name.upper(): value for name, value in flags.items()} | {"MORE": more}, keep=needed)
    return flags | more, folder / "out"


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


def test_every_flag_is_in_the_file_for_the_command_line(changed):
    settings, output = changed
    written = yaml.safe_load((output / "run.yaml").read_text())
    written |= {name: str((output / written[name]).resolve()) for name in ("dataset", "output_dir")}
    expected = settings | {"dataset": str(Path(settings["dataset"]).resolve()), "output_dir": str(output / "again")}
    assert {name: written[name] for name in settings} == expected


def test_every_flag_has_its_effect(changed):
    settings, output = changed
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
