"""Images are replaced by what they should be, and the verdict tells a model that uses them from one that does not."""

import random

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from PIL import Image

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, PAIR_FEATURES, answer_of, make_pair, make_row
from vlmhelpers.evaluation.ablation import (
    ablation_of_answers,
    blank_images,
    image_ablation,
    noise_images,
    shuffled_images,
)
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.families import tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.samples.drawing import CATEGORIES, COLORS, sample_products


def plain(size, color):
    return Image.new("RGB", size, color)


def test_blank_images_keep_size_and_text(rows_of):
    dataset = rows_of([("?", "a", [plain((30, 20), "red")]), ("?", "b", [])])
    blank = blank_images(dataset)
    assert blank[0]["images"][0].size == (30, 20)
    assert blank[0]["images"][0].getcolors() == [(600, (128, 128, 128))]
    assert blank[1]["images"] == [] and blank[0]["messages"] == dataset[0]["messages"]
    assert evaluate(["a", "b"], blank).scores["exact match"].value == 1.0


def test_noise_is_the_same_at_every_reading(rows_of):
    dataset = rows_of([("?", "a", [plain((30, 20), "red")]), ("?", "b", []), ("?", "c", [plain((30, 20), "blue")])])
    noise = noise_images(dataset)
    first, _, third = (np.array(noise[i]["images"]) for i in range(3))
    assert first.shape == (1, 20, 30, 3) and first.std() > 60 and not np.array_equal(first, third)
    assert np.array_equal(first, np.array(noise[0]["images"])) and noise[1]["images"] == []
    assert not np.array_equal(first, np.array(noise_images(dataset, seed=1)[0]["images"]))


@pytest.mark.parametrize("answers", ["abcdefgh", "aaabbbcc", "aaaaaabc", "aaaaaaaa"])
def test_shuffled_images_are_those_of_another_row(rows_of, answers):
    colors = [(20 * i, 0, 0) for i in range(8)]
    dataset = rows_of([("?", a, [plain((4, 4), color)]) for a, color in zip(answers, colors, strict=True)])
    shuffled = shuffled_images(dataset)
    donors = [colors.index(row["images"][0].getpixel((0, 0))) for row in shuffled]
    assert sorted(donors) == list(range(8)) and all(i != donor for i, donor in enumerate(donors))
    other = sum(answers[i] != answers[donor] for i, donor in enumerate(donors))
    most = max(map(answers.count, answers))
    assert other == min(8, 2 * (8 - most))  # as many as there can be
    assert [answer_of(row) for row in shuffled] == list(answers)
    assert (
        donors != [colors.index(row["images"][0].getpixel((0, 0))) for row in shuffled_images(dataset, 1)] or other < 8
    )


def test_images_move_between_rows_with_equally_many(rows_of):
    one, two = [plain((2, 2), "red")], [plain((3, 3), "red")] * 2
    dataset = rows_of([("?", "a", one), ("?", "b", two), ("?", "c", []), ("?", "d", [plain((5, 5), "red")])])
    shuffled = shuffled_images(dataset.select([3, 1, 2, 0]))  # of a selection, too
    assert [[image.size for image in row["images"]] for row in shuffled] == [[(2, 2)], [(3, 3)] * 2, [], [(5, 5)]]


def judged(rows_of, n, true, other):
    """The ImageAblation of n rows with two answers in turn; `true` and `other` are how many are right."""
    dataset = rows_of([("?", "ab"[i % 2], []) for i in range(n)])
    wanted = ["ab"[i % 2] for i in range(n)]
    answers = {
        name: wanted[:right] + [f"wrong {name}" for _ in range(n - right)]
        for name, right in (("true", true), ("blank", 0), ("shuffled", other), ("noise", 0))
    }
    return ablation_of_answers(answers, dataset)


def test_a_model_that_uses_the_image(rows_of):
    found = judged(rows_of, 100, 98, 4)
    assert found.verdict.startswith("It uses the image: 98.0% with the true one, at most 4.0% with another one")
    assert "difference +94.0 points [" in found.verdict and found.chance == 0.5
    assert found.differences["blank"].difference == 0.98 and found.differences["blank"].names == ("blank", "true")
    page = found._repr_html_()
    assert page.count("<tr>") == 5 and "+94.0" in page and "It uses the image" in page
    assert repr(found).splitlines()[1].startswith("true       98.0%")


def test_a_model_that_uses_the_image_a_little(rows_of):
    assert judged(rows_of, 100, 90, 60).verdict.startswith("It uses the image a little: 90.0%")


def test_a_model_below_chance_uses_the_image_a_little(rows_of):
    assert judged(rows_of, 100, 20, 0).verdict.startswith("It uses the image a little: 20.0%")


def test_a_model_that_knows_without_the_image(rows_of):
    verdict = judged(rows_of, 100, 90, 89).verdict
    assert verdict.startswith("It does not use the image: 90.0% with the true one, at most 89.0%")


def test_a_model_whose_answers_stay_the_same(rows_of):
    dataset = rows_of([("?", "ab"[i % 2], []) for i in range(20)])
    found = ablation_of_answers(dict.fromkeys(("true", "blank", "shuffled", "noise"), ["a"] * 20), dataset)
    assert found.same == 1 and found.verdict.startswith("It does not use the image: 50.0%")
    assert found.verdict.endswith("100.0% of the answers are the same.")


def test_a_model_that_is_always_wrong_may_use_the_image_or_not(rows_of):
    verdict = judged(rows_of, 100, 0, 0).verdict
    assert verdict.startswith("Its scores show no sign that it uses the image: 0.0%")
    assert verdict.endswith("given to every row, is right for 50.0%.")


def test_what_cannot_be_judged_is_refused(rows_of, picture):
    one = rows_of([("?", "a", [picture]), ("?", "b", [])])
    with pytest.raises(ValueError, match="no two rows have images to exchange"):
        image_ablation(None, None, one)
    two = rows_of([("?", "a", [picture])] * 2)
    with pytest.raises(ValueError, match="1 answers for 2 rows"):
        image_ablation(None, None, two, answers=["a"])
    with pytest.raises(ValueError, match="no value per row of 'Size'"):
        image_ablation(None, None, two, metric="Size")


def test_the_same_answer_in_another_unicode_form_is_the_same(rows_of, picture):
    dataset = rows_of([("?", "caf\u00e9", [picture])] * 2)
    answers = dict.fromkeys(("true", "blank", "noise"), ["caf\u00e9"] * 2) | {"shuffled": ["cafe\u0301", "tea"]}
    assert ablation_of_answers(answers, dataset).same == 0.5


CODES = dict(zip(COLORS, CATEGORIES, strict=True))  # words that the tiny base can say, for what it has to learn


def coded_rows(n, seed, dropped=False):
    """Rows that ask for the code of the product's color, red ones more often; `dropped`: without their images."""
    rng = random.Random(seed)
    pairs = [pair for pair in sample_products(4 * n, seed, 48) if pair[0].color == "red" or rng.random() < 0.15]
    rows = [make_row("Which code is it?", CODES[p.color], [] if dropped else [image]) for p, image in pairs]
    return Dataset.from_list(rows[:n], features=FEATURES)


def trained(rows, steps=60, rate=1e-2):
    """The tiny base with LoRA, trained on the rows, and its processor."""
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=32, lora_alpha=32, target_modules=lora_targets(model))).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1, (k + 1) / 5) * (1 - k / steps))
    collator, rng = VisionCollator(processor), random.Random(0)
    for _ in range(steps):
        model(**collator([rows[i] for i in rng.sample(range(len(rows)), 8)])).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, processor


@pytest.mark.slow
def test_training_rows_whose_images_were_dropped_by_mistake_are_caught():
    test = coded_rows(60, "test")
    verdicts = {}
    for dropped in (True, False):
        model, processor = trained(coded_rows(150, "train", dropped))
        options = {"batch_size": 60, "max_new_tokens": 8, "progress": False}
        found = image_ablation(model, processor, test, **options)
        verdicts[dropped] = found.verdict
        assert [len(answers) for answers in found.answers.values()] == [60] * 4
    assert verdicts[True].startswith("It does not use the image: ")
    assert verdicts[False].startswith("It uses the image: ")
    # answers that are there already save a pass and change nothing
    again = image_ablation(model, processor, test, answers=found.answers["true"], **options)
    assert again.answers == found.answers and again.verdict == found.verdict


def test_pairs_may_get_blank_images(picture):
    pair = make_pair("Which?", "Red.", "Blue.", [picture])
    (row,) = blank_images(Dataset.from_list([pair], features=PAIR_FEATURES))
    assert row["images"][0].getextrema() == ((128, 128),) * 3
