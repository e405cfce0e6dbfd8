"""An adapter merged into the 16-bit weights of its base: a complete model in a folder of its own."""

import shutil
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForImageTextToText

from vlmhelpers.common.files import atomic_folder
from vlmhelpers.export.adapters import attach, find_base, load_processor, read_adapter_config
from vlmhelpers.export.model_card import CARD, merged_card

# `preprocessor_config.json` repeats a part of processor_config.json for tools that read the older file only.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


def merge(
    adapter: str | Path,
    out: str | Path,
    base: str | Path | None = None,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_size: str = "5GB",
) -> Path:
    """Merges the adapter in the folder `adapter` into its base, writes a complete model to `out`, returns that Path.

    The base is what adapter_config.json names, or `base` (a folder, hub id or family), loaded in `dtype` on the CPU and
    never quantized. Beside the weights, in files of at most `max_shard_size`, lie the settings for generation, the chat
    template, the files of processor and tokenizer, and a card made from the adapter's.

    An adapter trained over a 4-bit base, whose weights are rounded, can answer otherwise on the 16-bit one:
    `check_export` compares with the latter, and with `four_bit=True` counts the answers that agree with the former.

    Raises FileNotFoundError for an adapter or a base that cannot be read, ValueError for an adapter that does not fit
    its base, FileExistsError for an `out` that is not empty, OSError where the disk is too small. The write is atomic.
    """
    with atomic_folder(out) as folder:
        base = find_base(adapter, base)
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=dtype)
        _check_space(model, folder)
        tuned = attach(model, adapter)
        _refuse_tied(tuned, adapter)
        tuned.merge_and_unload(safe_merge=True).save_pretrained(folder, max_shard_size=max_shard_size)
        processor = load_processor(adapter, base)
        processor.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        if missing := missing_files(folder):
            raise RuntimeError(f"the merged model would lack {', '.join(missing)}, which {base} does not have either")
        card = merged_card(adapter, read_adapter_config(adapter)["base_model_name_or_path"] or base)
        (folder / CARD).write_text(str(card), encoding="utf-8")
    return Path(out)


def missing_files(folder: str | Path) -> list[str]:
    """The names of the files that a model with its processor needs and that `folder` lacks."""
    present = {path.name for path in Path(folder).glob("*")}
    missing = [name for name in ("config.json", *PROCESSOR_FILES, "chat_template.jinja") if name not in present]
    return missing if any(name.endswith(".safetensors") for name in present) else ["model.safetensors", *missing]


def _check_space(model, folder):
    """Raises OSError when the disk has no room for the weights and a twentieth more."""
    needed, free = model.get_memory_footprint() * 1.05, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder} needs {needed / 2**30:.1f} GiB and its disk has {free / 2**30:.1f} GiB left: make room, or "
            "choose a folder on another disk"
        )


def _refuse_tied(tuned, adapter):
    """Raises ValueError for adapters on one of two tied matrices, whose merge would change the other one, too."""
    ends = tuned.get_input_embeddings(), tuned.get_output_embeddings()
    if any(isinstance(end, BaseTunerLayer) for end in ends) and ends[0].weight is ends[1].weight:
        raise ValueError(
            f"{adapter} changes the embeddings or the head, and this base uses one matrix for embeddings and head: "
            "merging would change both. Train without this target, as lora_targets does, or serve the adapter unmerged"
        )
