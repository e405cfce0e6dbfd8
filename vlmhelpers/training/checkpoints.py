"""Checkpoints that an interrupted run can go on from: complete ones, written by the same run."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import sort_checkpoints

from vlmhelpers.common.digests import changed_settings, digest
from vlmhelpers.common.distributed import on_main
from vlmhelpers.common.files import atomic_file

STAMP = "complete.json"  # written last into a checkpoint: what it was trained with, and the size of each file

# How training arguments begin that change where and how often something is written, not what is learned.
_IRRELEVANT = tuple(
    "output_dir run_name report_to logging log_ save eval disable_tqdm hub push_ dataloader_num ddp_timeout resume "
    "dataloader_pin dataloader_pre dataloader_per project trackio include_ metric load_best greater_is".split()
)


def resume_from(trainer: Trainer) -> str | None:
    """The newest complete checkpoint of this run, for `trainer.train(resume_from_checkpoint=...)`, or None.

    It was written to its end with the same arguments, adapters, data and base. Makes the trainer stamp its checkpoints.
    Raises RuntimeError without one for a model that is partly trained. All processes have to call it.
    """
    settings = _settings(trainer)
    trainer.remove_callback(_StampCheckpoints)
    trainer.add_callback(_StampCheckpoints(settings))
    return on_main(lambda: _newest_complete(trainer, settings))


def _newest_complete(trainer, settings):
    for folder in map(Path, reversed(sort_checkpoints(trainer.args.output_dir))):
        flaw = _flaw(folder, settings)
        print(f"skipping {folder}: {flaw}" if flaw else f"going on from {folder}")
        if not flaw:
            return str(folder)
    if trainer.state.global_step > 0:
        trained = f"the model in memory has trained {trainer.state.global_step} steps without a checkpoint"
        raise RuntimeError(f"{trained} in {trainer.args.output_dir}: load the model and make the trainer again")
    return None


class _StampCheckpoints(TrainerCallback):
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


def _flaw(folder, settings):
    """Why a checkpoint cannot be used, or None."""
    try:
        stamp = json.loads((folder / STAMP).read_text())
        for name, size in stamp["files"].items():
            if (folder / name).stat().st_size != size:
                return f"{name} is incomplete"
        for weights in folder.glob("*.safetensors"):  # a header of the right size may still be damaged
            with safe_open(weights, "pt") as file:
                file.keys()
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        return f"it was not written to its end ({type(error).__name__})"
    changed = changed_settings(stamp["settings"], settings)
    return f"it was trained with another {', '.join(changed)}" if changed else None


def _settings(trainer):
    """What decides the weights that a run ends with, as JSON values by name."""
    settings = {k: v for k, v in trainer.args.to_dict().items() if not k.startswith(_IRRELEVANT)}
    model, data = trainer.model, trainer.train_dataset
    if trainer.args.world_size > 1:
        settings["number of processes"] = trainer.args.world_size
    settings["base model"] = model.config._name_or_path
    trained = [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]
    settings["trained parameters"] = digest(trained)
    for name, config in getattr(model, "peft_config", {}).items():
        settings[f"adapter {name}"] = {k: v for k, v in config.to_dict().items() if k != "inference_mode"}
    texts = data.with_format(None).select_columns([name for name in data.column_names if name != "images"])
    some = range(0, len(data), max(1, len(data) // 64))  # evenly spread
    settings["training data"] = f"{len(data)} rows, {digest(*(texts[index] for index in some))}"
    return json.loads(json.dumps(settings, default=lambda v: sorted(v) if isinstance(v, set) else str(v)))
