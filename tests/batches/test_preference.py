"""Batches of pairs and of rated rows are those of the collator for supervised training, family by family."""

import pytest
import torch
from transformers import AutoProcessor

from vlmhelpers.batches import PreferenceCollator, RatedCollator, VisionCollator
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.data.schema import make_pair, make_rated
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.samples.drawing import sample_products

ASKED = "What is this?"
SHORT, LONG = "A bag.", "This is a red striped bag with two handles, which is for sale for 20 dollars."
BLACK, WHITE = (image for _, image in sample_products(2, "pairs", 48))
PAIRS = [
    make_pair(ASKED, "A red bag.", LONG, [BLACK]),
    make_pair("Compare them.", "Both are bags.", "No.", [BLACK, WHITE]),
    make_pair("And this?", LONG, SHORT, [WHITE]),
]
TEXT = make_pair("Write 3 as a word.", "Three.", "3, or what do you mean?")
RATED = [
    make_rated(ASKED, SHORT, True, [BLACK]),
    make_rated("Compare them.", LONG, False, [BLACK, WHITE]),
    make_rated("And this?", "No.", True, [WHITE]),
]


@pytest.fixture(scope="module", params=TINY_BASES)
def processor(request):
    return AutoProcessor.from_pretrained(tiny_model(request.param))


def messages_row(row, side, images=None):
    return {"messages": [*row["prompt"], *row[side]], "images": images or row["images"]}


def assert_same(batch, expected):
    """`batch` has what VisionCollator made, with a mask in place of labels."""
    expected["completion_mask"] = (expected.pop("labels") != IGNORED).long()
    assert batch.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(batch[name], tensor), name


def answers(processor, batch, prefix=""):
    """What is trained in each row, as text."""
    masks = batch[f"{prefix}completion_mask"].bool()
    return [processor.tokenizer.decode(ids[mask]) for ids, mask in zip(batch[f"{prefix}input_ids"], masks, strict=True)]


# Pairs


@pytest.mark.parametrize("logits", ["all", "labeled"])
def test_pairs_are_the_rows_of_both_sides_the_chosen_ones_first(processor, logits):
    conversations = [messages_row(row, side) for side in ("chosen", "rejected") for row in PAIRS]
    collator = VisionCollator(processor, train_on="last", logits=logits)
    assert_same(PreferenceCollator(processor, logits=logits)(PAIRS), collator(conversations))
    assert_same(PreferenceCollator(processor, logits=logits)(PAIRS, ("chosen",)), collator(conversations[:3]))


def test_the_answer_alone_is_trained_and_its_end_token(processor):
    texts = [row[side][0]["content"][0]["text"] for side in ("chosen", "rejected") for row in PAIRS]
    found = answers(processor, PreferenceCollator(processor)(PAIRS))
    end = found[0].removeprefix(texts[0])
    assert end in processor.tokenizer.all_special_tokens and found == [text + end for text in texts]


def test_the_rejected_side_has_its_own_images_where_they_are_given(processor):
    rows = [PAIRS[0] | {"rejected_images": [WHITE]}, PAIRS[2] | {"rejected_images": None}]
    expected = [messages_row(row, "chosen") for row in rows]
    expected += [messages_row(rows[0], "rejected", [WHITE]), messages_row(rows[1], "rejected")]
    batch = PreferenceCollator(processor)(rows)
    assert_same(batch, VisionCollator(processor, train_on="last")(expected))
    same = PreferenceCollator(processor)([PAIRS[0], PAIRS[2]])
    assert not torch.equal(batch["pixel_values"], same["pixel_values"])


def test_rows_with_and_without_images_are_mixed_or_refused_by_name(processor):
    rows = [PAIRS[0] | {"row": 4}, TEXT | {"row": 9}]
    if not family_of(processor).mixable:
        with pytest.raises(ValueError, match="^row 9, chosen, row 9, rejected: no image, .*batches of their own"):
            PreferenceCollator(processor)(rows)
        return
    batch = PreferenceCollator(processor)(rows)
    conversations = [messages_row(row, side) for side in ("chosen", "rejected") for row in rows]
    assert_same(batch, VisionCollator(processor, train_on="last")(conversations))


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_an_error_names_the_row_and_the_side(processor, side):
    empty = [{"role": "assistant", "content": [{"type": "text", "text": " "}]}]
    collate = PreferenceCollator(processor)
    with pytest.raises(ValueError, match=f"^row 17, {side}: empty answer"):
        collate([PAIRS[0], PAIRS[1] | {side: empty, "row": 17}])
    with pytest.raises(ValueError, match=f"^row 2 of the batch, {side}: empty answer"):
        collate([PAIRS[0], PAIRS[1] | {side: empty}])
    with pytest.raises(ValueError, match="^row 1 of the batch, completion: empty answer"):
        RatedCollator(processor)([RATED[0] | {"completion": empty}, RATED[1]])


def test_the_longer_side_alone_is_too_long(processor):
    chosen = PreferenceCollator(processor)([PAIRS[0]], ("chosen",))["input_ids"].shape[1]
    with pytest.raises(ValueError, match="^row 1 of the batch, rejected: .* more than max_length"):
        PreferenceCollator(processor, max_length=chosen)([PAIRS[0]])


# Rated rows


def test_rated_rows_are_themselves_and_each_prompt_with_the_answer_before(processor):
    batch = RatedCollator(processor)(RATED)
    plain = VisionCollator(processor, train_on="last")([messages_row(row, "completion") for row in RATED])
    before = [row | {"completion": RATED[i - 1]["completion"]} for i, row in enumerate(RATED)]
    moved = VisionCollator(processor, train_on="last")([messages_row(row, "completion") for row in before])
    for prefix, expected in (("", plain), ("KL_", moved)):
        for i, mask in enumerate(expected["attention_mask"].bool()):
            kept = batch[f"{prefix}attention_mask"][i].bool()
            assert torch.equal(batch[f"{prefix}input_ids"][i, kept], expected["input_ids"][i, mask])
            trained = expected["labels"][i, mask] != IGNORED
            assert torch.equal(batch[f"{prefix}completion_mask"][i, kept].bool(), trained)
    first, second, third = answers(processor, batch)
    assert answers(processor, batch, "KL_") == [third, first, second]
    assert batch["label"].tolist() == [True, False, True] and batch["label"].dtype == torch.bool


@pytest.mark.parametrize("texts", [(SHORT, LONG), (LONG, SHORT)])
@pytest.mark.parametrize("questions", [(ASKED, f"{ASKED} {LONG} {LONG}"), (f"{ASKED} {LONG} {LONG}", ASKED)])
def test_both_batches_have_one_width(processor, texts, questions):
    rows = [make_rated(q, text, True, [BLACK]) for q, text in zip(questions, texts, strict=True)]
    batch = RatedCollator(processor)(rows)
    width = batch["input_ids"].shape[1]
    of_tokens = [name for name in batch if name.startswith("KL_") or name.endswith("mask") or name == "input_ids"]
    assert {"KL_input_ids", "cross_attention_mask" if "cross_attention_mask" in batch else "input_ids"} <= {*of_tokens}
    for name in set(of_tokens) - {"aspect_ratio_mask"}:
        assert batch[name].shape[1] == width, name
    pad = processor.tokenizer.pad_token_id
    for prefix in ("", "KL_"):
        assert (batch[f"{prefix}input_ids"][batch[f"{prefix}attention_mask"] == 0] == pad).all()
        assert (batch[f"{prefix}completion_mask"] <= batch[f"{prefix}attention_mask"]).all()


def test_the_mismatched_batch_is_left_out_where_it_is_not_asked_for(processor):
    batch = RatedCollator(processor, mismatched=False)(RATED)
    assert not any(name.startswith("KL_") for name in batch)
    assert batch.pop("label").tolist() == [True, False, True]
    expected = VisionCollator(processor, train_on="last")([messages_row(row, "completion") for row in RATED])
    assert_same(batch, expected)


def test_no_length_is_asked_of_answers_that_nobody_gave_to_that_prompt(processor):
    rows = [make_rated(f"{ASKED} {LONG}", SHORT, True, [BLACK]), make_rated(ASKED, LONG, False, [BLACK])]
    longest = RatedCollator(processor, mismatched=False)(rows)["input_ids"].shape[1]
    assert RatedCollator(processor, max_length=longest)(rows)["KL_attention_mask"].sum(dim=1).max() > longest
    with pytest.raises(ValueError, match="more than max_length"):
        RatedCollator(processor, max_length=longest - 1)(rows)


@pytest.mark.parametrize("name", TINY_BASES)
def test_a_mismatched_answer_sees_the_image_to_its_end(tiny, name):
    """In the main batch Mllama's text attends to the image as far as the main answer goes; TRL takes that for both."""
    model, processor = tiny(name)
    rows = [make_rated(f"{ASKED} {LONG}", SHORT, True, [BLACK]), make_rated(ASKED, LONG, False, [WHITE])]
    batch = RatedCollator(processor)(rows)
    images = {k: v for k, v in batch.items() if not k.startswith("KL_") and k not in ("completion_mask", "label")}
    moved = [messages_row(row | {"completion": rows[i - 1]["completion"]}, "completion") for i, row in enumerate(rows)]
    with torch.no_grad():
        for prefix, expected in (("", [messages_row(row, "completion") for row in rows]), ("KL_", moved)):
            tokens = {k: batch[prefix + k] for k in ("input_ids", "attention_mask", "mm_token_type_ids") if k in batch}
            logits = model(**images | tokens, use_cache=False).logits
            for i, row in enumerate(expected):
                alone = VisionCollator(processor)([row])
                alone.pop("labels")
                length = alone["input_ids"].shape[1]
                torch.testing.assert_close(
                    logits[i, :length], model(**alone, use_cache=False).logits[0], atol=1e-4, rtol=1e-4
                )
