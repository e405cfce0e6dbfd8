"""How rows are answered: the settings with what fits, and the rows with what they are asked."""

from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from vlmhelpers.commands.settings import Evaluating, Generating
from vlmhelpers.commands.tuned import Tuned, read_settings
from vlmhelpers.data.readers.recognition import read_rows, recognize
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import message_text
from vlmhelpers.data.turns import to_rows, with_system
from vlmhelpers.training.run import load_held_out


def rows_to_answer(settings: Generating | Evaluating, run: str | Path | None = None) -> Dataset:
    """The first of the settings' rows, as rows of messages; without a file those that the run has held out.

    A file that has the fields of the run's own is read by them. Raises ValueError without either, and the errors of
    the readers.
    """
    if settings.dataset:
        rows = to_rows(read_rows(settings.dataset, image_root=settings.image_root, **_fields(settings.dataset, run)))
    elif run:
        rows = load_held_out(run)["test"]
    else:
        raise ValueError(f"{settings.model} is no run's, so there are no held-out rows: name a dataset")
    if not len(rows):
        raise ValueError(f"{settings.dataset} has no row: add some")
    rows = rows.select(range(min(settings.rows or len(rows), len(rows))))
    return with_system(rows, settings.system) if settings.system else rows


def _fields(file, run):
    """The names of the run's fields that the file has, too, where it says which it has."""
    if not (named := read_settings(run).named_fields if run else {}):
        return {}
    known = recognize(file).fields
    return {name: field for name, field in named.items() if field in known or not known}


def batch_options(settings: Generating | Evaluating, tuned: Tuned, rows: Dataset) -> dict[str, object]:
    """Keyword arguments for `generate`: the settings, with what suits the rows and the device for None."""
    if settings.batch_size is None or settings.max_new_tokens is None:
        if len(answered := _answered(rows)):
            values = tuned.values.fit_answers(answered, tuned.processor)
        else:  # there is nothing to go by; `generate` halves what does not fit
            values = replace(tuned.values, max_new_tokens=256, answer_batch_size=16)
        found = {"batch_size": values.answer_batch_size, "max_new_tokens": values.max_new_tokens}
        known = {name: getattr(settings, name) for name in found if getattr(settings, name) is not None}
        settings = replace(settings, **found | known)
    return settings.options | {"batch_size": settings.batch_size}


def _answered(rows):
    """The rows with an answer to compare with."""
    found = enumerate(row["messages"] for row in stream_plain_rows(rows, ["messages"], "looking for answers"))
    return rows.select([index for index, messages in found if any(map(_is_answer, messages))])


def _is_answer(message):
    return message["role"] == "assistant" and bool(message_text(message).strip())
