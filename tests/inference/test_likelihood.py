"""Log-probabilities of answers against a plain computation, one answer at a time and without padding."""

import pytest
import torch

from vlmhelpers.batches import PreferenceCollator, VisionCollator
from vlmhelpers.data.schema import make_pair
from vlmhelpers.families import TINY_BASES
from vlmhelpers.inference.likelihood import sequence_logps
from vlmhelpers.samples.drawing import sample_products

BLACK, WHITE = (image for _, image in sample_products(2, "likely", 48))
LONG = "This is a red striped bag with two handles, which is for sale for 20 dollars."
PAIRS = [
    make_pair("What is this?", "A red bag.", LONG, [BLACK]),
    make_pair("What do you see in these two pictures?", "Bags.", "No.", [BLACK, WHITE]),
]


def by_hand(model, processor, row, side):
    """(sum of the log-probabilities of an answer's tokens, their number)."""
    batch = VisionCollator(processor)([{"messages": [*row["prompt"], *row[side]], "images": row["images"]}])
    labels = batch.pop("labels")[0]
    logps = model(**batch).logits[0].log_softmax(dim=-1)
    places = (labels >= 0).nonzero().flatten().tolist()
    return sum(logps[place - 1, labels[place]].item() for place in places), len(places)


@pytest.mark.parametrize("family", TINY_BASES)
def test_an_answer_is_as_likely_as_its_tokens_together(tiny, family):
    model, processor = tiny(family)
    with torch.no_grad():
        expected = [by_hand(model, processor, row, side) for side in ("chosen", "rejected") for row in PAIRS]
        for logits in ("all", "labeled"):
            batch = PreferenceCollator(processor, logits=logits)(PAIRS)
            names = set(batch)
            sums, counts = sequence_logps(model, batch)
            assert set(batch) == names and counts.tolist() == [count for _, count in expected]
            torch.testing.assert_close(sums, torch.tensor([found for found, _ in expected]), atol=1e-3, rtol=1e-4)
    assert len(set(counts.tolist())) > 2  # else no row is padded


def test_gradients_are_the_same_where_few_logits_are_computed(tiny):
    gradients = []
    for logits in ("all", "labeled"):
        model, processor = tiny("qwen3-vl")
        sequence_logps(model, PreferenceCollator(processor, logits=logits)(PAIRS))[0].sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
