"""Downloads from a server that misbehaves: every URL gets a picture or a reason, soon, and the cache stays whole."""

import errno
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest
from misbehaving_server import GOOD, misbehaving_server
from PIL import Image, ImageFile

from vlmhelpers.common.digests import digest
from vlmhelpers.common.files import temporary_name
from vlmhelpers.data.download import downloader, safe_http
from vlmhelpers.data.download.downloader import cached_images, download_images
from vlmhelpers.data.download.safe_http import DownloadRules, ImageClient, is_public

# Short, for tests; the server's answers take 1 to 20 seconds where it means to be slow.
RULES = {
    "private_hosts": ("127.0.0.1",),
    "read_timeout": 0.4,
    "total_timeout": 0.8,
    "max_bytes": 1_000_000,
    "attempts": 2,
    "backoff": 0.02,
    "pause": 0,
}
PATIENT = RULES | {"read_timeout": 5, "total_timeout": 5}


@pytest.fixture
def server():
    with misbehaving_server() as running:
        yield running


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def get(server, cache):
    """Downloads one path of the server: the result and the number of requests for it."""

    def download_one(path, **rules):
        url = f"{server.url}/{path}"
        (result,) = download_images([url], cache, **RULES | rules).values()
        return result, server.requests[f"/{path}"]

    return download_one


def is_whole(path):
    with Image.open(path) as image:
        image.load()
    return True


def resolver(*answers):
    """A getaddrinfo that gives each of the addresses once, whatever is asked, and then fails."""
    left = list(answers)

    def getaddrinfo(host, port, *_, **__):
        family = socket.AF_INET6 if ":" in left[0] else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (left.pop(0), port))]

    return getaddrinfo


# Good pictures


def test_a_picture_is_stored_under_the_suffix_of_its_format(get, cache):
    path, requests = get("good/bag.jpg")
    assert os.listdir(cache) == [os.path.basename(path)] and path.endswith(".png")
    assert os.path.isabs(path) and open(path, "rb").read() == GOOD
    assert requests == 1
    assert get("jpeg/bag.png")[0].endswith(".jpg") and get("progressive")[0].endswith(".jpg")


@pytest.mark.parametrize("path", ["octet", "chunked", "untilclosed", "gzip", "good?a=1&b=%20c d", "good/\u00fcber.png"])
def test_good_pictures_in_any_wrapping_are_taken(server, cache, path):
    (result,) = download_images([f"{server.url}/{path}"], cache, **RULES).values()
    assert isinstance(result, str) and open(result, "rb").read() == GOOD


def test_each_distinct_url_is_asked_for_once_and_never_again(server, cache):
    urls = [f"{server.url}/good/{number % 5}" for number in range(30)]
    results = download_images(iter(urls), cache, **RULES)
    assert list(results) == urls[:5] and len(set(results.values())) == 5
    assert server.requests.total() == 5
    assert download_images(urls, cache, **RULES) == results == cached_images(urls, cache)
    assert server.requests.total() == 5


def test_it_names_itself_and_sends_neither_cookies_nor_passwords(server, cache, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    paths = ["cookie", "good", "password"]
    download_images([f"{server.url}/{path}" for path in paths], cache, **RULES | {"connections": 1})
    assert [path for path, _ in server.times] == ["/cookie", "/good", "/password"]
    for headers in server.headers:
        assert headers["User-Agent"].startswith("vlmhelpers/")
        assert not {"Cookie", "Authorization", "Proxy-Authorization"} & set(headers)


def test_connections_are_used_again(server, cache):
    download_images([f"{server.url}/good/{number}" for number in range(20)], cache, **RULES | {"connections": 2})
    assert server.requests.total() == 20 and server.connections <= 2


# Answers that hold no picture


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("unknown", "not found: HTTP 404 Not Found"),
        ("gone", "not found: HTTP 410 Gone"),
        ("forbidden", "refused: HTTP 403 Forbidden"),
        ("password", "refused: HTTP 401 Unauthorized"),
        ("nothing", "refused: HTTP 206 Partial Content"),
        ("nowhere", "refused: HTTP 302 Found"),
        ("lengths", "download failed: Content-Length contained multiple unmatching values"),
        ("html", "not an image: it is a web page"),
        ("text", "not an image: it is text, 'Sorry, sold out'"),
        ("empty", "empty file: 0 bytes"),
        ("cut", "truncated or damaged image: "),
        ("pixels", "too many pixels: "),
        ("scans", "too slow to decode: a JPEG of more than 500 scans"),
        ("huge", "download too large: over 1,000,000 bytes"),
        ("headers", "download too large: over 1,000,000 bytes"),
        ("endless", "download too large: over 1,000,000 bytes"),
        ("endlesschunks", "download too large: over 1,000,000 bytes"),
        ("gzipbomb", "download too large: over 1,000,000 bytes"),
        ("nogzip", "download failed: "),
    ],
)
def test_what_no_attempt_can_mend_is_asked_for_once(get, cache, path, reason):
    result, requests = get(path, **PATIENT)
    assert isinstance(result, tuple) and result[0].startswith(reason) and result[1]
    assert requests == 1 and not os.listdir(cache)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("broken", "server busy or broken: HTTP 500 Internal Server Error"),
        ("short", "download failed: ('Connection broken: IncompleteRead"),
        ("cutchunks", "download failed: "),
        ("reset", "download failed: ('Connection aborted.', RemoteDisconnected"),
        ("garbage", "download failed: "),
        ("endlesschunksize", "download failed: "),
        ("hang", "timeout: "),
    ],
)
def test_what_may_pass_is_tried_again_as_often_as_allowed(get, cache, path, reason):
    result, requests = get(path, attempts=3, total_timeout=3)
    assert isinstance(result, tuple) and result[0].startswith(reason) and result[1]
    assert requests == 3 and not os.listdir(cache)


def test_a_reason_holds_nothing_that_a_terminal_obeys(get):
    assert get("garbage")[0][0].isprintable()


def test_the_limit_of_pixels_is_a_rule(get):
    assert get("good", max_pixels=32 * 24 - 1)[0][0].startswith("too many pixels: ")
    assert isinstance(get("good", max_pixels=32 * 24)[0], str)


@pytest.mark.parametrize("path", ["flaky", "resetonce", "shortonce"])
def test_a_failure_that_passes_costs_one_more_request(get, path):
    result, requests = get(path)
    assert isinstance(result, str) and requests == 2


def test_a_trickle_of_bytes_ends_with_the_total_timeout(server, cache):
    started = time.monotonic()
    paths = ["drip", "dripheader", "dripchunksize", "continue"]
    results = download_images([f"{server.url}/{path}" for path in paths], cache, **RULES)
    assert [reason for reason, _ in results.values()] == ["timeout: not complete after 0.8 s"] * 4
    assert all(server.requests[f"/{path}"] == 1 for path in paths)
    assert time.monotonic() - started < 3


def test_the_total_timeout_is_shared_by_the_attempts(get):
    started = time.monotonic()
    result, requests = get("hang", attempts=50)
    assert result[0].startswith("timeout: ") and requests == 2  # 0.4 s each
    assert time.monotonic() - started < 3


def test_a_picture_of_exactly_the_limit_is_taken(server, cache):
    url = f"{server.url}/good"
    assert isinstance(download_images([url], cache, **RULES | {"max_bytes": len(GOOD) - 1})[url], tuple)
    assert isinstance(download_images([url], cache, **RULES | {"max_bytes": len(GOOD)})[url], str)


def test_a_picture_is_judged_strictly_whatever_the_user_lets_pillow_do(get, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert get("cut")[0][0].startswith("truncated or damaged image")


def test_a_failure_is_not_remembered(get):
    assert isinstance(get("flaky", attempts=1)[0], tuple)
    assert isinstance(get("flaky", attempts=1)[0], str)


# URLs


@pytest.mark.parametrize(
    "url",
    ["N.A.", "", "www.shop.example/a.jpg", "//shop.example/a.jpg", "file:///etc/hostname", "ftp://h/a.jpg", "http://"]
    + ["data:image/png;base64,AAAA", "http:///a.jpg", "http://h:99999/", "http://a b/", "http://[::1", None, 7.5],
)
def test_what_is_no_web_address_is_refused(cache, url):
    (result,) = download_images([url], cache, **RULES).values()
    assert result[0].startswith("not a URL") and "http" in result[1]


def test_a_password_in_a_url_is_neither_sent_nor_shown(server, cache):
    url = server.url.replace("//", "//me:secret@") + "/good"
    (result,) = download_images([url], cache, **RULES).values()
    assert result[0].startswith("password in the URL") and "secret" not in " ".join(result)
    assert not server.requests


def test_line_breaks_in_a_url_add_no_header(server, cache):
    download_images([f"{server.url}/good\r\nX-Evil: 1\r\n"], cache, **RULES)
    assert all("X-Evil" not in headers for headers in server.headers)


# Redirects and addresses


def test_redirects_are_followed_to_a_limit(get, server):
    assert isinstance(get("to?/good/here")[0], str)
    assert isinstance(get(f"to?{server.url}/to?/good/there")[0], str)
    result, requests = get("loop", max_redirects=3)
    assert result[0] == "download failed: too many redirects" and requests == 4


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("http://127.0.0.2:{port}/good", "address not allowed: 127.0.0.2 "),
        ("http://localhost:{port}/good", "address not allowed: localhost is "),
        ("http://[::1]:{port}/good", "address not allowed: "),
        ("http://[::ffff:127.0.0.1]:{port}/good", "address not allowed: "),
        ("http://2130706433:{port}/good", "address not allowed: "),
        ("http://0x7f.1:{port}/good", "address not allowed: "),
        ("http://0:{port}/good", "address not allowed: "),
        ("http://169.254.169.254/latest/meta-data", "address not allowed: 169.254.169.254 "),
        ("http://10.0.0.1/good", "address not allowed: 10.0.0.1 "),
        ("//127.0.0.2:{port}/good", "address not allowed: 127.0.0.2 "),
        ("http://me:secret@127.0.0.1:{port}/good", "password in the URL"),
        ("file:///etc/hostname", "not a URL"),
        ("ftp://127.0.0.1/good", "not a URL"),
        ("http://[::1", "not a URL"),
    ],
)
def test_a_redirect_may_not_lead_where_a_url_may_not(get, server, target, reason):
    result, _ = get("to?" + target.format(port=server.server_port))
    assert result[0].startswith(reason) and result[1]
    assert server.requests["/good"] == 0 and server.requests.total() == 1


def test_without_leave_no_private_host_is_asked(server, cache):
    url = f"{server.url}/good"
    (result,) = download_images([url], cache, **RULES | {"private_hosts": ()}).values()
    assert result[0] == "address not allowed: 127.0.0.1 is 127.0.0.1, which is not public"
    assert "private_hosts=('127.0.0.1',)" in result[1] and not server.requests and not server.connections


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1"]
    + ["240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "fe80::1%eth0", "fc00::1", "ff02::1"]
    + ["fec0::1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "2002:a00:1::", "::127.0.0.1", "2001:0:1::1", "100::1"],
)
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::"]
)
def test_addresses_that_are_public(address):
    assert is_public(address)


def test_a_name_that_changes_between_check_and_connection_reaches_only_what_was_checked(server, cache, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", resolver("93.184.216.34", "127.0.0.1", "127.0.0.1"))
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address[0]) or refuse())
    url = f"http://rebinding.example:{server.server_port}/good"
    (result,) = download_images([url], cache, **RULES).values()
    assert asked == ["93.184.216.34"] and result[0].startswith("address not allowed: rebinding.example is 127.0.0.1")


def refuse():
    raise ConnectionRefusedError("refused")


def test_one_private_address_among_public_ones_is_enough_to_refuse(cache, monkeypatch):
    both = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address) or refuse())
    (result,) = download_images(["http://two.example/a"], cache, **RULES).values()
    assert result[0] == "address not allowed: two.example is 10.0.0.1, which is not public" and not asked


def test_the_next_address_is_tried_and_the_host_keeps_its_name(server, cache, monkeypatch):
    with socket.socket() as bound:  # bound, but nobody listens
        bound.bind(("127.0.0.2", 0))
        ports = {"127.0.0.2": bound.getsockname()[1], "127.0.0.1": server.server_port}
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", pair) for pair in ports.items()]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        rules = RULES | {"private_hosts": ("Shop.example",)}
        (result,) = download_images(["http://shop.EXAMPLE:81/good"], cache, **rules).values()
    assert isinstance(result, str) and server.headers[0]["Host"] == "shop.example:81"


def test_over_tls_the_host_keeps_its_name_and_has_to_prove_it(monkeypatch, cache):
    names, context = [], ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _, name, __: names.append(name) or ssl.ALERT_DESCRIPTION_INTERNAL_ERROR
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def greet():
            connection, _ = listening.accept()
            with connection, pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

        thread = threading.Thread(target=greet)
        thread.start()
        monkeypatch.setattr(socket, "getaddrinfo", resolver("127.0.0.1"))
        rules = RULES | {"private_hosts": ("shop.example",), "attempts": 1}
        url = f"https://shop.example:{listening.getsockname()[1]}/good"
        (result,) = download_images([url], cache, **rules).values()
        thread.join(5)
    assert names == ["shop.example"] and result[0].startswith("download failed: ")


def test_a_host_that_never_shakes_hands_is_a_timeout(cache):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/good"
        (result,) = download_images([url], cache, **RULES | {"read_timeout": 0.2}).values()
    assert result[0].startswith("timeout: ")


@pytest.fixture(scope="module")
def tls_context(tmp_path_factory):
    """An ssl.SSLContext for a server named shop.example, and the file of its certificate."""
    if not shutil.which("openssl"):
        pytest.skip("needs the program openssl for a certificate")
    key, certificate = (str(tmp_path_factory.mktemp("tls") / name) for name in ("key", "certificate"))
    options = "-nodes -newkey ec -pkeyopt ec_paramgen_curve:P-256 -subj /CN=shop.example".split()
    options += ["-addext", "subjectAltName=DNS:shop.example", "-keyout", key, "-out", certificate]
    subprocess.run(["openssl", "req", "-x509", *options], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate


def test_over_tls_the_same_limits_hold(tls_context, cache, monkeypatch):
    context, certificate = tls_context
    ImageClient(DownloadRules()).connection_pool_kw["ssl_context"].load_verify_locations(certificate)
    local = socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
    rules = RULES | {"private_hosts": ("shop.example", "other.example")}
    with misbehaving_server(context) as server:
        found = [(*entry[:4], ("127.0.0.1", server.server_port)) for entry in local]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        names = ["good", "drip", "endless", "short"]
        results = download_images([f"https://shop.example/{name}" for name in names], cache, **rules)
        good, *others = results.values()
        (other,) = download_images(["https://other.example/good"], cache, **rules).values()
    assert open(good, "rb").read() == GOOD
    assert [reason.partition("(")[0] for reason, _ in others] == [
        "timeout: not complete after 0.8 s",
        "download too large: over 1,000,000 bytes",
        "download failed: ",
    ]
    assert "certificate verify failed" in other[0] and server.requests["/good"] == 1


def test_a_certificate_nobody_vouches_for_is_refused():
    context = ImageClient(DownloadRules()).connection_pool_kw["ssl_context"]
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
    assert context.cert_store_stats()["x509_ca"] > 50


def test_a_name_that_cannot_be_looked_up_is_tried_again(cache, monkeypatch):
    asked = []

    def fail(host, *_, **__):
        asked.append(host)
        raise socket.gaierror(socket.EAI_AGAIN, "no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    (result,) = download_images(["http://nowhere.example/a"], cache, **RULES).values()
    assert result[0].startswith("download failed: ") and "no answer" in result[0]
    assert asked == ["nowhere.example"] * 2


# Rate limits


def test_at_most_so_many_requests_at_once_to_one_host(server, cache):
    urls = [f"{server.url}/slow/{number}" for number in range(24)]
    download_images(urls, cache, **PATIENT | {"connections": 12, "per_host": 3})
    assert server.requests.total() == 24 and server.most_at_once == 3 and server.connections <= 3


def test_at_most_so_many_requests_at_once_in_all(server, cache):
    urls = [f"{server.url}/slow/{number}" for number in range(12)]
    download_images(urls, cache, **PATIENT | {"connections": 2, "per_host": 6})
    assert server.most_at_once == 2


def test_images_start_with_pauses(server, cache):
    download_images([f"{server.url}/good/{number}" for number in range(6)], cache, **RULES | {"pause": 0.1})
    times = [when for _, when in server.times]
    assert times[-1] - times[0] > 0.4


@pytest.mark.slow
@pytest.mark.parametrize("path", ["busy", "busydate"])
def test_retry_after_is_honored(server, get, path):
    result, requests = get(path, total_timeout=5)
    assert isinstance(result, str) and requests == 2
    assert server.times[1][1] - server.times[0][1] > 0.9


def test_a_retry_after_without_end_is_honored_up_to_the_limit(server, get):
    result, requests = get("busyforever", max_wait=0.3)
    assert isinstance(result, str) and requests == 2
    assert 0.25 < server.times[1][1] - server.times[0][1] < 3


def test_the_pauses_between_attempts_grow(server, get):
    get("broken", attempts=5, backoff=0.05)
    times = [when for _, when in server.times]
    assert times[4] - times[3] > 0.19  # at least half of 0.05 s, doubled three times


def test_random_numbers_of_the_user_stay_as_they_were(get):
    import random

    random.seed(1)
    state = random.getstate()
    get("flaky")
    assert random.getstate() == state


# The cache


DAMAGES = {
    "emptied": lambda data: b"",
    "a web page": lambda data: b"<html>",
    "a header alone": lambda data: data[:8],
    "cut in half": lambda data: data[: len(data) // 2],
    "its end zeroed": lambda data: data[:-200] + bytes(200),
    "all zeroed": lambda data: bytes(len(data)),
    "a bit flipped": lambda data: data[:-30] + bytes([data[-30] ^ 1]) + data[-29:],
    "another picture": lambda data: data + b"more",
}


def damage(path, name):
    with open(path, "rb") as file:
        data = file.read()
    with open(path, "wb") as file:
        file.write(DAMAGES[name](data))


@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_file_in_the_cache_is_downloaded_again(get, cache, name):
    path, _ = get("good")
    damage(path, name)
    assert get("good") == (path, 2) and open(path, "rb").read() == GOOD


@pytest.fixture
def early(get, cache):
    """A file of the cache under the name that it had in earlier versions, without a digest."""
    path, _ = get("good")
    early = path.replace(f".{digest(GOOD)}", "")
    os.rename(path, early)
    assert early != path
    return early, path


def test_a_whole_file_of_an_earlier_version_is_taken_and_keeps_its_name(get, early):
    old, new = early
    assert get("good") == (new, 1) == get("good")
    assert open(old, "rb").read() == GOOD  # rows that were stored name it
    damage(old, "a bit flipped")  # both names are one file
    assert get("good") == (new, 2) and open(new, "rb").read() == GOOD and not os.path.exists(old)


@pytest.mark.parametrize("name", ["cut in half", "all zeroed", "emptied"])
def test_a_broken_file_of_an_earlier_version_is_downloaded_again(get, early, name):
    damage(early[0], name)
    assert get("good") == (early[1], 2) and not os.path.exists(early[0])


def test_files_of_an_earlier_version_are_taken_where_the_disk_has_no_links(get, early, monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: os.open("/nowhere/at/all", 0))
    assert get("good") == (early[0], 1)


def test_a_cache_that_the_machine_cannot_read_is_an_error_and_stays(get, server, cache, monkeypatch):
    path, _ = get("good")

    def fail(path):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(downloader, "file_digest", fail)
    for find in (cached_images, download_images):
        with pytest.raises(OSError, match="Too many open files.*not at fault"):
            find([f"{server.url}/good"], cache)
    assert os.path.exists(path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
@pytest.mark.parametrize("host", ["127.0.0.1", "nowhere.example"])
def test_without_sockets_it_stops_and_blames_no_url(cache, monkeypatch, number, host):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(safe_http, "_Socket", fail)
    if host == "nowhere.example":
        monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(OSError, match=r"Raise the limit of open files") as caught:
        download_images([f"http://{host}:9/a"], cache, **RULES)
    assert caught.value.errno == number


def test_what_is_not_in_the_cache_is_said_without_a_request(server, cache):
    url = f"{server.url}/good"
    assert cached_images([url], cache)[url] == (
        "not downloaded: it is not in the cache",
        "read the table again with download=True",
    )
    assert not server.requests


def test_temporary_files_of_killed_runs_are_no_pictures_and_vanish(get, cache):
    path, _ = get("good")
    os.unlink(path)
    code = "import sys; from vlmhelpers.common.files import temporary_name; print(temporary_name(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    ended, own = done.stdout.strip(), temporary_name(path)
    for temporary in (ended, own):
        with open(temporary, "wb") as file:
            file.write(GOOD[:20])
    assert get("good") == (path, 2)
    assert sorted(os.listdir(cache)) == sorted(map(os.path.basename, [path, own]))


def test_files_of_other_programs_in_the_folder_stay(get, cache):
    cache.mkdir()
    film, folder = cache / "film.mkv.part", cache / "folder.part"
    film.write_bytes(b"half")
    folder.mkdir()
    for path in (film, folder):
        os.utime(path, (0, 0))
    assert isinstance(get("good")[0], str)
    assert film.read_bytes() == b"half" and folder.is_dir()


def test_a_pipe_or_a_folder_under_the_name_of_a_picture_is_not_opened(get, server, cache, monkeypatch):
    url, (path, _) = f"{server.url}/good", get("good")
    os.unlink(path)
    os.mkfifo(path)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    (result,) = cached_images([url], cache).values()
    monkeypatch.undo()
    assert isinstance(result, tuple)
    assert get("good") == (path, 2) and is_whole(path)
    os.unlink(path)
    os.mkdir(path.replace(".png", ".jpg"))
    assert get("good") == (path, 3)


def test_without_anything_to_download_no_folder_is_made(cache):
    assert download_images([], cache) == {}
    cached_images(["http://shop.example/a"], cache)
    assert not cache.exists()


def test_the_cache_lies_in_the_users_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    (path,) = download_images([f"{server.url}/good"], **RULES).values()
    assert os.path.dirname(path) == str(tmp_path / "xdg" / "vlmhelpers" / "pictures")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    (path,) = download_images([f"{server.url}/good"], **RULES).values()
    assert os.path.dirname(path) == str(tmp_path / ".cache" / "vlmhelpers" / "pictures")


def test_a_folder_that_cannot_be_written_is_an_error(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        download_images([f"{server.url}/good"], tmp_path / "file", **RULES)


def test_a_full_disk_is_an_error_and_leaves_no_temporary_file(server, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        download_images([f"{server.url}/good"], cache, **RULES)
    assert not os.listdir(cache)


@pytest.mark.parametrize("rules", [{"attempts": 0}, {"connections": 0}, {"per_host": 0}])
def test_rules_that_allow_nothing_are_an_error(cache, rules):
    with pytest.raises(ValueError, match="1 or more"):
        download_images([], cache, **rules)


def test_a_lone_url_is_an_error(cache):
    with pytest.raises(TypeError, match="list of URLs"):
        download_images("http://127.0.0.1/a", cache)


# Interruptions

SCRIPT = """
import sys
from vlmhelpers.data.download.downloader import download_images
urls = [f"{sys.argv[1]}/{'hang' if number == 7 else 'slow'}/{number}" for number in range(100)]
print("ready", flush=True)
try:
    download_images(urls, sys.argv[2], private_hosts=("127.0.0.1",), connections=4, pause=0, read_timeout=30)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_download_ends_at_once_and_goes_on_where_it_was(server, cache, signal_number):
    command = [sys.executable, "-c", SCRIPT, server.url, str(cache)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, preexec_fn=heed_interrupts, **pipes)
    assert process.stdout.readline() == "ready\n"
    wait_for(lambda: cache.is_dir() and len(finished(cache)) > 20)
    sent = time.monotonic()
    process.send_signal(signal_number)
    printed, errors = process.communicate(timeout=20)
    assert time.monotonic() - sent < 10  # the hanging request takes twice that
    assert (printed == "interrupted\n") == (signal_number == signal.SIGINT) and "Traceback" not in errors
    pictures = finished(cache)
    assert len(pictures) > 20 and all(map(is_whole, pictures))

    before = server.requests.total()
    urls = [f"{server.url}/slow/{number}" for number in range(100) if number != 7]
    results = download_images(urls, cache, **PATIENT | {"connections": 16, "per_host": 16})
    assert all(isinstance(path, str) and is_whole(path) for path in results.values())
    assert server.requests.total() - before == 99 - len(pictures)


def heed_interrupts():
    """A shell lets what it starts in the background ignore SIGINT, and all that this starts in turn."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def finished(cache):
    """The pictures in the cache that are whole."""
    return [path for path in cache.iterdir() if path.suffix != ".part"]


def wait_for(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_two_downloads_at_once_do_not_disturb_each_other(server, cache):
    urls = [f"{server.url}/good/{number}" for number in range(40)]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(download_images(urls, cache, **PATIENT))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == results[2] and all(map(is_whole, results[0].values()))
    assert len(os.listdir(cache)) == 40


def test_after_an_interruption_nothing_is_stored(server, cache, monkeypatch):
    decode, decoding, ended = downloader.inspect_apart, threading.Event(), threading.Event()
    monkeypatch.setattr(downloader, "inspect_apart", lambda *image: decoding.set() or ended.wait(5) and decode(*image))

    def interrupt(*_, **__):
        decoding.wait(5)
        raise KeyboardInterrupt

    monkeypatch.setattr(downloader, "tqdm", interrupt)
    threads = set(threading.enumerate())
    with pytest.raises(KeyboardInterrupt):
        download_images([f"{server.url}/good"], cache, **RULES)
    ended.set()
    wait_for(lambda: not any("worker" in t.name for t in set(threading.enumerate()) - threads))
    assert server.requests.total() == 1 and not os.listdir(cache)


def test_threads_that_cannot_be_started_are_the_machines_fault(get, monkeypatch):
    def refuse(_):
        raise AttributeError("'DummyProcess' object has no attribute 'terminate'") from RuntimeError(
            "can't start new thread"
        )

    monkeypatch.setattr("vlmhelpers.data.download.downloader.ThreadPool", refuse)
    with pytest.raises(OSError, match="threads cannot be started .end other programs, or pass fewer connections"):
        get("good")
