"""All families, and which of them a model, a processor, a configuration or a name belongs to."""

import copy
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmhelpers.families.family import Family
from vlmhelpers.families.gemma import GEMMA_3, GEMMA_4
from vlmhelpers.families.glm4v import GLM_4V
from vlmhelpers.families.internvl import INTERNVL
from vlmhelpers.families.lfm2_vl import LFM2_VL
from vlmhelpers.families.llama_vision import LLAMA_3_2_VISION
from vlmhelpers.families.llava import LLAVA_NEXT, LLAVA_ONEVISION
from vlmhelpers.families.mistral3 import MISTRAL_3
from vlmhelpers.families.ovis2 import OVIS2
from vlmhelpers.families.phi3_vision import PHI_3_VISION
from vlmhelpers.families.published import NAMES, PUBLISHED, SHAPES
from vlmhelpers.families.qwen_vl import QWEN2_5_VL, QWEN2_VL, QWEN3_5, QWEN3_VL, QWEN3_VL_MOE
from vlmhelpers.families.received import is_within_reach, load_config, read_object
from vlmhelpers.families.smolvlm import SMOLVLM

# A family that is added here goes through the conformance suite. Of several with one class of processor, the first is
# that of a processor whose model is not known.
_ALL = (
    *(LLAMA_3_2_VISION, QWEN2_5_VL, QWEN3_VL, PHI_3_VISION),
    *(QWEN2_VL, QWEN3_VL_MOE, QWEN3_5),
    *(INTERNVL, LFM2_VL, GEMMA_3, GEMMA_4, SMOLVLM, MISTRAL_3, LLAVA_ONEVISION, LLAVA_NEXT, GLM_4V, OVIS2),
)
FAMILIES = {family.name: family for family in _ALL}
TINY_BASES = {name: FAMILIES[name] for name in NAMES}  # those with a tiny base, the first to begin with
GENERIC = Family()
_HUB_ID = r"[\w.-]+/[\w.-]+"
_PUBLISHERS = {name.partition("/")[0].lower() for name in PUBLISHED} | {"unsloth"}  # whose names tell the shape


def family_of(subject: str | Path | PreTrainedConfig | ProcessorMixin | PreTrainedModel) -> Family:
    """The family of a model, processor, configuration, family's name, local folder or hub id; else the generic one."""
    if isinstance(subject, (str, Path)):
        return _by_name(str(subject))
    config = getattr(subject, "config", subject)
    if not getattr(config, "model_type", None):
        return _by_processor(subject)
    family = _by_config(config)
    return family.for_model(subject) if hasattr(subject, "get_decoder") else family


def _by_config(config):
    return _by_type(config.model_type, getattr(getattr(config, "vision_config", None), "model_type", None))


def _by_type(model_type, vision_type):
    """Pixtral is a Llava of another tower."""
    kind = vision_type if (model_type, vision_type) == ("llava", "pixtral") else model_type
    return _first(lambda family: kind in family.model_types)


def _by_processor(processor):
    """By its class, which several may have: then the model of whose folder or hub id it was loaded decides."""
    classes = {kind.__name__ for kind in type(processor).__mro__}
    able = [family for family in FAMILIES.values() if classes & {*family.processors}]
    if not able or (file := _config_of(processor.tokenizer.name_or_path)) is None:
        return (*able, GENERIC)[0]
    content = read_object(file)
    named, sees = _by_content(content), content.get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return named if named in able or (named is GENERIC and sees) else able[0]  # else the tokenizer is of another model


def _config_of(name):
    """The config.json of a folder, or of a hub id in the cache; None where it is not there."""
    if not name:
        return None
    is_id = re.fullmatch(_HUB_ID, name) and not Path(name).exists()
    file = try_to_load_from_cache(name, "config.json") if is_id else Path(name) / "config.json"
    return file if isinstance(file, str | Path) and Path(file).is_file() else None  # else a mark of what the hub lacks


def _by_content(content):
    """Of a config.json."""
    vision = content.get("vision_config")
    return _by_type(content.get("model_type"), vision.get("model_type") if isinstance(vision, dict) else None)


def _by_name(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    if (Path(name) / "config.json").is_file():
        return _by_content(read_object(Path(name) / "config.json"))
    on_hub = _config_on_hub(name)
    return _by_config(on_hub) if on_hub else _first(lambda family: family.is_meant_by(name.lower()))


def _config_on_hub(name):
    """The configuration of a hub id; None for one whose name tells all, or that cannot be read now."""
    if not re.fullmatch(_HUB_ID, name) or Path(name).exists() or _known_shape(name)[1]:
        return None
    try:
        return _of_hub(name)
    except (OSError, ValueError):
        return None


def _first(fits: Callable[[Family], bool]) -> Family:
    return next(filter(fits, FAMILIES.values()), GENERIC)


def tiny_model(family: str) -> Path:
    """The folder of the tiny base of a family. ValueError for an unknown one, FileNotFoundError if not pretrained."""
    if family not in TINY_BASES:
        raise ValueError(f"no tiny base is called {family!r}; there are: {', '.join(TINY_BASES)}")
    return TINY_BASES[family].tiny_base()


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
