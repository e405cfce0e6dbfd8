"""Qwen's models: patches of the image in its own shape, and positions of three kinds."""

import transformers as hf

from random_families import parts, templates, vocabularies

_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"]
_SPECIALS += ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
_MERGE = 2  # patches a side become one token
_MIN_TOKENS, _MAX_TOKENS = 4, 16
_INTERLEAVED = parts.rope(6, 5, 5, mrope_interleaved=True)


def _tokenizer(more=(), named=None):
    return vocabularies.qwen([*_SPECIALS, *more], named, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def _image_processor(patch):
    token = (patch * _MERGE) ** 2  # pixels
    size = {"shortest_edge": _MIN_TOKENS * token, "longest_edge": _MAX_TOKENS * token}
    return hf.Qwen2VLImageProcessor(patch_size=patch, merge_size=_MERGE, size=size)


def _ids(tokenizer):
    return parts.ids(
        tokenizer,
        image_token="<|image_pad|>",
        video_token="<|video_pad|>",
        vision_start_token="<|vision_start|>",
        vision_end_token="<|vision_end|>",
    )


def _vision(**more):
    return {
        "depth": 2, "hidden_size": parts.VISION_WIDTH, "intermediate_size": 2 * parts.VISION_WIDTH, "num_heads": 2,
        "patch_size": 16, "out_hidden_size": parts.WIDTH, "num_position_embeddings": 64,
    } | more  # fmt: skip


def qwen2_vl():
    tokenizer = _tokenizer()
    processor = hf.Qwen2VLProcessor(
        _image_processor(parts.PATCH), tokenizer, hf.Qwen2VLVideoProcessor(), templates.of_trl("qwen2_5_vl")
    )
    vision = {
        "depth": 2, "embed_dim": parts.VISION_WIDTH, "hidden_size": parts.WIDTH, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": parts.PATCH, "spatial_merge_size": _MERGE,
    }  # fmt: skip
    text = parts.text(tokenizer, **parts.rope(4, 6, 6))
    return hf.Qwen2VLConfig(text_config=text, vision_config=vision, **_ids(tokenizer)), processor


def qwen3_vl_moe():
    tokenizer = _tokenizer()
    text = parts.text(tokenizer, head_dim=32, **parts.EXPERTS, **_INTERLEAVED)
    vision = _vision(deepstack_visual_indexes=[0])
    config = hf.Qwen3VLMoeConfig(text_config=text, vision_config=vision, **_ids(tokenizer))
    return config, _qwen3_processor(tokenizer, "qwen3_vl")


def _qwen3_processor(tokenizer, template):
    return hf.Qwen3VLProcessor(_image_processor(16), tokenizer, hf.Qwen3VLVideoProcessor(), templates.of_trl(template))


def qwen3_5(kind=hf.Qwen3_5Config, **more):
    tokenizer = _tokenizer(["<think>", "</think>"])
    linear = {
        "layer_types": ["linear_attention", "linear_attention", "full_attention"], "linear_key_head_dim": 32,
        "linear_value_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    }  # fmt: skip
    text = parts.text(tokenizer, head_dim=32, **_INTERLEAVED, **linear, **more)
    config = kind(text_config=text, vision_config=_vision(), **_ids(tokenizer))
    return config, _qwen3_processor(tokenizer, "qwen3_5_nothink")


def qwen3_5_moe():
    return qwen3_5(hf.Qwen3_5MoeConfig, shared_expert_intermediate_size=64, **parts.EXPERTS)


def qwen3_omni_moe_thinker():
    """The part of Qwen 3 Omni that reads and writes text; it also hears."""
    tokenizer = _tokenizer(named=_OMNI_TOKENS)
    processor = hf.Qwen3OmniMoeProcessor(
        _image_processor(16),
        hf.Qwen2VLVideoProcessor(),
        hf.WhisperFeatureExtractor(),
        tokenizer,
        templates.chatml("<|vision_start|><|image_pad|><|vision_end|>"),
    )
    known = _ids(tokenizer)
    del known["vision_end_token_id"]
    config = hf.Qwen3OmniMoeThinkerConfig(
        text_config=parts.text(tokenizer, head_dim=32, **parts.EXPERTS, **_INTERLEAVED),
        vision_config=_vision(deepstack_visual_indexes=[0]),
        audio_config=_AUDIO,
        audio_token_id=tokenizer.audio_token_id,
        **known,
    )
    return config, processor


_OMNI_TOKENS = {
    "image_token": "<|image_pad|>", "audio_token": "<|audio_pad|>", "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>", "audio_eos_token": "<|audio_end|>",
}  # fmt: skip
_AUDIO = {
    "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 64,
    "output_dim": parts.WIDTH, "n_window": 10, "n_window_infer": 20, "downsample_hidden_size": 16,
}  # fmt: skip
