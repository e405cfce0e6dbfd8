"""A row that cannot be used is refused by its name, with what is wrong and what to do."""

import re

import pytest

from vlmhelpers.batches.conversation import to_answer, to_train
from vlmhelpers.data.schema import assistant, image_part, make_row, text_part, user
from vlmhelpers.samples.drawing import sample_products

PICTURE = sample_products(1, "conversation")[0][1]
NO_TOKENS, TOKENS = re.compile("(?!)"), re.compile(r"<\|im_end\|>|</s>|\[CUT\]")
PLAIN = {"role": "user", "content": "Hi"}

BAD_ROWS = {  # beside those of tests/data/test_rules.py: what no Dataset of the schema can hold
    "a path": (make_row("What?", "A bag.", ["bag.jpg"]), "no image: image 1 is str"),
    "no images column": (
        {"messages": [user("What?", 1), assistant("A bag.")]},
        "images do not match: 1 image parts, 0",
    ),
    "content without parts": ({"messages": [PLAIN, assistant("Hi")]}, "content is no list of parts"),
    "half a character": (make_row("What\ud83d?", "A bag."), "half a character: a lone surrogate"),
    "a part without text": ({"messages": [user("Hi"), {"role": "assistant", "content": [{"type": "text"}]}]}, "a text"),
}


@pytest.mark.parametrize("problem", BAD_ROWS)
def test_a_bad_row_is_refused_by_its_number_else_by_its_index(problem):
    row, message = BAD_ROWS[problem]
    with pytest.raises(ValueError, match=f"^row 17: {message}.* Remedy: .*run check_dataset"):
        to_train(row | {"row": 17}, 3, control=NO_TOKENS)
    with pytest.raises(ValueError, match=rf"^row 4 of the batch \('.*'\): {message}.* Remedy: .*run check_dataset"):
        to_train(row, 3, control=NO_TOKENS)


def test_a_row_without_a_number_shows_how_its_text_begins():
    with pytest.raises(ValueError, match=re.escape("row 1 of the batch ('A question that goes on and on and on an')")):
        to_train(make_row("A question that goes on and on and on and on.", ""), 0, control=NO_TOKENS)


def test_a_prompt_needs_no_answer_but_its_other_rules_hold():
    row = make_row("What?", "", [PICTURE])
    expected = [{"role": "user", "content": [{"type": "image"}, text_part("What?")]}]
    assert to_answer(row, 0, control=NO_TOKENS).messages == expected
    assert to_answer(row | {"messages": row["messages"][:1]}, 0, control=NO_TOKENS).messages == expected
    with pytest.raises(ValueError, match="^row 2: no image: image 1 is NoneType"):
        to_answer(row | {"images": [None], "row": 2}, 0, control=NO_TOKENS)


def test_a_system_turn_is_a_string_and_holds_no_image():
    """Llama 3.2 Vision's own template writes a list of parts there as Python would print it."""
    system = {"role": "system", "content": [text_part("Be "), text_part("brief.</s>")]}
    row = make_row("What?", "A bag.")
    row["messages"].insert(0, system)
    assert to_train(row, 0, control=TOKENS).messages[0] == {"role": "system", "content": "Be brief.< /s>"}
    row["messages"][0] = {"role": "system", "content": [image_part()]}
    with pytest.raises(
        ValueError, match="image in a system turn. Remedy: move it to the user's turn; images belong there"
    ):
        to_train(row | {"images": [PICTURE]}, 0, control=NO_TOKENS)


def test_control_tokens_are_defused_also_across_parts_and_no_others():
    split = {"role": "user", "content": [text_part("<|im"), text_part("_end|>"), image_part(), text_part("[CUT]")]}
    row = {"messages": [split, assistant("</s> yes <s> <|end|>")], "images": [PICTURE]}
    conversation = to_train(row, 0, control=TOKENS)
    texts = [p["text"] for m in conversation.messages for p in m["content"] if p["type"] == "text"]
    assert texts == ["< |im_end|>", "[ CUT]", "< /s> yes <s> <|end|>"]
    assert row["messages"][0] is split and split["content"][0]["text"] == "<|im"


@pytest.mark.parametrize(
    "answer, kept", [("\n\nYes.\n", "Yes.\n"), (" \r\n  if x:\n    y", "  if x:\n    y"), (" Yes.", " Yes.")]
)
def test_an_answer_loses_only_the_blank_lines_before_it(answer, kept):
    assert to_train(make_row("\nWhy?", answer), 0, control=NO_TOKENS).messages == [user("\nWhy?"), assistant(kept)]
