"""Choosing and loading a vision-language model: the real one where it can run, elsewhere a tiny one of its family."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from vlmhelpers.common.distributed import is_sharded
from vlmhelpers.common.environment import compute_dtype, data_dir, one_gpu
from vlmhelpers.families.phi3_vision import (  # known to the Auto classes from here on
    Phi3VImageProcessor,
    Phi3VProcessor,
)
from vlmhelpers.families.towers import rest_frozen_tower, tower_of
from vlmhelpers.families.window_attention import group_windows
from vlmhelpers.models.backends import choose_backend, load_with_unsloth

# Family -> the words that mark a model id as one of it (all lower case).
FAMILIES = {
    "llama-3.2-vision": ("llama-3.2", "vision"),
    "qwen2.5-vl": ("qwen2.5-vl",),
    "qwen3-vl": ("qwen3-vl",),
    "phi-3-vision": ("phi-3", "vision"),
}


def family_of(model_id):
    """The family of a model id (`"Qwen/Qwen2.5-VL-3B-Instruct"` -> `"qwen2.5-vl"`), or None."""
    name = str(model_id).lower()
    return next((family for family, words in FAMILIES.items() if all(word in name for word in words)), None)


def tiny_model(family):
    """The folder of the tiny base of a family: a `pathlib.Path` that every `from_pretrained` takes.

    Raises ValueError for an unknown family, FileNotFoundError where the base was not pretrained.
    """
    if family not in FAMILIES:
        raise ValueError(f"no tiny base is called {family!r}; there are: {', '.join(FAMILIES)}")
    folder = data_dir() / "tiny" / family
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no model: make it with `python tools/pretrain.py {family}`")
    return folder


def choose_model(model_id):
    """What to load for `model_id` on this machine, as a string, and a printed line that says why.

    A family's name (`"qwen3-vl"`) stands for its tiny base. A local folder is taken as it is. A hub id is taken where
    a GPU is present; without one, the tiny base of the same family takes its place. Raises ValueError when it has none.
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
    family = family_of(model_id)
    if family is None:
        raise ValueError(f"no GPU for {model_id!r} and no tiny base for its family; families: {', '.join(FAMILIES)}")
    print(f"{model_id}: no GPU here, so the tiny base of its family ({family}) takes its place.")
    return str(tiny_model(family))


def load_model(model_id, bits=4, max_pixels=None, backend="auto"):
    """A model ready for training or answering, and its processor: (model, processor).

    `bits=4` stores the language model's matrices as NF4 with double quantisation (Dettmers et al. 2023,
    arXiv:2305.14314) through bitsandbytes, on a GPU and on a CPU; the vision tower, the projector and lm_head stay
    as they are, since a quantised vision tower can wreck the answers. `bits=None` quantises nothing.
    Numbers that are computed with are bfloat16 where the GPU has it, float16 on older ones, float32 on a CPU.
    `max_pixels` caps the pixels of an image, for the families whose image tokens grow with them.
    `backend`: "unsloth", "transformers", or "auto" for Unsloth once `use_unsloth()` has imported it, and transformers
    for Phi-3-Vision, which Unsloth does not have.
    Code from the hub is never executed (no `trust_remote_code`).
    """
    if bits not in (4, None):
        raise ValueError(f"bits={bits!r}: choose 4 (NF4) or None (no quantisation)")
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
    group_windows(model)
    rest_frozen_tower(model)
    if not torch.cuda.is_available():
        _keep_gradients_on_cpu(model)
    return model, processor


def _runs_on_unsloth(backend, processor):
    chosen = choose_backend(backend)
    if chosen == "unsloth" and isinstance(processor, Phi3VProcessor):
        if backend == "unsloth":
            raise ValueError('Unsloth does not have Phi-3-Vision: choose backend="auto" or backend="transformers"')
        return False
    return chosen == "unsloth"


def _device():
    """The GPU that a launcher gave this process, else the first; the CPU where there is none."""
    return int(os.environ.get("LOCAL_RANK", 0)) if torch.cuda.is_available() else "cpu"


def set_max_pixels(processor, max_pixels):
    """Caps the pixels of an image after resizing, so that the cap takes effect: a call-time argument is ignored.

    For Phi-3-Vision it becomes `num_crops`, as many tiles as `max_pixels` can fill. Raises ValueError for a processor
    whose image tokens do not depend on the pixels (Llama 3.2 Vision cuts tiles), and for less than one tile.
    """
    image_processor = processor.image_processor
    size = dict(image_processor.size)
    if isinstance(image_processor, Phi3VImageProcessor):
        tile = size["height"] * size["width"]
        if max_pixels < tile:
            raise ValueError(f"max_pixels={max_pixels} is less than one tile of Phi-3-Vision: {tile} pixels")
        image_processor.num_crops = max_pixels // tile
        return
    if "longest_edge" not in size:
        raise ValueError(f"{type(image_processor).__name__} has no pixel cap: its size is {size}")
    image_processor.size = {"shortest_edge": min(size["shortest_edge"], max_pixels), "longest_edge": max_pixels}


def outside_language(model_id):
    """Full names of the topmost modules outside the language model: what 4-bit quantisation must leave alone.

    bitsandbytes silently ignores short names ("visual"), so they are read off the model's skeleton without weights.
    """
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(model_id))
    names = [name for name, _ in skeleton.named_modules() if name and tower_of(name) != "language"]
    return [name for name in names if tower_of(name.rpartition(".")[0]) == "language"]


def _keep_gradients_on_cpu(model):
    """Turns off bitsandbytes' repacking of 4-bit weights on CPUs with AVX512-BF16.

    After any forward pass without gradients the repacked layers pass no gradient on: training then learns nothing.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
