"""A folder of downloaded images, each under a hash of its URL, that several processes may share."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from PIL import Image

from vlmhelpers.common.files import atomic_file, remove_abandoned
from vlmhelpers.common.images import FORMATS

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # the others are named like their format


class ImageCache:
    """The images in `folder`, by default in the user's cache, which XDG_CACHE_HOME moves. It need not exist."""

    def __init__(self, folder: str | os.PathLike | None = None):
        if folder is None:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "vlmhelpers", "pictures")
        self.folder = os.path.realpath(folder)
        remove_abandoned(self.folder, hours=1)
        entries = os.scandir(self.folder) if os.path.exists(self.folder) else ()
        files = [entry for entry in entries if entry.is_file()]  # opening a pipe would wait forever
        self._paths = {file.name.partition(".")[0]: file.path for file in files if not file.name.endswith(".part")}

    def find(self, url: object) -> str | None:
        """The path of the URL's image, or None. A file that no longer begins as an image is removed."""
        path = self._paths.get(_key(url))
        if path is None:
            return None
        with suppress(Exception), Image.open(path, formats=FORMATS):  # decoders raise OSError, SyntaxError and more
            return path
        with suppress(OSError):
            os.unlink(path)
        return None

    def store(self, url: str, data: bytes, image_format: str) -> str:
        """Writes the encoded image of a URL, atomically, and returns its path. Raises OSError."""
        path = os.path.join(self.folder, f"{_key(url)}.{_SUFFIXES.get(image_format, image_format.lower())}")
        with atomic_file(path, "wb") as file:
            file.write(data)
        return path


def _key(url):
    return hashlib.sha256(str(url).encode("utf-8", "surrogatepass")).hexdigest()[:32]
