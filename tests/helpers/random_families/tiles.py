"""Models that cut an image into tiles of one size, and add the whole image in small."""

import transformers as hf

from random_families import parts, templates, vocabularies

_TOKENS_PER_TILE = 4
_MOST_TILES = 4
_QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def internvl():
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }  # fmt: skip
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=parts.SQUARE, crop_to_patches=True, max_patches=_MOST_TILES),
        vocabularies.qwen(_QWEN_SPECIALS, named, **_QWEN_NAMES),
        hf.InternVLVideoProcessor(size=parts.SQUARE),
        image_seq_length=_TOKENS_PER_TILE,
        chat_template=templates.chatml("<IMG_CONTEXT>\n"),
    )
    config = hf.InternVLConfig(
        text_config=parts.text(processor.tokenizer, model_type="qwen2"),
        vision_config=parts.VISION,
        image_token_id=processor.image_token_id,
        image_seq_length=_TOKENS_PER_TILE,
    )
    return config, processor


_OVIS2_TILE, _OVIS2_TOKENS = 112, 16  # pixels, and tokens of a tile


def ovis2():
    """`<image>` stands in the text only: the tokens of an image are `<IMG_ATOM>`, between five others."""
    indicators = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]
    tokenizer = vocabularies.qwen([*_QWEN_SPECIALS, "<image>", "<IMG_ATOM>", *indicators], **_QWEN_NAMES)
    size = {"height": _OVIS2_TILE, "width": _OVIS2_TILE}
    image_processor = hf.Ovis2ImageProcessor(size=size, crop_to_patches=True, max_patches=_MOST_TILES)
    processor = hf.Ovis2Processor(image_processor, tokenizer, templates.OVIS2, image_seq_length=_OVIS2_TOKENS)
    visual = {"vocab_size": 64, "image_size": _OVIS2_TILE, "hidden_stride": 2}
    config = hf.Ovis2Config(
        text_config=parts.text(tokenizer, model_type="qwen2"),
        vision_config=parts.VISION | visual | {"num_visual_indicator_tokens": len(indicators)},
        visual_indicator_token_ids=tokenizer.convert_tokens_to_ids(indicators),
        vocab_size=len(tokenizer),
        hidden_size=parts.WIDTH,
        **parts.ids(tokenizer, image_token="<IMG_ATOM>"),
    )
    return config, processor


_LFM2_TILE, _LFM2_PATCH = 64, 8  # pixels


def lfm2_vl():
    processor = hf.Lfm2VlProcessor(_lfm2_image_processor(), _lfm2_tokenizer(), templates.of_trl("lfm2_2_5_vl"))
    layers = {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False}
    siglip2 = {"model_type": "siglip2_vision_model", "patch_size": _LFM2_PATCH, "num_patches": 64}
    config = hf.Lfm2VlConfig(
        text_config=parts.text(processor.tokenizer, model_type="lfm2", **layers),
        vision_config={name: value for name, value in parts.VISION.items() if name != "image_size"} | siglip2,
        image_token_id=processor.image_token_id,
        projector_hidden_size=parts.WIDTH,
    )
    return config, processor


def _lfm2_image_processor():
    return hf.Lfm2VlImageProcessor(
        size={"height": _LFM2_TILE, "width": _LFM2_TILE},
        tile_size=_LFM2_TILE,
        encoder_patch_size=_LFM2_PATCH,
        max_num_patches=(_LFM2_TILE // _LFM2_PATCH) ** 2,
        min_image_tokens=4,
        max_image_tokens=16,
        max_tiles=_MOST_TILES,
    )


def _lfm2_tokenizer():
    specials = [f"<|img_row_{row}_col_{column}|>" for row in range(1, 11) for column in range(1, 11)]
    named = {
        "image_token": "<image>", "image_start_token": "<|image_start|>", "image_end_token": "<|image_end|>",
        "image_thumbnail": "<|img_thumbnail|>",
    }  # fmt: skip
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"}
    return vocabularies.byte_level(["<|endoftext|>", "<|im_start|>", *specials], named, **names)


def smolvlm():
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(**_IDEFICS_SIZES),
        _idefics_tokenizer(bos="<|im_start|>", pad="<|im_end|>"),
        hf.SmolVLMVideoProcessor(),
        image_seq_len=_TOKENS_PER_TILE,
        chat_template=templates.of_trl("idefics3").replace("<|begin_of_text|>", "<|im_start|>"),
    )
    return _idefics_config(hf.SmolVLMConfig, processor.tokenizer), processor


def idefics3():
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(**_IDEFICS_SIZES),
        _idefics_tokenizer(bos="<|begin_of_text|>", pad="<|endoftext|>"),
        image_seq_len=_TOKENS_PER_TILE,
        chat_template=templates.of_trl("idefics3"),
    )
    return _idefics_config(hf.Idefics3Config, processor.tokenizer), processor


_IDEFICS_SIZES = {"size": {"longest_edge": 3 * parts.TILE}, "max_image_size": {"longest_edge": parts.TILE}}


def _idefics_tokenizer(bos, pad):
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    named = {
        "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }  # fmt: skip
    names = {"bos_token": bos, "eos_token": "<end_of_utterance>", "pad_token": pad}
    return vocabularies.byte_level(["<|endoftext|>", *places], named, **names)


def _idefics_config(kind, tokenizer):
    return kind(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=parts.VISION,
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
