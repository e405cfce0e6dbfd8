"""Reading the Alpaca form: its fields, its optional ones, what is wrong with a row, and what validation gets."""

import csv
import json

import pytest
from datasets import Dataset, Value

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.jsonl_reader import read_alpaca
from vlmhelpers.data.rows import READER_FEATURES
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import FEATURES, assistant, text_part, user

GUIDE = [
    {
        "instruction": "Write a five-sentence summary of the American Civil War.",
        "input": "",
        "output": "The American Civil War was fought from 1861 to 1865 between the Union (North) and the Confederacy "
        "(South)...",
    },
    {"instruction": "Translate the following phrase into French.", "input": "I love you.", "output": "Je t'aime."},
]
SOUND = {"instruction": "Why?", "output": "So."}


@pytest.fixture
def read(tmp_path):
    """read_alpaca of objects, written as a JSON list."""

    def write_and_read(*values, **options):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return read_alpaca(path, **options)

    return write_and_read


def problem_of(row):
    return split_problem(row["problem"])


# Sound rows


def test_the_rows_of_the_guide(read):
    dataset = read(*GUIDE)
    assert isinstance(dataset, Dataset)
    assert dataset["messages"][:] == [
        [user(GUIDE[0]["instruction"]), assistant(GUIDE[0]["output"])],
        [user("Translate the following phrase into French.\n\nI love you."), assistant("Je t'aime.")],
    ]
    assert dataset["images"][:] == [[], []]
    assert (dataset["row"], dataset["problem"], dataset["note"]) == ([1, 2], ["", ""], ["", ""])
    assert dataset["input"] == ["", "I love you."]


def test_a_list_and_lines_give_equal_datasets(tmp_path, read):
    values = [
        *GUIDE,
        {"instruction": "Gr\u00f6\u00dfe \u540d\u524d \U0001f642", "input": 7, "output": "3.5", "id": 1.5},
    ]
    lines = tmp_path / "data.jsonl"
    lines.write_text("\n".join(json.dumps(value) for value in values))
    from_list, from_lines = read(*values), read_alpaca(lines)
    assert from_list.features == from_lines.features
    assert from_list.to_list() == from_lines.to_list()
    assert from_list[2]["messages"][0] == user("Gr\u00f6\u00dfe \u540d\u524d \U0001f642\n\n7")


def test_the_fields_of_the_source_are_columns_of_strings(read):
    dataset = read(SOUND | {"row": 7, "tags": ["a", "\u00e9"], "ok": True}, SOUND | {"images": None, "id": " x "})
    names = ["instruction", "output", "row_", "tags", "ok", "images_", "id"]
    assert dataset.features == {**FEATURES, **READER_FEATURES, **dict.fromkeys(names, Value("string"))}
    assert [dataset[0][name] for name in names] == ["Why?", "So.", "7", '["a", "\u00e9"]', "true", None, None]
    assert [dataset[1][name] for name in names] == ["Why?", "So.", None, None, None, None, " x "]


def test_a_field_that_appears_late_is_noted(read):
    dataset = read(*[SOUND] * 1000, SOUND | {"id": "x"})
    assert "id" not in dataset.column_names
    assert dataset[1000]["note"] == "not kept as a column, being new after row 1000: id"
    assert not any(dataset["note"][:1000])


def test_fields_by_other_names(read):
    dataset = read(
        {"prompt": "Translate.", "query": "Yes.", "response": "Oui."},
        instruction_field="prompt", input_field="query", output_field="response",
    )  # fmt: skip
    assert dataset[0]["messages"] == [user("Translate.\n\nYes."), assistant("Oui.")]


def test_texts_lose_the_blanks_around_them(read):
    dataset = read({"instruction": " \nWhy? ", "input": "  ", "output": "\tSo.\n\nReally.\n"})
    assert dataset[0]["messages"] == [user("Why?"), assistant("So.\n\nReally.")]


@pytest.mark.parametrize(
    "more", [{}, {"input": None}, {"input": ""}, {"system": None, "history": None}, {"history": []}]
)
def test_what_is_empty_or_absent_adds_nothing(read, more):
    row = read(SOUND | more)[0]
    assert row["messages"] == [user("Why?"), assistant("So.")] and (row["problem"], row["note"]) == ("", "")


def test_system_and_history_come_first(read):
    row = read(SOUND | {"input": "It rains.", "system": " Be kind. ", "history": [["Hi", "Hello"], ["Who?", 42]]})[0]
    assert row["messages"] == [
        {"role": "system", "content": [text_part("Be kind.")]},
        *[user("Hi"), assistant("Hello"), user("Who?"), assistant("42")],
        *[user("Why?\n\nIt rains."), assistant("So.")],
    ]
    assert (row["problem"], row["note"]) == ("", "number read as text")


@pytest.mark.parametrize(("number", "text"), [(5, "5"), (0, "0"), (-2.5, "-2.5")])
def test_a_number_is_read_as_text_and_noted(read, number, text):
    row = read({"instruction": number, "output": number})[0]
    assert row["messages"] == [user(text), assistant(text)]
    assert (row["problem"], row["note"]) == ("", "number read as text")


# Rows with a problem


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (SOUND | {"output": ""}, "empty output"),
        (SOUND | {"output": " \n"}, "empty output"),
        (SOUND | {"instruction": None}, "empty instruction"),
        ({"instruction": "", "input": "Yes.", "output": ""}, "empty instruction; empty output"),
        ({"input": "Yes.", "output": "Oui."}, "no field 'instruction'"),
        ({}, "no field 'instruction'; no field 'output'"),
        (SOUND | {"output": ["So."]}, "output is a list, not text"),
        (SOUND | {"input": {"a": 1}}, "input is an object, not text"),
        (SOUND | {"instruction": True}, "instruction is true or false, not text"),
        (SOUND | {"system": ["Be kind."]}, "system is a list, not text"),
        (SOUND | {"history": "Hi"}, "history is no list of pairs"),
        (SOUND | {"history": ["Hi", "Hello"]}, "history is no list of pairs"),
        (SOUND | {"history": [["Hi"]]}, "history is no list of pairs"),
        (SOUND | {"history": [["Hi", ""]]}, "empty text in history"),
        (SOUND | {"history": [["Hi", ["Hello"]]]}, "a text in history is a list, not text; empty text in history"),
        ("Why?", 'no object: "Why?"'),
    ],
)
def test_a_broken_row_keeps_its_place(read, value, reason):
    dataset = read(SOUND, value, SOUND)
    assert dataset["row"] == [1, 2, 3]
    assert [problem_of(row)[0] for row in dataset] == ["", reason, ""]
    assert problem_of(dataset[1])[1]


def test_the_remedy_for_a_missing_field_names_those_of_the_row(read):
    dataset = read(SOUND, {"instruction": "Why?", "answer": "So."})
    assert problem_of(dataset[1])[1] == "add it; the row has instruction, answer"


def test_a_broken_line_is_kept_where_validation_finds_it(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{json.dumps(SOUND)}\n{{"instruction": "Why?", "out\n')
    row = read_alpaca(path)[1]
    assert problem_of(row)[0].startswith("not JSON: Unterminated string")
    assert (row["instruction"], row["output"]) == ('{"instruction": "Why?", "out', None)


def test_validation_hands_rejected_rows_back(read, tmp_path):
    report = check_dataset(read(SOUND, {"instruction": "Who?", "output": "", "tags": ["x"]}, SOUND | {"output": 5}))
    assert report.counts["kept"] == 2 and [record["row"] for record in report.rejected] == [2]
    assert [record["reason"] for record in report.repaired] == ["number read as text"]
    report.save_rejected(tmp_path / "rejected.csv")
    with open(tmp_path / "rejected.csv", encoding="utf-8-sig", newline="") as file:
        (saved,) = csv.DictReader(file)
    assert saved == {
        "instruction": "Who?",
        "output": "",
        "tags": '["x"]',
        "source_row": "2",
        "reason": "empty output",
        "remedy": "write the answer that the model should give",
    }


# What is wrong with the file


def test_a_file_of_other_fields_is_an_error_that_names_them(read):
    with pytest.raises(ValueError) as caught:
        read({"Instructions": "Why?", "response": "So."}, {"response": "So."})
    message = str(caught.value)
    assert "data.json has no field 'instruction' and no field 'output'. Its fields: Instructions, response." in message
    assert "read_alpaca(..., instruction_field='Instructions', output_field='response')" in message


def test_rows_inside_an_object_are_an_error_that_names_where(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"version": 1, "data": GUIDE}))
    with pytest.raises(ValueError, match="inside an object, under 'data'.*Save that list"):
        read_alpaca(path)


@pytest.mark.parametrize("content", ["instruction,output\nWhy?,So.\n", "5\n6\n", "[[1], [2]]"])
def test_a_file_without_an_object_is_an_error(tmp_path, content):
    path = tmp_path / "data.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"data.json, row 1: (not JSON|no object): .*Expected is a list of objects"):
        read_alpaca(path)


def test_a_list_that_is_cut_off_is_an_error_that_names_the_row(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([SOUND] * 3)[:-10])
    with pytest.raises(ValueError, match="data.json, row 3: "):
        read_alpaca(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_alpaca(tmp_path / "gone.json")
