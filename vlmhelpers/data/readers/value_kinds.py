"""What a value of a field is, whatever its name: an image, a video or a sound, boxes."""

import functools
import re

from PIL.Image import Image as PilImage

_IMAGE_FILES = frozenset("jpg jpeg jfif png webp gif bmp tif tiff avif heic heif jp2 ppm svg".split())
_MEDIA_FILES = frozenset("mp4 m4v mov avi mkv webm mpg mpeg wmv flv mp3 wav flac ogg opus m4a aac".split())
BASE64 = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk0)[A-Za-z0-9+/\s]{80,}={0,2}\s*"
)  # of JPEG, PNG, GIF, WebP, BMP
_OF_FILES = {"bytes", "path", "url", "image_url"}  # names in an object that is a file
_CORNERS = (  # names of the numbers of one box, see plain
    {"xmin", "ymin", "xmax", "ymax"},
    {"x1", "y1", "x2", "y2"},
    {"x0", "y0", "x1", "y1"},
    {"x", "y", "w", "h"},
    {"x", "y", "width", "height"},
    {"left", "top", "width", "height"},
    {"left", "top", "right", "bottom"},
    {"cx", "cy", "w", "h"},
    {"xcenter", "ycenter", "width", "height"},
)
_NUMBER, _NUMBERS = re.compile(r"\d+(?:\.\d+)?"), re.compile(r"[\s\d.,;:()<>\[\]-]*")
_LONGEST = 2000  # characters of a text that may be a path, or numbers


@functools.lru_cache(4096)
def plain(name: str) -> str:
    """A name as its letters and digits, so that `Tool Calls`, `tool_calls` and `toolCalls` are one."""
    return re.sub(r"[\s_-]", "", name.lower())


def are_corners(fields: dict) -> list[str]:
    """The names of the fields that are together the numbers of a box."""
    found = {plain(str(name)): name for name, value in fields.items() if numbers_in(value) == 1}
    corners = next((corners for corners in _CORNERS if corners <= found.keys()), ())
    return [name for short, name in found.items() if short in corners]


def numbers_in(value: object) -> int:
    """How many numbers a value is, in lists or in a text; 0 where it is something else, too."""
    if isinstance(value, list):
        found = [numbers_in(one) for one in value]
        return sum(found) if all(found) else 0
    if isinstance(value, str):
        return len(_NUMBER.findall(value)) if _NUMBERS.fullmatch(value[:_LONGEST]) else 0
    return int(isinstance(value, int | float) and not isinstance(value, bool))


def is_image_file(name: str) -> bool:
    """Whether the ending of a path or link is an image's."""
    return _ending(name) in _IMAGE_FILES


def seems_image(value: object) -> bool:
    """Whether a value of a field is an image, or names one: bytes, a data URI, a path or link of an image's ending."""
    if isinstance(value, list):
        return any(map(seems_image, value))
    if isinstance(value, dict):
        return bool(_OF_FILES & value.keys()) and any(map(seems_image, value.values())) and not seems_media(value)
    if isinstance(value, str):
        return is_image_file(value) or value.startswith("data:image/") or bool(BASE64.fullmatch(value[:5000]))
    return isinstance(value, bytes | bytearray | PilImage)


def seems_media(value: object) -> bool:
    """The same of a video or a sound: a data URI, a path or link of its ending, an object or a list of these."""
    if isinstance(value, list):
        return any(map(seems_media, value))
    if isinstance(value, dict):
        return any(seems_media(value[name]) for name in _OF_FILES & value.keys())
    if not isinstance(value, str):
        return False
    return _ending(value) in _MEDIA_FILES or value.startswith(("data:video/", "data:audio/"))


def _ending(text):
    """The ending of a path, or of a link before its query, in lower case; "" of a text that is neither."""
    if "." not in text or len(text) > _LONGEST or "\n" in text:
        return ""
    path = re.split("[?#]", text, maxsplit=1)[0] if "://" in text else text
    return path.rpartition(".")[2].lower()
