"""Where LoRA adapters go, and a report of what is trained."""

import hashlib
import os
import re
from dataclasses import dataclass

import torch

from vlmhelpers.families.towers import tower_of

TOWERS = ("vision", "projector", "language", "head")
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def lora_targets(model, language=True, vision=False, from_layer=0, attention=True, mlp=True):
    """A regular expression for `LoraConfig(target_modules=...)` that hits the linear layers of the chosen towers only.

    The usual lists of names (`q_proj`, ..., `all-linear`) also hit layers of the vision tower. `vision=True` takes the
    vision tower and its projector. Of either tower's layers, `attention` and `mlp` take those inside the attention and
    all others; the projector is neither. `from_layer` leaves out the language layers before that number, counted from
    0: on text alone, adapters there cost the tiny model's picture answers most. Raises ValueError when nothing is
    chosen.
    """
    towers = ["language"] * language + ["vision", "projector"] * vision
    linear = [_plain(name) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    linear = [name for name in dict.fromkeys(linear) if ".lora_" not in name]
    layers = [name for name in linear if _is_wanted(name, attention, mlp)]
    groups = [[name for name in layers if tower_of(name) == tower] for tower in towers]
    if language and from_layer:
        groups[0] = [name for name in groups[0] if _layer(name) >= from_layer]
    patterns = [pattern for names in groups if names for pattern in _patterns(names, set(linear) - set(names))]
    if not patterns:
        raise ValueError(
            "nothing to adapt: choose language=True, vision=True, or both, and attention=True, mlp=True, or both, of a "
            "model with linear layers"
        )
    return "|".join(patterns)


def _is_wanted(name, attention, mlp):
    if tower_of(name) == "projector":
        return True
    return attention if "attn" in name or "attention" in name else mlp


def _plain(name):
    """A module's name without what peft puts around it: a model with adapters has the same targets."""
    return name.removeprefix("base_model.model.").removesuffix(".base_layer")


def _layer(name):
    """The number of the layer that a module belongs to, by its full name; -1 outside the layers."""
    found = _LAYER.search(name)
    return int(found.group(1)) if found else -1


def _patterns(names, others):
    """Patterns that together hit all of `names` and none of `others`: one, or else one for each module inside."""
    pattern = _pattern(names)
    if not any(re.fullmatch(pattern, name) for name in others):
        return [pattern]
    start = len(_prefix(names)) + 1
    inside = {}
    for name in names:
        inside.setdefault(name[start:].partition(".")[0], []).append(name)
    return [pattern for part in inside.values() for pattern in _patterns(part, others)]


def _prefix(names):
    """The name of the module that all of `names` are in."""
    return os.path.commonprefix(names).rpartition(".")[0]


def _pattern(names):
    """One pattern for modules of one tower: their common prefix, their layers' numbers, one of their last names."""
    if len(names) == 1:
        return re.escape(names[0])
    prefix, between = _prefix(names), r"(?:.+\.)?"
    numbers = sorted({_layer(name) for name in names})
    if numbers[0] > 0:
        prefix = names[0].partition(".layers.")[0] + ".layers"
        between = rf"(?:{'|'.join(map(str, numbers))})\.{between}"
    leaves = "|".join(sorted({name.rpartition(".")[2] for name in names}))
    return rf"{re.escape(prefix)}\.{between}(?:{leaves})"


@dataclass(frozen=True)
class Trainable:
    """Parameters of a model by tower: `counts` maps a tower to (trained, all). Prints as a table."""

    counts: dict

    def __repr__(self):
        lines = [f"{'tower':<10} {'trained':>12} {'all':>14} {'share':>8}"]
        for tower, (trained, total) in (self.counts | {"together": self.total}).items():
            lines.append(f"{tower:<10} {trained:>12,} {total:>14,} {trained / max(total, 1):>8.2%}")
        return "\n".join(lines)

    @property
    def total(self):
        return tuple(sum(numbers) for numbers in zip(*self.counts.values(), strict=True))


def describe_trainable(model):
    """How many parameters are trained in each tower: a `Trainable`, adapters counted with the tower they sit in.

    4-bit matrices are counted by their real number of weights, not by the bytes that pack them.
    """
    counts = {tower: [0, 0] for tower in TOWERS}
    for name, parameter in model.named_parameters():
        quantised = getattr(parameter, "quant_state", None)
        size = quantised.shape.numel() if quantised is not None else parameter.numel()
        counts[tower_of(name)][0] += size * parameter.requires_grad
        counts[tower_of(name)][1] += size
    return Trainable({tower: tuple(numbers) for tower, numbers in counts.items()})


def fingerprint(model, *towers):
    """A SHA-256 digest (hex) of every weight of some towers ("vision", "projector", ...), adapters in them included.

    Equal before and after training only if not one bit of these towers has changed. Raises ValueError for a tower that
    the model does not have.
    """
    found, digest = set(), hashlib.sha256()
    for name, parameter in model.named_parameters():
        if tower_of(name) in towers:
            found.add(tower_of(name))
            digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy())
    if found != set(towers):
        raise ValueError(f"the model has no weights in {', '.join(sorted(set(towers) - found))}")
    return digest.hexdigest()


def keep_adapters_float32(model):
    """Makes every trained parameter float32 again: TRL turns the adapters of a 4-bit model into bfloat16.

    A T4 has no bfloat16 and its gradient scaler stops there; on a CPU small steps are lost. Call it once the trainer is
    built, on `trainer.model`.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
