"""The tiny models that the conformance suite tries: of every family the tiny base, else a random one, and of its kin.

A name is that of the family, with the model type behind it where a family has several; "generic" stands before those
that no family describes.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import other_families
import random_families
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmhelpers.batches import VisionCollator
from vlmhelpers.data.schema import assistant, make_row, user
from vlmhelpers.families import FAMILIES, TINY_BASES, Family, family_of, tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.drawing import sample_products

SHAPES = ((48, 64), (96, 48), (64, 64), (120, 40))  # width and height of the images of the rows
# What the collator says of rows with several answers, for thinking models and where an answer has no end.
ONE_ANSWER = 'pass train_on="last"', "writes no end token after an answer"
_BUILDERS = random_families.BUILDERS | other_families.BUILDERS
_ENDS = random_families.ENDS | other_families.ENDS


def _bases_of(family):
    """name -> model type to build, or None for the tiny base."""
    types = [kind for kind in family.model_types if kind in _BUILDERS]
    if family.name in TINY_BASES:
        return {family.name: None} | {f"{family.name}-{kind}": kind for kind in types[1:]}
    return {family.name if kind == types[0] else f"{family.name}-{kind}": kind for kind in types}


DESCRIBED = {name: kind for family in FAMILIES.values() for name, kind in _bases_of(family).items()}
GENERIC = {
    f"generic-{kind}": kind
    for kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    if kind in _BUILDERS and not any(kind in family.model_types for family in FAMILIES.values())
}


@dataclass
class Base:
    """A tiny model and its processor, which no check changes, and what the checks share."""

    name: str
    folder: Path
    model: PreTrainedModel
    processor: ProcessorMixin
    scratch: Path  # an empty folder

    @cached_property
    def family(self) -> Family:
        return family_of(self.model)

    @cached_property
    def collator(self) -> VisionCollator:
        return VisionCollator(self.processor)

    @cached_property
    def in_4_bits(self) -> PreTrainedModel:
        return load_model(self.folder, bits=4, backend="transformers")[0]

    @cached_property
    def images(self) -> list[Image.Image]:
        """Four images of different shapes."""
        drawn = sample_products(len(SHAPES), "families", 96)
        return [image.resize(shape) for (_, image), shape in zip(drawn, SHAPES, strict=True)]

    @cached_property
    def rows(self) -> list[dict]:
        """Rows with one, no, two and three images, and with several answers, where the template can teach those."""
        one, two, three, wide = self.images
        talk = [user("What is it?", images=1), assistant("A bag."), user("Sure?"), assistant("Yes, a red one.")]
        rows = [
            make_row("What is this?", "A red striped scarf for $20.", [one]),
            make_row("Say é and 🙂.", "é🙂"),
            make_row("Compare.", "One is red,\n the other blue.", [two, three]),
            make_row("Which is odd?", "The last one.", [one, one, wide]),
            {"messages": talk, "images": [wide]},
        ]
        return [row for row in rows if self.teaches(row)]

    def teaches(self, row: dict) -> bool:
        """Whether all answers of the row can be learned: a thinking model learns one at a time."""
        try:
            return bool(self.collator([row]))
        except ValueError as error:  # any other is for the checks to say
            return not any(reason in str(error) for reason in ONE_ANSWER)

    def batches(self) -> list[list[dict]]:
        """The rows in batches that the family allows: mixed, or those with images and those without apart."""
        apart = [[row for row in self.rows if row["images"]], [row for row in self.rows if not row["images"]]]
        return [self.rows] if self.family.mixable else apart


def load_base(name: str, scratch: Path) -> Base:
    """The base of that name; what is written for it goes into `scratch`."""
    kind = (DESCRIBED | GENERIC)[name]
    folder = tiny_model(name) if kind is None else random_families.build(kind, scratch, _BUILDERS, _ENDS)
    work = scratch / f"{name}.work"
    work.mkdir(parents=True)
    return Base(name, folder, *load_model(folder, bits=16, backend="transformers"), work)
