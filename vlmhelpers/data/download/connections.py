"""Connections that a stranger's server cannot abuse: to public addresses, for so many seconds and so many bytes."""

import http.client
import io
import ipaddress
import socket
import threading
import time
from functools import partial

import urllib3

LATER = "run it again later; what is downloaded is kept"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADER_BYTES = 2**20  # what a response may hold besides its body
_BUFFER = 2**16
_DEADLINE = threading.local()  # .at: when the request of this thread has to be over


class FetchError(Exception):
    """Why there is no picture: `reason` ("kind: details") and `remedy`, and what to make of it.

    again: another attempt may succeed. host_fault: it says nothing of the picture; of what may pass, always True.
    wait: seconds that the host asked for.
    """

    def __init__(self, reason, remedy, again=False, host_fault=False, wait=0.0):
        super().__init__(f"{reason}. Remedy: {remedy}.")
        self.reason, self.remedy = reason, remedy
        self.again, self.host_fault, self.wait = again, host_fault or again, wait


def too_large(rules):
    """The FetchError for more bytes than the rules allow."""
    return FetchError(f"download too large: over {rules.max_bytes:,} bytes", "raise max_bytes if you trust the server")


def start_clock(seconds):
    """The connections that this thread uses from now on end after `seconds`."""
    _DEADLINE.at = time.monotonic() + seconds


def make_pools(rules, context):
    """A urllib3.PoolManager for many threads, whose connections obey `rules` (network.Rules); `context` is for TLS.

    Idle connections count: at most rules.connections are open, if no more are used at once.
    """
    pools = urllib3.PoolManager(
        max(1, rules.connections // rules.per_host), maxsize=rules.per_host, ssl_context=context
    )
    pools.pool_classes_by_scheme = {
        "http": partial(_pool, urllib3.HTTPConnectionPool, _HTTPConnection, rules),
        "https": partial(_pool, urllib3.HTTPSConnectionPool, _HTTPSConnection, rules),
    }
    return pools


def _pool(make, connection, rules, host, port, **options):
    pool = make(host, port, **options)
    pool.ConnectionCls = partial(connection, rules)
    return pool


class _RuledConnection:
    """What differs from urllib3's connections: where they connect to, and how long they listen."""

    def __init__(self, rules, *arguments, **options):
        super().__init__(*arguments, **options)
        self._rules = rules
        self.response_class = partial(_RuledResponse, rules)

    def _new_conn(self):
        return _connect(self._dns_host, self.port, self._rules)


class _HTTPConnection(_RuledConnection, urllib3.connection.HTTPConnection):
    pass


class _HTTPSConnection(_RuledConnection, urllib3.connection.HTTPSConnection):
    pass


def _connect(host, port, rules):
    """A socket to one of the host's addresses: looked up once, all checked, so that no second look-up can differ."""
    error = "no address"
    for family, kind, protocol, _, address in _addresses(host, port, rules.private_hosts):
        sock = None
        try:
            sock = socket.socket(family, kind, protocol)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(min(rules.connect_timeout, max(0.001, _DEADLINE.at - time.monotonic())))
            sock.connect(address)
            return sock
        except OSError as failure:
            error = failure
            if sock:
                sock.close()
    raise FetchError(f"no connection: {host}: {error}", LATER, again=True)


def _addresses(host, port, private_hosts):
    """What socket.getaddrinfo says of a host that may be asked."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        passing = getattr(error, "errno", None) == socket.EAI_AGAIN
        remedy = LATER if passing else "correct the URL, or leave the row out"
        raise FetchError(f"no connection: {host}: {error}", remedy, again=passing, host_fault=True) from None
    private = [address[0] for *_, address in found if not is_public(address[0])]
    if private and host.lower() not in {name.strip("[]").lower() for name in private_hosts}:
        remedy = f"if you trust that host, pass private_hosts=({host!r},)"
        raise FetchError(f"address not allowed: {host} is {private[0]}, which is not public", remedy)
    return found


def is_public(address):
    """Whether an IP address is one of the public internet, also by the IPv4 address that an IPv6 one carries."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    inner = ip.version == 6 and (ip.ipv4_mapped or ip.sixtofour)
    if ip in _NAT64:
        inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if inner:
        return is_public(str(inner))
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or getattr(ip, "is_site_local", False))


class _RuledResponse(http.client.HTTPResponse):
    """A response that ends, however it is sent."""

    def __init__(self, rules, sock, *arguments, **options):
        super().__init__(sock, *arguments, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_RuledReader(sock, rules), _BUFFER)


class _RuledReader(io.RawIOBase):
    """The bytes of a socket, headers, chunks and all, up to the deadline and to the limit of bytes."""

    def __init__(self, sock, rules):
        self._raw, self._sock, self._rules = sock.makefile("rb", buffering=0), sock, rules
        self._left, self._deadline = rules.max_bytes + _HEADER_BYTES, _DEADLINE.at

    def readable(self):
        return True

    def readinto(self, buffer):
        seconds = min(self._rules.read_timeout, self._deadline - time.monotonic())
        if seconds <= 0:
            raise self._late()
        self._sock.settimeout(seconds)
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            raise self._late() from None
        self._left -= count
        if self._left < 0:
            raise too_large(self._rules)
        return count

    def _late(self):
        if time.monotonic() >= self._deadline:
            return FetchError(f"timeout: not complete after {self._rules.total_timeout:g} s", LATER, host_fault=True)
        reason = f"timeout: nothing came for {self._rules.read_timeout:g} s"
        return FetchError(reason, LATER, again=True)

    def close(self):
        self._raw.close()
        super().close()
