"""All families, and which of them a model, a processor, a configuration or a name belongs to."""

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmhelpers.families.family import Family
from vlmhelpers.families.llama_vision import LLAMA_3_2_VISION
from vlmhelpers.families.phi3_vision import PHI_3_VISION
from vlmhelpers.families.published import PUBLISHED, SHAPES
from vlmhelpers.families.qwen_vl import QWEN2_5_VL, QWEN3_VL
from vlmhelpers.families.received import is_within_reach, load_config, read_object

# A family that is added here is loaded, trained, evaluated and exported, and goes through the tests of all families.
FAMILIES = {family.name: family for family in (LLAMA_3_2_VISION, QWEN2_5_VL, QWEN3_VL, PHI_3_VISION)}
GENERIC = Family()
_PUBLISHERS = {name.partition("/")[0].lower() for name in PUBLISHED} | {"unsloth"}  # whose names tell the shape


def family_of(subject: str | Path | PreTrainedConfig | ProcessorMixin | PreTrainedModel) -> Family:
    """The family of a model, processor, configuration, family's name, local folder or hub id; else the generic one."""
    if isinstance(subject, (str, Path)):
        return _by_name(str(subject))
    config = getattr(subject, "config", subject)
    if model_type := getattr(config, "model_type", None):
        family = _first(lambda family: family.model_type == model_type)
        return family.for_model(subject) if hasattr(subject, "get_decoder") else family
    classes = {kind.__name__ for kind in type(subject).__mro__}
    return _first(lambda family: family.processor in classes)


def _by_name(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    config = Path(name) / "config.json"
    model_type = read_object(config).get("model_type") if config.is_file() else _model_type_on_hub(name)
    if model_type:
        return _first(lambda family: family.model_type == model_type)
    return _first(lambda family: family.is_meant_by(name.lower()))


def _model_type_on_hub(name):
    """What the configuration of a hub id says; None for one whose name tells all, or that cannot be read now."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name) or Path(name).exists() or _known_shape(name)[1]:
        return None
    try:
        return _of_hub(name).model_type
    except (OSError, ValueError):
        return None


def _first(fits: Callable[[Family], bool]) -> Family:
    return next(filter(fits, FAMILIES.values()), GENERIC)


def tiny_model(family: str) -> Path:
    """The folder of the tiny base of a family. ValueError for an unknown one, FileNotFoundError if not pretrained."""
    if family not in FAMILIES:
        raise ValueError(f"no tiny base is called {family!r}; there are: {', '.join(FAMILIES)}")
    return FAMILIES[family].tiny_base()


def find_config(model_id: str | Path) -> PreTrainedConfig:
    """The configuration of a local folder or of a hub id.

    Those in `PUBLISHED`, and their publishers' and Unsloth's variants of the same shape, need no network; all others
    are read from the hub, and only where that is out of reach is a name like a published one's taken for its shape.
    Raises ValueError for what cannot be found.
    """
    if Path(model_id).is_dir():
        return load_config(model_id)
    folder, is_certain = _known_shape(str(model_id))
    if is_certain:
        return load_config(folder)
    try:
        return copy.deepcopy(_of_hub(str(model_id)))
    except OSError as error:
        if folder:
            return load_config(folder)
        known = f"known without the hub are {', '.join(PUBLISHED)} and their variants"
        remedy = "pass a local folder with the model's config.json; its weights are not needed"
        raise ValueError(f"the shape of {model_id!r} is not known here; {known}. Otherwise {remedy}") from error


def _known_shape(model_id):
    """(the folder of the published shape that a name is like, or None; whether who published it makes it certain)."""
    name = model_id.lower()
    for family in FAMILIES.values():
        for alias, shape in family.same_shape.items():
            name = name.replace(alias, shape)
    for published in PUBLISHED:
        shape = re.sub("(-128k)?-instruct$", "", published.lower().rpartition("/")[2])  # such as qwen3-vl-2b
        if re.search(rf"(^|/){re.escape(shape)}(-|$)", name):
            return SHAPES / published, name.partition("/")[0] in _PUBLISHERS
    return None, False


@cache
def _of_hub(model_id):
    """The configuration of a hub id, from the cache or the hub; OSError where it is in neither."""
    if not is_within_reach(model_id, "config.json"):
        raise OSError(f"{model_id} is not in the cache, and the hub is out of reach")
    return load_config(model_id)
