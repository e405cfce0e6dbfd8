"""A file is read by the reader that its ending and its first row are for."""

import json

import pytest

from vlmhelpers.data import message_text
from vlmhelpers.data.readers.recognition import read_rows, reader_call, recognize
from vlmhelpers.training.config import RunConfig

PAIR = {"prompt": "What?", "chosen": "a hat", "rejected": "a cat"}
ROWS = {
    "read_jsonl": ("rows.jsonl", [{"text": "What?", "response": "a hat"}], "messages"),
    "read_alpaca": ("rows.json", [{"instruction": "What?", "input": "", "output": "a hat"}], "messages"),
    "read_preferences": ("rows.jsonl", [PAIR], "pairs"),
    "read_rated": ("rows.jsonl", [{"prompt": "What?", "completion": "a hat", "label": True}], "rated"),
    "read_prompts": ("rows.jsonl", [{"prompt": "What?", "answer": "a hat"}], "prompts"),
}


def write(path, rows):
    as_list = path.suffix == ".json"
    path.write_text(json.dumps(rows) if as_list else "".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("reader", ROWS)
def test_json_is_recognized_by_its_first_row(tmp_path, reader):
    name, rows, kind = ROWS[reader]
    file = write(tmp_path / name, rows)
    form = recognize(file)
    assert (form.reader, form.kind, form.fields) == (reader, kind, list(rows[0]))
    assert len(read_rows(file)) == 1 and reader_call(file) == (reader, {})


@pytest.mark.parametrize(
    "columns", ["image_path,instruction,description", "image,question,answer", "image,text,response"]
)
def test_the_columns_of_a_csv_are_found_by_their_usual_names(tmp_path, columns):
    file = tmp_path / "rows.csv"
    file.write_text(f"{columns}\na.png,What?,a hat\n")
    (row,) = read_rows(file, "messages")["messages"]
    assert [message_text(message) for message in row] == ["What?", "a hat"]


def test_of_several_usual_columns_that_of_the_settings_is_read(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("question,text,image_path,image,description,response\nWrong,What?,b.png,a.png,wrong,a hat\n")
    columns = {"text_field": "text", "image_field": "image", "response_field": "response"}
    assert (
        reader_call(file, "messages", **RunConfig("qwen3-vl", str(file), "out", **columns).named_fields)[1] == columns
    )


def test_a_later_row_with_an_image_makes_a_file_none_of_texts_alone(tmp_path):
    text, seen = {"instruction": "Hi", "output": "Hi."}, {"instruction": "What?", "output": "A hat.", "image": "a.png"}
    file = write(tmp_path / "rows.jsonl", [text, seen])
    assert recognize(file) == ("read_jsonl", "messages", ["instruction", "output", "image"])
    named = {"text_field": "instruction", "response_field": "output"}
    images = read_rows(file, "messages", **named).with_format("arrow")["images"].to_pylist()
    assert [len(row) for row in images] == [0, 1]
    other = write(tmp_path / "other.jsonl", [text, {**text, "photo": "a.png"}])
    assert recognize(other).reader == "read_alpaca" and reader_call(other, image_field="photo")[0] == "read_jsonl"
    late = write(tmp_path / "late.jsonl", [text] * 1000 + [seen])
    assert recognize(late).reader == "read_alpaca"
    assert len(read_rows(late, **named).with_format("arrow")[1000]["images"].to_pylist()[0]) == 1


def test_named_fields_go_to_the_reader_by_its_own_names(tmp_path):
    fields = {"text_field": "q", "image_field": "i", "response_field": "a"}
    alpaca = write(tmp_path / "rows.json", ROWS["read_alpaca"][1])
    assert reader_call(alpaca, **fields) == ("read_alpaca", {"instruction_field": "q", "output_field": "a"})
    pairs = write(tmp_path / "rows.jsonl", [PAIR])
    expected = {"text_field": "q", "image_field": "i", "chosen_field": "a", "image_root": "images"}
    assert reader_call(pairs, "pairs", "images", **fields) == ("read_preferences", expected)


def test_rows_of_another_kind_than_asked_for_are_read_as_that_kind_and_say_what_they_lack(tmp_path):
    pairs = write(tmp_path / "rows.jsonl", [PAIR])
    assert reader_call(pairs, "messages") == ("read_jsonl", {})
    assert "preference row" in read_rows(pairs, "messages")[0]["problem"]
    answers = write(tmp_path / "answers.jsonl", ROWS["read_jsonl"][1])
    assert reader_call(answers, "pairs") == ("read_preferences", {})


def test_a_file_that_is_damaged_or_not_there(tmp_path):
    (tmp_path / "damaged.json").write_text("[{")
    for name in ("none", "damaged"):
        assert reader_call(tmp_path / f"{name}.json", "rated") == ("read_rated", {})
    assert reader_call(tmp_path / "none.csv", "messages") == ("read_csv", {})
    with pytest.raises(ValueError, match="damaged.json"):
        reader_call(tmp_path / "damaged.json")
    with pytest.raises(FileNotFoundError, match="none.jsonl"):
        read_rows(tmp_path / "none.jsonl", "messages")
    with pytest.raises(FileNotFoundError):
        recognize(tmp_path / "none.jsonl")
