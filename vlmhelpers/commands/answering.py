"""How rows are answered: the settings with what fits, and the rows with what they are asked."""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from datasets import Dataset

from vlmhelpers.commands.settings import Evaluating, Generating
from vlmhelpers.commands.tuned import Tuned, read_settings
from vlmhelpers.common.image_workers import inspect_apart
from vlmhelpers.data.readers.recognition import read_rows, recognize
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import FEATURES, message_text, user
from vlmhelpers.data.turns import to_rows, with_system
from vlmhelpers.training.run import load_held_out

_REQUESTS = 32  # at a time, for vLLM


def rows_to_answer(
    settings: Generating | Evaluating, run: str | Path | None = None, images: Iterable[str | Path] = ()
) -> Dataset:
    """The first of the settings' rows, as rows of messages: of a prompt after `images`, of a file, or of the run.

    A file that has the fields of the run's own is read by them; without one it is the rows that the run has held out.
    Raises ValueError without any, UnusableImage, and the errors of the readers.
    """
    images, prompt = list(images), getattr(settings, "prompt", None)
    if (images and prompt is None) or (prompt is not None and settings.dataset):
        raise ValueError("a prompt asks about images, and a dataset has its own: give either")
    if prompt is not None:
        rows = _row(prompt, images)
    elif settings.dataset:
        rows = to_rows(read_rows(settings.dataset, image_root=settings.image_root, **_fields(settings.dataset, run)))
    elif run:
        rows = load_held_out(run)["test"]
    else:
        raise ValueError(f"{settings.model} is no run's, so there are no held-out rows: name a dataset")
    if not len(rows):
        raise ValueError(f"{settings.dataset} has no row: add some")
    rows = rows.select(range(min(settings.rows or len(rows), len(rows))))
    return with_system(rows, settings.system) if settings.system else rows


def _row(prompt, images):
    for path in images:
        inspect_apart(path)  # before a model is loaded, which takes its time
    row = {"messages": [user(prompt, len(images))], "images": [os.path.abspath(path) for path in images]}
    return Dataset.from_list([row], features=FEATURES)


def _fields(file, run):
    """The names of the run's fields that the file has, too, where it says which it has."""
    if not (named := read_settings(run).named_fields if run else {}):
        return {}
    known = recognize(file).fields
    return {name: field for name, field in named.items() if field in known or not known}


def batch_options(settings: Generating | Evaluating, tuned: Tuned, rows: Dataset) -> dict[str, object]:
    """Keyword arguments for `generate`: the settings, with what suits the rows and the device for None."""
    if settings.engine == "vllm":  # which makes its batches itself
        settings = replace(settings, batch_size=settings.batch_size or _REQUESTS)
    if settings.batch_size is None or settings.max_new_tokens is None:
        if len(answered := _answered(rows)):
            values = tuned.values.fit_answers(answered, tuned.processor)
        else:  # there is nothing to go by; `generate` halves what does not fit
            values = replace(tuned.values, max_new_tokens=256, answer_batch_size=16)
        found = {"batch_size": values.answer_batch_size, "max_new_tokens": values.max_new_tokens}
        known = {name: getattr(settings, name) for name in found if getattr(settings, name) is not None}
        settings = replace(settings, **found | known)
    return settings.options | {"batch_size": settings.batch_size, "split": True}


def _answered(rows):
    """The rows with an answer to compare with."""
    found = enumerate(row["messages"] for row in stream_plain_rows(rows, ["messages"], "looking for answers"))
    return rows.select([index for index, messages in found if any(map(_is_answer, messages))])


def _is_answer(message):
    return message["role"] == "assistant" and bool(message_text(message).strip())
