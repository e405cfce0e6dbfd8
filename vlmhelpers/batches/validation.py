"""Validation for a model: the rows that are kept make batches of it. Its rules are the collator, without pixels."""

from functools import partial

from datasets import Dataset
from transformers import ProcessorMixin

from vlmhelpers.batches.chat_template import Refused
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.fit import notes_on_families, problems_with
from vlmhelpers.batches.preference import PreferenceCollator, RatedCollator
from vlmhelpers.batches.sized_images import without_pixels
from vlmhelpers.common.images import MAX_PIXELS
from vlmhelpers.data import validation
from vlmhelpers.data.report import Report
from vlmhelpers.data.schema import kind_of
from vlmhelpers.families import FAMILIES
from vlmhelpers.families.family import SizedImage
from vlmhelpers.models.loading import check_processor

_SMALLEST = 256  # a shorter side in pixels, from which on no image is too small for a processor
_REMEDY = "leave the row out, or train another model on it"


def check_dataset(
    dataset: Dataset | dict[str, Dataset],
    model: ProcessorMixin | str | None = None,
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

    model: the processor, or the name of a family of models, one of `families.FAMILIES`. With a processor, rows are also
        rejected that the collator of their kind does not take: of what is kept, `VisionCollator(processor)` makes a
        batch of each row, with labels. With a family, those whose turns its published chat templates do not take.
        Without either, the report says which families do not take which rows.
    max_pixels: larger images are rejected by their header; at most MAX_PIXELS, beyond which no step reads.
    near_duplicates: nearly equal images are a warning within a split, a leak between splits. workers: how many images
        are decoded at a time; by default one per processor, 8 at most.
    Raises ValueError for an unknown family, and for a dataset with a transform or without the columns of a kind of
    rows, TypeError for what is no dataset and for a model that is neither a processor nor a name, and OSError where the
    machine keeps an image from being read. Memory grows with what is found, not with rows or images, which take up to
    600 bytes each in the folder for temporary files.
    """
    report = validation.validate(
        dataset,
        max_pixels=max_pixels,
        near_duplicates=near_duplicates,
        reject_leaks=reject_leaks,
        more_rules=rules_of(model) if model is not None else None,
        workers=workers,
        progress=progress,
    )
    if model is None:
        kept = report.dataset
        report.families = list(notes_on_families(kept.values() if isinstance(kept, dict) else [kept]))
    return report


def rules_of(model: ProcessorMixin | str) -> validation.Rules:
    """What finds the problems that a sound row has with a processor or a family, by it and the sizes of its images.

    Raises ValueError for an unknown family, TypeError for what is neither.
    """
    if not isinstance(model, str):
        check_processor(model, "model", ", or the name of a family")
        return _rules_of_processor(model)
    if model not in FAMILIES:
        raise ValueError(f"no family is called {model!r}: pass a model's processor, or one of {', '.join(FAMILIES)}")
    return lambda row, _: problems_with(FAMILIES[model], row)


def _rules_of_processor(processor):
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
    """The row with images of these sizes without pixels, large ones smaller: what refuses a shape is as quick then."""
    images = [SizedImage(_smaller(*size)) for size in sizes]
    number = len(row.get("images") or [])
    others = {"rejected_images": images[number:]} if row.get("rejected_images") else {}
    return row | {"images": images[:number]} | others


def _smaller(width, height):
    """A size of about the same shape, of no larger ratio: processors refuse those from some ratio on."""
    while min(width, height) >= 2 * _SMALLEST:
        width, height = ((side + (side < max(width, height))) // 2 for side in (width, height))  # the shorter one up
    return width, height


def _problem(error):
    """The reason and the remedy in what a collator raised, without the row's name."""
    while error.__cause__ is not None and not isinstance(error, Refused):
        error = error.__cause__
    return error.args if isinstance(error, Refused) else (str(error), _REMEDY)
