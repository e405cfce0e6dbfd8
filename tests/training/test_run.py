"""One run as a function and as a command; on several processes it ends where it ends on one."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import several_processes
import torch
from accelerate import notebook_launcher
from peft import PeftModel
from safetensors.torch import load_file
from several_processes import call, launch_environment
from transformers import AutoProcessor

from vlmhelpers.families import tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.training import pipeline as trainer
from vlmhelpers.training import run as module
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.pipeline import load_rows, training_arguments
from vlmhelpers.training.results import RunResult, load_held_out, save_held_out
from vlmhelpers.training.run import train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A JSONL file of 48 rows whose answers the tiny base does not know."""
    path = tmp_path_factory.mktemp("sample") / "sample.jsonl"
    write_sample(path, 48)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"response": f"Sold out: {row['response']}"}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def config_of(sample):
    """Makes the settings of a short run on the sample into that folder."""

    def make(output_dir, **changes):
        settings = {"model_id": "qwen2.5-vl", "dataset": sample, "output_dir": output_dir, "bits": None, "lora_r": 4}
        settings |= {"batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 6, "warmup_steps": 0}
        settings |= {"learning_rate": 1e-3, "logging_steps": 1, "save_steps": 3}
        return RunConfig(**settings | changes)

    return make


@pytest.fixture(scope="module")
def alone(config_of, tmp_path_factory):
    """The result of the run on one process, as a notebook starts it, with 8 rows in a step."""
    folder = tmp_path_factory.mktemp("alone")
    notebook_launcher(train, (config_of(folder),), num_processes=1)
    return RunResult.read(folder)


def losses(result):
    return torch.tensor([entry["loss"] for entry in result.history if "loss" in entry])


def weights(result):
    return load_file(Path(result.adapter) / "adapter_model.safetensors")


def distance(one, other):
    """How far apart two adapters are (the norm of the difference), in parts of the way that the first has come."""
    one, other = weights(one), weights(other)
    assert one.keys() == other.keys() and len(one) > 0
    way = [tensor for name, tensor in one.items() if "lora_B" in name]  # they start at zero
    return (_norm([one[name] - other[name] for name in one]) / _norm(way)).item()


def _norm(tensors):
    return sum(tensor.square().sum() for tensor in tensors).sqrt()


def assert_same(one, other):
    """The losses are equal but for rounding. Of the weights Adam enlarges what rounding leaves of tiny gradients.

    A loss that is averaged over the processes instead of over the tokens moves the losses by 6%, the weights by 0.2.
    """
    assert torch.allclose(losses(one), losses(other), rtol=1e-6) and len(losses(one)) == 6
    assert distance(one, other) < 2e-3


# On one process


def test_a_run_learns_and_leaves_what_is_needed(alone, config_of):
    folder = Path(alone.adapter).parent
    assert alone.steps == 6 and alone.rows == {"read": 48, "rejected": 0, "trained": 48, "test": 0}
    assert alone.seconds > 0 and alone.held_out is None and {"step", "loss", "learning_rate"} <= alone.history[0].keys()
    assert RunConfig.read(folder / "run_config.yaml").save_steps == config_of(folder).save_steps == 3
    assert not (folder / "rejected.csv").exists()
    trained = {name: tensor for name, tensor in weights(alone).items() if "lora_B" in name}
    assert trained and all(tensor.abs().max() > 0 for tensor in trained.values())


def test_the_adapter_opens_on_its_base(alone, rows_of, picture):
    base, _ = load_model(tiny_model("qwen2.5-vl"), bits=None)
    rows = rows_of([("What is it?", "?", [picture])])
    opened, processor = PeftModel.from_pretrained(base, alone.adapter), AutoProcessor.from_pretrained(alone.adapter)
    assert len(generate(opened, processor, rows, progress=False)) == 1
    loaded = dict(opened.named_parameters())
    for name, tensor in weights(alone).items():
        assert torch.equal(loaded[name.replace(".weight", ".default.weight")], tensor)


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


def test_another_seed_ends_elsewhere_and_other_batches_do_not(alone, config_of, tmp_path):
    parts = train(config_of(tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4))
    assert_same(alone, parts)
    other = train(config_of(tmp_path / "other", seed=1))
    assert distance(alone, other) > 1 and not torch.allclose(losses(alone), losses(other), rtol=1e-3)


def test_an_adam_that_enlarges_nothing_gives_the_same_weights(config_of, tmp_path, monkeypatch):
    def calm(config):
        args = training_arguments(config)
        args.adam_epsilon = 1e-2
        return args

    monkeypatch.setattr(trainer, "training_arguments", calm)
    whole = train(config_of(tmp_path / "whole"))
    parts = train(config_of(tmp_path / "parts", batch_size=2, gradient_accumulation_steps=4))
    assert distance(whole, parts) < 1e-4


def test_the_same_call_again_trains_nothing_again(alone, config_of, capsys):
    again = train(config_of(Path(alone.adapter).parent))
    assert "going on from" in capsys.readouterr().out and distance(alone, again) == 0
    assert again.history[:6] == alone.history[:6]


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


def test_held_out_rows_keep_their_images_and_give_way_to_those_of_the_next_run(sample, config_of, tmp_path):
    shutil.copytree(sample.parent, tmp_path / "data")
    config = config_of(tmp_path / "out", dataset=tmp_path / "data" / sample.name, test_rows=20)
    rows, counts = load_rows(config)
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
    load_rows(config_of(tmp_path / "elsewhere"))  # a run without test_rows trains on them
    with pytest.raises(FileNotFoundError, match="held_out is not there: train with test_rows"):
        load_held_out(tmp_path / "elsewhere")


def test_without_a_row_nothing_is_trained(config_of, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"text": "What?", "image": "gone.png", "response": "A bag."}))
    with pytest.raises(ValueError, match="has no row that can be used: the reasons are in .*rejected.csv"):
        train(config_of(tmp_path / "out", dataset=bad))
    assert os.listdir(tmp_path / "out") == ["rejected.csv"]


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


# On two processes


def test_what_the_main_process_finds_or_raises_reaches_the_other(tmp_path):
    codes, printed = call(tmp_path / "printed.txt", several_processes.check_on_main, tmp_path, processes=2)
    assert codes == [0, 0], printed
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "printed.txt"]


@pytest.fixture
def half(config_of, tmp_path):
    """The settings of the same run with half as many rows in a batch."""
    return config_of(tmp_path / "out", batch_size=4)


def launch(*command):
    """Runs a command on two processes with `accelerate launch`, as the README says: (exit code, what was printed)."""
    config = ["--config_file", ROOT / "configs" / "ddp.yaml", "--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *config]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*launcher, *command], env=environment, capture_output=True, text=True, timeout=400)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_two_processes_of_which_one_dies_end_where_one_ends(alone, half, tmp_path):
    folder = Path(half.output_dir)
    environment = launch_environment(ROOT / "configs" / "ddp.yaml")
    arguments = {"processes": 2, "environment": environment}
    codes, printed = call(tmp_path / "printed.txt", several_processes.train_and_die, half, **arguments)
    assert codes[1] == -signal.SIGKILL and not (folder / "results.json").exists(), printed[-3000:]
    stamp = json.loads((folder / "checkpoint-3" / "complete.json").read_text())
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= stamp["files"].keys()
    half.save(tmp_path / "run.yaml")
    code, printed = launch("-m", "vlmhelpers", "train", tmp_path / "run.yaml")
    assert code == 0, printed[-3000:]
    assert printed.count("going on from") == 1 and "checkpoint-3" in printed  # said by one of the two
    assert printed.count("step 6/6, loss") == 1
    assert_same(alone, RunResult.read(folder))


@pytest.mark.slow
def test_a_sharded_model_ends_where_a_whole_one_ends(alone, half, tmp_path):
    folder = Path(half.output_dir)
    arguments = {"processes": 2, "environment": launch_environment(ROOT / "configs" / "fsdp.yaml")}
    config = replace(half, gradient_checkpointing=True)
    codes, printed = call(tmp_path / "printed.txt", several_processes.train_sharded, config, **arguments)
    assert codes == [0, 0], printed[-3000:]
    assert (folder / "checkpoint-3" / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()  # the second one's part
    assert_same(alone, RunResult.read(folder))
