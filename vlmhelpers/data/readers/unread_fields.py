"""What changes the meaning of a row, a message or a part, and is not read: known by its name or by its value."""

import functools
import re
from collections.abc import Iterable

from vlmhelpers.data.readers.field_names import is_conversation
from vlmhelpers.data.readers.image_sources import seems_image, seems_media
from vlmhelpers.data.readers.source import SourceRow, from_json, is_empty

MEDIA = "only images are read", "leave the row out, or replace it by images"
CALLS = "calls of tools are not learned", "leave the row out, or write call and result into the texts"
_BOXES = "boxes are not written into the texts", "write their coordinates there as the model does, or remove the field"
_REASONING = "reasoning beside the answer is not read", "write <think>...</think> at the start of the answer"
_CHOICES = (
    "the choices of a question are not read",
    "write them into the question instead of the field, and the right one as answer",
)
_MEANINGFUL = {  # names, see _plain -> problem
    **dict.fromkeys(["video", "videos", "audio", "audios", "inputaudio", "videourl", "audiourl"], MEDIA),
    **dict.fromkeys(["document", "file", "fileid", "pdf"], MEDIA),
    **dict.fromkeys(["tools", "functions", "toolcalls", "functioncall", "toolcallid"], CALLS),
    **dict.fromkeys(["tooluse", "toolresult", "functionresponse", "executablecode"], CALLS),
    **dict.fromkeys(["objects", "bbox", "bboxes", "box", "boxes", "boundingbox", "boundingboxes"], _BOXES),
    **dict.fromkeys(["rectanglelabels", "polygon", "polygons", "segmentation", "keypoints"], _BOXES),
    **dict.fromkeys(["reasoningcontent", "reasoning", "thinking", "thought"], _REASONING),
    "traindetail": ("parts of a text cannot be learned alone", "use train for the whole turn"),
    "lossscale": ("an answer is learned or not", "use loss for the whole turn, or remove the field"),
    "refusal": ("a refusal is not read", "write it as the content, or leave the row out"),
}
_NOT_IN_ROWS = ("reasoning", "thinking", "file", "fileid", "document", "pdf", "box")  # names that columns have, too
_OF_CHOICES = re.compile(
    r"(?:answer|multiple|mc)?(?:choices|options|alternatives|distractors)|(?:choice|option|distractor)(?:[a-j]|\d{1,2})"
)
_COMPLETIONS = "several answers are not read", "read pairs with read_preferences, or keep one as the response"
_IMAGES = r"image|img|picture|photo|mask|screenshot"
_OF_IMAGES = re.compile(_IMAGES, re.IGNORECASE)
_OF_ONE_IMAGE = re.compile(rf"(?:.*_)?(?:{_IMAGES})s?(?:_?(?:\d+|url|path|file|link))?", re.IGNORECASE)
_OF_MEDIA = re.compile("video|audio|clip|movie|sound|speech", re.IGNORECASE)


@functools.lru_cache(4096)
def problem_of(name: str) -> tuple[str, str] | None:
    """The reason and the remedy by which a field of a message, or a part, is refused; None for other names."""
    return _MEANINGFUL.get(_plain(name))


@functools.lru_cache(4096)
def problem_in_row(name: str) -> tuple[str, str] | None:
    """The same of a field of a row, whose names may mean less."""
    if (plain := _plain(name)) == "completions":
        return _COMPLETIONS
    if _OF_CHOICES.fullmatch(plain):
        return _CHOICES
    return None if plain in _NOT_IN_ROWS else problem_of(name)


def _plain(name):
    """A name as its letters and digits, so that `Tool Calls`, `tool_calls` and `toolCalls` are one."""
    return re.sub(r"[\s_-]", "", name.lower())


def refuse_unread(row: SourceRow, messages: Iterable[dict]) -> None:
    """Makes a problem of each field that says something about the conversation and was not read."""
    if not (left := row.leave()):
        return
    has_image = any(part["type"] == "image" for message in messages for part in message["content"])
    refused = {_CHOICES: ["A", "B"]} if {"A", "B"} <= left.keys() else {}
    for name, value in left.items():
        if problem := problem_in_row(name):
            refused.setdefault(problem, []).extend([] if is_empty(from_json(value)) else [name])
        elif is_conversation(row.fields, name):
            row.reject(f"a second conversation in {name}", "keep one of the two fields")
        elif seems_media(value) and (not has_image or _OF_MEDIA.search(name)):
            refused.setdefault(MEDIA, []).append(name)
        elif _is_unread_image(name, value, has_image):
            remedy = f"name it: image_field={name!r}; several belong into one list"
            row.reject(f"an image in {name!r} is not read", remedy)
    for (reason, remedy), names in refused.items():
        if names:
            row.reject(f"{', '.join(names)}: {reason}", remedy)


def _is_unread_image(name, value, has_image):
    """Whether a field holds an image; beside another one, bytes, or a path by a name such as `image_2` or `mask`."""
    if not has_image:
        is_named = isinstance(value, str) and _OF_ONE_IMAGE.fullmatch(name) and not re.search(r"\s", value.strip())
        return is_named or seems_image(value)
    if not isinstance(value, str):
        return seems_image(value)
    is_copy = name.lower().endswith(("id", "name", "url")) or "://" in value  # says where the image was
    return not is_copy and bool(_OF_IMAGES.search(name)) and seems_image(value)
