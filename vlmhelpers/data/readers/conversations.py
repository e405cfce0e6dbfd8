"""The forms of a JSON row: a question and an answer in fields, messages, or a conversation of ShareGPT and LLaVA.

Messages and conversations come with contents of parts, or with texts in which `<image>` stands for an image, as
LLaVA, LLaMA-Factory and ms-swift write them. An image's source is its path or URL.
"""

import os
import re
from itertools import islice
from urllib.parse import unquote

from vlmhelpers.data.readers.source import SourceRow
from vlmhelpers.data.schema import ROLES, assistant, image_part, message_text, text_part, user

_ROLES = dict.fromkeys(["human", "user"], "user")  # in a conversation -> in the schema
_ROLES |= dict.fromkeys(["gpt", "assistant", "model", "bard"], "assistant") | {"system": "system"}
_TOOLS = ("function_call", "function", "observation", "tool", "tool_call", "tool_response")
_OF_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages")
_REMEDIES = {
    "messages": 'write [{"role": "user", "content": [{"type": "text", "text": ...}]}, ...]',
    "conversations": 'write [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
}
IMAGE = "<image>"


def read_turns(
    row: SourceRow, text_field: str, image_field: str, response_field: str
) -> tuple[list[dict], list[str | None]]:
    """A row's messages in the schema's form, and the sources of its images in the order of their parts.

    Adds to the row what is wrong with it; a source that is no text is None. Sources without an image part come last, so
    that check_dataset sees that there are too many.
    """
    form = next((name for name in _REMEDIES if row.fields.get(name) is not None), None)
    if form is None:
        return _read_fields(row, text_field, image_field, response_field)
    turns = _read_messages(row, form)
    if turns is None:
        return [], []
    refuse_preference(row, turns and turns[-1][0] == "assistant")
    in_texts = all(isinstance(content, str) for _, content in turns)
    names = ["images"] if form == "messages" and not in_texts else [image_field, "images"]
    found = {name: sources for name in names if (sources := image_sources(row, name))}
    if len(found) > 1:
        row.reject(f"images in both {' and '.join(found)}", "keep one of the two fields")
    sources = next(iter(found.values()), [])
    if not in_texts:
        return _read_parts(row, turns, sources)
    messages = [{"role": role, "content": [text_part(content)]} for role, content in turns]
    if not row.problems and all(message["role"] in ROLES for message in messages):
        _place_images(row, messages, len(sources))
    return messages, sources


def _read_fields(row, text_field, image_field, response_field):
    if refuse_preference(row, row.fields.get(response_field)):
        return [], []
    text = row.get_text(text_field, "write the question")
    response = row.get_text(response_field, "write the answer that the model should give")
    sources = image_sources(row, image_field)
    return [user(text, len(sources)), assistant(response)], sources


def refuse_preference(row: SourceRow, answer: object) -> bool:
    """Whether the row holds a rejected answer, or one with a verdict, which is a problem: neither is to be learned.

    Beside `chosen` and `rejected` there may be an `answer` of its own.
    """
    found = {name for name in _OF_PREFERENCES if row.fields.get(name) not in (None, "")}
    verdict = next(
        (name for name in ("label", "kto_tag") if str(row.fields.get(name)).lower() in ("true", "false")), ""
    )
    if {"rejected_response", "rejected_messages"} & found or (not answer and {"chosen", "rejected"} <= found):
        remedy = "read it with vlmhelpers.data.read_preferences, and with to_rows where the chosen answers are to learn"
        row.reject(f"preference row: {' and '.join(sorted(found))}, two answers to choose from", remedy)
    elif verdict:
        remedy = "read it with vlmhelpers.data.read_rated, and with to_rows where the good answers are to learn"
        row.reject(
            f"rated row: {verdict} is {row.fields[verdict]}", f"{remedy}; rename the field where it is no verdict"
        )
    else:
        return False
    return True


def _read_messages(row, form):
    """(role, content) pairs, or None where the field `form` is no list of messages."""
    messages = row.fields[form]
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        row.reject(f"{form} is no list of messages", _REMEDIES[form])
        return None
    turns = []
    for message in messages:
        role = message.get("from", message.get("role"))
        if not isinstance(role, str):
            row.reject("a message without a role", _REMEDIES[form])
        turns.append((role if isinstance(role, str) else None, message.get("value", message.get("content"))))
    return turns if form == "messages" else _as_in_schema(row, turns)


def read_history(row: SourceRow) -> list[dict]:
    """The messages in a row's `history`, as Alpaca files have it: a list of [question, answer] pairs."""
    history = row.fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        row.reject("history is no list of pairs", "write it as [[question, answer], ...], or remove it")
        return []
    turns = []
    for pair in history:
        question, answer = (row.as_text(text, "a text in history").strip() for text in pair)
        if not (question and answer):
            row.reject("empty text in history", "write both the question and its answer, or remove the pair")
        turns += [user(question), assistant(answer)]
    return turns


def _as_in_schema(row, turns):
    """The turns of a conversation with the schema's roles, the text of the field `system` first."""
    for name in ("video", "videos", "audio", "audios"):
        if row.fields.get(name):
            row.reject(f"{name}: only images are read", "leave the row out, or replace it by images")
    for role, _ in turns:
        if role in _TOOLS:
            row.reject(f"a tool's turn: {role!r}", "leave the row out, or write call and result into the texts")
        elif role and role not in _ROLES:
            row.reject(f"unknown role: {role!r}", f"use one of {', '.join(_ROLES)}")
    turns = [(_ROLES.get(role, role), content) for role, content in turns]
    system = row.get_text("system")
    if system and turns and turns[0][0] == "system":
        row.reject("two system texts: a field and the first turn", "keep one of them")
    return [("system", system), *turns] if system else turns


def _read_parts(row, turns, listed):
    """Messages of (role, content) pairs, and the sources of their images: a part's own, or the next of `listed`."""
    listed, sources = iter(listed), []

    def read_content(content):
        if isinstance(content, str):
            return [text_part(content)]
        if isinstance(content, list) and all(isinstance(part, dict) for part in content):
            return [read_part(part) for part in content]
        row.reject("content is no text and no list of parts", 'write a text or parts: [{"type": "text", "text": ...}]')
        return []

    def read_part(part):
        if part.get("type") == "image":
            own = part.get("image")
            sources.extend(islice(listed, 1) if own is None else [_source(row, own, "an image part")])
            return image_part()
        text = part.get("text") if part.get("type") == "text" else None
        return {"type": str(part.get("type")), "text": None if text is None else row.as_text(text, "a text part")}

    messages = [{"role": role, "content": read_content(content)} for role, content in turns]
    return messages, [*sources, *listed]


def role_of(message: object) -> str | None:
    """The role that a message as it was written has in the schema; another one as it is, None without one."""
    role = message.get("from", message.get("role")) if isinstance(message, dict) else None
    return _ROLES.get(role, role) if isinstance(role, str) else None


def image_sources(row: SourceRow, name: str) -> list[str | None]:
    """The paths or URLs in a field: one, a list of them, or none. What is no text is a problem, and None."""
    value = row.fields.get(name)
    values = [] if value in (None, "") else value if isinstance(value, list) else [value]
    return [_source(row, source, name) for source in values]


def _source(row, value, where):
    """A path or URL as it was written, a `file:` URL as its decoded path; what is no text is a problem."""
    if not isinstance(value, str):
        row.reject(f"no image path in {where}: {str(value)[:40]}", "write the image's path as a text")
        return None
    local = re.match(r"file:(?://(?:localhost)?(?=/))?(?!//)", value, re.IGNORECASE)
    if not local:
        return value
    path = unquote(value[local.end() :])
    return re.sub("^/(?=[A-Za-z]:)", "", path) if os.name == "nt" else path


def _place_images(row, messages, images):
    """Makes each `<image>` in the user's texts an image part, or puts all `images` (a number) before the first."""
    questions = [message for message in messages if message["role"] == "user"]
    here, everywhere = (sum(message_text(m).count(IMAGE) for m in some) for some in (questions, messages))
    if images and images == here:
        for question in questions:
            question["content"] = _split(message_text(question))
    elif images and questions and not everywhere:
        questions[0]["content"] = [*(image_part() for _ in range(images)), *questions[0]["content"]]
        row.notes.append(f"no {IMAGE} in the texts: the images come before the first question")
    elif images:
        reason = f"images do not match: {here} {IMAGE} in the user's texts, {images} images"
        row.reject(reason, f"write {IMAGE} into the user's texts once for each image")
    if not images and everywhere:
        row.notes.append(f"{IMAGE} taken as text: the row has no images")
    elif everywhere > here:
        row.notes.append(f"{IMAGE} taken as text: it is not the user's")


def _split(text):
    """The parts of a text; each `<image>` takes the line breaks next to it along, and may leave no text between two."""
    first, *others = re.split(rf"(?:\r?\n)?{IMAGE}(?:\r?\n)?", text)
    parts = [text_part(first)] if first or not others else []
    for piece in others:
        parts += [image_part(), text_part(piece)] if piece else [image_part()]
    return parts
