"""Adapters on disk: the base that they name, and their weights put on it, every one of them or none."""

import json
import re
import warnings
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoProcessor

from vlmhelpers.common.environment import data_dir
from vlmhelpers.models.loading import FAMILIES, tiny_model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_SNAPSHOT = re.compile(r"models--(.+?)[/\\]snapshots[/\\]")  # a folder of the hub's cache on this machine


def read_adapter_config(adapter):
    """What adapter_config.json of the folder `adapter` says, as a dict. Raises FileNotFoundError without such a file.

    The file of the weights has to be there, too.
    """
    for name in (CONFIG, WEIGHTS):
        if not (Path(adapter) / name).is_file():
            raise FileNotFoundError(
                f"{adapter} has no {name}, so it is no whole adapter: pass the folder that save_adapter, or a "
                "trainer's save_model, has written"
            )
    return json.loads((Path(adapter) / CONFIG).read_text(encoding="utf-8"))


def tensor_names(adapter):
    """The names of an adapter's tensors, as a list; no tensor is read."""
    read_adapter_config(adapter)
    with safe_open(Path(adapter) / WEIGHTS, "pt") as weights:
        return list(weights.keys())


def portable_name(base):
    """A base's name as it can be written down for other machines.

    A tiny base by its family, a folder of the hub's cache by its hub id, another local folder by its last name alone;
    a hub id stays.
    """
    path = Path(base)
    if path.resolve().parent == (data_dir() / "tiny").resolve():
        return path.name
    if found := _SNAPSHOT.search(str(base)):
        return found.group(1).replace("--", "/")
    return path.resolve().name if path.is_dir() or path.is_absolute() else str(base)


def find_base(adapter, base=None):
    """The folder or hub id of the 16-bit base of an adapter: `base`, else what the adapter names.

    Raises FileNotFoundError for a base that is not here and cannot be had, ValueError for one that is stored quantised.
    """
    name = str(base or read_adapter_config(adapter).get("base_model_name_or_path"))
    name = str(tiny_model(name)) if name in FAMILIES else name
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(
            f"the base {name!r} of {adapter} is neither a folder here nor a model of the hub that can be read now. "
            "Name the folder or the hub id of its 16-bit weights: base=..."
        ) from error
    if getattr(config, "quantization_config", None):
        plain = re.sub(r"(-unsloth)?-bnb-4bit$", "", name)
        better = repr(plain) if plain != name else "..."
        raise ValueError(f"{name} is stored quantised. Name the model that it was made from: base={better}")
    return name


def attach(model, adapter):
    """`model` with the adapter's weights on it, as a PeftModel in the mode for answering.

    Raises ValueError when a tensor of the adapter finds no place in the model, or a place no tensor: peft only warns,
    and the adapter would do nothing, or half of what it should.
    """
    read_adapter_config(adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            tuned = PeftModel.from_pretrained(model, adapter)
            found = tuned.load_adapter(adapter, "default")  # once more, for what it returns
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the adapter in {adapter} does not fit its base: {error}. {_OTHER_BASE}") from error
    if found.missing_keys or found.unexpected_keys:
        raise ValueError(
            f"the adapter in {adapter} does not fit its base: {len(found.unexpected_keys)} of its tensors have no "
            f"place in the model{_first(found.unexpected_keys)}, and {len(found.missing_keys)} adapters of the model "
            f"got no tensor{_first(found.missing_keys)}. {_OTHER_BASE}"
        )
    return tuned


_OTHER_BASE = "Pass the base that it was trained on (base=...), with the version of transformers that its card names"


def _first(names):
    return f" (such as {names[0]})" if names else ""


def load_processor(adapter, base):
    """The processor that lies with the adapter, with its pixel cap; the base's where none does."""
    has_own = any((Path(adapter) / name).is_file() for name in ("processor_config.json", "preprocessor_config.json"))
    return AutoProcessor.from_pretrained(adapter if has_own else base)
