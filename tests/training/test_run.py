"""One run as a function, on one process."""

import csv
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from compare_runs import assert_same, distance, losses, weights
from peft import PeftModel
from transformers import AutoProcessor

from vlmhelpers.commands import preflight
from vlmhelpers.families import tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model, load_processor
from vlmhelpers.training import pipeline as trainer
from vlmhelpers.training import run as module
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.pipeline import load_rows, training_arguments
from vlmhelpers.training.run import RunResult, load_held_out, read_rows, save_held_out, train


@pytest.mark.slow
def test_a_run_learns_and_leaves_what_is_needed(alone, config_of):
    folder = Path(alone.adapter).parent
    assert alone.steps == 6 and alone.rows == {"read": 48, "rejected": 0, "trained": 48, "test": 0}
    assert alone.seconds > 0 and alone.held_out is None and {"step", "loss", "learning_rate"} <= alone.history[0].keys()
    assert RunConfig.read(folder / "run_config.yaml").save_steps == config_of(folder).save_steps == 3
    assert not (folder / "rejected.csv").exists()
    trained = {name: tensor for name, tensor in weights(alone).items() if "lora_B" in name}
    assert trained and all(tensor.abs().max() > 0 for tensor in trained.values())


@pytest.mark.slow
def test_the_adapter_opens_on_its_base(alone, rows_of, picture):
    base, _ = load_model(tiny_model("qwen2.5-vl"), bits=16)
    rows = rows_of([("What is it?", "?", [picture])])
    opened, processor = PeftModel.from_pretrained(base, alone.adapter), AutoProcessor.from_pretrained(alone.adapter)
    assert len(generate(opened, processor, rows, progress=False)) == 1
    loaded = dict(opened.named_parameters())
    for name, tensor in weights(alone).items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["pixels", "features"])
def test_what_is_kept_on_disk_does_not_change_the_run(alone, config_of, tmp_path, cache):
    assert_same(alone, train(config_of(tmp_path, cache=cache)))
    kept = {name: len(list((tmp_path / name).rglob("*.safetensors"))) for name in ("pixels", "features")}
    assert kept == {"pixels": 48, "features": 48 if cache == "features" else 0}


def test_features_are_not_kept_of_a_tower_that_is_trained_or_sharded(config_of, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="vision is true.*'pixels'"):
        config_of(tmp_path, cache="features", vision=True)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match='with FSDP choose cache="pixels"'):
        training_arguments(config_of(tmp_path, cache="features"))


@pytest.mark.slow
def test_another_seed_ends_elsewhere_and_other_batches_do_not(alone, config_of, tmp_path):
    parts = train(config_of(tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4))
    assert_same(alone, parts)
    other = train(config_of(tmp_path / "other", seed=1))
    assert distance(alone, other) > 1 and not torch.allclose(losses(alone), losses(other), rtol=1e-3)


@pytest.mark.slow
def test_an_adam_that_enlarges_nothing_gives_the_same_weights(config_of, tmp_path, monkeypatch):
    def calm(config):
        return training_arguments(config) | {"adam_epsilon": 1e-2}

    monkeypatch.setattr(trainer, "training_arguments", calm)
    whole = train(config_of(tmp_path / "whole"))
    parts = train(config_of(tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4))
    assert distance(whole, parts) < 1e-4


@pytest.mark.slow
def test_the_same_call_again_trains_nothing_again(alone, config_of, capsys):
    again = train(config_of(Path(alone.adapter).parent))
    assert "is finished: 6 steps on 48 rows" in capsys.readouterr().out
    assert again == alone


@pytest.mark.slow
def test_bad_rows_are_left_out_and_listed_and_test_rows_held_out(sample, config_of, tmp_path, capsys):
    bad = tmp_path / "bad.jsonl"
    lines = sample.read_text().splitlines()[:12]
    lines[4] = json.dumps({"text": "What?", "image": "images/gone.png", "response": "A bag."})
    bad.write_text("\n".join(lines))
    config = config_of(tmp_path / "out", dataset=bad, image_root=sample.parent, test_rows=3, max_steps=1, vision=True)
    result = train(config)
    assert result.rows == {"read": 12, "rejected": 1, "trained": 8, "test": 3}
    assert "1 of 12 rows are left out: see" in capsys.readouterr().out
    with open(tmp_path / "out" / "rejected.csv", encoding="utf-8-sig", newline="") as file:
        assert [row["source_row"] for row in csv.DictReader(file)] == ["5"]
    assert any("visual" in name for name in weights(result))
    test, examples = load_held_out(tmp_path / "out").values()
    assert sorted([*examples["row"], *test["row"]]) == [n for n in range(1, 13) if n != 5] and len(test) == 3
    assert result.held_out == str(tmp_path / "out" / "held_out") == RunResult.read(tmp_path / "out").held_out


@pytest.mark.parametrize("held", [{"test_rows": 48}, {"validation_rows": 60}, {"test_rows": 40, "validation_rows": 8}])
def test_rows_that_are_all_held_back_leave_none_to_train_on(sample, config_of, tmp_path, held):
    config = config_of(tmp_path / "out", **held)
    named = " and ".join(f"{name}={number}" for name, number in held.items())
    with pytest.raises(ValueError, match=f"has 48 sound rows, and {named} leave none to train on: choose fewer"):
        load_rows(config, read_rows(config))


def test_rows_that_the_chat_template_refuses_are_left_out_before_the_run(sample, config_of, tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A bag."}]
    files = sorted((sample.parent / "images").iterdir())
    rows = [{"conversations": turns, "image": str(file)} for file in files[:3]]
    rows[1]["system"] = "Be brief."
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    model = tiny_model("llama-3.2-vision")
    config = config_of(tmp_path / "out", dataset=data, image_root=sample.parent, model_id=model)
    loaded = load_rows(config, read_rows(config), load_processor(model))
    (record,) = loaded.report.rejected
    assert record["row"] == 2 and "A system turn does not go with images" in record["reason"]
    assert record["remedy"] == "put the text of its system turn at the beginning of its first user turn"
    assert loaded.parts["train"]["row"][:] == [1, 3] and loaded.counts["rejected"] == 1
    lines = tmp_path / "rows.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(config, dataset=str(lines), streaming=True)
    stream = load_rows(config, read_rows(config), load_processor(model)).parts["train"]
    assert [row["row"] for row in stream.take(3)] == [1, 3, 1]  # it begins again


@pytest.mark.slow
@pytest.mark.parametrize("begin", [train, preflight])
def test_a_run_and_its_plan_check_rows_by_the_template_of_the_model(config_of, tmp_path, monkeypatch, begin):
    def load(config, rows, processor):
        raise ValueError(processor.chat_template)

    monkeypatch.setattr(trainer, "load_rows", load)
    (tmp_path / "own.jinja").write_text("{{ 'My own' }}")
    with pytest.raises(ValueError, match="My own"):
        begin(config_of(tmp_path / "out", chat_template=str(tmp_path / "own.jinja")))


def test_held_out_rows_keep_their_images_and_give_way_to_those_of_the_next_run(sample, config_of, tmp_path):
    shutil.copytree(sample.parent, tmp_path / "data")
    config = config_of(tmp_path / "out", dataset=tmp_path / "data" / sample.name, test_rows=20)
    loaded = load_rows(config, read_rows(config))
    rows, counts = loaded.parts, loaded.counts
    save_held_out(rows["test"], rows["train"], config.output_dir)
    shutil.rmtree(tmp_path / "data")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    test, examples = load_held_out(tmp_path / "elsewhere").values()
    assert (len(test), len(examples), counts["test"]) == (20, 8, 20)
    assert [image.size for row in test for image in row["images"]] == [(96, 96)] * 20
    save_held_out(
        rows["test"].select([3, 1]).select_columns("row"), rows["train"].select_columns("row"), tmp_path / "elsewhere"
    )
    assert load_held_out(tmp_path / "elsewhere")["test"]["row"][:] == [rows["test"]["row"][index] for index in (3, 1)]
    assert os.listdir(tmp_path / "elsewhere") == ["held_out"]
    shutil.rmtree(tmp_path / "elsewhere" / "held_out")
    with pytest.raises(FileNotFoundError, match="held_out is not there: train with test_rows"):
        load_held_out(tmp_path / "elsewhere")


def test_without_a_row_nothing_is_trained(config_of, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "What?", "image": "gone.png", "response": "A bag."}))
    with pytest.raises(ValueError, match="has no row that can be used: the reasons are in .*rejected.csv"):
        train(config_of(tmp_path / "out", dataset=bad))
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "rejected.csv"]


@pytest.mark.slow
def test_a_row_that_is_too_long_is_named(config_of, tmp_path):
    with pytest.raises(ValueError, match=r"row \d+: \d+ tokens, .* are more than max_length=20"):
        train(config_of(tmp_path, max_length=20))


# Around it


def test_nothing_heavy_is_loaded_before_the_processes_part():
    code = "import pickle, sys; from vlmhelpers.training import config, run; pickle.dumps(run.train)"
    code += "; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "vlmhelpers.training" in done.stdout
    assert not {"torch", "transformers", "bitsandbytes", "peft", "trl", "accelerate"} & set(done.stdout.split())


def test_unsloth_is_only_imported_where_it_can_be(monkeypatch):
    assert module._may_use_unsloth("unsloth") and not module._may_use_unsloth("transformers")
    assert not module._may_use_unsloth("auto")  # transformers is loaded here
    monkeypatch.delitem(sys.modules, "transformers")
    assert module._may_use_unsloth("auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not module._may_use_unsloth("auto")


def test_sharding_that_would_save_an_empty_adapter_is_refused(config_of, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")
    with pytest.raises(ValueError, match="the adapter would be saved empty"):
        train(config_of(tmp_path))


def test_a_model_to_be_sharded_is_stored_as_numbers(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model, _ = load_model(tiny_model("qwen2.5-vl"), bits=4)
    packed = [p for p in model.parameters() if type(p).__name__ == "Params4bit"]
    assert packed and {p.dtype for p in packed} == {torch.float32}
