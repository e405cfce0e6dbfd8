"""Which kind of rows a source of any form is read as."""

import json

import pytest

from vlmhelpers.cli import main
from vlmhelpers.data.readers.dataset_reader import read_dataset
from vlmhelpers.data.schema import assistant, kind_of, user

RECEIPT = {"image": "a.png", "ground_truth": '{"gt_parse": {"total": "9"}}'}  # in CORD's form


@pytest.fixture
def file(tmp_path):
    def write(**fields):
        path = tmp_path / "rows.jsonl"
        path.write_text(json.dumps(fields))
        return path

    return write


def test_answers_without_a_question_are_to_be_learned(file):
    dataset = read_dataset(file(**RECEIPT), instruction="Read it.", response_field="ground_truth")
    assert dataset["problem"] == [""]
    assert dataset["messages"] == [[user("Read it.", images=1), assistant(RECEIPT["ground_truth"])]]
    for named in ({}, {"response_field": "ground_truth"}):
        with pytest.raises(ValueError, match="no field 'text'.*read_dataset"):
            read_dataset(file(**RECEIPT), **named)


@pytest.mark.parametrize(("asked", "named"), [("prompt", {}), ("ask", {"text_field": "ask"})])
def test_answers_beside_a_question_are_to_be_compared_with(file, asked, named):
    path = file(**RECEIPT, **{asked: "Read it."})
    dataset = read_dataset(path, **named)
    assert kind_of(dataset.column_names) == "prompts" and dataset["answer"] == [RECEIPT["ground_truth"]]
    with pytest.raises(ValueError, match="rows of prompts have their own questions"):
        read_dataset(path, instruction="Read it.", response_field="ground_truth", kind="prompts")


@pytest.mark.parametrize(
    "named", [["--response-field", "ground_truth", "--instruction", "Read it."], ["--text-field", "ask"]]
)
def test_check_takes_them_as_read_dataset_does(file, tmp_path, named, capsys):
    path = file(**RECEIPT, ask="What is the total?")
    main(["check", str(path), *named])
    assert ("kind of rows: prompts" in capsys.readouterr().out) == ("--text-field" in named)
