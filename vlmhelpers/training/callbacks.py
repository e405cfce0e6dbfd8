"""The loss of a trainer at work, as a chart or lines of text, its best validation, and experiment trackers."""

import importlib.util
import math
import os
import time
from contextlib import AbstractContextManager

import torch
from requests.utils import get_netrc_auth
from transformers import PrinterCallback, ProcessorMixin, ProgressCallback, Trainer, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback

from vlmhelpers.common.display import in_notebook
from vlmhelpers.models.loading import check_vocabulary

_TRACKERS = {  # the packages of which one is needed, and where the run is seen
    "tensorboard": (["tensorboard", "tensorboardX"], "TensorBoard: `tensorboard --logdir OUTPUT_DIR` shows the run."),
    "trackio": (["trackio"], "Trackio: `trackio show` shows the run, from this machine's disk."),
    "wandb": (["wandb"], "Weights & Biases: recorded under the account of the key that was found."),
}
_OFFLINE = "Weights & Biases: recorded offline in ./wandb; `wandb login` and `wandb sync` upload it later."


def report_to(name: str) -> str:
    """`name` for `SFTConfig(report_to=...)`: "none", "tensorboard", "trackio" or "wandb"; prints where the run is seen.

    Without a key, Weights & Biases records offline. Raises ValueError for another name and for a missing package.
    """
    if name == "none":
        return name
    if name not in _TRACKERS:
        raise ValueError(f"REPORT_TO={name!r}: choose none, {', '.join(_TRACKERS)}")
    packages, hint = _TRACKERS[name]
    if not any(map(importlib.util.find_spec, packages)):
        raise ValueError(f"REPORT_TO={name!r} needs a package: pip install {name}, and restart the kernel")
    if name == "wandb":
        host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
        if not (os.environ.get("WANDB_API_KEY") or get_netrc_auth(host)):  # where wandb itself searches for a key
            os.environ.setdefault("WANDB_MODE", "offline")
        hint = _OFFLINE if os.environ.get("WANDB_MODE") == "offline" else hint
    print(hint)
    return name


def watch(trainer: Trainer, chart: bool = True) -> None:
    """Lets the trainer draw its loss; without a `chart`, print it at the end.

    Raises ValueError for a collator and a loss that do not go together, and for a tokenizer larger than the model's
    embeddings.
    """
    processor = getattr(trainer.data_collator, "processor", trainer.processing_class)
    if isinstance(processor, ProcessorMixin):  # not for rows of text alone
        check_vocabulary(processor, trainer.model)
    if getattr(trainer.data_collator, "logits", "all") == "labeled" and trainer.args.loss_type != "nll":
        found = trainer.args.loss_type
        raise ValueError(f'VisionCollator(logits="labeled") needs SFTConfig(loss_type="nll"), not {found!r}')
    for callback in (PrinterCallback, ProgressCallback, NotebookProgressCallback, LossPlot):
        trainer.remove_callback(callback)
    trainer.add_callback(LossPlot(chart))


class LossPlot(TrainerCallback):
    """Draws the loss in training and validation, at most every two seconds; of methods that have one, the reward.

    In supervised fine-tuning the loss is nats per trained token. Where answers are sampled it says nothing.
    """

    def __init__(self, chart: bool = True):
        self.chart = chart

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first_step = time.perf_counter(), state.global_step
        self.drawn_at = self.drawn_step = 0
        self.display = _open_display() if self.chart and state.is_world_process_zero else None

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.chart and "loss" in (logs or {}) and time.perf_counter() - self.drawn_at > 2:
            self._draw(state)

    def on_train_end(self, args, state, control, **kwargs):
        self._draw(state)

    def _draw(self, state):
        name = "reward" if any("reward" in entry for entry in state.log_history) else "loss"
        losses = {entry["step"]: entry[name] for entry in state.log_history if name in entry}
        if not state.is_world_process_zero or not losses or max(losses) == self.drawn_step:
            return
        self.drawn_at, self.drawn_step = time.perf_counter(), max(losses)
        spent = self.drawn_at - self.started
        left = spent / max(state.global_step - self.first_step, 1) * (state.max_steps - state.global_step)
        validated = {e["step"]: e[f"eval_{name}"] for e in state.log_history if f"eval_{name}" in e}
        line = f"step {state.global_step}/{state.max_steps}, {name} {losses[self.drawn_step]:.3f}, "
        if validated:
            line += f"validation {validated[max(validated)]:.3f}, "
        line += f"{spent:.0f} s so far, {left:.0f} s left"
        if self.display is None:
            print(line, flush=True)
            return
        self.display.update(_chart(losses, validated, name, state.max_steps, line))


def _chart(losses, validated, name, steps, title):
    from vlmhelpers.common.chart import Chart

    chart = Chart(figsize=(6, 2.6), dpi=80, layout="constrained")
    axes = chart.add_subplot()
    axes.plot(losses.keys(), losses.values(), marker="." if len(losses) < 40 else None, label="training")
    if validated:
        axes.plot(validated.keys(), validated.values(), marker=".", label="validation")
        axes.legend(fontsize=8)
    axes.set(xlim=(0, steps), ylim=(min(0, *losses.values()), None), xlabel="step", ylabel=name)
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(alpha=0.3)
    return chart


class BestValidation(TrainerCallback):
    """Notes a trainer's best validation, and ends training after `patience` others in a row without a better one.

    `metric`: "eval_loss", of which the lowest is the best, or "eval_reward", of which the highest is. `saves`: each one
    that is the best so far is saved, whatever save_steps says. All that it counts is in the trainer's state, and so in
    its checkpoints: a run that goes on from one ends as an undisturbed one does.
    """

    def __init__(self, metric: str, patience: int | None, saves: bool):
        self.metric, self.patience, self.saves = metric, patience, saves

    def on_train_begin(self, args, state, control, **kwargs):
        self._end_in_time(state, control)  # the checkpoint may be that of the end

    def on_evaluate(self, args, state, control, **kwargs):
        value = next(entry[self.metric] for entry in reversed(state.log_history) if self.metric in entry)
        if _is_better(self.metric, value, state.best_metric):
            state.best_metric, state.best_global_step = value, state.global_step
            control.should_save |= self.saves
        self._end_in_time(state, control)

    def _end_in_time(self, state, control):
        best = state.best_global_step or 0
        since = [entry for entry in state.log_history if self.metric in entry and entry["step"] > best]
        if self.patience and len(since) >= self.patience:
            control.should_save = control.should_training_stop = True


def _is_better(metric, value, best):
    if value is None or not math.isfinite(value):
        return False
    return best is None or (value > best if metric == "eval_reward" else value < best)


def validate_apart(trainer: Trainer) -> None:
    """Lets validations leave the random numbers of training alone: how many there are changes nothing of the result."""
    evaluate = trainer.evaluate

    def apart(*args, **kwargs):
        with random_state_kept():
            return evaluate(*args, **kwargs)

    trainer.evaluate = apart


def random_state_kept() -> AbstractContextManager:
    """A context after which torch draws, on the CPU and this process's GPU, what it would have drawn without it."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else [])


def _open_display():
    if not in_notebook():
        return None
    from IPython.display import Markdown, display

    return display(Markdown("*the first loss comes with the first `logging_steps`*"), display_id=True)
