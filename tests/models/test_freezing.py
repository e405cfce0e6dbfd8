"""Own weights are trained where they were meant to be, and nowhere else."""

import re

import pytest
import torch

from vlmhelpers.batches import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.families import FAMILIES, TOWERS, family_of
from vlmhelpers.models import train_only

# Phi-3 takes the states of the layer before the last one.
UNUSED = r"img_processor\.(encoder\.layers\.3|post_layernorm)\."


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_towers(model, *towers):
    tower_of = family_of(model).tower_of
    return {name for name, _ in model.named_parameters() if tower_of(name) in towers}


def last_of_language(model, number):
    """The names in the last layers of the language tower."""
    found = {name: re.search(r"layers\.(\d+)\.", name) for name in of_towers(model, "language")}
    layers = sorted({int(match[1]) for match in found.values() if match})[-number:]
    return {name for name, match in found.items() if match and int(match[1]) in layers}


@pytest.mark.parametrize("family", FAMILIES)
def test_towers_and_last_layers(tiny, family):
    model, _ = tiny(family)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    cases = [
        ({}, set(sizes)),
        ({"towers": ["vision"]}, of_towers(model, "vision")),
        ({"towers": ["language", "projector"]}, of_towers(model, "language", "projector")),
        ({"towers": ["language"], "last_layers": 1}, last_of_language(model, 1)),
        ({"last_layers": 1}, last_of_language(model, 1) | of_towers(model, "vision", "projector", "head")),
        ({"last_layers": 0}, of_towers(model, "vision", "projector", "head")),
        ({"towers": ["projector"], "last_layers": 2}, of_towers(model, "projector")),
        ({"towers": ["language"], "last_layers": 99}, last_of_language(model, 99)),
    ]
    for settings, expected in cases:  # one after another: what was frozen before is trained again
        table = train_only(model, **settings)
        assert trained(model) == expected != set(), settings
        for tower in TOWERS:
            names = of_towers(model, tower)
            assert table.counts[tower] == (sum(sizes[n] for n in names & expected), sum(sizes[n] for n in names))
    assert 0 < len(last_of_language(model, 1)) < len(last_of_language(model, 99)) < len(of_towers(model, "language"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings", [{"towers": ["vision", "projector"]}, {"towers": ["language"], "last_layers": 1}, {"last_layers": 0}]
)
def test_training_changes_exactly_these(tiny, family, settings, picture):
    model, processor = tiny(family)
    train_only(model, **settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = VisionCollator(processor)([make_row("What is this?", "A crimson boot.", [picture])])
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in trained(model) if not re.search(UNUSED, name)} != set()


def test_refusals(tiny):
    model, _ = tiny("qwen3-vl")
    with pytest.raises(ValueError, match="^towers: ears, tongue: choose from vision, projector, language, head$"):
        train_only(model, ["tongue", "vision", "ears"])
    with pytest.raises(ValueError, match="last_layers=-1: a number of layers"):
        train_only(model, last_layers=-1)
    for settings in ({"towers": []}, {"towers": ["language"], "last_layers": 0}):
        with pytest.raises(ValueError, match="nothing would be trained"):
            train_only(model, **settings)


@pytest.mark.slow
def test_weights_of_4_bits_are_refused(tiny):
    with pytest.raises(ValueError, match="4 bits cannot be trained: load the model with bits=16"):
        train_only(tiny("qwen3-vl", bits=4)[0])
