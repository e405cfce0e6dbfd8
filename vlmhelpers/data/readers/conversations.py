"""A row's conversation, in whatever form it was written, as messages of the schema and the sources of its images.

Each form becomes the same turns here; `forms.py` has the table of them. A row keeps what it says, or has a problem that
names the field.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from vlmhelpers.data.readers.image_sources import Source, seems_image, source_of, sources_in
from vlmhelpers.data.readers.placement import IMAGE, NEXT, place_images, place_tagged, schema_messages
from vlmhelpers.data.readers.source import SourceRow, is_empty, shorten
from vlmhelpers.data.schema import TRAIN, assistant, text_part, user

__all__ = [
    "CONVERSATIONS",
    "CSV_NAMES",
    "IMAGE",
    "FieldNames",
    "read_conversation",
    "read_history",
    "read_turns",
    "refuse_preference",
]

# Fields of a whole conversation, the first of which a row is read by; the remedy says how one is written.
CONVERSATIONS = {
    "messages": 'write [{"role": "user", "content": [{"type": "text", "text": ...}]}, ...]',
    "conversations": 'write [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
    "conversation": 'write [{"human": ..., "assistant": ...}]',
    "texts": 'write [{"user": ..., "assistant": ...}]',
    "contents": 'write [{"role": "user", "parts": [{"text": ...}]}, {"role": "model", "parts": [{"text": ...}]}]',
}
_ROLES = dict.fromkeys(["human", "user"], "user") | dict.fromkeys(["system", "developer"], "system")
_ROLES |= dict.fromkeys(["gpt", "assistant", "model", "bard", "chatbot", "bot"], "assistant")
_TOOLS = ("function_call", "function", "observation", "tool", "tool_call", "tool_response")
_ASKED, _ANSWERED = ("human", "user", "question", "query"), ("assistant", "gpt", "bot", "model", "answer", "response")
_CONTENTS, _SENDERS = ("value", "content", "parts"), ("from", "role")
_SYSTEMS = ("system", "system_prompt", "systemInstruction", "system_instruction")
_WEIGHTS = ("weight", "loss", "loss_weight", "train", "training")
_SHOWN = ("images", "image")  # fields of images beside texts, in a row, a turn or a pair
_OF_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "non_preferred_output")
_ALTERNATIVES = {  # usual names of the fields of a question, its image and its answer, where nobody names others
    "text_field": ("text", "instruction", "question", "query", "prompt"),
    "image_field": ("image", "images", "image_path", "image_paths", "image_file", "file_name", "file_names", "img"),
    "response_field": (
        *("response", "description", "output", "answer", "caption", "completion"),
        "multiple_choice_answer",
    ),
}
CSV_NAMES = ("instruction", "image_path", "description")
_MEDIA = "only images are read", "leave the row out, or replace it by images"
_CALLS = "calls of tools are not learned", "leave the row out, or write call and result into the texts"
_BOXES = (
    "boxes are not written into the texts",
    "write their coordinates there as the model does, or leave the field out",
)
_REASONING = "reasoning beside the answer is not read", "write <think>...</think> at the start of the answer"
_MEANINGFUL = {
    **dict.fromkeys(["video", "videos", "audio", "audios", "input_audio", "video_url", "audio_url"], _MEDIA),
    **dict.fromkeys(["document", "file", "pdf"], _MEDIA),
    **dict.fromkeys(
        ["tools", "functions", "tool_calls", "function_call", "tool_call_id", "function_call_output"], _CALLS
    ),
    **dict.fromkeys(["tool_use", "tool_result", "functionCall", "functionResponse", "executableCode"], _CALLS),
    **dict.fromkeys(["objects", "bbox", "bboxes", "boxes", "rectanglelabels"], _BOXES),
    **dict.fromkeys(["reasoning_content", "reasoning", "thinking", "thought"], _REASONING),
    "train_detail": ("parts of a text cannot be learned alone", "use train for the whole turn"),
    "loss_scale": ("an answer is learned or not", "use loss for the whole turn, or remove the field"),
    "refusal": ("a refusal is not read", "write it as the content, or leave the row out"),
    "completions": ("several answers are not read", "read pairs with read_preferences, or keep one as the response"),
}
_IN_ROWS = {name for name in _MEANINGFUL if name not in ("reasoning", "thinking", "file", "document", "pdf")}


@dataclass(frozen=True)
class FieldNames:
    """What the caller names the fields of a question, its image and its answer; None: their usual names.

    first: the names that are taken where a row has several of the usual ones. instruction: the question of every row,
    in place of a field. input_field: what comes below the question; None: `input`, beside `instruction`.
    """

    text_field: str | None = None
    image_field: str | None = None
    response_field: str | None = None
    instruction: str | None = None
    input_field: str | None = None
    first: tuple[str, str, str] = ("text", "image", "response")

    def __post_init__(self):
        if self.instruction is not None and self.text_field is not None:
            raise ValueError("text_field and instruction: pass one, the field of the questions or the one question")
        if self.instruction is not None and not (isinstance(self.instruction, str) and self.instruction.strip()):
            raise ValueError(f"instruction={self.instruction!r}: write the question that every row asks")

    @property
    def given(self) -> dict[str, str]:
        """argument -> the name that the caller gave."""
        arguments = ("text_field", "image_field", "response_field")
        return {argument: name for argument in arguments if (name := getattr(self, argument)) is not None}

    def usual(self, argument: str) -> tuple[str, ...]:
        """The names that a field may have, without those that the caller gave to others."""
        if argument in self.given:
            return (self.given[argument],)
        names = dict.fromkeys([self.first[[*_ALTERNATIVES].index(argument)], *_ALTERNATIVES[argument]])
        return tuple(name for name in names if name not in self.given.values())

    def find(self, row: SourceRow, argument: str) -> str:
        """The name of the row's field: the one that is filled; several are a problem, as one of them would be lost."""
        names = self.usual(argument)
        filled = [name for name in names if not is_empty(row.fields.get(name))]
        if len(filled) > 1 and filled[0] != names[0] and not _same(row, filled):
            row.reject(
                f"several fields may be meant: {', '.join(filled)}", f"name the right one: {argument}={filled[0]!r}"
            )
        there = (name for name in names if name in row.fields)
        return filled[0] if filled else next(there, names[0])


def _same(row, names):
    return all(row.fields[name] == row.fields[names[0]] for name in names)


def read_turns(row: SourceRow, names: FieldNames) -> tuple[list[dict], list[Source]]:
    """A row's messages in the schema's form, and the sources of its images in the order of their parts.

    Adds to the row what is wrong with it. Sources without an image part come last, so that check_dataset sees that
    there are too many. An answer that is not to be learned has the key TRAIN; turns after the last one to learn are
    left out.
    """
    form = next((name for name in CONVERSATIONS if _is_conversation(row.fields, name)), None)
    turns = _read_fields(row, names) if form is None else _read_form(row, form)
    if turns is None:
        return [], []
    turns = _up_to_what_is_learned(row, turns)
    messages, sources = _with_images(row, turns, names, noted=form is not None)
    refuse_unread(row, messages)
    return messages, sources


def read_conversation(row: SourceRow, messages: list[dict], shown: str) -> tuple[list[dict], list[Source]]:
    """The same of messages that another reader has put together, whole, with images in the field `shown`."""
    turns = _with_system(row, [turn for message in messages for turn in _read_message(row, message)])
    own = row.with_fields({name: value for name, value in row.fields.items() if name == shown})
    return _with_images(own, turns, FieldNames(image_field=shown))


def _is_conversation(fields, name):
    value = fields.get(name)
    if name in ("messages", "conversations"):
        return value is not None
    value = from_json(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def from_json(value: object) -> object:
    """The list or object that a text holds as JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _read_form(row, form):
    """The turns of a whole conversation, or None where the field `form` is no list of messages."""
    messages = from_json(row.take(form))
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        row.reject(f"{form} is no list of messages", CONVERSATIONS[form])
        return None
    turns = [turn for message in messages for turn in _read_message(row, message, CONVERSATIONS[form])]
    refuse_preference(row, turns and turns[-1]["role"] == "assistant")
    return _with_system(row, turns)


def _read_fields(row, names):
    """The turns of a question and an answer in fields, of which each may be messages, as in TRL's prompt-completion."""
    answer_name = names.find(row, "response_field")
    if refuse_preference(row, row.fields.get(answer_name)):
        return None
    asked = [user(names.instruction)] if names.instruction else _read_question(row, names)
    if asked and asked[-1]["role"] == "assistant":  # the prompt's own answers are read, and not learned
        row.reject("no question: the prompt does not end with the user's turn", "write what the model is to answer")
    for turn in asked:
        turn |= {TRAIN: False} if turn["role"] == "assistant" else {}
    answer = _read_field(row, answer_name, "assistant", "write the answer that the model should give")
    return _with_system(row, [*read_history(row), *asked, *answer])


def _read_question(row, names):
    name = names.find(row, "text_field")
    turns = _read_field(row, name, "user", "write the question")
    below = names.input_field or ("input" if name == "instruction" else None)
    context = row.get_text(below) if below else ""
    if context and turns:
        turns[-1]["content"] = _joined([*turns[-1]["content"], text_part(context)])
    return turns


def _joined(parts):
    """A text of parts, a blank line between them; parts with images stay apart."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return [text_part("\n\n".join(filter(None, (part["text"] for part in parts))))]


def _read_field(row, name, role, remedy):
    """The turns in a field: those of a list of messages, or one of `role`."""
    value = row.fields.get(name)
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        row.take(name)
        return [turn for message in value for turn in _read_message(row, message)]
    return [{"role": role, "content": [text_part(row.get_text(name, remedy))]}]


def refuse_preference(row: SourceRow, answer: object) -> bool:
    """Whether the row holds a rejected answer, or one with a verdict, which is a problem: neither is to be learned.

    Beside `chosen` and `rejected` there may be an `answer` of its own.
    """
    found = {name for name in _OF_PREFERENCES if row.fields.get(name) not in (None, "")}
    verdict = next(
        (name for name in ("label", "kto_tag") if str(row.fields.get(name)).lower() in ("true", "false")), ""
    )
    alone = {"rejected_response", "rejected_messages", "non_preferred_output"} & found
    if alone or (not answer and {"chosen", "rejected"} <= found):
        remedy = "read it with vlmhelpers.data.read_preferences, and with to_rows where the chosen answers are to learn"
        row.reject(f"preference row: {' and '.join(sorted(found))}, two answers to choose from", remedy)
    elif verdict:
        remedy = "read it with vlmhelpers.data.read_rated, and with to_rows where the good answers are to learn"
        row.reject(
            f"rated row: {verdict} is {row.fields[verdict]}", f"{remedy}; rename the field where it is no verdict"
        )
    else:
        return False
    row.used |= {*found, verdict}
    return True


def read_history(row: SourceRow) -> list[dict]:
    """The messages in a row's `history`, as Alpaca files have it: a list of [question, answer] pairs."""
    history = from_json(row.take("history"))
    if is_empty(history):
        return []
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


def _with_system(row, turns):
    """The turns, the text of a field such as `system` first."""
    name = next((name for name in _SYSTEMS if not is_empty(row.fields.get(name))), "system")
    value = from_json(row.fields.get(name))
    if isinstance(value, dict | list):
        row.take(name)
        parts = [part for one in (value if isinstance(value, list) else [value]) for part in _system_parts(row, one)]
        system = "\n".join(part["text"] or "" for part in parts if part["type"] == "text").strip()
    else:
        system = row.get_text(name)
    if system and turns and turns[0]["role"] == "system":
        row.reject("two system texts: a field and the first turn", "keep one of them")
    return [{"role": "system", "content": [text_part(system)]}, *turns] if system else turns


def _system_parts(row, value):
    if isinstance(value, dict) and not {"text", "type"} & value.keys():
        value = next((value[name] for name in _CONTENTS if name in value), value)
    return _read_content(row, value if isinstance(value, list | str) else [value])


def role_of(message: object) -> str | None:
    """The role that a message as it was written has in the schema; another one as it is, None without one."""
    role = message.get("from", message.get("role")) if isinstance(message, dict) else None
    return _ROLES.get(role.lower(), role) if isinstance(role, str) else None


# One message


def _read_message(row, message, remedy=""):
    """The turns of one message: a role and a content, or a question and its answer."""
    sender = next((message[name] for name in _SENDERS if not is_empty(message.get(name))), None)
    if sender is None and (pair := _pair(message)):
        return _read_pair(row, message, *pair)
    if not isinstance(sender, str):
        row.reject("a message without a role", remedy or CONVERSATIONS["messages"])
    role = sender.lower() if isinstance(sender, str) else None
    if role in _TOOLS:
        row.reject(f"a tool's turn: {sender!r}", _CALLS[1])
    elif role and role not in _ROLES:
        row.reject(f"unknown role: {sender!r}", f"use one of {', '.join(_ROLES)}")
    turn = {"role": _ROLES.get(role, role and sender), "content": _content_of(row, message)}
    _note_leftover(row, message, {*_SENDERS, *_CONTENTS, *_WEIGHTS, *_SHOWN}, "messages")
    turn |= _learned(row, message, turn["role"])
    _place_own_images(row, turn, message)
    return [turn]


def _content_of(row, message):
    name = next((name for name in _CONTENTS if message.get(name) is not None), None)
    if name is None and any(not is_empty(message.get(key)) for key in _MEANINGFUL):
        return []  # which is a problem of its own
    return _read_content(row, message[name] if name else None)


def _pair(message):
    """The keys of a question and an answer in one object, as ShareGPT and the Cauldron write turns."""
    asked, answered = (next((n for n in names if n in message), None) for names in (_ASKED, _ANSWERED))
    if {"input", "output"} <= message.keys() and not (asked or answered):
        asked, answered = "input", "output"
    return (asked, answered) if asked and answered else None


def _read_pair(row, message, asked, answered):
    system = [{"role": "system", "content": _read_content(row, message["system"])}] if message.get("system") else []
    question = {"role": "user", "content": _read_content(row, message[asked])}
    answer = {"role": "assistant", "content": _read_content(row, message[answered])}
    answer |= _learned(row, message, "assistant")
    _place_own_images(row, question, message)
    _note_leftover(row, message, {"system", asked, answered, *_WEIGHTS, *_SHOWN}, "turns")
    return [*system, question, answer]


def _place_own_images(row, turn, message):
    """Gives a turn the images that stand in its own message."""
    own = [source for name in _SHOWN for source in sources_in(row.with_fields(message), name)]
    if own and turn["role"] != "user":
        row.reject(f"images in a turn of {turn['role']}", "move them to the user's turn; images belong there alone")
    elif own:
        left = place_images(row, [turn], own, noted=False)
        turn["content"][:0] = [{"type": "image", "source": source} for source in left]


def _learned(row, message, role):
    """{TRAIN: False} for an answer that is not to be learned, as its weight says."""
    for name in _WEIGHTS:
        weight = message.get(name)
        is_whole = isinstance(weight, bool | int | float) and weight in (0, 1)
        if weight is not None and not is_whole:
            row.reject(
                f"{name} of a message is {shorten(str(weight), 60)}", "write 1 or 0: an answer is learned or not"
            )
        elif is_whole and weight and role == "user":
            row.reject(f"{name} of a user's turn is {weight}: only answers are learned", "write 0 there, or remove it")
        elif is_whole and not weight and role == "assistant":
            return {TRAIN: False}
    return {}


def _note_leftover(row, holder, known, where):
    """Makes a problem of what says something and is not read, and keeps the names of the rest."""
    for key, value in holder.items():
        if key in known or is_empty(value):
            continue
        if key in _MEANINGFUL:
            reason, remedy = _MEANINGFUL[key]
            row.reject(f"{key}: {reason}", remedy)
        elif seems_image(value):
            row.reject(f"an image in {where}, under {key!r}, is not read", "name it image there")
        else:
            row.unused.add(f"{key} (in {where})")


# One content


def _read_content(row, content):
    if isinstance(content, str | int | float) and not isinstance(content, bool):
        return [text_part(row.as_text(content, "content"))]
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        return [_read_part(row, part) for part in content]
    row.reject("content is no text and no list of parts", 'write a text or parts: [{"type": "text", "text": ...}]')
    return []


_IMAGE_TYPES = ("image", "image_url", "input_image", "img")
_IMAGE_KEYS = (
    *("image", "image_url", "path", "url", "base64", "source", "image_path", "value"),
    *("fileData", "file_data", "inlineData", "inline_data"),
)
_TEXT_TYPES = ("text", "input_text", "output_text")


def _read_part(row, part):
    kind = part.get("type")
    if kind is None:  # Gemini's, Bedrock's and Qwen's parts say by their keys what they are
        kind = next((key for key in ("text", *_IMAGE_KEYS, *_MEANINGFUL) if not is_empty(part.get(key))), None)
        kind = "image" if kind in _IMAGE_KEYS else "text" if kind is None and "text" in part else kind
    if kind in _IMAGE_TYPES:
        return {"type": "image", "source": _part_source(row, part)}
    if kind in _TEXT_TYPES:
        text = part.get("text", part.get("value"))
        _note_leftover(row, part, {"type", "text", "value", "index"}, "parts")
        return {"type": "text", "text": None if text is None else row.as_text(text, "a text part")}
    if kind in _MEANINGFUL:
        reason, remedy = _MEANINGFUL[kind]
        row.reject(f"{kind}: {reason}", remedy)
    return {"type": str(kind), "text": None}


def _part_source(row, part):
    """A part's own source; the number of one in the row's list as an integer; NEXT where it has none."""
    own = next((part[key] for key in _IMAGE_KEYS if not is_empty(part.get(key))), None)
    known = {"type", "text", "index", "mime_type", "mimeType", "media_type", *_IMAGE_KEYS}
    _note_leftover(row, part, known, "parts")
    media = own if isinstance(own, dict) else part
    kind = str(next((media[key] for key in ("mime_type", "mimeType", "media_type") if media.get(key)), "image"))
    if not kind.startswith("image"):
        row.reject(f"{kind}: {_MEDIA[0]}", _MEDIA[1])
    if own is None and isinstance(part.get("index"), int):
        return part["index"]
    if own is None and not is_empty({key: part[key] for key in ("file_id",) if part.get(key)}):
        row.reject(f"an image by its file_id: {shorten(str(part['file_id']), 60)}", "write the image's path or bytes")
    return NEXT if own is None else source_of(row, own, "an image part")


# Images, and what is left


def _with_images(row, turns, names, noted=True):
    """The messages and sources of turns, with the images of the row's own fields."""
    place_tagged(row, turns)
    listed, tags = _listed_images(row, names)
    listed = _by_index(row, turns, listed)
    own = [part["source"] for turn in turns for part in turn["content"] if part.get("source", NEXT) is not NEXT]
    sound = not row.problems and all(turn["role"] in _ROLES.values() for turn in turns)
    left = listed
    if sound and not (own and own == listed):
        left = place_images(row, turns, listed, tags, noted)
    messages, sources = schema_messages(turns)
    return messages, [*sources, *([] if own and own == listed else left)]


def _listed_images(row, names):
    """The sources in the row's fields of images, and by their placeholders where one is an object of those."""
    found, tags = {}, {}
    fields = (
        names.usual("image_field") if names.image_field is None else {names.image_field: 0, "images": 0, "image": 0}
    )
    for name in fields:
        value = from_json(row.fields.get(name))
        if isinstance(value, dict) and value and all("<" in key for key in value):
            row.take(name)
            tags = {key: source_of(row, one, name) for key, one in value.items()}
            found[name] = [*tags.values()]
        elif sources := sources_in(row.with_fields(row.fields | {name: value}), name):
            found[name] = sources
    found = _distinct(found)
    if len(found) > 1:
        row.reject(f"images in both {' and '.join(found)}", "keep one of the two fields")
    return next(iter(found.values()), []), tags


def _distinct(found):
    """The fields whose images are not those of an earlier one; beside encoded images, a field of one name is theirs."""
    kept = {}
    for name, sources in found.items():
        encoded = any(isinstance(source, dict) for some in kept.values() for source in some)
        names_alone = encoded and all(isinstance(source, str) for source in sources)
        if sources not in kept.values() and not names_alone:
            kept[name] = sources
    return kept


def _by_index(row, turns, listed):
    """Gives parts that name images by number those of the list; the others of the list."""
    parts = [part for turn in turns for part in turn["content"] if isinstance(part.get("source"), int)]
    numbers = {part["source"] for part in parts}
    if wrong := [number for number in numbers if not 0 <= number < len(listed)]:
        row.reject(f"an image part of index {wrong[0]}, and the row has {len(listed)} images", "count from 0")
    for part in parts:
        part["source"] = None if part["source"] in wrong else listed[part["source"]]
    return [source for number, source in enumerate(listed) if number not in numbers]


def _up_to_what_is_learned(row, turns):
    """The turns to the last answer that is to be learned; a row without one has a problem."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    learned = [number for number in answers if turns[number].get(TRAIN) is not False]
    weight = next((name for name in _WEIGHTS if row.fields.get(name) in (0, "0", "false", "False")), None)
    if weight:
        row.used.add(weight)
    if answers and (weight or not learned):
        what = f"{weight} of the row is {row.fields[weight]}" if weight else "no answer of the row is to be learned"
        row.reject(f"nothing to learn: {what}", "leave the row out")
        return [{name: value for name, value in turn.items() if name != TRAIN} for turn in turns]
    if answers and learned[-1] != answers[-1]:
        row.notes.append("turns after the last answer to learn left out")
        return turns[: learned[-1] + 1]
    return turns


def refuse_unread(row: SourceRow, messages: Iterable[dict]) -> None:
    """Makes a problem of each field that says something about the conversation and was not read."""
    has_image = any(part["type"] == "image" for message in messages for part in message["content"])
    for name, value in row.leave().items():
        if name in _IN_ROWS:
            reason, remedy = _MEANINGFUL[name]
            row.reject(f"{name}: {reason}", remedy)
        elif name in CONVERSATIONS and _is_conversation(row.fields, name):
            row.reject(f"a second conversation in {name}", "keep one of the two fields")
        elif not has_image and seems_image(value):
            row.reject(f"an image in {name!r} is not read", f"name it: image_field={name!r}")
