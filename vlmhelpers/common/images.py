"""One image at a time: opened safely, verified to the last byte, and repaired into plain RGB.

Training, inference and validation call the one `repair`, so all three see the same pixels.
"""

import io
import os
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from PIL.ExifTags import Base

from vlmhelpers.common.digests import digest
from vlmhelpers.common.file_digests import file_digest

MAX_PIXELS = 89_478_485  # from here on Pillow itself warns of a decompression bomb: a quarter of a GiB as RGB
MAX_ASPECT = 200  # Qwen's image processors raise beyond this ratio of the sides, in the middle of a run
THUMBNAIL = 8  # side of the thumbnail by which near-duplicates are found
# Formats that Pillow decodes itself. EPS is left out on purpose: Pillow hands it to the program Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_SIGNATURES = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")
# (first bytes of a file that is no image, their offset, what it is, remedy)
_IMPOSTORS = [
    (b"version https://git-lfs", 0, "it is a Git LFS pointer", "run `git lfs pull` where it came from"),
    (b"<!doctype html", 0, "it is a web page", "download the image itself, not the page around it"),
    (b"<html", 0, "it is a web page", "download the image itself, not the page around it"),
    (b"<svg", 0, "it is an SVG drawing", "export it as PNG"),
    (b"%pdf", 0, "it is a PDF", "export its page as PNG"),
    (b"ftyphei", 4, "it is a HEIC photo", "convert it to JPEG"),
]
_REMEDIES = {
    "empty file": "copy or download it again",
    "not readable": "give yourself the right to read the file",
    "too many pixels": "make it smaller, or raise max_pixels if you trust it",
    "too narrow": f"crop it: one side may be {MAX_ASPECT} times the other at most",
    "truncated or damaged image": "copy or download the file again; it cannot be decoded to its end",
    "unusable colors or metadata": "save it again as PNG or JPEG",
}


class UnusableImage(ValueError):
    """`reason` says what was found ("kind: details"), `remedy` what to do; some kinds have a remedy of their own."""

    def __init__(self, reason: str, remedy: str | None = None):
        self.reason, self.remedy = reason, remedy or _REMEDIES[reason.partition(":")[0]]
        super().__init__(f"{reason}. Remedy: {self.remedy}.")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What `inspect_image` found in a sound image."""

    size: tuple[int, int]  # width, height in pixels, after the repair
    mode: str  # Pillow's color mode in the file, e.g. "CMYK"
    format: str  # e.g. "JPEG"
    repairs: tuple[str, ...]  # what `repair` has to change, in words; empty for a plain image
    pixels: str  # digest of the repaired pixels and the size: equal only for the same image
    thumbnail: bytes  # THUMBNAIL x THUMBNAIL RGB bytes: close for nearly the same image


def repair(image: Image.Image) -> Image.Image:
    """The image as a person sees it, in plain RGB; a plain RGB image is returned as it is.

    Takes an animation's first frame, obeys the EXIF orientation, scales gray to 8 bits and lays transparency on white.
    Raises ValueError for a mode that Pillow cannot convert.
    """
    return _repair(image)[0]


def _repair(image):
    """The repaired image and, in words, each change that a viewer could see."""
    repairs = []
    if getattr(image, "is_animated", False):
        image.seek(0)
        repairs += ["first of several frames taken"] * (image.format != "MPO")  # a phone's photo with its preview
    orientation = image.getexif().get(Base.Orientation)
    if orientation in range(2, 9):
        repairs.append(f"turned upright (EXIF orientation {orientation})")
        image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        repairs.append(f"gray of mode {image.mode} scaled to 8 bits")
        image = _gray_to_8_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        repairs += ["transparency laid on white"] * (layer.getextrema()[3][0] < 255)
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode not in ("RGB", "L", "P", "1"):
        repairs.append(f"{image.mode} converted to RGB")
    return image if image.mode == "RGB" else image.convert("RGB"), tuple(repairs)


def _gray_to_8_bits(image):
    """16-bit gray by its full range; 32-bit and float gray by the smallest usual range, else by its own."""
    values = np.nan_to_num(np.asarray(image).astype(np.float32), posinf=0, neginf=0)
    low, high = float(values.min()), float(values.max())
    usual = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    tops = [top for top in usual if low >= 0 and high <= top]
    low, high = (0, tops[0]) if tops else (low, max(high, low + 1))
    return Image.fromarray(np.rint((values - low) * (255 / (high - low))).astype(np.uint8))


def open_image(source: str | os.PathLike | bytes | dict, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Fully decodes `source`: a path, encoded bytes, or a dict with "path" and "bytes" as in Arrow. Does not repair.

    Raises UnusableImage, before anything is decoded where the header says more than `max_pixels` pixels.
    """
    if not isinstance(source, dict):
        source = {"bytes": bytes(source)} if isinstance(source, (bytes, bytearray)) else {"path": os.fspath(source)}
    path, data = source.get("path"), source.get("bytes")
    if data is None:
        check_file(path)
    try:
        image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > max_pixels:
            raise UnusableImage(f"too many pixels: the header says {width} x {height}, the limit is {max_pixels:,}")
        if max(width, height) > MAX_ASPECT * min(width, height):
            raise UnusableImage(f"too narrow: {width} x {height} pixels")
        image.load()
        return image
    except UnusableImage:
        raise
    except UnidentifiedImageError:
        raise _not_an_image(path, data) from None
    except PermissionError:
        raise UnusableImage("not readable: permission denied") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(f"too many pixels: {error}") from None
    except MemoryError:
        raise UnusableImage("too many pixels: it does not fit into memory") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error and more
        raise UnusableImage(f"truncated or damaged image: {error}") from error


def check_file(path: str | os.PathLike) -> None:
    """Raises UnusableImage unless `path` is a regular file that holds something."""
    try:
        status = os.stat(path)
    except PermissionError:
        raise UnusableImage("not readable: permission denied") from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise missing(path) from None
    if stat.S_ISDIR(status.st_mode):
        raise UnusableImage(f"not a file: {short_path(path)} is a folder", "name the image inside it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnusableImage(f"not a file: {short_path(path)} is a device or a pipe", "name an image file")
    if status.st_size == 0:
        raise UnusableImage("empty file: 0 bytes")


def missing(path: str | os.PathLike) -> UnusableImage:
    """The error for a path where nothing is; it names a file there that differs in case or ending only."""
    stem, ending = os.path.splitext(path)
    folder, name = os.path.split(stem)
    endings = sorted({ending, *_ENDINGS, *(e.upper() for e in _ENDINGS)})
    others = [variant + e for variant in (name, name.lower(), name.upper()) for e in endings]
    meant = [other for other in others if os.path.isfile(os.path.join(folder, other))]
    remedy = f"write {meant[0]!r}, which is there" if meant else "put the file there or correct the path"
    return UnusableImage(f"missing file: {short_path(path)}", remedy)


def _not_an_image(path, data):
    """Says what a file is that Pillow does not take for an image, judged by its first bytes."""
    if data is None:
        with open(path, "rb") as file:
            data = file.read(64)
    if not data:
        return UnusableImage("empty file: 0 bytes")
    head = data[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    for mark, offset, what, remedy in _IMPOSTORS:
        if head[offset : offset + len(mark)].lower() == mark:
            return UnusableImage(f"not an image: {what}", remedy)
    if head.startswith(_SIGNATURES):
        return UnusableImage("truncated or damaged image: its header cannot be read")
    text = " ".join(head.decode("ascii", "replace").split())
    if head.isascii() and text.isprintable():
        return UnusableImage(f"not an image: it is text, {text[:24]!r}", "replace it by the image")
    remedy = f"convert it to PNG or JPEG (readable: {', '.join(FORMATS)})"
    return UnusableImage(f"not an image: it begins with {head[:8].hex(' ')}", remedy)


def inspect_image(source: str | os.PathLike | bytes | dict, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Verifies one image by decoding and repairing all of it. Raises as `open_image` does."""
    image = open_image(source, max_pixels)
    try:
        upright, repairs = _repair(image)
        thumbnail = upright.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
        return ImageFacts(upright.size, image.mode, image.format, repairs, image_identity(upright), thumbnail)
    except MemoryError:
        raise UnusableImage("too many pixels: it does not fit into memory") from None
    except Exception as error:  # whatever broken metadata makes Pillow raise
        raise UnusableImage(f"unusable colors or metadata: {error}") from error


@contextmanager
def strict_pillow() -> Iterator[None]:
    """While it lasts, Pillow takes no truncated file and warns of no bomb, in all threads: enter it around them."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def image_identity(image: Image.Image | dict | None) -> str | None:
    """What tells one image from others, in the whole package: 32 hex digits, None for no image.

    Of {"path", "bytes"} as in Arrow, it is the digest of the encoded bytes, in the file or not; of a PIL image, that of
    its pixels; where there is no such file, that of the path.
    """
    if image is None:
        return None
    if isinstance(image, Image.Image):
        image = repair(image)
        return digest(image.size, image.tobytes())
    if image.get("pixels"):  # the file of cached pixels has the name of the image that they were made of
        return os.path.basename(image["pixels"]).partition(".")[0]
    if image.get("bytes") is not None:
        return digest(image["bytes"])
    if image.get("path") is None:
        return None
    try:
        return file_digest(image["path"])
    except (OSError, ValueError):  # open_image says what is wrong with it
        return digest(image["path"])


def short_path(path: str | os.PathLike) -> str:
    """`path`, or the way to it from the current folder where that is shorter: for messages."""
    try:
        return min(os.path.relpath(path), os.fspath(path), key=len).replace(os.sep, "/")
    except ValueError:  # another drive on Windows
        return os.fspath(path)
