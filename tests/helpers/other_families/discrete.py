"""Families that turn an image into tokens of the vocabulary itself."""

import transformers as hf
from random_families import parts, templates, vocabularies


def emu3():
    named = {
        "image_token": "<image>", "boi_token": "<|image start|>", "eoi_token": "<|image end|>",
        "image_wrapper_token": "<|image token|>", "eof_token": "<|extra_201|>",
    }  # fmt: skip
    codes = [f"<|visual token {number:06d}|>" for number in range(_CODES)]
    names = {"bos_token": "<|extra_203|>", "eos_token": "<|extra_204|>", "pad_token": "<|endoftext|>"}
    tokenizer = vocabularies.byte_level(["<|extra_200|>", *codes], named, **names)
    # From 16 to 64 tokens of 8 x 8 pixels, and one more for each row.
    image_processor = hf.Emu3ImageProcessor(min_pixels=32 * 32, max_pixels=64 * 64, spatial_factor=8)
    template = templates.LLAVA.replace("<image>\n", "<image>")
    processor = hf.Emu3Processor(image_processor, tokenizer, chat_template=template)
    vocabulary = {token: tokenizer.convert_tokens_to_ids(token) for token in ["<image>", "<|extra_200|>", *codes]}
    pictures = {
        "codebook_size": _CODES, "base_channels": 32, "channel_multiplier": [1, 1, 1, 1], "num_res_blocks": 1,
        "hidden_size": 32, "attn_resolutions": [3],
    }  # fmt: skip
    config = hf.Emu3Config(vq_config=pictures, text_config=parts.text(tokenizer), vocabulary_map=vocabulary)
    return config, processor


_CODES = 64  # that a patch can become

BUILDERS = {"emu3": emu3}
