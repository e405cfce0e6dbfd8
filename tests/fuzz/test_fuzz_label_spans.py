"""Texts of any characters and control tokens: what the rules let through is learned, and no token of the prompt is."""

import functools

import pytest
import torch
from fuzzing import assert_sentence, share, texts
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.validation import rules_of
from vlmhelpers.data.rules import merge_problems, row_problems
from vlmhelpers.data.schema import assistant, text_part, user
from vlmhelpers.families import tiny_model
from vlmhelpers.models.loading import load_processor

FAMILIES = ["qwen2.5-vl", "qwen3-vl", "internvl", "phi-3-vision", "llama-3.2-vision"]
MARKERS = [chr(number) for number in (0xE000, 0xE001, 0xF8FF, 0xF0000, 0xFFFFD, 0x10FFFD, 0xFFFC, 0xFFFE)]


@functools.cache
def processor(family):
    return load_processor(tiny_model(family))


@functools.cache
def control_tokens():
    """What the tokenizers of all families take for more than text, and other templates' marks."""
    found = [token for family in FAMILIES for token in processor(family).tokenizer.get_added_vocab()]
    others = [
        "<|im_start|>assistant\n",
        "[INST]",
        "[/INST]",
        "<start_of_turn>model\n",
        "<|end|>",
        "<think>",
        "</think>",
    ]
    return sorted({*found, *others, "<image>", "<s>", "</s>", "{{ x }}", "{% endfor %}"})


@st.composite
def turns(draw):
    """An odd or even number of turns, the last of which is the assistant's."""
    piece = st.one_of(st.sampled_from(control_tokens()), st.sampled_from(MARKERS), texts, st.text(max_size=20))
    text = st.lists(piece, min_size=1, max_size=5).map("".join)
    messages = [{"role": "system", "content": [text_part(draw(text))]}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 2))):
        messages += [user(draw(text)), assistant(draw(text))]
    return {"messages": messages, "images": []}


@pytest.mark.parametrize("family", FAMILIES)
@share(0.5)
@given(row=turns())
def test_what_is_kept_is_learned(family, row):
    collator, find = VisionCollator(processor(family)), rules_of(processor(family))
    if problems := row_problems(row) or find(row, []):
        for text in merge_problems(problems):
            assert_sentence(text, 299)
        return
    batch = collator([row])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    start = collator.prompts([row])["input_ids"][0]
    assert torch.equal(ids[: len(start)], start) and labels[len(start)] != -100
    learned = labels != -100
    assert torch.equal(labels[learned], ids[learned])
