"""Rows compared with others: repetitions, other answers, near-duplicates, leaks between splits."""

import random

import numpy as np
import pytest
from checked_rows import PICTURES, dataset_of, encoded, reasons, row_of
from datasets import Dataset, DatasetDict, Features
from PIL import Image, ImageEnhance

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.duplicates import closest_others
from vlmhelpers.data.schema import (
    FEATURES,
    PAIR_FEATURES,
    PROMPT_FEATURES,
    RATED_FEATURES,
    REJECTED_IMAGES,
    make_pair,
    make_prompt,
    make_rated,
    make_row,
    with_train,
)
from vlmhelpers.samples.drawing import Product, draw, sample_products


def test_a_row_that_repeats_another_is_rejected():
    other = make_row("What is it?", "Product 0.", [encoded(PICTURES[0], "BMP")])  # the same pixels in another file
    report = check_dataset(dataset_of(row_of(0), row_of(1), other, make_row("Why?", "So."), make_row("Why?", "So.")))
    assert reasons(report.rejected) == [(3, "duplicate: the same as row 1"), (5, "duplicate: the same as row 4")]


def test_a_rejected_row_is_nobodys_original():
    broken = make_row("Why?", "So.") | {"images": [PICTURES[0]]}
    assert check_dataset(dataset_of(broken, make_row("Why?", "So."))).counts["kept"] == 1


def test_other_questions_about_a_picture_are_no_repetition():
    report = check_dataset(dataset_of(row_of(0), row_of(0, question="What color?"), row_of(0, question="How much?")))
    assert not report.rejected and not report.warnings


def test_another_answer_to_the_same_is_a_warning():
    report = check_dataset(dataset_of(row_of(0), row_of(0, answer="Something else."), row_of(1)))
    assert report.counts["kept"] == 3
    assert reasons(report.warnings) == [(2, "another answer: row 1 has the same question about the same image")]


COPIES = {
    "saved as JPEG": lambda picture: encoded(picture, "JPEG", quality=75),
    "half the size": lambda picture: encoded(picture.resize((48, 48), Image.Resampling.LANCZOS)),
    "larger": lambda picture: encoded(picture.resize((150, 150), Image.Resampling.BICUBIC)),
    "few colors": lambda picture: encoded(picture.quantize(64), "GIF"),
    "a little darker": lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(0.97)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_a_picture_is_a_near_duplicate(copy):
    pictures = [picture for _, picture in sample_products(30, seed=5, size=96)]
    rows = [make_row("What?", f"Product {i}.", [picture]) for i, picture in enumerate(pictures)]
    rows += [make_row("What?", f"Product {i} again.", [COPIES[copy](pictures[i])]) for i in range(10)]
    report = check_dataset(dataset_of(*rows))
    assert reasons(report.warnings) == [
        (31 + i, f"near-duplicate: nearly the same image as row {1 + i}") for i in range(10)
    ]
    assert not check_dataset(dataset_of(*rows), near_duplicates=False).warnings


def test_pictures_that_differ_in_color_or_coins_are_no_near_duplicates():
    pictures = []
    for seed in range(12):  # twins: everything but one thing is drawn alike
        for product in (Product("mug", "red", "plain", 10), Product("mug", "red", "plain", 20),
                        Product("mug", "orange", "plain", 10), Product("hat", "red", "plain", 10)):  # fmt: skip
            pictures.append(draw(product, random.Random(seed), 64))
    pictures += [Image.new("RGB", (64, 64), (shade, 90, 90)) for shade in range(0, 256, 20)]  # flat
    rows = [make_row("What?", f"Product {i}.", [picture]) for i, picture in enumerate(pictures)]
    assert check_dataset(dataset_of(*rows)).warnings == []


def test_the_drawn_samples_hold_no_false_near_duplicates():
    pictures = [picture for _, picture in sample_products(400, seed=11, size=64, novel=None)]
    thumbnails = [np.asarray(picture.resize((8, 8), Image.Resampling.BOX)).ravel() for picture in pictures]
    assert (closest_others(np.stack(thumbnails), np.arange(400), np.arange(400)) == -1).all()


@pytest.mark.slow
def test_the_search_finds_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (300, 192))
    cells[150:200] = np.clip(cells[:50] + rng.integers(-6, 7, (50, 192)), 0, 255)  # near
    cells[200:250] = np.clip(cells[50:100] + rng.integers(-30, 31, (50, 192)), 0, 255)  # not near enough
    groups = rng.integers(0, 3, 300)
    found = closest_others(cells.astype(np.uint8), np.arange(300), groups)
    far = np.abs(cells[:, None] - cells[None]).max(2)
    far[groups[:, None] == groups] = 999
    assert (found == np.where(far.min(1) <= 12, far.argmin(1), -1)).all() and 30 < (found >= 0).sum() < 100
    alone = np.zeros((1, 192), np.uint8)
    assert list(closest_others(alone, np.zeros(1, int), np.zeros(1, int))) == [-1]
    assert len(closest_others(alone, np.zeros(0, int), np.zeros(0, int))) == 0


# Leaks


def test_a_picture_in_train_and_test_is_taken_out_of_train():
    train = dataset_of(row_of(0), row_of(1), row_of(2), row_of(3))
    test = dataset_of(row_of(1, question="What color?"), make_row("What?", "It.", [encoded(PICTURES[2], "JPEG")]))
    report = check_dataset({"test": test, "train": train})
    assert reasons(report.rejected) == [
        (2, "leak: the same image as row 1 of test"),
        (3, "leak: nearly the same image as row 2 of test"),
    ]
    assert {record["split"] for record in report.rejected} == {"train"}
    assert isinstance(report.dataset, DatasetDict)
    assert (len(report.dataset["train"]), len(report.dataset["test"])) == (2, 2)
    assert report.counts["by_split"]["train"] == {"read": 4, "kept": 2, "rejected": 2}
    assert report.counts["by_reason"] == {"leak": 2}


def test_leaks_can_be_kept_or_only_exact_ones_sought():
    splits = DatasetDict(
        train=dataset_of(row_of(0), row_of(1)),
        test=dataset_of(row_of(0), make_row("What?", "It.", [encoded(PICTURES[1], "JPEG")])),
    )
    kept = check_dataset(splits, reject_leaks=False)
    assert kept.counts["kept"] == 4 and [record["row"] for record in kept.warnings] == [1, 2]
    exact = check_dataset(splits, near_duplicates=False)
    assert reasons(exact.rejected) == [(1, "leak: the same image as row 1 of test")]


def test_the_same_text_without_pictures_is_a_leak_too():
    same = make_row("Why?", "So.")
    report = check_dataset({"train": dataset_of(same, make_row("How?", "So.")), "test": dataset_of(same)})
    assert reasons(report.rejected) == [(1, "leak: the same text as row 1 of test")]


def test_what_is_learned_of_a_row_does_not_make_it_another():
    same = make_row("Why?", "So.")
    marked = [make_row("Why?", "So."), make_row("How?", "So."), make_row("How?", "So.")]
    for row, train in zip(marked, (None, None, True), strict=True):
        row["messages"][1]["train"] = train
    train = Dataset.from_list(marked, features=with_train(FEATURES))
    assert reasons(check_dataset(train).rejected) == [(3, "duplicate: the same as row 2")]
    report = check_dataset({"train": train, "test": dataset_of(same)})
    assert reasons(report.rejected) == [
        (1, "leak: the same text as row 1 of test"),
        (3, "duplicate: the same as row 2"),
    ]


@pytest.mark.parametrize("shown", [[], [PICTURES[0]]])
def test_pairs_and_rated_rows_may_answer_one_question_several_times(shown):
    pairs = [make_pair("What?", "A.", worse, shown) for worse in ("B.", "C.", "B.")]
    rated = [make_rated("What?", *answer, shown) for answer in [("A.", True), ("B.", False), ("A.", True)]]
    for rows, features in ((pairs, PAIR_FEATURES), (rated, RATED_FEATURES)):
        report = check_dataset({"train": Dataset.from_list(rows, features=features)})
        assert reasons(report.rejected) == [(3, "duplicate: the same as row 1")] and not report.warnings
        leaked = {name: Dataset.from_list(rows[:1], features=features) for name in ("train", "test")}
        assert check_dataset(leaked).rejected[0]["reason"].startswith("leak: the same")
    prompts = [make_prompt("What?", answer, shown) for answer in ("A.", "B.")]
    report = check_dataset(Dataset.from_list(prompts, features=PROMPT_FEATURES))
    assert report.warnings[0]["reason"].startswith("another answer: row 1")


def test_what_only_the_rejected_side_shows_leaks_too():
    pair = make_pair("What?", "A.", "B.", [PICTURES[0]]) | {"rejected_images": [PICTURES[1]]}
    features = Features({**PAIR_FEATURES, **REJECTED_IMAGES})
    test = Dataset.from_list([make_pair("Why?", "A.", "B.", [PICTURES[1]])], features=PAIR_FEATURES)
    report = check_dataset({"train": Dataset.from_list([pair], features=features), "test": test})
    assert reasons(report.rejected) == [(1, "leak: the same image as row 1 of test")]


def test_of_three_splits_the_last_stays_whole():
    rows = {"train": dataset_of(row_of(0), row_of(1)), "validation": dataset_of(row_of(1), row_of(2)),
            "test": dataset_of(row_of(2), row_of(3))}  # fmt: skip
    report = check_dataset(rows)
    assert [(record["split"], record["reason"]) for record in report.rejected] == [
        ("train", "leak: the same image as row 1 of validation"),
        ("validation", "leak: the same image as row 1 of test"),
    ]
    assert len(report.dataset["test"]) == 2
