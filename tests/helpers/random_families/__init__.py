"""Tiny models with random weights and working processors, of the architectures that the conformance suite tries.

Each has the parts, the special tokens and the chat template of the published models, and a million parameters or less.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, PretrainedConfig, ProcessorMixin

from random_families import gemma, glm, llava, mistral, qwen, tiles
from vlmhelpers.common.files import atomic_folder

# By transformers' model type, but "pixtral" is a "llava" with another encoder.
BUILDERS: dict[str, Callable[[], tuple[PretrainedConfig, ProcessorMixin]]] = {
    "qwen2_vl": qwen.qwen2_vl,
    "qwen3_vl_moe": qwen.qwen3_vl_moe,
    "qwen3_5": qwen.qwen3_5,
    "internvl": tiles.internvl,
    "lfm2_vl": tiles.lfm2_vl,
    "gemma3": gemma.gemma3,
    "gemma4": gemma.gemma4,
    "smolvlm": tiles.smolvlm,
    "idefics3": tiles.idefics3,
    "mistral3": mistral.mistral3,
    "pixtral": mistral.pixtral,
    "llava_onevision": llava.llava_onevision,
    "llava_next": llava.llava_next,
    "glm4v": glm.glm4v,
    "ovis2": tiles.ovis2,
    "qwen3_5_moe": qwen.qwen3_5_moe,
    "deepseek_vl": llava.deepseek_vl,
    "kimi_k25": glm.kimi_k25,
    "llava": llava.llava,
    "qwen3_omni_moe_thinker": qwen.qwen3_omni_moe_thinker,
    "glm4v_moe": glm.glm4v_moe,
    "paligemma": gemma.paligemma,
}

# What ends the generation of the published models where that is more than the tokenizer's own end.
_QWEN_ENDS = ("<|im_end|>", "<|endoftext|>")
_GLM_ENDS = ("<|endoftext|>", "<|user|>", "<|observation|>")
ENDS: dict[str, tuple[str, ...]] = {
    "qwen2_vl": _QWEN_ENDS,
    "qwen3_vl_moe": _QWEN_ENDS,
    "qwen3_5": _QWEN_ENDS,
    "qwen3_5_moe": _QWEN_ENDS,
    "gemma3": ("<eos>", "<end_of_turn>"),
    "gemma4": ("<eos>", "<turn|>"),
    "glm4v": _GLM_ENDS,
    "glm4v_moe": _GLM_ENDS,
}
_GAIN = 4  # with transformers' own start, answers would hardly depend on the image
_SPREAD = 0.05  # of a matrix that starts with one value, as Gemma 3's projector and Gemma 4's positions do


def build(name: str, folder: Path, builders: dict = BUILDERS, ends: dict = ENDS) -> Path:
    """Writes the model of that name and its processor to `folder/name`, once, and returns that folder.

    The weights are the same every time. `builders` and `ends` may be those of `other_families`. KeyError for a name
    that is not in `builders`.
    """
    config, processor = builders[name]()
    target = Path(folder) / name
    if not target.exists():
        with atomic_folder(target) as unfinished:
            _model(config, processor.tokenizer, ends.get(name)).save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
    return target


def _model(config, tokenizer, ends):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config)
        _enliven(model)
    settings = model.generation_config
    settings.eos_token_id = tokenizer.convert_tokens_to_ids(list(ends or [tokenizer.eos_token]))
    settings.pad_token_id, settings.bos_token_id = tokenizer.pad_token_id, tokenizer.bos_token_id
    return model


@torch.no_grad()
def _enliven(model):
    """Enlarges all matrices but those of tokens, which would then drown what is seen."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    tables.add(id(model.get_output_embeddings().weight))
    for parameter in model.parameters():
        if parameter.dim() == 1 or id(parameter) in tables:
            continue
        if parameter.std() > 0:
            parameter.mul_(_GAIN)
        else:
            parameter.normal_(0, _SPREAD)
