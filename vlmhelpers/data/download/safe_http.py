"""GET requests to servers that are not trusted: to public addresses only, for so many seconds and so many bytes."""

import errno
import ipaddress
import os
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from functools import cache

import certifi
import urllib3
from urllib3 import exceptions

from vlmhelpers.common.images import MAX_PIXELS, UnusableImage
from vlmhelpers.common.version import VERSION

_HEADERS = {"User-Agent": f"vlmhelpers/{VERSION} (fetches images for a training set)", "Accept": "image/*"}
_BUSY = (408, 425, 429, 500, 502, 503, 504)  # statuses that may pass
_KINDS = {404: "not found", 410: "not found"} | dict.fromkeys(_BUSY, "server busy or broken")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_REMEDY = "correct the URL, which begins with http:// or https://, or run it again later: what is downloaded is kept"
_IMAGE = threading.local()  # of the image that this thread gets: .rules, .deadline and the .bytes_left of a response


@dataclass(frozen=True)
class DownloadRules:
    """What a download may do. Times are in seconds; neither proxies nor passwords of the environment are used."""

    private_hosts: tuple[str, ...] = ()  # names or addresses, as in the URL, that may lie in a private network
    read_timeout: float = 15  # without a byte or a connection; looking up a host's name cannot be cut short
    total_timeout: float = 60  # of one image, with all its requests and the waiting between them
    max_bytes: int = 25_000_000  # of one image, both as sent and as decoded
    max_pixels: int = MAX_PIXELS  # of one image
    max_redirects: int = 5
    attempts: int = 4
    backoff: float = 0.5  # the second attempt comes at once, the third after twice this, the next after four times
    max_wait: float = 20  # the longest that a server's Retry-After is obeyed
    connections: int = 8
    per_host: int = 4  # connections to one host
    pause: float = 0  # between the starts of two images

    def __post_init__(self):
        if min(self.attempts, self.connections, self.per_host) < 1:
            raise ValueError("attempts, connections and per_host must be 1 or more")


class _Retry(urllib3.Retry):
    def get_retry_after(self, response):  # `retry_after_max` is not in urllib3 2.5, which Colab has
        seconds = super().get_retry_after(response)
        return seconds and min(seconds, _IMAGE.rules.max_wait)


class ImageClient(urllib3.PoolManager):
    """Gets the images of one download; its threads share the connections."""

    def __init__(self, rules: DownloadRules):
        self.rules, again = rules, rules.attempts - 1
        retries = _Retry(
            None, connect=again, read=again, status=again, other=0, redirect=rules.max_redirects,
            status_forcelist=_BUSY, raise_on_status=False, backoff_factor=rules.backoff,
        )  # fmt: skip
        pool = {"maxsize": rules.per_host, "block": True, "retries": retries, "ssl_context": _tls_context()}
        super().__init__(8 * rules.connections, _HEADERS, timeout=rules.read_timeout, **pool)  # so many hosts at most

    def _new_pool(self, scheme, *arguments, **options):
        pool = super()._new_pool(scheme, *arguments, **options)
        pool.ConnectionCls = _TLSConnection if scheme == "https" else _Connection
        return pool

    def fetch(self, url: str) -> bytes:
        """The body that a URL leads to. Raises UnusableImage for whatever goes wrong there, OSError without sockets."""
        _IMAGE.rules, _IMAGE.deadline = self.rules, time.monotonic() + self.rules.total_timeout
        try:
            response = self.urlopen("GET", url, preload_content=False, release_conn=True)  # _Connection has read it
        except UnusableImage:
            raise
        except _NoSocket as error:
            number = error.__cause__.errno
            remedy = "Raise the limit of open files (ulimit -n 4096), or use fewer connections"
            raise OSError(number, f"{os.strerror(number)}. {remedy}") from error
        except Exception as error:  # urllib3, http.client and ssl have many
            cause = error.reason if isinstance(error, exceptions.MaxRetryError) else error
            kind = "not a URL" if isinstance(cause, ValueError) else "download failed"
            kind = "timeout" if isinstance(cause, exceptions.TimeoutError) else kind
            raise UnusableImage(f"{kind}: {str(cause).removeprefix('None: ')[:200]}", _REMEDY) from error
        if response.status == 200:
            return response.data or b""
        status = f"HTTP {response.status} {response.reason[:80]}"
        raise UnusableImage(f"{_KINDS.get(response.status, 'refused')}: {status}", _REMEDY)

    def urlopen(self, method: str, url: str, redirect: bool = True, **options) -> urllib3.BaseHTTPResponse:
        """As PoolManager, which calls it for each redirect as well, but for plain http and https URLs only."""
        parts = urllib3.util.parse_url(str(url))
        if parts.auth is not None:
            raise UnusableImage("password in the URL: it is not sent", "remove the name and password before the @")
        if parts.scheme not in ("http", "https") or not parts.host:
            raise UnusableImage(f"not a URL: {str(url)[:80]!r}", _REMEDY)
        return super().urlopen(method, url, redirect, **options)


@cache
def _tls_context():
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())  # the system's own list is empty on some machines
    context.sslsocket_class = _TLSSocket
    return context


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, also by the IPv4 address that an IPv6 one carries."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if ip.version == 6:
        nat64 = ip in _NAT64 and ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner := ip.ipv4_mapped or ip.sixtofour or nat64:
            return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))


def _too_large():
    return UnusableImage(f"download too large: over {_IMAGE.rules.max_bytes:,} bytes", "raise max_bytes")


def _limited(seconds):
    left = _IMAGE.deadline - time.monotonic()
    if left <= 0:
        raise UnusableImage(f"timeout: not complete after {_IMAGE.rules.total_timeout:g} s", _REMEDY)
    return min(seconds, left)


class _Socket(socket.socket):
    """Receives up to the deadline of the image and the byte limit of the response."""

    def recv_into(self, *arguments):
        self.settimeout(_limited(_IMAGE.rules.read_timeout))
        received = super().recv_into(*arguments)
        _IMAGE.bytes_left -= received
        if _IMAGE.bytes_left < 0:
            raise _too_large()
        return received


class _TLSSocket(_Socket, ssl.SSLSocket):
    pass


class _NoSocket(Exception):
    """This machine has none left: no fault of the URL, and nothing that urllib3 should try again."""


def _new_socket(family=socket.AF_INET, kind=socket.SOCK_STREAM, protocol=-1):
    try:
        return _Socket(family, kind, protocol)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
            raise _NoSocket from error
        raise


class _Connection(urllib3.connection.HTTPConnection):
    def _new_conn(self):
        """A socket to one of the host's addresses: looked up once, all checked, so that no second look-up differs."""
        try:
            found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except socket.gaierror:  # it does not say that it got no socket
            _new_socket().close()
            raise
        private = [address[0] for *_, address in found if not is_public(address[0])]
        if private and self.host not in {name.strip("[]").lower() for name in _IMAGE.rules.private_hosts}:
            reason = f"address not allowed: {self.host} is {private[0]}, which is not public"
            raise UnusableImage(reason, f"if you trust that host, pass private_hosts=({self.host!r},)")
        for family, kind, protocol, _, address in found:
            seconds, sock = _limited(self.timeout), _new_socket(family, kind, protocol)
            try:
                sock.settimeout(seconds)
                sock.connect(address)
                return sock
            except OSError as error:
                failure = error
                sock.close()
        raise failure

    def getresponse(self):
        """The response with its decoded body, read to the end here, where Retry counts what goes wrong."""
        limit, body = _IMAGE.rules.max_bytes, bytearray()
        _IMAGE.bytes_left = limit + 2**20  # which is for all besides the body
        response = super().getresponse()
        if (response.length_remaining or 0) > limit:
            raise _too_large()
        for piece in response.stream():
            body += piece
            if len(body) > limit:
                raise _too_large()
        return urllib3.HTTPResponse(bytes(body), response.headers, response.status, reason=response.reason)


class _TLSConnection(_Connection, urllib3.connection.HTTPSConnection):
    pass
