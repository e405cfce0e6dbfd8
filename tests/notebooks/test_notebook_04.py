"""Notebook 04 runs to its last cell and measures what it claims; every flag of the guide has its effect."""

import json
from pathlib import Path

import nbformat
import papermill
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from vlmhelpers.samples.sample_data import write_sample

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "04_qwen_vl_unsloth.ipynb"
# Cells that do not depend on the parameters and take long, or that expect the sample's scores.
LEFT_OUT = ("vlm.estimation.memory_table(", "vlm.estimation.estimate_memory(", "\nassert ")


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("04_qwen_vl_unsloth")


def test_the_sample_is_drawn_and_kept_whole(records):
    assert (records["rows_kept"], records["test_rows"]) == (1000, 200)


def test_it_learns_json_by_looking_at_the_picture(records):
    assert records["base_exact_percent"] <= 5
    assert records["tuned_exact_percent"] >= 95
    assert records["blank_exact_percent"] <= 5
    assert records["same_answers_after_loading_percent"] == 100


def test_the_run_went_on_from_its_checkpoint(records):
    assert records["resumed_at_step"] == 100


def test_adapters_in_the_vision_tower_are_compared_on_the_same_rows(records):
    difference, low, high = records["vision_change_points"]
    assert low <= difference <= high
    assert round(records["tuned_exact_percent"] + difference, 1) == records["vision_exact_percent"]


def test_the_cap_makes_a_photo_fit(records):
    before, after = records["photo_tokens_before_and_after"]
    assert before > 15_301 and after <= 2048


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """(the settings, the output folder) of a run with every parameter changed: the guide's command line."""
    folder = tmp_path_factory.mktemp("changed")
    write_sample(folder / "sample.jsonl", 30, seed=1, answers="json")
    names = {"text": "question", "image": "img_path", "response": "answer"}
    rows = [json.loads(line) for line in (folder / "sample.jsonl").read_text().splitlines()]
    renamed = [json.dumps({names[name]: value for name, value in row.items()}) for row in rows]
    (folder / "rows.jsonl").write_text("\n".join(renamed))
    flags = {
        "model_id": "qwen2.5-vl", "dataset": str(folder / "rows.jsonl"), "output_dir": str(folder / "out"),
        "epochs": 2, "batch_size": 2, "gradient_accumulation_steps": 3, "learning_rate": 1e-3, "max_length": 200,
        "lora_r": 8,
    }  # fmt: skip
    more = {
        "lora_alpha": 12, "logging_steps": 2, "save_steps": 3, "text_field": "question", "image_field": "img_path",
        "response_field": "answer", "bits": None, "max_pixels": 32 * 32, "test_rows": 6, "warmup_steps": 0, "seed": 3,
    }  # fmt: skip
    notebook = parameterize_notebook(
        load_notebook_node(str(NOTEBOOK)), {name.upper(): value for name, value in flags.items()} | {"MORE": more}
    )
    notebook.cells = [cell for cell in notebook.cells if not any(words in "\n" + cell.source for words in LEFT_OUT)]
    nbformat.write(notebook, folder / "notebook.ipynb")
    papermill.execute_notebook(
        folder / "notebook.ipynb", folder / "executed.ipynb", kernel_name="python3", cwd=NOTEBOOK.parent,
        progress_bar=False,
    )  # fmt: skip
    return flags | more, folder / "out"


def read_json(*parts):
    return json.loads(Path(*parts).read_text())


@pytest.mark.slow
def test_every_flag_is_in_the_file_for_the_command_line(changed):
    settings, output = changed
    written = yaml.safe_load((output / "run.yaml").read_text())
    written |= {name: str((output / written[name]).resolve()) for name in ("dataset", "output_dir")}
    expected = settings | {"dataset": str(Path(settings["dataset"]).resolve()), "output_dir": str(output / "again")}
    assert {name: written[name] for name in settings} == expected


@pytest.mark.slow
def test_every_flag_has_its_effect(changed):
    settings, output = changed
    adapter = read_json(output, "adapter", "adapter_config.json")
    assert (adapter["r"], adapter["lora_alpha"]) == (8, 12)
    assert adapter["base_model_name_or_path"].endswith("qwen2.5-vl")
    processor = read_json(output, "adapter", "processor_config.json")["image_processor"]
    assert processor["size"]["longest_edge"] == 32 * 32
    state = read_json(output, "checkpoint-8", "trainer_state.json")
    assert (state["num_train_epochs"], state["max_steps"]) == (2, 8)  # 24 rows, 6 of them per step
    assert (state["logging_steps"], state["save_steps"], state["train_batch_size"]) == (2, 3, 2)
    assert max(line["learning_rate"] for line in state["log_history"]) <= settings["learning_rate"]
    assert (output / "checkpoint-6").is_dir() and not (output / "checkpoint-4").exists()
    result = read_json(output, "vision", "results.json")
    assert result["rows"] == {"read": 30, "rejected": 0, "trained": 24, "test": 6}
