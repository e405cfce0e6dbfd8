"""Choosing and loading a vision-language model: the real one where it can run, elsewhere a tiny one of its family."""

import os
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from vlmhelpers.common.distributed import is_sharded
from vlmhelpers.common.environment import compute_dtype, one_gpu
from vlmhelpers.families import FAMILIES, family_of, tiny_model
from vlmhelpers.models.backends import choose_backend, load_with_unsloth
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision


def choose_model(model_id: str) -> str:
    """What to load for `model_id` on this machine; a printed line says why.

    A family's name (`"qwen3-vl"`) stands for its tiny base, a local folder for itself. A hub id is taken where a GPU
    is; elsewhere the tiny base of its family takes its place. Raises ValueError when there is none.
    """
    if model_id in FAMILIES:
        print(f"{model_id}: the tiny base of this family, made for learning on a CPU.")
        return str(tiny_model(model_id))
    if Path(model_id).is_dir():
        print(f"{model_id}: a local folder.")
        return str(model_id)
    one_gpu()
    if torch.cuda.is_available():
        print(f"{model_id}: {torch.cuda.get_device_name()} will run it.")
        return model_id
    family = family_of(model_id).name
    if family not in FAMILIES:
        raise ValueError(f"no GPU for {model_id!r} and no tiny base for its family; families: {', '.join(FAMILIES)}")
    print(f"{model_id}: no GPU here, so the tiny base of its family ({family}) takes its place.")
    return str(tiny_model(family))


def load_model(
    model_id: str | Path, bits: int | None = 4, max_pixels: int | None = None, backend: str = "auto"
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A model ready for training or inference, and its processor.

    bits: 4 stores the language model's matrices as NF4 with double quantization (Dettmers et al. 2023,
    arXiv:2305.14314), on a GPU and on a CPU; the vision tower, projector and lm_head stay as they are, since a
    quantized tower can wreck the answers. None quantizes nothing. max_pixels: see `set_max_pixels`. backend: "unsloth",
    "transformers", or "auto" for Unsloth once `use_unsloth()` has imported it and where it has the family.

    It computes in `compute_dtype()`. Code from the hub is never executed (no `trust_remote_code`).
    """
    if bits not in (4, None):
        raise ValueError(f"bits={bits!r}: choose 4 (NF4) or None (no quantization)")
    one_gpu()
    dtype = compute_dtype()
    processor = AutoProcessor.from_pretrained(model_id)
    if max_pixels is not None:
        set_max_pixels(processor, max_pixels)
    if _runs_on_unsloth(backend, processor):
        return load_with_unsloth(model_id, bits, dtype), processor
    options = {"dtype": dtype} if is_sharded() else {"dtype": dtype, "device_map": {"": _device()}}
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype if is_sharded() else torch.uint8,  # only numbers can be sharded
            llm_int8_skip_modules=outside_language(model_id),
        )
    model = AutoModelForImageTextToText.from_pretrained(model_id, **options)
    family_of(model).prepare(model)
    stop_gradients_at_frozen_vision(model)
    if not torch.cuda.is_available():
        _keep_gradients_on_cpu(model)
    return model, processor


def _runs_on_unsloth(backend, processor):
    if choose_backend(backend) != "unsloth":
        return False
    family = family_of(processor)
    if backend == "unsloth" and not family.unsloth:
        raise ValueError(f'Unsloth does not have {family.name}: choose backend="auto" or backend="transformers"')
    return family.unsloth


def _device():
    """The GPU that a launcher gave this process, else the first; the CPU where there is none."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def set_max_pixels(processor: ProcessorMixin, max_pixels: int) -> None:
    """Caps the pixels of an image after resizing, or its tiles; transformers ignores a call-time argument.

    Raises ValueError for a family whose image tokens do not depend on the pixels, and for less than one tile.
    """
    family_of(processor).set_max_pixels(processor.image_processor, max_pixels)


def outside_language(model_id: str | Path) -> list[str]:
    """Full names of the topmost modules outside the language model: what 4-bit quantization must leave alone.

    bitsandbytes silently ignores short names ("visual"), so they are read off a model without weights.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model_id))
    tower_of = family_of(model).tower_of
    names = [name for name, _ in model.named_modules() if name and tower_of(name) != "language"]
    return [name for name in names if tower_of(name.rpartition(".")[0]) == "language"]


def _keep_gradients_on_cpu(model):
    """Turns off bitsandbytes' repacking of 4-bit weights on CPUs with AVX512-BF16.

    After any forward pass without gradients the repacked layers pass no gradient on: training then learns nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
