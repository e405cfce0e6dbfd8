"""The job interface under attack: tokens, hosts, bodies, paths, floods and clients that do not listen."""

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import requests
from job_server import JOBS
from sleeping_jobs import TOKEN, add_job, serving

from vlmhelpers.service import connections, events, guard
from vlmhelpers.training.background import TrainingRun

LINE = json.dumps({"time": 1.0, "step": 1, "max_steps": 9, "loss": 1.0, "text": "x" * 500})
BODY = {"name": "one", "base_model": "org/model", "dataset_path": "rows.jsonl"}


@pytest.fixture(scope="module")
def root(tmp_path_factory, sleeper):
    folder = tmp_path_factory.mktemp("root")
    (folder / "rows.jsonl").write_text("{}")
    add_job(folder, "busy", sleeper, lines=[LINE] * 20_000)
    add_job(folder, "ended", sleeper, lines=[LINE] * 3, end="finished")
    return folder


@pytest.fixture(scope="module")
def served(root):
    with serving(root) as found:
        yield found


def raw(served, *lines, body=b""):
    """The first bytes of the answer to what is sent as it stands."""
    with socket.create_connection(("127.0.0.1", served.port), 30) as client:
        client.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
        return client.recv(2**16)


def is_problem(answer, status):
    found = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.status_code == found["status"] == status and found["title"] and found["detail"]
    return found


WRONG = [None, "", "Bearer", "Bearer ", "Bearer x", TOKEN, f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é"]
WRONG += [
    "Basic",
    "Basic !!!",
    "Basic " + base64.b64encode(b"no colon").decode(),
    f"Digest {TOKEN}",
    "Bearer " + "x" * 9000,
]


@pytest.mark.parametrize("value", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("path", ["", "/busy", "/busy/log", "/busy/events", "/none", "/../../../docs"])
def test_nothing_is_said_without_the_token(served, value, path):
    headers = {} if value is None else {"Authorization": value.encode()}
    answer = requests.get(served.url + JOBS + path, headers=headers, params={"token": TOKEN}, timeout=30)
    is_problem(answer, 401)
    assert "Basic" not in answer.headers["WWW-Authenticate"] and "busy" not in answer.text


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "OPTIONS", "TRACE", "BREW"])
def test_nothing_is_done_without_the_token(served, method):
    for path in ("", "/busy/stop", "/ended/resume", "/ended"):
        is_problem(requests.request(method, served.url + JOBS + path, json=BODY, timeout=30), 401)
    assert {job.id for job in served.jobs.all()} == {"busy", "ended"} and served.jobs.find("busy").state == "starting"


def test_the_token_is_also_a_password(served):
    for auth in (("me", TOKEN), ("", TOKEN)):
        assert requests.get(served.url + JOBS, auth=auth, timeout=30).status_code == 200
    assert requests.get(served.url + JOBS, headers={"Authorization": f"bearer {TOKEN}"}, timeout=30).ok


HOSTS = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.nip.io",
    "evil.example:80",
    "",
    "[evil]",
    "local host",
    "@",
]


@pytest.mark.parametrize("host", HOSTS)
def test_a_page_that_calls_itself_by_this_address_is_refused(served, host):
    for path in (JOBS, "/docs", "/openapi.json"):
        answer = raw(served, f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}")
        assert answer.split(b" ")[1] in (b"421", b"400") and b"busy" not in answer
    assert raw(served, f"GET {JOBS} HTTP/1.0", f"Authorization: Bearer {TOKEN}").split(b" ")[1] == b"421"


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "10.0.0.2:8000", "jobs.example"]
)
def test_its_own_names_are_taken(served, host):
    assert raw(served, f"GET {JOBS} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {TOKEN}")[9:12] == b"200"


def test_pages_of_others_are_refused(served):
    for origin in ("http://evil.example", "null", f"http://localhost:{served.port}", "https://127.0.0.1"):
        is_problem(served.ask("POST", "/ended/resume", headers={"Origin": origin}), 403)
    assert served.ask("GET", headers={"Origin": served.url}).ok
    is_problem(served.ask("POST", data=json.dumps(BODY), headers={"Content-Type": "text/plain"}), 415)


LARGE = json.dumps(BODY | {"name": "x" * 2**16}).encode()
BODIES = [
    (b"", 400),
    (b"{", 400),
    (b"[" * 60_000, 400),
    (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
    (b'{"name": "\\ud800", "base_model": "m", "dataset_path": "rows.jsonl"}', 400),
    (b"\xff\xfe", 400),
    (b"9" * 5000, 400),
    (b"null", 422),
    (b"NaN", 422),
    (b'{"name": NaN}', 422),
    (b'{"name": "a\\u0000b", "base_model": "m", "dataset_path": "rows.jsonl"}', 422),
    (json.dumps(BODY | {"hyperparameters": {"learning_rate": 10**400}}).encode(), 422),
    (json.dumps(BODY | {"hyperparameters": {"x" * 60_000: 1}}).encode(), 422),
    (b'{"name": "x", "base_model": "m", "dataset_path": "rows.jsonl", "hyperparameters": {"epochs": Infinity}}', 422),
    (LARGE, 413),
]


@pytest.mark.parametrize("body, status", BODIES, ids=range(len(BODIES)))
@pytest.mark.parametrize("whole", [True, False], ids=["with its length", "in pieces"])
def test_bodies_that_are_none(served, body, status, whole):
    sent = body if whole else (body[at : at + 1000] for at in range(0, len(body), 1000))
    answer = served.ask("POST", data=sent, headers={"Content-Type": "application/json"})
    found = is_problem(answer, status)
    assert len(found["detail"]) < 2000 and {job.id for job in served.jobs.all()} == {"busy", "ended"}


@pytest.mark.slow
def test_a_body_without_end_is_let_go(served, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 1)

    def endless():
        while True:
            yield b" " * 2**14

    try:
        answer = served.ask("POST", data=endless(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413
    except requests.ConnectionError:  # it was closed while more was sent
        pass
    assert served.ask("GET", "/busy").ok


PATHS = [
    "../rows.jsonl",
    "/etc/passwd",
    "rows.jsonl/../../x",
    "~/x",
    "a\0b",
    "x" * 5000,
    "/proc/self/environ",
    "/dev/zero",
]


@pytest.mark.parametrize("name", ["dataset_path", "output_dir", "base_model"])
@pytest.mark.parametrize("value", PATHS, ids=range(len(PATHS)))
def test_paths_of_others_are_refused(served, root, name, value):
    before = sorted(root.rglob("*"))
    found = is_problem(served.ask("POST", json=BODY | {name: value}), 422)
    assert [error["name"] for error in found["errors"]] == [name]
    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("job", ["none", "..%2fended", "%2e%2e", "busy%00", "busy.json", "x" * 3000, "%ff"])
def test_ids_are_no_paths(served, job):
    for method, path in [("GET", ""), ("GET", "/log"), ("GET", "/events"), ("DELETE", ""), ("POST", "/resume")]:
        assert served.ask(method, f"/{job}{path}").status_code in (404, 405)


@pytest.mark.parametrize("lines", ["0", "1001", "-1", "x", "1e3", "9" * 30])
def test_numbers_of_lines(served, lines):
    assert is_problem(served.ask("GET", "/busy/log", params={"lines": lines}), 422)["errors"][0]["name"] == "lines"


@pytest.mark.parametrize("place", ["3", "-1", "x", "9" * 14, "9" * 15, "9" * 40, "²", "", "1.5", "0"])
def test_places_in_a_stream_that_are_none_are_its_beginning(served, place):
    with served.ask("GET", "/ended/events", headers={"Last-Event-ID": place.encode()}, stream=True) as answer:
        assert answer.status_code == 200 and answer.text.count("event: progress") == 3
        assert answer.text.endswith("\n\n") and answer.text.count("event: end") == 1


def test_it_says_no_more_than_it_has_to(served):
    answer = served.ask("GET", "/none")
    assert "server" not in answer.headers and answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


def test_headers_without_end_are_not_kept(served):
    assert raw(served, "GET / HTTP/1.1", *[f"X-{number}: {'x' * 1000}" for number in range(200)])[9:12] == b"400"


def test_of_many_who_ask_for_one_name_one_gets_it(served, root, monkeypatch):
    started = []
    monkeypatch.setattr(TrainingRun, "start", lambda self, *given, **named: started.append(self.folder))
    body = BODY | {"name": "wanted"}
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: served.ask("POST", json=body).status_code, range(16)))
    assert sorted(found) == [201] + [409] * 15 and started == [root / "jobs" / "wanted"]
    assert served.ask("DELETE", "/wanted").status_code == 204
    assert not (root / "jobs" / "wanted").exists()


def connect(served, stack, number, sent=b""):
    for _ in range(number):
        client = stack.enter_context(socket.create_connection(("127.0.0.1", served.port), 30))
        client.sendall(sent)
        yield client


@pytest.mark.slow
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /docs HTTP/1.1\r\nHost: local",
        f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{".encode(),
    ],
    ids=["silent", "half a head", "half a body"],
)
def test_a_flood_of_connections_keeps_nobody_out(served, sent):
    with ExitStack() as stack:
        for number, _ in enumerate(connect(served, stack, 400, sent)):
            if number % 50 == 0:
                assert served.ask("GET", "/ended").status_code == 200
        assert served.ask("GET", "/ended").status_code == 200
        assert len(served.server.server_state.connections) <= connections.MOST


@pytest.mark.slow
def test_who_sends_no_whole_request_is_let_go(served, monkeypatch):
    monkeypatch.setattr(connections, "REQUEST_SECONDS", 0.5)
    with ExitStack() as stack:
        for sent in (
            b"",
            b"GET / HT",
            f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n".encode(),
        ):
            (client,) = connect(served, stack, 1, sent)
            assert client.recv(9) in (b"", b"HTTP/1.1 ")
            while client.recv(2**16):
                pass


@pytest.mark.slow
def test_who_takes_nothing_of_a_stream_is_let_go_and_keeps_nobody_out(served, monkeypatch):
    monkeypatch.setattr(guard, "_SEND_SECONDS", 1)
    head = f"GET {JOBS}/busy/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    streams = served.server.config.app._app.state.streams
    with ExitStack() as stack:
        list(connect(served, stack, 5, head))
        wait_until(lambda: streams.open == 5)
        assert served.ask("GET", "/ended").status_code == 200
        wait_until(lambda: streams.open == 0)


@pytest.mark.slow
def test_streams_are_bounded_and_freed(served):
    streams = served.server.config.app._app.state.streams
    with ExitStack() as stack:
        for _ in range(events.MOST):
            stack.enter_context(served.ask("GET", "/busy/events", stream=True))
        wait_until(lambda: streams.open == events.MOST)
        assert is_problem(served.ask("GET", "/busy/events"), 503) and streams.open == events.MOST
        assert served.ask("GET", "/busy").ok
    wait_until(lambda: streams.open == 0)
    with served.ask("GET", "/busy/events", stream=True) as again:
        assert again.status_code == 200


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)
