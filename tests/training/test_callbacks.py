"""The loss is drawn while a trainer works."""

from types import SimpleNamespace

import pytest
from interrupted_run import make_trainer
from transformers import TrainerState

from vlmhelpers.training import callbacks


def test_a_notebook_gets_a_chart_that_is_drawn_again(monkeypatch):
    shown = []
    display = SimpleNamespace(update=shown.append)
    monkeypatch.setattr(callbacks, "_open_display", lambda: display)
    monkeypatch.setattr(callbacks.time, "perf_counter", iter(range(0, 1000, 10)).__next__)
    plot, state = callbacks.LossPlot(), TrainerState(max_steps=10)
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


def test_a_collator_and_a_loss_that_do_not_go_together_are_refused_at_once(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.data_collator = SimpleNamespace(logits="labeled")
    with pytest.raises(ValueError, match=r'logits="labeled"\) needs SFTConfig\(loss_type="nll"\), not .chunked_nll'):
        callbacks.watch(trainer)
