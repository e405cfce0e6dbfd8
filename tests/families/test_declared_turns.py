"""What a family declares of turns is what the processors of its models take: all conversations of up to four turns."""

from itertools import product

import pytest
from bases import DESCRIBED
from PIL import Image
from processors import processor_of

from vlmhelpers.batches import VisionCollator
from vlmhelpers.batches.fit import problems_with
from vlmhelpers.data.rules import row_problems
from vlmhelpers.data.schema import assistant, text_part, user
from vlmhelpers.families import family_of

IMAGE = Image.new("RGB", (56, 56), "red")
TURNS = {
    "s": {"role": "system", "content": [text_part("Be brief.")]},  # the same twice: one that is left out is noticed
    "u": user("Why?"),
    "i": user("What?", 1),
    "a": assistant("So."),
    "c": assistant("No.") | {"train": False},
}
SAID = [letters for turns in range(1, 5) for letters in product(TURNS, repeat=turns)]
ROWS = [{"messages": [TURNS[one] for one in letters], "images": [IMAGE] * letters.count("i")} for letters in SAID]
SOUND = [row for row in ROWS if not row_problems(row)]
# Whose chat template takes more than that of another model of its family, which is as the published one.
LENIENT = {"qwen3-vl", "mistral-3"}


def is_taken(collator, row):
    try:
        return bool(collator([row]))
    except ValueError:
        return False


@pytest.mark.slow  # half a minute in all
@pytest.mark.parametrize("base", DESCRIBED)
def test_turns_are_taken_as_declared(base, folder):
    processor = processor_of(base, folder)
    family, collator = family_of(processor), VisionCollator(processor)
    unfit = [row for row in SOUND if problems_with(family, row)]
    assert all(is_taken(collator, row) for row in SOUND if row not in unfit)
    assert bool(unfit) == bool(family.turns[1])
    if base not in LENIENT:
        assert sum(is_taken(collator, row) for row in unfit) <= len(unfit) / 5
