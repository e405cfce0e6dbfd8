"""One row, checked and made ready for the chat template; errors begin with the row's name."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from vlmhelpers.batches.pixel_cache import as_images
from vlmhelpers.common.images import open_image, repair
from vlmhelpers.data.rules import merge_problems, prompt_problems, row_problems
from vlmhelpers.data.schema import KINDS, TRAIN, escape_control_tokens, text_part

_IMAGES = ("images", "rejected_images")
_COLUMNS = {name for features in KINDS.values() for name in features} - {*_IMAGES} | {"row", "problem", "note"}
_NO_FORMAT = "give the rows of dataset.with_format(None)"


class Conversation(NamedTuple):
    """A row made ready: its name in errors, its messages as a template takes them, its images repaired."""

    name: str
    messages: list[dict]
    images: list[Image.Image]


def plain_row(row: Mapping) -> dict:
    """A row of a Dataset in any format as that without one gives it: lists, numbers, images of PIL or still encoded.

    Of arrays of pixels only those of three channels are images: others do not say how they write colors. Raises
    ValueError for a row that is a table.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"a row is a {type(row).__name__}: {_NO_FORMAT}")
    images = {name: [*map(_image, row[name])] for name in _IMAGES if row.get(name) is not None}
    return {name: _plain(row[name]) for name in _COLUMNS if name in row} | images


def _plain(value):
    if isinstance(value, np.ndarray | np.generic | torch.Tensor):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def _image(value):
    """Of an array of pixels (height, width, 3), or a tensor (3, height, width), as datasets makes them, the image."""
    pixels = value.movedim(0, -1).numpy() if isinstance(value, torch.Tensor) and value.dim() == 3 else value
    is_rgb = isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return Image.fromarray(np.ascontiguousarray(pixels)) if is_rgb else value


def to_train(row: Mapping, index: int, control: re.Pattern) -> Conversation:
    """The whole row. `index` counts from 0 in the batch; `control` finds what has to be escaped in texts.

    Raises ValueError, with the row's name, the reason and a remedy, for what rules.row_problems finds.
    """
    row = plain_row(row)
    return _conversation(row, row["messages"], index, control, row_problems)


def to_answer(row: Mapping, index: int, control: re.Pattern) -> Conversation:
    """The row without its last assistant turn; a row may also end with its user turn. Otherwise as `to_train`."""
    row = plain_row(row)
    messages = row["messages"] or []
    last = messages[-1] if messages else None
    messages = messages[:-1] if isinstance(last, Mapping) and last.get("role") == "assistant" else messages
    return _conversation(row, messages, index, control, prompt_problems)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Puts the row's name in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _conversation(row, messages, index, control, find_problems):
    name, images = _name(row, index), as_images(row.get("images") or [])
    with naming(name):
        if problems := find_problems({**row, "messages": messages, "images": images}):
            reason, remedy = merge_problems(problems)
            raise ValueError(f"{reason}. Remedy: {remedy}, or run check_dataset and leave out the rows that it rejects")
        images = [repair(open_image(image) if isinstance(image, dict) else image) for image in images]
        return Conversation(name, [clean(message, control) for message in messages], images)


def _name(row, index):
    """The row's number in its source, else its number in the batch and how its text begins."""
    if row.get("row") is not None:
        return f"row {row['row']}"
    contents = (message.get("content") for message in row["messages"] or [] if isinstance(message, Mapping))
    parts = [part for content in contents if isinstance(content, list) for part in content]
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    start = next((text for text in texts if text and isinstance(text, str)), "")
    return f"row {index + 1} of the batch ({start[:40]!r})"


def clean(message: dict, control: re.Pattern) -> dict:
    """The message as a chat template takes it, its control tokens escaped, also those over neighboring text parts.

    An answer loses the blank lines before it: a tokenizer joins them with the line break that ends a prompt.
    A system turn becomes a string: Llama 3.2 Vision's chat template takes nothing else there.
    """
    role, parts = message["role"], []
    unlearned = {TRAIN: False} if message.get(TRAIN) is False else {}
    if role != "user":
        text = _text(message["content"], control)
        content = text if role == "system" else [text_part(without_blank_lines(text))]
        return {"role": role, "content": content} | unlearned
    for is_image, group in groupby(message["content"], key=lambda part: part["type"] == "image"):
        group = list(group)
        parts += [{"type": "image"}] * len(group) if is_image else [text_part(_text(group, control))]
    return {"role": role, "content": parts or [text_part("")]}  # some templates look at the first part


def _text(parts, control):
    return escape_control_tokens("".join(part["text"] for part in parts), control)


def without_blank_lines(text: str) -> str:
    """`text` without the blank lines that it starts with; the indent of its first other line stays."""
    return re.sub(r"\A\s*\n", "", text)
