"""The loss is drawn while a trainer works."""

import copy
from types import SimpleNamespace

import pytest
from interrupted_run import make_trainer
from transformers import TrainerState

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.training import callbacks


def drawn(monkeypatch, logs_of):
    """The charts that are shown where steps 5 and 10 of 10 log `logs_of(step)`, ten seconds apart."""
    shown = []
    monkeypatch.setattr(callbacks, "_open_display", lambda: SimpleNamespace(update=shown.append))
    monkeypatch.setattr(callbacks.time, "perf_counter", iter(range(0, 1000, 10)).__next__)
    plot, state = callbacks.LossPlot(), TrainerState(max_steps=10)
    plot.on_train_begin(None, state, None)
    for state.global_step in (5, 10):
        state.log_history.append(logs_of(state.global_step) | {"step": state.global_step})
        plot.on_log(None, state, None, logs=logs_of(state.global_step))
    plot.on_train_end(None, state, None)
    return [chart.axes[0] for chart in shown]


def test_a_notebook_gets_a_chart_that_is_drawn_again(monkeypatch):
    first, last = drawn(monkeypatch, lambda step: {"loss": 6.0 / step})  # at each log, and not again at the end
    line = last.lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([5, 10], [1.2, 0.6])
    assert first.get_title("left").startswith("step 5/10, loss 1.200") and first.get_ylim()[0] == 0
    assert first.get_title("left").endswith("s left")


def test_where_answers_are_sampled_their_reward_is_drawn_also_below_zero(monkeypatch):
    last = drawn(monkeypatch, lambda step: {"loss": 0.0, "reward": -step / 10})[-1]
    assert last.lines[0].get_ydata().tolist() == [-0.5, -1.0] and last.get_ylim()[0] == -1
    assert last.get_ylabel() == "reward" and "reward -1.000" in last.get_title("left")


@pytest.mark.parametrize(
    "family, tokens, where",
    [("qwen3-vl", 1, "embedding"), ("llama-3.2-vision", 1, "in its head"), ("llama-3.2-vision", 8, "embedding")],
)
def test_a_tokenizer_larger_than_the_embeddings_is_refused_before_training(tiny, family, tokens, where):
    model, processor = map(copy.deepcopy, tiny(family))
    trainer = SimpleNamespace(
        data_collator=VisionCollator(processor),
        model=model,
        args=SimpleNamespace(),
        remove_callback=lambda callback: None,
        add_callback=lambda callback: None,
        processing_class=processor,
    )
    callbacks.watch(trainer)
    processor.tokenizer.add_tokens([f"<part{i}>" for i in range(tokens)])
    with pytest.raises(
        ValueError, match=rf"{tokens} tokens, such as '<part0>', .*{where} .*resize_token_embeddings"
    ) as error:
        callbacks.watch(trainer)
    assert "trainable_token_indices" in str(error.value)
    model.resize_token_embeddings(len(processor.tokenizer))
    callbacks.watch(trainer)
    row = make_row("What is it?", "<part0>7")
    assert model(**trainer.data_collator([row])).loss.isfinite()


def test_a_collator_and_a_loss_that_do_not_go_together_are_refused_at_once(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.data_collator = SimpleNamespace(logits="labeled")
    with pytest.raises(ValueError, match=r'logits="labeled"\) needs SFTConfig\(loss_type="nll"\), not .chunked_nll'):
        callbacks.watch(trainer)
