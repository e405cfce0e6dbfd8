"""WebDataset shards: tar archives in which the members of one name are a row."""

import itertools
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator

from vlmhelpers.data.readers.source import DataError, SourceRow

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm")
_CHUNK = 2**20
_APART = "members of one name that do not stand together", "write all of a row's members one after another"
_ORDER = "number them (0.jpg, 1.jpg), or list them as images in the row's .json"


def read_shard(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields the rows of a shard, which may be compressed: neighbors whose names are the same up to the first dot.

    Pictures are the field "image"; several in the order of their numbers, or of the field "images" of the row's
    `.json`, which holds the other fields. Every other member is a text, named by its ending. Raises ValueError for
    what is no tar archive, or breaks off.
    """
    seen = set()
    try:
        with tarfile.open(path) as archive:
            members = (m for m in archive if m.isfile() and not os.path.basename(m.name).startswith((".", "__")))
            for stem, group in itertools.groupby(members, lambda member: _split(member.name)[0]):
                row = _row_of(stem, [(_split(m.name)[1], archive.extractfile(m).read()) for m in group])
                if stem in seen:
                    row.reject(*_APART)
                seen.add(stem)
                yield row
            _check_end(archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a tar archive: {error}. Copy or download it again.") from None


def _check_end(archive):
    """Raises TarError where something follows that is no member: tarfile ends there without a word."""
    archive.fileobj.seek(archive.offset)
    while chunk := archive.fileobj.read(_CHUNK):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"what stands at byte {archive.offset} is no member of it")


def _split(name):
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _row_of(stem, members):
    """The row of (ending, content) pairs."""
    pictures = {ending: content for ending, content in members if f".{ending}".endswith(_IMAGES)}
    others = [member for member in members if member[0] not in pictures]
    if twice := [ending for ending, count in Counter(ending for ending, _ in members).items() if count > 1]:
        return SourceRow({}, [(f"two members of the ending .{twice[0]}", "keep one of them")])
    try:
        texts = {ending: content.decode() for ending, content in others}
        fields = json.loads(texts.pop("json", "{}"))
    except UnicodeDecodeError as error:
        return SourceRow({}, [(f"a member that is no UTF-8 text: {error.reason}", "leave it out, or save it as text")])
    except (ValueError, RecursionError) as error:
        return SourceRow({}, [(f"not JSON: {error}", "write one whole object into the row's .json")])
    if not isinstance(fields, dict):
        return SourceRow({}, [("no object in the row's .json", 'write {"name": value, ...}')])
    return _with_pictures(texts | fields, pictures, os.path.basename(stem))


def _with_pictures(fields, pictures, stem):
    """The row of fields and pictures, in the order that its fields or the pictures' numbers give."""
    listed = next((fields[name] for name in ("images", "image") if fields.get(name)), [])
    names = [_ending_of(name, stem) for name in (listed if isinstance(listed, list) else [listed])]
    numbers = {ending: re.match(r"\d+", ending) for ending in pictures}
    if pictures and sorted(map(str, names)) == sorted(pictures):
        order = names
    elif len(pictures) > 1 and not all(numbers.values()):
        return SourceRow(fields, [(f"several pictures, in no order that is known: {', '.join(pictures)}", _ORDER)])
    else:
        order = sorted(pictures, key=lambda ending: int(numbers[ending][0])) if len(pictures) > 1 else [*pictures]
    if not pictures:
        return SourceRow(fields)
    fields = {name: value for name, value in fields.items() if name not in ("image", "images")}
    return SourceRow(fields | {"image": [pictures[ending] for ending in order]})


def _ending_of(name, stem):
    """The ending by which a row's .json names a member: its whole name, or what follows the row's."""
    base = os.path.basename(name) if isinstance(name, str) else str(name)
    return base.removeprefix(f"{stem}.").lower()
