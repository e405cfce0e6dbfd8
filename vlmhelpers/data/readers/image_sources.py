"""Where a row says that its images are: paths, links, encoded bytes, data URIs, and objects that hold one of these.

A source is a path or link as a text, or an encoded image {"path", "bytes"}; None stands for one that is a problem.
"""

import base64
import binascii
import os
import re
from urllib.parse import unquote

from datasets import Image
from PIL.Image import Image as PilImage

from vlmhelpers.data.readers.source import SourceRow, from_json, is_empty
from vlmhelpers.data.readers.unread_fields import leave_unread
from vlmhelpers.data.readers.value_kinds import BASE64

Source = str | dict | None

_KEYS = (  # of an object that holds an image or says where it is, such as {"url": ...} or {"path", "bytes"}
    *("bytes", "path", "url", "image_url", "image", "base64", "data", "value", "source"),
    *("fileUri", "file_uri", "file_name", "image_path"),
)
_ABOUT = ("type", "format", "mime_type", "mimeType", "media_type", "detail")  # says how the image is encoded, or shown
_DATA_URI = re.compile(r"data:([^;,]{0,100})((?:;[^;,]{0,100})*),", re.IGNORECASE)
_LABEL_STUDIO = re.compile(r"/data/(?:(local-files/\?d=)|(?=upload/))")  # from its root of files, or of media
_BYTES = bytes | bytearray
_PATH = "write the image's path as a text"


def sources_in(row: SourceRow, name: str) -> list[Source]:
    """The sources in a field: of one image, of a list of them, or none. What is no image is a problem, and None."""
    value = from_json(row.take(name))
    values = [] if is_empty(value) else value if isinstance(value, list) else [value]
    return [source_of(row, one, name) for one in values]


def distinct(found: dict[str, list[Source]]) -> dict[str, list[Source]]:
    """The fields whose images are not those of an earlier one; names of files beside encoded images are theirs."""
    if len(found) < 2:
        return found
    kept = {}
    for name, sources in found.items():
        encoded = any(isinstance(source, dict) for some in kept.values() for source in some)
        names_alone = encoded and all(isinstance(source, str) for source in sources)
        if sources not in kept.values() and not names_alone:
            kept[name] = sources
    return kept


def source_of(row: SourceRow, value: object, where: str) -> Source:
    """The source that a value holds; anything else is a problem that names `where` it stands."""
    if isinstance(value, PilImage):
        return Image().encode_example(value)
    if isinstance(value, bytes | bytearray):
        return {"path": None, "bytes": bytes(value)}
    if isinstance(value, dict):
        return _source_in_object(row, value, where)
    if not isinstance(value, str):
        row.reject(f"no image path in {where}: {str(value)[:40]}", _PATH)
        return None
    if (header := _DATA_URI.match(value)) or BASE64.fullmatch(value):
        return _decoded(row, value, header, where)
    return _local(value)


def _source_in_object(row, value, where):
    held = {key: value[key] for key in _KEYS if not is_empty(value.get(key))}
    if len(held) != 1 and not (held.keys() == {"bytes", "path"} or isinstance(held.get("bytes"), _BYTES)):
        row.reject(f"no image path in {where}: {str(value)[:40]}", f"{_PATH}, or as one of {', '.join(_KEYS)}")
        return None
    leave_unread(row, value, {*_KEYS, *_ABOUT}, where)
    if isinstance(held.get("bytes"), _BYTES):
        path = value.get("path")
        return {"path": path if isinstance(path, str) else None, "bytes": bytes(held["bytes"])}
    key, inner = next(iter(held.items()))
    if key in ("base64", "data", "bytes") and isinstance(inner, str) and not _DATA_URI.match(inner):
        return _decoded(row, inner, None, where)
    return source_of(row, inner, where)


def _decoded(row, text, header, where):
    """The image in a text of base64, after the header of a data URI or without one."""
    media, parameters = (header[1], header[2]) if header else ("image", ";base64")
    if not media.lower().startswith("image") or not parameters.lower().endswith(";base64"):
        row.reject(f"no image in {where}: it is {header[0][:60]!r}...", "write data:image/png;base64, and the image")
        return None
    try:
        encoded = "".join(text[header.end() if header else 0 :].split())
        return {"path": None, "bytes": base64.b64decode(encoded, validate=True)}
    except (binascii.Error, ValueError) as error:
        row.reject(f"broken base64 of an image in {where}: {error}", "encode the image again")
        return None


def _local(value):
    """A path or link as it was written, a `file:` URL as its decoded path, one of Label Studio's from its root."""
    if exported := _LABEL_STUDIO.match(value):
        return unquote(value[exported.end() :]) if exported[1] else value[exported.end() :]
    local = re.match(r"file:(?://(?:localhost)?(?=/))?(?!//)", value, re.IGNORECASE)
    if not local:
        return value
    path = unquote(value[local.end() :])
    return re.sub("^/(?=[A-Za-z]:)", "", path) if os.name == "nt" else path
