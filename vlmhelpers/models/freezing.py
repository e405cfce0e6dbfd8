"""Training a model's own weights: all of them, some towers, or the last layers."""

import re
from collections.abc import Collection

import torch

from vlmhelpers.families import TOWERS, family_of
from vlmhelpers.models.lora import Trainable, describe_trainable

_LAYER = re.compile(r".*layers\.(\d+)\.")


def train_only(model: torch.nn.Module, towers: Collection[str] = TOWERS, last_layers: int | None = None) -> Trainable:
    """Lets the weights of some `towers` be trained and freezes all others; returns what is trained, as a table.

    last_layers: of the language tower only so many layers, counted from its end, and neither its embedding nor its last
    norm. Raises ValueError for an unknown tower, for less than no layers, for a model in 4 bits, whose weights cannot
    be trained, and where nothing would be.
    """
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
    return describe_trainable(model)
