"""What a model and its processor are, by name, so that a change between two starts can be named."""

import os
from pathlib import Path

from vlmhelpers.common.digests import digest

_NOT_OF_WEIGHTS = ("_name_or_path", "transformers_version", "use_cache", "quantization_config")


def model_identity(model: object) -> dict[str, str]:
    """Of a model with or without adapters: its name, configuration, quantization and attention, without its weights."""
    config, name = model.config.to_dict(), model.config._name_or_path
    return {
        "base model": Path(name).name if os.path.isdir(name) else name,
        "model configuration": digest(_settled(config)),
        "quantization": str(config.get("quantization_config")),
        "attention": model.config._attn_implementation,
    }


def _settled(value):
    """A configuration without what a trainer adapts to the tokenizer, and without names and versions."""
    if not isinstance(value, dict):
        return str(value)
    items = sorted((str(name), part) for name, part in value.items() if name not in _NOT_OF_WEIGHTS)
    return [(name, _settled(part)) for name, part in items if not name.endswith("_token_id")]


def processor_identity(processor: object) -> dict[str, object]:
    """Of a processor or tokenizer: its image processor's settings, its chat template and its vocabulary."""
    tokenizer = getattr(processor, "tokenizer", processor)
    settings = processor.image_processor.to_dict() if hasattr(processor, "image_processor") else {}
    return {
        "chat template": digest(getattr(processor, "chat_template", None), tokenizer.chat_template),
        "tokenizer": digest(sorted(tokenizer.get_vocab().items()), sorted(tokenizer.special_tokens_map.items())),
        **{f"image processor's {name}": value for name, value in settings.items()},
    }
