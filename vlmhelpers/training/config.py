"""The settings of one training run, as a Python object, a JSON or a YAML file."""

import html
import json
import math
import os
from dataclasses import MISSING, asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import get_args

from vlmhelpers.common.files import atomic_file

_PATHS = ("dataset", "output_dir", "image_root")  # in a file they start at the file's folder
_LEAST = dict.fromkeys("batch_size gradient_accumulation_steps lora_r lora_alpha logging_steps save_steps".split(), 1)
_LEAST |= {"test_rows": 0, "warmup_steps": 0, "learning_rate": 0, "epochs": 0, "max_length": 1, "max_pixels": 1}
_CHOICES = {"bits": (4, None), "backend": ("auto", "transformers", "unsloth"),
            "cache": ("none", "pixels", "features")}  # fmt: skip
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {str: "a text (in quotes, where it looks like a number)", int: "a whole number", float: "a number",
          bool: "true or false"}  # fmt: skip


@dataclass(frozen=True)
class RunConfig:
    """What one training run is made of; the defaults suit a real model on a GPU.

    A value of another type is converted where it can mean one thing only: "1e-4" for a number, as YAML reads it,
    or "none" where nothing is allowed. Raises ValueError for any other value. Shows itself as a table in a notebook.
    """

    model_id: str  # a hub id, a folder, or a family, which stands for its tiny base: see choose_model
    dataset: str  # a JSONL file, as read_jsonl takes it
    output_dir: str  # checkpoints, the adapter, this config, results and rejected rows

    # The data
    image_root: str | None = None  # the folder that image paths start from; None: that of the dataset
    text_field: str = "text"
    image_field: str = "image"
    response_field: str = "response"
    test_rows: int = 0  # held out of the training
    max_length: int | None = None  # tokens; a longer row is an error, as nothing is ever cut. None: no limit
    max_pixels: int | None = None  # of an image after resizing; None: as the model's processor has it

    # The model and its adapters
    bits: int | None = 4  # 4: QLoRA; None: the weights as they are
    backend: str = "auto"  # or "transformers", "unsloth"
    lora_r: int = 16  # rank of the adapters
    lora_alpha: int = 16  # their scale is lora_alpha / lora_r
    language: bool = True  # adapters in the language model
    vision: bool = False  # adapters in the vision tower, and on the projector
    attention: bool = True  # adapters on the linear layers of the attention
    mlp: bool = True  # adapters on the other linear layers

    # The training
    epochs: float = 3
    max_steps: int = -1  # optimizer steps, instead of epochs
    batch_size: int = 1  # rows per device
    gradient_accumulation_steps: int = 8  # batches per optimizer step
    learning_rate: float = 1e-4
    lr_scheduler_type: str = "cosine"
    warmup_steps: int = 10
    adam_beta2: float = 0.999
    max_grad_norm: float = 1.0
    gradient_checkpointing: bool | None = None  # memory for time; None: on a GPU
    cache: str = "none"  # on disk, under output_dir: "pixels", or "features" of a frozen vision tower as well
    seed: int = 0  # the split, the order of the rows, the start of the adapters

    # What is written
    logging_steps: int = 10
    save_steps: int = 100  # optimizer steps from one checkpoint to the next
    report_to: str = "none"  # or "tensorboard", "trackio", "wandb"

    def __post_init__(self):
        for field in fields(self):
            value = _converted(field, getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps is {self.max_steps}: a number of steps, or -1 to train by epochs")
        if not (self.language or self.vision):
            raise ValueError("language and vision are both false: nothing would be trained")
        if self.vision and self.cache == "features":
            raise ValueError(
                "cache is 'features', but vision is true: a tower that is trained sees anew; choose 'pixels'"
            )

    @classmethod
    def read(cls, path, **changes):
        """The settings in a .json, .yaml or .yml file, with `changes` in place of some of them.

        Relative paths in the file start at the file's folder, those in `changes` at the working directory. Raises
        ValueError, with the file's name, for an unknown or missing setting and for what the class refuses.
        """
        settings = _load(Path(path))
        _refuse_unknown(settings, path)
        _refuse_unknown(changes, "the changes")
        folder = Path(path).parent
        settings = {name: _from_folder(folder, name, value) for name, value in settings.items()} | changes
        missing = [f.name for f in fields(cls) if f.default is MISSING and settings.get(f.name) in (None, "")]
        if missing:
            raise ValueError(f"{path} does not say {', '.join(missing)}: add a line for each")
        try:
            return cls(**settings)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path):
        """Writes all settings to a .json, .yaml or .yml file, with paths relative to its folder."""
        path = Path(path)
        settings = {name: _to_folder(path.parent, name, value) for name, value in asdict(self).items()}
        with atomic_file(path, encoding="utf-8") as file:
            if _is_yaml(path):
                import yaml

                yaml.safe_dump(settings, file, sort_keys=False, allow_unicode=True)
            else:
                json.dump(settings, file, indent=1, ensure_ascii=False)

    def _repr_html_(self):
        cell = '<td style="text-align:left">{}</td>'
        rows = [cell.format(name) + cell.format(html.escape(str(value))) for name, value in asdict(self).items()]
        return f"<table><tr><th>setting</th><th>value</th></tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def _is_yaml(path):
    if path.suffix.lower() not in (".json", ".yaml", ".yml"):
        raise ValueError(f"{path} is no .json, .yaml or .yml file. Name one that is.")
    return path.suffix.lower() != ".json"


def _load(path):
    """The file's names and values. Raises ValueError for what is no such file."""
    import yaml

    is_yaml, text = _is_yaml(path), path.read_text(encoding="utf-8-sig")
    try:
        settings = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings. Write one `name: value` for each.")
    return settings


def _refuse_unknown(settings, source):
    known = [field.name for field in fields(RunConfig)]
    for name in settings:
        if name not in known:
            close = get_close_matches(str(name), known, n=1, cutoff=0)
            raise ValueError(f"{source}: there is no setting {name!r}. Did you mean {close[0]!r}?")


def _from_folder(folder, name, value):
    """A path as it is seen from anywhere; a model's id is a path only where that folder exists."""
    is_path = isinstance(value, str) and value != "" and (name in _PATHS or name == "model_id")
    if not is_path or (name == "model_id" and not (folder / value).is_dir()):
        return value
    return os.path.abspath(folder / Path(value).expanduser())


def _to_folder(folder, name, value):
    if value is None or not (name in _PATHS or (name == "model_id" and os.path.isdir(value))):
        return value
    try:
        return os.path.relpath(value, folder)
    except ValueError:  # on another drive
        return os.path.abspath(value)


def _converted(field, value):
    """The value of a field in the field's type. Raises ValueError for one that is not allowed."""
    kinds = get_args(field.type) or (field.type,)
    kind, optional = kinds[0], len(kinds) > 1
    if value is None or (isinstance(value, str) and optional and value.lower() in ("none", "null", "")):
        if not optional:
            raise ValueError(f"{field.name} has no value: it is {_KINDS[kind]}")
        converted = None
    else:
        converted = _as(kind, value)
        if converted is None:
            also = ", or null" if optional else ""
            raise ValueError(f"{field.name} is {value!r}: it should be {_KINDS[kind]}{also}")
    choices = _CHOICES.get(field.name)
    if choices and converted not in choices:
        raise ValueError(f"{field.name} is {value!r}: choose {' or '.join(map(str, choices))}")
    if field.name in _LEAST and converted is not None and converted < _LEAST[field.name]:
        raise ValueError(f"{field.name} is {converted}: the least is {_LEAST[field.name]}")
    return converted


def _as(kind, value):
    """`value` as `kind`, or None where it is something else."""
    if kind is str:
        return os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS.get(str(value).lower())
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(number) or (kind is int and not number.is_integer()):
        return None
    return kind(number)
