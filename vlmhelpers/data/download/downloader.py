"""Downloads images in parallel into a cache; each is decoded to its end before it is stored.

The name of a file in the cache holds the digest of its bytes: one that was cut or changed is downloaded again.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from multiprocessing.pool import ThreadPool

from tqdm.auto import tqdm

from vlmhelpers.common.digests import digest
from vlmhelpers.common.file_digests import file_digest
from vlmhelpers.common.files import atomic_file, remove_abandoned, user_cache
from vlmhelpers.common.image_workers import inspect_apart
from vlmhelpers.common.images import UnusableImage, unusable_path
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.download.safe_http import DownloadRules, ImageClient

_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # the others are named like their format


def download_images(
    urls: Iterable[str], cache_dir: str | os.PathLike | None = None, **rules: object
) -> dict[str, str | tuple]:
    """Downloads images into a folder, each distinct URL once, unless they are there from an earlier call.

    cache_dir: the folder, by default `vlmhelpers/pictures` in the user's cache; several processes may share it.
    rules: fields of safe_http.DownloadRules, such as private_hosts, attempts, connections or total_timeout.

    Returns a dict from each URL to the path of its file, or to the (reason, remedy) pair why there is none; the next
    call tries these again. Ctrl-C ends it at once, with all finished files in place. Raises OSError for a folder that
    cannot be written and where file descriptors or memory run out, TypeError for an unknown rule or a lone URL.
    """
    if isinstance(urls, str):
        raise TypeError(f"urls is a list of URLs: [{urls!r}]")
    rules, cache = DownloadRules(**rules), _Cache(cache_dir)
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
            image_format = inspect_apart(body, rules.max_pixels).format
        except UnusableImage as error:
            return url, (one_line(error.reason), error.remedy)
        return url, None if stopped.is_set() else cache.store(url, body, image_format)

    try:
        # Its threads are daemons, unlike those of concurrent.futures: Ctrl-C does not wait for a slow server.
        with _pool(min(rules.connections, len(urls))) as pool:
            results = pool.imap_unordered(download, urls)
            return dict(tqdm(results, "downloading", len(urls), unit=" images", delay=1))
    finally:
        stopped.set()


def _pool(threads):
    try:
        return ThreadPool(threads)
    except (RuntimeError, AttributeError) as error:  # Python ends threads that it could not start by a missing method
        remedy = "end other programs, or pass fewer connections"
        raise OSError(errno.ENOMEM, f"{threads} threads cannot be started ({remedy})") from error


class _Cache:
    """A folder of images, each under a hash of its URL and the digest of its bytes. It need not exist."""

    def __init__(self, folder):
        self.folder, self.names = os.path.realpath(folder or user_cache() / "pictures"), {}
        remove_abandoned(self.folder)
        for entry in os.scandir(self.folder) if os.path.exists(self.folder) else ():
            if entry.is_file() and not entry.name.endswith(".part"):  # opening a pipe would wait forever
                self.names.setdefault(entry.name.partition(".")[0], []).append(entry.name)

    def find(self, url):
        """The path of the URL's image, or None. Files that are no longer whole are removed."""
        names = self.names.get(_key(url), [])
        for name in sorted(names, key=lambda name: -name.count(".")):  # those with a digest first
            path = os.path.join(self.folder, name)
            if name.count(".") > 1:
                found = path if self._digest(path) == name.split(".")[1] else None
            else:
                found = None if any(other.count(".") > 1 for other in names) else self._adopt(path)
            if found:
                return found
            with suppress(OSError):
                os.unlink(path)
        return None

    def _digest(self, path):
        try:
            return file_digest(path)
        except OSError as error:
            unusable_path(error, path)

    def _adopt(self, path):
        """A whole file of an earlier version gets a name with its digest as well: datasets may hold the other one."""
        try:
            found = self._path(path, self._digest(path), os.path.splitext(path)[1])
            inspect_apart(path)
        except UnusableImage:
            return None
        try:
            os.link(path, found)
        except OSError:  # a disk without links; another process was first
            return found if os.path.exists(found) else path
        return found

    def store(self, url, data, image_format):
        path = self._path(_key(url), digest(data), f".{_SUFFIXES.get(image_format, image_format.lower())}")
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            os.unlink(path)  # a pipe, which nothing here has made
        with atomic_file(path, "wb", durable=False) as file:
            file.write(data)
        return path

    def _path(self, name, its_digest, suffix):
        return os.path.join(self.folder, f"{os.path.basename(name).partition('.')[0]}.{its_digest}{suffix}")


def _key(url):
    return hashlib.sha256(str(url).encode("utf-8", "surrogatepass")).hexdigest()[:32]
