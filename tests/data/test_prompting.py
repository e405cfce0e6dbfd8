"""A better prompt changes the question of a row and nothing else."""

from vlmhelpers.data.schema import answer_of, message_text
from vlmhelpers.data.turns import prompted


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
