"""Answers come in row order, whatever the batches."""

import pytest

from vlmhelpers.drawing import QUESTIONS, sample_products
from vlmhelpers.generation import generate
from vlmhelpers.models import FAMILIES, load_model, tiny_model


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_rows_are_answered_in_order_in_any_batch_size(family, rows_of):
    model, processor = load_model(tiny_model(family), bits=None)
    samples, questions = sample_products(12, "order", size=96), list(QUESTIONS.items())
    rows = [(q, a(p), [image]) for (p, image), (q, a) in zip(samples, questions * 3, strict=False)]
    rows[3:3] = [("What is the opposite of big?", "Small.", []), ("Write 3 as a word.", "Three.", [])]
    dataset = rows_of(rows)
    alone = generate(model, processor, dataset, batch_size=1, progress=False)
    together = generate(model, processor, dataset, batch_size=5, progress=False)
    assert alone == together
    assert together[3:5] == ["Small.", "Three."]
    assert sum(answer == row[1] for answer, row in zip(together, rows, strict=True)) >= 12


def test_training_mode_comes_back(rows_of):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=None)
    dataset = rows_of([("Write 3 as a word.", "Three.", [])])
    assert generate(model.train(), processor, dataset, progress=False) == ["Three."] and model.training
    generate(model.eval(), processor, dataset, progress=False)
    assert not model.training
