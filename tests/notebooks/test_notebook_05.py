"""Notebook 05 runs to its last cell: its scores, its verdicts and its exports are what it says."""

import json

import pytest

from vlmhelpers.common.records import read_records
from vlmhelpers.training import RunConfig, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def records(records_of):
    return records_of("05")


def test_base_prompted_base_and_tuned_are_scored_on_the_same_held_out_rows(records):
    assert records["test_rows"] >= 200
    assert records["base_exact_percent"] <= 5 and records["tuned_exact_percent"] >= 95
    assert 20 <= records["prompted_exact_percent"] < records["tuned_exact_percent"]
    difference, low, high = records["difference_points"]
    assert 90 <= low <= difference <= high
    assert difference == pytest.approx(records["tuned_exact_percent"] - records["base_exact_percent"], abs=0.11)


def test_batches_answer_as_single_rows_do(records):
    assert records["same_answers_in_batches_percent"] == 100


def test_the_tuned_model_uses_the_image_and_the_one_that_guesses_does_not(records):
    assert records["verdict"] == "It uses the image"
    assert max(records[f"{kind}_exact_percent"] for kind in ("blank", "shuffled", "noise")) <= 5
    assert records["guessed_percent"] > 65 and records["verdict_of_guesses"] == "It does not use the image"


def test_the_merged_model_is_proved_and_the_accident_is_found(records):
    assert records["merged_like_adapter_percent"] == 100
    assert records["accident_found"]


def test_a_client_of_the_served_model_gets_the_answer_of_the_adapter(records):
    assert records["served_answer_is_the_adapters"] is True


def test_all_claims_are_asked_and_met(records):
    assert len(records["claims"]) == 15 and set(records["claims"].values()) == {"met"}


@pytest.fixture(scope="module")
def other(execute_cells, tmp_path_factory):
    """(the executed notebook, its output folder) with a small run of text alone.

    The cell that looks for a run goes twice: first it looks for one that is not there.
    """
    folder = tmp_path_factory.mktemp("other")
    rows = [{"text": f"What comes after {number}?", "response": f"{number + 1}."} for number in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = {"test_rows": 8, "max_steps": 2, "bits": 16}
    train(RunConfig("qwen3-vl", str(folder / "rows.jsonl"), str(folder / "run"), **options))

    def keep(cell):
        if "vlm.train(config)" in cell.source:
            assert "Path(RUN)" in cell.source
            cell.source = cell.source.replace("Path(RUN)", "Path('none')") + "\n" + cell.source
        return True

    replaced = {
        "num_examples=1000": "num_examples=200",
        "test_rows=200": "test_rows=8",
        "max_steps=250": "max_steps=2",
        "max_steps=60": "max_steps=10",
        "vlm.merge(saved, merged, base=base_id)": "raise MemoryError('2 GiB are missing')",
    }
    parameters = {"RUN": str(folder / "run"), "SLICES": ["no column"], "OUTPUT_DIR": str(folder / "out")}
    return execute_cells("05", parameters, keep, replaced), folder / "out"


def test_without_a_run_a_small_adapter_is_trained_first(other):
    notebook, folder = other
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.get("text", "") for output in outputs)
    assert "a small adapter of the tiny qwen3-vl is trained instead" in printed
    assert (folder / "run" / "adapter" / "adapter_config.json").is_file()
    assert (folder / "run" / "held_out" / "test").is_dir()


def test_a_run_of_text_alone_an_unknown_slice_and_too_little_memory(other):
    """The notebook goes to its end, and says of each claim that it was not asked or not run."""
    notebook, _ = other
    shown, records = json.dumps(notebook), read_records(notebook)
    assert "not merged: 2 GiB are missing" in shown and "no slices by 'no column'" in shown
    assert (records["test_rows"], records["verdict"], records["merged_like_adapter_percent"]) == (8, "not run", None)
    verdicts = records["claims"]
    assert verdicts["the merged model answers as its adapter"] == "not run"
    assert verdicts["the tuned model uses the image"] == "not run"
    assert verdicts["OpenAI's client gets the adapter's answer"] == "not run"
    assert list(verdicts.values()).count("met") == 2
    assert sum(verdict.startswith("not asked") for verdict in verdicts.values()) == len(verdicts) - 5
