"""Runs that survive an interruption: whole checkpoints of this very run."""

import hashlib
import json
from pathlib import Path

from safetensors import safe_open
from transformers import TrainerCallback

from vlmhelpers.common.distributed import on_main
from vlmhelpers.common.files import atomic_file

STAMP = "complete.json"  # written last into a checkpoint: what it was trained with, and the size of each file

# Training arguments that change where and how often something is written, not what is learned.
_IRRELEVANT = tuple(
    "output_dir run_name report_to logging log_ save eval disable_tqdm hub push_ dataloader_num dataloader_pin "
    "ddp_timeout dataloader_pre dataloader_per resume project trackio include_ metric load_best greater_is".split()
)


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
        with atomic_file(folder / STAMP, encoding="utf-8") as file:
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
