"""An adapter's files, whoever wrote them: checked before peft reads them, which believes whatever they say."""

import math
import os
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from transformers import PreTrainedModel

from vlmhelpers.common.files import remove_abandoned
from vlmhelpers.common.processes import run_trial
from vlmhelpers.families.received import check_folder, read_object, tensor_shapes

ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PER_MODULE = 6  # tensors: A, B, their bias, DoRA's magnitude, and the layer's own two
_PLAIN = re.compile(r"[\w.\\^$-]*")  # which no name makes slow
_SECONDS = 60  # for a trial, with the start of Python

_Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
_Rank = Annotated[StrictInt, Field(gt=0, lt=2**31)]
_Names = list[StrictStr]


class _Config(BaseModel):
    """What peft's LoraConfig takes, as far as an adapter may say it. Its other fields are bool or stay as they are."""

    model_config = ConfigDict(extra="allow")

    peft_type: Literal["LORA"]
    base_model_name_or_path: StrictStr | None = None
    task_type: StrictStr | None = None
    r: _Rank = 8
    lora_alpha: _Number = 8
    lora_dropout: _Number = 0
    target_modules: StrictStr | _Names | None = None
    target_parameters: _Names | None = None
    exclude_modules: StrictStr | _Names | None = None
    modules_to_save: _Names | None = None
    layers_to_transform: StrictInt | list[StrictInt] | None = None
    layers_pattern: StrictStr | _Names | None = None
    rank_pattern: dict[StrictStr, _Rank] = {}
    alpha_pattern: dict[StrictStr, _Number] = {}
    alora_invocation_tokens: list[StrictInt] | None = None
    trainable_token_indices: list[StrictInt] | dict[StrictStr, list[StrictInt]] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    init_lora_weights: StrictBool | StrictStr | None = True
    use_dora: StrictBool = False
    use_rslora: StrictBool = False
    fan_in_fan_out: StrictBool = False
    lora_bias: StrictBool = False
    megatron_config: None = None  # would import a module by its name
    layer_replication: None = None  # would make another model of the base


def read_adapter_config(adapter: str | Path) -> dict:
    """The adapter_config.json of the folder `adapter`, of sound types and with the ranks that its tensors have.

    Raises FileNotFoundError without it, or without the weights, and ValueError for what cannot be read or used.
    """
    if not isinstance(adapter, str | os.PathLike):
        raise TypeError(f"a {type(adapter).__name__} is no folder: save it with save_adapter, and pass that folder")
    remove_abandoned(Path(adapter).parent, Path(adapter).name)  # puts back what a killed process was about to replace
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE):
        if not (Path(adapter) / name).is_file():
            raise FileNotFoundError(f"{adapter} has no {name}: {_where_adapters_are(adapter)}")
    check_folder(adapter)
    file = Path(adapter) / ADAPTER_CONFIG_FILE
    content = read_object(file)
    try:
        config = _Config.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where, value = ".".join(map(str, first["loc"][:1])), repr(first["input"])[:80]
        value = "missing" if first["type"] == "missing" else value
        remedy = "only LoRA adapters as peft saves them can be used: save it again, or get it from where it came"
        raise ValueError(f"{file}: {where} is {value} ({first['msg']}): {remedy}") from error
    _check_ranks(file, config, adapter_shapes(adapter))
    return content


def _where_adapters_are(folder):
    """What to pass instead of `folder`: peft saves adapters that are not called default in folders of their names."""
    inside = sorted(map(str, (file.parent for file in Path(folder).glob(f"*/{ADAPTER_CONFIG_FILE}"))))
    return f"pass {' or '.join(inside)}" if inside else "pass the folder that save_adapter or save_model wrote"


def adapter_shapes(adapter: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's tensors. Raises ValueError for a damaged file, and for empty tensors."""
    file = Path(adapter) / ADAPTER_WEIGHTS_FILE
    shapes = tensor_shapes(file)
    if empty := [name for name, shape in shapes.items() if not math.prod(shape)]:
        raise ValueError(f"{file} has {len(empty)} empty tensors, such as {empty[0][:200]}: no adapter has them")
    return shapes


def _check_ranks(file, config, shapes):
    if config.target_parameters:  # whose experts share a tensor
        return
    said = {config.r, *config.rank_pattern.values()}
    for name, shape in shapes.items():
        is_a, is_b = (f".lora_{part}." in name or f".lora_embedding_{part}" in name for part in "AB")
        if (is_a or is_b) and not name.endswith(".bias") and (len(shape) < 2 or shape[is_b] not in said):
            ranks = ", ".join(map(str, sorted(said)[:5]))
            raise ValueError(f"{file} says r = {ranks}, and the tensor {name[:200]} has the shape {list(shape)}")


def check_against(adapter: str | Path, model: PreTrainedModel) -> None:
    """Raises ValueError for an adapter that is larger than its base, or with patterns that take for ever."""
    config, shapes = _Config.model_validate(read_adapter_config(adapter)), adapter_shapes(adapter)
    modules = [name for name, _ in model.named_modules()]
    if len(shapes) > (most := _PER_MODULE * len(modules)):
        raise ValueError(f"the adapter in {adapter} has {len(shapes):,} tensors, its base has modules for {most:,}")
    if sum(map(math.prod, shapes.values())) > (most := 4 * model.num_parameters()):
        raise ValueError(f"the adapter in {adapter} has more than {most:,} parameters, 4 times those of its base")
    named = _named(config)
    if len(named) > (most := 4 * len(modules)):
        raise ValueError(f"{adapter} names {len(named):,} modules or patterns, its base has modules for {most:,}")
    patterns = tuple(pattern for pattern, names in named if not _PLAIN.fullmatch(names))
    if wrong := _try_patterns(patterns, tuple(modules)):
        raise ValueError(f"{Path(adapter) / ADAPTER_CONFIG_FILE} has {wrong}: name the modules themselves, and save it")


def _named(config: _Config) -> list[tuple[str, str]]:
    """(regular expression that peft makes of it, what a configuration says) for all that names modules."""
    found = []
    for value in (config.target_modules, config.exclude_modules):
        found += [(f"({value})$", value)] if isinstance(value, str) else [("", name) for name in value or ()]
    for value in (config.rank_pattern, config.alpha_pattern):
        found += [(rf"(.*\.)?({key})$", key) for key in value]
    found += [(rf"(^|.*\.){name}($|\..*)", name) for name in config.modules_to_save or ()]
    layers = config.layers_pattern or ()
    layers = [layers] if isinstance(layers, str) else layers
    return found + [(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", pattern) for pattern in layers]


@cache
def _try_patterns(patterns: tuple[str, ...], names: tuple[str, ...]) -> str | None:
    """What is wrong with regular expressions: each is matched with all names, in a process with limits."""
    if not patterns:
        return None
    ended, printed = run_trial("patterns", "vlmhelpers.export.pattern_trial", [patterns, names], _SECONDS)
    return printed or None if ended else "a pattern of modules that takes too long or too much memory"
