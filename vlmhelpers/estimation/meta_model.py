"""A model as a run would train it, and a batch for it, on the meta device: shapes and types without contents."""

import copy
import math

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmhelpers.families.towers import rest_frozen_tower, tower_of
from vlmhelpers.models.lora import lora_targets

# Names of the attention below. "flash" is how Qwen's vision towers are asked to hand over all windows at once.
_ATTENTION, _ATTENTION_OF_WINDOWS = "shapes_only", "shapes_only_like_flash"
_BLOCK = 64  # weights that share a scale in NF4
_SCALES_PER_BLOCK = 256  # scales that share a scale of theirs: double quantisation
_CODES = 4 * (16 + 256 + 1)  # bytes of the two code books and the offset of one matrix


def make_skeleton(
    config, bits=4, lora_r=16, vision=False, gradient_checkpointing=True, full=False, dtype=torch.bfloat16
):
    """The model of `config` with the adapters that `load_model` and `lora_targets` would give it.

    `bits=4`: the language model's linear layers in NF4. `full`: no adapters, every parameter is trained.
    Raises ValueError for a full fine-tuning in 4 bits.
    """
    if full and bits == 4:
        raise ValueError("4-bit weights cannot be trained themselves: choose bits=None with full=True")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype)
    _choose_attention(model)
    rest_frozen_tower(model)  # as load_model does
    if bits == 4:
        _quantise(model, dtype)
    if not full:
        model = get_peft_model(model, _lora(model, lora_r, vision))
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()  # as SFTTrainer does
    return model


def _lora(model, rank, vision):
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=lora_targets(model, vision=vision), task_type="CAUSAL_LM")


def _choose_attention(model):
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION, _attend)
    ALL_ATTENTION_FUNCTIONS.register(_ATTENTION_OF_WINDOWS, _attend)
    for name in (_ATTENTION, _ATTENTION_OF_WINDOWS):
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for name, module in model.named_modules():
        if hasattr(module, "config"):
            chosen = _ATTENTION_OF_WINDOWS if tower_of(name) == "vision" else _ATTENTION
            module.config._attn_implementation = chosen


def _attend(module, query, key, value, attention_mask=None, cu_seq_lens_q=None, max_length_q=None, **_):
    """FlashAttention's operators, which PyTorch has for the meta device, too: (output, None).

    They keep query, key, value, output and one float32 per query and head (Dao et al. 2022, arXiv:2205.14135); a matrix
    of queries by keys never exists. The memory-efficient kernel, for batches with padding, keeps the same.
    """
    if attention_mask is not None and key.shape[1] < query.shape[1]:  # as transformers does before a masked kernel
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    if cu_seq_lens_q is None:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0].transpose(1, 2), None
    states = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    borders, longest = (cu_seq_lens_q, cu_seq_lens_q), int(cu_seq_lens_q.diff().max())
    output = torch.ops.aten._flash_attention_forward(*states, *borders, longest, longest, 0.0, False, False)[0]
    return output[None], None


def _quantise(model, dtype):
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and tower_of(n) == "language"]
    for name, module in linear:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _Shape4bit(module, dtype))
    model.is_loaded_in_4bit = True  # so that peft takes its own layer for these


class _Shape4bit(Linear4bit):
    """bitsandbytes' layer without contents: packed weights, and a matrix in `dtype` at each use, as on a GPU."""

    def __init__(self, linear, dtype):
        size = (linear.in_features, linear.out_features)
        super().__init__(*size, linear.bias is not None, dtype, True, "nf4", device="meta")
        self.bias = linear.bias
        packed = torch.empty(math.ceil(math.prod(size) / 2), 1, dtype=torch.uint8, device="meta")
        self.weight = Params4bit(packed, requires_grad=False, compress_statistics=True, quant_type="nf4")

    @property
    def constants(self):
        """Bytes of the scales: 8 bits for a block, themselves scaled by a float32 for each 256 of them."""
        blocks = math.ceil(self.in_features * self.out_features / _BLOCK)
        return blocks + 4 * math.ceil(blocks / _SCALES_PER_BLOCK) + _CODES

    def forward(self, x):
        return _MatMul4bit.apply(x, self.bias, (self.out_features, self.in_features), self.compute_dtype)


class _MatMul4bit(torch.autograd.Function):
    """Keeps nothing: the matrix comes out of its 4 bits once more in the backward pass."""

    @staticmethod
    def forward(ctx, x, bias, shape, dtype):
        ctx.shape = shape
        return nn.functional.linear(x.to(dtype), x.new_empty(shape, dtype=dtype), bias).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ gradient.new_empty(ctx.shape), None, None, None


def make_batch(config, tokens, image_tokens, batch_size=1, labelled_tokens=None):
    """What the model is called with for `batch_size` rows of `tokens` tokens, the same for each, without padding.

    `image_tokens` of a row's tokens are one image's; for Llama 3.2 Vision, whose images take no tokens of the
    sequence, they are the states that its text looks at, and come in whole images. `labelled_tokens` at the end have
    labels and logits; None is all and everywhere. Raises ValueError for another family, for more image tokens than
    tokens, and for more labels than tokens before them.
    """
    if config.model_type not in _MAKERS:
        raise ValueError(f"no batch can be made for a {config.model_type!r}; it can for {', '.join(_MAKERS)}")
    images, in_text = _MAKERS[config.model_type](config, image_tokens, batch_size) if image_tokens else ({}, 0)
    if in_text >= tokens:
        raise ValueError(f"{in_text} image tokens do not fit into {tokens} tokens: a row has text as well")
    if labelled_tokens is not None and not 0 < labelled_tokens < tokens:
        raise ValueError(f"labelled_tokens={labelled_tokens}: from 1 to {tokens - 1}, as the first has none before it")
    ids = torch.zeros(batch_size, tokens, dtype=torch.long)
    ids[:, :in_text] = config.image_token_id
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone(), **images}
    if "aspect_ratio_mask" in images:
        shape = (batch_size, tokens, *images["aspect_ratio_mask"].shape[1:])
        batch["cross_attention_mask"] = torch.ones(shape, dtype=torch.long)
    if "image_grid_thw" in images:
        batch["mm_token_type_ids"] = (ids == config.image_token_id).long()
    if labelled_tokens is not None:
        places = torch.arange(tokens - labelled_tokens - 1, tokens - 1)
        batch |= {"logits_to_keep": places, "shift_labels": ids[:, places]}
    return batch


def _qwen_image(config, image_tokens, batch_size):
    """An image as near to a square as its tokens allow."""
    vision = config.vision_config
    merge, rows = vision.spatial_merge_size, _square_side(image_tokens)
    numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grid = torch.tensor([[1, merge * rows, merge * (image_tokens // rows)]] * batch_size)
    pixels = torch.empty(batch_size * image_tokens * merge**2, numbers, device="meta")
    return {"pixel_values": pixels, "image_grid_thw": grid}, image_tokens


def _square_side(area):
    return max(side for side in range(1, math.isqrt(area) + 1) if area % side == 0)


def _phi_image(config, image_tokens, batch_size):
    """An image of the most tiles whose tokens, as `Phi3VImageProcessor` counts them, are no more than these."""
    side = config.vision_config.image_size
    lines = side // config.vision_config.patch_size // 2  # of tokens, per tile
    tiles = max(1, (image_tokens - 1) // lines**2 - 1)
    rows = math.isqrt(tiles)
    columns = max(1, ((image_tokens - 1 - (rows + 1) * lines) // lines**2 - 1) // rows)
    pixels = torch.empty(batch_size, 1 + rows * columns, 3, side, side, device="meta")
    sizes = torch.tensor([[rows * side, columns * side]] * batch_size)
    return {"pixel_values": pixels, "image_sizes": sizes}, (rows * columns + 1) * lines**2 + 1 + (rows + 1) * lines


def _llama_images(config, states, batch_size):
    """As many images as have these states: each is padded to the most tiles."""
    vision = config.vision_config
    shape = (batch_size, math.ceil(states / states_per_image(config)), vision.max_num_tiles)
    pixels = torch.empty(*shape, 3, vision.image_size, vision.image_size, device="meta")
    ids, mask = torch.ones(shape[:2], dtype=torch.long), torch.ones(shape, dtype=torch.long)
    return {"pixel_values": pixels, "aspect_ratio_ids": ids, "aspect_ratio_mask": mask}, 0


def states_per_image(config):
    """The states that Llama 3.2 Vision's text looks at for an image of any size: its patches and one more per tile."""
    vision = config.vision_config
    return vision.max_num_tiles * ((vision.image_size // vision.patch_size) ** 2 + 1)


_MAKERS = {"qwen2_5_vl": _qwen_image, "qwen3_vl": _qwen_image, "phi3_v": _phi_image, "mllama": _llama_images}
