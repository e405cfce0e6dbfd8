"""A tiny LLaVA-OneVision with random weights: an architecture that no family describes.

Its towers have other names than those of the families, one of its parameters lies between them (`image_newline`), and
each image is cut into tiles, in a tensor of five dimensions.
"""

from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
)

from vlmhelpers.families import tiny_model

UNDESCRIBED = "llava-onevision"  # its name in the tests
SIDE, PATCH = 28, 14  # of a tile, in pixels
GRIDS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]


def save_onevision(folder: Path) -> Path:
    """Writes the model and its processor to `folder`, and returns it; the same weights every time."""
    other = AutoProcessor.from_pretrained(tiny_model("qwen3-vl"))  # its tokenizer and chat template serve here, too
    tokenizer = other.tokenizer
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size={"height": SIDE, "width": SIDE}, image_grid_pinpoints=GRIDS),
        tokenizer,
        LlavaOnevisionVideoProcessor(),
        num_image_tokens=(SIDE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=other.chat_template,
        image_token=other.image_token,
        video_token=other.video_token,
    )
    config = LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        },
        vision_config={
            "model_type": "siglip_vision_model", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": SIDE, "patch_size": PATCH, "vision_use_head": False,
        },
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
        image_grid_pinpoints=GRIDS,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlavaOnevisionForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)  # with transformers' own start, answers would hardly depend on the image
    for settings in (model.config, model.config.text_config, model.generation_config):
        settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
