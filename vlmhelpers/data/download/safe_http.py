"""GET requests to servers that are not trusted: to public addresses, for so many seconds and so many bytes."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from urllib.parse import urljoin

import certifi
import urllib3
from urllib3 import exceptions

from vlmhelpers.common.images import MAX_PIXELS, UnusableImage
from vlmhelpers.common.version import VERSION

_AGENT = f"vlmhelpers/{VERSION} (fetches images for a training set)"
_HEADERS = {"User-Agent": _AGENT, "Accept": "image/*", "Accept-Encoding": "identity"}
_CODINGS = ("gzip", "x-gzip", "deflate")  # some servers use them unasked; nothing else is decoded
_TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADER_BYTES = 2**20  # what a response may hold besides its body
_LATER = "run it again later; what is downloaded is kept"
_OTHER_MEANS = "get the picture by other means and write its path"
_THREAD = threading.local()  # .requests: the ImageRequests of which this thread sends one


@dataclass(frozen=True)
class DownloadRules:
    """What a download may do. Times are in seconds; neither proxies nor passwords of the environment are used."""

    private_hosts: tuple[str, ...] = ()  # names or addresses, as in the URL, that may lie in a private network
    connect_timeout: float = 10  # to one address of the host; a look-up of its name cannot be cut short
    read_timeout: float = 15  # without a byte, and of a TLS handshake
    total_timeout: float = 60  # of one image, over all its requests; waiting between them does not count
    max_bytes: int = 25_000_000  # of one image, both as sent and as decoded
    max_pixels: int = MAX_PIXELS  # of one image
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


class DownloadError(UnusableImage):
    """Why a request gave no image. wait: seconds that the host asked for.

    again: another attempt may succeed. host_fault: it says nothing of the image; of what may pass, always True.
    """

    def __init__(self, reason: str, remedy: str, again: bool = False, host_fault: bool = False, wait: float = 0):
        super().__init__(reason, remedy)
        self.again, self.host_fault, self.wait = again, host_fault or again, wait


def host_of(url: object) -> str:
    """The host that `url` names, in lower case. Raises DownloadError for what is no plain http or https URL."""
    parts = urllib3.util.Url()
    with suppress(exceptions.HTTPError, UnicodeError):
        parts = urllib3.util.parse_url(url if isinstance(url, str) else "")
    if parts.auth is not None:
        raise DownloadError("password in the URL: it is not sent", "remove the name and password before the @")
    if parts.scheme not in ("http", "https") or not parts.host:
        raise DownloadError(f"not a URL: {str(url)[:80]!r}", "write an address that begins with http:// or https://")
    return parts.host


def connection_pools(rules: DownloadRules) -> urllib3.PoolManager:
    """The connections of a download, for the ImageRequests of all its threads; idle ones are kept for the next."""
    hosts = max(1, rules.connections // rules.per_host)  # idle connections count: no more than rules.connections
    pools = urllib3.PoolManager(hosts, _HEADERS, maxsize=rules.per_host, ssl_context=_tls_context())
    pools.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
    return pools


@cache
def _tls_context():
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # the system's own list is empty on some machines
    context.sslsocket_class = _TLSSocket
    return context


class ImageRequests:
    """The requests for one image, all from one thread; together they take rules.total_timeout at most."""

    def __init__(self, pools: urllib3.PoolManager, rules: DownloadRules):
        self.pools, self.rules = pools, rules
        self.seconds_left = rules.total_timeout

    def get(self, url: str) -> tuple[bytes | None, str | None]:
        """GETs `url` once: (body, None), or (None, the URL that it redirects to). All errors are DownloadError."""
        _THREAD.requests, self.bytes_left = self, self.rules.max_bytes + _HEADER_BYTES
        self.deadline = time.monotonic() + self.seconds_left
        try:
            return self._get(url)
        except DownloadError:
            raise
        except Exception as error:  # urllib3, http.client, ssl, zlib and sockets have many
            raise self._explain(error) from error
        finally:
            self.seconds_left = self.deadline - time.monotonic()

    def _get(self, url):
        options = {"timeout": self.rules.read_timeout, "retries": False, "redirect": False, "preload_content": False}
        with self.pools.urlopen("GET", url, **options) as response:
            if location := response.get_redirect_location():
                return None, _redirected(url, location)
            if response.status != 200:
                raise self._refusal(response)
            return self._body(response), None

    def _refusal(self, response):
        status = f"HTTP {response.status} {http.client.responses.get(response.status, '')}".strip()
        if response.status in (404, 410):
            return DownloadError(f"not found: {status}", "correct the URL, or leave the row out")
        if response.status not in _TRY_AGAIN:
            return DownloadError(f"refused: {status}", _OTHER_MEANS)
        wait = 0
        with suppress(exceptions.InvalidHeader, ValueError, OverflowError):  # neither a number nor a date
            wait = min(urllib3.Retry().get_retry_after(response) or 0, self.rules.max_wait)
        return DownloadError(f"server busy or broken: {status}", _LATER, again=True, wait=wait)

    def _body(self, response):
        """The body, with a length as announced; gzip and deflate are undone piece by piece, up to the limit."""
        if (response.length_remaining or 0) > self.rules.max_bytes:
            raise self.too_large()
        coded = response.headers.get("Content-Encoding", "").strip().lower() in _CODINGS
        body = bytearray()
        for piece in response.stream(decode_content=coded):
            body += piece
            if len(body) > self.rules.max_bytes:
                raise self.too_large()
        return bytes(body)

    def too_large(self) -> DownloadError:
        """The error for more bytes than the rules allow."""
        reason = f"download too large: over {self.rules.max_bytes:,} bytes"
        return DownloadError(reason, "raise max_bytes if you trust the server")

    def limit(self, seconds: float) -> float:
        """`seconds`, or the time that is left if that is less. Raises TimeoutError when there is none."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return min(seconds, left)

    def _explain(self, error):
        """The DownloadError for what a library raised; libraries wrap the cause, which says it best."""
        if isinstance(error, exceptions.TimeoutError):
            slow = f"nothing came for {self.rules.read_timeout:g} s"
            if time.monotonic() >= self.deadline:
                slow = f"not complete after {self.rules.total_timeout:g} s"
            return DownloadError(f"timeout: {slow}", _LATER, again=True)
        cause = error.args[-1] if error.args else type(error).__name__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return DownloadError(f"certificate not trusted: {str(cause)[:200]}", _OTHER_MEANS)
        if isinstance(error, exceptions.DecodeError):
            return DownloadError(f"broken answer: {str(cause)[:200]}", _OTHER_MEANS)
        return DownloadError(f"connection broken: {str(cause)[:200]}", _LATER, again=True)


def _redirected(url, location):
    """The URL that a Location header names. Letters beyond ASCII were read as Latin-1; most servers write UTF-8."""
    with suppress(UnicodeError):
        location = location.encode("latin-1").decode("utf-8")
    try:
        return urljoin(url, location)
    except ValueError:
        raise DownloadError(f"redirected to no URL: {location[:80]!r}", "correct the URL") from None


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also by the IPv4 address that an IPv6 one carries."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        nat64 = ip in _NAT64 and ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner := ip.ipv4_mapped or ip.sixtofour or nat64:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))


def _addresses(host, port, private_hosts):
    """What socket.getaddrinfo says of a host, if all of it may be asked."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        again = getattr(error, "errno", None) == socket.EAI_AGAIN
        remedy = _LATER if again else "correct the URL, or leave the row out"
        raise DownloadError(f"no connection: {host}: {error}", remedy, again, host_fault=True) from None
    private = [address[0] for *_, address in found if not is_public(address[0])]
    if private and host not in {name.strip("[]").lower() for name in private_hosts}:
        remedy = f"if you trust that host, pass private_hosts=({host!r},)"
        raise DownloadError(f"address not allowed: {host} is {private[0]}, which is not public", remedy)
    return found


class _Socket(socket.socket):
    """Receives up to the deadline and the byte limit of the request that this thread has sent."""

    def recv_into(self, *arguments):
        requests = _THREAD.requests
        self.settimeout(requests.limit(requests.rules.read_timeout))
        received = super().recv_into(*arguments)
        requests.bytes_left -= received
        if requests.bytes_left < 0:
            raise requests.too_large()
        return received


class _TLSSocket(_Socket, ssl.SSLSocket):
    pass


class _Connection(urllib3.connection.HTTPConnection):
    def _new_conn(self):
        """A socket to one of the host's addresses: looked up once, all checked, so that no second look-up differs."""
        requests, host, failure = _THREAD.requests, self._dns_host, "no address"
        for family, kind, protocol, _, address in _addresses(host, self.port, requests.rules.private_hosts):
            sock = _Socket(family, kind, protocol)
            try:
                sock.settimeout(requests.limit(requests.rules.connect_timeout))
                sock.connect(address)
                sock.settimeout(requests.limit(requests.rules.read_timeout))  # of the TLS handshake
                return sock
            except OSError as error:
                failure = error
                sock.close()
        raise DownloadError(f"no connection: {host}: {failure}", _LATER, again=True)


class _TLSConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection
