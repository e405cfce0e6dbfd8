"""The towers of a model, and one that is not trained kept out of the backward pass."""

from contextlib import nullcontext

import torch
from transformers import PreTrainedModel

_PROJECTOR = {"multi_modal_projector", "merger", "deepstack_merger_list", "img_projection"}
_VISION = {"visual", "vision_model", "vision_tower", "vision_embed_tokens"}


def tower_of(name):
    """The part of a model that a module or parameter belongs to, by its full name.

    One of "vision", "projector" (from picture features to language), "language" and "head" (lm_head).
    """
    parts = set(name.split("."))
    if parts & _PROJECTOR:
        return "projector"
    if parts & _VISION:
        return "vision"
    return "head" if "lm_head" in parts else "language"


def is_frozen(module):
    """Whether no parameter in it is trained."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def rest_frozen_tower(model):
    """Makes the vision tower of `model` compute without gradients for as long as nothing in it is trained.

    For gradient checkpointing the trainer asks for gradients of what every embedding gives
    (`enable_input_require_grads`), in Qwen2.5-VL also the pixels'. Its frozen tower is then computed a second time in
    the backward pass, and differentiated, for gradients of pixels that nobody uses. Losses and the adapters'
    gradients stay the same. Adapters that are put into the tower later are trained as ever. Once per model is enough.
    """
    tops = [module for name, module in model.named_modules() if _is_tower(name, module)]
    inside = {id(part) for top in tops for part in top.modules() if part is not top}
    for top in tops:
        if id(top) not in inside and not isinstance(top.forward, _Resting):
            top.forward = _Resting(top)


def _is_tower(name, module):
    return isinstance(module, PreTrainedModel) and tower_of(name) == "vision"


class _Resting:
    """Stands in for the `forward` of a tower. An object, so that a deep copy of the model has a tower of its own."""

    def __init__(self, tower):
        self.tower, self.compute = tower, tower.forward

    def __call__(self, *args, **kwargs):
        with torch.no_grad() if is_frozen(self.tower) else nullcontext():
            return self.compute(*args, **kwargs)
