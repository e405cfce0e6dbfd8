"""A small server that speaks vLLM's form of the OpenAI protocol, and keeps what it was asked."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

from PIL import Image


def describe(body):
    """The answer of the server: its model, the last question and the size and color of each of its images."""
    parts = body["messages"][-1]["content"]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    pictures = [f"{image.size} {image.getpixel((0, 0))}" for image in images_of(body)]
    return " ".join([body["model"], *texts, *pictures])


def images_of(body):
    """The images of a request, decoded from its data URIs."""
    parts = [part for message in body["messages"] for part in message["content"] if isinstance(part, dict)]
    uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    assert all(uri.startswith("data:image/png;base64,") for uri in uris)
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]


@contextmanager
def openai_server(cards, key=None, answer=describe):
    """Serves models of those `cards`: `requests` are the bodies, `failing` takes states for the next answers.

    `most`: how many requests were there at once.
    """
    lock, state = threading.Lock(), SimpleNamespace(cards=cards, requests=[], failing=[], most=0, now=0)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._send(200, {"object": "list", "data": cards}) if self.path == "/v1/models" else self._send(404, {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                state.now += 1
                state.most = max(state.most, state.now)
                failing = state.failing.pop(0) if state.failing else None
                state.requests.append(body)
            try:
                allowed = key is None or self.headers["Authorization"] == f"Bearer {key}"
                status = failing or (200 if allowed and self.path == "/v1/chat/completions" else 401)
                state.barrier.wait(5) if hasattr(state, "barrier") else None
                self._send(status, self._answer(body) if status == 200 else {"error": {"message": "no <room>"}})
            finally:
                with lock:
                    state.now -= 1

        def _answer(self, body):
            words = answer(body).split(" ")
            cut = len(words) > body["max_tokens"]
            choice = {"message": {"role": "assistant", "content": " ".join(words[: body["max_tokens"]])}}
            choice["finish_reason"] = "length" if cut else "stop"
            return {"choices": [choice], "usage": {"completion_tokens": min(len(words), body["max_tokens"])}}

        def _send(self, status, value):
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        state.address = f"http://127.0.0.1:{server.server_port}/v1"
        try:
            yield state
        finally:
            server.shutdown()
