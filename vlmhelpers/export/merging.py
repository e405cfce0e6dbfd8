"""An adapter merged into the 16-bit weights of its base: a model of its own, with all that belongs to it."""

import shutil
from pathlib import Path

import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText
from transformers.utils import cached_file

from vlmhelpers.common.files import atomic_folder
from vlmhelpers.export.adapters import attach, find_base, load_processor, read_adapter_config
from vlmhelpers.export.model_card import CARD, merged_card

# What a processor consists of. `preprocessor_config.json` repeats a part of processor_config.json for the tools that
# read the older file only.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")
CHAT_TEMPLATE = "chat_template.jinja"
# What some tools read instead of tokenizer.json: copied from the base as they are, where it has them.
_OLDER_TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
)
_TIED = ("lm_head", "embed_tokens")


def merge(adapter, out, base=None, dtype=None, max_shard_size="5GB"):
    """Merges the adapter in the folder `adapter` into its base, writes a whole model to `out`, and returns that Path.

    The base is what adapter_config.json names, or `base` (a folder, hub id or family), loaded on the CPU and never
    quantised, in `dtype` (bfloat16). Beside the weights, in files of at most `max_shard_size`, lie the settings for
    generation, the chat template, the processor's and the tokenizer's files, and the adapter's card made over.

    An adapter that was trained over a 4-bit base is merged into the 16-bit one, too: what it learned over rounded
    weights then stands beside the right ones, so answers can differ from those of training. `check_export` compares
    with the adapter on the 16-bit base, and with `four_bit=True` it counts the answers that agree with the 4-bit one.

    Raises FileNotFoundError for no adapter, or a base that is not to be had, ValueError for an adapter that does not
    fit its base, FileExistsError for an `out` that is not empty, OSError where the disk is too small. Nothing
    half-written stays in any of these cases.
    """
    with atomic_folder(out) as draft:
        base = find_base(adapter, base)
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype or torch.bfloat16)
        _check_space(model, draft)
        tuned = attach(model, adapter)
        _refuse_tied(tuned, adapter)
        merged = tuned.merge_and_unload(safe_merge=True)
        merged.save_pretrained(draft, max_shard_size=max_shard_size)
        save_processor(load_processor(adapter, base), draft, base)
        _check_files(draft, adapter, base)
        (draft / CARD).write_text(_card(adapter, base), encoding="utf-8")
    return Path(out)


def save_processor(processor, folder, base):
    """Writes all files of a processor, also those that only older tools read; these come from `base`."""
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    for name in _OLDER_TOKENIZER_FILES:
        found = cached_file(base, name, _raise_exceptions_for_missing_entries=False)
        if found and not (folder / name).exists():
            shutil.copyfile(found, folder / name)


def missing_files(folder):
    """The names of the files that a model with its processor needs and that `folder` lacks."""
    there = {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    needed = ["config.json", *PROCESSOR_FILES, CHAT_TEMPLATE]
    missing = [name for name in needed if name not in there]
    return missing if any(name.endswith(".safetensors") for name in there) else ["model.safetensors", *missing]


def _check_files(draft, adapter, base):
    """Raises RuntimeError where a file is missing that every model needs, or that the adapter or the base has."""
    optional = (CHAT_TEMPLATE, "generation_config.json", *PROCESSOR_FILES, *_OLDER_TOKENIZER_FILES)
    had = [name for name in optional if any((Path(folder) / name).is_file() for folder in (adapter, base))]
    missing = [*missing_files(draft), *(name for name in had if not (draft / name).is_file())]
    if missing:
        raise RuntimeError(f"the merged model would lack {', '.join(dict.fromkeys(missing))}")


def _check_space(model, folder):
    """Raises OSError when the disk has no room for the weights and a twentieth more."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}  # tied ones once
    needed, free = sum(tensors.values()) * 1.05, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB left: make room, or "
            "choose a folder on another disk"
        )


def _refuse_tied(tuned, adapter):
    """Raises ValueError for adapters on one of two tied matrices, whose merge would change the other one, too."""
    configs = (tuned.config, tuned.config.get_text_config())
    if not any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return
    hit = [name for name, _ in tuned.named_modules() if "lora_A" in name and any(part in name for part in _TIED)]
    if hit:
        raise ValueError(
            f"{adapter} has adapters on {hit[0]}, and this base uses one matrix for embeddings and head: merging would "
            "change both. Train without this target, as lora_targets does, or serve the adapter unmerged"
        )


def _card(adapter, base):
    old = Path(adapter) / CARD
    named = read_adapter_config(adapter)["base_model_name_or_path"]
    return str(merged_card(ModelCard.load(old) if old.is_file() else None, named or base))
