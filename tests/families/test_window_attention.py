"""Attention by groups of windows gives what transformers' loop over windows gives."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.families import tiny_model
from vlmhelpers.families.qwen_vl import attend_in_groups, group_windows
from vlmhelpers.models.loading import load_model

FOLDER = tiny_model("qwen2.5-vl")


@pytest.fixture(scope="module")
def batch():
    """Three pictures of different shapes: windows of many lengths, also at the edges."""
    processor = AutoProcessor.from_pretrained(FOLDER)
    processor.image_processor.size = {"shortest_edge": 32**2, "longest_edge": 200**2}
    noise = torch.randint(0, 256, (200, 200, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    pictures = [Image.fromarray(noise[:height, :width]) for height, width in ((200, 88), (40, 144), (72, 72))]
    return VisionCollator(processor)([make_row("What is this?", "A bag.", [picture]) for picture in pictures])


def fresh():
    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32)


@pytest.mark.slow
def test_the_outputs_and_gradients_are_those_of_the_loop(batch):
    loop, grouped = fresh(), fresh()
    assert group_windows(grouped)
    outputs = [model(**batch) for model in (loop, grouped)]
    torch.testing.assert_close(outputs[1].logits, outputs[0].logits, atol=2e-5, rtol=1e-4)
    for output in outputs:
        output.loss.backward()
    for (name, one), (_, other) in zip(
        loop.model.visual.named_parameters(), grouped.model.visual.named_parameters(), strict=True
    ):
        torch.testing.assert_close(other.grad, one.grad, atol=2e-6, rtol=1e-3, msg=name)


def test_one_call_per_length_of_window(batch, monkeypatch):
    shapes = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query, *rest, **options):
        shapes.append(tuple(query.shape))
        return real(query, *rest, **options)

    monkeypatch.setattr("vlmhelpers.families.qwen_vl.scaled_dot_product_attention", spy)
    model = fresh()
    group_windows(model)
    model.model.visual(batch["pixel_values"], batch["image_grid_thw"])
    patches = batch["image_grid_thw"].prod(dim=1)
    windowed = model.config.vision_config.depth - len(model.config.vision_config.fullatt_block_indexes)
    assert sum(n * length for n, _, length, _ in shapes) == patches.sum() * (windowed + 1)
    assert len(shapes) < 10 * windowed + 3  # the loop makes one call per window: some two hundred


def test_a_window_sees_itself_alone():
    states = torch.randn(3, 1, 2, 7, 4, generator=torch.Generator().manual_seed(0))
    borders = torch.tensor([0, 2, 5, 7])
    output, _ = attend_in_groups(None, *states, cu_seq_lens_q=borders, scaling=0.5)
    for start, stop in ((0, 2), (2, 5), (5, 7)):
        query, key, value = states[:, 0, :, start:stop]
        weights = torch.softmax(query @ key.transpose(1, 2) * 0.5, dim=-1)
        torch.testing.assert_close(output[0, start:stop], (weights @ value).transpose(0, 1), atol=1e-6, rtol=1e-5)


def test_it_is_on_where_there_are_windows_and_nowhere_else():
    assert "flash" in load_model(FOLDER, bits=16)[0].model.visual.config._attn_implementation
    other = load_model(tiny_model("qwen3-vl"), bits=16)[0]
    assert not group_windows(other) and other.model.visual.config._attn_implementation == "sdpa"
    eager = AutoModelForImageTextToText.from_pretrained(FOLDER, attn_implementation="eager")
    assert not group_windows(eager) and eager.model.visual.config._attn_implementation == "eager"
