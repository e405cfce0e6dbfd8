"""The published shapes of models, as config.json files: enough to count parameters and to estimate memory with.

From each model's own on the Hugging Face Hub, without what only its own code reads. That the shapes add up to the
published numbers of parameters is tested (tests/estimation/test_memory.py).
"""

import re
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from vlmhelpers.families.registry import FAMILIES

_FOLDER = Path(__file__).parent / "shapes"
# The hub ids, in the order of size within each family.
PUBLISHED = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-72B-Instruct",
    "Qwen/Qwen3-VL-2B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "microsoft/Phi-3-vision-128k-instruct",
)


def find_config(model_id: str | Path) -> PreTrainedConfig:
    """The configuration of a model, without the network.

    `model_id` is a local folder with a config.json, one of `PUBLISHED`, or another hub id of the same shape: Thinking
    instead of Instruct, Unsloth's copies, names that end in -bnb-4bit. Raises ValueError for an id of another shape.
    """
    if Path(model_id).is_dir():
        return AutoConfig.from_pretrained(model_id)
    name = str(model_id).lower()
    for family in FAMILIES.values():
        for alias, shape in family.same_shape.items():
            name = name.replace(alias, shape)
    for published in PUBLISHED:
        if re.search(rf"(^|/){re.escape(_shape_of(published))}(-|$)", name):
            return AutoConfig.from_pretrained(_FOLDER / published)
    raise ValueError(
        f"the shape of {model_id!r} is not known here; known are {', '.join(PUBLISHED)} and their variants. Otherwise "
        "pass a local folder with the model's config.json; its weights are not needed"
    )


def _shape_of(model_id: str) -> str:
    """What the names of all variants of a model begin with: `"Qwen/Qwen3-VL-2B-Instruct"` -> `"qwen3-vl-2b"`."""
    return re.sub("(-128k)?-instruct$", "", model_id.lower().rpartition("/")[2])
