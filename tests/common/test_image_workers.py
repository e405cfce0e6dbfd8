"""What one image may cost: refused before it is decoded where that can be told, ended in a process of its own else."""

import errno
import io
import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vlmhelpers.common import image_costs, image_workers
from vlmhelpers.common.image_workers import inspect_all, inspect_apart, open_apart
from vlmhelpers.common.images import ImageFacts, UnusableImage, image_identity, inspect_image, open_image


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def noise(side, channels=3):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8))


def reason_of(read, source, **options):
    with pytest.raises(UnusableImage) as caught:
        read(source, **options)
    return caught.value.reason


PICTURE = encoded(noise(40), "PNG")


# Refused before they are decoded


def many_scans(side, scans):
    """A progressive JPEG whose last scan is repeated."""
    data = encoded(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + data[-2:]


def tiles(count):
    """A TIFF of that many tiles of one pixel, all the same."""
    offsets, sizes = (np.full(count, value, "<u4").tobytes() for value in (8, 1))
    tags = [(256, 500), (257, count // 500), (258, 8), (259, 1), (262, 1), (277, 1), (322, 1), (323, 1)]
    lists = [(324, count, 134), (325, count, 134 + 4 * count)]
    entries = [*((tag, 1, value) for tag, value in tags), *lists]
    directory = b"".join(struct.pack("<HHII", tag, 4, number, value) for tag, number, value in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + directory + bytes(4) + offsets + sizes


def many_tags(count):
    """A BigTIFF of one tag, that many times."""
    return struct.pack("<2s3H2Q", b"II", 43, 8, 0, 16, count) + struct.pack("<HHQQ", 65000, 4, 1, 1) * count + bytes(8)


def many_boxes(count, outside):
    """A JPEG 2000 with that many empty boxes before the header's box, or in it."""
    data, boxes = encoded(noise(16), "JPEG2000"), struct.pack(">I4s", 8, b"free") * count
    place = data.index(b"jp2h") - 4
    length = int.from_bytes(data[place : place + 4], "big") + len(boxes)
    header = boxes + data[place:] if outside else struct.pack(">I4s", length, b"jp2h") + boxes + data[place + 8 :]
    return data[:place] + header


EMPTY_CHUNK = bytes(4) + b"abCd" + zlib.crc32(b"abCd").to_bytes(4, "big")
A_JPEG = encoded(noise(16), "JPEG")
A_GIF = encoded(noise(16), "GIF")
COSTLY = {
    "its header has more than 500,000 pieces": lambda: A_JPEG[:2] + b"\xff" * 1_000_000 + A_JPEG[2:],
    "its header has more than 500,000 pieces ": lambda: A_JPEG[:20] + b"junk" * 200_000 + A_JPEG[20:],
    " its header has more than 500,000 pieces": lambda: PICTURE[:33] + EMPTY_CHUNK * 400_000 + PICTURE[33:],
    " its header has more than 500,000 pieces ": lambda: PICTURE[:-12] + EMPTY_CHUNK * 510_000 + PICTURE[-12:],
    "  its header has more than 500,000 pieces": lambda: A_GIF[:-2] + b"\1\0" * 300_000 + A_GIF[-2:],
    "its header has more than 500,000 pieces  ": lambda: many_tags(510_000),
    "   its header has more than 500,000 pieces": lambda: many_boxes(510_000, outside=True),
    "its header has more than 500,000 pieces   ": lambda: many_boxes(510_000, outside=False),
    "more than 200,000 tiles": lambda: tiles(200_500),
    "a JPEG of more than 500 scans": lambda: many_scans(64, 600),
    "a JPEG of more than 31 scans": lambda: many_scans(8000, 40),
    "a PPM with comments of more than 64 KiB": lambda: b"P6\n" + b"# so\n" * 20_000 + b"1 1\n255\n...",
    "a PPM written as text, of more than 4 MB": lambda: b"P3\n1000 1000\n255\n" + b"255 " * 3_000_000,
    "a PPM written as text, with more than 1000 comments": lambda: b"P3\n1 1\n255\n" + b"# x\n" * 1500 + b"1 2 3",
    "a PPM of unusual depth": lambda: b"P6\n1500 1500\n100\n" + b"." * 3 * 1500 * 1500,
}


@pytest.mark.slow  # a JPEG of 64 MP is made
@pytest.mark.parametrize("reason", COSTLY)
def test_what_takes_too_long_is_refused_by_what_it_is(tmp_path, monkeypatch, reason):
    (tmp_path / "slow.bin").write_bytes(COSTLY[reason]())
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    for source in (tmp_path / "slow.bin", COSTLY[reason]()):
        assert reason_of(open_image, source).startswith(f"too slow to decode: {reason.strip()}")


@pytest.mark.parametrize(("image_format", "side"), [("WEBP", 6500), ("AVIF", 8500), ("JPEG2000", 6000)])
def test_what_takes_too_much_memory_is_refused_by_its_size(monkeypatch, image_format, side):
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda _: pytest.fail("it was decoded"))
    data = encoded(noise(16), image_format)
    monkeypatch.setattr(Image.Image, "size", (side, side))
    reason = reason_of(open_image, data)
    assert reason.startswith(f"too much memory: {image_format} of {side**2 / 1e6:.0f} MP takes ")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"exif": b"Exif\0\0II*\0"}])
def test_a_webp_is_refused_before_memory_is_taken_for_it(monkeypatch, options):
    data = encoded(noise(40).crop((0, 0, 40, 30)), "WEBP", **options)
    assert image_costs._size_of_webp(data) == (40, 30)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    assert reason_of(open_image, data, max_pixels=1199).startswith("too many pixels: the header says 40 x 30, ")
    monkeypatch.setattr(image_costs, "BYTES", 14 * 1200 - 1)
    assert reason_of(open_image, data).startswith("too much memory: WEBP of 0 MP takes ")


def test_a_sparse_file_is_neither_read_nor_digested(tmp_path, monkeypatch):
    path = str(tmp_path / "huge.png")
    with open(path, "wb") as file:
        file.write(PICTURE)
        file.truncate(10**12)
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("it was opened"))
    assert reason_of(open_image, path) == "too large a file: 1,000,000 MB, more than 89,478,485 pixels can need"
    assert image_identity({"path": path, "bytes": None}) == image_identity({"path": path, "bytes": None})


def test_usual_files_are_not_costly():
    picture = noise(64)
    for image_format, options in [("JPEG", {"progressive": True}), ("PPM", {}), ("BMP", {}), ("TIFF", {}), ("GIF", {})]:
        assert open_image(encoded(picture, image_format, **options)).size == (64, 64)
    assert open_image(b"P6\n# by hand\n2 1\n255\n......").size == (2, 1)


# In a process of its own


def test_the_facts_are_those_of_this_process(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    facts = inspect_apart({"path": str(tmp_path / "a.png"), "bytes": None})
    assert facts == inspect_image(PICTURE) == inspect_apart(PICTURE) and isinstance(facts, ImageFacts)
    for source in (PICTURE[:-40], tmp_path / "gone.png", b"text"):
        assert reason_of(inspect_apart, source) == reason_of(inspect_image, source)


def test_a_path_begins_in_the_folder_that_is_current_when_it_is_asked_for(tmp_path, monkeypatch):
    for name, size in (("a", (40, 30)), ("b", (30, 40))):
        (tmp_path / name).mkdir()
        Image.new("RGB", size).save(tmp_path / name / "x.png")
        monkeypatch.chdir(tmp_path / name)
        assert inspect_apart("x.png").size == size
        assert reason_of(inspect_apart, tmp_path / name / "y.png") == "missing file: y.png"


def test_what_a_user_hands_over_is_opened_after_it_was_inspected_apart(monkeypatch):
    assert open_apart(PICTURE).size == (40, 40)
    monkeypatch.setattr(image_workers, "open_image", lambda _: pytest.fail("it was opened"))
    assert reason_of(open_apart, b"text") == "not an image: it is text, 'text'"


@pytest.mark.parametrize("kind", ["chunk", "memory"])
def test_a_picture_with_long_texts_is_not_called_damaged(kind):
    length = 2**20 + 1 if kind == "chunk" else 2**20
    texts = PngInfo()
    for number in range(1 if kind == "chunk" else 65):
        texts.add_text(f"k{number}", "a" * length, zip=True)
    error = pytest.raises(UnusableImage, inspect_apart, encoded(noise(8), "PNG", pnginfo=texts)).value
    assert error.reason.startswith("too much metadata: ") and "without its metadata" in error.remedy


def test_its_limit_of_pixels_is_an_argument():
    assert reason_of(inspect_apart, PICTURE, max_pixels=1599).startswith("too many pixels: ")
    assert inspect_apart(PICTURE, max_pixels=1600).size == (40, 40)


@pytest.fixture
def slow(monkeypatch):
    """A picture of millions of pieces, and processes that do not count them."""
    image_workers._WORKERS.end()
    code = (
        "import vlmhelpers.common.image_costs as c; c._PIECES = 10**9; from vlmhelpers.common.image_worker import main"
    )
    monkeypatch.setattr(image_workers, "_COMMAND", ["-c", f"{code}; main()"])
    yield PICTURE[:-12] + EMPTY_CHUNK * 5_000_000 + PICTURE[-12:]
    image_workers._WORKERS.end()


@pytest.mark.slow
def test_an_image_that_takes_too_long_is_ended_and_others_go_on(slow):
    before = inspect_apart(PICTURE)
    error = pytest.raises(UnusableImage, inspect_apart, slow).value
    assert error.reason == "too slow to decode: it takes more than 2 s" and "a baseline JPEG" in error.remedy
    assert inspect_apart(PICTURE) == before


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT"])
def test_a_decoder_that_crashes_is_a_fault_of_the_image(name):
    assert reason_of(asked_and_ended, name) == "truncated or damaged image: its decoder crashed"


@pytest.mark.parametrize(("name", "number"), [("SIGKILL", errno.ENOMEM), ("SIGTERM", None)])
def test_a_process_that_something_else_ends_is_no_fault_of_the_image(name, number):
    with pytest.raises(OSError) as caught:
        asked_and_ended(name)
    assert caught.value.errno == number


def asked_and_ended(name):
    """What is raised for an image whose process ends by a signal."""
    if os.name == "nt":
        pytest.skip("Windows has no signals")
    worker = image_workers._Worker()
    os.kill(worker.child.pid, getattr(signal, name))
    worker.child.wait()
    raise worker.ask([PICTURE], 10**6)[0]


@pytest.mark.slow
def test_memory_beyond_the_limit_is_refused(monkeypatch):
    if sys.platform != "linux":
        pytest.skip("only Linux counts address space")
    data = encoded(Image.new("1", (9000, 9000)), "PNG")  # 81 MB; 324 MB in RGB
    assert inspect_apart(data).size == (9000, 9000)
    code = (
        f"import vlmhelpers.common.image_costs as c; c.BYTES = {2**27}; from vlmhelpers.common.image_worker import main"
    )
    monkeypatch.setattr(image_workers, "_COMMAND", ["-c", f"{code}; main()"])
    worker = image_workers._Worker()
    assert worker.ask([data], 10**8)[0].reason == "too much memory: it takes more than 134 MB beyond its pixels"
    worker.end()


@pytest.mark.slow
def test_an_image_among_others_that_takes_too_long_is_the_only_one_refused(slow):
    images = [{"bytes": encoded(Image.new("RGB", (side, 9)), "PNG")} for side in range(1, 41)]
    images[20] = {"bytes": slow}
    images[30] = {"bytes": b"text"}
    with ThreadPoolExecutor(2) as threads:
        found = list(inspect_all(images, 10**6, threads))
    refused = {number: answer.reason for number, answer in enumerate(found) if isinstance(answer, UnusableImage)}
    assert refused == {20: "too slow to decode: it takes more than 2 s", 30: "not an image: it is text, 'text'"}
    assert [facts.size[0] for facts in found if isinstance(facts, ImageFacts)] == [
        *range(1, 21),
        *range(22, 31),
        *range(32, 41),
    ]


def test_several_threads_get_a_process_each_and_share_no_answers():
    pictures = [encoded(Image.new("RGB", (side, 3)), "PNG") for side in range(1, 41)]
    found = {}

    def inspect(numbers):
        for number in numbers:
            found[number] = inspect_apart(pictures[number]).size[0]

    threads = [threading.Thread(target=inspect, args=[range(first, 40, 4)]) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: number + 1 for number in range(40)}


def test_idle_processes_end(monkeypatch):
    monkeypatch.setattr(image_workers, "_IDLE", 0.1)
    monkeypatch.setattr(image_workers, "_WORKERS", workers := image_workers._Workers())
    inspect_apart(PICTURE)
    (worker,) = workers.idle
    while workers.idle:
        time.sleep(0.05)
    assert worker.child.wait(10) is not None and not psutil.pid_exists(worker.child.pid)
    assert inspect_apart(PICTURE).size == (40, 40)
    workers.end()


KILLED = """
import os, signal, sys
from vlmhelpers.common import image_workers
image_workers.inspect_apart(sys.stdin.buffer.read())
print(image_workers._WORKERS.idle[0].child.pid, flush=True)
if sys.argv[1] != "end":
    os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["end", "SIGTERM", "SIGKILL", "SIGINT"])
def test_processes_end_with_the_one_that_asks(how):
    if os.name == "nt" and how != "end":
        pytest.skip("Windows has no signals")
    done = subprocess.run([sys.executable, "-c", KILLED, how], input=PICTURE, capture_output=True, timeout=60)
    worker = int(done.stdout)
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("it still runs")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_a_forked_process_has_processes_of_its_own():
    inspect_apart(PICTURE)
    mine = {worker.child.pid for worker in image_workers._WORKERS.idle}
    child = os.fork()
    if child == 0:
        inspect_apart(PICTURE)
        theirs = {worker.child.pid for worker in image_workers._WORKERS.idle}
        image_workers._WORKERS.end()
        os._exit(0 if theirs and not theirs & mine else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert inspect_apart(PICTURE).size == (40, 40)


def test_the_worker_loads_little():
    code = (
        "import sys, vlmhelpers.common.image_worker; print(*sorted({'torch', 'datasets', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [] and done.returncode == 0, done.stderr


def test_limits_are_those_that_are_documented():
    assert (image_costs.SECONDS, image_costs.BYTES) == (2, 500_000_000)
