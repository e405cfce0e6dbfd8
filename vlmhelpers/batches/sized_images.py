"""Batches without pixels: what a processor makes of images follows from their sizes, and so do tokens and errors."""

import copy
from functools import lru_cache

from transformers import ProcessorMixin

from vlmhelpers.families import family_of
from vlmhelpers.families.family import ImageProcessorStandIn


def without_pixels(processor: ProcessorMixin) -> ProcessorMixin:
    """A copy of `processor` for rows whose images are `SizedImage`: tokens and refusals are as with their pixels."""
    family, processor = family_of(processor), copy.copy(processor)
    own = processor.image_processor
    processor.image_processor = family.size_reader(own) or _BlankImages(own, family)
    return processor


class _BlankImages(ImageProcessorStandIn):
    """Gives what the image processor makes of blank images of the same sizes, computed once while sizes repeat."""

    def __init__(self, image_processor, family):
        super().__init__(image_processor)
        self.of_sizes = lru_cache(maxsize=16)(
            lambda rows: image_processor([[family.blank_image(size) for size in row] for row in rows], **self.options)
        )

    def __call__(self, images, **options):
        self.options = options  # the same in all calls of a collator
        rows = images if isinstance(images[0], list) else [images]
        return copy.copy(self.of_sizes(tuple(tuple(image.size for image in row) for row in rows)))
