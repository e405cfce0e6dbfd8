"""Runs in processes of their own: killed ones, two at once and sharded ones end where an undisturbed one ends."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import interrupted_run
import pytest
import several_processes
import torch
from compare_runs import assert_same, distance, losses
from interrupted_run import make_trainer
from safetensors.torch import load_file
from several_processes import call, launch_environment

from vlmhelpers.training.checkpoints import resume_from
from vlmhelpers.training.run import RunResult, train

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

# One that is killed


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Makes a run in a process of its own: (exit code, what it printed)."""

    def run(output_dir, *death):
        printed = tmp_path_factory.mktemp("printed") / "printed.txt"
        (code,), out = call(printed, interrupted_run.run, output_dir, *death)
        assert code in (0, -signal.SIGKILL), out[-3000:]
        return code, out

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The output folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out = run(folder)
    assert code == 0 and "going on" not in out
    return folder


def test_killed_three_times_ends_with_the_same_weights(run, finished, tmp_path):
    assert run(tmp_path, 2, "step")[0] == -signal.SIGKILL  # before the first checkpoint
    code, out = run(tmp_path, 6, "save")  # in the middle of the second checkpoint
    assert code == -signal.SIGKILL and "going on" not in out
    code, out = run(tmp_path, 10, "step")
    assert code == -signal.SIGKILL
    assert "checkpoint-6: it was not written to its end. It is damaged-checkpoint-6 now" in out
    assert "going on from" in out and "checkpoint-3" in out
    code, out = run(tmp_path)
    assert code == 0 and "checkpoint-9" in out
    straight, resumed = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (finished, tmp_path))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_text_instead_of_a_plot_with_the_time_left(run, finished):
    _, out = run(finished)  # finished already: nothing is trained again
    assert "going on from" in out and "checkpoint-12" in out
    assert "step 12/12, loss " in out and "s left" in out
    assert "'loss':" not in out


def test_other_settings_are_refused(finished):
    with pytest.raises(ValueError, match="checkpoint-12 was trained before this has changed: learning_rate. "):
        resume_from(make_trainer(finished, learning_rate=1e-3))
    assert resume_from(make_trainer(finished, learning_rate=1e-3), accept_changes=True).endswith("checkpoint-12")
    assert resume_from(make_trainer(finished, logging_steps=7)).endswith("checkpoint-12")


def test_a_model_that_is_partly_trained_needs_a_checkpoint(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.state.global_step = 5
    with pytest.raises(RuntimeError, match="has trained 5 steps"):
        resume_from(trainer)


# Two at once


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


def test_two_processes_of_which_one_dies_end_where_one_ends(alone, half, tmp_path):
    folder = Path(half.output_dir)
    arguments = {"processes": 2, "environment": launch_environment(ROOT / "configs" / "ddp.yaml")}
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


def test_a_sharded_model_ends_where_a_whole_one_ends(alone, half, tmp_path):
    folder = Path(half.output_dir)
    arguments = {"processes": 2, "environment": launch_environment(ROOT / "configs" / "fsdp.yaml")}
    config = replace(half, gradient_checkpointing=True)
    codes, printed = call(tmp_path / "printed.txt", several_processes.train_sharded, config, **arguments)
    assert codes == [0, 0], printed[-3000:]
    assert (folder / "checkpoint-3" / "pytorch_model_fsdp_0" / "__1_0.distcp").is_file()  # the second one's part
    assert_same(alone, RunResult.read(folder))


def test_a_sharded_model_in_4_bits_learns_as_a_whole_one(half, config_of, tmp_path):
    config = replace(half, bits=4, gradient_checkpointing=True, max_steps=3)
    arguments = {"processes": 2, "environment": launch_environment(ROOT / "configs" / "fsdp_qlora.yaml")}
    codes, printed = call(
        tmp_path / "printed.txt", several_processes.train_sharded_in_4_bits, config, tmp_path, **arguments
    )
    assert codes == [0, 0], printed[-3000:]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["0.5 True"] * 2
    whole = train(config_of(tmp_path / "whole", bits=4, max_steps=3))
    assert torch.allclose(losses(whole), losses(RunResult.read(config.output_dir)), rtol=1e-6)


def test_of_a_sharded_model_the_best_weights_are_kept(half, tmp_path):
    options = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 14, "validation_rows": 8}
    best = replace(half, early_stopping_patience=1, load_best_model_at_end=True, sample_answers=1, **options)
    arguments = {"processes": 2, "environment": launch_environment(ROOT / "configs" / "fsdp.yaml")}
    codes, printed = call(tmp_path / "printed.txt", several_processes.train_sharded, best, **arguments)
    assert codes == [0, 0] and printed.count("no answers are sampled: each GPU holds a part") == 1, printed[-3000:]
    found = RunResult.read(best.output_dir)
    assert 1 < found.best_step == found.steps - 1 < 13
    shorter = replace(half, output_dir=str(tmp_path / "shorter"), **options | {"max_steps": found.best_step})
    codes, printed = call(tmp_path / "printed.txt", several_processes.train_sharded, shorter, **arguments)
    assert codes == [0, 0], printed[-3000:]
    assert distance(found, RunResult.read(shorter.output_dir)) == 0
