"""A picture server on 127.0.0.1 that answers each path in its own bad way, and counts what it is asked."""

import gzip
import io
import threading
import time
from collections import Counter
from contextlib import contextmanager
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from PIL import Image

ENOUGH = 200  # steps after which even an endless answer ends, so that a test that fails does not hang


def picture_bytes(size=(32, 24), color="red", image_format="PNG", **options):
    """A plain picture, encoded."""
    buffer = io.BytesIO()
    Image.new(options.pop("mode", "RGB"), size, color).save(buffer, image_format, **options)
    return buffer.getvalue()


GOOD = picture_bytes()
HTML = b"<!DOCTYPE html><html><body>No picture here.</body></html>"


class MisbehavingServer(ThreadingHTTPServer):
    """`requests` counts by path, `times` lists (path, when), `most_at_once` is of requests in progress."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, context):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        if context:
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.requests, self.times, self.headers = Counter(), [], []
        self.now, self.most_at_once, self.connections = 0, 0, 0
        self.lock = threading.Lock()

    def handle_error(self, request, client_address):
        """Clients hang up on it all the time."""


@contextmanager
def misbehaving_server(context=None):
    """A running server, over TLS where an SSLContext is given."""
    server = MisbehavingServer(context)
    threading.Thread(target=partial(server.serve_forever, 0.02), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 10

    def setup(self):
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        with server.lock:
            server.requests[self.path] += 1
            server.times.append((self.path, time.monotonic()))
            server.headers.append(dict(self.headers))
            server.now += 1
            server.most_at_once = max(server.most_at_once, server.now)
            self.attempt = server.requests[self.path]
        try:
            _ANSWERS[self.path.split("/")[1].partition("?")[0]](self)
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, body=GOOD, status=200, kind="image/png", length=None, **headers):
        """Sends an answer; `length` is what it claims, headers are written with underscores."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = length is not None

    def begin(self, *lines):
        """Sends the beginning of an answer by hand; the connection is closed when the function that sends it ends."""
        self.close_connection = True
        self.wfile.write("".join(f"{line}\r\n" for line in ("HTTP/1.1 200 OK", *lines, "")).encode())


def _slow(handler):
    time.sleep(0.05)
    handler.answer()


def _flaky(handler, status, **headers):
    if handler.attempt == 1:
        handler.answer(b"not now", status, "text/plain", **headers)
    else:
        handler.answer()


def _late_date(handler):
    _flaky(handler, 503, Retry_After=formatdate(time.time() + 2, usegmt=True))


def _hang(handler):
    handler.close_connection = True
    time.sleep(20)


def _reset(handler):
    handler.close_connection = True


def _repeat(handler, piece, pause=0.0):
    for _ in range(ENOUGH):
        handler.wfile.write(piece)
        time.sleep(pause)


def _drip(handler):
    handler.begin(f"Content-Length: {len(GOOD)}")
    for index in range(len(GOOD)):
        handler.wfile.write(GOOD[index : index + 1])
        time.sleep(0.1)


def _drip_header(handler):
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    _repeat(handler, b"x", 0.1)


def _many_headers(handler):
    handler.close_connection = True
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    _repeat(handler, b"X: " + b"x" * 60_000 + b"\r\n")


def _endless(handler):
    handler.begin("Content-Type: image/png")
    _repeat(handler, GOOD + bytes(100_000))


def _endless_chunks(handler):
    handler.begin("Transfer-Encoding: chunked")
    _repeat(handler, b"10000\r\n" + bytes(0x10000) + b"\r\n")


def _endless_chunk_size(handler):
    handler.begin("Transfer-Encoding: chunked")
    _repeat(handler, b"0" * 100_000)


def _drip_chunk_size(handler):
    handler.begin("Transfer-Encoding: chunked")
    _repeat(handler, b"0", 0.1)


def _chunked(handler, end=b"0\r\n\r\n"):
    handler.begin("Transfer-Encoding: chunked")
    handler.wfile.write(f"{len(GOOD):x}\r\n".encode() + GOOD + b"\r\n" + end)


def _until_closed(handler):
    handler.begin("Content-Type: image/png")
    handler.wfile.write(GOOD)


def _always_continue(handler):
    handler.close_connection = True
    _repeat(handler, b"HTTP/1.1 100 Continue\r\n\r\n", 0.02)


def _garbage(handler):
    handler.close_connection = True
    handler.wfile.write(b"\x00\xff\xfe hello\r\n\r\n")


def _scans(handler):
    """A JPEG that goes on refining its picture, for a second or so; it would be hours in 25 MB."""
    jpeg = picture_bytes((1000, 1000), image_format="JPEG", progressive=True).removesuffix(b"\xff\xd9")
    scan = b"\xff\xda" + jpeg.rpartition(b"\xff\xda")[2]
    handler.answer(jpeg + scan * 1000 + b"\xff\xd9")


def _to(handler):
    """/to?URL redirects to that URL."""
    handler.answer(b"", 302, Location=unquote(handler.path.partition("?")[2]))


_ANSWERS = {
    "good": _Handler.answer,
    "slow": _slow,
    "octet": partial(_Handler.answer, kind="application/octet-stream"),
    "jpeg": lambda handler: handler.answer(picture_bytes(image_format="JPEG")),
    "gone": lambda handler: handler.answer(HTML, 410, "text/html"),
    "unknown": lambda handler: handler.answer(HTML, 404, "text/html"),
    "forbidden": lambda handler: handler.answer(b"", 403),
    "password": lambda handler: handler.answer(b"", 401, WWW_Authenticate="Basic"),
    "nothing": lambda handler: handler.answer(b"", 206),
    "flaky": lambda handler: _flaky(handler, 500),
    "busy": lambda handler: _flaky(handler, 429, Retry_After="1"),
    "busydate": _late_date,
    "busyforever": lambda handler: _flaky(handler, 503, Retry_After="86400"),
    "broken": lambda handler: handler.answer(b"", 500),
    "hang": _hang,
    "reset": _reset,
    "resetonce": lambda handler: _reset(handler) if handler.attempt == 1 else handler.answer(),
    "drip": _drip,
    "dripheader": _drip_header,
    "dripchunksize": _drip_chunk_size,
    "headers": _many_headers,
    "endless": _endless,
    "endlesschunks": _endless_chunks,
    "endlesschunksize": _endless_chunk_size,
    "chunked": _chunked,
    "cutchunks": lambda handler: _chunked(handler, end=b""),
    "untilclosed": _until_closed,
    "continue": _always_continue,
    "garbage": _garbage,
    "short": lambda handler: handler.answer(length=len(GOOD) + 100),
    "shortonce": lambda handler: handler.answer(length=len(GOOD) + 100 if handler.attempt == 1 else None),
    "huge": lambda handler: handler.answer(length=10**10),
    "cut": lambda handler: handler.answer(GOOD[: len(GOOD) // 2]),
    "html": lambda handler: handler.answer(HTML, kind="image/jpeg"),
    "text": lambda handler: handler.answer(b"Sorry, sold out", kind="image/png"),
    "empty": lambda handler: handler.answer(b""),
    "pixels": lambda handler: handler.answer(picture_bytes((10_000, 10_000), 0, mode="1", compress_level=1)),
    "scans": _scans,
    "progressive": lambda handler: handler.answer(picture_bytes(image_format="JPEG", progressive=True)),
    "gzip": lambda handler: handler.answer(gzip.compress(GOOD), Content_Encoding="gzip"),
    "gzipbomb": lambda handler: handler.answer(gzip.compress(bytes(50_000_000), 1), Content_Encoding="gzip"),
    "nogzip": lambda handler: handler.answer(GOOD, Content_Encoding="gzip"),
    "lengths": lambda handler: handler.answer(Content_Length="7"),
    "to": _to,
    "loop": lambda handler: handler.answer(b"", 302, Location=handler.path),
    "nowhere": lambda handler: handler.answer(b"", 302),
    "cookie": lambda handler: handler.answer(Set_Cookie="who=me; Path=/"),
}
