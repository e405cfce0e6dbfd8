"""Adapters: saved with what they need elsewhere, put onto their base completely or not at all, and merged into it."""

import json
import os
import re
import shutil
import warnings
from collections import Counter
from pathlib import Path

import psutil
import torch
from datasets import Dataset
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.files import atomic_folder
from vlmhelpers.evaluation.comparison import Comparison
from vlmhelpers.evaluation.scoring import Evaluation
from vlmhelpers.export.adapter_files import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_WEIGHTS_FILE,
    check_against,
    read_adapter_config,
)
from vlmhelpers.export.hub import CARD, adapter_card, merged_card
from vlmhelpers.families import TINY_BASES, family_of, find_config, tiny_model
from vlmhelpers.families.received import load_config
from vlmhelpers.models import loading

# What save_adapter, a trainer's save_model and processors of any version write: nothing else in a folder is replaced.
_ADAPTER_FILES = {ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE, CARD, "training_args.bin", "chat_template.jinja"} | {
    "reward_scale.json",
    *("chat_template.json", "additional_chat_templates", "merges.txt", "vocab.json", "vocab.txt", "tokenizer.json"),
    *("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", ".lock"),
    *("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"),
}
# What a merged model needs besides weights; tools that do not know processor_config.json read preprocessor_config.json.
_CONFIGS = "config processor_config preprocessor_config tokenizer tokenizer_config".split()
_MERGED_FILES = [f"{name}.json" for name in _CONFIGS] + ["chat_template.jinja"]
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
    """Writes the active adapter of a model, the processor's files and a card to `folder`, and returns that Path.

    The base is named by its hub id or family, another folder by its last name: `merge` then needs `base=`. The card
    reports `dataset`, the rows trained on (or a sentence), `source`, their file, `evaluations`, such as {"base":
    Evaluation, "tuned": Evaluation}, a `comparison` and, first, `notes`. An earlier adapter in `folder` is
    replaced. Raises TypeError for a model without adapters, ValueError unless one LoRA adapter is active, and for
    tokens that the model, or its base as it is stored, has no embedding for, FileExistsError for a folder of other
    things.
    """
    adapter = _active_adapter(model)
    lora = model.peft_config[adapter]
    base = lora.base_model_name_or_path or model.config._name_or_path
    _check_tokens_to_save(processor, model, base)
    base = portable_name(base)
    tower_of, sizes = family_of(model).tower_of, Counter()
    for name, parameter in model.named_parameters():
        if f".{adapter}." in f"{name}.".partition(".lora_")[2]:  # not a critic's, nor a reference's
            sizes[tower_of(name)] += parameter.numel()
    card = adapter_card(base, lora, sizes, dataset, source, evaluations, comparison, notes)
    folder = Path(folder)
    if others := sorted({path.name for path in _entries(folder)} - _ADAPTER_FILES):
        raise FileExistsError(f"{folder} holds {others[0]}, which is no adapter's: choose another folder, or remove it")
    with atomic_folder(folder.resolve(), replace=True) as temporary:
        model.save_pretrained(temporary, selected_adapters=[adapter])
        if (own := temporary / adapter).is_dir():  # of one that is not called default
            for file in own.iterdir():
                file.rename(temporary / file.name)
            own.rmdir()
        loading.save_processor(processor, temporary)
        config = read_adapter_config(temporary) | {"base_model_name_or_path": base}
        (temporary / ADAPTER_CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
        (temporary / CARD).write_text(str(card), encoding="utf-8")
    return folder


def _check_tokens_to_save(processor, model, base):
    """Raises ValueError for tokens that would be missing where the adapter is put onto its base again."""
    loading.check_vocabulary(processor, model)
    if (stored := base_shape(base)) and (what := loading.missing_tokens(processor, stored)):
        remedy = "Save the resized model before add_lora or get_peft_model, and train that as the base"
        whole = "save what model.merge_and_unload() gives, a whole model, beside its processor"
        raise ValueError(f"the adapter would not fit its base as {base} has it: {what}. {remedy}, or {whole}")


def base_shape(base: str | Path) -> PreTrainedModel | None:
    """A base as it is stored, on the meta device; None where its configuration cannot be read."""
    try:
        return loading.meta_model(find_config(base)) if base else None
    except (OSError, ValueError):
        return None


def check_tokens(adapter: str | Path, base: PreTrainedModel) -> None:
    """Raises ValueError where the tokenizer in an adapter's folder has tokens that its base lacks."""
    processor = _own_processor(adapter)
    if processor and (what := loading.missing_tokens(processor, base)):
        raise ValueError(f"the adapter in {adapter} does not fit its base: {what}. {_OTHER_BASE}")


def _active_adapter(model):
    """The name of the one LoRA adapter that is active."""
    if not isinstance(model, PeftModel):
        what = f"a {type(model).__name__} has no adapters of peft, or they are merged already"
        raise TypeError(f"{what}: pass the model that add_lora, get_peft_model or the trainer gave")
    active = [name for name in model.active_adapters if name in model.peft_config]
    if len(active) != 1:
        there = f"{len(active)} of the model's adapters are active ({', '.join(model.peft_config) or 'it has none'})"
        raise ValueError(f"{there}, and one is saved: choose it with model.set_adapter(name)")
    if not isinstance(model.peft_config[active[0]], LoraConfig):
        kind = model.peft_config[active[0]].peft_type.value
        raise ValueError(f"the adapter {active[0]!r} is of the type {kind}, and only LoRA adapters are saved here")
    return active[0]


def _entries(folder):
    return folder.iterdir() if folder.is_dir() else ()


def portable_name(base: str | Path) -> str:
    """A base's name for other machines: the family of a tiny base, a hub id, or the last name of another folder."""
    path = Path(base)
    if found := _HUB_CACHE.search(str(base)):
        return found[1].replace("--", "/")
    return path.resolve().name if path.is_dir() or path.is_absolute() else str(base)


def find_base(adapter: str | Path, base: str | Path | None = None) -> str:
    """The folder or hub id of `base`, else of the adapter's.

    Raises FileNotFoundError and, for a quantized base and for what cannot be read, ValueError.
    """
    name = str(base or read_adapter_config(adapter).get("base_model_name_or_path"))
    name = str(tiny_model(name)) if name in TINY_BASES else name
    try:
        config = load_config(name)
    except (OSError, HFValidationError) as error:
        what = f"the base {name!r} of {adapter} is neither a folder here nor a model of the hub that can be read now"
        raise FileNotFoundError(f"{what}. Name the folder or the hub id of its 16-bit weights: base=...") from error
    if loading.stored_quantization(config):
        plain = re.sub(r"(-unsloth)?-bnb-4bit$", "", name)
        better = repr(plain) if plain != name else "..."
        raise ValueError(f"{name} is stored quantized. Name the model that it was made from: base={better}")
    return name


def attach(model: PreTrainedModel, adapter: str | Path) -> PeftModel:
    """`model` with all of the adapter on it, in eval mode.

    Raises ValueError for a tensor, a module or a token without match, and for a model that has adapters already.
    """
    if isinstance(model, PeftModel) or any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        remedy = f"load the base anew, or add the adapter beside them: model.load_adapter({str(adapter)!r}, 'name')"
        raise ValueError(f"the model has adapters already: {remedy}")
    check_against(adapter, model)
    check_tokens(adapter, model)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        try:
            # Without memory for what its files do not hold.
            tuned = PeftModel.from_pretrained(model, adapter, low_cpu_mem_usage=True)
            # Once more, for what it returns.
            found = tuned.load_adapter(adapter, "default", low_cpu_mem_usage=True)
        except (MemoryError, OSError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever a configuration of others brings about
            what = " ".join(f"{error}".split())[:500]
            raise ValueError(f"the adapter in {adapter} does not fit its base: {what}. {_OTHER_BASE}") from error
    if wrong := [*found.unexpected_keys, *found.missing_keys]:
        counts = f"{len(found.unexpected_keys)} tensors fit no module, {len(found.missing_keys)} modules got no tensor"
        raise ValueError(f"the adapter in {adapter} does not fit its base: {counts}, as {wrong[0]}. {_OTHER_BASE}")
    return tuned


def load_processor(adapter: str | Path, base: str) -> ProcessorMixin:
    """The processor in the adapter's folder, with its pixel cap; the base's where there is none.

    Where peft has put an adapter into a folder of its name, a trainer has put the processor beside that.
    """
    return _own_processor(adapter) or loading.load_processor(base)


def _own_processor(adapter):
    folders = [folder for folder in (Path(adapter), Path(adapter).parent) if _has_processor(folder)]
    return loading.load_processor(folders[0]) if folders else None


def _has_processor(folder):
    return any(folder.glob("*processor_config.json"))


def merge(
    adapter: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
) -> Path:
    """Merges the adapter in a folder into its base, writes model, processor and card to `out`, returns that Path.

    `base` (a folder, hub id or family; None: the adapter's) is loaded in `dtype` on the CPU, never quantized; adapters
    trained over 4 bits can answer otherwise on 16: see `check_export(..., four_bit=True)`. Where memory is short, a
    base stored in `dtype` is merged layer by layer into files, which takes room for it on the disk twice; for another
    one MemoryError is raised. Raises FileNotFoundError for what cannot be read, ValueError for an adapter or a
    tokenizer that does not fit its base, FileExistsError for an `out` that is not empty, OSError where the disk is too
    small. The write is atomic.
    """
    with atomic_folder(out) as folder:
        base = find_base(adapter, base)
        model, is_short = _load_base(base, dtype)
        needed, free = model.get_memory_footprint() * 1.05 * (1 + is_short), shutil.disk_usage(folder).free
        if needed > free:
            sizes = f"{needed / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB left"
            raise OSError(f"{out} needs {sizes}: make room, or choose a folder on another disk")
        ends = model.get_input_embeddings(), model.get_output_embeddings()
        tied = all(ends) and ends[0].weight is ends[1].weight
        tuned, processor = attach(model, adapter), load_processor(adapter, base)
        loading.check_vocabulary(processor, model)
        ends = tuned.get_input_embeddings(), tuned.get_output_embeddings()
        if tied and any(isinstance(end, BaseTunerLayer) for end in ends):
            why = f"{adapter} changes the embeddings or the head, and its base has one matrix for embeddings and head"
            raise ValueError(f"{why}: train without this target, or serve the adapter unmerged")
        try:
            if is_short:
                _merge_into_files(tuned, folder)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="All adapters are already merged")
                whole = tuned.merge_and_unload(safe_merge=True)
        except (ValueError, NotImplementedError) as error:
            raise ValueError(f"{adapter} cannot be merged ({error}): serve it unmerged, or train another") from error
        whole.save_pretrained(folder, max_shard_size=max_shard_size)
        loading.save_processor(processor, folder, beside_model=True)
        if missing := missing_files(folder):
            raise CannotRun(f"the merged model would lack {', '.join(missing)}, which {base} does not have either")
        card = merged_card(adapter, read_adapter_config(adapter)["base_model_name_or_path"] or base)
        (folder / CARD).write_text(str(card), encoding="utf-8")
    return Path(out)


def _load_base(base, dtype):
    """(the model in `dtype`, whether memory is too short for all of its weights). Raises MemoryError: see `merge`."""
    model = loading.load_weights(base, dtype="auto")  # memory-mapped files: as they are they take no memory
    needed, free = model.num_parameters() * dtype.itemsize * 1.05, psutil.virtual_memory().available
    is_stored, is_short = model.dtype == dtype, needed > free
    if is_short and not (is_stored and os.name != "nt"):  # Windows removes no file that is mapped
        sizes = f"{base} in {dtype} needs {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are available"
        remedy = "merge on a machine with more memory, or serve the adapter unmerged (vllm_command)"
        stored = "" if is_stored else f"; dtype={model.dtype}, as it is stored, needs less, but on Windows"
        raise MemoryError(f"{sizes}: {remedy}{stored}")
    return (model if is_stored else loading.load_weights(base, dtype=dtype)), is_short


def _merge_into_files(tuned, folder):
    """Merges the layers one after the other, and keeps what they become in memory-mapped files."""
    for layer in tuned.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.merge(safe_merge=True)
            for parameter in layer.get_base_layer().parameters():
                parameter.data = _mapped(parameter.detach(), folder / "merged_weight")


def _mapped(tensor, path):
    """The same tensor, memory-mapped from a file that has no name any more and goes with it."""
    tensor.contiguous().view(torch.uint8).numpy().tofile(path)
    mapped = torch.from_file(str(path), shared=True, size=tensor.numel(), dtype=tensor.dtype).view(tensor.shape)
    path.unlink()
    return mapped


def missing_files(folder: str | Path) -> list[str]:
    """The names of the files that a model with its processor needs and that `folder` lacks."""
    present = {path.name for path in Path(folder).glob("*")}
    missing = [name for name in _MERGED_FILES if name not in present]
    return missing if any(name.endswith(".safetensors") for name in present) else ["model.safetensors", *missing]
