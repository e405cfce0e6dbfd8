"""What makes a row unusable: the same for validation, the command line and the collator, in the same words."""

import io
import re

import pytest
from datasets import Dataset, Features
from PIL import Image

from vlmhelpers.batches.conversation import to_answer, to_train
from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.cli import main
from vlmhelpers.data.rows import READER_FEATURES
from vlmhelpers.data.rules import join_problems, row_problems, split_problem
from vlmhelpers.data.schema import (
    FEATURES,
    KINDS,
    REJECTED_IMAGES,
    assistant,
    image_part,
    kind_of,
    make_pair,
    make_prompt,
    make_rated,
    make_row,
    text_part,
    user,
    with_train,
)
from vlmhelpers.data.turns import to_rows


def png(size=(8, 8)):
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return {"path": None, "bytes": buffer.getvalue()}


def turn(role, *parts):
    return {"role": role, "content": list(parts) or None}


def role_of(message):
    return message and message["role"]


def row(*messages, images=()):
    return {"messages": list(messages), "images": list(images)}


# name -> (row, how its reason begins), for rows whose messages or number of images are bad
BAD_MESSAGES = {
    "nothing": (row(), "no answer: the last turn is not the assistant's"),
    "no messages": ({"messages": None, "images": None}, "no answer: the last turn is not the assistant's"),
    "no answer": (row(user("Hi")), "no answer: the last turn is not the assistant's"),
    "a question last": (row(user("Hi"), assistant("Ho"), user("Bye")), "no answer: the last turn is not the assistant"),
    "a blank answer": (row(user("Hi"), assistant(" \n")), "empty answer"),
    "an answer of no parts": (row(user("Hi"), {"role": "assistant", "content": []}), "empty answer"),
    "an empty earlier answer": (row(user("Hi"), assistant(""), user("Why?"), assistant("So.")), "empty answer"),
    "an answer that nobody sees": (row(user("Hi"), assistant("\u200b\ufeff\t")), "empty answer"),
    "no turn before the answer": (row(assistant("Hi")), "nothing to learn: no turn before the answer"),
    "a last answer that is not learned": (
        row(user("Hi"), assistant("Ho"), user("Why?"), assistant("So.") | {"train": False}),
        "its last answer is not learned",
    ),
    "no answer that is learned": (row(user("Hi"), assistant("Ho") | {"train": False}), "nothing to learn: no answer"),
    "an unknown role": (row(user("Hi"), turn("bot", text_part("Hello"))), "unknown role: 'bot'"),
    "no content": (row(user("Hi"), turn("assistant")), "content is no list of parts"),
    "a null turn": (row(None, user("Hi"), assistant("Ho")), "a turn is null"),
    "a null turn last": (row(user("Hi"), assistant("Ho"), None), "a turn is null"),
    "a null part": (row(turn("user", None), assistant("So.")), "a part is null"),
    "a null part in an answer": (row(user("Hi"), turn("assistant", text_part("So."), None)), "a part is null"),
    "no text": (row(user(None), assistant("So.")), "a text part without text"),
    "no text in an answer": (row(user("Hi"), assistant(None)), "a text part without text"),
    "another medium": (row(user("Hi"), turn("assistant", {"type": "audio", "text": ""})), "unknown part: ['audio']"),
    "an image in an answer": (row(user("Hi"), turn("assistant", image_part()), images=[png()]), "image in an answer"),
    "an image in a system turn": (
        row(turn("system", image_part()), user("Hi"), assistant("Ho"), images=[png()]),
        "image in a system turn",
    ),
    "a missing part": (
        row(user("Hi"), assistant("Ho"), images=[png()]),
        "images do not match: 0 image parts, 1 images",
    ),
    "a missing image": (row(user("Hi", 1), assistant("Ho")), "images do not match: 1 image parts, 0 images"),
    "a spare image": (
        make_row("What?", "A bag.", [png()]) | {"images": [png(), png()]},
        "images do not match: 1 image parts, 2 images",
    ),
}
# the same for images that are bad themselves
BAD_IMAGES = {
    "None": (make_row("What?", "A bag.", [None]), "no image: image 1 is NoneType"),
    "a second None": (make_row("What?", "A bag.", [png(), None]), "no image: image 2 is NoneType"),
    "neither path nor bytes": (make_row("What?", "A bag.", [{"path": None, "bytes": None}]), "no image: image 1 is "),
    "a missing file": (make_row("What?", "A bag.", [{"path": "gone.png", "bytes": None}]), "missing file: gone.png"),
    "an empty file": (make_row("What?", "A bag.", [{"path": None, "bytes": b""}]), "empty file: 0 bytes"),
    "a text file": (make_row("What?", "A bag.", [{"path": None, "bytes": b"An image."}]), "not an image: it is text"),
    "a damaged file": (
        make_row("What?", "A bag.", [{"path": None, "bytes": png((64, 64))["bytes"][:-40]}]),
        "truncated or damaged image",
    ),
    "a narrow image": (make_row("What?", "A bag.", [png((401, 2))]), "too narrow: 401 x 2 pixels"),
}
BAD_ROWS = BAD_MESSAGES | BAD_IMAGES
NO_TOKENS = re.compile("(?!)")


def dataset_of(*rows):
    return Dataset.from_list([*rows], features=with_train(FEATURES))


@pytest.mark.parametrize("name", BAD_ROWS)
def test_validation_and_the_collator_refuse_a_bad_row_alike(name):
    bad, reason = BAD_ROWS[name]
    report = check_dataset(dataset_of(make_row("Why?", "So."), bad))
    (record,) = report.rejected
    assert record["row"] == 2 and record["reason"].startswith(reason) and record["remedy"]
    assert report.counts["kept"] == 1 and len(report.dataset) == 1
    with pytest.raises(ValueError) as refused:
        to_train(bad | {"row": 17}, 3, control=NO_TOKENS)
    assert str(refused.value).startswith(f"row 17: {record['reason']}. Remedy: {record['remedy']}")
    with pytest.raises(ValueError, match=r"^row 4 of the batch \('.*'\): "):
        to_train(bad, 3, control=NO_TOKENS)


READ = {"row": 17, "problem": "empty text\nwrite the question", "note": ""}


def test_a_readers_problem_is_one():
    row = make_row("What?", "A bag.") | READ
    report = check_dataset(Dataset.from_list([row], features=Features({**FEATURES, **READER_FEATURES})))
    assert [(found["row"], found["reason"]) for found in report.rejected] == [(17, "empty text")]
    with pytest.raises(ValueError, match="^row 17: empty text. Remedy: write the question"):
        to_train(row, 3, control=NO_TOKENS)


@pytest.mark.parametrize(
    "own",
    [{"problem": "solve x + 1"}, {"problem": 3}, {"row": [1, 2]}, {"row": "a"}, {"note": [1]}, {"note": "n", "row": 3},
     {"problem": "solve x", "note": 3, "row": 1}],
    ids=str,
)  # fmt: skip
def test_a_sources_own_columns_say_nothing_of_the_row_and_stay(own):
    sound, blank = make_row("What?", "A bag."), make_row("Why?", " ")
    rows = Dataset.from_list([row | own for row in (sound, sound, blank)])
    report = check_dataset(rows.cast_column("images", FEATURES["images"]))
    number = own["row"] if isinstance(own.get("row"), int) else None
    reasons = [(found["row"], found["reason"]) for found in report.rejected]
    assert [row for row, _ in reasons] == [number or 2, number or 3]
    assert reasons[1][1] == "empty answer" and reasons[0][1].startswith("duplicate: the same as row")
    assert report.repaired == [] and report.dataset[0].items() >= own.items()
    assert to_train(sound | own, 0, control=NO_TOKENS).messages == sound["messages"]
    assert len(to_rows(report.dataset)) == 1 and repr(report) and report._repr_html_()


@pytest.mark.parametrize("name", BAD_MESSAGES)
def test_the_command_line_refuses_it_too(name, tmp_path, monkeypatch, capsys):
    bad, reason = BAD_MESSAGES[name]
    monkeypatch.setattr("vlmhelpers.read_alpaca", lambda path: dataset_of(make_row("Why?", "So."), bad))
    assert main(["alpaca", "-i", "in.json", "-o", str(tmp_path / "out.jsonl")]) == 1
    listed = capsys.readouterr().err.splitlines()[0]
    assert listed.startswith(f"in.json, row 2: {reason}") and " -> " in listed


@pytest.mark.parametrize("name", [*BAD_MESSAGES, "None", "a second None"])
def test_a_prompt_has_the_same_rules_but_for_its_answer(name):
    bad, reason = BAD_ROWS[name]
    with_question = bad["messages"] and any(role_of(message) == "user" for message in bad["messages"])
    if with_question and reason.startswith(("no answer", "empty answer")):
        assert to_answer(bad, 0, control=NO_TOKENS).messages[-1]["role"] == "user"
    elif with_question and role_of(bad["messages"][-1]) != "assistant":
        with pytest.raises(ValueError, match="Remedy: "):
            to_answer(bad, 0, control=NO_TOKENS)


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([user("Hi"), {"role": "assistant"}], "content is no list of parts"),
        ([user("Hi"), {"content": [text_part("So.")]}], "unknown role: None"),
        ([user("Hi"), {"role": "assistant", "content": "So."}], "content is no list of parts"),
        ([user("Hi"), {"role": "assistant", "content": 5}], "content is no list of parts"),
        ([user("Hi"), turn("assistant", {"text": "So."})], "unknown part: [None]"),
        ([user("Hi"), turn("assistant", {"type": "text", "text": 5})], "a text part without text"),
        ([user("Hi"), turn("assistant", "So.")], "a part is a str"),
        (["Hi", assistant("So.")], "a turn is a str"),
    ],
)
def test_the_collator_refuses_turns_of_other_shapes_that_no_dataset_holds(turns, reason):
    with pytest.raises(ValueError, match=f"^row 1 of the batch .*: {re.escape(reason)}.* Remedy: "):
        to_train(row(*turns), 0, control=NO_TOKENS)
    pair = {"prompt": turns[:1], "chosen": turns[1:], "rejected": [assistant("No.")], "images": []}
    assert row_problems(pair)[0][0].startswith(reason)


def test_a_prompt_of_no_turns_is_refused():
    with pytest.raises(ValueError, match="no question: the row has no turn to answer"):
        to_answer({"messages": None, "images": None}, 0, control=NO_TOKENS)
    with pytest.raises(ValueError, match="a turn is null"):
        to_answer(row(user("Hi"), None), 0, control=NO_TOKENS)


def test_a_sound_row_has_no_problem():
    system = turn("system", text_part("Be brief."))
    for sound in (make_row("Why?", "So."), row(system, user("What?", 1), assistant("A bag."), images=[png()])):
        assert row_problems(sound) == [] and check_dataset(dataset_of(sound)).counts["kept"] == 1
        assert to_train(sound, 0, control=NO_TOKENS).messages[-1] == sound["messages"][-1]


SYSTEM = turn("system", text_part("Be brief."))
PAIR, RATED, PROMPT = make_pair("Why?", "So.", "No."), make_rated("Why?", "So.", True), make_prompt("Why?", "So.")
BAD_ANSWERS = [  # rows of the other kinds, and all of their reasons
    (make_pair("Why?", "So.", " So.\n"), "the same answer: chosen and rejected are equal"),
    (make_pair("Why?", "", "No."), "empty answer (chosen)"),
    (PAIR | {"rejected": []}, "no answer: the last turn is not the assistant's (rejected)"),
    (PAIR | {"prompt": [user("Why?", 1)]}, "images do not match: 1 image parts, 0 images"),
    (PAIR | {"prompt": None}, "no question: the prompt does not end with the user's turn"),
    (PAIR | {"chosen": [user("A?"), assistant("So.")], "rejected": [user("B?"), assistant("No.")], "prompt": []},
     "another prompt: chosen and rejected are asked differently"),
    (make_pair("What?", "So.", "No.", [png()]) | {"rejected_images": [png()] * 2},
     "another number of images on the two sides: 1 and 2"),
    (PAIR | {"rejected": [turn("bot", text_part("No."))]}, "unknown role: 'bot' (rejected)"),
    (PAIR | {"prompt": [turn("bot", text_part("a")), user("Why?")]}, "unknown role: 'bot'"),
    (make_rated("Why?", " ", True), "empty answer"),
    (make_rated("Why?", "So.", None), "no label"),
    (RATED | {"prompt": [SYSTEM]}, "no question: the prompt does not end with the user's turn"),
    (PROMPT | {"prompt": [user("Why?"), assistant("A")]}, "no question: the prompt does not end with the user's turn"),
    (PROMPT | {"images": [png()]}, "images do not match: 0 image parts, 1 images"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "reason"), BAD_ANSWERS)
def test_rows_of_other_kinds_have_rules_for_their_answers(bad, reason):
    kind = kind_of(bad)
    sound = {"pairs": PAIR, "rated": RATED, "prompts": PROMPT}[kind]
    features = Features({**KINDS[kind], **(REJECTED_IMAGES if "rejected_images" in bad else {})})
    rows = [{**dict.fromkeys(features), **one} for one in (sound, bad)]
    report = check_dataset(Dataset.from_list(rows, features=features))
    (record,) = report.rejected
    assert (record["row"], record["reason"]) == (2, reason) and record["remedy"] and report.counts["kept"] == 1


def test_sound_rows_of_other_kinds_have_no_problem():
    shown = make_pair("What?", "A bag.", "A bag.", [png()]) | {"rejected_images": [png((9, 9))]}  # other images decide
    for sound in (PAIR, shown, RATED, PROMPT, make_prompt("Why?", "")):
        assert row_problems(sound) == []


def test_several_problems_come_together():
    bad = make_row("What?", " ", [None]) | {"images": [None, None]}
    assert check_dataset(dataset_of(bad)).rejected[0]["reason"] == (
        "images do not match: 1 image parts, 2 images; no image: image 1 is NoneType; "
        "no image: image 2 is NoneType; empty answer"
    )


def test_problems_are_kept_as_reason_and_remedy():
    assert split_problem(join_problems([("a", "x"), ("b", "y")])) == ("a; b", "x; y")
    assert join_problems([]) == "" and split_problem("") == ("", "")
