"""The code beside the panel: notebook cells, a settings file and a command that do what a `RunConfig` says."""

import ast
import os
import re
import shlex
import tokenize
from dataclasses import asdict
from functools import cache
from io import StringIO
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vlmhelpers.training.background import CONFIG
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

_LINE = 120
_IMPORTS = {  # module -> names that cells may need: first classes, then functions
    "math": "ceil gcd",
    "pathlib": "Path",
    "datasets": "concatenate_datasets",
    "peft": "LoraConfig PeftConfig PeftModel",
    "transformers": "AutoProcessor set_seed",
    "trl": "DistillationConfig DistillationTrainer DPOConfig DPOTrainer GRPOConfig GRPOTrainer KTOConfig KTOTrainer "
    "RLOOConfig RLOOTrainer SFTConfig SFTTrainer",
    "vlmhelpers.training": "methods",
}
_STANDARD, _OURS = ("math", "pathlib"), ("vlmhelpers.training",)
_READERS = {  # kind of rows -> its reader, and what it calls response_field
    "messages": ("vlm.read_jsonl", "response_field"),
    "pairs": ("vlm.data.read_preferences", "chosen_field"),
    "rated": ("vlm.data.read_rated", "completion_field"),
    "prompts": ("vlm.data.read_prompts", "answer_field"),
}
_TRAINERS = {"sft": "SFT", "dpo": "DPO", "kto": "KTO", "grpo": "GRPO", "rloo": "RLOO", "distillation": "Distillation"}
_TRAINERS |= {"ppo": "methods.PPO", "reward": "methods.Reward"}
_GROUPS = {"grpo": 8, "rloo": 2}  # TRL's own number of samples for each prompt
_COLLATORS = {"sft": "vlm.VisionCollator", "kto": "vlm.batches.RatedCollator"}
_OF_MEMORY = {"vision": False, "gradient_checkpointing": True, "full": False, "last_layers": None, "reference": False}
_NOT_OF_TRAINER = ("loss", "rewards", "reward_model", "teacher")


class _Code(str):
    """What a template writes as it is; every other value becomes a literal."""


def cells(config: RunConfig) -> list[str]:
    """The notebook cells that do by hand what `vlm.train(config)` does on one process, on a CPU to the last bit.

    They run in order in a fresh kernel. Each is formatted and has at most 25 lines. Of all files, those in the folders
    of a teacher or a reward model alone are looked at.
    """
    text = _template("run.jinja").render(_names(config))
    first, *others = (_format(cell.strip()) for cell in re.split(r"^# %%\n", text, flags=re.MULTILINE)[1:])
    return [first, _imports("\n".join(others)), *others]


@cache
def _template(name):
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("cells")),
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, _Code) else _literal(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = _Code
    return environment.get_template(name)


def _literal(value):
    """A value as a formatter writes it: a text in double quotes, unless it holds more of them than of single ones."""
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if not isinstance(value, str):
        return repr(value)
    body = repr("'\"" + value)[4:-1]  # with both quotes in it, it is in single ones, and only these are escaped
    if value.count('"') > value.count("'"):
        return f"'{body}'"
    return '"{}"'.format(body.replace("\\'", "'").replace('"', '\\"'))


def _names(config):
    """What the templates name."""
    method, name = METHODS[config.method], _TRAINERS.get(config.method, "methods.Preference")
    group = 2 if config.method == "ppo" else config.num_generations or _GROUPS.get(config.method)
    batch, accumulation = _batches(config)
    other = config.reward_model or config.teacher
    reader, answer = _READERS[method.rows]
    renamed = {"response_field": answer} | {n: n for n in ("image_root", "text_field", "image_field")}
    return {
        "config": config,
        "method": method,
        "unsloth": config.runs_on != "transformers",
        "reader": _Code(reader),
        "fields": _changed(config, **renamed),
        "chosen": _chosen(config),
        "memory": {name: value for name, value in config.memory_options.items() if value != _OF_MEMORY[name]},
        "targets": _changed(config, **{n: n for n in ("language", "vision", "attention", "mlp")}),
        "collator": _Code(_COLLATORS.get(config.method, "vlm.batches.PreferenceCollator")),
        "batch": _Code(batch),
        "accumulation": _Code(accumulation),
        "group": group,
        "evaluated": _Code(f"ceil({batch} / {group}) * {group}" if group else batch),
        "other": other,
        "is_adapter": bool(other) and Path(other, "adapter_config.json").is_file(),
        "own": _own(config),
        "arguments": _Code(f"{name}Config"),
        "trainer": _Code(f"{name}Trainer"),
        "folder": Path(config.output_dir).name,
    }


def _changed(config, **names):
    """Arguments for those settings that are not at their default; `names`: what an argument is called, by setting."""
    described = RunConfig.described()
    return {
        argument: getattr(config, name)
        for name, argument in names.items()
        if getattr(config, name) != described[name].default
    }


def _chosen(config):
    """Arguments of `suggest`: it takes what is chosen as it is."""
    chosen = {name: value for name, value in config.chosen.items() if value is not None}
    return _changed(config, method="method", weights="weights") | ({"bits": 16} if config.changes_base else {}) | chosen


def _batches(config):
    """The names of the rows in a batch and of the batches in a step, which batches.jinja may change."""
    batch, accumulation = "values.batch_size", "values.gradient_accumulation_steps"
    free_batch, free_accumulation = config.batch_size is None, config.gradient_accumulation_steps is None
    if config.method in _GROUPS:
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


def _format(cell):
    """The cell with brackets closed up whose lines fit into one, or into one between the two, as formatters do it."""
    return re.sub(r"^([^\n#]*[(\[{])\n((?: {4}.*\n)*)([)\]}].*)$", _close_up, cell.strip(), flags=re.MULTILINE)


def _close_up(match):
    head, body, tail = match.groups()
    if any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(StringIO(match[0]).readline)):
        return match[0]
    inside = " ".join(line.strip() for line in body.splitlines()).removesuffix(",")
    if len(head + inside + tail) <= _LINE:
        return head + inside + tail
    if head.endswith("(") and len(inside) + 4 <= _LINE:
        return f"{head}\n    {inside}\n{tail}"
    return match[0]


def _imports(code):
    """The cell that imports what the others name."""
    used = {node.id for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Name)}
    found = {module: [name for name in names.split() if name in used] for module, names in _IMPORTS.items()}
    lines = {module: f"from {module} import {', '.join(names)}" for module, names in found.items() if names}
    groups = [[lines.pop(module) for module in of_group if module in lines] for of_group in (_STANDARD, _OURS)]
    groups.insert(1, ["import torch", *lines.values()])
    return "\n\n".join("\n".join(group) for group in groups if group)


def yaml_text(config: RunConfig) -> str:
    """The settings that are not at their default as YAML, whose paths are absolute: `RunConfig.read` gives the same."""
    settings = RunConfig.described()
    values = asdict(config.with_absolute_paths())
    changed = {name: value for name, value in values.items() if value != settings[name].default}
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)


def command_line(config: RunConfig) -> str:
    """The command that does the same, of the settings that `TrainingRun.start` and `RunConfig.save` write there."""
    folder = config.with_absolute_paths().output_dir
    return f"python -m vlmhelpers train {shlex.quote(os.path.join(folder, CONFIG))}"
