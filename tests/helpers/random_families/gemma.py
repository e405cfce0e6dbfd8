"""Google's models, with vocabularies of SentencePiece's kind."""

import transformers as hf

from random_families import parts, templates, vocabularies

_NAMES = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
_TOKENS_PER_IMAGE = 4
_SOFT_TOKENS = 140  # the second least that Gemma 4 allows, so that there is a smaller one
_POOLING = 2


def gemma3():
    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = vocabularies.gemma(["<start_of_turn>", "<end_of_turn>"], named, **_NAMES)
    image_processor = hf.Gemma3ImageProcessor(size=parts.SQUARE)
    template = templates.of_trl("gemma3")
    processor = hf.Gemma3Processor(image_processor, tokenizer, template, image_seq_length=_TOKENS_PER_IMAGE)
    config = hf.Gemma3Config(
        text_config=parts.text(tokenizer, head_dim=32, **parts.SLIDING),
        vision_config=parts.VISION,
        mm_tokens_per_image=_TOKENS_PER_IMAGE,
        image_token_index=tokenizer.image_token_id,
        boi_token_index=tokenizer.boi_token_id,
        eoi_token_index=tokenizer.eoi_token_id,
    )
    return config, processor


def gemma4():
    tokenizer = _gemma4_tokenizer()
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        hf.Gemma4ImageProcessor(patch_size=8, max_soft_tokens=_SOFT_TOKENS, pooling_kernel_size=_POOLING),
        tokenizer,
        hf.Gemma4VideoProcessor(),
        templates.of_trl("gemma4"),
        image_seq_length=_SOFT_TOKENS,
    )
    known = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("image", "boi", "eoi", "audio")}
    text = parts.text(tokenizer, **_GEMMA4_TEXT, vocab_size_per_layer_input=len(tokenizer))
    video = parts.ids(tokenizer, video_token="<|video|>")
    config = hf.Gemma4Config(text_config=text, vision_config=_GEMMA4_VISION, audio_config=None, **known, **video)
    return config, processor


def _gemma4_tokenizer():
    specials = ["<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|video|>"]
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    return vocabularies.gemma(specials, named, **_NAMES)


_GEMMA4_TEXT = {
    "head_dim": 32, "global_head_dim": 32, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 16,
    "num_global_key_value_heads": 2, **parts.SLIDING,
    "sliding_window": 256,  # more than an image has tokens, as in the published models
}  # fmt: skip
_GEMMA4_VISION = parts.VISION | {
    "num_key_value_heads": 2, "head_dim": 32, "patch_size": 8, "pooling_kernel_size": _POOLING,
    "position_embedding_size": 1024,
}  # fmt: skip


def paligemma():
    tokenizer = vocabularies.gemma([], {"image_token": "<image>"}, **_NAMES)
    image_processor = hf.SiglipImageProcessor(size=parts.SQUARE)
    image_processor.image_seq_length = (parts.TILE // parts.PATCH) ** 2
    config = hf.PaliGemmaConfig(
        text_config=parts.text(tokenizer, model_type="gemma", head_dim=32),
        vision_config=parts.VISION | {"projection_dim": parts.WIDTH, "vision_use_head": False},
        image_token_index=tokenizer.image_token_id,
        projection_dim=parts.WIDTH,
    )
    return config, hf.PaliGemmaProcessor(image_processor, tokenizer, templates.PALIGEMMA)
