"""The published shapes of models, as configurations made without the hub: enough to count and to rehearse with.

From the `config.json` of each model on the Hugging Face Hub; only what differs from the class's defaults is written
out. The parameters that the shapes add up to are the models' own (tests/test_memory.py).
"""

import re
from pathlib import Path

from transformers import AutoConfig, MllamaConfig, Qwen2_5_VLConfig, Qwen3VLConfig

from vlmhelpers.families.phi3_vision import Phi3VConfig

_QWEN_TOKENS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
}


def _qwen2_5(hidden, layers, heads, kv_heads, intermediate, vocabulary, tied=False, vision_intermediate=3420):
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    }
    vision = {
        "depth": 32,
        "hidden_size": 1280,
        "num_heads": 16,
        "intermediate_size": vision_intermediate,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "out_hidden_size": hidden,
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_QWEN_TOKENS)


def _qwen3(hidden, layers, heads, intermediate, vision_layers, vision_hidden, vision_intermediate, deepstack, tied):
    text = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": intermediate,
        "vocab_size": 151936,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }
    vision = {
        "depth": vision_layers,
        "hidden_size": vision_hidden,
        "num_heads": 16,
        "intermediate_size": vision_intermediate,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "deepstack_visual_indexes": deepstack,
        "out_hidden_size": hidden,
    }
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **_QWEN_TOKENS)


def _llama_11b():
    text = {
        "hidden_size": 4096,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
    }
    vision = {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "attention_heads": 16,
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "vision_output_dim": 7680,
    }
    return MllamaConfig(text_config=text, vision_config=vision, image_token_index=128256)


# Hub id -> a function that makes its configuration.
_MAKERS = {
    "Qwen/Qwen2.5-VL-3B-Instruct": lambda: _qwen2_5(2048, 36, 16, 2, 11008, 151936, tied=True),
    "Qwen/Qwen2.5-VL-7B-Instruct": lambda: _qwen2_5(3584, 28, 28, 4, 18944, 152064),
    "Qwen/Qwen2.5-VL-72B-Instruct": lambda: _qwen2_5(8192, 80, 64, 8, 29568, 152064, vision_intermediate=3456),
    "Qwen/Qwen3-VL-2B-Instruct": lambda: _qwen3(2048, 28, 16, 6144, 24, 1024, 4096, [5, 11, 17], tied=True),
    "Qwen/Qwen3-VL-4B-Instruct": lambda: _qwen3(2560, 36, 32, 9728, 24, 1024, 4096, [5, 11, 17], tied=True),
    "Qwen/Qwen3-VL-8B-Instruct": lambda: _qwen3(4096, 36, 32, 12288, 27, 1152, 4304, [8, 16, 24], tied=False),
    "meta-llama/Llama-3.2-11B-Vision-Instruct": _llama_11b,
    "microsoft/Phi-3-vision-128k-instruct": Phi3VConfig,
}
PUBLISHED = tuple(_MAKERS)
_PHI_3_5 = "phi-3.5-vision"  # of the same shape as Phi-3-Vision


def find_config(model_id):
    """The configuration of a model, as an object of transformers, without the network.

    `model_id` is a local folder with a config.json, one of `PUBLISHED`, or another hub id of the same shape: Thinking
    instead of Instruct, Unsloth's copies, names that end in -bnb-4bit. Raises ValueError for an id of another shape.
    """
    if Path(model_id).is_dir():
        return AutoConfig.from_pretrained(model_id)
    name = str(model_id).lower().replace(_PHI_3_5, _shape_of("microsoft/Phi-3-vision-128k-instruct"))
    for published, make in _MAKERS.items():
        if re.search(rf"(^|/){re.escape(_shape_of(published))}(-|$)", name):
            return make()
    raise ValueError(
        f"the shape of {model_id!r} is not known here; known are {', '.join(PUBLISHED)} and their variants. Otherwise "
        "pass a local folder with the model's config.json; its weights are not needed"
    )


def _shape_of(model_id):
    """What the names of all variants of a model begin with: `"Qwen/Qwen3-VL-2B-Instruct"` -> `"qwen3-vl-2b"`."""
    return re.sub("(-128k)?-instruct$", "", model_id.lower().rpartition("/")[2])
