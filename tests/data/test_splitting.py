"""Train and test: exact sizes, whole groups, the same every time."""

import random
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from PIL import Image

from vlmhelpers.data.schema import FEATURES, KINDS, make_pair, make_prompt, make_rated, make_row
from vlmhelpers.data.splitting import split


def dataset_of(*shown, **columns):
    """A row for each item of `shown`: a list of image paths, or the text of a row without images."""
    rows = []
    for item in shown:
        question, paths = ("What?", item) if isinstance(item, list) else (item, [])
        rows.append(make_row(question, "A.", [{"path": path, "bytes": None} for path in paths]))
    dataset = Dataset.from_list(rows, features=FEATURES).add_column("row", list(range(1, len(rows) + 1)))
    for name, values in columns.items():
        dataset = dataset.add_column(name, values)
    return dataset


def of_groups(*sizes):
    """Rows of one picture each; the n-th picture is shown sizes[n] times, mixed."""
    shown = [f"{group}.jpg" for group, size in enumerate(sizes) for _ in range(size)]
    random.Random(1).shuffle(shown)
    return dataset_of(*([path] for path in shown), path=shown)


def sizes_of(parts):
    return len(parts["train"]), len(parts["test"])


@pytest.mark.parametrize(
    ("test_size", "expected"), [(1, 1), (7, 7), (19, 19), (0.25, 5), (0.5, 10), (0.01, 1), (0.999, 19), (0.13, 3)]
)
def test_single_rows_are_split_exactly(test_size, expected):
    parts = split(of_groups(*[1] * 20), test_size)
    assert sizes_of(parts) == (20 - expected, expected)
    assert sorted([*parts["train"]["row"], *parts["test"]["row"]]) == list(range(1, 21))


def test_rows_keep_their_order_and_columns():
    parts = split(of_groups(*[1] * 30), 10)
    for part in parts.values():
        assert list(part["row"]) == sorted(part["row"])
        assert part.column_names == ["messages", "images", "row", "path"]


def test_the_same_seed_gives_the_same_rows_and_another_gives_others():
    dataset = of_groups(*[1] * 50)
    assert list(split(dataset, 10, seed=3)["test"]["row"]) == list(split(dataset, 10, seed=3)["test"]["row"])
    chosen = {tuple(split(dataset, 10, seed=seed)["test"]["row"]) for seed in range(5)}
    assert len(chosen) == 5
    assert list(split(dataset, 5, seed=0)["test"]["row"]) == [2, 15, 29, 37, 44]  # on every machine


def test_the_test_rows_come_from_everywhere():
    parts = split(of_groups(*[1] * 1000), 200)
    quarters = [sum(250 * q < row <= 250 * (q + 1) for row in parts["test"]["row"]) for q in range(4)]
    assert min(quarters) > 30


def test_a_picture_is_never_on_both_sides():
    rng = random.Random(0)
    for seed in range(10):
        parts = split(of_groups(*(rng.randint(1, 6) for _ in range(40))), 0.3, seed=seed)
        assert not set(parts["train"]["path"]) & set(parts["test"]["path"])


def test_rows_that_share_one_of_several_pictures_stay_together():
    dataset = dataset_of(["a", "b"], ["b", "c"], ["d"], ["c", "e"], ["f"], ["e", "a"])
    for seed in range(8):
        rows = {tuple(part["row"]) for part in split(dataset, 2, seed=seed).values()}
        assert any({1, 2, 4, 6} <= set(part) for part in rows)


def test_embedded_pictures_are_told_apart_by_their_bytes():
    colors = ["red", "blue", "red", "green", "blue", "red"]
    rows = [make_row("What?", color, [Image.new("RGB", (4, 4), color)]) for color in colors]
    dataset = Dataset.from_list(rows, features=FEATURES).add_column("color", colors)
    for seed in range(8):
        parts = split(dataset, 3, seed=seed)
        assert sizes_of(parts) == (3, 3) and not set(parts["train"]["color"]) & set(parts["test"]["color"])


def test_rows_without_pictures_are_grouped_by_their_text():
    dataset = dataset_of("Why?", "How?", "Why?", ["a.jpg"], "Why?", "Who?")
    for seed in range(8):
        parts = split(dataset, 3, seed=seed)
        assert any({1, 3, 5} <= set(part["row"]) for part in parts.values())
        assert sizes_of(parts) == (3, 3)


def test_rows_of_every_kind_are_grouped_alike():
    paths = [{"path": f"{n % 5}.jpg", "bytes": None} for n in range(20)]
    for kind, make in {"pairs": make_pair, "rated": make_rated, "prompts": make_prompt}.items():
        answers = {"pairs": ("A.", "B."), "rated": ("A.", True), "prompts": ("A.",)}[kind]
        shown = [make("What?", *answers, [path]) for path in paths]
        said = [make(f"What is {n % 5}?", *answers) for n in range(20)]
        for rows in (shown, said):
            parts = split(Dataset.from_list(rows, features=KINDS[kind]).add_column("group", [*range(5)] * 4), 8)
            assert sizes_of(parts) == (12, 8) and not set(parts["train"]["group"]) & set(parts["test"]["group"])


def test_a_picture_that_is_none_does_not_link_rows():
    rows = [make_row(f"What is {i}?", "A.", [None]) for i in range(4)]
    assert sizes_of(split(Dataset.from_list(rows, features=FEATURES), 1)) == (3, 1)


def test_group_by_a_column_or_a_function():
    codes = ["a", "b", "a", "c", "d", "b", "a", "d"]
    dataset = dataset_of(*(f"Question {i}" for i in range(8)), code=codes)
    by_column, by_function = (split(dataset, 3, group_by=by, seed=5) for by in ("code", lambda row: row["code"]))
    assert list(by_column["test"]["row"]) == list(by_function["test"]["row"])
    assert not set(by_column["train"]["code"]) & set(by_column["test"]["code"])
    assert sizes_of(by_column) == (5, 3)
    by_list = split(dataset, 4, group_by=lambda row: [row["row"] % 2])
    assert len({row % 2 for row in by_list["test"]["row"]}) == 1


def test_a_function_gets_images_undecoded():
    seen = []
    split(dataset_of(["gone.jpg"], ["gone too.jpg"]), 1, group_by=lambda row: seen.append(row["images"]) or len(seen))
    assert seen == [[{"bytes": None, "path": "gone.jpg"}], [{"bytes": None, "path": "gone too.jpg"}]]


@pytest.mark.slow
def test_with_groups_the_test_set_lacks_less_than_the_smallest_group_left_for_training():
    rng = random.Random(0)
    for _ in range(60):
        sizes = [rng.choice([1, 2, 2, 3, 5, 8, 13]) for _ in range(rng.randint(2, 8))]
        wanted = rng.randint(1, sum(sizes) - 1)
        parts = split(of_groups(*sizes), wanted, seed=rng.random())
        train, test = sizes_of(parts)
        left = Counter(parts["train"]["path"])
        assert train and test and not set(left) & set(parts["test"]["path"])
        assert 0 <= wanted - test < min(left.values()) or test == min(sizes) > wanted, (sizes, wanted)


@pytest.mark.slow
def test_many_groups_are_split_as_nearly():
    train, test = sizes_of(split(of_groups(*[3] * 2500, *[7] * 500), 4321))
    assert train + test == 11000 and 4321 - 3 < test <= 4321


@pytest.mark.parametrize("test_size", [0, 10, 11, -1, 0.0, 1.0, 1.5, True, "3", None])
def test_a_size_out_of_range_is_an_error(test_size):
    with pytest.raises(ValueError, match="test_size is .*from 1 to 9"):
        split(of_groups(*[1] * 10), test_size)


def test_an_unknown_column_is_an_error_with_the_names():
    with pytest.raises(ValueError, match="no column 'code'; there are messages, images, row, path"):
        split(of_groups(1, 1), 1, group_by="code")


def test_one_group_cannot_be_split():
    with pytest.raises(ValueError, match="all 5 rows are one group by their images and texts.*two groups"):
        split(of_groups(5), 2)
    with pytest.raises(ValueError, match="all 2 rows are one group by 'code'"):
        split(dataset_of("a", "b", code=["x", "x"]), 1, group_by="code")


@pytest.mark.parametrize(
    "test_size", [np.int64(2), np.uint8(2), np.float32(0.4), Fraction(2, 5), Decimal("0.4"), np.array(2), 0.4], ids=repr
)
@pytest.mark.parametrize("seed", [np.int64(3), np.array(3), torch.tensor(3)], ids=repr)
def test_a_size_and_a_seed_may_be_numbers_of_any_library(test_size, seed, rows_of):
    dataset = rows_of([(f"q{i}", "a", []) for i in range(5)])
    wanted = split(dataset, 2, seed=3)
    found = split([*dataset], test_size, seed=seed)
    assert {side: rows["messages"] for side, rows in found.items()} == {
        s: rows["messages"] for s, rows in wanted.items()
    }


@pytest.mark.parametrize(
    "test_size", [np.True_, np.float64("nan"), np.int64(-1), np.array([2]), Fraction(5, 2), "2", 2.0]
)
def test_what_is_no_size_is_an_error(test_size, rows_of):
    with pytest.raises(ValueError, match="a number of rows from 1 to 4 or a share in 0.0 to 1.0"):
        split(rows_of([(f"q{i}", "a", []) for i in range(5)]), test_size)


def test_what_cannot_be_split_is_said(rows_of):
    dataset = rows_of([(f"q{i}", "a", []) for i in range(2)])
    with pytest.raises(ValueError, match="1 rows cannot be split: give at least 2"):
        split(dataset.select([0]), 1)
    with pytest.raises(ValueError, match=r"give one of them, as dataset\['all'\]"):
        split(DatasetDict({"all": dataset}), 1)
    with pytest.raises(ValueError, match="group_by is 3: give a column's name, or a function"):
        split(dataset, 1, group_by=3)
    sides = split(dataset, 1, group_by=lambda row: (len(row["messages"]), [row["messages"][0]["content"][0]["text"]]))
    assert [len(rows) for rows in sides.values()] == [1, 1]
