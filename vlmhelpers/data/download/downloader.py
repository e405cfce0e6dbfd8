"""Pictures from the web, into a folder where the next run finds them: in parallel, politely, each one verified."""

import queue
import random
import threading
import time

from tqdm.auto import tqdm

from vlmhelpers.common.image_errors import UnusableImage
from vlmhelpers.common.images import open_image, strict_pillow
from vlmhelpers.data.download.connections import FetchError
from vlmhelpers.data.download.image_cache import PictureCache
from vlmhelpers.data.download.rate_limits import Hosts, Stopped
from vlmhelpers.data.download.requests import Rules, Web, host_of

_SCANS = 500  # progressive JPEGs have about ten
_RANDOM = random.Random()  # its own, so that a notebook's seed gives what it gave without a download


def download_images(urls, cache_dir=None, **rules):
    """Downloads pictures into a folder, each distinct URL once, unless they are there from an earlier call.

    urls: http and https addresses. cache_dir: the folder, by default `vlmhelpers/pictures` in the user's cache.
    rules: fields of network.Rules, such as private_hosts, attempts, connections or total_timeout.

    Returns a dict from each URL to the path of its file, or to the (reason, remedy) pair why there is none.
    Kept is what `open_image` decodes to its end, whatever type the server claims. Failures that may pass are
    tried again, later each time; a failure is not remembered by the next call.

    An interruption (Ctrl-C) ends it at once, with all finished files in place; several processes may share the
    folder. Raises OSError where the folder cannot be written, TypeError for an unknown rule or a lone URL.
    """
    if isinstance(urls, str):
        raise TypeError(f"urls is a list of URLs: [{urls!r}]")
    rules = Rules(**rules)
    cache = PictureCache(cache_dir)
    with strict_pillow():
        results = {url: cache.find(url) for url in dict.fromkeys(urls)}
        missing = [url for url, path in results.items() if path is None]
        if missing:
            cache.make_folder()
            results.update(_download(missing, cache, rules))
    return results


def cached_images(urls, cache_dir=None):
    """As `download_images`, but without the network: what is not in the folder is missing."""
    cache = PictureCache(cache_dir)
    absent = ("not downloaded: it is not in the cache", "read the table again with download=True")
    with strict_pillow():
        return {url: cache.find(url) or absent for url in dict.fromkeys(urls)}


def _download(urls, cache, rules):
    """Yields a (url, result) pair for each of `urls`, in the order in which they are done."""
    crew = _Crew(urls, cache, rules)
    try:
        # Threads that the process need not wait for when it ends: an interruption is not to wait for a slow server.
        for _ in range(min(rules.connections, len(urls))):
            threading.Thread(target=crew.work, daemon=True).start()
        for _ in tqdm(urls, desc="downloading", unit=" pictures", delay=1):
            url, result = crew.done.get()
            if isinstance(result, BaseException):
                raise result
            yield url, result
    finally:
        crew.stop.set()


class _Crew:
    """What the threads of one download share."""

    def __init__(self, urls, cache, rules):
        self.cache, self.rules = cache, rules
        self.waiting, self.done = queue.SimpleQueue(), queue.SimpleQueue()
        self.stop = threading.Event()
        self.web, self.hosts = Web(rules), Hosts(rules, self.stop)
        for url in urls:
            self.waiting.put(url)

    def work(self):
        """Downloads until no URL is left; an exception that is not the picture's fault becomes its result."""
        while not self.stop.is_set():
            try:
                url = self.waiting.get_nowait()
            except queue.Empty:
                return
            try:
                self.done.put((url, self._result(url)))
            except Stopped:
                return
            except BaseException as error:  # a thread that ends silently would be waited for without end
                self.done.put((url, error))

    def _result(self, url):
        """The path of the stored picture, or the (reason, remedy) pair."""
        try:
            body = _Fetch(self, url).body()
            _check_scans(body)
            image_format = open_image(body, self.rules.max_pixels).format
        except (FetchError, UnusableImage) as error:
            return _one_line(error.reason), error.remedy
        if self.stop.is_set():  # Pillow may be lenient again
            raise Stopped
        return self.cache.store(url, body, image_format)


def _check_scans(body):
    """Raises UnusableImage for a JPEG that would be decoded for hours: each of its scans is a pass over all pixels."""
    if body.startswith(b"\xff\xd8") and body.count(b"\xff\xda") > _SCANS:
        raise UnusableImage(f"too slow to decode: a JPEG of more than {_SCANS} scans", "save it again as JPEG or PNG")


def _one_line(text):
    """`text` without what a server may have put in to confuse a terminal or a table."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


class _Fetch:
    """The requests for one picture, which share its time."""

    def __init__(self, crew, url):
        self.crew, self.rules, self.url = crew, crew.rules, url
        self.seconds = crew.rules.total_timeout

    def body(self):
        """What the server sends in the end. Raises FetchError."""
        for attempt in range(1, self.rules.attempts + 1):
            try:
                return self._follow()
            except FetchError as error:
                if attempt == self.rules.attempts or not error.again:
                    raise
            self.crew.stop.wait(self.rules.backoff * 2 ** (attempt - 1) * _RANDOM.uniform(0.5, 1.5))

    def _follow(self):
        """The body at the URL, or where it is redirected to."""
        url = self.url
        for _ in range(self.rules.max_redirects + 1):
            try:
                with self.crew.hosts.turn(host_of(url)):
                    body, target = self._timed_get(url)
            except FetchError as error:
                error.reason += ", after a redirect" if url != self.url else ""
                raise
            if target is None:
                return body
            url = target
        raise FetchError(f"redirected too often: over {self.rules.max_redirects} times", "correct the URL")

    def _timed_get(self, url):
        started = time.monotonic()
        try:
            return self.crew.web.get(url, self.seconds)
        finally:
            self.seconds -= time.monotonic() - started
