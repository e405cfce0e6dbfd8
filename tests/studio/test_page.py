"""The served page: who reaches it, what it shows, and how it ends."""

import os
import re
import signal
import socket
import sys
from pathlib import Path

import nbformat
import psutil
import pytest
import requests
import websocket
from served_page import ServedPage

from vlmhelpers.studio import page


def free_port():
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    found = ServedPage(tmp_path_factory.mktemp("served"), "runs", "--port", free_port())
    yield found
    found.end()


@pytest.fixture(scope="module")
def visit(served):
    """(session, HTML, kernel id) of a visitor with the token."""
    session = requests.Session()
    shown = session.get(served.url, params={"token": served.token}, timeout=120).text
    return session, shown, re.search(r'"kernelId": "([^"]+)"', shown)[1]


def test_cell_holds_what_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page._write_notebook("studio.ipynb", "it's\nmine", "zh")
    (cell,) = nbformat.read("studio.ipynb", 4).cells
    made = {}
    imports = {"Studio": lambda *given, **named: made.update(given=given, named=named)}
    exec(cell.source.replace("from vlmhelpers.studio import Studio", ""), imports)
    assert made == {"given": ("it's\nmine",), "named": {"locale": "zh"}}
    assert Path.cwd() == tmp_path


def test_without_voila(monkeypatch):
    monkeypatch.setitem(sys.modules, "voila.app", None)
    with pytest.raises(ValueError, match="pip install voila"):
        page.serve("runs")


@pytest.mark.parametrize("port", [0, 65536])
def test_ports_that_are_none(port):
    with pytest.raises(ValueError, match="from 1 to 65535"):
        page.serve("runs", port)


def test_the_browser_gets_the_token_by_a_file_of_this_user(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(page.webbrowser, "open", opened.append)
    url = "http://127.0.0.1:8866/?token=a&b"
    page._open(url, tmp_path / "open.html")
    assert opened == [(tmp_path / "open.html").as_uri()]
    text = (tmp_path / "open.html").read_text()
    assert url.replace("&", "&amp;") in text and "http-equiv" in text and url not in text
    assert os.name == "nt" or (tmp_path / "open.html").stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "", "guessed"])
def test_page_asks_for_its_token(served, token):
    answer = requests.get(served.url, params={"token": token}, allow_redirects=False, timeout=30)
    assert answer.status_code == 302 and answer.headers["Location"].startswith("/login")
    assert "username" not in str(answer.cookies)


@pytest.mark.slow
def test_kernel_asks_for_the_token(served, visit):
    session, _, kernel = visit
    address = f"127.0.0.1:{served.port}/api/kernels/{kernel}"
    assert requests.get(f"http://{address}", timeout=30).status_code == 403
    assert requests.delete(f"http://{address}", timeout=30).status_code == 403
    assert requests.post(f"{served.url}voila/api/shutdown/{kernel}", timeout=30).status_code == 403
    cookie = "; ".join(f"{name}={value}" for name, value in session.cookies.items())
    own = f"http://127.0.0.1:{served.port}"
    for cookies, origin, allowed in [(None, own, 0), (cookie, "http://example.com", 0), (cookie, own, 1)]:
        try:
            websocket.create_connection(f"ws://{address}/channels", cookie=cookies, origin=origin, timeout=30).close()
            assert allowed
        except websocket.WebSocketBadStatusException as refused:
            assert refused.status_code == 403 and not allowed


@pytest.mark.slow
def test_no_other_address_leads_there(served):
    listening = {c.laddr for c in psutil.Process(served.process.pid).net_connections("inet") if c.status == "LISTEN"}
    assert {address for address in listening if address.port == served.port} == {("127.0.0.1", served.port)}
    assert {address.ip for address in listening} == {"127.0.0.1"}


@pytest.mark.slow
def test_token_is_no_argument_of_a_process(served):
    assert served.token not in " ".join(psutil.Process(served.process.pid).cmdline())


@pytest.mark.slow
def test_page_shows_widgets_and_no_code(visit):
    _, shown, _ = visit
    assert "<title>Studio</title>" in shown and "widget-view+json" in shown
    assert "import Studio" not in shown and "Traceback" not in shown


@pytest.mark.slow
def test_errors_are_shown_and_ctrl_c_ends_the_page_its_kernel_and_its_folders(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        served = ServedPage(tmp_path, "f" * 300, "--port", taken.getsockname()[1], TMPDIR=str(tmp_path))
        assert served.port != taken.getsockname()[1]
    shown = requests.get(served.url, params={"token": served.token}, timeout=120).text
    assert "OSError" in shown and "ffff" in shown  # no file system takes such a name
    kernels = psutil.Process(served.process.pid).children(recursive=True)
    assert kernels and list(tmp_path.glob("studio-*")) and list(tmp_path.glob("voila_*"))
    assert served.end(signal.SIGINT) == 0
    assert not psutil.wait_procs(kernels, timeout=30)[1]
    assert not list(tmp_path.glob("studio-*")) and not list(tmp_path.glob("voila_*"))
