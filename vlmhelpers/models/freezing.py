"""Training a model's own weights: all of them, some towers, or the last layers."""

import functools
import re
from collections.abc import Collection

import torch

from vlmhelpers.families import TOWERS, family_of
from vlmhelpers.models.lora import Trainable, describe_trainable

_LAYER = re.compile(r".*layers\.(\d+)\.")
_DTYPES = "_vlmhelpers_dtypes"  # on a model: name -> what the trained weights were loaded as, where that has 16 bits


def train_only(model: torch.nn.Module, towers: Collection[str] = TOWERS, last_layers: int | None = None) -> Trainable:
    """Lets the weights of some `towers` be trained and freezes all others; returns what is trained, as a table.

    What is trained becomes float32: 16 bits round the small steps of full fine-tuning away (Micikevicius et al. 2018,
    arXiv:1710.03740). The model still computes in the bits it was loaded in, by autocast, and `restore_dtypes` gives
    them back to the weights, to be saved. Call it before an optimizer is made.

    last_layers: of the language tower only so many layers, counted from its end, and neither its embedding nor its last
    norm. Raises ValueError for an unknown tower, for less than no layers, for a model in 4 bits, whose weights cannot
    be trained, and where nothing would be.
    """
    restore_dtypes(model)
    choose_trained(model, towers, last_layers)
    _to_float32(model)
    return describe_trainable(model)


def choose_trained(model: torch.nn.Module, towers: Collection[str], last_layers: int | None) -> None:
    """`train_only`, in the bits that the weights have."""
    if unknown := set(towers) - set(TOWERS):
        raise ValueError(f"towers: {', '.join(sorted(unknown))}: choose from {', '.join(TOWERS)}")
    if last_layers is not None and last_layers < 0:
        raise ValueError(f"last_layers={last_layers}: a number of layers, or None for all")
    if getattr(model, "is_loaded_in_4bit", False):
        raise ValueError("weights of 4 bits cannot be trained: load the model with bits=16, or train adapters")
    tower_of, layers = family_of(model).tower_of, {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(tower_of(name) in towers)
        if last_layers is not None and tower_of(name) == "language":
            parameter.requires_grad_(False)
            if found := _LAYER.match(name):
                layers.setdefault(int(found[1]), []).append(parameter)
    for number in sorted(layers)[-last_layers:] if last_layers else ():
        for parameter in layers[number]:
            parameter.requires_grad_("language" in towers)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("nothing would be trained: choose other towers or more layers")


def _to_float32(model):
    names = {name: p for name, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float32}
    setattr(model, _DTYPES, {name: parameter.dtype for name, parameter in names.items()})
    for parameter in names.values():
        parameter.data = parameter.data.float()
    if names and not isinstance(model.forward, _Autocast):
        model.forward = _Autocast(model)


def restore_dtypes(model: torch.nn.Module) -> None:
    """Gives the weights that `train_only` made float32 the bits that they were loaded in; half the file, once trained.

    Checkpoints keep float32, so that a run goes on as it was. Not for a model that FSDP has sharded.
    """
    dtypes = getattr(model, _DTYPES, {})
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))


class _Autocast:
    """Stands in for a model's `forward`, where 16 bits would meet float32 outside of a trainer.

    An object, so that a deep copy of the model computes with its own weights.
    """

    def __init__(self, model):
        self.compute, (self.dtype, *_) = model.forward, getattr(model, _DTYPES).values()
        self.device = model.device.type
        functools.update_wrapper(self, self.compute)

    def __call__(self, *args, **kwargs):
        with torch.autocast(self.device, self.dtype):
            return self.compute(*args, **kwargs)
