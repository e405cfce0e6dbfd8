"""What one image may cost, and what its first bytes tell of that: each check takes as long as reading the file does."""

import io
import re
from contextlib import suppress
from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import PREFIXES

SECONDS = 2  # of CPU time, for one image: decoding, repairing, comparing
BYTES = 500_000_000  # beyond its decoded pixels
_AROUND = 2**26  # bytes that a file may have beside its pixels: metadata, a preview, further pages
_OF_A_PIXEL = 8  # bytes: four 16-bit numbers, uncompressed
_SCANS = 500  # of a JPEG, each a pass over all pixels; progressive ones have about ten
_SCANNED = 2_000_000_000  # pixels of all scans together: about a second
_BY_PYTHON = {"ppm_plain": "a PPM written as text", "ppm": "a PPM of unusual depth", "bmp_rle": "a BMP of runs"}
_READ_BY_PYTHON = 4_000_000  # bytes: about a second of Pillow's decoders that are written in Python
_COMMENTS = 1000  # in such a text, each of which makes Pillow copy the rest of a block
# Formats of whose headers Pillow reads each part by itself, and how they begin.
_READ_IN_PIECES = {
    "JPEG": [b"\xff\xd8"],
    "PNG": [b"\x89PNG"],
    "GIF": [b"GIF8"],
    "TIFF": PREFIXES,
    "JPEG2000": [b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "],
}
_BEGINNINGS = tuple(beginning for beginnings in _READ_IN_PIECES.values() for beginning in beginnings)
_PIECES = 500_000  # of a header: about half a second; usual ones have less than a hundred
_LONG = 128  # bytes from which on a piece is as fast to read as it is long: a GIF's pixels come 255 at a time
_LONGEST = 8 * _PIECES  # bytes that are read at once: of a JPEG 2000's header so as to take pieces out of them
_TILES = 200_000  # of an image, each decoded by itself: about a second
_HEADER = 2**16  # bytes in which a PPM has to say its size
_PPM_HEADER = rb"P\w+(?:(?:\s|#[^\r\n]*[\r\n])+[^\s#]+){%d}\s"
# Bytes of each pixel that a decoder takes beside Pillow's own.
_BESIDES = {"WEBP": 14, "AVIF": 8, "JPEG2000": 16}
_CHUNK = 2**20


def largest_file(max_pixels: int) -> int:
    """Bytes that no encoded image of `max_pixels` pixels needs more than: what is larger need not be read."""
    return _OF_A_PIXEL * max_pixels + _AROUND


def decoded_bytes(image: Image.Image) -> int:
    """The memory that Pillow keeps the pixels of an image in."""
    return image.width * image.height * {"1": 1, "L": 1, "P": 1}.get(image.mode, 2 if ";16" in image.mode else 4)


def costly_header(file: BinaryIO, max_pixels: int) -> str | None:
    """Why opening `file`, and no more, costs too much, or None.

    A PPM's header is read byte by byte, with its comments, as is what stands between the parts of a JPEG's; whether a
    GIF has a second frame is seen behind the first one, as is a PNG's further text behind its pixels; for a WebP,
    memory is taken by the size that it names.
    """
    head = file.read(_HEADER)
    file.seek(0)
    if re.match(rb"P[0-6fy]", head) and len(head) == _HEADER:
        numbers = 2 if head[1:2] in b"14" else 3
        if not re.match(_PPM_HEADER % numbers, head):
            return f"too slow to decode: a PPM with comments of more than {_HEADER // 1024} KiB before its size"
    if head.startswith(_BEGINNINGS) and _has_too_many_pieces(file):
        return f"too slow to decode: its header has more than {_PIECES:,} pieces"
    width, height = _size_of_webp(head) if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else (0, 0)
    if width * height > max_pixels:
        return f"too many pixels: the header says {width} x {height}, the limit is {max_pixels:,}"
    return _too_much(_BESIDES["WEBP"], width * height, "WEBP")


def _has_too_many_pieces(file):
    counted = _Counted(file)
    with suppress(Exception):  # whatever else is wrong with it is found when it is opened
        image = Image.open(counted, formats=list(_READ_IN_PIECES))
        if image.format == "PNG":
            _pass_chunks(counted)
        _ = image.is_animated
    file.seek(0)
    return counted.left < 0


def _pass_chunks(file):
    """Looks at all chunks of a PNG: when it has decoded the pixels, Pillow reads those behind them."""
    file.seek(8)
    while head := file.read(8):
        file.seek(int.from_bytes(head[:4], "big") + 4, io.SEEK_CUR)


class _Counted:
    """A file of which so many short pieces can be read, and none that is too long."""

    def __init__(self, file: BinaryIO):
        self.left, self.seek, self.tell, self._read = _PIECES, file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if size > _LONGEST:
            self.left = 0
        self.left -= size < _LONG or size > _LONGEST
        if self.left < 0:
            raise EOFError("too many pieces")  # an OSError is only a warning for a TIFF's tags
        return self._read(size)


def _size_of_webp(head):
    """As the format's container says: extended, lossless or lossy."""
    kind, numbers = head[12:16], int.from_bytes(head[20:30], "little")
    if kind == b"VP8X":
        return (numbers >> 32 & 0xFFFFFF) + 1, (numbers >> 56 & 0xFFFFFF) + 1
    if kind == b"VP8L":
        return (numbers >> 8 & 0x3FFF) + 1, (numbers >> 22 & 0x3FFF) + 1
    return numbers >> 48 & 0x3FFF, numbers >> 64 & 0x3FFF


def _too_much(besides, pixels, what):
    if besides * pixels <= BYTES:
        return None
    needed = besides * pixels / 1e6
    return f"too much memory: {what} of {pixels / 1e6:.0f} MP takes {needed:.0f} MB beside its pixels"


def too_costly(image: Image.Image) -> str | None:
    """Why decoding an image that was only opened takes more than SECONDS or BYTES, as far as can be told by then."""
    pixels = image.width * image.height
    besides = _coefficients(image) if image.info.get("progressive") else _BESIDES.get(image.format, 0)
    return _too_much(besides, pixels, image.format) or _too_slow(image)


def _too_slow(image):
    codec = image.tile[0].codec_name if image.tile else ""
    reason, what = None, f"{_BY_PYTHON.get(codec)}, "
    if len(image.tile) > _TILES:
        reason = f"more than {_TILES:,} tiles"
    elif image.format in ("JPEG", "MPO"):
        most = min(_SCANS, _SCANNED // (image.width * image.height))
        if _count(image.fp, b"\xff\xda") > most:
            reason = f"a JPEG of more than {most} scans"
    elif codec in _BY_PYTHON and image.fp.seek(0, io.SEEK_END) > _READ_BY_PYTHON:
        reason = f"{what}of more than {_READ_BY_PYTHON / 1e6:.0f} MB"
    elif codec == "ppm_plain" and _count(image.fp, b"#") > _COMMENTS:
        reason = f"{what}with more than {_COMMENTS} comments"
    return reason and f"too slow to decode: {reason}"


def _coefficients(image):
    """Bytes of a progressive JPEG's coefficients for each pixel: two for each color, less where it is subsampled."""
    samples = [across * down for _, across, down, _ in image.layer]
    return 2 * sum(samples) / max(samples)


def _count(file, mark):
    """How often one or two bytes are in a file, whose position stays."""
    position, found, last = file.tell(), 0, b""
    file.seek(0)
    while chunk := file.read(_CHUNK):
        found += (last + chunk).count(mark)
        last = chunk[-1:] if len(mark) > 1 else b""
    file.seek(position)
    return found
