"""The picture of the label mask says what the labels say."""

import html
import re

import pytest
import torch
from tiny_families import FAMILIES, build
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import PreTrainedTokenizerFast

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.mask import show_mask
from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.data.schema import make_pair, make_row, user
from vlmhelpers.families.phi3_vision import Phi3VProcessor
from vlmhelpers.samples.drawing import sample_products

PICTURES = [picture for _, picture in sample_products(5, "mask", size=96)]
ROW = make_row('What <b>is</b>\n\tthis & "that"? é🙂', "A red bag.", PICTURES[:2])


@pytest.fixture(scope="module")
def collators():
    return {family: VisionCollator(build(family)[1]) for family in FAMILIES}


def visible(markup):
    """The text of some HTML as a reader sees it."""
    return html.unescape(re.sub(r"<[^>]*>", "", markup))


def test_text_for_a_terminal_is_exactly_this(collators):
    assert repr(show_mask(collators["qwen3-vl"], make_row("What is it?", "A red bag.", PICTURES[:1]))) == (
        "29 tokens: 5 trained, 15 ignored, 9 image\n"
        "ignored | <|im_start|> user ⏎ <|vision_start|>\n"
        "  image | × 9\n"
        "ignored | <|vision_end|> What ·is ·it ? <|im_end|> ⏎ <|im_start|> assistant ⏎\n"
        "trained | A ·red ·bag . <|im_end|>\n"
        "ignored | ⏎"
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_trained_tokens_are_marked_and_counted(collators, family):
    batch = collators[family]([ROW])
    tokenizer = collators[family].processor.tokenizer
    names = [collators[family].processor.image_token, *(["<img>", "</img>"] if family == "internvl" else [])]
    image = torch.isin(batch["input_ids"], torch.tensor(tokenizer.convert_tokens_to_ids(names))).sum().item()
    trained = (batch["labels"] != -100).sum().item()
    shown = show_mask(collators[family], ROW)
    legend = f"{trained} trained, {batch['labels'].numel() - trained - image} ignored, {image} image"
    assert str(shown).splitlines()[0] == f"{batch['labels'].numel()} tokens: {legend}"
    markup = shown._repr_html_()
    assert visible(markup).startswith(f"{batch['labels'].numel()} tokens: {legend.replace(',', '')}")
    end = {"llama-3.2-vision": "<|eot_id|>", "phi-3-vision": "<|end|>"}.get(family, "<|im_end|>")
    assert list(map(visible, re.findall("<mark.*?</mark>", markup, re.DOTALL))) == [f"A·red·bag.{end}"]


def test_images_are_folded_with_their_count(collators):
    assert re.findall("image × [0-9]+", show_mask(collators["qwen3-vl"], ROW)._repr_html_()) == ["image × 9"] * 2
    assert re.findall("image × [0-9]+", show_mask(collators["llama-3.2-vision"], ROW)._repr_html_()) == ["image × 2"]


def test_html_is_escaped_with_visible_blanks_and_whole_characters(collators):
    shown = show_mask(collators["qwen3-vl"], ROW)
    markup = shown._repr_html_()
    assert "<b>" not in markup
    assert 'What·<b>is</b>⏎\n→this·&·"that"?·é🙂<|im_end|>' in visible(markup)
    assert "é 🙂" in str(shown) and "\ufffd" not in markup + str(shown)


def metaspace_tokenizer():
    """As Llama 2's: a blank before every piece of text, and single bytes for what no word has."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<|image|>", "<|end|>"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(ends)
    tokenizer.train_from_iterator(["What is this ? A red bag ."], trainers.BpeTrainer(special_tokens=first))
    tokenizer.add_special_tokens(["<s>", "<|image|>", "<|end|>", "<|user|>", "<|assistant|>"])
    names = {"bos_token": "<s>", "eos_token": "<|end|>", "pad_token": "<|end|>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.mark.parametrize("family", [*FAMILIES, "metaspace"])
def test_what_is_shown_is_the_decoded_text(collators, family):
    collator = collators.get(family)
    if collator is None:
        image_processor = collators["phi-3-vision"].processor.image_processor
        collator = VisionCollator(Phi3VProcessor(image_processor, metaspace_tokenizer()))
    tokenizer, image = collator.processor.tokenizer, collator.processor.image_token
    ids = collator([ROW])["input_ids"][0]
    text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    text = re.sub("</?img>", lambda _: image, text)  # InternVL's image stands between these
    shown = visible(show_mask(collator, ROW)._repr_html_()).partition(" image")[2]
    shown = re.sub("image × ([0-9]+)", lambda found: image * int(found[1]), shown)
    shown = shown.replace("⏎\n", "\n").replace("→", "\t").replace("·", " ")
    assert shown == text and "What <b>" in text and "A red bag." in text


def test_html_is_small_and_shows_the_first_pictures(collators):
    few = show_mask(collators["qwen3-vl"], ROW)._repr_html_()
    assert few.count("<img") == 2 and len(few) < 10_000
    assert {picture.size for picture in ROW["images"]} == {(96, 96)}  # the row's own pictures are left alone
    many = show_mask(collators["qwen3-vl"], make_row("Compare.", "A bag.", PICTURES))._repr_html_()
    assert many.count("<img") == 3 and "and 2 more" in many and len(many) < 15_000
    assert "<img" not in show_mask(collators["qwen3-vl"], make_row("Hi", "Hello."))._repr_html_()


def test_every_second_token_is_set_off(collators):
    mark = re.search("<mark.*?</mark>", show_mask(collators["qwen3-vl"], ROW)._repr_html_())[0]
    assert re.findall("<span[^>]*>(.*?)</span>", mark) == ["·red", "."]


def test_other_choices_of_what_to_train_on_show(collators):
    everything = VisionCollator(collators["qwen3-vl"].processor, train_on="all")
    assert " 0 ignored" in str(show_mask(everything, ROW))


def test_a_row_that_cannot_be_trained_on_is_refused(collators):
    with pytest.raises(ValueError, match="row 8: no answer: the last turn is not the assistant's"):
        show_mask(collators["qwen3-vl"], {"messages": [user("Hi")], "images": [], "row": 8})


def test_both_sides_of_a_pair_are_shown_without_padding(collators):
    collator = PreferenceCollator(collators["qwen3-vl"].processor)
    shown = repr(show_mask(collator, make_pair("What is it?", "A red bag.", "A bag.", PICTURES[:1])))
    trained = [line for line in shown.splitlines() if line.startswith("trained")]
    assert trained == ["trained | A ·red ·bag . <|im_end|>", "trained | A ·bag . <|im_end|>"]
    assert "endoftext" not in shown
