"""Texts in which `<image>` holds the place of an image, as LLaVA, LLaMA-Factory and ms-swift write them."""

import re

from vlmhelpers.data.schema import image_part, message_text, text_part

_PLACEHOLDER = "<image>"
_PLACE = re.compile(rf"(?:\r?\n)?{_PLACEHOLDER}(?:\r?\n)?")  # a newline parts it from the text


def place_images(fields, messages, images):
    """Makes image parts of the placeholders in the user's texts, each with the newlines next to it.

    `messages` are of the schema, with one text part each; their content is replaced. `images` is how many the row
    has: with none, the placeholders are text, which is noted. Images without any placeholder come before the first
    text of the user, which is noted, too. Other numbers that differ become a problem of `fields`.
    """
    questions = [message for message in messages if message["role"] == "user"]
    here, everywhere = _count(questions), _count(messages)
    if images and images == here:
        for question in questions:
            question["content"] = _split(message_text(question))
    elif images and questions and not everywhere:
        questions[0]["content"] = [*(image_part() for _ in range(images)), *questions[0]["content"]]
        fields.notes.append(f"no {_PLACEHOLDER} in the texts: the images come before the first question")
    elif images:
        reason = f"images do not match: {here} {_PLACEHOLDER} in the user's texts, {images} images"
        fields.reject(reason, f"write {_PLACEHOLDER} into the user's texts once for each image")
    if not images and everywhere:
        fields.notes.append(f"{_PLACEHOLDER} taken as text: the row has no images")
    elif everywhere > here:
        fields.notes.append(f"{_PLACEHOLDER} taken as text: it is not the user's")


def _count(messages):
    return sum(message_text(message).count(_PLACEHOLDER) for message in messages)


def _split(text):
    """The parts of a text with or without placeholders; between two of them there may be no text."""
    first, *others = _PLACE.split(text)
    parts = [text_part(first)] if first or not others else []
    for piece in others:
        parts += [image_part(), text_part(piece)] if piece else [image_part()]
    return parts
