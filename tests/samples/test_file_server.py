"""The folder server: its files and nothing else, from this machine alone."""

import http.client
import os
import socket
import threading
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from vlmhelpers.samples.file_server import serve_folder


@pytest.fixture
def folder(tmp_path):
    """A folder with images, beside a file that is nobody's business."""
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "shown-not").mkdir()
    (tmp_path / "shown-not" / "secret.txt").write_text("secret")
    pictures = tmp_path / "shown"
    (pictures / "images").mkdir(parents=True)
    (pictures / "images" / "a b.jpg").write_bytes(b"picture")
    (pictures / "images" / "index.html").write_text("index")
    (pictures / "link.txt").symlink_to(tmp_path / "secret.txt")
    (pictures / "up").symlink_to(tmp_path)
    (pictures / "inner.jpg").symlink_to(pictures / "images" / "a b.jpg")
    return pictures


def ask(url, path):
    """The status and body of a GET for exactly this path, which no client has tidied."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


def test_files_are_served_with_and_without_a_with_block(folder):
    with serve_folder(folder) as server:
        assert server.url.startswith("http://127.0.0.1:")
        assert ask(server.url, "/images/a%20b.jpg") == (200, b"picture")
    server = serve_folder(str(folder))
    assert ask(server.url, "/inner.jpg?size=2")[0] == 200
    server.close()
    server.close()


@pytest.mark.parametrize(
    "path",
    ["/", "/images", "/images/", "/images/../images/", "/gone.jpg", "/../secret.txt", "/%2e%2e/secret.txt", "/link.txt"]
    + ["/images/..%2f..%2fsecret.txt", "/up/secret.txt", "/up/shown-not/secret.txt", "/../shown-not/secret.txt"]
    + ["//etc/hostname", "/%2fetc/hostname", "/a%00b", "/..%5csecret.txt"],
)
def test_no_listing_and_no_file_outside(folder, path):
    with serve_folder(folder) as server:
        status, body = ask(server.url, path)
    assert status == 404 and b"secret" not in body and b"index" not in body


def test_a_closed_server_answers_no_more(folder):
    server = serve_folder(folder)
    server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{server.url}/inner.jpg", timeout=5)


def test_it_is_quiet_also_when_a_client_hangs_up(folder, capfd):
    (folder / "large.jpg").write_bytes(bytes(20_000_000))
    with serve_folder(folder) as server:
        ask(server.url, "/images/a%20b.jpg")
        ask(server.url, "/gone.jpg")
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)) as client:
            client.sendall(b"GET /large.jpg HTTP/1.0\r\n\r\n")
            client.recv(10)
        ask(server.url, "/inner.jpg")
    assert capfd.readouterr() == ("", "")


def test_it_listens_on_this_machine_only_and_keeps_no_process_alive(folder):
    before = set(threading.enumerate())
    with serve_folder(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert all(thread.daemon for thread in set(threading.enumerate()) - before)


def test_several_files_at_once(folder):
    with serve_folder(folder) as server:
        parts = urlsplit(server.url)
        with socket.create_connection((parts.hostname, parts.port)):  # a client that never asks
            assert ask(server.url, "/inner.jpg") == (200, b"picture")


def test_a_folder_that_is_not_there_is_an_error(folder):
    for path in (folder / "gone", folder / "inner.jpg"):
        with pytest.raises(NotADirectoryError, match=os.path.basename(path)):
            serve_folder(path)
