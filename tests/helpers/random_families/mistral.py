"""Mistral's models, with the Pixtral encoder: patches row by row, with a token at the end of each row."""

import transformers as hf

from random_families import parts, templates, vocabularies

_LONGEST = 112  # pixels of the longer side
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_SPECIALS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[IMG]", "[IMG_BREAK]", "[IMG_END]"]


def _vision(patch):
    return parts.VISION | {"model_type": "pixtral", "image_size": _LONGEST, "patch_size": patch, "head_dim": 32}


def _processor(patch, merge, template, more=()):
    tokenizer = vocabularies.byte_level([*_SPECIALS, *more], **_NAMES)
    image_processor = hf.PixtralImageProcessor(patch_size=patch, size={"longest_edge": _LONGEST})
    return hf.PixtralProcessor(
        image_processor, tokenizer, patch_size=patch, spatial_merge_size=merge, chat_template=template
    )


def mistral3():
    more = ["[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"]
    processor = _processor(parts.PATCH, 2, templates.MISTRAL3, more)
    config = hf.Mistral3Config(
        text_config=parts.text(processor.tokenizer, model_type="mistral", head_dim=32),
        vision_config=_vision(parts.PATCH),
        image_token_index=processor.image_token_id,
        spatial_merge_size=2,
    )
    return config, processor


def pixtral():
    """Pixtral 12B, which transformers runs as a LLaVA."""
    processor = _processor(16, 1, templates.PIXTRAL)
    config = hf.LlavaConfig(
        text_config=parts.text(processor.tokenizer, model_type="mistral", head_dim=32),
        vision_config=_vision(16),
        image_token_index=processor.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return config, processor
