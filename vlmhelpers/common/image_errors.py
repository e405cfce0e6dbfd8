"""Why a file is no picture to train on, and what helps: every reason and remedy in one place."""

import os
import stat

# Formats that Pillow decodes itself. EPS is left out on purpose: Pillow hands it to the program Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif")
_BEGINNINGS = (b"\xff\xd8", b"\x89PNG", b"GIF8", b"RIFF")
# What the first bytes of a file that is no picture give away: (bytes, at offset, what it is, remedy).
_IMPOSTORS = [
    (b"version https://git-lfs", 0, "it is a Git LFS pointer", "run `git lfs pull` where it came from"),
    (b"<!doctype html", 0, "it is a web page", "download the picture itself, not the page around it"),
    (b"<html", 0, "it is a web page", "download the picture itself, not the page around it"),
    (b"<svg", 0, "it is an SVG drawing", "export it as PNG"),
    (b"%pdf", 0, "it is a PDF", "export its page as PNG"),
    (b"ftyphei", 4, "it is a HEIC photo", "convert it to JPEG"),
]


class UnusableImage(ValueError):
    """A picture that cannot be used: `reason` says what was found ("kind: details"), `remedy` what to do."""

    def __init__(self, reason, remedy):
        super().__init__(f"{reason}. Remedy: {remedy}.")
        self.reason, self.remedy = reason, remedy


def check_file(path):
    """Raises UnusableImage unless `path` is a regular file that holds something."""
    try:
        status = os.stat(path)
    except PermissionError:
        raise forbidden() from None
    except (OSError, ValueError):  # ValueError: a NUL in the name
        raise missing(path) from None
    if stat.S_ISDIR(status.st_mode):
        raise UnusableImage(f"not a file: {short_path(path)} is a folder", "name the picture inside it")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
        raise UnusableImage(f"not a file: {short_path(path)} is a device or a pipe", "name a picture file")
    if status.st_size == 0:
        raise empty()


def empty():
    return UnusableImage("empty file: 0 bytes", "copy or download it again")


def forbidden():
    return UnusableImage("not readable: permission denied", "give yourself the right to read the file")


def missing(path):
    """The error for a path where nothing is; it names a file there that differs in case or ending only."""
    stem, ending = os.path.splitext(path)
    folder, name = os.path.split(stem)
    endings = sorted({ending, *_ENDINGS, *(e.upper() for e in _ENDINGS)})
    others = [variant + e for variant in (name, name.lower(), name.upper()) for e in endings]
    meant = [other for other in others if os.path.isfile(os.path.join(folder, other))]
    remedy = f"write {meant[0]!r}, which is there" if meant else "put the file there or correct the path"
    return UnusableImage(f"missing file: {short_path(path)}", remedy)


def too_large(details):
    remedy = "make it smaller, or raise max_pixels if you trust it"
    return UnusableImage(f"too many pixels: {details}", remedy)


def damaged(details):
    remedy = "copy or download the file again; it cannot be decoded to its end"
    return UnusableImage(f"truncated or damaged image: {details}", remedy)


def not_an_image(path, data):
    """Says what a file is that Pillow does not take for a picture, judged by its first bytes."""
    if data is None:
        with open(path, "rb") as file:
            data = file.read(64)
    if not data:
        return empty()
    head = data[:64].lstrip(b"\xef\xbb\xbf \r\n\t")
    for mark, offset, what, remedy in _IMPOSTORS:
        if head[offset : offset + len(mark)].lower() == mark:
            return UnusableImage(f"not an image: {what}", remedy)
    if head.startswith(_BEGINNINGS):
        return damaged("its header cannot be read")
    text = " ".join(head.decode("ascii", "replace").split())
    if head.isascii() and text.isprintable():
        return UnusableImage(f"not an image: it is text, {text[:24]!r}", "replace it by the picture")
    remedy = f"convert it to PNG or JPEG (readable: {', '.join(FORMATS)})"
    return UnusableImage(f"not an image: it begins with {head[:8].hex(' ')}", remedy)


def short_path(path):
    """`path` as seen from the current folder where that is shorter: for messages."""
    try:
        return min(os.path.relpath(path), os.fspath(path), key=len).replace(os.sep, "/")
    except ValueError:  # another drive on Windows
        return os.fspath(path)
