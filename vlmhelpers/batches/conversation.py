"""One row, checked and made ready for the chat template; errors begin with the row's name."""

import re
from contextlib import contextmanager
from itertools import groupby
from typing import NamedTuple

from PIL import Image

from vlmhelpers.batches.pixel_files import as_pictures
from vlmhelpers.common.images import repair
from vlmhelpers.data.schema import ROLES, escape_control_tokens, message_text, text_part

_REMEDY = "run check_dataset and leave out the rows that it rejects"


class Conversation(NamedTuple):
    """A row made ready: its name in errors, its messages as a template takes them, its images repaired."""

    name: str
    messages: list
    images: list


def to_train(row, place, specials):
    """The whole row as a Conversation. `place` counts from 0 in the batch, `specials` are tokens to defuse.

    Raises ValueError, with the row's name and a remedy, for a row that cannot be trained on.
    """
    conversation = _conversation(row, place, row["messages"], specials)
    with naming(conversation.name):
        _check_answers(conversation.messages)
    return conversation


def to_answer(row, place, specials):
    """The row without its last assistant turn, as a Conversation; a row may also end with its user turn."""
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return _conversation(row, place, messages, specials)


@contextmanager
def naming(name):
    """Puts the row's name in front of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _conversation(row, place, messages, specials):
    name = _name(row, place)
    images = as_pictures(row.get("images") or [])
    with naming(name):
        _check_messages(messages)
        _check_images(messages, images)
        messages = [_clean(message, specials) for message in messages]
        return Conversation(name, messages, [repair(image) for image in images])


def _name(row, place):
    """The row's number in its source, else its place in the batch and how its text begins."""
    if row.get("row") is not None:
        return f"row {row['row']}"
    parts = [part for message in row["messages"] for part in message["content"] if isinstance(part, dict)]
    start = next((part["text"] for part in parts if part.get("text")), "")
    return f"row {place + 1} of the batch ({start[:40]!r})"


def _clean(message, specials):
    """The message with its control tokens defused, also those spread over neighbouring text parts.

    An answer loses the blank lines before it: a tokenizer joins them with the line break that ends a prompt.
    A system turn becomes a string: Llama 3.2 Vision's chat template takes nothing else there.
    """
    parts = []
    for kind, group in groupby(message["content"], key=lambda part: part["type"]):
        if kind == "image":
            parts += [{"type": "image"} for _ in group]
        else:
            text = "".join(part["text"] for part in group)
            parts.append(text_part(escape_control_tokens(text, specials)))
    if message["role"] == "assistant" and parts:
        parts[0] = text_part(without_blank_lines(parts[0]["text"]))
    if message["role"] == "system":
        return {"role": "system", "content": "".join(part["text"] for part in parts)}
    return {"role": message["role"], "content": parts}


def without_blank_lines(text):
    """`text` without the blank lines that it starts with; the indent of its first other line stays."""
    return re.sub(r"\A\s*\n", "", text)


def _check_messages(messages):
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"unknown role {message['role']!r}; the roles are {', '.join(ROLES)}")
        if isinstance(message["content"], str):
            raise ValueError("content has to be a list of parts, as vlmhelpers.schema's user() makes it")
        for part in message["content"]:
            if part["type"] == "image" and message["role"] != "user":
                raise ValueError(f"an image in the {message['role']} turn; images belong in user turns")
            if part["type"] != "image" and (part["type"] != "text" or part["text"] is None):
                raise ValueError(f"a part has to be an image or text with something in it, not {part}")


def _check_images(messages, images):
    parts = sum(part["type"] == "image" for message in messages for part in message["content"])
    if parts != len(images):
        raise ValueError(f"{parts} image parts in its messages, but {len(images)} images; {_REMEDY}")
    for number, image in enumerate(images, 1):
        if not isinstance(image, Image.Image):
            raise ValueError(f"image {number} is {type(image).__name__}, not a picture; {_REMEDY}")


def _check_answers(messages):
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        raise ValueError(f"no assistant turn, so there is nothing to learn; {_REMEDY}")
    if not all(message_text(message).strip() for message in answers):
        raise ValueError(f"an empty answer; {_REMEDY}")
