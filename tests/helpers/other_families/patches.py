"""Families that take images in patches or slices, each in its own way."""

import transformers as hf
from random_families import parts, templates, vocabularies

from other_families.parts import HALF, LINEAR, UNSIZED, areas, chat_template, chatml_tokenizer, named_roles


def video_llama_3():
    tokenizer = chatml_tokenizer(named={"image_token": "<image>", "video_token": "<video>"})
    size = areas(14, 1)
    processor = hf.VideoLlama3Processor(
        hf.VideoLlama3ImageProcessor(size=size, patch_size=14), tokenizer, hf.VideoLlama3VideoProcessor(),
        chat_template=templates.chatml("<image>\n"),
    )  # fmt: skip
    config = hf.VideoLlama3Config(
        text_config=parts.text(tokenizer, model_type="qwen2"),
        vision_config=UNSIZED,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return config, processor


def minicpmv4_6():
    named = {
        "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "image_start_token": "<image>",
        "image_end_token": "</image>", "slice_start_token": "<slice>", "slice_end_token": "</slice>",
        "image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>",
    }  # fmt: skip
    tokenizer = chatml_tokenizer(named=named)
    cut = {"scale_resolution": 112, "patch_size": 14, "max_slice_nums": 4}
    processor = hf.MiniCPMV4_6Processor(
        hf.MiniCPMV4_6ImageProcessor(**cut, **HALF), hf.MiniCPMV4_6VideoProcessor(), tokenizer,
        chat_template=templates.chatml("<|image_pad|>\n"),
    )  # fmt: skip
    config = hf.MiniCPMV4_6Config(
        text_config=parts.text(tokenizer, model_type="qwen3_5_text", head_dim=32, **LINEAR),
        vision_config=parts.VISION | {"image_size": 112},
        insert_layer_id=0,
        image_size=112,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
    )
    return config, processor


def lighton_ocr():
    named = {"image_token": "<|image_pad|>", "image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer = chatml_tokenizer(named=named)
    image_processor = hf.PixtralImageProcessor(patch_size=28, size={"longest_edge": 112})
    processor = hf.LightOnOcrProcessor(
        image_processor, tokenizer, patch_size=14, spatial_merge_size=2, chat_template=templates.chatml("<|image_pad|>")
    )
    config = hf.LightOnOcrConfig(
        text_config=parts.text(tokenizer, head_dim=32),
        vision_config=parts.VISION | {"image_size": 112, "head_dim": 32},
        image_token_id=tokenizer.image_token_id,
    )
    return config, processor


def hunyuan_vl():
    named = {"image_token": "<img>", "image_start_token": "<im_start>", "image_end_token": "<im_end>"}
    special = ["<im_newline>", "<begin>", "<user>", "<assistant>", "<eod>"]
    names = {"bos_token": "<begin>", "eos_token": "<eos>", "pad_token": "<pad>", "sep_token": "<sep>"}
    tokenizer = vocabularies.byte_level(special, named, **names)
    turn = named_roles("CONTENT<user>", "CONTENT{{ eos_token }}", "CONTENT<sep>")
    template = chat_template(turn, "<im_start><img><im_end>", "", start="{{ bos_token }}")
    image_processor = hf.HunYuanVLImageProcessor(size=areas(16))
    processor = hf.HunYuanVLProcessor(image_processor, tokenizer, chat_template=template)
    vision = UNSIZED | {
        "patch_size": 16, "out_hidden_size": parts.WIDTH, "max_image_size": 256, "min_image_size": 32,
        "img_max_token_num": 64,
    }  # fmt: skip
    special_ids = {"im_start": "<im_start>", "im_end": "<im_end>", "im_newline": "<im_newline>"}
    config = hf.HunYuanVLConfig(
        text_config=parts.text(tokenizer, head_dim=32, **parts.rope(4, 4, 4, 4)),
        vision_config=vision,
        **parts.ids(tokenizer, image_token="<img>", **special_ids),
    )
    return config, processor


def minimax_m3_vl():
    control = ["]~b]", "[e~[", "]<]start of image[>[", "]<]end of image[>[", "]<]image[>[", "]<]video[>["]
    tokenizer = vocabularies.byte_level(control, bos_token="]~!b[", eos_token="[e~[", pad_token="<pad>")
    role = "{{ 'ai' if m.role == 'assistant' else m.role }}"
    template = chat_template(f"]~b]{role}\nCONTENT[e~[\n", "]<]image[>[", "]~b]ai\n", start="]~!b[")
    processor = hf.MiniMaxM3VLProcessor(
        hf.MiniMaxM3VLImageProcessor(size=areas(14)), tokenizer, hf.MiniMaxM3VLVideoProcessor(), chat_template=template
    )
    text = parts.text(
        tokenizer, head_dim=32, intermediate_size=64, dense_intermediate_size=256, shared_intermediate_size=64,
        num_local_experts=4, num_experts_per_tok=2, rotary_dim=16, mlp_layer_types=["dense", "sparse", "sparse"],
    )  # fmt: skip
    config = hf.MiniMaxM3VLConfig(
        text_config=text,
        vision_config=parts.VISION | {"image_size": 112},
        projector_hidden_size=parts.WIDTH,
        image_token_index=processor.image_token_id,
        video_token_index=processor.video_token_id,
    )
    return config, processor


def muse_glimmer():
    control = [
        "<|start|>", "<|message|>", "<|eom|>", "<|patch|>", "<|image_start|>", "<|image_end|>", "<|video|>",
        "<|vid_frame_separator|>", "<|vid_start|>", "<|vid_end|>",
    ]  # fmt: skip
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot|>", "pad_token": "<|pad|>"}
    tokenizer = vocabularies.byte_level(control, **names)
    processor = hf.MuseGlimmerProcessor(
        hf.MuseGlimmerImageProcessor(max_image_tokens=16),
        hf.MuseGlimmerVideoProcessor(),
        tokenizer,
        chat_template=templates.of_trl("muse_glimmer"),
    )
    vision = UNSIZED | {"pos_emb_height": 8, "pos_emb_width": 8, "max_position_embeddings": 64}
    config = hf.MuseGlimmerConfig(
        text_config=parts.text(tokenizer, head_dim=32, sliding_window=64),
        vision_config=vision,
        image_token_id=processor.image_token_id,
        video_token_id=processor.video_token_id,
        out_hidden_size=4 * parts.VISION_WIDTH,  # of four patches
        projector_hidden_size=parts.WIDTH,
    )
    return config, processor


def gemma4_unified():
    named = {
        "image_token": "<|image|>", "boi_token": "<|image>", "eoi_token": "<image|>",
        "audio_token": "<|audio|>", "boa_token": "<|audio>", "eoa_token": "<audio|>",
    }  # fmt: skip
    control = ["<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|video|>"]
    tokenizer = vocabularies.gemma(control, named, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    patch, pooled, tokens = 8, 2, 140  # the second least that it allows
    processor = hf.Gemma4UnifiedProcessor(
        hf.Gemma4UnifiedAudioFeatureExtractor(),
        hf.Gemma4UnifiedImageProcessor(patch_size=patch, max_soft_tokens=tokens, pooling_kernel_size=pooled),
        tokenizer,
        hf.Gemma4UnifiedVideoProcessor(),
        templates.of_trl("gemma4"),
        image_seq_length=tokens,
    )
    vision = {
        "patch_size": patch, "pooling_kernel_size": pooled, "mm_embed_dim": 64, "mm_posemb_size": 128,
        "output_proj_dims": 64,
    }  # fmt: skip
    known = parts.ids(tokenizer, **{name: token for name, token in named.items() if name != "eoa_token"})
    config = hf.Gemma4UnifiedConfig(
        text_config=parts.text(tokenizer, head_dim=32, global_head_dim=32, **parts.SLIDING),
        vision_config=vision,
        video_token_id=processor.video_token_id,
        eoa_token_index=tokenizer.eoa_token_id,
        **known,
    )
    return config, processor


def inkling_mm_model():
    named = {"image_token": "<|unused_200054|>", "audio_token": "<|unused_200053|>"}
    marks = {"image_bos_token": "<|content_image|>", "audio_bos_token": "<|content_audio_input|>"}
    names = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    tokenizer = vocabularies.byte_level([*marks.values(), "<|start|>", "<|message|>"], named, **names)
    turn = "<|start|>{{ m.role }}<|message|>CONTENT<|end|>"
    template = chat_template(turn, "<|content_image|><|unused_200054|>", "<|start|>assistant<|message|>")
    image_processor = hf.InklingImageProcessor(size={"height": parts.PATCH, "width": parts.PATCH})
    processor = hf.InklingProcessor(hf.InklingFeatureExtractor(), image_processor, tokenizer, chat_template=template)
    text = parts.text(
        tokenizer, head_dim=32, swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=32,
        sliding_window_size=64, rel_extent=64, moe_intermediate_size=64, n_routed_experts=4, num_experts_per_tok=2,
        n_shared_experts=1, mlp_layer_types=["dense", "sparse", "sparse"], local_layer_ids=[0, 1],
        logits_mup_width_multiplier=1.0,
    )  # fmt: skip
    config = hf.InklingConfig(
        text_config=text,
        # As many layers as folds of a patch: with fewer the model asks for scipy, with more it grows a thousandfold.
        vision_config={"patch_size": parts.PATCH, "num_hidden_layers": 4},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        **parts.ids(tokenizer, **named, **marks),
    )
    return config, processor


BUILDERS = {
    "video_llama_3": video_llama_3,
    "minicpmv4_6": minicpmv4_6,
    "lighton_ocr": lighton_ocr,
    "hunyuan_vl": hunyuan_vl,
    "minimax_m3_vl": minimax_m3_vl,
    "muse_glimmer": muse_glimmer,
    "gemma4_unified": gemma4_unified,
    "inkling_mm_model": inkling_mm_model,
}
