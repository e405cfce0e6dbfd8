"""Small models with random weights and the published vocabularies, in folders as the hub has them.

Names, keys and ids of the files are those of the published models, and so are tokenizer, chat template, patches and
tiles of images. The networks are narrow, and have three layers; Mllama's tiles have 112 pixels instead of 560.
"""

import hashlib
import json
import shutil
import sys
import time
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import phi3_vision_parts
import real_vocabularies
import torch
from filelock import FileLock
from phi3_vision_parts import publish
from real_vocabularies import BUILDERS, CACHE
from transformers import AutoConfig, AutoModelForImageTextToText, set_seed

from vlmhelpers.common.environment import data_dir
from vlmhelpers.common.files import atomic_folder

THINKING = "qwen3-vl-thinking"  # as qwen3-vl, with the chat template of a model that thinks first
NAMES = (*BUILDERS, THINKING)
_WEEK = 7 * 24 * 3600
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALVES = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def vocabulary_of(name: str) -> str:
    """The key in `BUILDERS` of a model's vocabulary."""
    return name.removesuffix("-thinking")


def model_folder(name: str) -> Path:
    """The folder of the model called `name`, one of NAMES, made once per version of what makes it.

    Raises what `real_vocabularies.data_file` raises.
    """
    folder = CACHE / "models" / _version() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _remove_old(folder.parent)
            with atomic_folder(folder) as new:
                _WRITERS[name](new)
    return folder


def _remove_old(version):
    """The models of other versions take 200 MB each."""
    for other in version.parent.iterdir():
        if other != version and time.time() - other.stat().st_mtime > _WEEK:
            shutil.rmtree(other, ignore_errors=True)


def _version():
    sources = [sys.modules[__name__], real_vocabularies, phi3_vision_parts]
    content = b"".join(Path(module.__file__).read_bytes() for module in sources)
    return hashlib.sha256(content + version("transformers").encode() + torch.__version__.encode()).hexdigest()[:12]


def _write(folder, **contents):
    """JSON files by their names without the ending."""
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")


def _write_tokenizer(folder, name, processor, **changes):
    """tokenizer.json, and a tokenizer_config.json in the form of transformers 4."""
    tokenizer = BUILDERS[vocabulary_of(name)]()
    tokenizer.save_pretrained(folder)
    for path in folder.iterdir():
        if path.suffix == ".jinja" or path.name in ("special_tokens_map.json", "added_tokens.json"):
            path.unlink()
    added = {
        str(i): {name: getattr(token, name) for name in ("content", "lstrip", "normalized", "rstrip", "single_word")}
        | {"special": token.special}
        for i, token in sorted(tokenizer.added_tokens_decoder.items())
    }
    named = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    content = {
        "added_tokens_decoder": added,
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
    }
    _write(folder, tokenizer_config=content | {"processor_class": processor} | changes)


def _write_words(folder):
    """vocab.json and merges.txt, which Qwen's tokenizers have beside tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write(folder, vocab=model["vocab"])
    merges = "".join(f"{first} {second}\n" for first, second in model["merges"])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")


def _write_weights(folder):
    """Random weights in bfloat16 for the configuration in `folder`, in several files."""
    set_seed(0)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate", "gate_attn", "gate_ffn")):  # Mllama's, which are zero at first
                parameter.fill_(1.0)
    temporary = folder / "weights"
    model.save_pretrained(temporary, max_shard_size="16MB")
    for path in temporary.glob("model*"):
        path.rename(folder / path.name)
    for path in temporary.iterdir():
        path.unlink()
    temporary.rmdir()


def _template(name):
    """A chat template of those that TRL has: the published ones."""
    return (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


_QWEN_IDS = {
    "image_token_id": 151655, "video_token_id": 151656, "vision_start_token_id": 151652, "vision_end_token_id": 151653,
}  # fmt: skip
_QWEN_TEXT = {
    "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 64,
    "initializer_range": 0.02, "intermediate_size": 128, "max_position_embeddings": 128000, "num_attention_heads": 2,
    "num_hidden_layers": 3, "num_key_value_heads": 1, "rms_norm_eps": 1e-06, "use_cache": True, "vocab_size": 151936,
}  # fmt: skip
_QWEN_VISION = {
    "depth": 3, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": 64,
    "spatial_merge_size": 2, "temporal_patch_size": 2,
}  # fmt: skip
_QWEN_GENERATION = {"bos_token_id": 151643, "do_sample": True, "eos_token_id": [151645, 151643], "pad_token_id": 151643}


def _write_qwen25(folder):
    config = {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        **_QWEN_TEXT,
        **_QWEN_IDS,
        "vision_token_id": 151654,
        "max_window_layers": 70,
        "rope_scaling": {"mrope_section": [4, 6, 6], "type": "mrope"},
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.41.2",
        "use_sliding_window": False,
        "vision_config": _QWEN_VISION
        | {
            "fullatt_block_indexes": [1],
            "hidden_act": "silu",
            "in_chans": 3,
            "patch_size": 14,
            "spatial_patch_size": 14,
        }
        | {"tokens_per_second": 2, "window_size": 112},
    }
    images = {"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
    images |= {**_CLIP, "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor"}
    generation = _QWEN_GENERATION | {"repetition_penalty": 1.05, "temperature": 1e-06}
    _write(folder, config=config, preprocessor_config=images, generation_config=generation)
    _write(folder, chat_template={"chat_template": _template("qwen2_5_vl")})
    _write_tokenizer(folder, "qwen2.5-vl", "Qwen2_5_VLProcessor", tokenizer_class="Qwen2Tokenizer")
    _write_words(folder)
    _write_weights(folder)


def _write_qwen3(folder, template=None):
    config = {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        **_QWEN_IDS,
        "text_config": _QWEN_TEXT
        | {"attention_bias": False, "dtype": "bfloat16", "head_dim": 32, "max_position_embeddings": 262144}
        | {"model_type": "qwen3_vl_text", "rope_theta": 5000000, "tie_word_embeddings": True}
        | {"rope_scaling": {"mrope_interleaved": True, "mrope_section": [6, 5, 5], "rope_type": "default"}},
        "tie_word_embeddings": True,
        "transformers_version": "4.57.0.dev0",
        "vision_config": _QWEN_VISION
        | {"deepstack_visual_indexes": [0, 1], "hidden_act": "gelu_pytorch_tanh", "in_channels": 3}
        | {"initializer_range": 0.02, "model_type": "qwen3_vl", "num_position_embeddings": 2304, "patch_size": 16},
    }
    patches = {"patch_size": 16, "temporal_patch_size": 2, "merge_size": 2, **_HALVES}
    patches["processor_class"] = "Qwen3VLProcessor"
    images = patches | {"size": {"longest_edge": 16777216, "shortest_edge": 65536}}
    videos = patches | {"size": {"longest_edge": 25165824, "shortest_edge": 4096}}
    _write(
        folder,
        config=config,
        preprocessor_config=images | {"image_processor_type": "Qwen2VLImageProcessorFast"},
        video_preprocessor_config=videos | {"video_processor_type": "Qwen3VLVideoProcessor"},
        generation_config=_QWEN_GENERATION | {"temperature": 0.7, "top_k": 20, "top_p": 0.8},
        chat_template={"chat_template": template or _template("qwen3_vl")},
    )
    _write_tokenizer(folder, "qwen3-vl", "Qwen3VLProcessor", tokenizer_class="Qwen2Tokenizer")
    _write_words(folder)
    _write_weights(folder)


def _write_thinking(folder):
    _write_qwen3(folder, (data_dir() / "templates" / "qwen3_vl_thinking.jinja").read_text(encoding="utf-8"))


# What the published template does: the date in a system turn, which stands before conversations without images only; a
# system turn is a text, and not for conversations with images.
_LLAMA_TEMPLATE = """\
{{- bos_token }}
{%- if date_string is not defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- set system = "" %}
{%- if messages[0].role == "system" %}
{%- set system = messages[0].content | trim %}{% set messages = messages[1:] %}
{%- endif %}
{%- set found = namespace(images=false) %}
{%- for message in messages %}{% for part in message.content %}
{%- if part.type == "image" %}{% set found.images = true %}{% endif %}
{%- endfor %}{% endfor %}
{%- if found.images and system != "" %}
{{- raise_exception("Prompting with images is incompatible with system messages.") }}
{%- endif %}
{%- if not found.images %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nCutting Knowledge Date: December 2023\\nToday Date: " }}
{{- date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
{{- "<|start_header_id|>" + message.role + "<|end_header_id|>\\n\\n" }}
{%- if message.content is string %}{{ message.content }}
{%- else %}{% for part in message.content %}
{%- if part.type == "image" %}{{ "<|image|>" }}{% elif part.type == "text" %}{{ part.text }}{% endif %}
{%- endfor %}{% endif %}
{{- "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}{% endif %}
"""


def _write_llama(folder):
    text = {
        "bos_token_id": 128000, "cross_attention_layers": [1], "dropout": 0, "eos_token_id": [128001, 128008, 128009],
        "hidden_act": "silu", "hidden_size": 64, "initializer_range": 0.02, "intermediate_size": 128,
        "max_position_embeddings": 131072, "model_type": "mllama_text_model", "num_attention_heads": 2,
        "num_hidden_layers": 3, "num_key_value_heads": 1, "pad_token_id": 128004, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                         "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True,
        "vocab_size": 128256,
    }  # fmt: skip
    vision = {
        "attention_heads": 2, "hidden_act": "gelu", "hidden_size": 64, "image_size": 112, "intermediate_size": 128,
        "intermediate_layers_indices": [0, 1], "max_num_tiles": 4, "model_type": "mllama_vision_model",
        "norm_eps": 1e-05, "num_channels": 3, "num_global_layers": 1, "num_hidden_layers": 2, "patch_size": 14,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        "torch_dtype": "bfloat16", "vision_output_dim": 192,
    }  # fmt: skip
    config = {
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": 128256,
        "model_type": "mllama",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.45.0.dev0",
        "vision_config": vision,
    }
    images = {
        **_CLIP, "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_processor_type": "MllamaImageProcessor", "max_image_tiles": 4, "resample": 2,
        "rescale_factor": 1 / 255, "size": {"height": 112, "width": 112},
    }  # fmt: skip
    generation = {"bos_token_id": 128000, "do_sample": True, "eos_token_id": [128001, 128008, 128009]}
    generation |= {"pad_token_id": 128004, "temperature": 0.6, "top_p": 0.9}
    _write(folder, config=config, preprocessor_config=images, generation_config=generation)
    _write(folder, chat_template={"chat_template": _LLAMA_TEMPLATE})
    changes = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True}
    _write_tokenizer(folder, "llama-3.2-vision", "MllamaProcessor", **changes)
    _write_weights(folder)


def _write_phi(folder):
    publish(folder, hidden_size=192, num_attention_heads=2, num_key_value_heads=2)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    _write_tokenizer(folder, "phi-3-vision", "Phi3VProcessor")
    _write(folder, tokenizer_config=json.loads((folder / "tokenizer_config.json").read_text()) | config)


_WRITERS = {
    "qwen2.5-vl": _write_qwen25,
    "qwen3-vl": _write_qwen3,
    "llama-3.2-vision": _write_llama,
    "phi-3-vision": _write_phi,
    THINKING: _write_thinking,
}
