"""Where the images of a conversation stand: in its parts, at the placeholders in its texts, or before its first text.

A turn is read as {"role", "content"}, its content a list of {"type": "text", "text"} and {"type": "image", "source"};
the source is NEXT for a part that stands for the next image of a list.
"""

import re
from collections.abc import Iterator

from vlmhelpers.data.readers.image_sources import Source, source_of
from vlmhelpers.data.readers.source import SourceRow
from vlmhelpers.data.readers.unread_fields import MEDIA
from vlmhelpers.data.readers.value_kinds import seems_media
from vlmhelpers.data.schema import image_part, text_part

IMAGE = "<image>"
NEXT = object()
_NUMBERED = re.compile(r"<\|?image[ _]?(\d{1,3})\|?>")  # <image_00>, <|image_1|>, <image1>
_TAGGED = re.compile(r"<img>([^<>\n]{1,2000})</img>")  # a path or link, as Qwen-VL's data have it
_MEDIA_TAGGED = re.compile(r"<(audio|video)>([^<>\n]{1,2000})</\1>")  # the same of Qwen-Audio's
_MEDIA_TAGS = re.compile(r"<\|?(?:video|audio)(?:[ _]?\d{1,3})?\|?>")


def place_tagged(row: SourceRow, turns: list[dict]) -> None:
    """Makes an image part of each `<img>path</img>` in the user's texts; the same of a sound or video is a problem."""
    for turn in _users(turns):
        for part in turn["content"]:
            _refuse_media(row, (part["type"] == "text" and part["text"]) or "")
        turn["content"] = [piece for part in turn["content"] for piece in _split_tagged(row, part)]


def _refuse_media(row, text):
    for tag, inner in _MEDIA_TAGGED.findall(text):
        if seems_media(inner) or not re.search(r"\s", inner.strip()):
            row.reject(f"<{tag}>{inner[:60]}</{tag}> in a text: {MEDIA[0]}", MEDIA[1])
    if tags := dict.fromkeys(_MEDIA_TAGS.findall(text)):
        row.notes.append(f"{' '.join(tags)} taken as text: {MEDIA[0]}")


def _split_tagged(row, part):
    if part["type"] != "text" or "<img>" not in (part["text"] or ""):
        return [part]
    return _split(part["text"], _TAGGED, lambda found: source_of(row, found[1].strip(), "<img>"))


def place_images(
    row: SourceRow,
    turns: list[dict],
    sources: list[Source],
    tags: dict[str, Source] | None = None,
    noted: bool = True,
    empty: str | None = None,
) -> list[Source]:
    """Gives the image parts of the turns their sources, and returns those that are left over.

    Image parts without one come first; else each `<image>` in the user's texts becomes one, or each numbered
    placeholder (`tags`: the sources by their placeholders, where the row says so); else all come before the user's
    first text, which is `noted`. `empty`: a field of images that holds none, so that an `<image>` lacks its image.
    """
    left = list(sources)
    bare = [part for part in _images(turns) if part["source"] is NEXT]
    if bare:
        for part in bare:
            part["source"] = left.pop(0) if left else NEXT
    if bare or not sources:
        _judge_placeholders(row, turns, empty)
        return left
    return _place_listed(row, turns, left, tags, noted)


def _place_listed(row, turns, sources, tags, noted):
    left = list(sources)
    everywhere = _count(turns)
    here = everywhere and _count(_users(turns))
    if not everywhere and (tags := tags or _numbered(turns, sources)):
        return _place_by_tags(row, turns, tags)
    questions = [*_users(turns)]
    if here == len(sources):
        for turn in questions:
            _split_turn(turn, re.compile(IMAGE), lambda found: left.pop(0))
    elif questions and not everywhere and not any(_images(turns)):
        questions[0]["content"][:0] = [{"type": "image", "source": source} for source in sources]
        left = []
        row.notes += [f"no {IMAGE} in the texts: the images come before the first question"] * noted
    else:
        reason = f"images do not match: {here} {IMAGE} in the user's texts, {len(sources)} images"
        row.reject(reason, f"write {IMAGE} into the user's texts once for each image")
    if everywhere > here:
        row.notes.append(f"{IMAGE} taken as text: it is not the user's")
    return left


def _judge_placeholders(row, turns, empty):
    """What `<image>` in the texts means where no image is left for it: a double of an image part, or text."""
    if not _count(turns):
        return
    here, shown = _count(_users(turns)), sum(1 for _ in _images(_users(turns)))
    if here and here == shown:
        row.notes.append(f"{IMAGE} left out of the texts: the parts say where the images stand")
        for turn in _users(turns):
            _leave_out_placeholders(turn)
    elif here and shown:
        row.notes.append(f"{IMAGE} taken as text: {here} in the user's texts, beside {shown} image parts")
    elif here and empty:
        row.reject(f"an image is missing: {empty} is empty, and a text has {IMAGE}", f"write its path, or no {IMAGE}")
    else:
        why = "it is not the user's" if shown else "the row has no images"
        row.notes.append(f"{IMAGE} taken as text: {why}")


def _leave_out_placeholders(turn):
    for part in turn["content"]:
        if part["type"] == "text" and IMAGE in (part["text"] or ""):
            part["text"] = re.sub(rf"{IMAGE}(?:\r?\n)?|\r?\n{IMAGE}\Z", "", part["text"])
    turn["content"] = [part for part in turn["content"] if part["type"] != "text" or part["text"] != ""]


def _place_by_tags(row, turns, tags):
    pattern, left = re.compile("|".join(map(re.escape, sorted(tags, key=len, reverse=True)))), dict(tags)
    for turn in _users(turns):
        _split_turn(turn, pattern, lambda found: left.pop(found[0], None))
    if left or any(part["source"] is None for part in _images(turns)) and None not in tags.values():
        names = " ".join(left) or "one that stands there twice"
        row.reject(f"images do not match their placeholders: {names}", "write each into the user's texts once")
    return [*left.values()]


def _numbered(turns, sources):
    """The sources by the numbered placeholders in the user's texts, where those go on from 0 or 1 as the images do."""
    found = {int(tag[1]): tag[0] for text in _texts(_users(turns)) for tag in _NUMBERED.finditer(text)}
    start = min(found, default=0)
    if start > 1 or sorted(found) != list(range(start, start + len(sources))):
        return None
    return {found[start + place]: source for place, source in enumerate(sources)}


def schema_messages(turns: list[dict]) -> tuple[list[dict], list[Source]]:
    """The turns as messages of the schema, and the sources of their image parts in order, of those that have one."""
    sources = [part["source"] for part in _images(turns) if part["source"] is not NEXT]
    messages = [
        turn | {"content": [image_part() if part["type"] == "image" else part for part in turn["content"]]}
        for turn in turns
    ]
    return messages, sources


def _split_turn(turn, pattern, source_at):
    parts = (_split(part["text"], pattern, source_at) if part["type"] == "text" else [part] for part in turn["content"])
    turn["content"] = [piece for pieces in parts for piece in pieces]


def _split(text, pattern, source_at):
    """The parts of a text; each placeholder takes the line breaks beside it along; there may be no text between two."""
    parts, start = [], 0
    for found in pattern.finditer(text):
        before = re.sub(r"\r?\n\Z", "", text[start : found.start()])
        parts += [text_part(before)] if before else []
        parts.append({"type": "image", "source": source_at(found)})
        start = found.end() + len(re.match(r"(?:\r?\n)?", text[found.end() :])[0])
    return parts + ([text_part(text[start:])] if text[start:] or not parts else [])


def _users(turns) -> Iterator[dict]:
    return (turn for turn in turns if turn["role"] == "user")


def _images(turns) -> Iterator[dict]:
    return (part for turn in turns for part in turn["content"] if part["type"] == "image")


def _texts(turns) -> Iterator[str]:
    return (part["text"] or "" for turn in turns for part in turn["content"] if part["type"] == "text")


def _count(turns):
    return sum(text.count(IMAGE) for text in _texts(turns))
