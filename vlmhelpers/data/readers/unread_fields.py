"""What changes the meaning of a row, a message or a part, and is not read: known by its name or by its value."""

import functools
import re
from collections.abc import Iterable

from vlmhelpers.data.readers.field_names import OF_FOLDERS, OF_TRIALS, is_conversation
from vlmhelpers.data.readers.source import SourceRow, from_json, says_nothing
from vlmhelpers.data.readers.value_kinds import are_corners, numbers_in, plain, seems_image, seems_media

MEDIA = "only images are read", "leave the row out, or replace it by images"
CALLS = "calls of tools are not learned", "leave the row out, or write call and result into the texts"
_BOXES = "boxes are not written into the texts", "write their coordinates there as the model does, or remove the field"
_REASONING = "reasoning beside the answer is not read", "write <think>...</think> at the start of the answer"
_CHOICES = (
    "the choices of a question are not read",
    "write them into the question instead of the field, and the right one as answer",
)
_MEANINGFUL = {  # names, see plain -> problem
    **dict.fromkeys(["video", "videos", "audio", "audios", "inputaudio", "videourl", "audiourl"], MEDIA),
    **dict.fromkeys(["document", "file", "fileid", "pdf"], MEDIA),
    **dict.fromkeys(["tools", "functions", "toolcalls", "functioncall", "toolcallid"], CALLS),
    **dict.fromkeys(["tooluse", "toolresult", "functionresponse", "executablecode"], CALLS),
    "objects": _BOXES,
    **dict.fromkeys(["reasoningcontent", "reasoning", "thinking", "thought"], _REASONING),
    "traindetail": ("parts of a text cannot be learned alone", "use train for the whole turn"),
    "lossscale": ("an answer is learned or not", "use loss for the whole turn, or remove the field"),
    "refusal": ("a refusal is not read", "write it as the content, or leave the row out"),
}
_NOT_IN_ROWS = ("reasoning", "thinking", "file", "fileid", "document", "pdf")  # names that columns have, too
_OF_BOXES = re.compile(
    r"(?!num|has|is|count|total).*"
    r"(?:bbox|bound(?:ing)?box|polygon|polyline|keypoint|segmentation|(?:rectangle|brush|ellipse)labels).*|boxes"
)
_LEAST = {  # words of names -> from how many numbers on their values are boxes or points
    **dict.fromkeys(["point", "points"], 2),
    **dict.fromkeys(["box", "boxes", "detection", "detections", "region", "regions", "roi", "rois"], 4),
    **dict.fromkeys(["rect", "rects", "rectangle", "coords", "coordinates", "corners"], 4),
}
_WORD = re.compile("[A-Z]?[a-z]+|[A-Z]+")
_OF_CHOICES = re.compile(
    r"(?:answer|multiple|mc)?(?:choices|options|alternatives|distractors)|(?:choice|option|distractor)(?:[a-j]|\d{1,2})"
)
_COMPLETIONS = "several answers are not read", "read pairs with read_preferences, or keep one as the response"
_IMAGES = r"image|img|picture|photo|mask|screenshot"
_OF_IMAGES = re.compile(_IMAGES, re.IGNORECASE)
_OF_ONE_IMAGE = re.compile(rf"(?:.*_)?(?:{_IMAGES})s?(?:_?(?:\d+|(?:url|path|file|link)s?))?", re.IGNORECASE)
_OF_MEDIA = re.compile("video|audio|clip|movie|sound|speech", re.IGNORECASE)


@functools.lru_cache(4096)
def problem_of(name: str) -> tuple[str, str] | None:
    """The reason and the remedy by which a field of a message, or a part, is refused; None for other names."""
    short = plain(name)
    return _BOXES if _OF_BOXES.fullmatch(short) or short == "box" else _MEANINGFUL.get(short)


@functools.lru_cache(4096)
def problem_in_row(name: str) -> tuple[str, str] | None:
    """The same of a field of a row, whose names may mean less."""
    if (short := plain(name)) == "completions":
        return _COMPLETIONS
    if _OF_CHOICES.fullmatch(short):
        return _CHOICES
    return None if short in (*_NOT_IN_ROWS, "box") else problem_of(name)


def problem_with(name: str, value: object, in_row: bool = False) -> tuple[str, str] | None:
    """The problem of a field that says something and was not read, by its name or value; None where it may be left."""
    problem = problem_in_row(name) if in_row else problem_of(name)
    return problem or (_BOXES if _has_boxes(name, from_json(value)) else None)


def _has_boxes(name, value):
    """Whether a value is boxes, or holds them under names that say so."""
    least = min((_LEAST[word] for word in map(str.lower, _WORD.findall(name)) if word in _LEAST), default=0)
    if least and numbers_in(value) >= least:
        return True
    if isinstance(value, list):
        return any(_has_boxes("", one) for one in value)
    if not isinstance(value, dict):
        return False
    inner = {str(key): one for key, one in value.items() if not says_nothing(one)}
    is_one = are_corners(inner) or {"counts", "size"} <= inner.keys()  # a mask of COCO
    return bool(is_one) or any(_OF_BOXES.fullmatch(plain(key)) or _has_boxes(key, one) for key, one in inner.items())


def leave_unread(row: SourceRow, holder: dict, known: Iterable[str], where: str) -> None:
    """What is not read of a message, a part or another object in a row: a problem, or a name that the report lists."""
    if corners := are_corners(holder):
        row.reject(f"{', '.join(corners)}: {_BOXES[0]}", _BOXES[1])
    for name, value in holder.items():
        if name in known or says_nothing(value):
            continue
        if problem := problem_with(name, value) or (seems_media(value) and MEDIA):
            row.reject(f"{name}: {problem[0]}", problem[1])
        elif seems_image(value) or _names_image(name, value):
            row.reject(f"an image in {where}, under {name!r}, is not read", "name it image there")
        else:
            row.unused.add(f"{name} (in {where})")


def refuse_unread(row: SourceRow, messages: Iterable[dict]) -> None:
    """Makes a problem of each field that says something about the conversation and was not read."""
    if not (left := row.leave()):
        return
    has_image = any(part["type"] == "image" for message in messages for part in message["content"])
    refused = {_CHOICES: ["A", "B"]} if {"A", "B"} <= left.keys() else {}
    if corners := are_corners(left):
        refused[_BOXES] = corners
    for name, value in left.items():
        if problem := problem_with(name, value, in_row=True):
            refused.setdefault(problem, []).append(name)
        elif is_conversation(row.fields, name):
            row.reject(f"a second conversation in {name}", "keep one of the two fields")
        elif seems_media(value) and (not has_image or _OF_MEDIA.search(name)):
            refused.setdefault(MEDIA, []).append(name)
        elif _is_unread_image(row, name, value, has_image):
            remedy = f"name it: image_field={name!r}; several belong into one list"
            row.reject(f"an image in {name!r} is not read", remedy)
    for (reason, remedy), names in refused.items():
        row.reject(f"{', '.join(names)}: {reason}", remedy)


def _is_unread_image(row, name, value, has_image):
    """Whether a field holds an image; beside another one, bytes, or a path by a name such as `image_2` or `mask`."""
    if not has_image or _is_further(row, name):
        return _names_image(name, value) or seems_image(value)
    if not isinstance(value, str):
        return seems_image(value)
    is_copy = name.lower().endswith(("id", "name", "url")) or "://" in value  # says where the image was
    return not is_copy and bool(_OF_IMAGES.search(name)) and seems_image(value)


def _is_further(row, name):
    """Whether a field is an imagefolder's, such as `mask_file_name`, beside its `file_name`."""
    return name.endswith(OF_TRIALS) and not row.used.isdisjoint(OF_FOLDERS)


def _names_image(name, value):
    """Whether a field is called as one of an image, and has a path or link, whatever its ending."""
    if isinstance(value, dict):
        value = value.get("url")
    if isinstance(value, list):
        return bool(value) and all(_names_image(name, one) for one in value)
    return isinstance(value, str) and bool(_OF_ONE_IMAGE.fullmatch(name)) and not re.search(r"\s", value.strip())
