"""A training step on the meta device, on shapes and types without values: the model, a batch, and what they take."""

import copy
import math
import sys
import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack, contextmanager, nullcontext
from operator import methodcaller
from unittest.mock import patch

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForImageTextToText
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import user
from vlmhelpers.families import TOWERS, family_of
from vlmhelpers.models.freezing import choose_trained
from vlmhelpers.models.lora import expert_parameters, lora_targets
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision

_aten = torch.ops.aten
_LARGEST_SIDE = 4096  # of a blank image, in pixels
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_)
_IN_HALF = ("linear", "conv2d", "conv3d")  # of torch.nn.functional, and attention
_FLASH = (_aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_flash_attention_backward)
# Names of the attention below. "flash" is how Qwen's vision towers are asked to hand over all windows at once.
_ATTENTION, _ATTENTION_OF_WINDOWS = "shapes_only", "shapes_only_like_flash"


def make_meta_model(
    config,
    bits=4,
    lora_r=16,
    vision=False,
    gradient_checkpointing=True,
    full=False,
    last_layers=None,
    experts=False,
    dtype=torch.bfloat16,
):
    """The model of `config` as `load_model` makes it, with adapters, or as `train_only` leaves it.

    full: all weights are trained. last_layers: those of so many language layers. Raises ValueError for these in 4 bits.
    """
    own = full or last_layers
    if own and bits == 4:
        raise ValueError("4-bit weights cannot be trained themselves: choose bits=16 with full=True or last_layers")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False)
    family = family_of(model)
    _choose_attention(model, family.tower_of)
    stop_gradients_at_frozen_vision(model)  # as load_model does
    if bits == 4:
        _quantize(model, family, dtype)
    if own:
        choose_trained(model, TOWERS if full else ("language",), None if full else last_layers)
        for parameter in model.parameters():
            parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data
    else:
        targets = {"target_modules": lora_targets(model, vision=vision)}
        targets |= {"target_parameters": expert_parameters(model)} if experts else {}
        model = get_peft_model(model, LoraConfig(r=lora_r, **targets, task_type="CAUSAL_LM"))
    model.train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if not own:
            model.enable_input_require_grads()  # as SFTTrainer does
    return model


def _choose_attention(model, tower_of):
    for name in (_ATTENTION, _ATTENTION_OF_WINDOWS):
        ALL_ATTENTION_FUNCTIONS.register(name, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    for name, module in model.named_modules():
        if hasattr(module, "config"):
            in_vision = tower_of(name) == "vision"
            module.config._attn_implementation = _ATTENTION_OF_WINDOWS if in_vision else _ATTENTION


def _attend(module, query, key, value, attention_mask=None, cu_seq_lens_q=None, max_length_q=None, **_):
    """(output, None) of FlashAttention's operators, which the meta device has, too.

    Kept are query, key, value, output and one float32 per query and head (Dao et al. 2022, arXiv:2205.14135), as by the
    memory-efficient kernel for batches with padding.
    """
    if attention_mask is not None and key.shape[1] < query.shape[1]:  # as transformers does before a masked kernel
        key, value = (states.repeat_interleave(query.shape[1] // key.shape[1], 1) for states in (key, value))
    return _flash(query, key, value, cu_seq_lens_q), None


def _flash(query, key, value, borders):
    if borders is None:
        return _aten._scaled_dot_product_flash_attention(query, key, value)[0].transpose(1, 2)
    states, longest = (tensor[0].transpose(0, 1) for tensor in (query, key, value)), int(borders.diff().max())
    return _aten._flash_attention_forward(*states, borders, borders, longest, longest, 0.0, False, False)[0][None]


def _quantize(model, family, dtype):
    linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and family.is_quantized(n)]
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
        """Bytes of the scales, of the two code books and of the offset."""
        blocks = math.ceil(self.in_features * self.out_features / 64)  # weights that share a scale of 8 bits
        return blocks + 4 * math.ceil(blocks / 256) + 4 * (16 + 256 + 1)  # 256 of which share one of 32

    def forward(self, x):
        """Keeps nothing: the matrix is dequantized once more in the backward pass."""
        matrix = x.new_empty(self.out_features, self.in_features, dtype=self.compute_dtype)
        with saved_tensors_hooks(lambda t: (t.shape, t.dtype), lambda s: torch.empty(s[0], dtype=s[1], device="meta")):
            return nn.functional.linear(x.to(self.compute_dtype), matrix, self.bias).to(x.dtype)


def make_batch(config, tokens, image_tokens, batch_size=1, labeled_tokens=None, processor=None):
    """The model's inputs for equal rows: see `estimate_memory`. Raises ValueError for tokens that do not fit a row."""
    if labeled_tokens is not None and not 0 < labeled_tokens < tokens:
        raise ValueError(f"labeled_tokens={labeled_tokens}: from 1 to {tokens - 1}, as the first has none before it")
    ids = torch.zeros(batch_size, tokens, dtype=torch.long)
    images = {}
    if image_tokens:
        family = family_of(config)
        described = family.is_estimated
        images = family.dry_run_inputs(config, ids, image_tokens) if described else _made(processor, ids, image_tokens)
    if ids.all(dim=1).any():
        raise ValueError(f"{image_tokens} image tokens do not fit into {tokens} tokens: a row has text as well")
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone(), **images}
    if labeled_tokens is not None:
        before = torch.arange(tokens - labeled_tokens - 1, tokens - 1)
        batch |= {"logits_to_keep": before, "shift_labels": ids[:, before]}
    return batch


def _made(processor, ids, image_tokens):
    """What the collator makes of blank images for each row of `ids`, into which it writes their tokens."""
    sizes = _blank_sizes(processor, image_tokens)
    batch = _prompt_of(processor, sizes)
    while (length := batch["input_ids"].shape[1]) > ids.shape[1] and len(sizes) > 1:  # a template writes more for each
        sizes = sizes[: min(len(sizes) - 1, len(sizes) * ids.shape[1] // length)]
        batch = _prompt_of(processor, sizes)
    found = batch.pop("input_ids")
    if found.shape[1] > ids.shape[1]:
        raise ValueError(f"{found.shape[1]} image tokens do not fit into {ids.shape[1]} tokens: a row has text as well")
    ids[:, : found.shape[1]], more = found, ids.shape[1] - found.shape[1]
    tensors = {name: tensor for name, tensor in batch.items() if isinstance(tensor, torch.Tensor)}
    of_tokens = {name for name, tensor in tensors.items() if tensor.shape[:2] == found.shape}
    pad = nn.functional.pad
    tensors |= {n: pad(tensors[n], (0, 0) * (tensors[n].dim() - 2) + (0, more)) for n in of_tokens}
    repeated = {name: _for_rows(tensor, len(ids)) for name, tensor in tensors.items()}
    return repeated | {"attention_mask": torch.ones_like(ids)}


def _prompt_of(processor, sizes):
    images = [family_of(processor).blank_image(size) for size in sizes]
    return VisionCollator(processor).prompts([{"messages": [user("?", images=len(images))], "images": images}])


def _for_rows(tensor, rows):
    """A tensor of one row for so many: images, too, come one after another.

    Pixels become one real number: some models look which images are empty, so that the meta device does not do.
    """
    if tensor.is_floating_point():
        return tensor.new_ones(1).expand(rows * tensor.shape[0], *tensor.shape[1:])
    return tensor.repeat(rows, *[1] * (tensor.dim() - 1))


def _blank_sizes(processor, image_tokens):
    """Sizes of images that take about `image_tokens` together: one as large as it may be, or several of the largest."""
    count, side, tokens = family_of(processor).count_image_tokens, 64, 0
    while side < _LARGEST_SIDE and tokens < (more := count(processor, [(2 * side, 2 * side)])) <= image_tokens:
        side, tokens = 2 * side, more
    return [(side, side)] * max(1, image_tokens // max(1, count(processor, [(side, side)])))


def dry_run(model: nn.Module, batch: dict[str, torch.Tensor], half: torch.dtype | None = torch.bfloat16) -> dict:
    """Bytes that one step of TRL's trainer takes at its peak beside weights, gradients and AdamW's states.

    "kept" is kept for the backward pass, "logits" are those, the loss and their gradients, "temporary" a recomputed
    layer, a dequantized matrix, the vision tower at work; "copies", a part of "kept", are autocast's. "flops" are the
    operations of all matrix products, two for a multiplication and an addition. `model` and `batch` are on the meta
    device, but integers are real: lengths and indices are read from them. The model keeps gradients and a hook. `half`
    is autocast's dtype, None for none.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # gradients of the steps before, as in accumulation
        parameter.grad = torch.empty_like(parameter)
    tracker = MemoryTracker([*model.parameters(), *model.buffers(), *(parameter.grad for parameter in trained)])
    for tensor in batch.values():
        tracker.enter(tensor)
    model.get_output_embeddings().register_forward_pre_hook(tracker.at_head)
    with tracker:
        with _autocast(half, keeps=True) if half else nullcontext({}) as copies:
            output = model(**batch, use_cache=False)
            copied = sum(copy.nbytes for copy in copies.values())
            del copies  # which would live on
        output.logits.float()  # accelerate's copy, for TRL's metrics
        loss = output.loss
        del output
        with _autocast(half) if half else nullcontext():  # for layers that are computed again
            loss.backward()
    peak = tracker.at_peak
    found = {"kept": peak["kept"], "logits": peak["logits"], "temporary": peak["forward"] + peak["backward"]}
    return found | {"flops": tracker.flops, "copies": min(copied, peak["kept"])}


def dry_run_of_answering(model: nn.Module, batch: dict[str, torch.Tensor]) -> int:
    """Bytes that reading `batch` takes at its peak beside the weights, its keys and values included."""
    tracker = MemoryTracker([*model.parameters(), *model.buffers()])
    inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
    for tensor in inputs.values():
        tracker.enter(tensor)
    with tracker, torch.no_grad():
        model(**inputs, use_cache=True, logits_to_keep=1)
    return tracker.at_peak.total()


class MemoryTracker(TorchDispatchMode):
    """Counts meta storages while they exist: `at_peak` is bytes by phase, when they were the most.

    What is left of "forward" when "logits" begins is "kept". The `ignored` tensors have to stay until the step is done.
    """

    def __init__(self, ignored: Iterable[torch.Tensor]):
        super().__init__()
        self.phase, self.flops = "forward", 0
        self.live, self.at_peak = Counter(), Counter()
        self.entries = {tensor.untyped_storage()._cdata: (0, "ignored") for tensor in ignored}

    def at_head(self, module: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        """A forward pre-hook of lm_head: what is live now has been kept for the backward pass."""
        if self.phase == "forward":
            self.entries = {key: (size, "kept") for key, (size, _) in self.entries.items()}
            self.live = Counter(kept=self.live["forward"])
            self.phase = "logits"
            arguments[0].register_hook(lambda gradient: setattr(self, "phase", "backward"))

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given, kwargs = args, kwargs or {}
        on_meta = {tensor.is_meta for tensor in _tensors((args, kwargs))}
        if on_meta == {True, False}:
            mixed = (_without_masks(function, args), kwargs)
            args, kwargs = tree_map_only(torch.Tensor, methodcaller("to", "meta"), mixed)
        elif len(on_meta) == 1 and function is _aten._to_copy.default:  # moved to the device of something else
            kwargs = kwargs | {"device": "meta" if on_meta == {True} else "cpu"}  # where its values are still needed
        output = function(*args, **kwargs)
        for tensor in _tensors(output):
            self.enter(tensor)
        packet = function._overloadpacket
        if packet in flop_registry:
            given = _with_equal_heads(given) if packet in _FLASH else given
            self.flops += flop_registry[packet](*given, **kwargs, out_val=output)
        return output

    def enter(self, tensor: torch.Tensor) -> None:
        """The storage of `tensor` is there from now on, until nothing refers to it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if tensor.is_meta else tensor.nbytes
        if key in self.entries or not size or not (tensor.is_meta or tensor.is_floating_point()):
            return
        self.entries[key] = (size, self.phase)
        self.live[self.phase] += size
        weakref.finalize(storage, self._leave, key)
        if self.live.total() > self.at_peak.total():
            self.at_peak = Counter(self.live)

    def _leave(self, key):
        size, phase = self.entries.pop(key)
        self.live[phase] -= size


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _without_masks(function, args):
    """Real masks become indices: meta cannot count the rows that indexing gives."""
    if function._overloadpacket not in _INDEXING:
        return args
    indices = []
    for index in args[1]:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        indices += index.nonzero(as_tuple=True) if is_mask else [index]
    return (args[0], indices, *args[2:])


def _with_equal_heads(args):
    """Keys and values for every head of the queries: torch 2.11's formula refuses the shapes of grouped ones."""
    heads = max(tensor.shape[1] for tensor in _tensors(args) if tensor.dim() == 4)  # rows, heads, tokens, head size
    return tree_map_only(torch.Tensor, lambda t: t[:, :1].expand(-1, heads, -1, -1) if t.dim() == 4 else t, args)


@contextmanager
def _autocast(half, keeps=False):
    """Autocast for the meta device, which has none: the float32 inputs of matrix products become `half`.

    A norm of mixed types computes in float32. keeps: copies of trained weights stay until the end, as in a forward
    pass; they are given. peft asks whether autocast is on, without naming a device, and then leaves the inputs of 4-bit
    layers as they are.
    """
    copies, is_enabled = {}, torch.is_autocast_enabled

    def lower(tensor):
        if tensor.dtype != torch.float32:
            return tensor
        if not (keeps and tensor.requires_grad and tensor.is_leaf):
            return tensor.to(half)
        if id(tensor) not in copies:
            copies[id(tensor)] = tensor.to(half)
        return copies[id(tensor)]

    def layer_norm(*args):
        mixed = len({tensor.dtype for tensor in _tensors(args)}) > 1
        return normalize(*tree_map_only(torch.Tensor, methodcaller("float"), args) if mixed else args)

    normalize = nn.functional.layer_norm
    patches = [patch.object(nn.functional, name, _casting(getattr(nn.functional, name), lower)) for name in _IN_HALF]
    patches += [
        patch.object(nn.functional, "layer_norm", layer_norm),
        patch.object(sys.modules[__name__], "_flash", _casting(_flash, lower)),
        patch.object(torch, "is_autocast_enabled", lambda *device: is_enabled(*device) if device else True),
    ]
    with ExitStack() as held:
        for one in patches:
            held.enter_context(one)
        yield copies


def _casting(function, cast):
    return lambda *args: function(*tree_map_only(torch.Tensor, cast, args))
