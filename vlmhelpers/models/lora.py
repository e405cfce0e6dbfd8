"""Where LoRA adapters go, and a report of what is trained."""

import re
from dataclasses import dataclass

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from vlmhelpers.common.digests import tensors_digest
from vlmhelpers.families import TOWERS, family_of
from vlmhelpers.families.towers import plain_name

# A module's name around its layer's number: (what is before, number, what follows).
_LAYER = re.compile(r"(.*?\.)(\d+)(\..+)")


def lora_targets(
    model: torch.nn.Module,
    language: bool = True,
    vision: bool = False,
    from_layer: int = 0,
    attention: bool = True,
    mlp: bool = True,
) -> str:
    """A regular expression for `LoraConfig(target_modules=...)` that hits the linear layers of the chosen towers only.

    vision: that tower and its projector. attention, mlp: the layers inside the attention, and all others, but for those
    that choose experts; of the experts themselves, see `expert_parameters`. from_layer: the first of the language
    layers, from 0. Raises ValueError when nothing is chosen.
    """
    family = family_of(model)
    tower_of = family.tower_of
    names = {plain_name(name): module for name, module in model.named_modules()}
    chosen = []
    for name in filter(lambda name: _is_called(names[name]), names):
        tower, is_attention = tower_of(name), "attn" in name or "attention" in name
        wanted = vision if tower in ("vision", "projector") else language and tower == "language"
        wanted &= tower == "projector" or (attention if is_attention else mlp)
        wanted &= family.is_adapted(name)
        layer = int(found[2]) if (found := _LAYER.fullmatch(name)) else 0
        if wanted and ".lora_" not in name and (tower != "language" or layer >= from_layer):
            chosen.append(name)
    if not chosen:
        raise ValueError(
            "nothing to adapt: choose language=True, vision=True, or both, and attention=True, mlp=True, or both, of a "
            "model with linear layers"
        )
    return _pattern(chosen, set(names) - set(chosen))


def _is_called(module):
    """Whether it is a linear layer that is called: torch's own attention reads the weights of its last one instead."""
    return isinstance(module, torch.nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def expert_parameters(model: torch.nn.Module) -> list[str]:
    """Names for `LoraConfig(target_parameters=...)`: the experts' weights of a mixture, which are no linear layers.

    The same for all layers: ["mlp.experts.down_proj", ...]; none for a model without experts. They stay in 16 bits
    where the others have 4.
    """
    tower_of = family_of(model).tower_of
    names = [plain_name(name) for name, weight in model.named_parameters() if weight.dim() == 3 and "lora_" not in name]
    found = [name for name in names if ".experts." in name and tower_of(name) == "language"]
    return sorted({match[3].removeprefix(".") for name in found if (match := _LAYER.fullmatch(name))})


def targets_of(model: torch.nn.Module, pattern: object) -> set[str] | None:
    """The modules that a regular expression of `lora_targets` hits; None for another kind of `target_modules`."""
    if not isinstance(pattern, str) or pattern == "all-linear":
        return None
    return {plain_name(name) for name, _ in model.named_modules() if re.fullmatch(pattern, plain_name(name))}


def check_adapted(model: torch.nn.Module, targets: set[str] | None, experts: bool) -> None:
    """Raises ValueError where peft has put adapters elsewhere than on `targets`: it rewrites those of some mixtures.

    targets: what `targets_of` gave before. experts: whether `LoraConfig(target_parameters=...)` asked for them.
    """
    adapted = {plain_name(name): module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    modules = {name for name, module in adapted.items() if not hasattr(module, "parameter_name")}  # else of experts
    unasked = set() if experts else {*adapted} - modules
    if targets is None or not (wrong := sorted(modules ^ targets | unasked)):
        return
    what = f"peft has not adapted what target_modules names: {len(wrong)} layers differ, such as {wrong[0]}"
    decoder = next(name for name, module in model.named_modules() if module is model.get_decoder())
    inside = rf'exclude_modules=r"(?!{re.escape(plain_name(decoder))}\.).*"'
    raise ValueError(f"{what}. Add {inside} to LoraConfig, or adapt the attention alone: lora_targets(..., mlp=False)")


def _pattern(names, others):
    """A pattern that hits all of `names`, none of `others`: full names, written once for all layers that are alike."""
    numbers = {}  # (what is before a layer's number, what follows) -> numbers
    for name in names:
        before, number, after = found.groups() if (found := _LAYER.fullmatch(name)) else (name, "", "")
        numbers.setdefault((before, after), []).append(number)
    endings = {}  # (what is before, a pattern of numbers) -> what follows
    for (before, after), found in numbers.items():
        start, end, number = re.escape(before), re.escape(after), r"\d+" if found != [""] else ""
        if any(re.fullmatch(start + number + end, other) for other in others):
            number = f"(?:{'|'.join(found)})"
        endings.setdefault(start + number, []).append(end)
    return "|".join(f"{start}(?:{'|'.join(ends)})" for start, ends in endings.items())


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


def describe_trainable(model: torch.nn.Module) -> Trainable:
    """How many parameters are trained in each tower, its adapters included; 4-bit matrices count by their weights."""
    tower_of, counts = family_of(model).tower_of, {tower: [0, 0] for tower in TOWERS}
    for name, parameter in model.named_parameters():
        quantized = getattr(parameter, "quant_state", None)
        size = quantized.shape.numel() if quantized is not None else parameter.numel()
        of_tower = counts.setdefault(tower_of(name), [0, 0])
        of_tower[0] += size * parameter.requires_grad
        of_tower[1] += size
    return Trainable({tower: tuple(numbers) for tower, numbers in counts.items()})


def fingerprint(model: torch.nn.Module, *towers: str) -> str:
    """A digest (hex) of every bit of the weights of some towers ("vision", "projector", ...), adapters included.

    Raises ValueError for a tower that the model does not have.
    """
    tower_of = family_of(model).tower_of
    weights = {name: weight for name, weight in model.named_parameters() if tower_of(name) in towers}
    if missing := set(towers) - set(map(tower_of, weights)):
        raise ValueError(f"the model has no weights in {', '.join(sorted(missing))}")
    return tensors_digest(enumerate(weights.values()))  # adapters change the names


def keep_adapters_float32(model: torch.nn.Module) -> None:
    """Makes every trained parameter float32 again, once the trainer is built: TRL makes them bfloat16 with 4 bits.

    A T4 has no bfloat16, and its gradient scaler stops there; on a CPU small steps are lost.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
