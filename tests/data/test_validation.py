"""Validation: what it rejects and repairs, in the memory and the time that many rows may take."""

import errno
import json
import os
import re
import subprocess
import sys

import pytest
from checked_rows import PICTURES, dataset_of, encoded, reasons, row_of
from datasets import Dataset
from PIL import Image

import vlmhelpers as vlm
from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.common.images import inspect_image
from vlmhelpers.data import validation
from vlmhelpers.data.duplicates import DuplicateFinder
from vlmhelpers.data.schema import FEATURES, make_pair, make_prompt, make_row
from vlmhelpers.samples.drawing import sample_products


def test_sound_rows_are_kept_as_they_are():
    several = make_row("Two?", "Yes.", PICTURES[2:4])
    dataset = dataset_of(row_of(0), row_of(1), make_row("Why?", "Because."), several)
    report = check_dataset(dataset)
    assert report.dataset.features == dataset.features
    assert list(report.dataset["messages"]) == list(dataset["messages"])
    assert report.rejected == report.repaired == report.warnings == []
    assert report.counts == {
        "read": 4, "kept": 4, "rejected": 0, "repaired": 0, "warned": 0, "by_reason": {},
        "by_split": {"": {"read": 4, "kept": 4, "rejected": 0}},
    }  # fmt: skip


def test_of_several_pictures_the_broken_one_is_named():
    data = encoded(PICTURES[0], "JPEG")
    report = check_dataset(dataset_of(make_row("Same?", "No.", [data, data[:-300]]), make_row("What?", "It.", [b""])))
    assert re.fullmatch(r"truncated or damaged image: .* \(image 2\)", report.rejected[0]["reason"])
    assert "image 1" not in report.rejected[1]["reason"]


def test_rows_are_named_by_the_number_in_their_source():
    dataset = dataset_of(row_of(0), make_row("What?", " ")).add_column("row", [17, 23])
    assert reasons(check_dataset(dataset).rejected) == [(23, "empty answer")]


def test_a_pixel_limit_of_ones_own():
    report = check_dataset(dataset_of(row_of(0)), max_pixels=48 * 48 - 1)
    assert report.counts["by_reason"] == {"too many pixels": 1}
    assert check_dataset(dataset_of(row_of(0)), max_pixels=48 * 48).counts["kept"] == 1
    with pytest.raises(ValueError, match="no step reads images of more than 89,478,485 pixels"):
        check_dataset(dataset_of(row_of(0)), max_pixels=10**9)  # the collator would refuse what it keeps


def test_each_picture_is_decoded_once(tmp_path, monkeypatch):
    PICTURES[0].save(tmp_path / "bag.png")
    decoded = []
    inspect = validation.inspect_all
    monkeypatch.setattr(
        validation, "inspect_all", lambda images, *options: decoded.extend(images) or inspect(images, *options)
    )
    path = str(tmp_path / "bag.png")
    rows = [make_row(f"Question {i}?", "Yes.", [{"path": path, "bytes": None}]) for i in range(500)]
    assert check_dataset(dataset_of(*rows)).counts["kept"] == 500
    assert len(decoded) == 1


def test_a_dataset_of_another_form_is_an_error():
    with pytest.raises(ValueError, match="dataset '' has no rows of a known kind: columns text. Expected are messages"):
        check_dataset(Dataset.from_dict({"text": ["a"]}))
    with pytest.raises(ValueError, match="no column images, only messages"):
        check_dataset(Dataset.from_list([make_row("What?", "It.")]).remove_columns("images"))
    with pytest.raises(ValueError, match="the column prompt holds no lists. Make its rows with .*make_pair"):
        check_dataset(Dataset.from_list([make_pair("What?", "A.", "B.") | {"prompt": "What?"}]))
    paths = Dataset.from_list([make_row("What?", "It.") | {"images": ["a.jpg"]}])
    with pytest.raises(ValueError, match="images is no list of images.*cast_column"):
        check_dataset(paths)
    with pytest.raises(TypeError, match="a list is no Dataset"):
        check_dataset([row_of(0)])
    stream = dataset_of(row_of(0)).to_iterable_dataset()
    for splits, name in (({"train": [row_of(0)]}, "list"), (row_of(0), "list"), ({"train": stream}, "IterableDataset")):
        with pytest.raises(TypeError, match=f"a {name} in a dict is no Dataset: .*Dataset.from_list"):
            check_dataset(splits)


@pytest.mark.parametrize(
    "key", [{"train": 0}, {"train": "false"}, {"loss": False}, {"weight": 0}, {"tool_calls": "f()"}]
)
def test_what_a_message_says_and_nobody_reads_is_refused(key):
    question, answer = make_row("What?", "It.")["messages"]
    rows = Dataset.from_list([{"messages": [question, answer | key], "images": []}])
    rows = rows.cast_column("images", FEATURES["images"])
    with pytest.raises(ValueError, match=rf"{next(iter(key))} of messages is not read as it is; vlm.read_dataset\("):
        check_dataset(rows)
    check_dataset(vlm.read_dataset(rows))  # reads it, or rejects the row
    pair = make_pair("What?", "A.", "B.", [PICTURES[0]])
    pair["chosen"] = [pair["chosen"][0] | key]
    with pytest.raises(
        ValueError, match=f"{next(iter(key))} of chosen is not read as it is; vlm.data.read_preferences"
    ):
        check_dataset(Dataset.from_list([pair]))


def test_keys_of_messages_that_are_null_or_say_nothing_are_in_no_ones_way():
    question, answer = row_of(0)["messages"]
    keys = {"name": "Ann", "tool_calls": None, "train": None}
    rows = Dataset.from_list([row_of(0) | {"messages": [question, answer | keys]}])
    assert check_dataset(rows).counts["kept"] == 1


@pytest.mark.parametrize("name", ["videos", "tools", "objects", "bbox", "choices"])
def test_columns_that_change_what_a_row_means_are_refused_where_no_reader_has_seen_them(name):
    rows = dataset_of(row_of(0)).add_column(name, [["a"]])
    with pytest.raises(ValueError, match=rf"the column {name}: .*dataset.remove_columns\('{name}'\)"):
        check_dataset(rows)
    assert check_dataset(rows.remove_columns(name).add_column(name, [None])).counts["kept"] == 1
    assert check_dataset(rows.add_column("row", [7])).counts["kept"] == 1  # a reader's: it has read the source
    prompts = Dataset.from_list([make_prompt("What?", "It.", [PICTURES[0]])]).add_column(name, [["a"]])
    assert check_dataset(prompts).counts["kept"] == 1  # a reward may need it


def test_further_columns_are_listed_as_not_used():
    report = check_dataset({"train": dataset_of(row_of(0)).add_column("weight", [2]), "test": dataset_of(row_of(1))})
    assert report.unused == ["weight"] and "Fields that are not used: weight." in repr(report)
    assert check_dataset(dataset_of(row_of(0))).unused == []


# What is repaired


def test_repairs_are_reported_and_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(PICTURES[0], "JPEG", exif=exif)
    tokens = make_row("What is <|image|> and <image>?", "The end: <|eot_id|>.")
    report = check_dataset(dataset_of(make_row("What?", "It.", [turned]), tokens, row_of(1)))
    assert reasons(report.repaired) == [
        (1, "turned upright (EXIF orientation 6)"),
        (2, "control tokens of some models, taken as plain text: <|image|> <image> <|eot_id|>"),
    ]
    assert report.counts["kept"] == 3 and report.counts["repaired"] == 2


def test_of_a_rejected_row_no_repair_is_reported():
    row = make_row("<|image|>?", "It.")
    report = check_dataset(dataset_of(row, row))
    assert len(report.rejected) == 1 and [record["row"] for record in report.repaired] == [1]


# Size

MANY = """
import json, resource, sys, time
import datasets, numpy, PIL.Image
import vlmhelpers as vlm
from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.csv_reader import read_csv

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)

check_dataset(read_csv(sys.argv[1]), near_duplicates=True)  # imports and first allocations
before, start = peak(), time.perf_counter()
report = check_dataset(read_csv(sys.argv[2]))
print(json.dumps({"counts": report.counts, "grown": peak() - before, "seconds": time.perf_counter() - start}))
"""


@pytest.mark.slow
def test_100_000_rows_in_bounded_memory(tmp_path):
    pytest.importorskip("resource")  # Windows has none
    header = "image_path,instruction,description\n"
    for i, (_, picture) in enumerate(sample_products(300, seed=1, size=32)):
        picture.save(tmp_path / f"{i}.png")
    lines = [f"{i % 300}.png,Question {i // 300}?,{'A long answer. ' * 20}{i}\n" for i in range(100_000)]
    lines[4::1000] = ["gone.png,What?,A bag.\n"] * 100
    (tmp_path / "few.csv").write_text(header + "".join(lines[:1000]))
    (tmp_path / "many.csv").write_text(header + "".join(lines))
    size = (tmp_path / "many.csv").stat().st_size / 2**20
    done = subprocess.run(
        [sys.executable, "-c", MANY, tmp_path / "few.csv", tmp_path / "many.csv"],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert (result["counts"]["read"], result["counts"]["kept"]) == (100_000, 99_900)
    assert result["counts"]["by_reason"] == {"missing file": 100}
    assert size > 30 and result["grown"] < 150, result
    assert "checking" in done.stderr  # the bar


GROWTH = """
import io, json, sys, threading, time
import numpy as np
from PIL import Image
from vlmhelpers.data.rows import store_rows
from vlmhelpers.data.schema import FEATURES, make_row
import vlmhelpers as vlm
from vlmhelpers.batches.validation import check_dataset

def allocated():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    return int(line.split()[1]) / 1024

def rows(count):
    for i in range(count):
        image = io.BytesIO()
        Image.new("RGB", (2, 1), (i % 256, i // 256 % 256, count % 251)).save(image, "BMP")
        yield make_row(f"Question {i}?", "An answer.", [{"bytes": image.getvalue(), "path": None}])

def watch():
    while True:
        peaks[-1] = max(peaks[-1], allocated())
        time.sleep(0.01)

peaks = []
for count in map(int, sys.argv[1:]):
    dataset = store_rows(rows(count), FEATURES)
    peaks.append(allocated())
    if len(peaks) == 1:
        threading.Thread(target=watch, daemon=True).start()
    assert check_dataset(dataset, near_duplicates=False, workers=2, progress=False).counts["kept"] == count
print(json.dumps(peaks))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_rows_and_images():
    if not os.path.exists("/proc/self/status"):
        pytest.skip("memory without the pages of files is read from /proc")
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, "2000", "5000", "30000"], capture_output=True, text=True, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    _, fewer, many = json.loads(done.stdout)
    assert many - fewer < 20, "25,000 rows more take that many MB"


def test_a_full_disk_under_the_temporary_database_is_an_error_with_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    add = DuplicateFinder.add

    def add_on_a_full_disk(finder, *row):
        finder._database.execute("PRAGMA max_page_count = 1")
        finder._database.execute("CREATE TABLE more (than, fits)")
        add(finder, *row)

    monkeypatch.setattr(DuplicateFinder, "add", add_on_a_full_disk)
    with pytest.raises(OSError, match="disk is full. Free some space on that disk, or set TMPDIR"):
        check_dataset(dataset_of(row_of(0)))
    assert not os.listdir(tmp_path)


def test_a_check_leaves_no_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    check_dataset({"train": dataset_of(row_of(0), row_of(1)), "test": dataset_of(row_of(0))})
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("kind", ["a pipe", "a folder", "gone"])
def test_a_path_that_is_no_file_is_rejected_at_once(tmp_path, kind):
    path = tmp_path / "bag.png"
    if kind == "a pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("this system has no pipes with names")
        os.mkfifo(path)
    elif kind == "a folder":
        path.mkdir()
    report = check_dataset(dataset_of(make_row("What?", "It.", [{"path": str(path), "bytes": None}])))
    assert report.counts["by_reason"] == {"missing file" if kind == "gone" else "not a file": 1}


def test_an_image_that_the_machine_cannot_read_ends_the_check(tmp_path, monkeypatch):
    PICTURES[0].save(tmp_path / "bag.png")
    dataset = dataset_of(make_row("What?", "It.", [{"path": str(tmp_path / "bag.png"), "bytes": None}]))

    def out_of_descriptors(*_, **__):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    here = lambda images, limit, _: [inspect_image(image, limit) for image in images]  # noqa: E731
    monkeypatch.setattr(validation, "inspect_all", here)  # in this process, where there are none
    monkeypatch.setattr(Image, "open", out_of_descriptors)
    with pytest.raises(OSError, match=r"not at fault; raise the limit.*bag\.png"):
        check_dataset(dataset)
