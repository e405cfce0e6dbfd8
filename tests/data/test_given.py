"""Rows and answers as people give them to functions."""

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, List
from datasets import Image as ImageFeature
from PIL import Image

from vlmhelpers.data.given import given_rows, given_texts, row_indices
from vlmhelpers.data.schema import FEATURES, PAIR_FEATURES, assistant, make_pair, make_row, user, with_train
from vlmhelpers.data.splitting import split

ROWS = [make_row(f"q{i}", "a", [Image.new("RGB", (8 + i, 6), "red")]) for i in range(3)]


@pytest.fixture(scope="module")
def dataset():
    return Dataset.from_list(ROWS, features=FEATURES)


def shape_of(rows):
    return [(row["messages"][0]["content"][1]["text"], [image.size for image in row["images"]]) for row in rows]


@pytest.mark.parametrize("form", ["torch", "numpy", "pandas", "arrow", "columns", "undecoded", "list", "generator"])
def test_rows_in_any_form_are_the_same_rows(dataset, form):
    given = {
        "columns": lambda: dataset.with_format("torch", columns=["images"]),
        "undecoded": lambda: dataset.cast_column("images", List(ImageFeature(decode=False))),
        "list": lambda: ROWS,
        "generator": lambda: iter(ROWS),
    }.get(form, lambda: dataset.with_format(form))
    assert shape_of(given_rows(given())) == shape_of(dataset)


def test_a_row_an_empty_list_and_rows_with_more_columns(dataset):
    assert shape_of(given_rows(ROWS[0])) == shape_of(dataset.select([0]))
    assert len(given_rows([])) == len(given_rows([], "pairs")) == 0
    assert given_rows([row | {"color": "red"} for row in ROWS])["color"] == ["red"] * 3
    assert given_rows([{"messages": ROWS[0]["messages"][:1], "images": None}])[0]["images"] == []


def test_rows_say_what_is_not_learned():
    said = {"messages": [user("a"), assistant("b") | {"train": False}, user("c"), assistant("d")], "images": []}
    rows = given_rows([make_row("q", "a"), said])
    assert rows.features == with_train(FEATURES)
    assert [message["train"] for message in rows[1]["messages"]] == [None, False, None, None]
    assert given_rows([make_row("q", "a")]).features == FEATURES


@pytest.mark.parametrize("form", ["one", "array", "arrays", "tuple"])
def test_images_of_a_row_in_other_forms(form):
    (image,) = ROWS[0]["images"]
    forms = {"one": image, "array": np.array(image)[None], "arrays": [np.array(image)], "tuple": (image,)}
    (row,) = given_rows([ROWS[0] | {"images": forms[form]}])
    assert [found.size for found in row["images"]] == [image.size]
    assert row["images"][0].getpixel((0, 0)) == image.getpixel((0, 0))


def test_columns_of_mixed_values_which_nobody_reads_are_left_out():
    first, second = (row | {"id": name, "color": "red"} for row, name in zip(ROWS, (1, "x"), strict=False))
    rows = given_rows([first, second])
    assert rows.column_names == ["messages", "images", "color"] and shape_of(rows) == shape_of([first, second])


def test_a_transform_stays(dataset):
    small = dataset.with_transform(lambda batch: batch | {"images": [[Image.new("L", (1, 1))]] * len(batch["images"])})
    assert given_rows(small)[0]["images"][0].size == (1, 1)


@pytest.mark.parametrize(
    "rows, kind, message",
    [
        (None, "messages", "a NoneType is given as rows: give a Dataset"),
        ("a.jsonl", "messages", "a str is given as rows"),
        (pd.DataFrame(ROWS), "messages", "a DataFrame is given as rows: .*from_pandas"),
        (["a"], "messages", "a row is a str: make rows with vlm.data.make_row"),
        ([None], None, "a row is a NoneType"),
        ([{"text": "a"}], None, "no rows of a known kind"),
        ([{"messages": [{"role": "user", "content": "q"}]}], "messages", "not as make_row makes them .*read_dataset"),
        ([make_pair("q", "a", "b")], "messages", r"the rows are pairs, .* vlm.data.to_rows\(dataset\)"),
        (ROWS, "pairs", "the rows are rows of messages, and pairs are needed: vlm.data.make_pair"),
    ],
)
def test_what_are_no_rows_is_said_with_a_remedy(rows, kind, message):
    with pytest.raises(ValueError, match=message):
        given_rows(rows, kind)


def test_splits_streams_and_texts_in_place_of_parts_are_refused(dataset):
    with pytest.raises(ValueError, match=r"the splits train, test: give one of them, as dataset\['train'\]"):
        given_rows(DatasetDict({"train": dataset, "test": dataset}))
    with pytest.raises(ValueError, match=r"list\(stream.take\(100\)\)"):
        given_rows(dataset.to_iterable_dataset())
    with pytest.raises(ValueError, match="read_dataset"):
        given_rows(Dataset.from_list([{"messages": [{"role": "user", "content": "q"}]}]))


@pytest.mark.parametrize("null", [[None], [{"role": "user", "content": [None]}]], ids=["turn", "part"])
def test_a_null_turn_or_part_is_named_by_its_row(null):
    rows = [*ROWS, {"messages": null, "images": []}]
    for given in (rows, Dataset.from_list(rows, features=FEATURES)):
        for use in (given_rows, lambda rows: split(rows, 1)):
            with pytest.raises(ValueError, match=r"row 4: a (turn|part) is null: .* check_dataset rejects"):
                use(given)
    assert len(given_rows(Dataset.from_list(rows, features=FEATURES).select(range(3)))) == 3
    pair = make_pair("q", "a", "b") | {"rejected": null}
    with pytest.raises(ValueError, match=r"row 1: a (turn|part) is null"):
        given_rows([pair], "pairs")


@pytest.mark.parametrize("texts", [["a", "b"], ("a", "b"), iter("ab"), np.array(["a", "b"])], ids=type)
def test_texts_of_any_sequence(texts):
    assert given_texts(texts, range(2)) == ["a", "b"]


@pytest.mark.parametrize(
    "texts, message",
    [
        ("ab", "a str is no list of texts"),
        ({"a", "b"}, "a set is no list of texts"),
        (pd.DataFrame([["a", "b"]]), "a DataFrame is no list of texts"),
        (None, "a NoneType is no list of texts"),
        ({"a": "b", "c": "d"}, "a dict is no list of texts"),
        (["a"], "1 answers for 2 rows: give one per row"),
        (["a", None], 'such as that of row 1 from 0, None: give ""'),
        ([1, 2], "2 answers are no texts"),
    ],
)
def test_other_answers_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        given_texts(texts, range(2))


@pytest.mark.parametrize(
    "rows, indices",
    [
        (range(8), [0, 1, 2]),
        (range(-1, 1), [2, 0]),
        (slice(1, None), [1, 2]),
        (np.arange(2), [0, 1]),
        ([-1, np.int64(0)], [2, 0]),
        (1, [1]),
        ([], []),
    ],
    ids=str,
)
def test_indices_of_rows(rows, indices):
    assert row_indices(rows, 3) == indices


@pytest.mark.parametrize("rows", [[3], [-4], [0.0], ["0"], [True], None], ids=str)
def test_indices_of_no_row_are_refused(rows):
    with pytest.raises(ValueError, match=r"there is no row .*: give whole numbers from 0 to 2, or range\(n\)"):
        row_indices(rows, 3)


def test_an_empty_list_of_pairs_has_their_features():
    assert given_rows([], "pairs").features == PAIR_FEATURES
