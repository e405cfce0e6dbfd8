"""A run that is killed hard, more than once, ends where an undisturbed one ends."""

import os
import signal
from types import SimpleNamespace

import interrupted_run
import pytest
import torch
from interrupted_run import make_trainer
from safetensors.torch import load_file
from several_processes import call
from transformers import TrainerState

from vlmhelpers.training import callbacks as training
from vlmhelpers.training.checkpoints import STAMP, resume_from


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
    assert "checkpoint-6: it was not written to its end" in out and "going on from" in out and "checkpoint-3" in out
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


def test_other_settings_start_afresh(finished, capsys):
    assert resume_from(make_trainer(finished, learning_rate=1e-3)) is None
    assert "checkpoint-12: it was trained with another learning_rate" in capsys.readouterr().out
    assert resume_from(make_trainer(finished, logging_steps=7)).endswith("checkpoint-12")


def test_a_truncated_checkpoint_is_skipped(finished, tmp_path, capsys):
    for step in (9, 12):
        os.makedirs(tmp_path / f"checkpoint-{step}")
        for file in (finished / f"checkpoint-{step}").iterdir():
            (tmp_path / f"checkpoint-{step}" / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "checkpoint-12" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    trainer = make_trainer(tmp_path)
    assert resume_from(trainer).endswith("checkpoint-9")
    assert "checkpoint-12: adapter_model.safetensors is incomplete" in capsys.readouterr().out
    (tmp_path / "checkpoint-9" / STAMP).write_text("{")
    trainer.state.global_step = 5
    with pytest.raises(RuntimeError, match="has trained 5 steps"):
        resume_from(trainer)


def test_a_notebook_gets_a_chart_that_is_drawn_again(monkeypatch):
    shown = []
    display = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(training, "_open_display", lambda: display)
    monkeypatch.setattr(training.time, "perf_counter", iter(range(0, 1000, 10)).__next__)
    plot, state = training.LossPlot(), TrainerState(max_steps=10)
    plot.on_train_begin(None, state, None)
    for state.global_step in (5, 10):
        logs = {"loss": 6.0 / state.global_step}
        state.log_history.append(logs | {"step": state.global_step})
        plot.on_log(None, state, None, logs=logs)
    plot.on_train_end(None, state, None)
    assert len(shown) == 2  # drawn at each log, and not again at the end
    line = shown[-1].axes[0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([5, 10], [1.2, 0.6])
    assert shown[0].axes[0].get_title("left").startswith("step 5/10, loss 1.200")
    assert shown[0].axes[0].get_title("left").endswith("s left")


def test_a_collator_and_a_loss_that_do_not_go_together_are_refused_at_once(finished):
    trainer = make_trainer(finished)
    trainer.data_collator = SimpleNamespace(logits="labeled")
    with pytest.raises(ValueError, match=r'logits="labeled"\) needs SFTConfig\(loss_type="nll"\), not .chunked_nll'):
        training.watch(trainer)
