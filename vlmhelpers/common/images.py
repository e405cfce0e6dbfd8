"""One image at a time: opened safely, verified to the last byte, and repaired into plain RGB.

Training, inference and validation call the one `repair`, so all three see the same pixels. An UnusableImage speaks of
the image alone: where the machine, its disk or its network refuses to read one, that is an OSError.
"""

import errno
import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from vlmhelpers.common.digests import digest, digest_of_pieces
from vlmhelpers.common.file_digests import file_digest
from vlmhelpers.common.image_colors import (
    depth_of_colors,
    lost_contrast,
    repair,
    repair_and_tell,
    scale_transparency,
    strips,
)
from vlmhelpers.common.image_costs import costly_header, largest_file, too_costly
from vlmhelpers.common.image_kinds import FORMATS, HEAD, undecodable, unidentified

MAX_PIXELS = 89_478_485  # from here on Pillow itself warns of a decompression bomb: a quarter of a GiB as RGB
MAX_ASPECT = 200  # Qwen's image processors raise beyond this ratio of the sides, in the middle of a run
THUMBNAIL = 8  # side of the thumbnail by which near-duplicates are found

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_REMEDIES = {
    "empty file": "copy or download it again",
    "not readable": "give yourself the right to read the file",
    "too many pixels": "make it smaller",
    "too narrow": f"crop it: one side may be {MAX_ASPECT} times the other at most",
    "too large a file": "save the image alone, as PNG or JPEG",
    "too slow to decode": "make it smaller, or save it again as PNG or baseline JPEG, without its metadata",
    "too much memory": "make it smaller, or save it again as PNG or JPEG",
    "too much metadata": "save it again without its metadata, such as texts that a program keeps in it",
    "too dark to keep": "save it with 8 bits per color, scaled to the range that it uses",
    "not supported": "save it again with 8 bits per color, as PNG or JPEG",
    "truncated or damaged image": "copy or download the file again; it cannot be decoded to its end",
    "unusable colors or metadata": "save it again as PNG or JPEG",
}
# What the system says of a path where no image can be. All its other errors are the machine's.
_NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)
_LIMITS_OF_TEXTS = ("MAX_TEXT_CHUNK", "MAX_TEXT_MEMORY")  # what Pillow names where a PNG's texts are too long
_OF_DECODERS = (None, errno.EINVAL, errno.EOVERFLOW)  # the latter for a place before or far beyond the file
_MACHINE_REMEDIES = {
    errno.EMFILE: "raise the limit of open files (ulimit -n 4096), or use fewer workers",
    errno.ENFILE: "end other programs, or raise the system's limit of open files",
    errno.ENOMEM: "end other programs, use fewer workers or a smaller max_pixels, or leave the image out",
    errno.EAGAIN: "end other programs, or raise the limit of processes (ulimit -u)",
    errno.EACCES: "its mode lets you read it: renew your login to this disk, or ask for the right to read there",
}


class UnusableImage(ValueError):
    """`reason` says what was found ("kind: details"), `remedy` what to do; some kinds have a remedy of their own."""

    def __init__(self, reason: str, remedy: str | None = None):
        self.reason, self.remedy = reason, remedy or _REMEDIES[reason.partition(":")[0]]
        super().__init__(f"{reason}. Remedy: {self.remedy}.")

    def __reduce__(self):
        return UnusableImage, (self.reason, self.remedy)


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What `inspect_image` found in a sound image."""

    size: tuple[int, int]  # width, height in pixels, after the repair
    mode: str  # Pillow's color mode in the file, e.g. "CMYK"
    format: str  # e.g. "JPEG"
    repairs: tuple[str, ...]  # what `repair` has to change, in words; empty for a plain image
    pixels: str  # digest of the repaired pixels and the size: equal only for the same image
    thumbnail: bytes  # THUMBNAIL x THUMBNAIL RGB bytes: close for nearly the same image


def open_image(
    source: str | os.PathLike | bytes | dict,
    max_pixels: int = MAX_PIXELS,
    before_decoding: Callable[[Image.Image], None] = lambda image: None,
) -> Image.Image:
    """Fully decodes `source`: a path, encoded bytes, or a dict with "path" and "bytes" as in Arrow. Does not repair.

    before_decoding: called with the image when its header is read. Raises UnusableImage, before anything is decoded
    where the header says more than `max_pixels` pixels or where image_costs finds it too costly, and OSError where the
    machine fails: out of file descriptors or memory, a disk or network that does not answer.
    """
    path, data = _path_and_bytes(source, max_pixels)
    pixels = 0  # that the header says
    try:
        image = _opened(path, data, max_pixels)
        pixels = image.width * image.height
        _refuse(too_costly(image))
        scale_transparency(image)
        depth = depth_of_colors(image)
        before_decoding(image)
        image.load()
        _refuse(lost_contrast(image, depth))
        return image
    except UnusableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnusableImage(f"too many pixels: {error}") from None
    except Exception as error:  # decoders raise OSError, SyntaxError, EOFError, struct.error and more
        raise _unusable(error, path, data, pixels) from error


def image_header(source: str | os.PathLike | bytes | dict) -> tuple[str, int] | None:
    """Format and pixels of what `open_image` takes, by the header alone; None where it would refuse to open that."""
    try:
        with _opened(*_path_and_bytes(source, MAX_PIXELS), MAX_PIXELS) as image:
            return image.format, image.width * image.height
    except Exception:  # whatever Pillow or the machine raises
        return None


def _path_and_bytes(source, max_pixels):
    """Where an image lies and its bytes, one of them None. Raises UnusableImage for more than pixels can need."""
    if not isinstance(source, dict):
        source = {"bytes": bytes(source)} if isinstance(source, (bytes, bytearray)) else {"path": os.fspath(source)}
    path, data = source.get("path"), source.get("bytes")
    size = check_file(path) if data is None else len(data)
    if size > largest_file(max_pixels):
        raise UnusableImage(f"too large a file: {size / 1e6:,.0f} MB, more than {max_pixels:,} pixels can need")
    return path, data


def _opened(path, data, max_pixels):
    """The image with its header read. Raises UnusableImage where that, or its size, is too much."""
    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        _refuse(costly_header(file, max_pixels))
    image = Image.open(path if data is None else io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    if width * height > max_pixels:
        raise UnusableImage(f"too many pixels: the header says {width} x {height}, the limit is {max_pixels:,}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise UnusableImage(f"too narrow: {width} x {height} pixels")
    return image


def _refuse(reason):
    if reason:
        raise UnusableImage(reason)


def _unusable(error, path, data, pixels):
    """The UnusableImage for what a decoder raised. Raises OSError where the machine is at fault."""
    if getattr(error, "errno", None) not in _OF_DECODERS:
        return unusable_path(error, path)
    if isinstance(error, UnidentifiedImageError):
        head = _read(path, HEAD) if data is None else data[:HEAD]
        return UnusableImage(*unidentified(path if data is None else data, head))
    if (isinstance(error, MemoryError) or "out of memory" in str(error)) and not has_free(32 * pixels + 2**26):
        raise machine_error(errno.ENOMEM, path) from error
    read_through(path if data is None else None)
    if any(limit in str(error) for limit in _LIMITS_OF_TEXTS):
        return UnusableImage("too much metadata: its texts take more than Pillow reads")
    return UnusableImage(undecodable(str(error) or type(error).__name__))


def has_free(size: int) -> bool:
    """Whether so many bytes can be had: more than decoding and repairing take, unless a damaged file asks for more."""
    try:
        return np.empty(size, np.uint8).size == size
    except MemoryError:
        return False


def read_through(path: str | os.PathLike | None) -> None:
    """Raises OSError where the file cannot be read to its end: decoders in C do not say that the disk failed."""
    if path is not None:
        _read(path)


def _read(path, most=None):
    """The first bytes of a file of which `most`, or all, can be read. Raises OSError as `unusable_path` does."""
    try:
        with open(path, "rb") as file:
            first = file.read(2**20 if most is None else most)
            while most is None and file.read(2**20):
                pass
        return first
    except OSError as error:
        raise unusable_path(error, path) from error


def unusable_path(error: OSError, path: str | os.PathLike) -> UnusableImage:
    """The UnusableImage for an error of a path. Raises OSError, with a remedy, for one that speaks of the machine."""
    if error.errno in _NO_FILE:
        return missing(path)
    if error.errno in (errno.EACCES, errno.EPERM) and _is_forbidden(path):
        return UnusableImage("not readable: permission denied")
    raise machine_error(error.errno, path) from error


def machine_error(number: int, path: str | os.PathLike | None) -> OSError:
    """The error of the machine with this errno, with a remedy."""
    number = errno.EACCES if number == errno.EPERM else number
    remedy = _MACHINE_REMEDIES.get(number, "look after the disk or the network that it lies on, and run this again")
    text = f"{os.strerror(number)}. The image is not at fault; {remedy}"
    return OSError(number, text, *([os.fspath(path)] if path else []))


def _is_forbidden(path):
    """Whether a file's mode, or that of a folder on the way, forbids this user to read it. Windows has no modes."""
    if not hasattr(os, "geteuid"):
        return True
    path = Path(os.path.realpath(path))
    return any(_lacks(part, 4 if part == path else 1) for part in [path, *path.parents])


def _lacks(path, right):
    try:
        status = os.stat(path)
    except OSError:  # a folder above it says why
        return False
    if status.st_uid == os.geteuid():
        right <<= 6
    elif status.st_gid in {os.getegid(), *os.getgroups()}:
        right <<= 3
    return not status.st_mode & right


def check_file(path: str | os.PathLike) -> int:
    """The bytes of a regular file. Raises UnusableImage for anything else and 0 bytes, OSError as `unusable_path`."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unusable_path(error, path) from None
    except ValueError:  # a NUL in the name
        raise missing(path) from None
    if stat.S_ISDIR(status.st_mode):
        raise UnusableImage(f"not a file: {short_path(path)} is a folder", "name the image inside it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnusableImage(f"not a file: {short_path(path)} is a device or a pipe", "name an image file")
    if status.st_size == 0:
        raise UnusableImage("empty file: 0 bytes")
    return status.st_size


def missing(path: str | os.PathLike) -> UnusableImage:
    """The error for a path where nothing is; it names a file there that differs in case or ending only."""
    stem, ending = os.path.splitext(path)
    folder, name = os.path.split(stem)
    endings = sorted({ending, *_ENDINGS, *(e.upper() for e in _ENDINGS)})
    others = [variant + e for variant in (name, name.lower(), name.upper()) for e in endings]
    meant = [other for other in others if os.path.isfile(os.path.join(folder, other))]
    remedy = f"write {meant[0]!r}, which is there" if meant else "put the file there or correct the path"
    return UnusableImage(f"missing file: {short_path(path)}", remedy)


def inspect_image(
    source: str | os.PathLike | bytes | dict,
    max_pixels: int = MAX_PIXELS,
    before_decoding: Callable[[Image.Image], None] = lambda image: None,
) -> ImageFacts:
    """Verifies one image by decoding and repairing all of it. Takes and raises what `open_image` does."""
    image = open_image(source, max_pixels, before_decoding)
    mode, image_format, path = image.mode, image.format, image.filename
    try:
        image, repairs = repair_and_tell(image)  # no longer held as it was
        thumbnail = image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
        return ImageFacts(image.size, mode, image_format, repairs, _pixels_digest(image), thumbnail)
    except MemoryError as error:
        raise machine_error(errno.ENOMEM, path) from error
    except Exception as error:  # whatever broken metadata makes Pillow raise
        if getattr(error, "errno", None) not in _OF_DECODERS:
            raise unusable_path(error, path) from error
        raise UnusableImage(f"unusable colors or metadata: {error}") from error


def _pixels_digest(image):
    length = image.width * image.height * 3
    return digest_of_pieces(image.size, length, (strip.tobytes() for _, strip in strips(image)))


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
    its pixels; where there is no such file, or one too large to be an image of MAX_PIXELS, that of the path. Raises
    OSError as `open_image` does.
    """
    if image is None:
        return None
    if isinstance(image, Image.Image):
        return _pixels_digest(repair(image))
    if image.get("pixels"):  # the file of cached pixels has the name of the image that they were made of
        return os.path.basename(image["pixels"]).partition(".")[0]
    if image.get("bytes") is not None:
        return digest(image["bytes"])
    if image.get("path") is None:
        return None
    try:
        if os.stat(image["path"]).st_size <= largest_file(MAX_PIXELS):
            return file_digest(image["path"])
    except OSError as error:
        unusable_path(error, image["path"])
    except ValueError:  # a NUL in the name
        pass
    return digest(image["path"])  # open_image says what is wrong with it


def short_path(path: str | os.PathLike) -> str:
    """`path`, or the way to it from the current folder where that is shorter: for messages."""
    try:
        return min(os.path.relpath(path), os.fspath(path), key=len).replace(os.sep, "/")
    except (ValueError, OSError):  # another drive on Windows; a current folder that was removed
        return os.fspath(path)
