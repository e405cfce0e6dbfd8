"""The LLaVA models and those whose parts are put together as theirs: an encoder, two layers, a language model."""

import transformers as hf

from random_families import parts, templates, vocabularies

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = parts.VISION | {"model_type": "clip_vision_model", "projection_dim": 64}
_SIGLIP = parts.VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
_CLIP_TOKENS = {
    "patch_size": parts.PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
_MOST_TILES = "anyres_max_9"


def _llama_tokenizer():
    return vocabularies.llama(
        ["<pad>"], {"image_token": "<image>"}, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


def llava_onevision():
    tokenizer = vocabularies.qwen(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"image_token": "<image>", "video_token": "<video>"},
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
    )
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=parts.SQUARE, image_grid_pinpoints=parts.GRIDS, **_HALF),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(),
        num_image_tokens=(parts.TILE // parts.PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=_MOST_TILES,
        chat_template=templates.LLAVA_ONEVISION,
    )
    config = hf.LlavaOnevisionConfig(
        text_config=parts.text(tokenizer, model_type="qwen2"),
        vision_config=_SIGLIP,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=parts.GRIDS,
        vision_aspect_ratio=_MOST_TILES,
    )
    return config, processor


def llava_next():
    tokenizer = _llama_tokenizer()
    image_processor = hf.LlavaNextImageProcessor(
        size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE, image_grid_pinpoints=parts.GRIDS
    )
    template = templates.of_trl("llava_next")
    processor = hf.LlavaNextProcessor(image_processor, tokenizer, chat_template=template, **_CLIP_TOKENS)
    config = hf.LlavaNextConfig(
        text_config=parts.text(tokenizer, model_type="mistral", head_dim=32),
        vision_config=_CLIP,
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=parts.GRIDS,
    )
    return config, processor


def llava():
    """LLaVA 1.5: every image becomes one square."""
    tokenizer = _llama_tokenizer()
    image_processor = hf.CLIPImageProcessor(size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE)
    processor = hf.LlavaProcessor(image_processor, tokenizer, chat_template=templates.LLAVA, **_CLIP_TOKENS)
    config = hf.LlavaConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=_CLIP,
        image_token_index=tokenizer.image_token_id,
    )
    return config, processor


def deepseek_vl():
    names = {
        "bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>"
    }  # fmt: skip
    tokenizer = vocabularies.byte_level([], {"image_token": "<image_placeholder>"}, **names)
    image_processor = hf.DeepseekVLImageProcessor(size=parts.SQUARE, **_HALF)
    tokens = (parts.TILE // parts.PATCH) ** 2
    processor = hf.DeepseekVLProcessor(image_processor, tokenizer, templates.DEEPSEEK_VL, num_image_tokens=tokens)
    config = hf.DeepseekVLConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=_SIGLIP,
        image_token_id=tokenizer.image_token_id,
    )
    return config, processor
