"""Pairs, rated answers and prompts: every form that other programs write gives the same row, and nothing is lost."""

import csv
import json
import os

import pytest
from jsonl_rows import reason_of, undecoded
from PIL import Image as Pictures

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.cli import main
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.jsonl_reader import read_alpaca, read_jsonl
from vlmhelpers.data.readers.preference_reader import find_reader, read_preferences, read_prompts, read_rated
from vlmhelpers.data.report import show_rows
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import KINDS, assistant, image_part, make_pair, make_prompt, make_rated, text_part, user
from vlmhelpers.data.turns import to_rows

READERS = {"pairs": read_preferences, "rated": read_rated, "prompts": read_prompts}
SHOWN = {"images": ["bag.png"]}
ASKED = {"role": "user", "content": "<image>\nWhat?"}
PARTS = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}
HUMAN = {"from": "human", "value": "<image>What?"}


def said(text):
    return {"role": "assistant", "content": text}


def gpt(text):
    return {"from": "gpt", "value": text}


SIDES = {"chosen": "A bag.", "rejected": "A cat."}
TURNS = {name: [said(text)] for name, text in SIDES.items()}
WHOLE = {name: [ASKED, said(text)] for name, text in SIDES.items()}
RATED = {"completion": "A bag.", "label": True}
FORMS = {
    "pairs": {
        "TRL, texts": {"prompt": "What?"} | SIDES | SHOWN,
        "TRL, messages": {"prompt": [ASKED]} | TURNS | SHOWN,
        "TRL, parts": {"prompt": [PARTS]} | TURNS | SHOWN,
        "TRL, no placeholder": {"prompt": [{"role": "user", "content": "What?"}]} | TURNS | SHOWN,
        "TRL, the prompt in both sides": WHOLE | SHOWN,
        "UltraFeedback": {"prompt": "<image>\nWhat?", "messages": WHOLE["chosen"]} | WHOLE | SHOWN,
        "LLaMA-Factory, ShareGPT": {
            "conversations": [HUMAN], "chosen": gpt("A bag."), "rejected": gpt("A cat.")
        } | SHOWN,
        "LLaMA-Factory, messages": {
            "messages": [ASKED], "chosen": said("A bag."), "rejected": said("A cat.")
        } | SHOWN,
        "LLaMA-Factory, Alpaca": {"instruction": "<image>What?", "input": ""} | SIDES | SHOWN,
        "ms-swift": {"messages": WHOLE["chosen"], "rejected_response": "A cat."} | SHOWN,
        "ms-swift, messages": {"messages": WHOLE["chosen"], "rejected_messages": WHOLE["rejected"]} | SHOWN,
        "ms-swift, query": {"query": "<image>What?", "response": "A bag.", "rejected_response": "A cat."} | SHOWN,
        "RLAIF-V": {"image": "bag.png", "question": "What?"} | SIDES,
        "RLHF-V": {"image_path": "bag.png", "text": json.dumps({"question": "What?"} | SIDES)},
    },
    "rated": {
        "TRL, texts": {"prompt": "What?"} | RATED | SHOWN,
        "TRL, messages": {"prompt": [ASKED], "completion": [said("A bag.")], "label": "1"} | SHOWN,
        "LLaMA-Factory, ShareGPT": {"conversations": [HUMAN, gpt("A bag.")], "kto_tag": True} | SHOWN,
        "LLaMA-Factory, Alpaca": {"instruction": "What?", "output": "A bag.", "kto_tag": "true"} | SHOWN,
        "ms-swift": {"messages": WHOLE["chosen"], "label": True} | SHOWN,
        "one image": {"image": "bag.png", "question": "What?", "response": "A bag.", "label": "True"},
    },
    "prompts": {
        "a text": {"prompt": "What?", "answer": "A bag."} | SHOWN,
        "messages": {"messages": [ASKED], "solution": "A bag."} | SHOWN,
        "messages that are answered": {"messages": WHOLE["chosen"]} | SHOWN,
        "both": {"messages": WHOLE["rejected"], "ground_truth": "A bag."} | SHOWN,
        "ShareGPT": {"conversations": [HUMAN, gpt("A bag.")]} | SHOWN,
        "one image": {"image": "bag.png", "question": "What?", "response": "A bag."},
    },
}  # fmt: skip
EXPECTED = {
    "pairs": make_pair("What?", "A bag.", "A cat.", [None]),
    "rated": make_rated("What?", "A bag.", True, [None]),
    "prompts": make_prompt("What?", "A bag.", [None]),
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the images bag.png and cat.png; the files go beside them."""
    Pictures.new("RGB", (8, 8), "red").save(tmp_path / "bag.png")
    Pictures.new("RGB", (8, 8), "blue").save(tmp_path / "cat.png")
    return tmp_path


@pytest.fixture
def write(folder):
    """Writes objects to a file of JSONL or, with their lists as JSON, of CSV."""

    def write(*values, name="rows.jsonl"):
        with open(folder / name, "w", encoding="utf-8", newline="") as file:
            if name.endswith(".csv"):
                table = csv.DictWriter(file, list(dict.fromkeys(key for value in values for key in value)))
                table.writeheader()
                for value in values:
                    table.writerow({key: v if isinstance(v, str) else json.dumps(v) for key, v in value.items()})
            else:
                file.writelines(f"{json.dumps(value)}\n" for value in values)
        return folder / name

    return write


def only(dataset, kind):
    """The row of a Dataset in the columns of its kind, images by the names of their files."""
    (row,) = undecoded(dataset)
    assert row["problem"] == "" and row["row"] == 1
    images = [os.path.basename(image["path"]) for image in row["images"]]
    return {name: row[name] for name in KINDS[kind]} | {"images": images}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, forms in FORMS.items() for form in forms])
def test_every_form_gives_the_same_row(write, kind, form, name):
    value = FORMS[kind][form]
    dataset = READERS[kind](write(value, name=name))
    assert only(dataset, kind) == EXPECTED[kind] | {"images": ["bag.png"]}
    assert {name: dataset.features[name] for name in KINDS[kind]} == KINDS[kind]
    kept = {f"{field}_" if f"{field}_" in dataset.column_names else field for field in value}
    assert kept <= set(dataset.column_names)
    assert check_dataset(dataset, progress=False).counts["kept"] == 1


@pytest.mark.parametrize(("kind", "form"), [(kind, form) for kind, forms in FORMS.items() for form in forms])
def test_the_reader_of_a_form_is_found_unless_it_is_that_of_answers_to_learn(kind, form):
    learned = kind == "prompts" and form not in ("a text", "messages")
    assert find_reader(FORMS[kind][form]) == (None if learned else READERS[kind].__name__)
    assert find_reader({"messages": WHOLE["chosen"], "label": "cat", "answer": "A bag."}) is None


def test_fields_can_be_named(write):
    path = write({"frage": "What?", "bild": "bag.png", "gut": "A bag.", "schlecht": "A cat.", "prompt": "not this"})
    names = {"text_field": "frage", "image_field": "bild"}
    pair = read_preferences(path, chosen_field="gut", rejected_field="schlecht", **names)
    assert only(pair, "pairs")["rejected"] == [assistant("A cat.")]
    rated = write({"frage": "What?", "bild": "bag.png", "gut": "A bag.", "schlecht": "no"}, name="rated.csv")
    row = only(read_rated(rated, completion_field="gut", label_field="schlecht", **names), "rated")
    assert row["completion"] == [assistant("A bag.")] and row["label"] is False
    assert only(read_prompts(path, answer_field="gut", **names), "prompts")["answer"] == "A bag."
    with pytest.raises(ValueError, match=r"rated.csv has no column 'label'.*read_rated\(\.\.\., label_field="):
        read_rated(rated)
    with pytest.raises(ValueError, match=r"no field 'rejected'.*read_preferences\(\.\.\., rejected_field="):
        read_preferences(write({"frage": "What?"}))


def test_earlier_turns_belong_to_the_prompt(write):
    alpaca = (
        {"instruction": "And", "input": "this?", "system": "Be kind.", "history": [["Hi", "Hello"]]} | SIDES | SHOWN
    )
    row = only(read_preferences(write(alpaca)), "pairs")
    system = {"role": "system", "content": [text_part("Be kind.")]}
    assert row["prompt"] == [system, user("Hi"), assistant("Hello"), user("And\n\nthis?", 1)]
    one, other = ([ASKED, said("It."), {"role": "user", "content": "Why?"}, said(text)] for text in ("So.", "No."))
    row = only(read_preferences(write({"chosen": one, "rejected": other} | SHOWN)), "pairs")
    assert [len(row[name]) for name in ("prompt", "chosen", "rejected")] == [3, 1, 1]


def test_the_rejected_side_may_show_other_images(write, folder):
    pair = {"messages": WHOLE["chosen"], "rejected_messages": WHOLE["chosen"]} | SHOWN
    dataset = read_preferences(write(pair | {"rejected_images": ["cat.png"]}, pair | {"rejected_response": "A cat."}))
    assert [image["path"] for image in dataset.with_format("arrow")[0].to_pylist()[0]["rejected_images"]] == [
        os.path.realpath(folder / "cat.png")
    ]
    report = check_dataset(dataset, progress=False)
    assert [record["row"] for record in report.rejected] == [2]
    assert "rejected_messages, rejected_response" in report.rejected[0]["reason"]
    own = [{"role": "user", "content": [{"type": "image", "image": name}]} for name in ("bag.png", "cat.png")]
    sides = {"chosen": [own[0], said("A.")], "rejected": [own[1], said("B.")]}
    assert "name them in rejected_images" in read_preferences(write(sides))["problem"][0]


BROKEN = {
    "pairs": [
        ({"prompt": "What?", "chosen": "A bag."}, "no field 'rejected'"),
        ({"prompt": "What?", "chosen": " ", "rejected": "A cat."}, "empty chosen"),
        ({"prompt": "", **SIDES}, "empty prompt"),
        (SIDES, "no field 'prompt'"),
        ({"messages": WHOLE["chosen"], "chosen": "A hat.", **SHOWN}, "no field 'rejected'"),
        ({"messages": WHOLE["chosen"], "rejected": None, **SHOWN}, "empty rejected"),
        ({"prompt": "What?", "chosen": ["A bag."], "rejected": "A cat."}, "chosen is no text and no list of messages"),
        ({"prompt": "What?", "chosen": 5, "rejected": True}, "rejected is true or false, not text"),
        ({"prompt": "What?", "image": "../bag.png", **SIDES}, "path leaves the image root: '../bag.png'"),
        ({"prompt": [{"role": "tool", "content": "x"}], **SIDES}, "a tool's turn: 'tool'"),
        (
            {"prompt": "<image><image>", **SIDES, **SHOWN},
            "images do not match: 2 <image> in the user's texts, 1 images",
        ),
        ({"prompt": "What?", "video": "a.mp4", **SIDES}, "video: only images are read"),
    ],
    "rated": [
        ({"prompt": "What?", "completion": "A bag.", "label": "maybe"}, "no label: label is 'maybe'"),
        ({"prompt": "What?", "completion": "A bag."}, "no label: label is 'None'"),
        ({"prompt": "What?", "label": True}, "no field 'completion'"),
    ],
    "prompts": [
        ({"prompt": " ", "answer": "A bag."}, "empty prompt"),
        ({"prompt": "What?", "answer": ["A bag."]}, "answer is a list, not text"),
        ({"messages": [7], "answer": "x"}, "messages is no text and no list of messages"),
    ],
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_malformed_row_is_named_and_nothing_is_lost(write, folder, kind):
    sound = FORMS[kind]["one image" if kind != "pairs" else "RLAIF-V"]
    values, expected = zip(*BROKEN[kind], strict=True)
    path = write(sound, *values)
    with open(path, "a") as file:
        file.write("{broken\n[1]\n")
    dataset = READERS[kind](path)
    assert dataset["row"][:] == list(range(1, len(values) + 4))
    reasons = [reason_of(row) for row in dataset.select_columns(["problem"])]
    assert reasons[: len(values) + 1] == ["", *expected] and reasons[-2].startswith("not JSON")
    assert all(split_problem(problem)[1] for problem in dataset["problem"][1:])
    report = check_dataset(dataset, progress=False)
    assert (report.counts["kept"], report.counts["rejected"]) == (1, len(values) + 2)
    report.save_rejected(folder / "rejected.csv")
    again = READERS[kind](folder / "rejected.csv")
    assert len(again) == len(values) + 2 and again["source_row"][:] == [str(n) for n in dataset["row"][1:]]


@pytest.mark.parametrize(
    ("read", "value", "reason", "remedy"),
    [
        (
            read_jsonl,
            {"messages": WHOLE["chosen"], "rejected_response": "A cat."},
            "preference row: reject",
            "preferences",
        ),
        (read_jsonl, {"messages": WHOLE["chosen"], "rejected_messages": []}, "preference row: reject", "preferences"),
        (read_jsonl, {"messages": WHOLE["chosen"], "label": False}, "rated row: label is False", "rated"),
        (read_jsonl, {"conversations": [HUMAN, gpt("A.")], "kto_tag": True}, "rated row: kto_tag is True", "rated"),
        (read_jsonl, {"text": "What?", "response": "A.", "label": "false"}, "rated row: label is false", "rated"),
        (read_alpaca, {"instruction": "What?"} | SIDES, "preference row: chosen and rejected", "preferences"),
        (read_alpaca, {"instruction": "What?", "output": "A.", "kto_tag": False}, "rated row: kto_tag", "rated"),
    ],
)
def test_no_rejected_answer_is_read_as_one_to_learn(write, read, value, reason, remedy):
    dataset = read(write(value | SHOWN))
    assert reason_of(dataset[0]).startswith(reason) and f"read_{remedy}" in dataset["problem"][0]


def test_nor_is_it_from_a_csv(folder):
    header = "image_path,instruction,description,label,rejected_response\n"
    (folder / "rows.csv").write_text(
        f"{header}bag.png,What?,A.,True,\nbag.png,What?,A.,,A cat.\nbag.png,What?,A.,bags,\n"
    )
    kinds = [reason_of(row).partition(":")[0] for row in read_csv(folder / "rows.csv")]
    assert kinds == ["rated row", "preference row", ""]


def test_columns_of_other_kinds_do_not_hide_the_rows(write):
    value = {"question": "What?", "solution": "A.", "label": "x", "chosen": "c", "rejected": "r", "prompt": ""}
    dataset = read_prompts(write(value))
    assert {"label_", "chosen_", "rejected_", "prompt_", "question", "solution"} <= set(dataset.column_names)
    assert to_rows(dataset)["messages"][:] == [[user("What?"), assistant("A.")]]


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_the_command_check_takes_the_reader_that_fits(write, folder, capsys, kind, name):
    form = "RLAIF-V" if kind == "pairs" else list(FORMS[kind])[0]
    path = write(FORMS[kind][form], FORMS[kind][form] | {"prompt": "", "question": ""}, name=name)
    assert main(["check", str(path), "--rejected", str(folder / "rejected.csv")]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"kind of rows: {kind}", "2 rows read: 1 kept, 1 rejected; 0 repaired, 0 to look at"]
    assert main(["check", str(folder / "rejected.csv")]) == 1 and f"kind of rows: {kind}" in capsys.readouterr().out


def test_tables_show_the_answers_of_every_kind(write):
    pairs = read_preferences(write(FORMS["pairs"]["RLAIF-V"]))
    shown = show_rows(pairs, [0], tuned=["A cat."])
    assert repr(shown) == "0: What?\n   chosen: A bag.\n   rejected: A cat.\n   tuned: A cat."
    assert shown._repr_html_().count("background") == 1 and shown._repr_html_().count("<img") == 1
    rated = show_rows(read_rated(write(FORMS["rated"]["TRL, texts"])), [0])
    assert repr(rated) == "0: What?\n   completion: A bag.\n   label: true"
    assert repr(show_rows(read_prompts(write(FORMS["prompts"]["a text"])), [0])) == "0: What?\n   answer: A bag."


def test_an_answer_that_another_field_replaces_is_noted(write):
    note = "the messages' last answer is left out, as another field has one"
    pair = {"messages": WHOLE["rejected"]} | SIDES | SHOWN
    assert only(read_preferences(write(pair)), "pairs")["chosen"] == [assistant("A bag.")]
    assert read_preferences(write(pair))["note"][0] == read_prompts(write(FORMS["prompts"]["both"]))["note"][0] == note
    assert read_preferences(write(FORMS["pairs"]["ms-swift"]))["note"][0] == ""
    empty = {"prompt": "What?", "chosen": "", "rejected": "A cat.", "response": "not this"}
    assert reason_of(read_preferences(write(empty))[0]) == "empty chosen"


def test_images_come_where_their_placeholders_stand(write):
    value = {"prompt": "Is\n<image>\nthe same as <image>?", "images": ["bag.png", "cat.png"]} | SIDES
    row = only(read_preferences(write(value)), "pairs")
    assert row["prompt"][0]["content"] == [
        text_part("Is"), image_part(), text_part("the same as "), image_part(), text_part("?")
    ]  # fmt: skip
    assert row["images"] == ["bag.png", "cat.png"]
