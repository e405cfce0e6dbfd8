"""Conversations of ShareGPT and LLaVA, texts with `<image>`, and rows that this reader does not take."""

import json
import os
from functools import partial

import pytest
from jsonl_rows import reason_of, undecoded, write_and_read
from PIL import Image as Pictures

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.jsonl_reader import read_jsonl, write_jsonl
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import assistant, image_part, text_part, user

LLAVA = [
    {
        "id": "000000033471",
        "image": "train/bus.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
            {"from": "gpt", "value": "White and red."},
            {"from": "human", "value": "Is it moving?"},
            {"from": "gpt", "value": "It is parked."},
        ],
    },
    {
        "id": "000000052846",
        "image": "train/cat.jpg",
        "conversations": [
            {"from": "human", "value": "Where is the cat?\n<image>"},
            {"from": "gpt", "value": "On a sofa."},
        ],
    },
    {"id": "wgByO4Y", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
]
SHAREGPT = """\
{"conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}, \
{"from": "gpt", "value": "Hello!"}], "source": "chat"}
{"conversations": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A bag."}], \
"system": " Look. "}
"""
QUESTION = {"from": "human", "value": "What?"}
ANSWER = {"from": "gpt", "value": "A bag."}


@pytest.fixture
def folder(tmp_path):
    """A folder with four pictures, each in a color of its own."""
    for name, color in {"1.jpg": "red", "2.jpg": "blue", "train/bus.jpg": "white", "train/cat.jpg": "black"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Pictures.new("RGB", (8, 8), color).save(tmp_path / name)
    return tmp_path


@pytest.fixture
def read(folder):
    """read_jsonl of objects, with images undecoded."""

    return partial(write_and_read, folder)


def names(row):
    return [image and os.path.basename(image["path"]) for image in row["images"]]


def talk(*texts, **fields):
    """A conversation whose turns are the user's and the model's, in turns."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"conversations": turns} | fields


def chat(*texts, **fields):
    """The same as messages."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": turns} | fields


def contents(row):
    """The contents of the user's turns: the texts, and None for an image."""
    turns = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return [[part["text"] for part in turn] for turn in turns]


# Conversations


def test_a_llava_file(folder):
    (folder / "llava.json").write_text(json.dumps(LLAVA, indent=2))
    dataset = undecoded(read_jsonl(folder / "llava.json"))
    first, second, third = dataset
    assert first["messages"] == [
        user("What are the colors of the bus?", images=1),
        assistant("White and red."),
        user("Is it moving?"),
        assistant("It is parked."),
    ]
    assert second["messages"][0]["content"] == [text_part("Where is the cat?"), image_part()]
    assert third["messages"] == [user("Why?"), assistant("So.")]
    assert [names(row) for row in dataset] == [["bus.jpg"], ["cat.jpg"], []]
    assert dataset["id"] == ["000000033471", "000000052846", "wgByO4Y"] and not any(dataset["note"])
    assert check_dataset(dataset).counts["kept"] == 3


def test_a_sharegpt_file(folder):
    (folder / "sharegpt.jsonl").write_text(SHAREGPT)
    dataset = read_jsonl(folder / "sharegpt.jsonl")
    assert dataset[0]["messages"] == [
        {"role": "system", "content": [text_part("Be kind.")]},
        user("Hi"),
        assistant("Hello!"),
    ]
    assert dataset[1]["messages"] == [
        {"role": "system", "content": [text_part("Look.")]},
        user("What?"),
        assistant("A bag."),
    ]
    assert dataset["source"] == ["chat", None] and json.loads(dataset[0]["conversations"])[1]["value"] == "Hi"
    assert check_dataset(dataset).counts["kept"] == 2


@pytest.mark.parametrize(
    ("written", "role"),
    [("human", "user"), ("user", "user"), ("gpt", "assistant"), ("assistant", "assistant"), ("model", "assistant"),
     ("bard", "assistant"), ("system", "system")],
)  # fmt: skip
@pytest.mark.parametrize("keys", [("from", "value"), ("role", "content")])
def test_every_role_has_its_name_in_the_schema(read, written, role, keys):
    row = read({"conversations": [dict(zip(keys, (written, "Hi"), strict=True))]})[0]
    assert row["messages"] == [{"role": role, "content": [text_part("Hi")]}] and row["problem"] == ""


def test_all_forms_may_mix_and_are_written_as_messages(read, folder):
    fields = {"text": "Which?", "image": "2.jpg", "response": "This one."}
    dataset = read(fields, talk("<image>\nWhat?", "A bag.", image="1.jpg"), chat("Why?", "So."), LLAVA[2])
    assert not any(dataset["problem"]) and [names(row) for row in dataset] == [["2.jpg"], ["1.jpg"], [], []]
    write_jsonl(dataset, folder / "out.jsonl")
    again = undecoded(read_jsonl(folder / "out.jsonl"))
    assert again[:]["messages"] == dataset[:]["messages"] and again[:]["images"] == dataset[:]["images"]


def test_a_conversation_may_hold_parts(read):
    content = [{"type": "text", "text": "What?"}, {"type": "image"}]
    row = read({"conversations": [{"role": "user", "content": content}, ANSWER], "image": "1.jpg"})[0]
    assert row["messages"] == [{"role": "user", "content": [text_part("What?"), image_part()]}, assistant("A bag.")]
    assert (names(row), row["problem"]) == (["1.jpg"], "")


def test_the_image_field_of_a_conversation_can_be_named(read):
    row = read(talk("<image>What?", "A bag.", picture="1.jpg"), image_field="picture")[0]
    assert (names(row), contents(row)) == (["1.jpg"], [[None, "What?"]])


# Placeholders


@pytest.mark.parametrize("form", [talk, chat])
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<image>\nWhat?", [None, "What?"]),
        ("<image>What?", [None, "What?"]),
        ("<image> What?", [None, " What?"]),
        ("What?\n<image>", ["What?", None]),
        ("What?\r\n<image>\r\n", ["What?", None]),
        ("This\n<image>\nis what?", ["This", None, "is what?"]),
        ("<image>\n\nWhat?\n", [None, "\nWhat?\n"]),
        ("<image>", [None]),
        ("\n<image>\n", [None]),
    ],
)
def test_a_placeholder_takes_the_newline_next_to_it_along(read, form, text, content):
    row = read(form(text, "A bag.", image="1.jpg"))[0]
    assert contents(row) == [content] and (names(row), row["problem"], row["note"]) == (["1.jpg"], "", "")


@pytest.mark.parametrize("form", [talk, chat])
@pytest.mark.parametrize("field", ["image", "images"])
def test_images_follow_the_order_of_the_placeholders(read, form, field):
    texts = ["<image>\n<image>\nWhich?", "None.", "Or <image>?", "Yes."]
    row = read(form(*texts, **{field: ["2.jpg", "1.jpg", "train/cat.jpg"]}))[0]
    assert contents(row) == [[None, None, "Which?"], ["Or ", None, "?"]]
    assert (names(row), row["problem"]) == (["2.jpg", "1.jpg", "cat.jpg"], "")


@pytest.mark.parametrize("form", [talk, chat])
@pytest.mark.parametrize(
    ("texts", "images", "numbers"),
    [
        (["<image>\nWhat?", "A bag."], ["1.jpg", "2.jpg"], "1 <image> in the user's texts, 2 images"),
        (["<image><image>What?", "A bag."], ["1.jpg"], "2 <image> in the user's texts, 1 images"),
        (["What?", "<image>"], ["1.jpg"], "0 <image> in the user's texts, 1 images"),
        ([], ["1.jpg"], "0 <image> in the user's texts, 1 images"),
    ],
)
def test_other_numbers_of_placeholders_and_images_are_a_problem_that_names_both(read, form, texts, images, numbers):
    dataset = read(LLAVA[2], form(*texts, images=images), LLAVA[2])
    assert [reason_of(row) for row in dataset] == ["", f"images do not match: {numbers}", ""]
    assert "once for each image" in dataset[1]["problem"] and names(dataset[1]) == images


@pytest.mark.parametrize("form", [talk, chat])
def test_images_without_any_placeholder_come_before_the_first_question(read, form):
    row = read(form("Which?", "None.", "Why?", "So.", images=["1.jpg", "2.jpg"]))[0]
    assert contents(row) == [[None, None, "Which?"], ["Why?"]] and row["problem"] == ""
    assert row["note"] == "no <image> in the texts: the images come before the first question"


@pytest.mark.parametrize("form", [talk, chat])
@pytest.mark.parametrize("images", [{}, {"image": []}])
def test_a_placeholder_in_a_row_without_images_is_text(read, form, images):
    dataset = read(form("What does <image>\nmean?", "An <image>.", **images))
    assert dataset[0]["messages"] == [user("What does <image>\nmean?"), assistant("An <image>.")]
    assert (dataset[0]["note"], dataset[0]["problem"]) == ("<image> taken as text: the row has no images", "")
    assert check_dataset(dataset).counts["kept"] == 1


@pytest.mark.parametrize("form", [talk, chat])
@pytest.mark.parametrize("image", [None, ""])
def test_a_placeholder_whose_image_is_empty_is_a_problem(read, form, image):
    dataset = read(form("<image>\nWhat?", "A bag.", image=image), form("What?", "An <image>.", image=image))
    assert reason_of(dataset[0]) == "an image is missing: image is empty, and a text has <image>"
    assert (dataset[1]["note"], dataset[1]["problem"]) == ("<image> taken as text: the row has no images", "")


def test_a_placeholder_in_an_answer_or_a_system_text_is_text(read):
    row = read(talk("<image>\nWhat?", "An <image>.", image="1.jpg", system="See <image>"))[0]
    assert row["messages"][2] == assistant("An <image>.") and row["messages"][0]["content"] == [
        text_part("See <image>")
    ]
    assert (row["note"], row["problem"]) == ("<image> taken as text: it is not the user's", "")


def test_a_placeholder_beside_a_part_is_its_double(read):
    parts = [{"type": "image"}, {"type": "text", "text": "<image>\nWhat?"}]
    messages = [{"role": "user", "content": parts}, assistant("A bag.")]
    row = read({"messages": messages, "images": "1.jpg"})[0]
    assert contents(row) == [[None, "What?"]] and names(row) == ["1.jpg"]
    assert (row["note"], row["problem"]) == ("<image> left out of the texts: the parts say where the images stand", "")
    row = read({"messages": messages, "images": "1.jpg", "image": "2.jpg"})[0]
    assert reason_of(row) == "images in both image and images"


@pytest.mark.parametrize("text", ["<image>\nWhat?", "<image>What?", "What?\n<image>", "<image>"])
def test_a_placeholder_beside_a_part_with_its_own_image_is_its_double(read, text):
    parts = [{"type": "image_url", "image_url": {"url": "1.jpg"}}, {"type": "text", "text": text}]
    row = read({"messages": [{"role": "user", "content": parts}, assistant("A bag.")]})[0]
    assert contents(row) == [[None, *(["What?"] if "What?" in text else [])]] and names(row) == ["1.jpg"]
    assert (row["note"], row["problem"]) == ("<image> left out of the texts: the parts say where the images stand", "")


def test_placeholders_beside_another_number_of_parts_are_text(read):
    parts = [{"type": "image", "image": "1.jpg"}, {"type": "text", "text": "<image> or <image>?"}]
    row = read({"messages": [{"role": "user", "content": parts}, assistant("A bag.")]})[0]
    assert contents(row) == [[None, "<image> or <image>?"]] and names(row) == ["1.jpg"]
    assert row["note"] == "<image> taken as text: 2 in the user's texts, beside 1 image parts"


def test_the_images_of_a_message_may_stand_in_it_twice(read):
    asked = {"role": "user", "content": "What?", "image": "1.jpg", "images": ["1.jpg"]}
    in_part = {
        "role": "user",
        "content": [{"type": "image", "image": "1.jpg"}, text_part("What?")],
        "images": ["1.jpg"],
    }
    for message in (asked, in_part):
        row = read({"messages": [message, assistant("A bag.")]})[0]
        assert (contents(row), names(row), row["problem"]) == ([[None, "What?"]], ["1.jpg"], "")
    row = read({"messages": [asked | {"images": ["2.jpg"]}, assistant("A bag.")]})[0]
    assert reason_of(row) == "images in both images and image of a message"


def test_messages_of_an_unknown_role_are_a_problem(read):
    dataset = read(LLAVA[2], {"messages": [{"role": "narrator", "content": "<image>What?"}], "images": "1.jpg"})
    assert dataset["problem"][0] == "" and reason_of(dataset[1]).startswith("unknown role: 'narrator'")


# Bad rows


def with_turn(role, **fields):
    return {"conversations": [QUESTION, {"from": role, "value": "{}"}, ANSWER]} | fields


@pytest.mark.parametrize(
    ("value", "reason", "remedy"),
    [
        ({"conversations": "What?"}, "conversations is no list of messages", 'write [{"from": "human"'),
        ({"conversations": ["What?"]}, "conversations is no list of messages", 'write [{"from": "human"'),
        ({"conversations": [{"value": "What?"}, ANSWER]}, "a message without a role", 'write [{"from": "human"'),
        ({"conversations": [QUESTION, {"from": "gpt"}]}, "content is no text and no list of parts", "write a text"),
        (with_turn("narrator"), "unknown role: 'narrator'", "human, user, gpt, assistant, model, bard"),
        (with_turn("narrator", image="1.jpg"), "unknown role: 'narrator'", "use one of human"),
        (with_turn("function_call"), "a tool's turn: 'function_call'", "leave the row out"),
        (with_turn("observation"), "a tool's turn: 'observation'", "leave the row out"),
        (talk("What?", "A bag.", image=5), "no image path in image: 5", "write the image's path"),
        (talk("What?", "A bag.", image="../1.jpg"), "path leaves the image root: '../1.jpg'", "move the image"),
        (talk("What?", "A bag.", image="1.jpg", images="2.jpg"), "images in both image and images", "keep one"),
        (talk("What?", "A bag.", video="1.mp4"), "video: only images are read", "leave the row out"),
        (talk("<image><image>?", "A bag.", image="1.jpg", system=[1]), "system is a list, not text", "write a text"),
        (
            {"conversations": [{"from": "system", "value": "Look."}, QUESTION, ANSWER], "system": "Be kind."},
            "two system texts: a field and the first turn",
            "keep one",
        ),
        ({"conversations": None, "image": "1.jpg"}, "no field 'text'; no field 'response'", "add it"),
    ],
)  # fmt: skip
def test_a_bad_conversation_keeps_its_place_and_says_what_helps(read, value, reason, remedy):
    dataset = read(LLAVA[0], value, LLAVA[2])
    assert [reason_of(row) for row in dataset] == ["", reason, ""]
    assert remedy in split_problem(dataset[1]["problem"])[1]
    report = check_dataset(dataset)
    assert (report.counts["read"], report.counts["kept"], [r["row"] for r in report.rejected]) == (3, 2, [2])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (talk("What?"), "no answer"),
        (talk(), "no answer"),
        (talk("What?", " "), "empty answer"),
        (talk("<image>\nWhat?", "A bag.", image="gone.jpg"), "missing file"),
    ],
)
def test_validation_judges_conversations_that_have_the_form(read, value, reason):
    dataset = read(LLAVA[2], value)
    assert dataset["problem"] == ["", ""]
    (record,) = check_dataset(dataset).rejected
    assert record["row"] == 2 and record["reason"].startswith(reason)


# Preference rows

PAIR = {"chosen": "A bag.", "rejected": "A cat."}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "What?"} | PAIR,
        {"text": "What?", "response": ""} | PAIR,
        talk("What?") | PAIR,
        chat("What?") | PAIR,
        {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, ANSWER]},
    ],
)
def test_a_preference_row_is_not_read(read, value):
    dataset = read(value, LLAVA[2])
    assert [reason_of(row).partition(":")[0] for row in dataset] == ["preference row", ""]
    assert "read it with vlmhelpers.data.read_preferences" in dataset[0]["problem"] and dataset[0]["chosen"]
    assert check_dataset(dataset).rejected[0]["row"] == 1


@pytest.mark.parametrize(
    "form", [talk("What?", "A bag."), chat("What?", "A bag."), {"text": "What?", "response": "A bag."}]
)
def test_a_preference_row_with_an_answer_is_read_for_that(read, form):
    row = read(form | PAIR)[0]
    assert row["messages"] == [user("What?"), assistant("A bag.")] and row["problem"] == ""


def test_what_was_chosen_can_be_named_as_the_answer(read):
    row = read({"prompt": "What?"} | PAIR, text_field="prompt", response_field="chosen")[0]
    assert row["messages"] == [user("What?"), assistant("A bag.")] and row["problem"] == ""


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (chat("What?", "A bag.", system={"note": "Look."}), "system is no text"),
        ({"messages": [{"role": "user", "content": "What?", "value": "Why?"}, ANSWER]}, "two contents of one message"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "1.jpg", "url": "2.jpg"}]}, ANSWER]},
            "an image part that names two images",
        ),
    ],
)
def test_of_two_values_none_is_dropped_in_silence(read, value, reason):
    assert reason_of(read(value)[0]).startswith(reason)
