"""What the checks of all families share: each tiny base, loaded once per worker, and rows of every kind."""

import functools
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_onevision import UNDESCRIBED, save_onevision
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import assistant, make_row, user
from vlmhelpers.families import FAMILIES, Family, family_of, tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.drawing import sample_products


class Base(NamedTuple):
    """A tiny base; no test changes it."""

    name: str
    folder: Path
    family: Family
    model: PreTrainedModel
    processor: ProcessorMixin
    collator: VisionCollator


@pytest.fixture(scope="session")
def load(tiny, tmp_path_factory):
    """Gives the `Base` of that name, `load(name, bits)`, the same in every call."""
    undescribed = save_onevision(tmp_path_factory.mktemp(UNDESCRIBED))

    @functools.cache
    def base(name, bits):
        folder = tiny_model(name) if name in FAMILIES else undescribed
        model, processor = tiny(name, bits) if name in FAMILIES else load_model(folder, bits=bits)
        return Base(name, folder, family_of(model), model, processor, VisionCollator(processor))

    return base


@pytest.fixture(params=[*FAMILIES, UNDESCRIBED])
def base(request, load):
    """A tiny base of every family, and one of an architecture that no family describes."""
    return load(request.param, 16)


@pytest.fixture(params=[*FAMILIES, UNDESCRIBED])
def base_in_4_bits(request, load):
    return load(request.param, 4)


@pytest.fixture(params=FAMILIES)
def described(request, load):
    """A tiny base of every family that is described by hand."""
    return load(request.param, 16)


@pytest.fixture(scope="session")
def images():
    """Four images of different shapes."""
    shapes = ((48, 64), (96, 48), (64, 64), (120, 40))
    return [image.resize(shape) for (_, image), shape in zip(sample_products(4, "families", 96), shapes, strict=True)]


@pytest.fixture(scope="session")
def rows(images):
    """Rows with one, no, two and three images, and with several answers."""
    talk = [user("What is it?", images=1), assistant("A bag."), user("Sure?"), assistant("Yes, a red one.")]
    return [
        make_row("What is this?", "A red striped scarf for $20.", images[:1]),
        make_row("Say é and 🙂.", "é🙂"),
        make_row("Compare.", "One is red,\n the other blue.", images[1:3]),
        {"messages": talk, "images": images[3:]},
        make_row("Which is odd?", "The last one.", [images[0], images[0], images[3]]),
    ]


@pytest.fixture(scope="session")
def batches_of(rows):
    """The rows in the batches that a family allows: mixed, or those with images and those without apart."""

    def batches(family):
        apart = [[row for row in rows if row["images"]], [row for row in rows if not row["images"]]]
        return [rows] if family.mixable else apart

    return batches
