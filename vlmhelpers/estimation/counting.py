"""Tokens of each row as the collator counts them, from the sizes of its pictures: no pixels are computed."""

import copy
from typing import NamedTuple

import torch
from PIL import Image
from tqdm.auto import tqdm
from transformers.image_utils import make_flat_list_of_images

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator, crosses_attention
from vlmhelpers.batches.pixel_files import SizedPicture, StandIn
from vlmhelpers.common.images import repair
from vlmhelpers.families.phi3_vision import Phi3VImageProcessor


class Count(NamedTuple):
    """The tokens of one row: all of them, those of its images, those with a label; `row` is its number, `index` its
    place in the dataset, `sized` the row itself with a picture of the same size, but without pixels, for each image.
    """

    row: int
    index: int
    total: int
    image: int
    labelled: int
    sized: dict


def count_rows(dataset, places, processor, **options):
    """(a list of `Count`, a list of (row number, reason) of the rows that cannot be used), for `places` in `dataset`.

    Every picture is decoded once, so that a damaged one is found. `options` are the `VisionCollator`'s.
    """
    numbers = list(dataset["row"]) if "row" in dataset.column_names else range(1, len(dataset) + 1)
    collator = _counting_collator(processor, options)
    counts, unusable = [], []
    for index in tqdm(places, desc="counting tokens", unit=" rows", delay=1):
        try:
            row = _without_pixels(dataset[index], processor)
            counts.append(_count(collator, row, numbers[index], index))
        except Exception as error:  # decoders raise OSError, SyntaxError and more; the collator ValueError
            unusable.append((numbers[index], f"{type(error).__name__}: {error}"))
    return counts, unusable


def count_again(counts, processor, **options):
    """The same rows, counted with another processor, such as one with a cap on pixels: a list of `Count`."""
    collator = _counting_collator(processor, options)
    return [_count(collator, count.sized, count.row, count.index) for count in counts]


def _count(collator, row, number, index):
    batch = collator([row])
    image = (batch["input_ids"] == collator.processor.image_token_id).sum()
    total, labelled = batch["attention_mask"].sum(), (batch["labels"] != IGNORED).sum()
    if crosses_attention(collator.processor):
        image = 0 * image  # a mark in the text, but no token of an image's content
    return Count(number, index, int(total), int(image), int(labelled), row)


def _counting_collator(processor, options):
    if not crosses_attention(processor):
        processor = copy.copy(processor)
        processor.image_processor = _Sizes(processor.image_processor)
    return VisionCollator(processor, **options)


def _without_pixels(row, processor):
    """The row with a stand-in for each picture. Llama 3.2 Vision's tokens are the same for a picture of any size."""
    blank = (lambda size: Image.new("RGB", (8, 8))) if crosses_attention(processor) else SizedPicture
    return row | {"images": [blank(repair(image).size) for image in row["images"]]}


class _Sizes(StandIn):
    """Says by the image processor's own rules how many tokens pictures take; no pixels."""

    def __call__(self, images, **_):
        own, pictures = self.image_processor, make_flat_list_of_images(images)
        if isinstance(own, Phi3VImageProcessor):
            return {"num_img_tokens": [own.count_tokens(*picture.size) for picture in pictures]}
        patches = [own.get_number_of_image_patches(picture.height, picture.width, {}) for picture in pictures]
        return {"image_grid_thw": torch.tensor([[1, 1, number] for number in patches])}
