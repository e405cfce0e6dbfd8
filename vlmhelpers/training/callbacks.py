"""Around TRL's trainers: a live picture of the loss, and runs that survive an interruption."""

import sys
import time

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback

from vlmhelpers.common.chart import Chart


def watch(trainer):
    """Draws the trainer's loss while it trains, with the time left; a line of text where there is no notebook.

    Replaces the trainer's own progress bar and its printed dictionaries. Raises ValueError for a collator and a loss
    that do not go together, which would fail at the first step without a reason.
    """
    if getattr(trainer.data_collator, "logits", "all") == "labelled" and trainer.args.loss_type != "nll":
        raise ValueError(
            f'VisionCollator(logits="labelled") needs SFTConfig(loss_type="nll"), not {trainer.args.loss_type!r}'
        )
    for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback, LossPlot):
        trainer.remove_callback(callback)
    trainer.add_callback(LossPlot())


class LossPlot(TrainerCallback):
    """Draws the training loss (nats per trained token) at every `logging_steps`, at most every two seconds."""

    def __init__(self):
        self.steps, self.losses = [], []
        self.display = None
        self.last_drawn = self.started = self.first_step = self.drawn = 0

    def on_train_begin(self, args, state, control, **kwargs):
        history = [entry for entry in state.log_history if "loss" in entry]  # of the run that this one goes on from
        self.steps, self.losses = [e["step"] for e in history], [e["loss"] for e in history]
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.display = _open_display() if state.is_world_process_zero else None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}):
            return
        self.steps.append(state.global_step)
        self.losses.append(logs["loss"])
        if time.perf_counter() - self.last_drawn > 2:
            self._show(state)

    def on_train_end(self, args, state, control, **kwargs):
        if self.steps and self.drawn != self.steps[-1]:
            self._show(state)

    def _show(self, state):
        if not state.is_world_process_zero:
            return
        self.last_drawn, self.drawn = time.perf_counter(), self.steps[-1]
        line = self._line(state)
        if self.display is None:
            print(line, flush=True)
        else:
            self.display.update(_chart(self.steps, self.losses, state.max_steps, line))

    def _line(self, state):
        spent = time.perf_counter() - self.started
        done = state.global_step - self.first_step
        left = spent / max(done, 1) * (state.max_steps - state.global_step)
        return (
            f"step {state.global_step}/{state.max_steps}, loss {self.losses[-1]:.3f}, "
            f"{spent:.0f} s so far, {left:.0f} s left"
        )


def _open_display():
    """A notebook's output that can be drawn again, or None outside a notebook."""
    if "ipykernel" not in sys.modules:
        return None
    from IPython.display import Markdown, display

    return display(Markdown("*the first loss comes with the first `logging_steps`*"), display_id=True)


def _chart(steps, losses, max_steps, title):
    chart = Chart(figsize=(6, 2.6), dpi=80, layout="constrained")
    axes = chart.add_subplot()
    axes.plot(steps, losses, marker="." if len(steps) < 40 else None)
    axes.set(xlim=(0, max_steps), ylim=(0, None), xlabel="step", ylabel="loss")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    return chart
