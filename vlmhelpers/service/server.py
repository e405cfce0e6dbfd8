"""The server of the job interface."""

import os
import socket
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from vlmhelpers.common.files import one_process
from vlmhelpers.common.local_server import LOOPBACK, check_port, is_loopback, new_token
from vlmhelpers.service.jobs import REGISTRY, Jobs
from vlmhelpers.service.places import Root

TOKEN = "VLMHELPERS_TOKEN"
_SHORTEST = 16  # characters of a token
_BACKLOG = 128  # connections that wait to be taken
_CLOSING_SECONDS = 3  # for answers that are under way


def serve(
    root: str | os.PathLike = ".",
    host: str = LOOPBACK,
    port: int = 8000,
    at_once: int = 1,
    token_file: str | os.PathLike | None = None,
    names: Iterable[str] = (),
) -> None:
    """Serves the jobs under a root until Ctrl-C or SIGTERM, and prints where, with a token that it has made.

    Runs go on when this ends, and the next server finds them. `at_once`: jobs that train together. `token_file`: a file
    outside the root that holds the token; None for that in VLMHELPERS_TOKEN, else a new one. `names`: host names,
    besides localhost and the machine's own, that clients may call the server by.

    Raises ValueError for a host other than loopback without a token of the user's, for a token that is short or that
    others can read, for a port that is none, and without FastAPI and uvicorn; BlockingIOError where another server
    has the root, and OSError for an address that cannot be had.
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise ValueError("the job interface is served by FastAPI: pip install fastapi uvicorn") from None
    check_port(port)
    place = Root(root)
    token = read_token(token_file, place)
    if token is None and not is_loopback(host):
        raise ValueError(f"host {host} is reached by others: give a token of yours, in {TOKEN} or by --token-file")
    (place.folder / REGISTRY).mkdir(exist_ok=True)
    with one_process(place.folder / REGISTRY, "serve"):
        jobs = Jobs(place, at_once)
        with _listen(host, port) as listening:
            _announce(place, host, port, None if token else (token := new_token()))
            with suppress(KeyboardInterrupt):  # uvicorn raises the signal again that has ended it
                _server(jobs, token, names).run(sockets=[listening])


def read_token(file: str | os.PathLike | None, root: Root) -> str | None:
    """The token of the user's, in a file or in VLMHELPERS_TOKEN, which is taken from the environment; None for none.

    Raises ValueError for one that is too short, or where others could read it: also jobs, if it were under the root.
    """
    token = os.environ.pop(TOKEN, None)  # runs need not know it
    where = TOKEN
    if file is not None:
        where = Path(file).resolve()
        if where.is_relative_to(root.folder):
            raise ValueError(f"{where} is under the root, where jobs read: keep the token elsewhere")
        if os.name != "nt" and stat.S_IMODE(where.stat().st_mode) & 0o077:
            raise ValueError(f"{where} can be read by others: chmod 600 {where}")
        token = where.read_text(encoding="utf-8").strip()
    if token is not None and (len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(f"{where} is no safe token: take at least {_SHORTEST} letters and digits, without spaces")
    return token


def _listen(host, port):
    try:
        return socket.create_server((host, port), family=_family(host, port), backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"{host}, port {port}: {error.strerror}. Choose another --port or --host") from None


def _family(host, port):
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]


def _announce(root, host, port, token):
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    print(f"Jobs under {root.folder}: {address}/api/v1/training/jobs", f"How to use it: {address}/docs", sep="\n")
    if token:
        print(f"Token: {token}")
    print("It ends with Ctrl-C; runs go on.", flush=True)


def _server(jobs, token, names):
    import uvicorn

    from vlmhelpers.service.app import make_app
    from vlmhelpers.service.connections import Connection

    config = uvicorn.Config(
        make_app(jobs, token, names, lambda: server.should_exit),
        http=Connection,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who a client says it is matters nowhere
        timeout_graceful_shutdown=_CLOSING_SECONDS,
    )
    server = uvicorn.Server(config)
    return server
