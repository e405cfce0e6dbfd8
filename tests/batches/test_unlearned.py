"""An answer that is marked as not to be learned is context: in batches, masks, packed rows and cached pixels."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoProcessor

from vlmhelpers.batches import VisionCollator, check_dataset, precompute, show_mask, tokenize_rows
from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.data.schema import FEATURES, answer_of, assistant, user, with_train
from vlmhelpers.data.turns import one_answer_per_row, prompted, to_rows, with_system
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.samples.drawing import sample_products

PICTURE = sample_products(1, "unlearned", size=64)[0][1]
BAD = assistant("Bad.") | {"train": False}
TALK = [user("One?", 1), BAD, user("Two?"), assistant("Good."), user("Three?"), assistant("Better.")]
ROW = {"messages": TALK, "images": [PICTURE]}
PLAIN = ROW | {"messages": [user("One?", 1), assistant("Bad."), *TALK[2:]]}


@pytest.fixture(params=TINY_BASES)
def processor(request):
    return AutoProcessor.from_pretrained(tiny_model(request.param))


def dataset_of(*rows):
    return Dataset.from_list([*rows], features=with_train(FEATURES))


def learned(collator, row):
    labels = collator([row])["labels"][0]
    return collator.processor.tokenizer.decode(labels[labels != IGNORED])


@pytest.mark.parametrize(("train_on", "texts"), [("assistant", "Good. Better."), ("last", "Better.")])
def test_it_is_not_learned(processor, train_on, texts):
    said = learned(VisionCollator(processor, train_on=train_on), ROW)
    assert all((text in said) == (text in texts) for text in ("Bad.", "Good.", "Better."))
    assert torch.equal(VisionCollator(processor)([ROW])["input_ids"], VisionCollator(processor)([PLAIN])["input_ids"])


def test_all_is_learned_but_that_turn(processor):
    collator = VisionCollator(processor, train_on="all")
    said, plain = learned(collator, ROW), learned(collator, PLAIN)
    before, _, after = plain.partition("Bad.")
    assert said.startswith(before) and "Bad." not in said and len(after) - len(said[len(before) :]) < 15
    assert all(text in said for text in ("One?", "Two?", "Good.", "Better."))


def test_the_mask_shows_it_as_ignored(processor):
    shown = show_mask(VisionCollator(processor), ROW).text
    trained = "".join(line for line in shown.splitlines() if line.lstrip().startswith("trained"))
    assert "Bad" not in trained.replace(" ", "") and "Better" in trained.replace(" ", "")


def test_packed_rows_and_cached_pixels_keep_the_mark(tmp_path):
    processor = AutoProcessor.from_pretrained(tiny_model("qwen3-vl"))
    collator = VisionCollator(processor)
    text = {"messages": [user("One?"), *TALK[1:]], "images": []}
    (packed,) = tokenize_rows(dataset_of(text), collator)
    assert packed["labels"] == collator([text])["labels"][0].tolist()
    (stored,) = precompute(dataset_of(ROW), processor, tmp_path, progress=False)
    assert torch.equal(collator([stored])["labels"], collator([ROW])["labels"])


def test_rows_made_of_rows_keep_the_mark():
    dataset = dataset_of(ROW)
    for changed in (with_system(dataset, "Be brief."), prompted(dataset, "Look."), to_rows(dataset)):
        assert [m["train"] for m in changed[0]["messages"] if m["role"] == "assistant"] == [False, None, None]
    assert [answer_of(row) for row in one_answer_per_row(dataset)] == ["Good.", "Better."]
    nothing = dataset_of({"messages": [user("One?"), BAD, user("Two?"), BAD], "images": []})
    assert one_answer_per_row(nothing)[0] == nothing[0]


def test_a_row_without_an_answer_to_learn_is_rejected():
    greeting = {"messages": [assistant("Hello!"), *TALK[2:]], "images": []}
    rows = [
        ROW,
        greeting,
        {"messages": [*TALK[2:5], BAD], "images": []},
        {"messages": [user("Why?"), BAD], "images": []},
        {"messages": [assistant("So.")], "images": []},
    ]
    report = check_dataset(dataset_of(*rows), progress=False)
    assert [(found["row"], found["reason"]) for found in report.rejected] == [
        (3, "its last answer is not learned"),
        (4, "nothing to learn: no answer is to be learned"),
        (5, "nothing to learn: no turn before the answer"),
    ]
    (told,) = report.repaired
    assert told["row"] == 2 and told["reason"].startswith("the assistant begins: its first turn is not learned")


def test_an_answer_before_which_nothing_stands_is_context(processor):
    row = {"messages": [assistant("Hello!"), *TALK[2:]], "images": []}
    said = learned(VisionCollator(processor), row)
    assert "Hello" not in said and "Good." in said and "Better." in said
