"""Rows made from rows: every answer gets a row of its own, a prompt gets an instruction, and nothing else changes."""

import pytest
from datasets import Dataset, Features, Value

from vlmhelpers.data.schema import (
    FEATURES,
    KINDS,
    REJECTED_IMAGES,
    answer_of,
    assistant,
    make_pair,
    make_prompt,
    make_rated,
    make_row,
    message_text,
    text_part,
    user,
)
from vlmhelpers.data.turns import one_answer_per_row, prompted, split_thinking, to_rated, to_rows, with_system

SYSTEM = {"role": "system", "content": [text_part("Be brief.")]}


def dataset_of(*rows):
    features = Features({**FEATURES, "row": Value("int64"), "shop": Value("string")})
    return Dataset.from_list([{"shop": f"s{n}", **row, "row": n} for n, row in enumerate(rows, 1)], features=features)


def stored(dataset):
    """The rows as they are stored, pictures undecoded."""
    return dataset.with_format("arrow")[:].to_pylist()


@pytest.fixture
def talk(tmp_path):
    """A row of three answers with images in its first and third question; the image files do not exist."""
    paths = [{"path": str(tmp_path / f"{i}.png"), "bytes": None} for i in range(3)]
    first, second = [user("Which?", 2), assistant("Both.")], [user("Why?"), assistant("So.")]
    third = [user("And this?", 1), assistant("No."), user("Sure?")]
    return {"messages": [SYSTEM, *first, *second, *third], "images": paths}


def test_every_answer_ends_a_row_with_the_images_of_its_turns(talk):
    dataset = dataset_of(talk, make_row("Hello", "Hi."))
    whole, single = stored(dataset)
    cut = one_answer_per_row(dataset)
    assert cut.features == dataset.features
    expected = [(3, 2), (5, 2), (7, 3)]  # turns and images
    rows = [whole | {"messages": whole["messages"][:n], "images": talk["images"][:k]} for n, k in expected]
    assert stored(cut) == [*rows, single]


@pytest.mark.parametrize(
    "row",
    [
        make_row("Hello", "Hi."),
        {"messages": [user("Hello"), assistant("Hi."), user("Bye")], "images": []},
        {"messages": [user("Hello")], "images": []},
        {"messages": None, "images": None},
        {"messages": [user("What?", 1), assistant("A."), user("And?"), assistant("B.")], "images": []},
    ],
    ids=["one answer", "a question at the end", "no answer", "nothing", "images that do not match"],
)
def test_other_rows_stay_as_they_are(row):
    dataset = dataset_of(row)
    assert stored(one_answer_per_row(dataset)) == stored(dataset)


def test_text_rows_without_an_images_column_are_cut_too():
    row = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    cut = one_answer_per_row(Dataset.from_list([row]))
    assert cut[:]["messages"] == [row["messages"][:2], row["messages"]]


def test_a_transform_stays_in_place(talk, picture):
    dataset = dataset_of(talk | {"images": [picture] * 3})
    shown = dataset.with_transform(lambda batch: {"sizes": [len(images) for images in batch["images"]]})
    assert one_answer_per_row(shown)[:] == {"sizes": [2, 2, 3]}
    plain = one_answer_per_row(dataset)
    assert plain[0]["images"][1].size == picture.size and plain[:]["row"] == [1, 1, 1]


def test_a_prompted_row_begins_with_the_instruction(rows_of, picture):
    dataset = rows_of([("What is it?", "a mug", [picture]), ("Say hi.", "hi", [])])
    asked = prompted(dataset, "Answer in one line.", examples=["a hat", "a bag"])
    prompt = message_text(asked[0]["messages"][0])
    assert prompt == "Answer in one line.\nExamples of answers:\na hat\na bag\n\nWhat is it?"
    assert [part["type"] for part in asked[0]["messages"][0]["content"]] == ["image", "text", "text"]
    assert message_text(prompted(dataset, "Be brief.")[1]["messages"][0]) == "Be brief.\n\nSay hi."
    assert answer_of(asked[1]) == "hi" and asked.features == dataset.features
    assert asked[0]["images"][0].tobytes() == dataset[0]["images"][0].tobytes()
    assert message_text(dataset[0]["messages"][0]) == "What is it?"  # the given rows stay


@pytest.mark.parametrize(
    "kind, row",
    [
        ("messages", make_row("What?", "Good.")),
        ("pairs", make_pair("What?", "Good.", "Bad.")),
        ("rated", make_rated("What?", "Good.", True)),
        ("prompts", make_prompt("What?", "Good.")),
    ],
)
def test_rows_of_every_kind_become_messages_with_the_good_answer(kind, row, picture):
    prompt = "messages" if kind == "messages" else "prompt"
    shown = row | {"images": [picture], prompt: [user("What?", 1), *row[prompt][1:]]}
    rows = [row | {"row": 3, "shop": "s"}, shown | {"row": 4, "shop": "s"}]
    rows += [make_rated("What?", "Bad.", False) | {"row": 5, "shop": "s"}] if kind == "rated" else []
    features = Features({**KINDS[kind], "row": Value("int64"), "shop": Value("string")})
    made = to_rows(Dataset.from_list(rows, features=features))
    assert made.features == Features({**FEATURES, "row": Value("int64")}) and made["row"][:] == [3, 4]
    assert made["messages"][:] == [[user("What?", n), assistant("Good.")] for n in (0, 1)]
    assert made[1]["images"][0].tobytes() == picture.tobytes()


def test_pairs_are_cut_into_rated_rows_each_side_with_its_own_image(picture):
    pair = make_pair("What?", "Good.", "Bad.", [picture])
    other = picture.rotate(180)
    features = Features({**KINDS["pairs"], **REJECTED_IMAGES, "row": Value("int64")})
    rows = [pair | {"rejected_images": own, "row": row} for own, row in ((None, 3), ([other], 4))]
    rated = to_rated(Dataset.from_list(rows, features=features))
    assert rated.features == Features({**KINDS["rated"], "row": Value("int64")})
    assert rated["row"][:] == [3, 3, 4, 4] and rated["label"][:] == [True, False] * 2
    assert rated["completion"][:] == [[assistant("Good.")], [assistant("Bad.")]] * 2
    shown = [images[0].tobytes() for images in rated["images"]]
    assert shown == [picture.tobytes()] * 3 + [other.tobytes()] and picture.tobytes() != other.tobytes()
    with pytest.raises(ValueError, match="these rows are messages"):
        to_rated(Dataset.from_list([make_row("What?", "Good.")], features=FEATURES))


def test_rows_of_no_kind_are_an_error_that_names_the_columns():
    with pytest.raises(ValueError, match="columns prompt, chosen. Expected are .*pairs: prompt, chosen, rejected"):
        to_rows(Dataset.from_list([{"prompt": [], "chosen": []}]))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("<think>\nI look.\n</think>\n\nA bag.\n", ("I look.", "A bag.")),
        ("I look.\n</think>\n\nA bag.", ("I look.", "A bag.")),
        (" <think>\n\n</think>\n\nA bag.", ("", "A bag.")),
        ("</think>A bag.", ("", "A bag.")),
        (" A bag. ", ("", "A bag.")),
        ("<think> I look and", ("I look and", "")),
        ("Write <think> first.", ("", "Write <think> first.")),
        ("<think>a</think>b</think>c", ("a", "b</think>c")),
        ("", ("", "")),
    ],
)
def test_reasoning_and_answer_are_told_apart(text, expected):
    assert split_thinking(text) == expected


def test_a_system_prompt_takes_the_place_of_the_rows_own():
    turns = [user("What?"), assistant("Good.")]
    dataset = dataset_of({"messages": turns, "images": []}, {"messages": [SYSTEM, *turns], "images": []})
    other = {"role": "system", "content": [text_part("Be long.")]}
    assert with_system(dataset, "Be long.")["messages"][:] == [[other, *turns]] * 2
