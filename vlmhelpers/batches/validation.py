"""Validation for a model: the rows that are kept make batches of it. Its rules are the collator, without pixels."""

from collections.abc import Callable
from functools import partial

from datasets import Dataset
from transformers import ProcessorMixin

from vlmhelpers.batches.chat_template import Refused
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.preference import PreferenceCollator, RatedCollator
from vlmhelpers.batches.sized_images import without_pixels
from vlmhelpers.common.images import MAX_PIXELS
from vlmhelpers.data import validation
from vlmhelpers.data.report import Report
from vlmhelpers.data.rules import Problem
from vlmhelpers.data.schema import kind_of
from vlmhelpers.families.family import SizedImage

_REMEDY = "leave the row out, or train another model on it"


def check_dataset(
    dataset: Dataset | dict[str, Dataset],
    model: ProcessorMixin | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    near_duplicates: bool = True,
    reject_leaks: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Checks every row of a dataset of any kind, decodes every image once, and returns a `Report`.

    Rejected are rows with `rules.row_problems`, with an image that cannot be decoded, and those that repeat an earlier
    one. Of several splits, "train" first, the earlier one's row is also rejected for a leak, an image (or a text
    without images) in two of them: the last one, the test, stays honest. `reject_leaks=False` makes leaks warnings.

    model: a processor. Then rows are also rejected that the collator of their kind does not take with it: of what is
        kept, `VisionCollator(processor)` makes a batch of each row, with labels.
    max_pixels: larger images are rejected by their header. near_duplicates: nearly equal images are a warning within a
        split, a leak between splits. workers: how many images are decoded at a time; by default one per processor, 8 at
        most.
    Raises ValueError for a dataset without the columns of a kind of rows, TypeError for what is no dataset, and OSError
    where the machine keeps an image from being read. Memory grows with what is found, not with rows or images, which
    take up to 600 bytes each in the folder for temporary files.
    """
    return validation.validate(
        dataset,
        max_pixels=max_pixels,
        near_duplicates=near_duplicates,
        reject_leaks=reject_leaks,
        more_rules=rules_of(model) if model is not None else None,
        workers=workers,
        progress=progress,
    )


def rules_of(processor: ProcessorMixin) -> Callable[[dict, list[tuple[int, int]]], list[Problem]]:
    """What finds the problems that a sound row has with a processor, by the row and the sizes of its images."""
    sized = without_pixels(processor)
    messages, pairs, rated = VisionCollator(sized), PreferenceCollator(sized), RatedCollator(sized, mismatched=False)
    makers = {"messages": messages, "pairs": pairs, "rated": rated, "prompts": partial(_prompts, messages)}

    def problems(row, sizes):
        try:
            makers[kind_of(row)]([_of_sizes(row, sizes)])
        except ValueError as error:
            return [_problem(error)]
        return []

    return problems


def _prompts(collator, rows):
    return collator.prompts([row | {"messages": row["prompt"]} for row in rows])


def _of_sizes(row, sizes):
    """The row with images of these sizes without pixels."""
    images = [SizedImage(size) for size in sizes]
    number = len(row.get("images") or [])
    others = {"rejected_images": images[number:]} if row.get("rejected_images") else {}
    return row | {"images": images[:number]} | others


def _problem(error):
    """The reason and the remedy in what a collator raised, without the row's name."""
    while error.__cause__ is not None and not isinstance(error, Refused):
        error = error.__cause__
    return error.args if isinstance(error, Refused) else (str(error), _REMEDY)
