"""Images beside a file of rows: where they go, what is there already, and what is left of a failure."""

import errno
import io
import os

import pytest
from datasets import Dataset
from PIL import Image

from vlmhelpers.data.images_beside import images_beside
from vlmhelpers.data.readers.jsonl_reader import read_jsonl, write_jsonl
from vlmhelpers.data.schema import FEATURES, make_row


def encoded(color, image_format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, image_format)
    return file.getvalue()


@pytest.fixture
def place(tmp_path):
    """Makes files of images and a Dataset of them, a row each; gives what is written beside and read again."""

    def written(*images):
        rows = []
        for image in images:
            if isinstance(image, str):
                image = {"path": str(tmp_path / image), "bytes": None}
            rows.append(make_row("What?", "A bag.", [image]))
        dataset = Dataset.from_list(rows, features=FEATURES)
        with images_beside(dataset, tmp_path / "out" / "rows_images") as (moved, number):
            write_jsonl(moved, tmp_path / "out" / "rows.jsonl")
        colors = [row["images"][0].getpixel((0, 0)) for row in read_jsonl(tmp_path / "out" / "rows.jsonl")]
        return number, colors, sorted(os.listdir(tmp_path / "out" / "rows_images"))

    return written


def put(folder, **colors):
    for name, color in colors.items():
        path = folder / name.replace("__", "/").replace("_png", ".png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(color))


RED, BLUE, LIME = (255, 0, 0), (0, 0, 255), (0, 255, 0)


def test_names_stay_where_they_are_free_and_nothing_is_there_twice(place, tmp_path):
    put(tmp_path, a__1_png="red", b__1_png="blue", c__1_png="red", a__2_png="lime")
    first = place("a/1.png", "b/1.png", "c/1.png", "a/2.png", "a/1.png")
    number, colors, names = first
    assert (number, colors) == (3, [RED, BLUE, RED, LIME, RED])
    assert names[1:] == ["1.png", "2.png"] and names[0].startswith("1-") and len(names) == 3
    assert os.path.samefile(tmp_path / "a" / "1.png", tmp_path / "out" / "rows_images" / "1.png")
    assert place("a/1.png", "b/1.png", "c/1.png", "a/2.png", "a/1.png") == first


def test_a_file_that_is_there_is_not_overwritten(place, tmp_path):
    put(tmp_path, a__1_png="red", out__rows_images__1_png="blue")
    number, colors, names = place("a/1.png")
    assert (number, colors, len(names)) == (1, [RED], 2)
    assert (tmp_path / "out" / "rows_images" / "1.png").read_bytes() == encoded("blue")


def test_images_inside_the_folder_stay_where_they_are(tmp_path):
    put(tmp_path, out__images__1_png="red", a__1_png="blue")
    paths = [str(tmp_path / name) for name in ("out/images/1.png", "a/1.png")]
    dataset = Dataset.from_list([make_row("What?", "A bag.", paths)], features=FEATURES)
    with images_beside(dataset, tmp_path / "out" / "rows_images") as (moved, number):
        images = moved.with_format("arrow")["images"].to_pylist()[0]
    assert number == 1 and [image["path"] for image in images] == [
        paths[0],
        str(tmp_path / "out" / "rows_images" / "1.png"),
    ]


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
def test_an_embedded_image_gets_a_name(place, image_format):
    image = {"path": None, "bytes": encoded("red", image_format)}
    number, _, (name,) = place(image, image)
    assert number == 1 and name.endswith(f".{image_format.lower()}")


@pytest.mark.parametrize(
    "name", ["a b%20c.png", "\u540d\u524d.png", "a\\b.png", "x" * 250 + ".png", ".png", "no ending"]
)
def test_names_that_readers_take(place, tmp_path, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(encoded("red"))
    assert place(f"in/{name}")[:2] == (1, [RED])


def test_another_disk_gets_a_copy(place, tmp_path, monkeypatch):
    def no_link(*_):
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(os, "link", no_link)
    put(tmp_path, a__1_png="red")
    assert place("a/1.png") == (1, [RED], ["1.png"])
    assert not os.path.samefile(tmp_path / "a" / "1.png", tmp_path / "out" / "rows_images" / "1.png")


def test_a_failure_leaves_what_was_there(place, tmp_path):
    put(tmp_path, a__1_png="red", a__2_png="blue")
    place("a/1.png")
    with pytest.raises(FileNotFoundError, match="gone.png"):
        place("a/2.png", "a/gone.png")
    assert sorted(os.listdir(tmp_path / "out")) == ["rows.jsonl", "rows_images"]
    assert os.listdir(tmp_path / "out" / "rows_images") == ["1.png"]


def test_a_failure_leaves_no_folder(place, tmp_path):
    put(tmp_path, a__1_png="red")
    with pytest.raises(FileNotFoundError):
        place("a/1.png", "a/gone.png")
    assert os.listdir(tmp_path / "out") == []
