"""The code beside the panel: notebook cells, a settings file and a command that do what a `RunConfig` says."""

import os
import shlex
from dataclasses import asdict
from pathlib import Path

import yaml

from vlmhelpers.studio.cell_writer import Code, write_cells
from vlmhelpers.training.background import CONFIG
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

_TRAINERS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO", "rloo": "RLOO", "distillation": "Distillation"}
_TRAINERS |= {"ppo": "methods.PPO", "reward": "methods.Reward"}
_COLLATORS = {"sft": "vlm.VisionCollator", "kto": "vlm.batches.RatedCollator"}
_OF_MEMORY = {"vision": False, "gradient_checkpointing": True, "full": False, "last_layers": None, "reference": False}
_OF_MEMORY |= {"experts": False}
_NOT_OF_TRAINER = ("loss", "rewards", "reward_model", "teacher")


def cells(config: RunConfig) -> list[str]:
    """The notebook cells that do by hand what `vlm.train(config)` does on one process, on a CPU to the last bit.

    They run in order in a fresh kernel. Each is formatted and has at most 25 lines. Which reader they call, and how a
    teacher or a reward model is loaded, depends on the files that are there. A stream is trained by `vlm.train` itself.
    """
    if config.streaming:
        first, _, call = write_cells("stream.jinja", {"settings": _changed(config, *vars(config))})
        return [first, call]  # which need no other imports
    return write_cells("run.jinja", _names(config))


def _names(config):
    """What the templates name."""
    from vlmhelpers.data.readers.recognition import reader_call

    method, name = METHODS[config.method], _TRAINERS.get(config.method, "methods.Preference")
    group = 2 if config.method == "ppo" else config.num_generations or method.group
    batch, accumulation = _batches(config)
    other = config.reward_model or config.teacher
    reader, fields = reader_call(config.dataset, method.rows, config.image_root, **config.named_fields)
    return {
        "config": config,
        "method": method,
        "unsloth": config.runs_on != "transformers",
        "reader": Code(f"vlm.{reader}" if method.rows == "messages" else f"vlm.data.{reader}"),
        "fields": fields,
        "chosen": _chosen(config),
        "memory": {name: value for name, value in config.memory_options.items() if value != _OF_MEMORY[name]},
        "targets": _changed(config, "language", "vision", "attention", "mlp"),
        "collator": Code(_COLLATORS.get(config.method, "vlm.batches.PreferenceCollator")),
        "batch": Code(batch),
        "accumulation": Code(accumulation),
        "group": group,
        "evaluated": Code(f"ceil({batch} / {group}) * {group}" if group else batch),
        "other": other,
        "is_adapter": bool(other) and Path(other, "adapter_config.json").is_file(),
        "own": _own(config),
        "arguments": Code(f"{name}Config"),
        "trainer": Code(f"{name}Trainer"),
        "folder": Path(config.output_dir).name,
    }


def _changed(config, *names):
    """Those settings that are not at their default."""
    values = {name: getattr(config, name) for name in names}
    return {name: value for name, value in values.items() if value != RunConfig.described()[name].default}


def _chosen(config):
    """Arguments of `suggest`: what is chosen it takes as it is."""
    chosen = {name: value for name, value in config.chosen.items() if value is not None}
    return _changed(config, "method", "weights") | ({"bits": 16} if config.changes_base else {}) | chosen


def _batches(config):
    """The names of the rows in a batch and of the batches in a step, which batches.jinja may change."""
    batch, accumulation = "values.batch_size", "values.gradient_accumulation_steps"
    free_batch, free_accumulation = config.batch_size is None, config.gradient_accumulation_steps is None
    if METHODS[config.method].group:
        free_batch &= not free_accumulation
    elif METHODS[config.method].rows in ("pairs", "rated"):
        free_accumulation &= free_batch
    else:
        return batch, accumulation
    return "batch_size" if free_batch else batch, "accumulation" if free_accumulation else accumulation


def _own(config):
    """Arguments of the trainer's configuration that only some methods have."""
    names = [name for name in METHODS[config.method].settings if name not in _NOT_OF_TRAINER]
    own = {name: value for name in names if (value := getattr(config, name)) is not None}
    if config.method == "dpo":
        own["loss_type"] = (config.loss or "sigmoid+sft").split("+")
    elif config.loss:
        own["loss_type"] = config.loss
    elif config.method in ("orpo", "simpo", "cpo"):
        own = {"preference_loss": config.method} | own
    elif config.method == "distillation":
        own = {"beta": 0.0} | own
    return own


def yaml_text(config: RunConfig) -> str:
    """The settings that are not at their default as YAML, whose paths are absolute: `RunConfig.read` gives the same."""
    settings = RunConfig.described()
    values = asdict(config.with_absolute_paths())
    changed = {name: value for name, value in values.items() if value != settings[name].default}
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)


def command_line(config: RunConfig, file: str | os.PathLike | None = None) -> str:
    """The command that does the same, of the settings in `file`; None: of those that `TrainingRun.start` writes."""
    file = file or os.path.join(config.output_dir, CONFIG)
    return f"python -m vlmhelpers train {shlex.quote(os.path.abspath(file))}"
