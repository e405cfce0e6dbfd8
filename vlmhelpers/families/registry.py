"""All families, and which of them a model, a processor, a configuration or a name belongs to."""

import json
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmhelpers.families.family import Family
from vlmhelpers.families.llama_vision import LLAMA_3_2_VISION
from vlmhelpers.families.phi3_vision import PHI_3_VISION
from vlmhelpers.families.qwen_vl import QWEN2_5_VL, QWEN3_VL

# A family that is added here is loaded, trained, evaluated and exported, and goes through the tests of all families.
FAMILIES = {family.name: family for family in (LLAMA_3_2_VISION, QWEN2_5_VL, QWEN3_VL, PHI_3_VISION)}
GENERIC = Family()


def family_of(subject: str | Path | PreTrainedConfig | ProcessorMixin | PreTrainedModel) -> Family:
    """The family of a model, a processor, a configuration, or of a family's name, a local folder or a hub id.

    What is of no known architecture belongs to the generic family, with the towers of the model where it is one.
    """
    if isinstance(subject, (str, Path)):
        return _by_name(str(subject))
    config = getattr(subject, "config", subject)
    if model_type := getattr(config, "model_type", None):
        family = _by_model_type(model_type)
        return family.for_model(subject) if hasattr(subject, "get_decoder") else family
    classes = {kind.__name__ for kind in type(subject).__mro__}
    return next((family for family in FAMILIES.values() if family.processor in classes), GENERIC)


def _by_model_type(model_type: str) -> Family:
    return next((family for family in FAMILIES.values() if family.model_type == model_type), GENERIC)


def _by_name(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    config = Path(name) / "config.json"
    if config.is_file():
        return _by_model_type(json.loads(config.read_text(encoding="utf-8")).get("model_type", ""))
    return next((family for family in FAMILIES.values() if family.is_meant_by(name.lower())), GENERIC)


def tiny_model(family: str) -> Path:
    """The folder of the tiny base of a family: every `from_pretrained` takes it.

    Raises ValueError for an unknown family, FileNotFoundError where the base was not pretrained.
    """
    if family not in FAMILIES:
        raise ValueError(f"no tiny base is called {family!r}; there are: {', '.join(FAMILIES)}")
    return FAMILIES[family].tiny_base()
