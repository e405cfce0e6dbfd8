"""A training step on the meta device: what it would allocate and compute, before any weights are loaded.

A tensor of PyTorch's meta device has a shape, a type and a lifetime but no values, so a model of any size takes a step
in seconds and a few megabytes. What the step runs is the real code of transformers, peft and autograd.
"""

import weakref
from collections import Counter
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from operator import methodcaller

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

_aten = torch.ops.aten
_INDEXING = (_aten.index, _aten.index_put, _aten.index_put_)
_ATTENTION = (_aten._scaled_dot_product_flash_attention, _aten._scaled_dot_product_flash_attention_backward)


def dry_run(model: nn.Module, batch: dict[str, torch.Tensor], half: torch.dtype | None = torch.bfloat16) -> dict:
    """What one training step, as TRL takes it, allocates at its peak beside weights, gradients and AdamW's states.

    `model`: on the meta device, its trained parameters set; the step leaves gradients and a hook on it. `batch`: what
    it is called with; integers are real tensors, as lengths and indices are read from them, everything else is on the
    meta device. `half`: what autocast computes in, None for training without it.

    Bytes of "kept": of the forward pass, for the backward pass; of "logits": logits, loss and their gradients; of
    "temporary": a recomputed layer, a dequantized matrix, the vision tower at work. And "flops", the floating-point
    operations of all matrix products, a multiplication and an addition being two.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # gradients of the steps before, as in accumulation
        parameter.grad = torch.empty_like(parameter)
    ignored = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in trained)]
    tracker = MemoryTracker(ignored)
    for tensor in batch.values():
        tracker.enter(tensor)
    model.get_output_embeddings().register_forward_pre_hook(tracker.at_head)
    with tracker, _autocast(half) if half else nullcontext():
        output = model(**batch, use_cache=False)
        output.logits.float()  # accelerate's copy, which TRL's metrics are made from
        loss = output.loss
        del output
        loss.backward()
    temporary = tracker.at_peak["forward"] + tracker.at_peak["backward"]
    kept, logits = tracker.at_peak["kept"], tracker.at_peak["logits"]
    return {"kept": kept, "logits": logits, "temporary": temporary, "flops": tracker.flops}


class MemoryTracker(TorchDispatchMode):
    """Counts the storages on the meta device while they exist; `at_peak` is bytes by phase, when they were the most.

    A storage belongs to the phase that it was made in: "forward", "logits" or "backward"; what is left of "forward"
    when the logits begin is "kept". `flops` counts the operations of matrix products. The `ignored` tensors are
    counted elsewhere, and have to stay until the step is done.
    """

    def __init__(self, ignored: Iterable[torch.Tensor]):
        super().__init__()
        self.phase, self.flops = "forward", 0
        self.live, self.at_peak = Counter(), Counter()
        self.entries = {tensor.untyped_storage()._cdata: (0, "ignored") for tensor in ignored}

    def at_head(self, module: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        """For a forward pre-hook of lm_head: what is live now has been kept for the backward pass."""
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
        elif on_meta == {False} and function is _aten._to_copy.default:
            kwargs = kwargs | {"device": "cpu"}  # moved "to the model's device": its values are still needed
        output = function(*args, **kwargs)
        for tensor in _tensors(output):
            self.enter(tensor)
        packet = function._overloadpacket
        if packet in flop_registry:
            given = _with_equal_heads(given) if packet in _ATTENTION else given
            self.flops += flop_registry[packet](*given, **kwargs, out_val=output)
        return output

    def enter(self, tensor: torch.Tensor) -> None:
        """The storage of `tensor` is there from now on, until nothing refers to it."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.entries or not size or not tensor.is_meta:
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
    """Indexing by a real mask gives as many rows as it has ones: the mask as indices, since meta cannot count."""
    if function._overloadpacket not in _INDEXING:
        return args
    indices = []
    for index in args[1]:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        indices += index.nonzero(as_tuple=True) if is_mask else [index]
    return (args[0], indices, *args[2:])


def _with_equal_heads(args):
    """Attention's arguments with keys and values for every head of the queries, each (rows, heads, tokens, head size).

    So many products are computed, and torch 2.11's formula refuses the shapes of grouped queries.
    """
    heads = max(tensor.shape[1] for tensor in _tensors(args) if tensor.dim() == 4)

    def repeated(tensor):
        return tensor.new_empty(len(tensor), heads, *tensor.shape[2:]) if tensor.dim() == 4 else tensor

    return tree_map_only(torch.Tensor, repeated, args)


@contextmanager
def _autocast(half):
    """Autocast for the meta device, which has none: the float32 inputs of a linear layer become `half`.

    peft asks whether it is on, without naming a device, and then leaves the inputs of 4-bit layers as they are.
    """
    linear, is_enabled = nn.functional.linear, torch.is_autocast_enabled

    def cast(tensor):
        return tensor.to(half) if tensor is not None and tensor.dtype == torch.float32 else tensor

    nn.functional.linear = lambda *tensors: linear(*map(cast, tensors))
    torch.is_autocast_enabled = lambda *device: is_enabled(*device) if device else True
    try:
        yield
    finally:
        nn.functional.linear, torch.is_autocast_enabled = linear, is_enabled
