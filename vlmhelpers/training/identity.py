"""The identity of a run: everything that decides the weights it ends with, by name, so that a change can be named."""

import json
import os
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, IterableDataset

from vlmhelpers.common.digests import changed_settings, digest, tensors_digest
from vlmhelpers.common.environment import data_dir
from vlmhelpers.common.file_digests import file_digest
from vlmhelpers.common.images import image_identity
from vlmhelpers.common.version import VERSION
from vlmhelpers.data.rows import READER_FEATURES, first_rows, stream_plain_rows
from vlmhelpers.data.schema import KINDS, REJECTED_IMAGES, kind_of
from vlmhelpers.models.identity import model_identity, processor_identity
from vlmhelpers.training.config import RunConfig

if TYPE_CHECKING:  # what is finished is recognized without torch
    from transformers import Trainer

_LIBRARIES = "torch torchvision transformers trl peft accelerate bitsandbytes".split()
# How training arguments begin that change where and how often something is written, not what is learned.
_IRRELEVANT = tuple(
    "output_dir run_name report_to logging log_ save eval disable_tqdm hub push_ dataloader_num ddp_ resume "
    "gradient_checkpointing dataloader_pin dataloader_pre dataloader_per project trackio "
    "include_ metric load_best greater_is".split()
)
# Settings of a RunConfig that act by what is read.
_OF_FILES = "dataset output_dir image_root text_field image_field response_field".split()
# How the best validation is found and what it decides: nothing in a run that goes on without.
_OF_BEST = ("early_stopping_patience", "load_best_model_at_end", "steps between validations", "metric")
_OF_BEST += ("validation data", "validation images")
_OTHER_MODELS = ("reward_model", "teacher")  # settings that name a model besides the one that is trained
_HEAD = 100  # rows by which a stream is known
_OF_MODELS = (".safetensors", ".json", ".jinja", ".model", ".txt", ".bin")  # endings of what transformers reads


def run_identity(trainer: "Trainer") -> dict:
    """The identity of the run that a trainer is about to start, as JSON values by name.

    Its arguments, all texts and images of its rows, the base's weights, precision and configuration, the adapters and
    what they start from, rewards with the weights of a reward model, a teacher's weights, the processor with its chat
    template, the collator, the number of processes, the versions; where the best validation decides, how it is found.
    """
    model, args = trainer.model, trainer.args
    found = {k: v for k, v in args.to_dict().items() if not k.startswith(_IRRELEVANT)}
    found["number of processes"] = args.world_size
    found |= rows_identity(trainer.train_dataset) | model_identity(model) | _weights_identity(model)
    found |= _others_identity(trainer) | processor_identity(trainer.processing_class)
    options = getattr(trainer.data_collator, "__dict__", {}).items()
    options = {name: value for name, value in options if isinstance(value, (str, int, float, type(None)))}
    found["collator"] = {"class": type(trainer.data_collator).__name__} | options
    found |= _validation_identity(trainer)
    found |= versions(*_LIBRARIES, *(["unsloth"] if "unsloth" in sys.modules else []))
    return json.loads(json.dumps(found, default=lambda value: sorted(value) if isinstance(value, set) else str(value)))


def _validation_identity(trainer):
    """How the best validation is found, and what it decides; nothing where no validation decides anything."""
    from vlmhelpers.training.callbacks import BestValidation

    best = next((found for found in trainer.callback_handler.callbacks if isinstance(found, BestValidation)), None)
    if best is None:
        return {}
    rows = rows_identity(trainer.eval_dataset)
    values = (best.patience, best.saves, trainer.args.eval_steps, best.metric, *rows.values())
    return {name: value for name, value in zip(_OF_BEST, values, strict=False) if value}


def _others_identity(trainer):
    """What besides the model decides: the rewards by their names, a reward model and a teacher by their weights."""
    found = {}
    for number, reward in enumerate(getattr(trainer, "reward_funcs", [])):
        model = getattr(reward, "model", None)
        of_model = [tensors_digest(model.named_parameters()), reward.mean, reward.std] if model else []
        found[f"reward {number + 1}"] = [getattr(reward, "__name__", type(reward).__name__), *of_model]
    if teacher := getattr(trainer, "teacher_model", None):
        found["teacher"] = tensors_digest(teacher.named_parameters())
    return found


def refuse_changes(folder: str | os.PathLike, before: dict, now: dict) -> None:
    """Raises ValueError where the run in `folder` has another identity than the one that would go on there."""
    if changed := changes_between(before, now):
        remedy = "Choose another output_dir to begin afresh, or pass accept_changes=True (--accept-changes) to go on"
        raise ValueError(f"{folder} was trained before this has changed: {', '.join(changed)}. {remedy}")


def changes_between(before: dict, now: dict) -> list[str]:
    """The names of what has changed from one identity to another."""
    return [name for name in changed_settings(before, now) if name in now or name not in _OF_BEST]


def rows_identity(dataset: Dataset | IterableDataset) -> dict[str, str]:
    """Digests of all texts and of all images of rows; of a kind's, its own columns count, of prompts' all.

    Of a stream those of its first rows.
    """
    if isinstance(dataset, IterableDataset) and dataset.features:
        return {name: f"a stream of {text}" for name, text in rows_identity(first_rows(dataset, _HEAD)).items()}
    if not isinstance(dataset, Dataset):
        return {"training data": type(dataset).__name__}
    texts, images = [], []
    for row in stream_plain_rows(dataset.with_format(None), _columns(dataset.column_names), "identifying rows"):
        found = [image for name in ("images", *REJECTED_IMAGES) for image in row.pop(name, None) or []]
        texts.append(digest(row))
        images.append(digest([image_identity(image) for image in found]))
    return {"training data": f"{len(texts)} rows, {digest(*texts)}", "images": digest(*images)}


def _columns(names):
    """Those of which the result of a training depends: what a reward reads is not known."""
    names = [name for name in names if name not in READER_FEATURES]
    with suppress(ValueError):  # rows of no kind, such as tokens
        if (kind := kind_of(names)) != "prompts":
            return [name for name in names if name in KINDS[kind] or name in REJECTED_IMAGES]
    return names


def _weights_identity(model):
    adapters = getattr(model, "peft_config", {})
    found = {f"adapter {name}": lora.to_dict() for name, lora in adapters.items()}
    for values in found.values():
        for name in ("inference_mode", "base_model_name_or_path", "peft_version"):
            values.pop(name, None)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found["trained parameters"] = digest([(name, tuple(p.shape)) for name, p in trained])
    # Adapters start at random unless they have been trained: then these zeros are none.
    fresh = adapters and not any(p.any() for name, p in trained if ".lora_B." in name)
    found["start of the adapters"] = "fresh" if fresh else tensors_digest(trained if adapters else [])
    frozen = [(name, p) for name, p in model.named_parameters() if not adapters or not p.requires_grad]
    return found | {"base weights": tensors_digest(frozen)}


def versions(*libraries: str) -> dict[str, str]:
    """The versions of this package and of `libraries`, of those that are installed."""
    found = {"version of vlmhelpers": VERSION}
    for name in libraries:
        with suppress(PackageNotFoundError):
            found[f"version of {name}"] = version(name)
    return found


def inputs_identity(config: RunConfig, dataset: Dataset | IterableDataset) -> dict:
    """What can be told of a run's identity without loading a model, as JSON values by name; `dataset`: all its rows."""
    found = {name: value for name, value in config.deciding.items() if name not in _OF_FILES}
    found["number of processes"] = int(os.environ.get("WORLD_SIZE", 1))
    if base := _base_folder(config.model_id):
        found |= {"model_id": "a folder", "base": _base_digest(base)}
    if config.chat_template:
        found["chat_template"] = file_digest(config.chat_template)
    for name in _OTHER_MODELS:
        if (path := getattr(config, name)) and (folder := _base_folder(path)):
            found[name] = _base_digest(folder)
    return found | rows_identity(dataset) | versions(*_LIBRARIES)


def _base_folder(model_id):
    """The folder of a base that is not from the hub, without the help of torch, or None."""
    with suppress(FileNotFoundError):  # a package without its data
        folders = [Path(model_id), data_dir() / "tiny" / model_id]
        return next((folder for folder in folders if folder.is_dir()), None)
    return None


def _base_digest(folder):
    files = sorted(path for path in folder.iterdir() if path.suffix in _OF_MODELS and path.is_file())
    return digest(*((path.name, file_digest(path)) for path in files))
