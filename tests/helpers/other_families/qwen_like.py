"""Families whose vision tower takes patches of images of any size, and most of whose decoders count in three axes."""

import transformers as hf
from random_families import parts, templates, vocabularies

from other_families.parts import LINEAR, areas, chat_template, chatml_tokenizer, named_roles

QWEN_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_NAMED = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
QWEN_IDS = QWEN_NAMED | {"vision_start_token": "<|vision_start|>", "vision_end_token": "<|vision_end|>"}
INTERLEAVED = parts.rope(6, 5, 5, mrope_interleaved=True)
GLM_TOKENS = [
    "<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>",
]  # fmt: skip
GLM_IDS = {
    "image_token": "<|image|>", "image_start_token": "<|begin_of_image|>", "image_end_token": "<|end_of_image|>",
    "video_token": "<|video|>", "video_start_token": "<|begin_of_video|>", "video_end_token": "<|end_of_video|>",
}  # fmt: skip
# As published it writes no token that ends the last answer.
GLM = chat_template(
    "<|{{ m.role }}|>\nCONTENT", "<|begin_of_image|><|image|><|end_of_image|>", "<|assistant|>\n", start="[gMASK]<sop>"
)
EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}


def _vision(patch: int = 16, **more) -> dict:
    """A small tower by the names of Qwen's."""
    return {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "patch_size": patch,
        "out_hidden_size": parts.WIDTH,
    } | more  # fmt: skip


def _qwen_processor(class_, tokenizer, patch: int = 16, template: str = templates.chatml(QWEN_IMAGE), videos=None):
    videos = videos or hf.Qwen3VLVideoProcessor()
    return class_(
        hf.Qwen2VLImageProcessor(size=areas(patch), patch_size=patch), tokenizer, videos, chat_template=template
    )


def qwen4_exp():
    tokenizer = chatml_tokenizer([*QWEN_TOKENS, "<think>", "</think>"])
    processor = _qwen_processor(hf.Qwen3VLProcessor, tokenizer, template=templates.of_trl("qwen3_5_nothink"))
    sparse = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 32, "indexer_budget": 64}
    text = parts.text(
        tokenizer, head_dim=32, **INTERLEAVED, **EXPERTS, num_experts=4, shared_expert_intermediate_size=64, **LINEAR,
        **sparse, indexer_compress_ratio=16, hc_count=2, hc_lowrank=16,
    )  # fmt: skip
    config = hf.Qwen4ExpConfig(
        text_config=text, vision_config=_vision(num_position_embeddings=64), **parts.ids(tokenizer, **QWEN_IDS)
    )
    return config, processor


def cosmos3_omni():
    tokenizer = chatml_tokenizer(QWEN_TOKENS)
    text = parts.text(tokenizer, model_type="qwen3_vl_text", head_dim=32, **INTERLEAVED)
    vision = _vision(num_position_embeddings=64, deepstack_visual_indexes=[0])
    config = hf.Cosmos3OmniConfig(text_config=text, vision_config=vision, **parts.ids(tokenizer, **QWEN_IDS))
    return config, _qwen_processor(hf.Qwen3VLProcessor, tokenizer)


def cosmos3_edge():
    tokenizer = chatml_tokenizer(QWEN_TOKENS, QWEN_NAMED)
    processor = hf.Cosmos3EdgeProcessor(
        hf.Cosmos3EdgeImageProcessor(size=areas(16)),
        tokenizer,
        hf.Cosmos3EdgeVideoProcessor(),
        chat_template=templates.chatml(QWEN_IMAGE),
    )
    config = hf.Cosmos3EdgeConfig(
        text_config=parts.text(tokenizer, head_dim=32, **parts.rope(6, 5, 5)),
        vision_config=parts.VISION | {"patch_size": 16, "num_patches": 64},
        projector_hidden_size=128,
        **parts.ids(tokenizer, **QWEN_IDS),
    )
    return config, processor


def exaone4_5():
    special = ["[|endofturn|]", "[|system|]", "[|user|]", "[|assistant|]", "<vision>", "</vision>"]
    names = {"bos_token": "[BOS]", "eos_token": "[|endofturn|]", "pad_token": "[PAD]"}
    tokenizer = vocabularies.byte_level(special, QWEN_NAMED, **names)
    template = chat_template(
        "[|{{ m.role }}|]\nCONTENT[|endofturn|]\n", "<vision><|image_pad|></vision>", "[|assistant|]\n"
    )
    processor = _qwen_processor(hf.Exaone4_5_Processor, tokenizer, 14, template, hf.Qwen2VLVideoProcessor())
    vision = _vision(14, num_key_value_heads=1, window_size=56, fullatt_block_indexes=[1])
    config = hf.Exaone4_5_Config(
        text_config=parts.text(tokenizer, head_dim=32, sliding_window=64),
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return config, processor


def cohere_compass():
    named = {
        "image_token": "<|IMAGE_PAD|>", "video_token": "<|VIDEO_PAD|>", "vision_start_token": "<|VISION_START|>",
        "vision_end_token": "<|VISION_END|>",
    }  # fmt: skip
    tokenizer = chatml_tokenizer(named=named)
    processor = hf.CohereCompassProcessor(
        hf.CohereCompassImageProcessor(size=areas(16), patch_size=16),
        tokenizer,
        hf.CohereCompassVideoProcessor(),
        chat_template=templates.chatml("<|VISION_START|><|IMAGE_PAD|><|VISION_END|>"),
    )
    rope = {"rope_parameters": {"full_attention": INTERLEAVED["rope_parameters"]}}
    config = hf.CohereCompassConfig(
        text_config=parts.text(tokenizer, **rope),
        vision_config=_vision(num_position_embeddings=64, deepstack_visual_indexes=[0]),
        **parts.ids(tokenizer, **named),
    )
    return config, processor


def qwen2_5_omni_thinker():
    named = {
        "image_token": "<|IMAGE|>", "audio_token": "<|AUDIO|>", "video_token": "<|VIDEO|>",
        "vision_bos_token": "<|vision_bos|>", "vision_eos_token": "<|vision_eos|>",
        "audio_bos_token": "<|audio_bos|>", "audio_eos_token": "<|audio_eos|>",
    }  # fmt: skip
    tokenizer = chatml_tokenizer(named=named)
    processor = hf.Qwen2_5OmniProcessor(
        hf.Qwen2VLImageProcessor(size=areas(14), patch_size=14),
        hf.Qwen2VLVideoProcessor(),
        hf.WhisperFeatureExtractor(),
        tokenizer,
        chat_template=templates.chatml("<|vision_bos|><|IMAGE|><|vision_eos|>"),
    )
    audio = {
        "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 64,
        "output_dim": parts.WIDTH, "n_window": 10,
    }  # fmt: skip
    ids = parts.ids(
        tokenizer, audio_token="<|AUDIO|>", image_token="<|IMAGE|>", video_token="<|VIDEO|>",
        audio_start_token="<|audio_bos|>", audio_end_token="<|audio_eos|>", vision_start_token="<|vision_bos|>",
        vision_end_token="<|vision_eos|>",
    )  # fmt: skip
    config = hf.Qwen2_5OmniThinkerConfig(
        audio_config=audio,
        vision_config=_vision(14, window_size=56, fullatt_block_indexes=[1]),
        text_config=parts.text(tokenizer, **parts.rope(4, 6, 6)),
        **ids,
    )
    return config, processor


def _glm(config_class, text: dict, processor_class=hf.Glm46VProcessor, prefix: str = "Glm46V", **vision):
    """A GLM with a tower of patches of 14 pixels; `prefix` names its image and video processor."""
    tokenizer = vocabularies.byte_level(GLM_TOKENS, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    size = areas(14, 8, 32)  # two frames of each image
    images, videos = getattr(hf, prefix + "ImageProcessor")(size=size), getattr(hf, prefix + "VideoProcessor")()
    processor = processor_class(images, tokenizer, videos, chat_template=GLM)
    config = config_class(
        text_config=parts.text(tokenizer, **text),
        vision_config=_vision(14, image_size=56, **vision),
        **parts.ids(tokenizer, **GLM_IDS),
    )
    return config, processor


GLM_TEXT = parts.rope(4, 2, 2, partial_rotary_factor=0.5)


def glm46v():
    return _glm(hf.Glm46VConfig, GLM_TEXT)


def glmga():
    return _glm(hf.GlmgaConfig, GLM_TEXT, prefix="Glmga")


def glm_ocr():
    text = {"head_dim": 32, **parts.rope(8, 4, 4)}
    return _glm(hf.GlmOcrConfig, text)


def glm5_next():
    text = {
        "num_key_value_heads": 4, "n_routed_experts": 4, "n_shared_experts": 1, **EXPERTS, "q_lora_rank": 64,
        "kv_lora_rank": 64, "qk_nope_head_dim": 32, "v_head_dim": 32, "index_topk": 64, "index_head_dim": 32,
        "index_n_heads": 2, "index_kpool": 16, "linear_head_dim": 32, "linear_num_heads": 4, "hc_mult": 2,
        "mlp_layer_types": ["dense", "sparse", "sparse"],
        "layer_types": ["linear_attention", "linear_attention", "full_attention"],
    }  # fmt: skip
    vision = {"projection_intermediate_size": 128}
    return _glm(hf.Glm5NextConfig, text, hf.Glm5NextProcessor, "Glm5Next", **vision)


def ernie4_5_vl_moe():
    named = {
        "image_token": "<|IMAGE_PLACEHOLDER|>", "image_start_token": "<|IMAGE_START|>",
        "image_end_token": "<|IMAGE_END|>", "video_token": "<|VIDEO_PLACEHOLDER|>",
        "video_start_token": "<|VIDEO_START|>", "video_end_token": "<|VIDEO_END|>",
    }  # fmt: skip
    names = {"bos_token": "<|begin_of_sentence|>", "eos_token": "</s>", "pad_token": "<unk>"}
    tokenizer = vocabularies.byte_level([], named, **names)
    turn = named_roles("User: CONTENT\n", "Assistant: CONTENT{{ eos_token }}")
    image = "Picture 1:<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    template = chat_template(turn, image, "Assistant: ", start="{{ bos_token }}")
    size = areas(14)
    processor = hf.Ernie4_5_VLMoeProcessor(
        hf.Ernie4_5_VLMoeImageProcessor(size=size),
        tokenizer,
        hf.Ernie4_5_VLMoeVideoProcessor(draw_on_frames=False),
        chat_template=template,
    )
    text = parts.text(
        tokenizer, moe_intermediate_size=[64, 64], moe_k=2, moe_num_experts=4, moe_num_shared_experts=1,
        **parts.rope(6, 6, 4),
    )  # fmt: skip
    vision = _vision(14)
    vision.pop("out_hidden_size")
    return hf.Ernie4_5_VLMoeConfig(text_config=text, vision_config=vision, **parts.ids(tokenizer, **named)), processor


def paddleocr_vl():
    special = ["<|IMAGE_START|>", "<|IMAGE_END|>", "<|video_pad|>"]
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>", "cls_token": "<|begin_of_sentence|>"}
    tokenizer = vocabularies.byte_level(special, {"image_token": "<|IMAGE_PLACEHOLDER|>"}, **names)
    turn = named_roles("User: CONTENT\n", "Assistant:\nCONTENT{{ eos_token }}")
    image = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"
    template = chat_template(turn, image, "Assistant:\n", start="{{ cls_token }}")
    size = areas(14)
    processor = hf.PaddleOCRVLProcessor(hf.PaddleOCRVLImageProcessor(size=size), tokenizer, chat_template=template)
    text = parts.text(tokenizer, head_dim=32, **parts.rope(4, 6, 6))
    ids = parts.ids(
        tokenizer, image_token="<|IMAGE_PLACEHOLDER|>", video_token="<|video_pad|>",
        vision_start_token="<|IMAGE_START|>", vision_end_token="<|IMAGE_END|>",
    )  # fmt: skip
    return hf.PaddleOCRVLConfig(text_config=text, vision_config=parts.VISION, **ids), processor


BUILDERS = {
    "glm46v": glm46v,
    "qwen2_5_omni_thinker": qwen2_5_omni_thinker,
    "ernie4_5_vl_moe": ernie4_5_vl_moe,
    "paddleocr_vl": paddleocr_vl,
    "glm_ocr": glm_ocr,
    "glmga": glmga,
    "glm5_next": glm5_next,
    "exaone4_5": exaone4_5,
    "cohere_compass": cohere_compass,
    "cosmos3_omni": cosmos3_omni,
    "cosmos3_edge": cosmos3_edge,
    "qwen4_exp": qwen4_exp,
}
