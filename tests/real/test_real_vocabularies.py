"""The tokenizers of the small models are those of the published models: their hashes and ids are compared."""

import hashlib
import re

import pytest
from phi3_vision_parts import REFERENCE
from real_vocabularies import BUILDERS

pytestmark = pytest.mark.slow

# The text by which llama.cpp knows how a tokenizer splits (CHK_TXT in its convert_hf_to_gguf_update.py), and its hashes
# of `str(tokenizer.encode(text))`, in the same file, for "qwen2" and "llama-bpe".
CHECKED = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫\ufe0f (multiple emojis concatenated) ✅ "
    "🦙🦙 3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ ------="
    "====== нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
HASHES = {
    "qwen2.5-vl": "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
    "qwen3-vl": "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
    "llama-3.2-vision": "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",
}
# Ids of the published models' added tokens, how many ids there are, and whether a token is a control token.
IDS = {
    "qwen2.5-vl": {"<|endoftext|>": 151643, "<|im_end|>": 151645, "<|image_pad|>": 151655, "<|file_sep|>": 151664},
    "qwen3-vl": {"<|im_start|>": 151644, "<|video_pad|>": 151656, "<tool_call>": 151657, "</think>": 151668},
    "llama-3.2-vision": {"<|begin_of_text|>": 128000, "<|finetune_right_pad_id|>": 128004, "<|eot_id|>": 128009}
    | {"<|reserved_special_token_247|>": 128255, "<|image|>": 128256},
    "phi-3-vision": {"<s>": 1, "</s>": 2, "<|endoftext|>": 32000, "<|assistant|>": 32001, "<|end|>": 32007}
    | {"<|user|>": 32010, "<|placeholder7|>": 32011, "<|placeholder39|>": 32043, "<|image|>": 32044},
}
SIZES = {"qwen2.5-vl": 151665, "qwen3-vl": 151669, "llama-3.2-vision": 128257, "phi-3-vision": 32045}
TEXT = {"<tool_call>", "</think>", "<|file_sep|>", "</s>"}  # of the added tokens, those that decoding never leaves out


@pytest.mark.parametrize("family", HASHES)
def test_the_hash_that_llama_cpp_knows(processor_of, family):
    ids = processor_of(family).tokenizer.encode(CHECKED)
    assert hashlib.sha256(str(ids).encode()).hexdigest() == HASHES[family]


@pytest.mark.parametrize("family", BUILDERS)
def test_the_published_ids(processor_of, family):
    tokenizer = processor_of(family).tokenizer
    assert {token: tokenizer.convert_tokens_to_ids(token) for token in IDS[family]} == IDS[family]
    assert len(tokenizer) == SIZES[family]
    added = tokenizer.added_tokens_decoder
    assert {token: added[i].special for token, i in IDS[family].items()} == {t: t not in TEXT for t in IDS[family]}


def test_the_ids_that_the_code_of_phi_3_vision_gave(processor_of):
    pieces = re.split(r"<\|image_\d+\|>", REFERENCE["prompt"])
    ids = [token for piece in pieces for token in processor_of("phi-3-vision").tokenizer.encode(piece)]
    assert ids == REFERENCE["cases"]["1"]["text_ids"]
