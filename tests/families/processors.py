"""The processors of the bases alone, made at once: no model is built."""

import functools
import json

import other_families
import random_families
from bases import DESCRIBED, GENERIC
from transformers import AutoProcessor

from vlmhelpers.families import tiny_model

_BUILDERS = random_families.BUILDERS | other_families.BUILDERS


@functools.cache
def processor_of(base, folder):
    """The processor of a base by its name; a configuration in `folder` tells of which model it is."""
    kind = (DESCRIBED | GENERIC)[base]
    if kind is None:
        return AutoProcessor.from_pretrained(tiny_model(base))
    config, processor = _BUILDERS[kind]()
    target = folder / base
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config.to_dict(), default=str))
    processor.tokenizer.name_or_path = str(target)
    return processor
