"""Notes of the report: what is wrong with pairs, rated rows and prompts as a whole, with its figure."""

import re

import pytest
from datasets import Dataset

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.schema import KINDS, kind_of, make_pair, make_prompt, make_rated, make_row

LONG, SHORT = "a" * 20, "b" * 5


def notes(rows):
    return check_dataset(Dataset.from_list(rows, features=KINDS[kind_of(rows[0])]), progress=False).notes


def pairs(longer, shorter, equal=0):
    sides = [(LONG, SHORT)] * longer + [(SHORT, LONG)] * shorter + [(LONG, LONG[:-1] + "c")] * equal
    return [make_pair(f"Why {n}?", *answers) for n, answers in enumerate(sides)]


def rated(good, bad):
    """Rows of answers of the given lengths."""
    answers = [(n, True) for n in good] + [(n, False) for n in bad]
    return [make_rated(f"Why {i}?", "a" * n, label) for i, (n, label) in enumerate(answers)]


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (pairs(18, 2), "The longer answer is the chosen one in 90% of 20 pairs."),
        (pairs(1, 39), "The shorter answer is the chosen one in 98% of 40 pairs."),
        (pairs(19, 0), None),
        (pairs(17, 3), None),
        (pairs(17, 0, equal=3), None),
        (rated([9] * 3, []), "All 3 labels are true: nothing tells good answers from others."),
        (rated([], [9] * 3), "All 3 labels are false"),
        (
            rated([*range(11, 21)], [*range(1, 10), 12]),
            "Of 10 answers labeled true and 10 labeled false, the good one is longer in 98% of the comparisons.",
        ),
        (rated([5] * 10, [9] * 10), "the good one is shorter in 100% of the comparisons"),
        (rated([5] * 9, [9] * 20), None),
        (rated([5] * 10, [5] * 10), None),
        ([make_prompt("Why?", ""), make_prompt("How?", "So.")], "1 of 2 prompts have no answer that a reward"),
        ([make_row(f"Why {n}?", SHORT) for n in range(30)], None),
    ],
)
def test_a_dataset_is_judged_as_a_whole(rows, found):
    noted = notes(rows)
    assert noted == [] if found is None else len(noted) == 1 and found in noted[0]


def test_notes_are_on_the_kept_rows_and_stand_at_the_top():
    rows = pairs(20, 0)
    broken = [make_pair("Why?", SHORT, LONG) | {"prompt": []}] * 20
    report = check_dataset(Dataset.from_list([*rows, *broken], features=KINDS["pairs"]), progress=False)
    assert report.counts["kept"] == 20 and "100% of 20 pairs" in report.notes[0]
    assert repr(report).splitlines()[1] == report.notes[0]
    assert re.search(r"<p>The longer answer .*Rejected", report._repr_html_())
