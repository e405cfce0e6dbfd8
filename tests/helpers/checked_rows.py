"""What the tests of validation share: drawn images, and rows with them embedded."""

import io

from datasets import Dataset

from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.samples.drawing import sample_products

PICTURES = [image for _, image in sample_products(24, seed="check", size=48)]


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def dataset_of(*rows):
    return Dataset.from_list(list(rows), features=FEATURES)


def row_of(number, question="What is it?", answer=None):
    """A sound row with picture `number`, embedded."""
    return make_row(question, answer or f"Product {number}.", [PICTURES[number]])


def reasons(records):
    return [(record["row"], record["reason"]) for record in records]
