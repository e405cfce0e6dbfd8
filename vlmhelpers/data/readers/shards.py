"""WebDataset shards: tar archives in which the members of one name are a row."""

import io
import itertools
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator

from vlmhelpers.common.image_costs import largest_file
from vlmhelpers.common.images import MAX_PIXELS
from vlmhelpers.data.readers.source import DataError, SourceRow
from vlmhelpers.data.readers.unread_fields import MEDIA
from vlmhelpers.data.readers.value_kinds import is_image_file, seems_media

_CHUNK = 2**20
_MOST_IN_ROW = largest_file(MAX_PIXELS)  # bytes of its members, which a small archive may unpack to
_MOST_TEXT = 2**26
_MOST_HEADER = 2**20  # bytes of one
_HEADERS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)  # what stands before a member, to be read with it
_HEADERS += (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_MOST_AFTER = 2**26  # zeros at the end, which tar writes some of
_SPARSE = "write the archive anew, without tar's option --sparse"
_SHOWN = ("image", "images", "image_url", "image_path", "path", "url", "source", "fileUri", "file_uri")  # in a message
_APART = "members of one name that do not stand together", "write all of a row's members one after another"
_ORDER = "number them (0.jpg, 1.jpg), or list them as images in the row's .json"


def read_shard(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields the rows of a shard, which may be compressed: neighbors whose names are the same up to the first dot.

    Pictures stand where a message of the row's `.json` names them, else they are the field "image"; several in the
    order of their numbers, or of the `.json`'s field "images". It holds the other fields. Every other member is a text,
    named by its ending. A sparse member, and one that is larger than an image or a text has to be, is not read, but a
    problem. Raises ValueError for what is no tar archive, breaks off, or is compressed and has a member so large.
    """
    seen = set()
    try:
        with tarfile.open(path, tarinfo=_Member) as archive:
            members = (m for m in archive if m.isfile() and not os.path.basename(m.name).startswith((".", "__")))
            for stem, group in itertools.groupby(members, lambda member: _split(member.name)[0]):
                row = _row_of(stem, *_read_members(path, archive, group))
                if stem in seen:
                    row.reject(*_APART)
                seen.add(stem)
                yield row
            _check_end(archive)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as a tar archive: {error}. Copy or download it again.") from None


class _Member(tarfile.TarInfo):
    """A member whose headers do not fill the memory: tarfile reads names that are as long as the archive says."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        """The member of a block. Raises ReadError for a header that is too long."""
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS and member.size > _MOST_HEADER:
            raise tarfile.ReadError(f"a member's header of {member.size} bytes")
        return member


def _read_members(path, archive, group):
    """The (ending, content) pairs of a row, and what is wrong with those members that are not read."""
    members, problems, left = [], [], _MOST_IN_ROW
    for member in group:
        ending = _split(member.name)[1]
        most = left if is_image_file(f".{ending}") or seems_media(f".{ending}") else min(left, _MOST_TEXT)
        if member.issparse():
            problems.append((f"a member .{ending} that is sparse", _SPARSE))
        elif member.size <= most:
            members.append((ending, archive.extractfile(member).read()))
            left -= member.size
        elif isinstance(archive.fileobj, io.BufferedReader):
            reason = f"a member .{ending} of {member.size / 1e6:,.0f} MB, where up to {most / 1e6:,.0f} MB are read"
            problems.append((reason, "leave it out, or make it smaller"))
        else:  # what follows can be reached only by unpacking it
            reason = f"unpacks {member.name!r} to {member.size / 1e6:,.0f} MB, more than a row may have"
            raise DataError(f"{path} {reason}. Leave it out, or unpack the archive and read the .tar.")
    return members, problems


def _check_end(archive):
    """Raises TarError where something follows that is no member: tarfile ends there without a word."""
    archive.fileobj.seek(archive.offset)
    for chunk in iter(lambda: archive.fileobj.read(_CHUNK), b""):
        if archive.fileobj.tell() > archive.offset + _MOST_AFTER:
            return
        if chunk.strip(b"\0"):
            raise tarfile.ReadError(f"what stands at byte {archive.offset} is no member of it")


def _split(name):
    folder, base = os.path.split(name)
    stem, _, ending = base.partition(".")
    return f"{folder}/{stem}", ending.lower()


def _row_of(stem, members, unread):
    """The row of (ending, content) pairs; `unread`: what is wrong with other members."""
    pictures = {ending: content for ending, content in members if is_image_file(f".{ending}")}
    others = [member for member in members if member[0] not in pictures]
    if twice := [ending for ending, count in Counter(ending for ending, _ in members).items() if count > 1]:
        return SourceRow({}, [(f"two members of the ending .{twice[0]}", "keep one of them")])
    texts, problems = _texts_of(others)
    try:
        fields = json.loads(texts.pop("json", "{}"))
    except (ValueError, RecursionError) as error:
        return SourceRow({}, [(f"not JSON: {error}", "write one whole object into the row's .json")])
    if not isinstance(fields, dict):
        return SourceRow({}, [("no object in the row's .json", 'write {"name": value, ...}')])
    fields, more = _with_pictures(texts | fields, pictures, os.path.basename(stem))
    return SourceRow(fields, unread + problems + more)


def _texts_of(members):
    """The texts of members by their endings, and what is wrong with those that are none."""
    texts, problems = {}, []
    for ending, content in members:
        try:
            if seems_media(f".{ending}"):
                problems.append((f"a member .{ending}: {MEDIA[0]}", MEDIA[1]))
            else:
                texts[ending] = content.decode()
        except UnicodeDecodeError as error:
            reason = f"a member .{ending} that is no UTF-8 text: {error.reason}"
            problems.append((reason, "leave it out, or save it as text"))
    return texts, problems


def _with_pictures(fields, pictures, stem):
    """The fields with the pictures, each where it is named, else in `image`; and what is wrong with them."""
    if not pictures:
        return fields, []
    named = set()
    fields = {n: _filled(v, "", pictures, stem, named) if isinstance(v, list) else v for n, v in fields.items()}
    if named:
        left = ", ".join(ending for ending in pictures if ending not in named)
        problem = f"pictures that the row's .json does not name: {left}", "name each of them, or none"
        return fields, [problem] if left else []
    listed = next((fields[name] for name in ("images", "image") if fields.get(name)), [])
    names = [_ending_of(name, stem) for name in (listed if isinstance(listed, list) else [listed])]
    if names and len(names) != len(pictures):
        counts = f"{len(names)} images in the row's .json, {len(pictures)} pictures beside it: {', '.join(pictures)}"
        return fields, [(counts, "list each picture once, and add those that are missing")]
    order = _order_of(pictures, names)
    if order is None:
        return fields, [(f"several pictures, in no order that is known: {', '.join(pictures)}", _ORDER)]
    fields = {name: value for name, value in fields.items() if name not in ("image", "images")}
    return fields | {"image": [pictures[ending] for ending in order]}, []


def _order_of(pictures, names):
    """The endings of pictures as they are listed, or by their numbers; None where neither tells."""
    if sorted(names) == sorted(pictures):
        return names
    numbers = {ending: re.match(r"\d+", ending) for ending in pictures}
    if len(pictures) > 1 and not all(numbers.values()):
        return None
    return sorted(pictures, key=lambda ending: int(numbers[ending][0])) if len(pictures) > 1 else [*pictures]


def _filled(value, key, pictures, stem, named):
    """A message, or what is in it, with pictures in the place of their names; `named` collects those."""
    if isinstance(value, list):
        return [_filled(one, key, pictures, stem, named) for one in value]
    if isinstance(value, dict):
        shown = {"value": "image"} if str(value.get("type")).lower() in ("image", "image_url") else {}
        return {name: _filled(one, shown.get(name, name), pictures, stem, named) for name, one in value.items()}
    if key not in _SHOWN or not isinstance(value, str) or (ending := _ending_of(value, stem)) not in pictures:
        return value
    named.add(ending)
    return pictures[ending]


def _ending_of(name, stem):
    """The ending by which a row's .json names a member: its whole name, or what follows the row's."""
    base = os.path.basename(name) if isinstance(name, str) else str(name)
    return base.removeprefix(f"{stem}.").lower()
