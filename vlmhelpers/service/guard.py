"""What a request has to pass before anything else is done with it: its host, its origin and its token."""

import asyncio
import base64
import hashlib
import hmac
import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from vlmhelpers.common.local_server import is_address
from vlmhelpers.service.problems import problem

OPEN = ("/docs", "/openapi.json")  # what the interface is like is no secret
_SEND_SECONDS = 30  # so long a client may take nothing of its answer
_ASK = {"WWW-Authenticate": 'Bearer realm="vlmhelpers"'}  # not Basic: a browser would ask for it, and keep it
_HEADERS = [  # of every answer
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"),
    (b"x-content-type-options", b"nosniff"),
]


class Guard:
    """Lets only requests through that have the token and call this server by one of its names.

    Any IP address is one of its names: a page that has bound its own name to this address (DNS rebinding) cannot
    change how it calls the server. The token is that of a Bearer, or the password of Basic, which `requests` and curl
    take from a .netrc file.
    """

    def __init__(self, app: ASGIApp, token: str, names: Iterable[str] = ()):
        self._app, self._token = app, _digest(token)
        self._names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        app = self._refusal(Headers(scope=scope), scope["path"]) or self._app
        await app(scope, receive, _patient(send))

    def _refusal(self, headers, path):
        """The answer to a request that is not let through."""
        host = headers.get("host", "")
        if not self._is_own(host):
            return problem(421, f"this server has no name {host!r}: call it by its address, or start it with --names")
        if (origin := headers.get("origin")) and origin not in (f"http://{host}", f"https://{host}"):
            return problem(403, f"a page of {origin!r} may not use this server")
        if path not in OPEN and not hmac.compare_digest(_digest(_token_of(headers)), self._token):
            return problem(401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN", _ASK)
        return None

    def _is_own(self, host):
        name = host.rpartition("]")[0].lstrip("[") if host.startswith("[") else host.partition(":")[0]
        return name.lower() in self._names or is_address(name)


def _digest(token):
    """So that a comparison takes as long whatever is compared."""
    return hashlib.sha256(token.encode()).digest()


def _token_of(headers):
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:
            return ""
    return ""


def _patient(send):
    """`send` with the headers of every answer, until the client takes nothing for a while."""

    async def guarded(message):
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_HEADERS]
        async with asyncio.timeout(_SEND_SECONDS):
            await send(message)

    return guarded
