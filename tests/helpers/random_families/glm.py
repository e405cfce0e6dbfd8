"""GLM-4V and Kimi K2.5: an image in its own shape, in patches of which four become a token."""

import transformers as hf

from random_families import parts, templates, vocabularies

_TOKEN = (2 * parts.PATCH) ** 2  # pixels
_SPECIALS = ["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"]
_MEDIA = {
    "image_token": "<|image|>", "image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>",
    "video_token": "<|video|>", "video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>",
}  # fmt: skip
_ROPE = parts.rope(4, 2, 2, partial_rotary_factor=0.5)
_VISION = {
    "depth": 2, "hidden_size": parts.VISION_WIDTH, "intermediate_size": 2 * parts.VISION_WIDTH, "num_heads": 2,
    "out_hidden_size": parts.WIDTH, "patch_size": parts.PATCH, "image_size": parts.TILE,
}  # fmt: skip


def glm4v(kind=hf.Glm4vConfig, **more):
    tokenizer = vocabularies.byte_level(
        [*_SPECIALS, *_MEDIA.values()], eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    image_processor = hf.Glm4vImageProcessor(size={"shortest_edge": 4 * _TOKEN, "longest_edge": 32 * _TOKEN})
    processor = hf.Glm4vProcessor(image_processor, tokenizer, hf.Glm4vVideoProcessor(), templates.GLM4V)
    text = parts.text(tokenizer, **_ROPE, **more)
    return kind(text_config=text, vision_config=_VISION, **parts.ids(tokenizer, **_MEDIA)), processor


def glm4v_moe():
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "n_group": 1}
    return glm4v(hf.Glm4vMoeConfig, head_dim=32, topk_group=1, first_k_dense_replace=1, **experts)


def kimi_k25():
    tokenizer = _kimi_tokenizer()
    image_processor = hf.Kimi_K25ImageProcessor(patch_size=parts.PATCH, max_patches=256)
    processor = hf.Kimi_K25Processor(image_processor, tokenizer, hf.Kimi_K25VideoProcessor(), templates.KIMI_K25)
    vision = {name: value for name, value in parts.VISION.items() if name != "image_size"}
    config = hf.Kimi_K25Config(
        text_config=parts.text(tokenizer, **_DEEPSEEK_V3),
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        projection_hidden_size=64,
    )
    return config, processor


def _kimi_tokenizer():
    specials = ["<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>", "<|kimi_k25_video_placeholder|>"]
    specials += ["<|media_begin|>", "<|media_content|>", "<|media_end|>", "<|media_pad|>", "[EOS]"]
    return vocabularies.byte_level(specials, bos_token="[BOS]", eos_token="<|im_end|>", pad_token="[PAD]")


_DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 64, "first_k_dense_replace": 1,
    "q_lora_rank": 64, "kv_lora_rank": 64, "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 32,
}  # fmt: skip
