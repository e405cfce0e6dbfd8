"""Families with a vision tower, a projector and a decoder, whose images are cut into tiles or only scaled."""

import transformers as hf
from random_families import parts, templates, vocabularies

from other_families.parts import CLIP, HALF, SIGLIP, VICUNA, chat_template, llama_tokenizer, named_roles

_TURN = "<|START_OF_TURN_TOKEN|><|{}_TOKEN|>CONTENT<|END_OF_TURN_TOKEN|>"
COHERE = named_roles(_TURN.format("USER"), _TURN.format("CHATBOT"), _TURN.format("SYSTEM"))
COHERE_REPLY = "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>"
COHERE_TOKENS = [
    "<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>",
]  # fmt: skip


def llama4():
    tokens = [
        "<|begin_of_text|>", "<|eot|>", "<|header_start|>", "<|header_end|>", "<|image_start|>", "<|image_end|>",
        "<|image|>", "<|patch|>", "<|tile_x_separator|>", "<|tile_y_separator|>", "<|finetune_right_pad|>",
    ]  # fmt: skip
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|finetune_right_pad|>"}
    tokenizer = vocabularies.byte_level(tokens, **names)
    image_processor = hf.Llama4ImageProcessor(size=parts.SQUARE, max_patches=6)
    processor = hf.Llama4Processor(image_processor, tokenizer, patch_size=parts.PATCH)  # brings its own template
    text = parts.text(
        tokenizer, intermediate_size=64, intermediate_size_mlp=256, head_dim=32, num_local_experts=4,
        interleave_moe_layer_step=2,
    )  # fmt: skip
    vision = parts.VISION | {
        "intermediate_size": 256, "vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64
    }  # fmt: skip
    ids = parts.ids(tokenizer, boi_token="<|image_start|>", eoi_token="<|image_end|>", image_token="<|patch|>")
    return hf.Llama4Config(text_config=text, vision_config=vision, **ids), processor


def _cohere_text(tokenizer):
    return parts.text(tokenizer, model_type="cohere2", sliding_window=64)


def aya_vision():
    special = [
        "<|START_OF_IMG|>",
        "<|END_OF_IMG|>",
        "<|IMG_PATCH|>",
        "<|IMG_LINE_BREAK|>",
        "<image>",
        "TILE",
        "TILE_GLOBAL",
    ]
    tiles = [f"TILE_{number}" for number in range(1, 13)]
    names = {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>"}
    tokenizer = vocabularies.byte_level([*COHERE_TOKENS, *special, *tiles], **names)
    image_processor = hf.GotOcr2ImageProcessor(size=parts.SQUARE, min_patches=1, max_patches=4, **HALF)
    template = chat_template(COHERE, "<image>", COHERE_REPLY, start="<BOS_TOKEN>")
    processor = hf.AyaVisionProcessor(
        image_processor,
        tokenizer,
        patch_size=parts.PATCH,
        img_size=parts.TILE,
        downsample_factor=2,
        chat_template=template,
    )
    config = hf.AyaVisionConfig(
        text_config=_cohere_text(tokenizer), vision_config=SIGLIP, image_token_index=processor.image_token_id
    )
    return config, processor


def cohere2_vision():
    named = {
        "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>", "image_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }  # fmt: skip
    names = {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>"}
    tokenizer = vocabularies.byte_level(COHERE_TOKENS, named, **names)
    # The processor takes the square of this `patch_size` for the tokens of a tile.
    image_processor = hf.Cohere2VisionImageProcessor(
        size=parts.SQUARE, max_patches=6, patch_size=parts.TILE // parts.PATCH // 2, **HALF
    )
    template = chat_template(COHERE, "<|IMG_PATCH|>", COHERE_REPLY, start="<BOS_TOKEN>")
    processor = hf.Cohere2VisionProcessor(image_processor, tokenizer, chat_template=template)
    config = hf.Cohere2VisionConfig(
        text_config=_cohere_text(tokenizer),
        vision_config=SIGLIP,
        image_token_id=processor.image_token_id,
        alignment_intermediate_size=128,
    )
    return config, processor


def aria():
    tokenizer = vocabularies.byte_level(
        ["<|im_start|>", "<|im_end|>", "<fim_prefix>", "<fim_suffix>"], {"image_token": "<|img|>"},
        bos_token="<s>", eos_token="<|im_end|>", pad_token="<unk>", unk_token="<unk>",
    )  # fmt: skip
    # The processor's class scales every image to 980 pixels, whatever its image processor says.
    side, patch, queries = 980, 70, 8
    template = templates.chatml("<fim_prefix><|img|><fim_suffix>")
    processor = hf.AriaProcessor(
        hf.AriaImageProcessor(), tokenizer, size_conversion={side: queries}, chat_template=template
    )
    text = parts.text(
        tokenizer, model_type="aria_text", intermediate_size=64, moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1
    )
    config = hf.AriaConfig(
        text_config=text,
        vision_config=parts.VISION | {"image_size": side, "patch_size": patch, "hidden_size": 32},
        image_token_index=tokenizer.image_token_id,
        projector_patch_to_query_dict={(side // patch) ** 2: queries},
    )
    return config, processor


def idefics2():
    special = ["<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    names = {"bos_token": "<s>", "eos_token": "<end_of_utterance>", "pad_token": "<unk>"}
    named = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    tokenizer = vocabularies.byte_level(special, named, **names)
    # An image follows the colon at once, a text after a space.
    turn = "{{ m.role.capitalize() }}{{ ':' if m.content[0].type == 'image' else ': ' }}CONTENT<end_of_utterance>\n"
    image_processor = hf.Idefics2ImageProcessor(size={"shortest_edge": parts.TILE, "longest_edge": 2 * parts.TILE})
    template = chat_template(turn, "<image>", "Assistant:")
    processor = hf.Idefics2Processor(image_processor, tokenizer, image_seq_len=4, chat_template=template)
    perceiver = {
        "hidden_size": 128, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4,
        "resampler_head_dim": 32, "num_key_value_heads": 2,
    }  # fmt: skip
    config = hf.Idefics2Config(
        text_config=parts.text(tokenizer, model_type="mistral"),
        vision_config=parts.VISION | {"image_size": 2 * parts.TILE},
        perceiver_config=perceiver,
        image_token_id=processor.image_token_id,
    )
    return config, processor


def vipllava():
    tokenizer = llama_tokenizer(named={"image_token": "<image>"})
    image_processor = hf.CLIPImageProcessor(size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE)
    template = chat_template(
        "###{{ m.role.capitalize() }}: CONTENT{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}",
        "<image>\n",
        "###Assistant:",
        start="{{ bos_token }}",
    )
    processor = hf.LlavaProcessor(
        image_processor, tokenizer, patch_size=parts.PATCH, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip
    config = hf.VipLlavaConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=CLIP | {"num_hidden_layers": 3},
        vision_feature_layers=[-2, -3],
        image_token_index=tokenizer.image_token_id,
    )
    return config, processor


def llava_next_video():
    tokenizer = llama_tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    image_processor = hf.LlavaNextImageProcessor(
        size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE, image_grid_pinpoints=parts.GRIDS
    )
    processor = hf.LlavaNextVideoProcessor(
        hf.LlavaNextVideoVideoProcessor(), image_processor, tokenizer, patch_size=parts.PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=VICUNA,
    )  # fmt: skip
    config = hf.LlavaNextVideoConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=CLIP,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=parts.GRIDS,
    )
    return config, processor


BUILDERS = {
    "llama4": llama4,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "aria": aria,
    "idefics2": idefics2,
    "vipllava": vipllava,
    "llava_next_video": llava_next_video,
}
