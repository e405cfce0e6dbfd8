"""What a file is that Pillow does not open: by its first bytes, and by what Pillow's decoder says of it."""

import io
import os
import re

from PIL import Image

# Formats that Pillow decodes itself. EPS is left out on purpose: Pillow hands it to the program Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")

Image.init()  # all plugins now: one that cannot be loaded later, for want of descriptors, would be left out silently

HEAD = 4096  # bytes that say what a file is
_BLANK = b"\xef\xbb\xbf \r\n\t"
_PROLOG = rb"(?>(?:<\?.*?\?>|<!--.*?-->|<!doctype(?! html)[^>[]*(?:\[.*?\]\s*)?>)\s*)*+"  # of XML
_IMPOSTORS = {  # how a file that is no image begins, in small letters -> what it is, remedy
    rb"version https://git-lfs": ("it is a Git LFS pointer", "run `git lfs pull` where it came from"),
    _PROLOG + rb"<(?:!doctype )?html": ("it is a web page", "download the image itself, not the page around it"),
    _PROLOG + rb"<svg": ("it is an SVG drawing", "export it as PNG"),
    rb"%pdf": ("it is a PDF", "export its page as PNG"),
    rb".{4}ftyp(?:hei|hev|(?:mif1|msf1)(?!(?:.{4}){1,16}avi))": ("it is a HEIC photo", "convert it to JPEG"),
    rb".{4}ftyp(?!avi|mif1|msf1|crx)|riff.{4}avi |\x1a\x45\xdf\xa3": ("it is a video", "save a frame of it as PNG"),
    rb"riff.{4}wave": ("it is a sound", "name an image instead"),
}
_IMPOSTORS = {re.compile(impostor, re.DOTALL): kind for impostor, kind in _IMPOSTORS.items()}
_UNSUPPORTED = re.compile(
    r"(?i)cannot handle|unsupported|unknown (?:pixel|data|compression)|samples per pixel|not identified"
)


def unidentified(source: str | os.PathLike | bytes, head: bytes) -> tuple[str, str | None]:
    """Reason, and remedy where it has its own, for a path or bytes, HEAD of them in `head`, that Pillow cannot open."""
    if not head:
        return "empty file: 0 bytes", None
    beginning = head.lstrip(_BLANK).lower()
    for impostor, (what, remedy) in _IMPOSTORS.items():
        if impostor.match(beginning):
            return f"not an image: {what}", remedy
    text = " ".join(head[:64].lstrip(_BLANK).decode("ascii", "replace").split())
    if text.isascii() and text.isprintable() and not text.startswith("GIF8"):
        return f"not an image: it is text, {text[:24]!r}", "replace it by the image"
    said = _decoder_says(source, head)
    if said is not None:
        return undecodable(said if _UNSUPPORTED.search(said) else "its header cannot be read"), None
    remedy = f"convert it to PNG or JPEG (readable: {', '.join(FORMATS)})"
    return f"not an image: it begins with {head[:8].hex(' ')}", remedy


def _decoder_says(source, head):
    """Why the decoder that takes a file by its first bytes does not read it, which Pillow keeps for itself."""
    for decoder, accepts in map(Image.OPEN.__getitem__, FORMATS):
        if accepts(head[:16]) is True:
            try:
                decoder(io.BytesIO(source) if isinstance(source, bytes) else source).close()
            except Exception as error:
                return f"unknown compression {error}" if str(error).isdecimal() else str(error)  # a TIFF's
    return None


def undecodable(said: str) -> str:
    """The reason for what a decoder says of an image that it does not read."""
    return f"{'not supported' if _UNSUPPORTED.search(said) else 'truncated or damaged image'}: {said}"
