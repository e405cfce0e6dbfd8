"""A model as a run would train it, and a batch for it, on the meta device: shapes and types without values."""

import copy
import math
from functools import partial

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForImageTextToText
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmhelpers.families import family_of
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision

# Names of the attention below. "flash" is how Qwen's vision towers are asked to hand over all windows at once.
_ATTENTION, _ATTENTION_OF_WINDOWS = "shapes_only", "shapes_only_like_flash"
_BLOCK = 64  # weights that share a scale in NF4
_SCALES_PER_BLOCK = 256  # scales that share a scale of theirs: double quantization
_CODES = 4 * (16 + 256 + 1)  # bytes of the two code books and the offset of one matrix


def make_meta_model(
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
    tower_of = family_of(model).tower_of
    _choose_attention(model, tower_of)
    stop_gradients_at_frozen_vision(model)  # as load_model does
    if bits == 4:
        _quantize(model, tower_of, dtype)
    if not full:
        targets = lora_targets(model, vision=vision)
        lora = LoraConfig(r=lora_r, lora_alpha=lora_r, target_modules=targets, task_type="CAUSAL_LM")
        model = get_peft_model(model, lora)
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not full:
            model.enable_input_require_grads()  # as SFTTrainer does
    return model


def _choose_attention(model, tower_of):
    for name in (_ATTENTION, _ATTENTION_OF_WINDOWS):
        ALL_ATTENTION_FUNCTIONS.register(name, _attend)
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


def _quantize(model, tower_of, dtype):
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and tower_of(n) == "language"]
    for name, module in linear:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, _MetaLinear4bit(module, dtype))
    model.is_loaded_in_4bit = True  # so that peft takes its own layer for these


class _MetaLinear4bit(Linear4bit):
    """bitsandbytes' layer on the meta device: packed weights, and a matrix in `dtype` at each use, as on a GPU."""

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
        """Keeps nothing: the matrix is dequantized once more in the backward pass."""
        matrix = x.new_empty(self.out_features, self.in_features, dtype=self.compute_dtype)

        def forget(saved):
            return partial(torch.empty, saved.shape, dtype=saved.dtype, device="meta")

        with saved_tensors_hooks(forget, lambda make_again: make_again()):
            return nn.functional.linear(x.to(self.compute_dtype), matrix, self.bias).to(x.dtype)


def make_batch(config, tokens, image_tokens, batch_size=1, labeled_tokens=None):
    """What the model is called with for `batch_size` rows of `tokens` tokens, the same for each, without padding.

    `image_tokens` of a row's tokens are one image's; where images take no tokens of the sequence, they are the states
    that the text attends to. `labeled_tokens` at the end have labels and logits; None is all of them. Raises ValueError
    for a family that is not described by hand, for no token left to text, and for more labels than tokens before them.
    """
    if labeled_tokens is not None and not 0 < labeled_tokens < tokens:
        raise ValueError(f"labeled_tokens={labeled_tokens}: from 1 to {tokens - 1}, as the first has none before it")
    ids = torch.zeros(batch_size, tokens, dtype=torch.long)
    images = family_of(config).dry_run_inputs(config, ids, image_tokens) if image_tokens else {}
    if ids.all(dim=1).any():
        raise ValueError(f"{image_tokens} image tokens do not fit into {tokens} tokens: a row has text as well")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone(), **images}
    if labeled_tokens is not None:
        before = torch.arange(tokens - labeled_tokens - 1, tokens - 1)
        batch |= {"logits_to_keep": before, "shift_labels": ids[:, before]}
    return batch
