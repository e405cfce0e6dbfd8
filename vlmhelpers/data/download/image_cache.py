"""A folder of downloaded pictures: each under a hash of its URL, whole or not there, also beside other processes."""

import hashlib
import os
import re
import time
import uuid
from contextlib import suppress
from pathlib import Path

from PIL import Image

from vlmhelpers.common.image_errors import FORMATS

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # the others are named like their format
_DRAFT = re.compile(r"[0-9a-f]{32}-[0-9a-f]+\.part")  # other programs end their drafts like this, too
_OLD_DRAFT = 3600  # seconds after which no process is still writing it


def default_cache():
    """The folder for downloaded pictures in the user's cache, which XDG_CACHE_HOME moves."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlmhelpers" / "pictures"


class PictureCache:
    """The pictures in `folder` (default: default_cache()), which need not exist; drafts of killed runs are removed."""

    def __init__(self, folder=None):
        self.folder = os.path.realpath(default_cache() if folder is None else folder)
        self._files = {}
        for entry in os.scandir(self.folder) if os.path.exists(self.folder) else ():
            if _DRAFT.fullmatch(entry.name):
                _remove_old(entry)
            elif entry.is_file():  # opening a pipe would wait for ever
                self._files[entry.name.partition(".")[0]] = entry.path

    def make_folder(self):
        """Makes the folder, if need be. Raises OSError."""
        os.makedirs(self.folder, exist_ok=True)

    def find(self, url):
        """The path of the URL's picture, or None. A file that no longer begins as a picture is removed."""
        path = self._files.get(_key(url))
        if path is None or _begins_as_picture(path):
            return path
        with suppress(OSError):
            os.unlink(path)
        return None

    def store(self, url, data, image_format):
        """Writes the encoded picture of a URL and returns its path. Raises OSError."""
        suffix = _SUFFIXES.get(image_format, image_format.lower())
        path = os.path.join(self.folder, f"{_key(url)}.{suffix}")
        draft = os.path.join(self.folder, f"{_key(url)}-{uuid.uuid4().hex[:8]}.part")
        try:
            with open(draft, "xb") as file:
                file.write(data)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        return path


def _remove_old(draft):
    with suppress(OSError):  # another process may have been first
        if time.time() - draft.stat().st_mtime > _OLD_DRAFT:
            os.unlink(draft.path)


def _key(url):
    return hashlib.sha256(str(url).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _begins_as_picture(path):
    """Whether the file's header is a picture's; cheap, since only whole pictures are stored."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Exception:  # decoders raise OSError, SyntaxError, struct.error and more
        return False
