"""Downloads images into a cache, in parallel and rate limited by host; each is verified before it is stored."""

import os
import random
import threading
import time
from collections.abc import Iterable
from multiprocessing.pool import ThreadPool

from tqdm.auto import tqdm

from vlmhelpers.common.display import printable
from vlmhelpers.common.images import UnusableImage, open_image, strict_pillow
from vlmhelpers.data.download.image_cache import ImageCache
from vlmhelpers.data.download.safe_http import DownloadError, DownloadRules, ImageRequests, connection_pools, host_of

_MAX_SCANS = 500  # of a JPEG; progressive ones have about ten
_HOST_FAILURES = 20  # in a row, each with all its attempts, before the host is given up
_RANDOM = random.Random()  # its own, so that a notebook's seed gives what it gave without a download


def download_images(urls: Iterable[str], cache_dir: str | os.PathLike | None = None, **rules) -> dict[str, str | tuple]:
    """Downloads images into a folder, each distinct URL once, unless they are there from an earlier call.

    urls: http and https addresses. cache_dir: the folder, by default `vlmhelpers/pictures` in the user's cache.
    rules: fields of safe_http.DownloadRules, such as private_hosts, attempts, connections or total_timeout.

    Returns a dict from each URL to the path of its file, or to the (reason, remedy) pair why there is none. Kept is
    what `open_image` decodes to its end, whatever type the server claims. The next call tries all failures again.

    An interruption (Ctrl-C) ends it at once, with all finished files in place; several processes may share the
    folder. Raises OSError where the folder cannot be written, TypeError for an unknown rule or a lone URL.
    """
    if isinstance(urls, str):
        raise TypeError(f"urls is a list of URLs: [{urls!r}]")
    rules, cache = DownloadRules(**rules), ImageCache(cache_dir)
    with strict_pillow():
        results = {url: cache.find(url) for url in dict.fromkeys(urls)}
        missing = [url for url, path in results.items() if path is None]
        if missing:
            os.makedirs(cache.folder, exist_ok=True)
            results.update(_Download(cache, rules).run(missing))
    return results


def cached_images(urls: Iterable[str], cache_dir: str | os.PathLike | None = None) -> dict[str, str | tuple]:
    """As `download_images`, but without the network: what is not in the folder is missing."""
    cache = ImageCache(cache_dir)
    absent = ("not downloaded: it is not in the cache", "read the table again with download=True")
    with strict_pillow():
        return {url: cache.find(url) or absent for url in dict.fromkeys(urls)}


class _Download:
    """What the threads of one download share."""

    def __init__(self, cache, rules):
        self.cache, self.rules, self.pools = cache, rules, connection_pools(rules)
        self.hosts, self.stop = {}, threading.Event()

    def run(self, urls):
        """Downloads in parallel: a dict from each URL to its result."""
        try:
            # Its threads are daemons, unlike those of concurrent.futures: Ctrl-C does not wait for a slow server.
            with ThreadPool(min(self.rules.connections, len(urls))) as pool:
                results = pool.imap_unordered(self.download, urls)
                return dict(tqdm(results, "downloading", len(urls), unit=" images", delay=1))
        finally:
            self.stop.set()

    def download(self, url):
        """The pair of the URL and its result; of no interest after an interruption."""
        try:
            body = self._fetch(url)
            if body.startswith(b"\xff\xd8") and body.count(b"\xff\xda") > _MAX_SCANS:  # each a pass over all pixels
                reason = f"too slow to decode: a JPEG of more than {_MAX_SCANS} scans"
                raise UnusableImage(reason, "save it again as JPEG or PNG")
            image_format = open_image(body, self.rules.max_pixels).format
        except UnusableImage as error:
            return url, (" ".join(printable(error.reason).split()), error.remedy)
        if self.stop.is_set():  # Pillow may accept truncated files again
            return url, None
        return url, self.cache.store(url, body, image_format)

    def _fetch(self, url):
        """The body that a URL leads to; failures that may pass are tried again, later each time."""
        requests, redirects, failures = ImageRequests(self.pools, self.rules), 0, 0
        while redirects <= self.rules.max_redirects:
            try:
                host = self.hosts.setdefault(host_of(url), _Host(self.rules, self.stop))
                body, location = host.get(url, requests)
            except DownloadError as error:
                failures += 1
                if not error.again or failures == self.rules.attempts or requests.seconds_left <= 0:
                    error.reason += ", after a redirect" if redirects else ""
                    raise
                self.stop.wait(self.rules.backoff * 2 ** (failures - 1) * _RANDOM.uniform(0.5, 1.5))
            else:
                if location is None:
                    return body
                url, redirects = location, redirects + 1
        raise DownloadError(f"redirected too often: over {self.rules.max_redirects} times", "correct the URL")


class _Host:
    """Limits the requests to one host: how many at once, when the next one may start, and when it is given up."""

    def __init__(self, rules, stop):
        self._pause, self._max_failures, self._stop = rules.pause, _HOST_FAILURES * rules.attempts, stop
        self._slots, self._lock = threading.BoundedSemaphore(rules.per_host), threading.Lock()
        self._next_start, self._failures = 0, 0  # when the next request may start; how many failed in a row

    def get(self, url, requests):
        """requests.get(url) as soon as it may start. Raises DownloadError."""
        with self._slots:
            self._wait()
            try:
                answer = requests.get(url)
            except DownloadError as error:
                with self._lock:
                    self._failures = self._failures + 1 if error.host_fault else 0
                    self._next_start = max(self._next_start, time.monotonic() + error.wait)
                raise
            self._failures = 0
            return answer

    def _wait(self):
        while self._failures < self._max_failures and not self._stop.is_set():
            with self._lock:
                delay = self._next_start - time.monotonic()
                if delay <= 0:
                    self._next_start = time.monotonic() + self._pause
                    return
            self._stop.wait(delay)
        reason = f"host given up: {self._max_failures} requests to it failed in a row"
        raise DownloadError(reason, "run it again when the host works; what is downloaded is kept")
