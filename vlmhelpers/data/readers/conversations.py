"""The forms of a JSON row: a question and an answer in fields, messages, or a conversation of ShareGPT and LLaVA.

Messages and conversations come with contents of parts, or with texts in which `<image>` holds an image's place.
"""

import os
import re
from urllib.parse import unquote

from vlmhelpers.data.readers.placeholders import place_images
from vlmhelpers.data.schema import ROLES, assistant, image_part, text_part, user

_ROLES = {  # in a conversation -> in the schema
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bard": "assistant",
    "system": "system",
}
_TOOLS = ("function_call", "function", "observation", "tool", "tool_call", "tool_response")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
_REMEDIES = {
    "messages": 'write [{"role": "user", "content": [{"type": "text", "text": ...}]}, ...]',
    "conversations": 'write [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
}


def read_turns(fields, text_field, image_field, response_field):
    """A row's messages in the schema's form, and the places (paths or URLs) of its images in the order of their parts.

    `fields` is the row's jsonrow.Fields, which gets what is wrong as problems and what is guessed as notes. Places
    that no image part stands for come last, so that check_dataset sees that there are too many.
    """
    form = next((name for name in _REMEDIES if fields.values.get(name) is not None), None)
    if form is None:
        return _read_fields(fields, text_field, image_field, response_field)
    turns = _read_messages(fields) if form == "messages" else _read_conversation(fields)
    if turns is None:
        return [], []
    if _is_preference(fields) and (not turns or turns[-1][0] != "assistant"):
        _refuse_preference(fields)
    in_texts = all(isinstance(content, str) for _, content in turns)
    names = ["images"] if form == "messages" and not in_texts else [image_field, "images"]
    places = _only_places(fields, names)
    if not in_texts:
        return _read_parts(fields, turns, places)
    messages = [{"role": role, "content": [text_part(content)]} for role, content in turns]
    if not fields.problems and all(message["role"] in ROLES for message in messages):
        place_images(fields, messages, len(places))
    return messages, places


# The three forms


def _read_fields(fields, text_field, image_field, response_field):
    if _is_preference(fields) and not fields.values.get(response_field):
        _refuse_preference(fields)
        return [], []
    text = fields.text(text_field, "write the question")
    response = fields.text(response_field, "write the answer that the model should give")
    places = _places(fields, image_field)
    return [user(text, len(places)), assistant(response)], places


def _read_messages(fields):
    """(role, content) pairs as they stand there, None for what is no list of messages."""
    messages = _list_of_objects(fields, "messages")
    if messages is None:
        return None
    return [(_text_of_role(fields, message.get("role"), "messages"), message.get("content")) for message in messages]


def _read_conversation(fields):
    """(role, content) pairs with the schema's roles, the text of the field `system` first."""
    messages = _list_of_objects(fields, "conversations")
    if messages is None:
        return None
    for name in _OTHER_MEDIA:
        if fields.values.get(name):
            fields.reject(f"{name}: only images are read", "leave the row out, or replace it by images")
    turns = []
    for message in messages:
        role = _text_of_role(fields, message.get("from", message.get("role")), "conversations")
        turns.append((_known_role(fields, role), message.get("value", message.get("content"))))
    system = fields.text("system")
    if system and turns and turns[0][0] == "system":
        fields.reject("two system texts: a field and the first turn", "keep one of them")
    return [("system", system), *turns] if system else turns


def _list_of_objects(fields, name):
    values = fields.values[name]
    if isinstance(values, list) and all(isinstance(value, dict) for value in values):
        return values
    fields.reject(f"{name} is no list of messages", _REMEDIES[name])
    return None


def _text_of_role(fields, role, form):
    if isinstance(role, str):
        return role
    fields.reject("a message without a role", _REMEDIES[form])
    return None


def _known_role(fields, role):
    """The schema's name of a conversation's role; one that has none stays, and is a problem."""
    if role in _TOOLS:
        fields.reject(f"a tool's turn: {role!r}", "leave the row out, or write the call and its result into the texts")
    elif role is not None and role not in _ROLES:
        fields.reject(f"unknown role: {role!r}", f"use one of {', '.join(_ROLES)}")
    return _ROLES.get(role, role)


def _is_preference(fields):
    return all(fields.values.get(name) is not None for name in ("chosen", "rejected"))


def _refuse_preference(fields):
    reason = "preference row: chosen and rejected, but no answer of its own"
    fields.reject(reason, "add the answer to learn, or leave the row out; pairs to choose from are not read here")


# Contents of parts


def _read_parts(fields, turns, places):
    """Messages of (role, content) pairs, and the places of their images: a part's own, or the next of `places`."""
    listed, named = iter(places), []
    messages = [{"role": role, "content": _read_content(fields, content, listed, named)} for role, content in turns]
    return messages, named + list(listed)


def _read_content(fields, content, listed, named):
    """A content as the schema's parts; appends the places of its images to `named`."""
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        remedy = 'write a text, or parts: [{"type": "text", "text": ...}]'
        fields.reject("content is no text and no list of parts", remedy)
        return []
    return [_read_part(fields, part, listed, named) for part in content]


def _read_part(fields, part, listed, named):
    if part.get("type") == "image":
        place = part.get("image")
        place = next(listed, None) if place is None else _place(fields, place, "an image part")
        named += [] if place is None else [place]
        return image_part()
    if part.get("type") == "text":
        text = part.get("text")
        return text_part(None if text is None else fields.as_text(text, "a text part"))
    return {"type": str(part.get("type")), "text": None}


# Places of images


def _only_places(fields, names):
    """The places in that one of the fields which holds any."""
    found = {name: _places(fields, name) for name in names}
    filled = [name for name, places in found.items() if places]
    if len(filled) > 1:
        fields.reject(f"images in both {' and '.join(filled)}", "keep one of the two fields")
    return found[filled[0]] if filled else []


def _places(fields, name):
    """The places in a field that holds one, a list of them, or nothing."""
    value = fields.values.get(name)
    if value is None or value == "":
        return []
    return [_place(fields, place, name) for place in (value if isinstance(value, list) else [value])]


def _place(fields, value, where):
    """A path or URL as it was written, a `file:` URL as its decoded path; what is no text is a problem."""
    if not isinstance(value, str):
        fields.reject(f"no image path in {where}: {str(value)[:40]}", "write the picture's path as a text")
        return ""
    local = re.match(r"file:(?://(?:localhost)?(?=/))?(?!//)", value, re.IGNORECASE)
    if not local:
        return value
    path = unquote(value[local.end() :])
    return re.sub("^/(?=[A-Za-z]:)", "", path) if os.name == "nt" else path
