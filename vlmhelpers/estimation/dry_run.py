"""A training step on tensors without contents: what it would allocate and compute, before any weights load.

The model is built on PyTorch's `meta` device, where a tensor has a shape, a type and a lifetime but no values, so a
model of any size takes a step in seconds and a few megabytes. What the step runs is the real code of transformers, peft
and autograd.
"""

import weakref
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Rehearsal:
    """What one forward and backward pass allocates at its peak, in bytes, beside weights, gradients and AdamW's states.

    kept: of the forward pass, for the backward pass. logits: logits, loss and their gradients. temporary: the rest:
    the layer that is being recomputed, a matrix out of 4 bits, the vision tower at work. `flops` are the floating-point
    operations of all matrix products, a multiplication and an addition being two.
    """

    kept: int
    logits: int
    temporary: int
    flops: int


def rehearse(model, batch, half=torch.bfloat16):
    """The `Rehearsal` of one training step, as TRL takes it.

    `model`: on the meta device, its trained parameters set. `batch`: what it is called with; integers are real
    tensors, as lengths and places are read from them, everything else is on the meta device. `half`: what autocast
    computes in, None for training without it.
    """
    ledger = Ledger([*model.parameters(), *model.buffers()])
    for parameter in model.parameters():
        if parameter.requires_grad:  # gradients of the steps before, as in accumulation
            parameter.grad = torch.empty_like(parameter)
            ledger.ignore(parameter.grad)
    for tensor in batch.values():
        if tensor.is_meta:
            ledger.enter(tensor.untyped_storage())
    hook = model.get_output_embeddings().register_forward_pre_hook(ledger.at_head)
    try:
        with ledger, _autocast(half) if half else nullcontext():
            _loss(model, batch).backward()
    finally:
        hook.remove()
        model.zero_grad(set_to_none=True)
    at_peak = ledger.at_peak
    return Rehearsal(at_peak["kept"], at_peak["logits"], at_peak["forward"] + at_peak["backward"], ledger.flops)


def _loss(model, batch):
    """The loss; on the way, accelerate's float32 copy of the logits, which TRL's metrics are made from."""
    output = model(**batch, use_cache=False)
    output.logits.float()
    return output.loss


class Ledger(TorchDispatchMode):
    """Books every storage on the meta device from its making to its end; `at_peak` is bytes by phase, at their most.

    A storage belongs to the phase that it was made in: "forward", "logits" or "backward"; what is left of "forward"
    when the logits begin is "kept".
    """

    def __init__(self, ignored=()):
        super().__init__()
        self.phase, self.flops = "forward", 0
        self.entries, self.live, self.at_peak = {}, Counter(), Counter()
        self._ignored = {}
        for tensor in ignored:
            self.ignore(tensor)

    def ignore(self, tensor):
        """`tensor` is there before and after the step, and counted elsewhere."""
        storage = tensor.untyped_storage()
        self._ignored[storage._cdata] = storage  # held, so that no other storage gets its address

    def at_head(self, module, arguments):
        """For a forward pre-hook of lm_head: what is live now has been kept for the backward pass."""
        (hidden,) = arguments
        if self.phase != "forward":
            return
        self.entries = {key: (size, "kept") for key, (size, _) in self.entries.items()}
        self.live = Counter(kept=self.live["forward"])
        self.phase = "logits"
        hidden.register_hook(self._at_backward)

    def _at_backward(self, gradient):
        self.phase = "backward"

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given, kwargs = args, kwargs or {}
        on_meta = {tensor.is_meta for tensor in _tensors((*args, *kwargs.values()))}
        if on_meta == {True, False}:
            args, kwargs = tree_map_only(torch.Tensor, _to_meta, (_without_masks(function, args), kwargs))
        elif on_meta == {False} and function is torch.ops.aten._to_copy.default:
            kwargs = kwargs | {"device": "cpu"}  # moved "to the model's device": its values are still needed
        output = function(*args, **kwargs)
        for tensor in _tensors(output if isinstance(output, (list, tuple)) else [output]):
            if tensor.is_meta:
                self.enter(tensor.untyped_storage())
        packet = function._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*given, **kwargs, out_val=output)
        return output

    def enter(self, storage):
        key = storage._cdata
        if key in self.entries or key in self._ignored or not storage.nbytes():
            return
        self.entries[key] = (storage.nbytes(), self.phase)
        self.live[self.phase] += storage.nbytes()
        weakref.finalize(storage, self._leave, key)
        if self.live.total() > self.at_peak.total():
            self.at_peak = Counter(self.live)

    def _leave(self, key):
        size, phase = self.entries.pop(key)
        self.live[phase] -= size


def _tensors(values):
    """The tensors among an operator's arguments, which are tensors, lists of them, and plain values."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _to_meta(tensor):
    return tensor if tensor.is_meta else tensor.to("meta")


def _without_masks(function, args):
    """Indexing by a real mask gives as many rows as it has ones: the mask as places, since meta cannot count."""
    if function._overloadpacket not in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_):
        return args
    places = []
    for index in args[1]:
        is_mask = index is not None and index.dtype == torch.bool and not index.is_meta
        places += index.nonzero(as_tuple=True) if is_mask else [index]
    return (args[0], places, *args[2:])


@contextmanager
def _autocast(half):
    """Autocast for the meta device, which has none: the float32 inputs of a linear layer become `half`.

    peft asks whether it is on, without naming a device, and then leaves the inputs of 4-bit layers as they are.
    """
    linear, is_enabled = functional.linear, torch.is_autocast_enabled

    def cast(tensor):
        return tensor.to(half) if tensor is not None and tensor.dtype == torch.float32 else tensor

    functional.linear = lambda *tensors: linear(*map(cast, tensors))
    torch.is_autocast_enabled = lambda *device: is_enabled(*device) if device else True
    try:
        yield
    finally:
        functional.linear, torch.is_autocast_enabled = linear, is_enabled
