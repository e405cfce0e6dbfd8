"""Families with a vision tower, a projector and a decoder, whose images are cut into tiles or only scaled."""

import transformers as hf
from random_families import parts, templates, vocabularies
from transformers.image_utils import OPENAI_CLIP_MEAN

from other_families.parts import CLIP, HALF, SIGLIP, chat_template, chatml_tokenizer, llama_tokenizer, named_roles

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
    marks = ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>", "<image>"]
    tiles = ["TILE", "TILE_GLOBAL", *(f"TILE_{number}" for number in range(1, 13))]
    names = {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>"}
    tokenizer = vocabularies.byte_level([*COHERE_TOKENS, *marks, *tiles], **names)
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


# As published, an answer has no end in any of these three, and a space after each text in the latter two.
VIPLLAVA = chat_template(
    named_roles("###Human: CONTENT", "###Assistant: CONTENT", "CONTENT"), "<image>\n", "###Assistant:"
)
CLIP_TOKENS = {
    "patch_size": parts.PATCH, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1
}  # fmt: skip


def vipllava():
    tokenizer = llama_tokenizer(named={"image_token": "<image>"})
    image_processor = hf.CLIPImageProcessor(size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE)
    processor = hf.LlavaProcessor(image_processor, tokenizer, chat_template=VIPLLAVA, **CLIP_TOKENS)
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
        hf.LlavaNextVideoVideoProcessor(), image_processor, tokenizer, chat_template=templates.LLAVA, **CLIP_TOKENS
    )
    config = hf.LlavaNextVideoConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=CLIP,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=parts.GRIDS,
    )
    return config, processor


def video_llava():
    tokenizer = llama_tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    square = {"size": {"shortest_edge": parts.TILE}, "crop_size": parts.SQUARE}
    processor = hf.VideoLlavaProcessor(
        hf.VideoLlavaImageProcessor(**square),
        hf.VideoLlavaVideoProcessor(**square),
        tokenizer,
        chat_template=templates.LLAVA,
        **CLIP_TOKENS,
    )
    config = hf.VideoLlavaConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=CLIP,
        image_token_index=tokenizer.image_token_id,
        video_token_index=tokenizer.video_token_id,
    )
    return config, processor


def granite4_vision():
    special = ["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"]
    names = {"eos_token": "<|end_of_text|>", "pad_token": "<|pad|>"}
    tokenizer = vocabularies.byte_level(special, {"image_token": "<image>"}, **names)
    turn = "<|start_of_role|>{{ m.role }}<|end_of_role|>CONTENT<|end_of_text|>\n"
    template = chat_template(turn, "<image>\n", "<|start_of_role|>assistant<|end_of_role|>")
    image_processor = hf.LlavaNextImageProcessor(
        size={"shortest_edge": parts.TILE}, crop_size=parts.SQUARE, image_grid_pinpoints=parts.GRIDS
    )
    processor = hf.Granite4VisionProcessor(
        image_processor,
        tokenizer,
        patch_size=parts.PATCH,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        chat_template=template,
    )
    qformer = {
        "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128,
        "cross_attention_frequency": 1, "max_position_embeddings": 64, "encoder_hidden_size": 64,
    }  # fmt: skip
    config = hf.Granite4VisionConfig(
        text_config=parts.text(tokenizer),
        vision_config=SIGLIP,
        image_token_index=tokenizer.image_token_id,
        image_grid_pinpoints=parts.GRIDS,
        vision_feature_select_strategy="full",
        downsample_rate="2/4",
        deepstack_layer_map=[[-1, 0]],
        spatial_target_layers=[1],
        qformer_config=qformer,
    )
    return config, processor


def _deepseek_tokenizer(**more):
    names = {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>", "pad_token": "<｜▁pad▁｜>"}
    return vocabularies.byte_level([], {"image_token": "<image_placeholder>", **more}, **names)


SHARP = {"height": 4 * parts.TILE, "width": 4 * parts.TILE}


def deepseek_vl_hybrid():
    tokenizer = _deepseek_tokenizer()
    image_processor = hf.DeepseekVLHybridImageProcessor(
        size=parts.SQUARE, high_res_size=SHARP, high_res_image_mean=OPENAI_CLIP_MEAN, **HALF
    )
    processor = hf.DeepseekVLHybridProcessor(
        image_processor, tokenizer, chat_template=templates.DEEPSEEK_VL, num_image_tokens=16
    )
    sharp = {
        "hidden_size": 64, "output_channels": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_dim": 128,
        "image_size": 4 * parts.TILE, "patch_size": parts.PATCH, "window_size": 4, "global_attn_indexes": [1],
    }  # fmt: skip
    config = hf.DeepseekVLHybridConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=SIGLIP,
        high_res_vision_config=sharp,
        image_token_id=tokenizer.image_token_id,
    )
    return config, processor


def janus():
    tokenizer = _deepseek_tokenizer(boi_token="<begin_of_image>", eoi_token="<end_of_image>")
    turn = named_roles("<|User|>: CONTENT\n\n", "<|Assistant|>: CONTENT{{ eos_token }}", "CONTENT\n\n")
    template = chat_template(turn, "<image_placeholder>\n", "<|Assistant|>:", start="{{ bos_token }}")
    processor = hf.JanusProcessor(
        hf.JanusImageProcessor(size=parts.SQUARE, **HALF), tokenizer, chat_template=template, num_image_tokens=16
    )
    vision = parts.VISION | {"mlp_ratio": 2, "projection_dim": parts.WIDTH, "num_image_tokens": 16}
    vision.pop("intermediate_size")
    drawing = {
        "embed_dim": 8, "num_embeddings": 32, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1],
        "num_res_blocks": 1, "projection_dim": 32, "image_token_embed_dim": 32,
    }  # fmt: skip
    config = hf.JanusConfig(
        text_config=parts.text(tokenizer, model_type="llama"),
        vision_config=vision,
        vq_config=drawing,
        image_token_id=tokenizer.image_token_id,
    )
    return config, processor


def qianfan_ocr():
    named = {
        "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    }  # fmt: skip
    tokenizer = chatml_tokenizer(named=named)
    image_processor = hf.GotOcr2ImageProcessor(size=parts.SQUARE, min_patches=1, max_patches=4, **HALF)
    processor = hf.QianfanOCRProcessor(
        image_processor, tokenizer, image_seq_length=4, chat_template=templates.chatml("<image>\n")
    )
    square = {"image_size": (parts.TILE, parts.TILE), "patch_size": (parts.PATCH, parts.PATCH)}
    config = hf.QianfanOCRConfig(
        text_config=parts.text(tokenizer, head_dim=32),
        vision_config=parts.VISION | square,
        image_token_id=processor.image_token_id,
        image_seq_length=4,
    )
    return config, processor


def step3p7():
    control = ["<patch_start>", "<patch_end>", "<patch_newline>", "<im_start>", "<im_end>", "<im_patch>"]
    tokenizer = chatml_tokenizer(control)
    tile = {"size": {"height": 112, "width": 112}, "patch_size": 56, "max_image_size": 224}
    processor = hf.Step3p7Processor(
        hf.Step3p7ImageProcessor(**tile), tokenizer, chat_template=templates.chatml("<im_patch>")
    )
    text = parts.text(
        tokenizer, head_dim=32, moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2,
        share_expert_dim=64, sliding_window=64, mlp_layer_types=["dense", "sparse", "sparse"],
    )  # fmt: skip
    vision = parts.VISION | {"image_size": 112, "mlp_ratio": 2.0, "max_position_embeddings": 64}
    return hf.Step3p7Config(text_config=text, vision_config=vision, image_token_id=processor.image_token_id), processor


BUILDERS = {
    "llama4": llama4,
    "aya_vision": aya_vision,
    "cohere2_vision": cohere2_vision,
    "aria": aria,
    "idefics2": idefics2,
    "vipllava": vipllava,
    "llava_next_video": llava_next_video,
    "video_llava": video_llava,
    "granite4_vision": granite4_vision,
    "deepseek_vl_hybrid": deepseek_vl_hybrid,
    "janus": janus,
    "qianfan_ocr": qianfan_ocr,
    "step3p7": step3p7,
}
