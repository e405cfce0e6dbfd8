"""One request for a picture: what it may do, and what each way of failing means."""

import http.client
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urljoin

import certifi
import urllib3

from vlmhelpers.common.images import MAX_PIXELS
from vlmhelpers.common.version import VERSION
from vlmhelpers.data.download.connections import LATER, FetchError, make_pools, start_clock, too_large

_HEADERS = {
    "User-Agent": f"vlmhelpers/{VERSION} (fetches pictures for a training set)",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
}
_CODINGS = ("gzip", "x-gzip", "deflate")  # some servers use them unasked; nothing else is decoded
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_PIECE = 2**16
_OTHER_MEANS = "get the picture by other means and write its path"


@dataclass(frozen=True)
class Rules:
    """What a download may do. Times are in seconds; neither proxies nor passwords of the environment are used."""

    private_hosts: tuple = ()  # names or addresses, as in the URL, that may lie in a private network
    connect_timeout: float = 10  # to one address of the host; a look-up of its name cannot be cut short
    read_timeout: float = 15  # without a byte
    total_timeout: float = 60  # of one picture, over all its requests; waiting between them does not count
    max_bytes: int = 25_000_000  # of one picture, both as sent and as decoded
    max_pixels: int = MAX_PIXELS  # of one picture
    max_redirects: int = 5
    attempts: int = 4
    backoff: float = 0.5  # before the second attempt, about; it doubles with each
    max_wait: float = 60  # the longest that a server's Retry-After is obeyed
    connections: int = 8
    per_host: int = 4  # connections to one host
    pause: float = 0.02  # between the starts of two requests to one host

    def __post_init__(self):
        if min(self.attempts, self.connections, self.per_host) < 1:
            raise ValueError("attempts, connections and per_host must be 1 or more")
        if isinstance(self.private_hosts, str):
            raise TypeError(f"private_hosts is a tuple of names: ({self.private_hosts!r},)")


def host_of(url):
    """The host that `url` names, in lower case. Raises FetchError for what is no plain http or https URL."""
    if not isinstance(url, str) or not re.match("https?://", url, re.IGNORECASE):
        raise _no_url(url)
    try:
        parts = urllib3.util.parse_url(url)
    except (urllib3.exceptions.HTTPError, UnicodeError):
        raise _no_url(url) from None
    if parts.auth is not None:
        raise FetchError("password in the URL: it is not sent", "remove the name and password before the @")
    if not parts.host:
        raise _no_url(url)
    return parts.host


def _no_url(url):
    reason = f"not a URL: {str(url)[:80]!r}"
    return FetchError(reason, "write an address that begins with http:// or https://")


class Web:
    """Sends requests that obey the rules, from many threads; idle connections are kept for the next request."""

    def __init__(self, rules):
        self._rules = rules
        context = ssl.create_default_context()
        context.load_verify_locations(certifi.where())  # the system's own list is empty on some machines
        self._pools = make_pools(rules, context)

    def get(self, url, seconds):
        """GETs `url` once, within `seconds`: the pair (body, None), or (None, the URL that it redirects to).

        Raises FetchError for everything else, whatever the server does.
        """
        host_of(url)
        start_clock(seconds)
        try:
            return self._get(url)
        except FetchError:
            raise
        except Exception as error:  # urllib3, http.client, ssl, zlib and sockets have many
            raise _explain(error) from error

    def _get(self, url):
        timeout = urllib3.Timeout(connect=self._rules.connect_timeout, read=self._rules.read_timeout)
        options = {"headers": _HEADERS, "timeout": timeout, "retries": False, "redirect": False}
        response = self._pools.urlopen("GET", url, preload_content=False, **options)
        try:
            if location := response.get_redirect_location():
                return None, _target(url, location)
            if response.status != 200:
                raise self._refusal(response)
            return self._read(response), None
        finally:  # after a body that was read to its end, the connection is back in its pool already
            response.close()
            response.release_conn()

    def _refusal(self, response):
        """The FetchError for an answer that holds no picture."""
        status = f"HTTP {response.status} {http.client.responses.get(response.status, '')}".strip()
        if response.status in (404, 410):
            return FetchError(f"not found: {status}", "correct the URL, or leave the row out")
        if response.status in _TRY_AGAIN:
            wait = _seconds(response.headers.get("Retry-After"), self._rules.max_wait)
            return FetchError(f"server busy or broken: {status}", LATER, again=True, wait=wait)
        return FetchError(f"refused: {status}", _OTHER_MEANS)

    def _read(self, response):
        """The body, with a length as announced; gzip and deflate are undone, piece by piece."""
        if (response.length_remaining or 0) > self._rules.max_bytes:
            raise too_large(self._rules)
        coded = response.headers.get("Content-Encoding", "").strip().lower() in _CODINGS
        body = bytearray()
        for piece in response.stream(_PIECE, decode_content=coded):
            body += piece
            if len(body) > self._rules.max_bytes:
                raise too_large(self._rules)
        return bytes(body)


def _target(url, location):
    """The URL that a Location header names. Letters beyond ASCII were read as Latin-1; most servers write UTF-8."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError(f"redirected to no URL: {location[:80]!r}", "correct the URL") from None


def _seconds(retry_after, longest):
    """What a Retry-After header asks for, a number or a date; 0 where it cannot be read."""
    try:
        return min(urllib3.Retry().parse_retry_after(retry_after), longest) if retry_after else 0.0
    except (urllib3.exceptions.HTTPError, ValueError, OverflowError):
        return 0.0


def _explain(error):
    """The FetchError for what a library raised; libraries wrap the cause, which says it best."""
    cause = error
    while cause.args and isinstance(cause.args[-1], Exception):
        cause = cause.args[-1]
    text = " ".join(str(cause).split())[:200] or type(cause).__name__
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return FetchError(f"timeout: {text}", LATER, again=True)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return FetchError(f"certificate not trusted: {text}", _OTHER_MEANS)
    if isinstance(error, urllib3.exceptions.DecodeError):
        return FetchError(f"broken answer: {text}", _OTHER_MEANS)
    if isinstance(error, (urllib3.exceptions.LocationValueError, http.client.InvalidURL, UnicodeError)):
        return FetchError(f"not a URL that can be asked for: {text}", "correct the URL")
    return FetchError(f"connection broken: {text}", LATER, again=True)
