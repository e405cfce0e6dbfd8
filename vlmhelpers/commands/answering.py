"""How rows are answered: the settings with what fits, and the rows with what they are asked."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from vlmhelpers.commands.settings import Evaluating, Generating
from vlmhelpers.commands.tuned import Tuned
from vlmhelpers.data.readers.recognition import read_rows
from vlmhelpers.data.turns import to_rows, with_system
from vlmhelpers.training.run import load_held_out


def rows_to_answer(settings: Generating | Evaluating, run: str | Path | None = None) -> Dataset:
    """The first of the settings' rows, as rows of messages; without a file those that the run has held out.

    Raises ValueError without either, and the errors of the readers.
    """
    if settings.dataset:
        rows = to_rows(read_rows(settings.dataset, image_root=settings.image_root))
    elif run:
        rows = load_held_out(run)["test"]
    else:
        raise ValueError(f"{settings.model} is no run's, so there are no held-out rows: name a dataset")
    if not len(rows):
        raise ValueError(f"{settings.dataset} has no row: add some")
    rows = rows.select(range(min(settings.rows or len(rows), len(rows))))
    return with_system(rows, settings.system) if settings.system else rows


def batch_options(settings: Generating | Evaluating, tuned: Tuned, rows: Dataset) -> dict[str, object]:
    """Keyword arguments for `generate`: the settings, with what suits the rows and the device for None."""
    if settings.batch_size is None or settings.max_new_tokens is None:
        try:
            values = tuned.values.fit_answers(rows, tuned.processor)
        except ValueError:  # rows without an answer have nothing to go by; `generate` halves what does not fit
            values = replace(tuned.values, max_new_tokens=256, answer_batch_size=16)
        found = {"batch_size": values.answer_batch_size, "max_new_tokens": values.max_new_tokens}
        known = {name: getattr(settings, name) for name in found if getattr(settings, name) is not None}
        settings = replace(settings, **found | known)
    return settings.options | {"batch_size": settings.batch_size}
