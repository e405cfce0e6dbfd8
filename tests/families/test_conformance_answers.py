"""What every family has to keep when it answers: the same in any batch, while streaming, and once it is merged."""

import copy
from itertools import starmap

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from vlmhelpers.data.schema import FEATURES, last_question, make_row
from vlmhelpers.export import merge, save_adapter
from vlmhelpers.families import FAMILIES
from vlmhelpers.inference import generate, stream_answer
from vlmhelpers.models import load_model, lora_targets

KNOWN = {"What is the opposite of big?": "Small.", "Write 3 as a word.": "Three."}  # which the tiny bases answer right


@pytest.fixture(scope="module")
def questions(rows, images):
    """Rows of every kind, with prompts of very different lengths and images of different shapes."""
    more = [make_row("Please. " * i**4 + "Describe this product.", "-", [image]) for i, image in enumerate(images)]
    return Dataset.from_list([*starmap(make_row, KNOWN.items()), *rows, *more], features=FEATURES)


def answers(model, processor, questions, max_new_tokens=16, **options):
    return generate(model, processor, questions, max_new_tokens=max_new_tokens, progress=False, **options)


@pytest.mark.slow
def test_answers_are_the_same_and_in_order_in_any_batch_size(base, questions):
    alone = answers(base.model, base.processor, questions, batch_size=1)
    assert all(answers(base.model, base.processor, questions, batch_size=size) == alone for size in (5, 32))
    assert len(set(alone)) > 6
    if base.name in FAMILIES:
        assert alone[:2] == list(KNOWN.values())


def test_answers_beyond_their_end_are_the_same_in_any_batch_size(base, questions, capsys):
    """No end token is allowed, so that all rows go on to the limit, far from what the model knows."""
    some, limits = questions.select([4, 8, 9, 10]), {"max_new_tokens": 48, "min_new_tokens": 48}
    alone = answers(base.model, base.processor, some, batch_size=1, **limits)
    assert alone == answers(base.model, base.processor, some, batch_size=4, **limits)
    assert capsys.readouterr().out.count("4 of 4 answers were cut off at max_new_tokens=48") == 2


def test_a_streamed_answer_is_that_of_generate(base, questions):
    for index in (0, 4):  # without images and with two
        row, pieces = questions[index], []
        (expected,) = answers(base.model, base.processor, questions.select([index]))
        question, images = last_question(row["messages"]), row["images"]
        streamed = stream_answer(base.model, base.processor, question, images, max_new_tokens=16, write=pieces.append)
        assert streamed == "".join(pieces) == expected


@pytest.mark.slow
def test_a_merged_model_answers_as_its_adapter(base, questions, tmp_path):
    torch.manual_seed(0)
    targets = lora_targets(base.model, vision=True)
    lora = LoraConfig(r=4, lora_alpha=16, target_modules=targets, init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(base.model), lora).eval()
    adapter = save_adapter(tuned, base.processor, tmp_path / "adapter")
    folder = merge(adapter, tmp_path / "merged", base.folder, torch.float32)
    merged, processor = load_model(folder, bits=16)
    expected = answers(tuned, base.processor, questions)
    assert answers(merged, processor, questions) == expected
    assert answers(base.model, base.processor, questions) != expected
    batch = base.collator([questions[2], questions[4]])
    with torch.no_grad():
        torch.testing.assert_close(merged(**batch).logits, tuned(**batch).logits, atol=1e-3, rtol=1e-3)
