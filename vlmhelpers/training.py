"""Around TRL's trainers: a live picture of the loss, and runs that survive an interruption."""

import hashlib
import json
import sys
import time
from pathlib import Path

from safetensors import safe_open
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.utils.notebook import NotebookProgressCallback

from vlmhelpers.files import whole_file
from vlmhelpers.pictures import Chart
from vlmhelpers.processes import on_main

STAMP = "complete.json"  # written last into a checkpoint: what it was trained with, and the size of each file

# Training arguments that change where and how often something is written, not what is learned.
_IRRELEVANT = tuple(
    "output_dir run_name report_to logging log_ save eval disable_tqdm hub push_ dataloader_num dataloader_pin "
    "ddp_timeout dataloader_pre dataloader_per resume project trackio include_ metric load_best greater_is".split()
)


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


def resume_from(trainer):
    """The newest whole checkpoint of this very run, for `trainer.train(resume_from_checkpoint=...)`, or None.

    Looks in the trainer's `output_dir`, and marks the checkpoints that this trainer is about to write. A checkpoint
    counts only when it was written to its end and by the same settings (arguments, adapters, data, base model); each
    one that is skipped is printed with the reason. Raises RuntimeError when the model in memory is already partly
    trained and there is nothing to go on from: a fresh start would then not be one. Where there are several processes,
    all of them have to call it, and the main one decides.
    """
    settings = _settings(trainer)
    trainer.remove_callback(_StampCheckpoints)
    trainer.add_callback(_StampCheckpoints(settings))
    return on_main(lambda: _newest_whole(trainer, settings))


def _newest_whole(trainer, settings):
    for folder in _checkpoints(trainer.args.output_dir):
        flaw = _flaw(folder, settings)
        if flaw is None:
            print(f"going on from {folder}")
            return str(folder)
        print(f"skipping {folder}: {flaw}")
    if trainer.state.global_step > 0:
        raise RuntimeError(
            f"the model in memory has trained {trainer.state.global_step} steps, but {trainer.args.output_dir} holds "
            "no checkpoint to go on from: run the cells that load the model and make the trainer again"
        )
    return None


class _StampCheckpoints(TrainerCallback):
    """Writes the stamp into each checkpoint once everything else of it is on the disk."""

    def __init__(self, settings):
        self.settings = settings

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        args.distributed_state.wait_for_everyone()  # each process writes some of the files
        if not state.is_world_process_zero or not folder.is_dir():
            return
        files = [file for file in folder.rglob("*") if file.is_file() and file.name != STAMP]
        sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        with whole_file(folder / STAMP, encoding="utf-8") as file:
            json.dump({"settings": self.settings, "files": sizes}, file, indent=1)


def _checkpoints(output_dir):
    folders = [f for f in Path(output_dir).glob("checkpoint-*") if f.name.rpartition("-")[2].isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name.rpartition("-")[2]), reverse=True)


def _flaw(folder, settings):
    """Why a checkpoint cannot be used, or None."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        for name, size in stamp["files"].items():
            if (folder / name).stat().st_size != size:
                return f"{name} is not whole"
        for weights in folder.glob("*.safetensors"):
            with safe_open(weights, "pt") as file:
                file.keys()
    except (OSError, ValueError, KeyError) as error:
        return f"it was not written to its end ({type(error).__name__})"
    changed = sorted(k for k in settings | stamp["settings"] if settings.get(k) != stamp["settings"].get(k))
    return f"it was trained with another {', '.join(changed)}" if changed else None


def _settings(trainer):
    """What decides the weights that a run ends with, as JSON values by name."""
    settings = {k: v for k, v in trainer.args.to_dict().items() if not k.startswith(_IRRELEVANT)}
    model = trainer.model
    if trainer.args.world_size > 1:
        settings["number of processes"] = trainer.args.world_size
    settings["base model"] = model.config._name_or_path
    settings["trained parameters"] = _digest(
        (n, tuple(p.shape)) for n, p in model.named_parameters() if p.requires_grad
    )
    for name, config in getattr(model, "peft_config", {}).items():
        settings[f"adapter {name}"] = {k: v for k, v in config.to_dict().items() if k != "inference_mode"}
    settings["training data"] = _data_digest(trainer.train_dataset)
    return json.loads(
        json.dumps(settings, default=lambda v: sorted(v) if isinstance(v, set) else str(v), sort_keys=True)
    )


def _data_digest(dataset, looked_at=64):
    """A digest of the number of rows and of the messages of some of them, evenly spread."""
    rows = range(0, len(dataset), max(1, len(dataset) // looked_at))
    texts = dataset.with_format(None).select_columns([c for c in dataset.column_names if c != "images"])
    return f"{len(dataset)} rows, {_digest(texts[i] for i in rows)}"


def _digest(values):
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
