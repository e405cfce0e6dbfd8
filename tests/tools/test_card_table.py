"""README's table of models and GPUs is what the formulas give."""

import card_table
import pytest


def cells():
    """(notebook, model, cells of the GPUs) of each line in README."""
    text = (card_table.ROOT / "README.md").read_text(encoding="utf-8")
    lines = text.partition(card_table.START)[2].partition(card_table.END)[0].strip().splitlines()[2:]
    for line in lines:
        words, model, *found = (part.strip() for part in line.strip("|").split("|"))
        yield words, model, found


def test_every_model_of_every_notebook_has_a_line():
    expected = [
        (f"{number}: {words}", model_id.partition("/")[2])
        for number, (words, *_, model_ids) in card_table.NOTEBOOKS.items()
        for model_id in model_ids
    ]
    assert [(words, model) for words, model, _ in cells()] == expected
    assert all(len(found) == len(card_table.CARDS) for _, _, found in cells())


@pytest.mark.slow
def test_a_line_is_computed_as_it_stands_there():
    words, row, labeled, (model_id,) = card_table.NOTEBOOKS["3"]
    (found,) = (found for line, _, found in cells() if line == f"3: {words}")
    assert card_table.cell(model_id, row, labeled, "T4") == found[0]
