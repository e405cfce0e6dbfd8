"""Tokens of each row as the collator counts them, from the sizes of its images."""

import copy
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.images import repair
from vlmhelpers.families import family_of
from vlmhelpers.families.family import ImageProcessorStandIn, SizedImage


class Count(NamedTuple):
    """The tokens of one row: all of them, those of its images, those with a label.

    `row` is its number, `index` its index in the dataset, `sized` the row itself with images of the same sizes, but
    without pixels.
    """

    row: int
    index: int
    total: int
    image: int
    labeled: int
    sized: dict


def count_rows(dataset: Dataset, indices: Iterable[int], processor: ProcessorMixin, **options) -> tuple[list, list]:
    """(a `Count` of each row at `indices` of `dataset`, (row number, reason) of those that cannot be used).

    Every image is decoded once, so that a damaged one is found. `options` are the `VisionCollator`'s.
    """
    numbers = list(dataset["row"]) if "row" in dataset.column_names else range(1, len(dataset) + 1)
    collator = _counting_collator(processor, options)
    counts, unusable = [], []
    for index in tqdm(indices, desc="counting tokens", unit=" rows", delay=1):
        try:
            row = dataset[index]
            sized = row | {"images": [SizedImage(repair(image).size) for image in row["images"]]}
            counts.append(_count(collator, sized, numbers[index], index))
        except Exception as error:  # decoders raise OSError, SyntaxError and more; the collator ValueError
            unusable.append((numbers[index], f"{type(error).__name__}: {error}"))
    return counts, unusable


def count_again(counts: Iterable[Count], processor: ProcessorMixin, **options) -> list[Count]:
    """The same rows, counted with another processor, such as one with a cap on pixels."""
    collator = _counting_collator(processor, options)
    return [_count(collator, count.sized, count.row, count.index) for count in counts]


def _count(collator, row, number, index):
    batch = collator([row])
    image = (batch["input_ids"] == collator.processor.image_token_id).sum()
    image *= collator.family.images_in_sequence  # elsewhere a mark in the text, but no token of an image's content
    total, labeled = batch["attention_mask"].sum(), (batch["labels"] != IGNORED).sum()
    return Count(number, index, int(total), int(image), int(labeled), row)


def _counting_collator(processor, options):
    family, processor = family_of(processor), copy.copy(processor)
    own = processor.image_processor
    processor.image_processor = family.size_reader(own) or _BlankImages(own, family)
    return VisionCollator(processor, **options)


class _BlankImages(ImageProcessorStandIn):
    """Gives what the image processor makes of blank images of the same sizes, computed once while sizes repeat."""

    def __init__(self, image_processor, family):
        super().__init__(image_processor)
        self.options = {}
        self.of_sizes = lru_cache(maxsize=16)(
            lambda rows: image_processor([[family.blank_image(size) for size in row] for row in rows], **self.options)
        )

    def __call__(self, images, **options):
        """`images` in a list per row, as the collator has them: a processor may treat several of a row otherwise."""
        self.options = options  # the same in all calls of a collator
        rows = images if isinstance(images[0], list) else [images]
        return copy.copy(self.of_sizes(tuple(tuple(image.size for image in row) for row in rows)))
