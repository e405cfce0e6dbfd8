"""Tiny random models of the image-text-to-text families that no `Family` object describes, and why some have none.

`BUILDERS` and `REFUSED` go by transformers' model type; with `random_families` and the tiny bases they are the whole
mapping. A builder gives a configuration and a processor, as those of `random_families` do.
"""

from collections.abc import Callable

from transformers import PretrainedConfig, ProcessorMixin

from other_families import discrete, llava_like, patches, qwen_like
from other_families.refused import REFUSED

__all__ = ["BUILDERS", "ENDS", "REFUSED"]

BUILDERS: dict[str, Callable[[], tuple[PretrainedConfig, ProcessorMixin]]] = (
    llava_like.BUILDERS | qwen_like.BUILDERS | patches.BUILDERS | discrete.BUILDERS
)

# What ends the generation of the published models where that is more than the tokenizer's own end.
_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
ENDS: dict[str, tuple[str, ...]] = {
    "gemma4_unified": ("<eos>", "<turn|>"),
    "glm46v": _GLM_ENDS,
    "glm_ocr": _GLM_ENDS,
    "glm5_next": _GLM_ENDS,
    "glmga": _GLM_ENDS,
    "cosmos3_omni": _QWEN_ENDS,
    "qwen2_5_omni_thinker": _QWEN_ENDS,
    "qwen4_exp": _QWEN_ENDS,
}
