"""One picture at a time: opened safely, verified to the last byte, and repaired into plain RGB.

`repair` is the one place where a picture's peculiarities are settled. The collator calls it for training and
for inference, the doctor calls it to verify, so all three see the same pixels.
"""

import hashlib
import io
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from vlmhelpers.common.digests import digest
from vlmhelpers.common.image_errors import (
    FORMATS,
    UnusableImage,
    check_file,
    damaged,
    forbidden,
    not_an_image,
    too_large,
)

MAX_PIXELS = 89_478_485  # from here on Pillow itself warns of a decompression bomb: a quarter of a GiB as RGB
MAX_ASPECT = 200  # Qwen's image processors raise beyond this ratio of the sides, in the middle of a run
THUMBNAIL = 8  # side of the thumbnail by which near-duplicates are found

_GREY_16_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What `inspect_image` found in a sound picture."""

    size: tuple  # width, height in pixels, after the repair
    mode: str  # Pillow's color mode in the file, e.g. "CMYK"
    format: str  # e.g. "JPEG"
    repairs: tuple  # what `repair` has to change, in words; empty for a plain picture
    pixels: bytes  # hash of the repaired pixels: equal only for the same picture
    thumbnail: bytes  # THUMBNAIL x THUMBNAIL RGB bytes: close for nearly the same picture


def repair(image):
    """The picture as a person sees it, in plain RGB; a plain RGB picture is returned as it is.

    Takes the first frame of an animation, turns it upright by its EXIF orientation, scales grey of more
    than 8 bits to 8, lays transparency on white and converts every other color mode. Raises ValueError for
    a mode that Pillow cannot convert. The argument is not changed, but for its frame.
    """
    return _repair(image)[0]


def _repair(image):
    """The repaired picture and, in words, each change that a viewer could see."""
    repairs = []
    if getattr(image, "is_animated", False):
        image.seek(0)
        if image.format != "MPO":  # a phone's photo with its preview
            repairs.append("first of several frames taken")
    orientation = image.getexif().get(Base.Orientation)
    if orientation in range(2, 9):
        repairs.append(f"turned upright (EXIF orientation {orientation})")
        image = ImageOps.exif_transpose(image)
    if image.mode in (*_GREY_16_BIT, "I", "F"):
        repairs.append(f"grey of mode {image.mode} scaled to 8 bits")
        image = _grey_to_8_bits(image)
    if image.has_transparency_data:
        image, see_through = _on_white(image)
        repairs += ["transparency laid on white"] * see_through
    if image.mode not in ("RGB", "L", "P", "1"):
        repairs.append(f"{image.mode} converted to RGB")
    return image if image.mode == "RGB" else image.convert("RGB"), tuple(repairs)


def _grey_to_8_bits(image):
    """16-bit grey by its full range; 32-bit and float grey by the smallest usual range, else by its own."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    usual = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    tops = [top for top in usual if low >= 0 and high <= top]
    low, high = (0, tops[0]) if tops else (low, max(high, low + 1))
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def _on_white(image):
    """The picture over white, and whether any of it was see-through."""
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    white.alpha_composite(layer)
    return white.convert("RGB"), layer.getextrema()[3][0] < 255


def open_image(source, max_pixels=MAX_PIXELS):
    """Opens and fully decodes `source`: a path, encoded bytes, or a dict with "path" and "bytes" as in Arrow.

    Returns the PIL image, not repaired. Raises UnusableImage with the reason and the remedy; a picture of
    more than `max_pixels` pixels is refused by its header, before anything is decoded.
    """
    path, data = _path_and_bytes(source)
    if data is None:
        check_file(path)
    try:
        image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        _check_size(image, max_pixels)
        image.load()
        return image
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise not_an_image(path, data) from None
    except PermissionError:
        raise forbidden() from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_large(error) from None
    except MemoryError:
        raise too_large("it does not fit into memory") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error and more
        raise damaged(error) from error


def _path_and_bytes(source):
    if isinstance(source, dict):
        return source.get("path"), source.get("bytes")
    return (None, bytes(source)) if isinstance(source, (bytes, bytearray)) else (os.fspath(source), None)


def _check_size(image, max_pixels):
    width, height = image.size
    if width * height > max_pixels:
        raise too_large(f"the header says {width} x {height}, the limit is {max_pixels:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        remedy = f"crop it: one side may be {MAX_ASPECT} times the other at most"
        raise UnusableImage(f"too narrow: {width} x {height} pixels", remedy)


def inspect_image(source, max_pixels=MAX_PIXELS):
    """Verifies one picture by decoding and repairing all of it: ImageFacts. Raises as `open_image` does."""
    image = open_image(source, max_pixels)
    mode, image_format = image.mode, image.format
    try:
        upright, repairs = _repair(image)
        thumbnail = upright.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
        pixels = hashlib.blake2b(upright.tobytes(), digest_size=16, key=repr(upright.size).encode()).digest()
    except MemoryError:
        raise too_large("it does not fit into memory") from None
    except Exception as error:  # whatever broken metadata makes Pillow raise
        remedy = "save it again as PNG or JPEG"
        raise UnusableImage(f"unusable colors or metadata: {error}", remedy) from error
    return ImageFacts(upright.size, mode, image_format, repairs, pixels, thumbnail)


@contextmanager
def strict_pillow():
    """While it lasts, Pillow accepts no truncated file and warns of no bomb: `open_image` refuses those.

    Both settings belong to the whole process, so this is entered once around many calls in threads.
    """
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def image_identity(image: Image.Image | dict | None) -> str | None:
    """What tells one image from others, in the whole package: 32 hex digits, None for no image.

    Of {"path", "bytes"} as in Arrow, a digest of the bytes, or else of the file's real path, size and time of change,
    so that a file that was replaced is another image. Of a PIL image, a digest of its pixels.
    """
    if image is None:
        return None
    if isinstance(image, Image.Image):
        image = repair(image)
        return digest(image.size, image.tobytes())
    if image.get("bytes") is not None:
        return digest(image["bytes"])
    if image.get("path") is None:  # cached pixels of an embedded image lie in a file that is named by its digest
        return digest(image["pixels"]) if image.get("pixels") else None
    path = os.path.realpath(image["path"])
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # open_image says what is wrong with it
        return digest(path)
    return digest(path, status.st_size, status.st_mtime_ns)
