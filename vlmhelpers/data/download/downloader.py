"""Downloads images in parallel into a cache; each is decoded to its end before it is stored."""

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from vlmhelpers.common.display import printable
from vlmhelpers.common.files import atomic_file, remove_abandoned
from vlmhelpers.common.images import FORMATS, UnusableImage, open_image, strict_pillow
from vlmhelpers.data.download.safe_http import DownloadRules, ImageClient

_MAX_SCANS = 500  # of a JPEG; progressive ones have about ten
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # the others are named like their format


def download_images(
    urls: Iterable[str], cache_dir: str | os.PathLike | None = None, **rules: object
) -> dict[str, str | tuple]:
    """Downloads images into a folder, each distinct URL once, unless they are there from an earlier call.

    cache_dir: the folder, by default `vlmhelpers/pictures` in the user's cache; several processes may share it.
    rules: fields of safe_http.DownloadRules, such as private_hosts, attempts, connections or total_timeout.

    Returns a dict from each URL to the path of its file, or to the (reason, remedy) pair why there is none; the next
    call tries these again. Ctrl-C ends it at once, with all finished files in place. Raises OSError where the folder
    cannot be written, TypeError for an unknown rule or a lone URL.
    """
    if isinstance(urls, str):
        raise TypeError(f"urls is a list of URLs: [{urls!r}]")
    rules, cache = DownloadRules(**rules), _Cache(cache_dir)
    with strict_pillow():
        results = {url: cache.find(url) for url in dict.fromkeys(urls)}
        missing = [url for url, path in results.items() if path is None]
        if missing:
            os.makedirs(cache.folder, exist_ok=True)
            results.update(_download(missing, cache, rules))
    return results


def cached_images(urls: Iterable[str], cache_dir: str | os.PathLike | None = None) -> dict[str, str | tuple]:
    """As `download_images`, but without the network: what is not in the folder is missing."""
    cache = _Cache(cache_dir)
    absent = ("not downloaded: it is not in the cache", "read the table again with download=True")
    with strict_pillow():
        return {url: cache.find(url) or absent for url in dict.fromkeys(urls)}


def is_link(written: str) -> bool:
    """Whether an image is named by an http or https URL, well formed or not; all others are paths."""
    return re.match("https?:", written, re.IGNORECASE) is not None


def _download(urls, cache, rules):
    client, pausing, stopped = ImageClient(rules), threading.Lock(), threading.Event()

    def download(url):
        with pausing:
            time.sleep(rules.pause)
        try:
            body = client.fetch(url)
            if body.startswith(b"\xff\xd8") and body.count(b"\xff\xda") > _MAX_SCANS:  # each a pass over all pixels
                reason = f"too slow to decode: a JPEG of more than {_MAX_SCANS} scans"
                raise UnusableImage(reason, "save it again as JPEG or PNG")
            image_format = open_image(body, rules.max_pixels).format
        except UnusableImage as error:
            return url, (" ".join(printable(error.reason).split()), error.remedy)
        # After an interruption Pillow may accept truncated files again.
        return url, None if stopped.is_set() else cache.store(url, body, image_format)

    try:
        # Its threads are daemons, unlike those of concurrent.futures: Ctrl-C does not wait for a slow server.
        with ThreadPool(min(rules.connections, len(urls))) as pool:
            results = pool.imap_unordered(download, urls)
            return dict(tqdm(results, "downloading", len(urls), unit=" images", delay=1))
    finally:
        stopped.set()


class _Cache:
    """A folder of images, each under a hash of its URL. It need not exist."""

    def __init__(self, folder):
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self.folder = os.path.realpath(folder or root / "vlmhelpers" / "pictures")
        remove_abandoned(self.folder, hours=1)
        entries = os.scandir(self.folder) if os.path.exists(self.folder) else ()
        files = [entry for entry in entries if entry.is_file()]  # opening a pipe would wait forever
        self.paths = {file.name.partition(".")[0]: file.path for file in files if not file.name.endswith(".part")}

    def find(self, url):
        """The path of the URL's image, or None. A file that no longer begins as an image is removed."""
        if path := self.paths.get(_key(url)):
            with suppress(Exception), Image.open(path, formats=FORMATS):  # decoders raise OSError, SyntaxError and more
                return path
            with suppress(OSError):
                os.unlink(path)
        return None

    def store(self, url, data, image_format):
        path = os.path.join(self.folder, f"{_key(url)}.{_SUFFIXES.get(image_format, image_format.lower())}")
        with atomic_file(path, "wb") as file:
            file.write(data)
        return path


def _key(url):
    return hashlib.sha256(str(url).encode("utf-8", "surrogatepass")).hexdigest()[:32]
