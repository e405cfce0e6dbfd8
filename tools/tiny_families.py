"""Tiny models of real architectures: the families' own config, processor and model classes, with small numbers in them.

Images become 48 x 48 pixels in patches of 8. Every width that 4-bit quantization meets divides by 64.
"""

import torch
import transformers as hf
from texts import corpus
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vlmhelpers.families.phi3_vision import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

SIDE, PATCH = 48, 8
VOCABULARY = 1024

QWEN_SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
]  # fmt: skip
LLAMA_SPECIALS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|end_header_id|>",
    "<|eom_id|>", "<|eot_id|>", "<|python_tag|>", "<|image|>",
]  # fmt: skip
PHI_SPECIALS = [
    "<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>", "<|image|>",
]  # fmt: skip

# The image's names in InternVL's tokenizer, which its processor asks for by these words.
INTERNVL_NAMES = {
    "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}  # fmt: skip
INTERNVL_SPECIALS = [
    *QWEN_SPECIALS, *INTERNVL_NAMES.values(), "<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>",
]  # fmt: skip

# Chat templates that write what the families' own templates write for system, user and assistant turns.
_PARTS = """\
{%- if message.content is string %}{{- message.content }}
{%- else %}{%- for part in message.content %}
{%- if part.type == 'image' %}{{- 'IMAGE' }}{%- elif part.type == 'text' %}{{- part.text }}{%- endif %}
{%- endfor %}{%- endif %}
"""
_CHATML_TURNS = (
    "{%- for message in messages %}\n{{- '<|im_start|>' + message.role + '\\n' }}\n"
    + _PARTS
    + "{{- '<|im_end|>\\n' }}\n{%- endfor %}\n"
    + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_QWEN_SYSTEM = (
    "{%- if messages[0].role != 'system' %}"
    "{{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif %}\n"
)
QWEN3_TEMPLATE = _CHATML_TURNS.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
QWEN25_TEMPLATE = _QWEN_SYSTEM + QWEN3_TEMPLATE
INTERNVL_TEMPLATE = _CHATML_TURNS.replace("IMAGE", "<IMG_CONTEXT>\\n")
# As the published one: no system turn beside an image. Its block with the date before rows without one is left out: the
# base was pretrained without, and answers worse after it.
_LLAMA_SYSTEM = """\
{%- if messages[0].role == 'system' %}{%- set system = messages[0].content | trim %}{%- set messages = messages[1:] %}
{%- endif %}
{%- set shown = namespace(images=false) %}
{%- for message in messages if message.content is not string %}{%- for part in message.content %}
{%- if part.type == 'image' %}{%- set shown.images = true %}{%- endif %}
{%- endfor %}{%- endfor %}
{%- if system and shown.images %}{{- raise_exception('A system turn does not go with images.') }}{%- endif %}
{%- if system %}{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + system + '<|eot_id|>' }}{%- endif %}
"""
LLAMA_TEMPLATE = (
    "{{- bos_token }}\n" + _LLAMA_SYSTEM + "{%- for message in messages %}\n"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}\n"
    + _PARTS.replace("IMAGE", "<|image|>")
    + "{{- '<|eot_id|>' }}\n{%- endfor %}\n"
    + "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)


def build(family, seed=0):
    """A fresh, untrained (model, processor) of a family; the same seed gives the same weights."""
    torch.manual_seed(seed)
    model, processor = _BUILDERS[family]()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        for config in (model.config, model.generation_config):  # trainers complain where these differ
            setattr(config, name, getattr(processor.tokenizer, name))
    model.generation_config.eos_token_id = ends_of_answer(processor)
    return model, processor


def ends_of_answer(processor):
    """The ids that end an answer, the one to train on first: `<|end|>` for Phi-3, which also knows an end of text."""
    tokenizer = processor.tokenizer
    ends = ["<|end|>", tokenizer.eos_token] if isinstance(processor, Phi3VProcessor) else [tokenizer.eos_token]
    ids = tokenizer.convert_tokens_to_ids(ends)
    return ids if len(ids) > 1 else ids[0]


def train_tokenizer(specials, **names):
    """A byte-level BPE of VOCABULARY tokens on the bases' own corpus, with a family's special tokens at the end.

    Wrapped as `PreTrainedTokenizerFast`: the families' own classes would rebuild the merges from files we do not have.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(specials), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_special_tokens(specials)
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=specials, **names)


def _qwen_parts():
    """What Qwen2.5-VL and Qwen3-VL share: tokenizer, image processor, and the settings of the two towers."""
    tokenizer = train_tokenizer(QWEN_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids
    pixels = {"min_pixels": SIDE * SIDE, "max_pixels": SIDE * SIDE}
    image_processor = hf.Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=2, temporal_patch_size=2, image_mean=[0.5] * 3, image_std=[0.5] * 3, **pixels
    )
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
    }  # fmt: skip
    vision = {
        "depth": 3, "hidden_size": 96, "intermediate_size": 192, "num_heads": 4, "patch_size": PATCH,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 128,
    }  # fmt: skip
    tokens = {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"), "vision_end_token_id": ids("<|vision_end|>"),
    }  # fmt: skip
    return tokenizer, image_processor, text, vision, tokens


def _build_qwen25():
    tokenizer, image_processor, text, vision, tokens = _qwen_parts()
    video_processor = hf.Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    processor = hf.Qwen2_5_VLProcessor(image_processor, tokenizer, video_processor, chat_template=QWEN25_TEMPLATE)
    # Half of the head size (32) is divided among time, height and width.
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision |= {"window_size": SIDE // 2, "fullatt_block_indexes": [1], "tokens_per_second": 2}
    config = hf.Qwen2_5_VLConfig(text_config=text | {"bos_token_id": None}, vision_config=vision, **tokens)
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _build_qwen3():
    tokenizer, image_processor, text, vision, tokens = _qwen_parts()
    video_processor = hf.Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=2, temporal_patch_size=2)
    processor = hf.Qwen3VLProcessor(image_processor, tokenizer, video_processor, chat_template=QWEN3_TEMPLATE)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    text |= {"head_dim": 32, "rope_parameters": rope}
    vision |= {"num_position_embeddings": (SIDE // PATCH) ** 2, "deepstack_visual_indexes": [1]}
    config = hf.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _build_llama():
    tokenizer = train_tokenizer(
        LLAMA_SPECIALS, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>"
    )
    ids = tokenizer.convert_tokens_to_ids
    image_processor = hf.MllamaImageProcessor(
        size={"height": SIDE, "width": SIDE}, max_image_tiles=1, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor = hf.MllamaProcessor(image_processor, tokenizer, chat_template=LLAMA_TEMPLATE)
    vision = {
        "hidden_size": 96, "num_hidden_layers": 3, "num_global_layers": 1, "attention_heads": 4,
        "intermediate_size": 192, "vision_output_dim": 192, "intermediate_layers_indices": [0], "image_size": SIDE,
        "patch_size": PATCH, "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]],
    }  # fmt: skip
    # As in the real model, <|image|> is the last token and has an embedding but no row in lm_head.
    text = {
        "vocab_size": ids("<|image|>"), "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 256, "max_position_embeddings": 1024,
        "cross_attention_layers": [1, 3], "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "bos_token_id": ids("<|begin_of_text|>"), "eos_token_id": ids("<|eot_id|>"),
        "pad_token_id": ids("<|finetune_right_pad_id|>"),
    }  # fmt: skip
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=ids("<|image|>"))
    model = hf.MllamaForConditionalGeneration(config)
    _open_gates(model)
    return model, processor


def _build_phi3():
    tokenizer = train_tokenizer(PHI_SPECIALS, bos_token="<s>", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    ids = tokenizer.convert_tokens_to_ids
    lines = SIDE // PATCH // 2  # of tokens in a tile
    image_processor = Phi3VImageProcessor(
        num_crops=1, size={"height": SIDE, "width": SIDE}, num_img_tokens=lines**2,
        image_mean=[0.5] * 3, image_std=[0.5] * 3,
    )  # fmt: skip
    vision = {  # the last of these layers is in the files of every Phi-3-Vision, and never used
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": SIDE, "patch_size": PATCH, "projection_dim": 128,
    }  # fmt: skip
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 32.0, "short_factor": [1.0] * 16,
            "long_factor": [round(32 ** (i / 15), 4) for i in range(16)]}  # fmt: skip
    config = Phi3VConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=131072, original_max_position_embeddings=4096, rope_parameters=rope,
        vision_config=vision, image_token_id=ids("<|image|>"), bos_token_id=ids("<s>"),
        eos_token_id=ids("<|endoftext|>"), pad_token_id=ids("<|endoftext|>"),
    )  # fmt: skip
    return Phi3VForCausalLM(config), Phi3VProcessor(image_processor, tokenizer)


def _build_internvl():
    tokenizer = train_tokenizer(
        INTERNVL_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>",
        model_specific_special_tokens=INTERNVL_NAMES,
    )  # fmt: skip
    ids = tokenizer.convert_tokens_to_ids
    tile = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    # With three tiles a square picture is one tile, whatever its size; with four it could be 2 x 2 and a thumbnail.
    image_processor = hf.GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=3, **tile)
    seen = (SIDE // PATCH // 2) ** 2  # tokens of a tile
    processor = hf.InternVLProcessor(
        image_processor, tokenizer, hf.InternVLVideoProcessor(**tile), seen, chat_template=INTERNVL_TEMPLATE
    )
    text = {
        "model_type": "qwen2", "vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "bos_token_id": None,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"), "tie_word_embeddings": False,
    }  # fmt: skip
    vision = {  # the published scale of 0.1 belongs to 24 layers
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4,
        "attention_bias": True, "image_size": SIDE, "patch_size": PATCH, "layer_scale_init_value": 1.0,
    }  # fmt: skip
    config = hf.InternVLConfig(
        text_config=text, vision_config=vision, image_token_id=processor.image_token_id, image_seq_length=seen,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = hf.InternVLForConditionalGeneration(config)
    with torch.no_grad():  # a fresh model's are zero: it would have to learn first that places differ
        model.model.vision_tower.embeddings.position_embeddings.normal_(0, 0.02)
    return model, processor


def _open_gates(model):
    """Fresh gates are zero, which suits a pretrained language model; one trained from nothing needs them open."""
    gates = ("cross_attn_attn_gate", "cross_attn_mlp_gate", "gate_attn", "gate_ffn")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(gates):
                parameter.fill_(1.0)
            if name.endswith("gated_positional_embedding.embedding"):
                parameter.mul_(5.0)


_BUILDERS = {
    "llama-3.2-vision": _build_llama,
    "qwen2.5-vl": _build_qwen25,
    "qwen3-vl": _build_qwen3,
    "phi-3-vision": _build_phi3,
    "internvl": _build_internvl,
}
FAMILIES = tuple(_BUILDERS)
