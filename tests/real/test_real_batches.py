"""Rows in batches, with the published vocabularies: as alone, paddings, caps on pixels, and counted image tokens."""

import random

import pytest
from datasets import Dataset
from PIL import Image
from real_models import NAMES, THINKING
from real_vocabularies import BUILDERS

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.estimation.planning import count_again, count_rows, with_cap
from vlmhelpers.models.loading import set_max_pixels

pytestmark = pytest.mark.slow

CAPPED = [name for name in BUILDERS if name != "llama-3.2-vision"]
SIZES = 50


def drawn(width, height):
    """An image without content that no other size has."""
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


@pytest.fixture(scope="module")
def few_tokens(processor_of):
    """Gives a processor whose images take few tokens."""

    def make(name):
        processor = processor_of(name)
        if name == "phi-3-vision":
            set_max_pixels(processor, 336**2)
        return processor

    return make


def without_padding(batch, name="input_ids"):
    pairs = zip(batch[name], batch["attention_mask"], strict=True)
    return [row[mask.bool()].tolist() for row, mask in pairs]


@pytest.mark.parametrize("name", NAMES)
def test_a_row_of_a_batch_is_as_alone_and_begins_with_its_prompt(name, few_tokens):
    collator = VisionCollator(few_tokens(name))
    answers = ["Red.", "A longer answer: ☂️ 雨伞, 120 $.", "def f():\n    pass", "<b>x</b>"]
    images = [drawn(64, 64), drawn(300, 90), drawn(40, 200), drawn(128, 100)]
    rows = [make_row(f"What is {a!r}?", a, [image]) for a, image in zip(answers, images, strict=True)]
    for kind in [rows, [make_row(f"What is {a!r}?", a) for a in answers]]:
        batch, prompts = collator(kind), collator.prompts(kind)
        assert batch["attention_mask"][:, 0].all() and prompts["attention_mask"][:, -1].all()
        assert not batch["attention_mask"].all() and not prompts["attention_mask"].all()
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()
        ids, starts = without_padding(batch), without_padding(prompts)
        assert [row[: len(start)] for row, start in zip(ids, starts, strict=True)] == starts
        for i, row in enumerate(kind):
            alone = collator([row])
            assert alone["input_ids"].tolist() == [ids[i]]
            assert alone["labels"].tolist() == [without_padding(batch, "labels")[i]]
            assert collator.prompts([row])["input_ids"].tolist() == [starts[i]]


@pytest.mark.parametrize("name", CAPPED)
def test_the_cap_that_an_error_names_makes_a_row_fit_and_a_larger_one_does_not(name, processor_of):
    row = make_row("Which is larger?", "The first.", [drawn(900, 700), drawn(500, 800)])
    tokens = int(VisionCollator(processor_of(name))([row])["attention_mask"].sum())
    for max_length in (tokens - 1, 2 * tokens // 3):
        with pytest.raises(ValueError, match=r"max_pixels=\d+\) makes it fit") as error:
            VisionCollator(processor_of(name), max_length)([row])
        cap = int(str(error.value).partition("max_pixels=")[2].partition(")")[0])
        fits = processor_of(name)
        set_max_pixels(fits, cap)
        assert VisionCollator(fits, max_length)([row])["input_ids"].shape[1] <= max_length < tokens


@pytest.mark.parametrize("name", [name for name in NAMES if name != THINKING])
def test_as_many_image_tokens_are_counted_as_are_made(name, processor_of):
    chance = random.Random(name)
    images = [drawn(chance.randint(8, 700), chance.randint(8, 500)) for _ in range(SIZES)]
    if name.startswith("qwen"):  # which refuses longer shapes
        images = [image.crop((0, 0, *(max(side, 16) for side in image.size))) for image in images]
    rows = [make_row("What is it?", "A bag.", [image]) for image in images]
    processor = processor_of(name)
    counts, unusable = count_rows(Dataset.from_list(rows, features=FEATURES), range(SIZES), processor)
    assert not unusable
    if name in CAPPED:
        processor = with_cap(processor, 2 * 336**2)
        counts = count_again(counts, processor)
    collator = VisionCollator(processor)
    made = []
    for row in rows:
        batch = collator([row])
        image = (batch["input_ids"] == processor.image_token_id).sum() * collator.family.images_in_sequence
        made.append((batch["attention_mask"].sum(), image, (batch["labels"] != -100).sum()))
    assert [count[2:5] for count in counts] == [tuple(map(int, numbers)) for numbers in made]
    if collator.family.images_in_sequence:
        assert len({count.image for count in counts}) >= 3
