"""The towers of a model as transformers knows its parts, and one that is not trained kept out of the backward pass."""

from contextlib import nullcontext

import torch
from transformers import PreTrainedModel


def plain_name(name: str) -> str:
    """A module's name without what peft puts around it."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def derive_towers(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """The names of the modules of `model` in the towers "vision", "audio", "head" and "projector".

    Vision and audio are what transformers' `get_encoder` gives for them, or nothing, and further models that take
    pixels; the projector is all else outside of these, of the decoder and of the head. Raises ValueError where nothing
    is: images then enter inside.
    """
    names = {id(module): name for name, module in model.named_modules()}
    language, head = names[id(model.get_decoder())], names.get(id(model.get_output_embeddings()))
    vision, audio = (_encoder(model, kind, names, language) for kind in ("image", "audio"))
    outside, modules = _outside(model, {language, head, *vision, *audio}), dict(model.named_modules())
    further = {name for name in outside if getattr(modules.get(name), "main_input_name", "") == "pixel_values"}
    vision, projector = (*vision, *sorted(further)), tuple(name for name in outside if name not in further)
    if not language or not (vision or projector):
        raise ValueError(f"a {type(model).__name__} has its vision inside the decoder: describe its towers in a Family")
    found = {"vision": vision, "audio": audio, "head": (head,) if head else (), "projector": projector}
    return {tower: tuple(map(plain_name, modules)) for tower, modules in found.items()}


def _encoder(model, modality, names, language):
    """(its name,), or nothing where transformers gives what holds the decoder."""
    encoder = names.get(id(model.get_encoder(modality=modality)), "")
    return (encoder,) if encoder and not f"{language}.".startswith(f"{encoder}.") else ()


def _outside(module: torch.nn.Module, towers: set, prefix: str = "") -> list[str]:
    """The topmost modules, and the parameters between them, outside of `towers` (full names)."""
    rest = [prefix + name for name, _ in module.named_parameters(recurse=False)]
    for name, child in module.named_children():
        full = prefix + name
        inside = any(tower and tower.startswith(f"{full}.") for tower in towers)
        if full not in towers:
            rest += _outside(child, towers, f"{full}.") if inside else [full]
    return rest


def is_frozen(module: torch.nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in module.parameters())


def no_grad_if_frozen(module: torch.nn.Module):
    """A context without gradients for as long as nothing in `module` is trained."""
    return torch.no_grad() if is_frozen(module) else nullcontext()
