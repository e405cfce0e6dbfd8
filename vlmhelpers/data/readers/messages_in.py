"""One message as a source wrote it, whatever its form: who speaks, its content, whether it is learned.

It becomes one turn, see `placement`, or several, where one object holds a question and its answer.
"""

from vlmhelpers.data.readers.image_sources import distinct, source_of, sources_in
from vlmhelpers.data.readers.learned import is_weight, refuse_preference, weigh_turn
from vlmhelpers.data.readers.placement import NEXT, place_images
from vlmhelpers.data.readers.source import SourceRow, is_empty
from vlmhelpers.data.readers.unread_fields import CALLS, MEDIA, leave_unread, problem_of
from vlmhelpers.data.schema import text_part

ROLES = dict.fromkeys(["human", "user"], "user")  # as written -> in the schema
ROLES |= dict.fromkeys(["gpt", "assistant", "model", "bard", "chatbot", "bot"], "assistant")
ROLES |= dict.fromkeys(["system", "developer"], "system")
_TOOLS = ("function_call", "function", "observation", "tool", "tool_call", "tool_response")
_SENDERS, _CONTENTS = ("from", "role"), ("value", "content", "parts")
_ASKED, _ANSWERED = ("human", "user", "question", "query"), ("assistant", "gpt", "bot", "model", "answer", "response")
_SHOWN = ("images", "image")  # fields of images beside a text
_KNOWN = {*_SENDERS, *_CONTENTS, *_SHOWN}  # what a message has
_IMAGE_TYPES, _TEXT_TYPES = ("image", "image_url", "input_image", "img"), ("text", "input_text", "output_text")
_IMAGE_KEYS = (
    *("image", "image_url", "path", "url", "base64", "source", "image_path", "value"),
    *("fileData", "file_data", "inlineData", "inline_data"),
)
_MEDIA_TYPES = ("mime_type", "mimeType", "media_type")
_NO_CONTENT = "content is no text and no list of parts", 'write a text or parts: [{"type": "text", "text": ...}]'
_NO_ROLE = "a message without a role", 'write [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]'


def read_message(row: SourceRow, message: dict, remedy: str = "") -> list[dict]:
    """The turns of one message: a role and a content, or a question and its answer. Adds to the row what is wrong."""
    message = {name: value for name, value in message.items() if value is not None}  # Arrow fills in what others have
    sender = _sender(message)
    if sender is None and (pair := _pair_in(message)):
        return _read_pair(row, message, *pair)
    role = sender.lower() if isinstance(sender, str) else None
    if role is None:
        row.reject(_NO_ROLE[0], remedy or _NO_ROLE[1])
    elif role in _TOOLS:
        row.reject(f"a tool's turn: {sender!r}", CALLS[1])
    elif role not in ROLES:
        row.reject(f"unknown role: {sender!r}", f"use one of {', '.join(ROLES)}")
    held = next((name for name in _CONTENTS if name in message), None)
    turn = {"role": ROLES.get(role, role and sender), "content": _content_of(row, message, held)}
    _leave(row, message, _KNOWN, "messages")
    _place_own_images(row, turn, message)
    return [turn | weigh_turn(row, message, message.get(held), turn["role"])]


def _pair_in(message):
    """The names of a question and its answer, which may lack, in one object; None where it holds no question."""
    asked, answered = (next((n for n in names if n in message), None) for names in (_ASKED, _ANSWERED))
    if {"input", "output"} <= message.keys() and not (asked or answered):
        asked, answered = "input", "output"
    return (asked, answered) if asked else None


def role_of(message: object) -> str | None:
    """The role that a message as it was written has in the schema; another one as it is, None without one."""
    role = _sender(message) if isinstance(message, dict) else None
    return ROLES.get(role.lower(), role) if isinstance(role, str) else None


def _sender(message):
    return next((message[name] for name in _SENDERS if not is_empty(message.get(name))), None)


def _content_of(row, message, name):
    if others := [key for key in _CONTENTS if key != name and not is_empty(message.get(key))]:
        row.reject(f"two contents of one message: {name} and {others[0]}", "keep one of them")
    if name is None and any(problem_of(key) and not is_empty(value) for key, value in message.items()):
        return []  # which is a problem of its own
    return read_content(row, message[name] if name else None)


def _read_pair(row, message, asked, answered):
    system = [{"role": "system", "content": read_content(row, message["system"])}] if message.get("system") else []
    question = {"role": "user", "content": read_content(row, message[asked])}
    _place_own_images(row, question, message)
    _leave(row, message, {"system", asked, answered, *_SHOWN}, "turns")
    if answered is None:
        row.reject(f"no answer beside {asked!r}", f"write it, as one of {', '.join(_ANSWERED)}")
        return [*system, question]
    answer = {"role": "assistant", "content": read_content(row, message[answered])}
    return [*system, question, answer | weigh_turn(row, message, message[answered], "assistant")]


def _place_own_images(row, turn, message):
    """Gives a turn the images that stand in its own message."""
    if message.keys().isdisjoint(_SHOWN):
        return
    found = {name: sources_in(row.with_fields(message), name) for name in _SHOWN if name in message}
    found = distinct({name: sources for name, sources in found.items() if sources})
    own = next(iter(found.values()), [])
    if len(found) > 1:
        row.reject(f"images in both {' and '.join(found)} of a message", "keep one of the two fields")
    elif own and turn["role"] != "user":
        row.reject(f"images in a turn of {turn['role']}", "move them to the user's turn; images belong there alone")
    elif own and own != [part["source"] for part in turn["content"] if part["type"] == "image"]:
        left = place_images(row, [turn], own, noted=False)
        turn["content"] += [{"type": "image", "source": source} for source in left]  # too many: counted later


def _leave(row, holder, known, where):
    """What is not read of a message or a part, where a verdict is a problem, too."""
    if left := {name: value for name, value in holder.items() if name not in known and not is_weight(name)}:
        refuse_preference(row, holder=left)
        leave_unread(row, left, (), where)


def read_content(row: SourceRow, content: object) -> list[dict]:
    """The parts of a content: a text, one part or a list of parts. Adds to the row what is wrong."""
    if isinstance(content, str | int | float) and not isinstance(content, bool):
        return [text_part(row.as_text(content, "content"))]
    parts = [content] if isinstance(content, dict) else content
    if isinstance(parts, list) and all(isinstance(part, dict) for part in parts):
        return [read for part in parts for read in _read_part(row, part)]
    row.reject(*_NO_CONTENT)
    return []


def _read_part(row, part):
    """One part, or two where an image has a text beside it."""
    kind = _kind_of(part)
    if kind in _IMAGE_TYPES:
        text = part.get("text")
        beside = [] if is_empty(text) else [text_part(row.as_text(text, "the text of an image part"))]
        return [{"type": "image", "source": _part_source(row, part)}, *beside]
    if kind in _TEXT_TYPES:
        text = part.get("text", part.get("value"))
        _leave(row, part, {"type", "text", "value", "index"}, "parts")
        return [{"type": "text", "text": None if text is None else row.as_text(text, "a text part")}]
    if kind and (problem := problem_of(kind)):
        row.reject(f"{kind}: {problem[0]}", problem[1])
    return [{"type": str(kind), "text": None}]


def _kind_of(part):
    """A part's type; Gemini's, Bedrock's and Qwen's say by their keys what they are."""
    if part.get("type") is not None:
        return part["type"] if isinstance(part["type"], str) else None
    kind = next((key for key in ("text", *_IMAGE_KEYS) if not is_empty(part.get(key))), None)
    kind = kind or next((key for key, value in part.items() if problem_of(key) and not is_empty(value)), None)
    if kind in _IMAGE_KEYS:
        return "image"
    return "text" if kind is None and "text" in part else kind


def _part_source(row, part):
    """A part's own source; the number of one in the row's list as an integer; NEXT where it has none."""
    held = [part[key] for key in _IMAGE_KEYS if not is_empty(part.get(key))]
    own = held[0] if held else None
    if any(other != own for other in held):
        row.reject("an image part that names two images", "write each as a part of its own")
    _leave(row, part, {"type", "text", "index", *_MEDIA_TYPES, *_IMAGE_KEYS}, "parts")
    media = own if isinstance(own, dict) else part
    kind = str(next((media[key] for key in _MEDIA_TYPES if media.get(key)), "image"))
    if not kind.startswith("image"):
        row.reject(f"{kind}: {MEDIA[0]}", MEDIA[1])
    if own is not None:
        return source_of(row, own, "an image part")
    number = part.get("index")
    return number if isinstance(number, int) and not isinstance(number, bool) else NEXT
