"""Adapters on disk: saved with what they need elsewhere, and loaded onto their base completely or not at all."""

import json
import re
import warnings
from collections import Counter
from pathlib import Path

from datasets import Dataset
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from transformers import AutoConfig, AutoProcessor, PreTrainedModel, ProcessorMixin

from vlmhelpers.common.files import atomic_file
from vlmhelpers.evaluation.comparison import Comparison
from vlmhelpers.evaluation.scoring import Evaluation
from vlmhelpers.export.model_card import CARD, adapter_card
from vlmhelpers.families import FAMILIES, family_of, tiny_model

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_HUB_CACHE = re.compile(r"models--(.+?)[/\\]snapshots[/\\]")
_OTHER_BASE = "Pass the base that it was trained on (base=...), with the version of transformers that its card names"


def save_adapter(
    model: PeftModel,
    processor: ProcessorMixin,
    folder: str | Path,
    dataset: Dataset | str | None = None,
    source: str | Path | None = None,
    evaluations: dict[str, Evaluation] | None = None,
    comparison: Comparison | None = None,
    notes: str | None = None,
) -> Path:
    """Writes the adapter of a model, the processor's files and a model card to `folder`, and returns that Path.

    The adapter_config.json names the base by its hub id, or a tiny base by its family, so that another machine can find
    it. Of another local folder only the last name is written; `merge` then needs `base=`.

    The card (README.md) has the metadata of the Hugging Face Hub and reports `dataset`, the rows trained on (or a
    sentence), `source`, the path of their file, `evaluations`, such as {"base": Evaluation, "tuned": Evaluation},
    `comparison`, what `compare` returned, and `notes`, a text for its beginning. Files that are in `folder` already are
    replaced. Raises TypeError for a model without adapters.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"a {type(model).__name__} has no adapters: pass the model that add_lora or the trainer gave")
    folder, lora = Path(folder), model.peft_config[model.active_adapter]
    model.save_pretrained(folder, selected_adapters=[model.active_adapter])
    processor.save_pretrained(folder)
    base = portable_name(lora.base_model_name_or_path or model.config._name_or_path)
    config = read_adapter_config(folder) | {"base_model_name_or_path": base}
    with atomic_file(folder / ADAPTER_CONFIG_FILE, encoding="utf-8") as file:
        json.dump(config, file, indent=2, sort_keys=True)
    card = adapter_card(base, lora, _sizes_by_tower(model), dataset, source, evaluations, comparison, notes)
    with atomic_file(folder / CARD, encoding="utf-8") as file:
        file.write(str(card))
    return folder


def _sizes_by_tower(model):
    """How many parameters the adapters of each tower have."""
    tower_of, sizes = family_of(model).tower_of, Counter()
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            sizes[tower_of(name)] += parameter.numel()
    return sizes


def portable_name(base: str | Path) -> str:
    """A base's name for other machines: the family of a tiny base, a hub id, or the last name of another folder."""
    path = Path(base)
    if found := _HUB_CACHE.search(str(base)):
        return found[1].replace("--", "/")
    return path.resolve().name if path.is_dir() or path.is_absolute() else str(base)


def read_adapter_config(adapter: str | Path) -> dict:
    """The adapter_config.json of the folder `adapter`. Raises FileNotFoundError without it, or without the weights."""
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        if not (Path(adapter) / name).is_file():
            raise FileNotFoundError(
                f"{adapter} has no {name}, so it is no complete adapter: pass the folder that save_adapter, or a "
                "trainer's save_model, has written"
            )
    return json.loads((Path(adapter) / ADAPTER_CONFIG_FILE).read_text(encoding="utf-8"))


def find_base(adapter: str | Path, base: str | Path | None = None) -> str:
    """The folder or hub id of the 16-bit base of an adapter: `base`, else what the adapter names.

    Raises FileNotFoundError for a base that cannot be read here, ValueError for one that is stored quantized.
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
        raise ValueError(f"{name} is stored quantized. Name the model that it was made from: base={better}")
    return name


def attach(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """`model` with the adapter's weights on it, in eval mode.

    Raises ValueError for a tensor of the adapter that no module takes, and for a module that gets none: peft only
    warns, and the adapter would do nothing, or half of what it should.
    """
    read_adapter_config(adapter)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            tuned = PeftModel.from_pretrained(model, adapter)
            found = tuned.load_adapter(adapter, "default")  # once more, for what it returns
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"the adapter in {adapter} does not fit its base: {error}. {_OTHER_BASE}") from error
    if wrong := [*found.unexpected_keys, *found.missing_keys]:
        raise ValueError(
            f"the adapter in {adapter} does not fit its base: {len(found.unexpected_keys)} of its tensors fit no "
            f"module and {len(found.missing_keys)} modules got no tensor, such as {wrong[0]}. {_OTHER_BASE}"
        )
    return tuned


def load_processor(adapter: str | Path, base: str) -> ProcessorMixin:
    """The processor in the adapter's folder, with its pixel cap; the base's where there is none."""
    has_own = any(Path(adapter).glob("*processor_config.json"))
    return AutoProcessor.from_pretrained(adapter if has_own else base)
