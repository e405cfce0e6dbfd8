"""What people's files have beside their form: kept whole, rejected with a reason that names the field, or a ValueError.

A line of the tables is a row, see row_outlines. Where several lines stand, each is right.
"""

import datetime
import decimal
import gzip
import json
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_outlines import agree, draw_images, outlines, read_outlines

from vlmhelpers.data import read_alpaca, read_csv, read_dataset, read_jsonl, read_preferences

KEPT, ONE = "user: q | assistant: a", "user: [red] q | assistant: a"


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


def fields(**more):
    return {"text": "q", "response": "a"} | more


def chat(question="q", answer="a", **more):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]} | more


def talk(*turns, **more):
    return {"messages": [dict(zip(("role", "content"), turn, strict=True)) for turn in turns]} | more


def answered(weights, key):
    return talk(("user", "q"), ("assistant", "b"), ("user", "r"), ("assistant", "a")) | {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "b", key: weights[0]},
            {"role": "user", "content": "r"},
            {"role": "assistant", "content": "a", key: weights[1]},
        ]
    }


UNLEARNED = "user: q | assistant-: b | user: r | assistant: a"
LEARNED = "user: q | assistant: b | user: r | assistant: a"

ROWS = {
    # fields that are empty
    "empty fields": (
        fields(image=None, images=[], history=None, system=None, tools=None, videos=[], objects={}, label=None),
        [KEPT],
    ),
    "empty lists in a field": (chat(objects={"ref": [], "bbox": []}, tools=[], audios=[None]), [KEPT, "! audios"]),
    "empty texts in fields": (chat(tools="", system="", video="", objects=""), [KEPT]),
    "messages of null beside fields": (fields(messages=None, conversations=None), [KEPT]),
    "no messages": ({"messages": []}, ["! answer", "! messages"]),
    # names
    "names in capitals": ({"Text": "q", "Response": "a", "Image": "red.png"}, [ONE, "! text"]),
    "roles in capitals": (talk(("User", "q"), ("Assistant", "a")), [KEPT, "! role User"]),
    "another key for a text part": (chat([{"type": "text", "content": "q"}]), [KEPT, "! text part", "! content"]),
    "parts without a type": (chat([{"image": "red.png"}, {"text": "q"}]), [ONE, "! type", "! part"]),
    "parts of capitals": (
        chat([{"type": "IMAGE", "image": "red.png"}, {"type": "TEXT", "text": "q"}]),
        [ONE, "! IMAGE"],
    ),
    "texts among parts": (chat([{"type": "image", "image": "red.png"}, "q"]), [ONE, "! content"]),
    "a part instead of a list": (chat({"type": "text", "text": "q"}), [KEPT, "! content"]),
    "a text in an image part": (
        chat([{"type": "image", "image": "red.png", "text": "look"}, {"type": "text", "text": "q"}]),
        ["user: [red] look q | assistant: a", "! text"],
    ),
    "a part of an unknown type": (chat([{"type": "thing", "thing": 1}, {"type": "text", "text": "q"}]), ["! thing"]),
    "a message without content": ({"messages": [{"role": "user"}, {"role": "assistant", "content": "a"}]}, ["! text"]),
    "a message without a role": ({"messages": [{"content": "q"}, {"role": "assistant", "content": "a"}]}, ["! role"]),
    "a content of a number": (chat("q", 5), ["user: q | assistant: 5"]),
    "a content of an object": (chat("q", {"color": "red"}), ["! content", "! part"]),
    "messages as JSON in a text": ({"messages": json.dumps(chat()["messages"])}, [KEPT, "! messages"]),
    # answers
    "an answer of true": (fields(response=True), ["user: q | assistant: true", "! response"]),
    "an answer of a list": (fields(response=["a", "b"]), ["user: q | assistant: a", "! response"]),
    "an answer of an object": (fields(response={"x": 1}), ['user: q | assistant: {"x": 1}', "! response"]),
    "an answer of zero": (fields(response=0), ["user: q | assistant: 0"]),
    "two answers in two fields": (fields(answer="b"), ["! answer", KEPT]),
    "two questions in two fields": (fields(question="r"), ["! question", KEPT]),
    "dolly": ({"instruction": "q", "context": "c", "response": "a"}, ["user: q c | assistant: a"]),
    "an empty context": ({"instruction": "q", "context": "", "response": "a"}, [KEPT]),
    "an input below a prompt": ({"prompt": "q", "input": "i", "output": "a"}, ["user: q i | assistant: a"]),
    "an input below a question": ({"question": "q", "input": "i", "output": "a"}, ["user: q i | assistant: a"]),
    "a context of a pair": (
        {"prompt": "q", "context": "c", "chosen": "a", "rejected": "b"},
        ["user: q c // assistant: a // assistant: b", "! preference row"],
    ),
    "a question beside a text": ({"text": "q", "question": "r", "answer": "a"}, ["! text, question"]),
    "an instruction beside a text": ({"instruction": "q", "text": "r", "output": "a"}, ["! text, instruction"]),
    "an answer beside a description": ({"question": "q", "answer": "a", "description": "b"}, ["! description, answer"]),
    "the same question twice": (fields(question="q"), [KEPT]),
    "a chosen answer alone": ({"prompt": "q", "chosen": "a", "rejected": None}, ["! chosen", "! response"]),
    "an empty answer": (chat("q", ""), ["! empty"]),
    "an answer of null": (chat("q", None), ["! text", "! empty"]),
    "Infinity": (fields(response=float("inf")), ["! infinity", "! inf"]),
    "NaN in a message": (chat("q", float("nan")), ["! nan"]),
    "NaN as image": (fields(image=float("nan")), [KEPT, "! nan", "! image"]),
    "NaN beside": (fields(score=float("nan")), [KEPT]),
    # turns
    "the user has the last word": (talk(("user", "q"), ("assistant", "a"), ("user", "r")), ["! answer", KEPT]),
    "two questions in a row": (
        talk(("user", "q"), ("user", "r"), ("assistant", "a")),
        ["user: q | user: r | assistant: a", "user: q r | assistant: a"],
    ),
    "two answers in a row": (
        talk(("user", "q"), ("assistant", "a"), ("assistant", "b")),
        ["user: q | assistant: a | assistant: b", "user: q | assistant: a b", "! assistant"],
    ),
    "the system alone": (talk(("system", "s")), ["! answer", "! question"]),
    "an answer alone": (talk(("assistant", "a")), ["! learn"]),
    "the system in the middle": (
        talk(("user", "q"), ("system", "s"), ("assistant", "a")),
        ["user: q | system: s | assistant: a", "! system"],
    ),
    "a system text twice": (
        talk(("system", "s"), ("user", "q"), ("assistant", "a")) | {"system": "t"},
        ["! system", "system: s | system: t | user: q | assistant: a"],
    ),
    "a system text of parts": (chat(system=[{"type": "text", "text": "s"}]), ["system: s | " + KEPT, "! system"]),
    "a history of messages": (
        fields(history=[{"role": "user", "content": "h"}, {"role": "assistant", "content": "i"}]),
        ["user: h | assistant: i | " + KEPT, "! history"],
    ),
    "a history that is not answered": (fields(history=[["h", None]]), ["! history"]),
    "history beside messages": (chat(history=[["h", "i"]]), ["user: h | assistant: i | " + KEPT, "! history"]),
    # weights
    "weights of texts": (answered(["0", "1"], "weight"), [UNLEARNED, "! weight"]),
    "a half weight of the row": (chat(loss_weight=0.5), ["! loss_weight"]),
    "a half weight of fields": (fields(weight="0.5"), ["! weight"]),
    "a double weight of the row": (chat(loss_weight=2), ["! loss_weight"]),
    "a whole weight of the row": (chat(loss_weight=1.0, train=True), [KEPT]),
    "the weight of a thing": (fields(weight=70.5, train="split 1"), [KEPT]),
    "a half weight": (answered([0.5, 1], "weight"), ["! weight"]),
    "weights of true and false": (answered([False, True], "weight"), [UNLEARNED]),
    "loss of numbers": (answered([0, 1], "loss"), [UNLEARNED]),
    "loss of texts": (answered(["false", "true"], "loss"), [UNLEARNED, "! loss"]),
    "loss of null": (answered([None, None], "loss"), [LEARNED]),
    "a scale": (answered([0.0, 1.0], "loss_scale"), [UNLEARNED, "! loss_scale"]),
    "a scale of null": (answered([None, None], "loss_scale"), [LEARNED]),
    "nothing is learned": (answered([0, 0], "weight"), ["! learn"]),
    "the last is not learned": (
        answered([1, 0], "weight"),
        ["user: q | assistant: b | user: r | assistant-: a", "user: q | assistant: b", "! learn"],
    ),
    "a weight of the row": (chat(weight=0), ["! weight", "user: q | assistant-: a"]),
    # images
    "an image of a number": (fields(image=5), ["! image 5"]),
    "an object in an object": (fields(image={"image": {"path": "red.png"}}), [ONE, "! image"]),
    "lists in a list": (
        fields(images=[["red.png"], ["blue.png"]]),
        ["user: [red] [blue] q | assistant: a", "! images"],
    ),
    "an empty object": (fields(image={"bytes": None, "path": None}), [KEPT, "! image"]),
    "null among images": (fields(images=["red.png", None]), ["! image", ONE]),
    "image and images": (
        fields(image="red.png", images=["blue.png"]),
        ["! image images", "user: [red] [blue] q | assistant: a"],
    ),
    "the same as image and images": (fields(image="red.png", images=["red.png"]), [ONE, "! image images"]),
    "images of messages and of the row": (
        {
            "messages": [
                {"role": "user", "content": "q", "images": ["red.png"]},
                {"role": "assistant", "content": "a"},
            ],
            "images": ["blue.png"],
        },
        ["user: [red] [blue] q | assistant: a", "! images"],
    ),
    "more images than placeholders": (chat("<image>q", images=["red.png", "blue.png"]), ["! images match"]),
    "more placeholders than images": (chat("<image><image>q", images=["red.png"]), ["! images match"]),
    "more images than parts": (
        chat([{"type": "image"}, {"type": "text", "text": "q"}], images=["red.png", "blue.png"]),
        ["! images match"],
    ),
    "image beside parts": (chat([{"type": "image"}, {"type": "text", "text": "q"}], image="red.png"), [ONE]),
    "images beside parts that have their own": (
        chat([{"type": "image", "image": "red.png"}, {"type": "text", "text": "q"}], images=["red.png"]),
        [ONE, "! images"],
    ),
    "images beside parts of text": (chat([{"type": "text", "text": "q"}], images=["red.png"]), [ONE, "! images"]),
    "a placeholder among parts": (chat([{"type": "text", "text": "<image>q"}], images=["red.png"]), [ONE, "! images"]),
    "a second image of a name of its own": (
        fields(image="red.png", image_2="blue.png"),
        ["! image_2", "user: [red] [blue] q | assistant: a"],
    ),
    "images left and right": (
        fields(left_image="red.png", right_image="blue.png"),
        ["! left_image", "user: [red] [blue] q | assistant: a"],
    ),
    "the number of a choice": (
        {"question": "q", "choices": ["a", "b"], "answer": 1, "image": "red.png"},
        ["! choices", "user: [red] q | assistant: b"],
    ),
    "options": (
        {"question": "q", "options": ["a", "b"], "answer": "1", "image": "red.png"},
        ["! options", "user: [red] q | assistant: b"],
    ),
    "options by letters": (fields(option_a="x", option_b="y"), ["! option_a"]),
    "options by numbers": (fields(Option1="x", Option2="y"), ["! Option1"]),
    "choices by letters": (fields(choice_a="x", choice_b="y"), ["! choice_a"]),
    "answer choices": (fields(answer_choices=["x", "y"]), ["! answer_choices"]),
    "letters": (fields(A="x", B="y", C="z"), ["! A, B"]),
    "one letter": (fields(A="x"), [KEPT]),
    "choices of a pair": (
        {"prompt": "q", "chosen": "a", "rejected": "b", "options": ["a", "b"]},
        ["! options", "! preference row"],
    ),
    "images of numbers": (fields(img="red.png", img2="blue.png"), ["! img2"]),
    "a mask": (fields(image="red.png", mask="blue.png"), ["! mask"]),
    "a link of another name": (fields(image_url="https://x.example/a.jpg?w=5"), ["! image_url"]),
    "a link without an ending": (fields(picture="https://x.example/1234"), ["! picture"]),
    "a picture of another ending": (fields(picture="x.heic"), ["! picture"]),
    "the link of an image": (fields(image="red.png", coco_url="https://x.example/a.jpg"), [ONE]),
    "words about an image": (fields(image="red.png", image_description="a red one"), [ONE]),
    "a video under another name": (fields(video_path="x.mp4"), ["! video_path"]),
    "a clip": (chat("<video>q", clip="x.mp4"), ["! clip"]),
    "a sound beside an image": (fields(image="red.png", speech="x.wav"), ["! speech"]),
    "bounding boxes": (fields(image="red.png", bounding_boxes=[[0, 0, 1, 1]]), ["! bounding_boxes"]),
    "media in capitals": (fields(Videos=["x.mp4"]), ["! Videos"]),
    "tools in capitals": (chat(Tools=[{"name": "x"}]), ["! Tools"]),
    "tools with a blank": (chat(**{"Tool Calls": [{"name": "x"}]}), ["! Tool Calls"]),
    "a clip in a part": (chat([{"type": "text", "text": "q", "clip": "x.mp4"}]), ["! clip"]),
    "a link": (fields(image="https://images.example/a.png"), ["! https://images.example/a.png"]),
    "a bucket": (fields(image="s3://bucket/a.png"), ["! s3://bucket/a.png"]),
    "a path from the root": (fields(image="/etc/a.png"), ["! /etc/a.png"]),
    "a path of Windows": (fields(image="images\\red.png"), [ONE]),
    "a drive of Windows": (fields(image="C:\\data\\red.png"), ["! C:"]),
    "a path up": (fields(image="../red.png"), ["! ../red.png"]),
    "a path with a dot": (fields(image="./images/red.png"), [ONE]),
    "a path with blanks around": (fields(image=" red.png "), [ONE, "! red.png"]),
    "a missing file": (fields(image="gone.png"), ["! gone.png"]),
    "a folder": (fields(image="images"), ["! images"]),
    "a data URI of text": (fields(image="data:text/plain;base64,cQ=="), ["! image"]),
    "a data URI of nothing": (fields(image="data:image/png;base64,"), ["! image", "! empty file"]),
    "a text as data URI": (fields(image="data:image/png,abc"), ["! image"]),
    # placeholders of texts
    "a placeholder in the answer": (
        chat("<image>q", "see <image>", images=["red.png"]),
        ["user: [red] q | assistant: see <image>"],
    ),
    "a placeholder in the system text": (
        chat("<image>q", images=["red.png"], system="see <image>"),
        ["system: see <image> | " + ONE],
    ),
    "a placeholder in an answer alone": (chat("q", "<image>", images=["red.png"]), ["! image"]),
    "placeholders with numbers": (
        chat("<image1> or <image2>?", images=["red.png", "blue.png"]),
        ["user: [red] or [blue] ? | assistant: a", "! image"],
    ),
    "placeholders of Phi": (
        chat("<|image_1|>\n<|image_2|>\nq", images=["red.png", "blue.png"]),
        ["user: [red] [blue] q | assistant: a", "! image"],
    ),
    "a placeholder of Pixtral": (
        chat("[IMG]q", images=["red.png"]),
        [ONE, "! [IMG]", "user: [red] [IMG]q | assistant: a"],
    ),
    "videos among the text": (chat("<video>q", videos="x.mp4"), ["! videos"]),
    "a video as an image": (fields(image="x.mp4"), ["! x.mp4"]),
    # verdicts and labels
    "a label of a class": (fields(label="cat"), [KEPT]),
    "a label of null": (fields(label=None), [KEPT]),
    "a rating": (fields(rating=1, score=0.2), [KEPT]),
}


def write(folder, row):
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n")
    return folder / "rows.jsonl"


def outcome(read):
    """The outlines of what is read, or of a ValueError, its text as one rejection."""
    try:
        return read()
    except ValueError as error:
        return [f"! {error}"]


@pytest.mark.parametrize("name", ROWS)
def test_a_row(folder, name):
    row, right = ROWS[name]
    found = outcome(lambda: read_outlines(write(folder, row)))
    assert len(found) == 1 and any(agree(found[0], line) for line in right), found


@pytest.mark.parametrize("name", ROWS)
def test_such_a_row_among_others_costs_itself_alone(folder, name):
    row, right = ROWS[name]
    if "Text" in row:
        right = [*right, "! response"]
    (folder / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in (fields(text="first"), row)))
    first, found = read_outlines(folder / "rows.jsonl")
    assert first == "user: first | assistant: a" and any(agree(found, line) for line in right), found


# Files

GOOD = json.dumps(fields())
FILES = {
    "rows under a name": ("rows.json", json.dumps({"data": [fields()]}), [KEPT, "! 'data'"]),
    "one object": ("rows.json", json.dumps(fields(), indent=1), [KEPT, "! lines"]),
    "rows by their keys": ("rows.json", json.dumps({"1": fields(), "2": fields(text="r")}), ["! object", "! field"]),
    "nothing": ("rows.jsonl", "", ["! empty"]),
    "blank lines": ("rows.jsonl", "\n \n", ["! empty"]),
    "an empty list": ("rows.json", "[]", ["! no rows"]),
    "comments": ("rows.json", "// rows\n[" + GOOD + "]", ["! JSON"]),
    "a comma too many": ("rows.json", "[" + GOOD + ",]", ["! JSON"]),
    "objects without line ends": ("rows.jsonl", GOOD + GOOD, ["! JSON", "! line"]),
    "Python's quotes": ("rows.jsonl", str(fields()), ["! JSON"]),
    "a number": ("rows.json", "5", ["! object"]),
    "an empty table": ("rows.csv", "image,text,response\n", ["! no rows"]),
    "messages in a cell": (
        "rows.csv",
        'messages\n"' + json.dumps(chat()["messages"]).replace('"', '""') + '"\n',
        [KEPT],
    ),
    "an ending that says nothing": ("rows.txt", GOOD + "\n", [KEPT, "! rows.txt"]),
    "no ending": ("rows", GOOD + "\n", [KEPT, "! rows"]),
    "an ending in capitals": ("rows.JSONL", GOOD + "\n", [KEPT]),
    "tabs": ("rows.tsv", "text\tresponse\nq\ta\n", [KEPT, "! tsv"]),
    "an index of pandas": ("rows.csv", "Unnamed: 0,text,response\n0,q,a\n", [KEPT, "! image_field"]),
    "a header alone of another thing": ("rows.csv", "x,y\n1,2\n", ["! x, y"]),
    "words for nothing": ("rows.csv", "image,text,response\nnan,q,a\n", [KEPT, "! nan"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file(folder, name):
    file, text, right = FILES[name]
    (folder / file).write_text(text)
    found = outcome(lambda: read_outlines(folder / file))
    assert len(found) == 1 and any(agree(found[0], line) for line in right), found


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl"])
def test_a_compressed_file_is_read_or_named(folder, name):
    (folder / name).write_bytes(gzip.compress(GOOD.encode()))
    (found,) = outcome(lambda: read_outlines(folder / name))
    assert found == KEPT or agree(found, "! gz")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 4096, b"PK\x03\x04" + b"\0" * 60])
@pytest.mark.parametrize(
    "name", ["rows.parquet", "rows.tar", "rows.arrow", "rows.json", "rows.csv", "rows.zip", "rows.xlsx"]
)
def test_a_file_of_something_else_is_an_error_that_names_it(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match="rows"):
        read_dataset(folder / name)


def test_an_empty_folder_and_a_missing_file_are_errors_that_name_them(folder):
    (folder / "none").mkdir()
    for name in ("none", "gone.jsonl"):
        with pytest.raises(FileNotFoundError, match=name):
            read_dataset(folder / name)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("written", ["NFC", "NFD"])
def test_a_path_in_another_form_of_unicode_is_found_or_named(folder, form, written):
    name = unicodedata.normalize(form, "gr\u00fcn.png")
    (folder / "red.png").rename(folder / name)
    (found,) = read_outlines(write(folder, fields(image=unicodedata.normalize(written, name))))
    assert found == ONE if form == written else found == ONE or agree(found, "! missing")


@pytest.mark.parametrize("name", ["a b.png", "a%20b.png", "a#b?.png", "a'b.png", "<image>.png", "日本.png"])
def test_a_path_is_taken_as_it_is_written(folder, name):
    (folder / "red.png").rename(folder / name)
    for row in (fields(image=name), chat("<image>q", images=[name])):
        assert read_outlines(write(folder, row)) == [ONE]


def test_a_field_that_is_not_used_is_named_once(folder):
    rows = [fields(text=str(n), id=n, origin="x", rating=5) for n in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    description = read_dataset(folder / "rows.jsonl").info.description
    assert all(description.count(name) == 1 for name in ("id", "origin", "rating"))
    assert "text" not in description and "response" not in description


# Columns of parquet that are no texts

VALUES = {
    "a time": datetime.datetime(2026, 1, 2, 3, 4, 5),
    "a day": datetime.date(2026, 1, 2),
    "a decimal": decimal.Decimal("12.50"),
    "a duration": datetime.timedelta(seconds=5),
    "bytes": b"\xff\xfe",
    "a number": 5,
    "nothing": None,
    "NaN": float("nan"),
}
TEXTS = {"a time": "2026-01-02", "a day": "2026-01-02", "a decimal": "12.50", "a number": "5"}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_beside_the_texts_is_kept(folder, name):
    pq.write_table(pa.table({"text": ["q"], "response": ["a"], "when": [VALUES[name]]}), folder / "rows.parquet")
    dataset = read_dataset(folder / "rows.parquet")
    (found,) = outlines(dataset)
    assert found == KEPT or agree(found, "! when")
    assert "when" in dataset.column_names


@pytest.mark.parametrize("name", VALUES)
def test_a_value_as_an_answer_is_a_text_or_a_problem_that_names_it(folder, name):
    pq.write_table(pa.table({"text": ["q", "r"], "response": [VALUES[name]] * 2}), folder / "rows.parquet")
    found, _ = read_outlines(folder / "rows.parquet")
    assert agree(found, "! response") or (name in TEXTS and f"assistant: {TEXTS[name]}" in found), found


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view()])
def test_texts_of_every_type_of_arrow(folder, kind):
    columns = {name: pa.array([text]).cast(kind) for name, text in fields(image="red.png").items()}
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    assert read_outlines(folder / "rows.parquet") == [ONE]


# What the caller named


def read_named(folder, row, **names):
    return outcome(lambda: outlines(read_jsonl(write(folder, row), **names)))


def test_a_named_field_is_read_alone(folder):
    row = {"text": "q", "question": "r", "context": "c", "answer": "a", "output": "b"}
    assert read_named(folder, row, text_field="question", response_field="answer") == ["user: r | assistant: a"]


def test_a_table_with_two_answers_names_both(folder):
    (folder / "rows.csv").write_text("question,answer,description,image\nq,a,b,red.png\n")
    (found,) = outlines(read_csv(folder / "rows.csv", text_field="question"))
    assert agree(found, "! description, answer")


@pytest.mark.parametrize("value", [["a"], "a"])
def test_a_list_of_one_text_in_a_named_field_is_that_text(folder, value):
    assert read_named(folder, {"query": "q", "label": value}, response_field="label") == [KEPT]
    assert agree(read_named(folder, {"query": "q", "label": ["a", "b"]}, response_field="label")[0], "! label")


def test_a_named_input_that_no_row_has_is_an_error_that_names_it(folder):
    path = write(folder, {"instruction": "q", "context": "c", "output": "a"})
    for names in ({}, {"input_field": "context"}):
        assert outlines(read_alpaca(path, **names)) == ["user: q c | assistant: a"]
    with pytest.raises(ValueError, match="contxt"):
        read_alpaca(path, input_field="contxt")


def test_two_questions_of_a_pair_are_a_problem_that_names_them(folder):
    pair = {"prompt": "q", "question": "r", "chosen": "a", "rejected": "b"}
    assert agree(read_outlines(write(folder, pair))[0], "! prompt, question")
    (named,) = outlines(read_preferences(write(folder, pair), text_field="question"))
    assert "user: r" in named
