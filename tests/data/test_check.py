"""The doctor: what it rejects, repairs, warns of, how it compares rows, and how its report shows itself."""

import csv
import io
import json
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from PIL import Image, ImageEnhance

from vlmhelpers.data import validation as check
from vlmhelpers.data.near_duplicates import closest_others
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.schema import FEATURES, make_row, user
from vlmhelpers.data.validation import check_dataset
from vlmhelpers.samples.drawing import Product, draw, sample_products

PICTURES = [picture for _, picture in sample_products(24, seed="check", size=48)]


def encoded(image, image_format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def dataset_of(*rows):
    return Dataset.from_list(list(rows), features=FEATURES)


def row_of(number, question="What is it?", answer=None):
    """A sound row with picture `number`, embedded."""
    return make_row(question, answer or f"Product {number}.", [PICTURES[number]])


def reasons(records):
    return [(record["row"], record["reason"]) for record in records]


# Rows


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


def test_each_picture_is_decoded_once(tmp_path, monkeypatch):
    PICTURES[0].save(tmp_path / "bag.png")
    decoded = []
    inspect = check.inspect_image
    monkeypatch.setattr(check, "inspect_image", lambda image, limit: decoded.append(image) or inspect(image, limit))
    path = str(tmp_path / "bag.png")
    rows = [make_row(f"Question {i}?", "Yes.", [{"path": path, "bytes": None}]) for i in range(500)]
    assert check_dataset(dataset_of(*rows)).counts["kept"] == 500
    assert len(decoded) == 1


def test_a_dataset_of_another_form_is_an_error():
    with pytest.raises(ValueError, match="no column messages and no column images; its columns are text"):
        check_dataset(Dataset.from_dict({"text": ["a"]}))
    paths = Dataset.from_list([make_row("What?", "It.") | {"images": ["a.jpg"]}])
    with pytest.raises(ValueError, match="images is no list of images.*cast_column"):
        check_dataset(paths)
    with pytest.raises(TypeError, match="a list is no Dataset"):
        check_dataset([row_of(0)])


# What is repaired


def test_repairs_are_reported_and_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(PICTURES[0], "JPEG", exif=exif)
    tokens = make_row("What is <|image|> and <image>?", "The end: <|eot_id|>.")
    report = check_dataset(dataset_of(make_row("What?", "It.", [turned]), tokens, row_of(1)))
    assert reasons(report.repaired) == [
        (1, "turned upright (EXIF orientation 6)"),
        (2, "control tokens taken as plain text: <|image|> <image> <|eot_id|>"),
    ]
    assert report.counts["kept"] == 3 and report.counts["repaired"] == 2


def test_of_a_rejected_row_no_repair_is_reported():
    row = make_row("<|image|>?", "It.")
    report = check_dataset(dataset_of(row, row))
    assert len(report.rejected) == 1 and [record["row"] for record in report.repaired] == [1]


# Rows compared with others


def test_a_row_that_repeats_another_is_rejected():
    other = make_row("What is it?", "Product 0.", [encoded(PICTURES[0], "BMP")])  # the same pixels in another file
    report = check_dataset(dataset_of(row_of(0), row_of(1), other, make_row("Why?", "So."), make_row("Why?", "So.")))
    assert reasons(report.rejected) == [
        (3, "duplicate: the same as row 1"),
        (5, "duplicate: the same as row 4"),
    ]


def test_a_rejected_row_is_nobodys_original():
    broken = make_row("Why?", "So.") | {"images": [PICTURES[0]]}
    assert check_dataset(dataset_of(broken, make_row("Why?", "So."))).counts["kept"] == 1


def test_other_questions_about_a_picture_are_no_repetition():
    report = check_dataset(dataset_of(row_of(0), row_of(0, question="What color?"), row_of(0, question="How much?")))
    assert not report.rejected and not report.warnings


def test_another_answer_to_the_same_is_a_warning():
    report = check_dataset(dataset_of(row_of(0), row_of(0, answer="Something else."), row_of(1)))
    assert report.counts["kept"] == 3
    assert reasons(report.warnings) == [(2, "another answer: row 1 has the same question about the same image")]


COPIES = {
    "saved as JPEG": lambda picture: encoded(picture, "JPEG", quality=75),
    "half the size": lambda picture: encoded(picture.resize((48, 48), Image.Resampling.LANCZOS)),
    "larger": lambda picture: encoded(picture.resize((150, 150), Image.Resampling.BICUBIC)),
    "few colors": lambda picture: encoded(picture.quantize(64), "GIF"),
    "a little darker": lambda picture: encoded(ImageEnhance.Brightness(picture).enhance(0.97)),
}


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_of_a_picture_is_a_near_duplicate(copy):
    pictures = [picture for _, picture in sample_products(30, seed=5, size=96)]
    rows = [make_row("What?", f"Product {i}.", [picture]) for i, picture in enumerate(pictures)]
    rows += [make_row("What?", f"Product {i} again.", [COPIES[copy](pictures[i])]) for i in range(10)]
    report = check_dataset(dataset_of(*rows))
    assert reasons(report.warnings) == [
        (31 + i, f"near-duplicate: nearly the same image as row {1 + i}") for i in range(10)
    ]
    assert not check_dataset(dataset_of(*rows), near_duplicates=False).warnings


def test_pictures_that_differ_in_color_or_coins_are_no_near_duplicates():
    pictures = []
    for seed in range(12):  # twins: everything but one thing is drawn alike
        for product in (Product("mug", "red", "plain", 10), Product("mug", "red", "plain", 20),
                        Product("mug", "orange", "plain", 10), Product("hat", "red", "plain", 10)):  # fmt: skip
            pictures.append(draw(product, random.Random(seed), 64))
    pictures += [Image.new("RGB", (64, 64), (shade, 90, 90)) for shade in range(0, 256, 20)]  # flat
    rows = [make_row("What?", f"Product {i}.", [picture]) for i, picture in enumerate(pictures)]
    assert check_dataset(dataset_of(*rows)).warnings == []


def test_the_drawn_samples_hold_no_false_near_duplicates():
    pictures = [picture for _, picture in sample_products(400, seed=11, size=64, novel=None)]
    thumbnails = [picture.resize((8, 8), Image.Resampling.BOX).tobytes() for picture in pictures]
    assert (closest_others(thumbnails, range(400)) == -1).all()


def test_the_search_finds_what_comparing_all_pairs_finds():
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 256, (300, 192))
    cells[150:200] = np.clip(cells[:50] + rng.integers(-6, 7, (50, 192)), 0, 255)  # near
    cells[200:250] = np.clip(cells[50:100] + rng.integers(-30, 31, (50, 192)), 0, 255)  # not near enough
    groups = rng.integers(0, 3, 300)
    found = closest_others([row.astype(np.uint8).tobytes() for row in cells], groups)
    far = np.abs(cells[:, None] - cells[None]).max(2)
    far[groups[:, None] == groups] = 999
    assert (found == np.where(far.min(1) <= 12, far.argmin(1), -1)).all() and 30 < (found >= 0).sum() < 100
    assert list(closest_others([b"\0" * 192], [0])) == [-1] and len(closest_others([], [])) == 0


# Leaks


def test_a_picture_in_train_and_test_is_taken_out_of_train():
    train = dataset_of(row_of(0), row_of(1), row_of(2), row_of(3))
    test = dataset_of(row_of(1, question="What color?"), make_row("What?", "It.", [encoded(PICTURES[2], "JPEG")]))
    report = check_dataset({"test": test, "train": train})
    assert reasons(report.rejected) == [
        (2, "leak: the same image as row 1 of test"),
        (3, "leak: nearly the same image as row 2 of test"),
    ]
    assert {record["split"] for record in report.rejected} == {"train"}
    assert isinstance(report.dataset, DatasetDict)
    assert (len(report.dataset["train"]), len(report.dataset["test"])) == (2, 2)
    assert report.counts["by_split"]["train"] == {"read": 4, "kept": 2, "rejected": 2}
    assert report.counts["by_reason"] == {"leak": 2}


def test_leaks_can_be_kept_or_only_exact_ones_sought():
    splits = DatasetDict(
        train=dataset_of(row_of(0), row_of(1)),
        test=dataset_of(row_of(0), make_row("What?", "It.", [encoded(PICTURES[1], "JPEG")])),
    )
    kept = check_dataset(splits, reject_leaks=False)
    assert kept.counts["kept"] == 4 and [record["row"] for record in kept.warnings] == [1, 2]
    exact = check_dataset(splits, near_duplicates=False)
    assert reasons(exact.rejected) == [(1, "leak: the same image as row 1 of test")]


def test_the_same_text_without_pictures_is_a_leak_too():
    same = make_row("Why?", "So.")
    report = check_dataset({"train": dataset_of(same, make_row("How?", "So.")), "test": dataset_of(same)})
    assert reasons(report.rejected) == [(1, "leak: the same text as row 1 of test")]


def test_of_three_splits_the_last_stays_whole():
    rows = {"train": dataset_of(row_of(0), row_of(1)), "validation": dataset_of(row_of(1), row_of(2)),
            "test": dataset_of(row_of(2), row_of(3))}  # fmt: skip
    report = check_dataset(rows)
    assert [(record["split"], record["reason"]) for record in report.rejected] == [
        ("train", "leak: the same image as row 1 of validation"),
        ("validation", "leak: the same image as row 1 of test"),
    ]
    assert len(report.dataset["test"]) == 2


# The report


@pytest.fixture
def broken(tmp_path):
    """A CSV with one sound row and five broken ones, and the report on it."""
    PICTURES[0].save(tmp_path / "bag.png")
    path = tmp_path / "products.csv"
    text = (
        "shelf,image_path,instruction,description,row\n"
        "A,bag.png,What?,A bag.,r1\n"
        'B,gone.png,"What,\nand why?","<script>alert(""x"")</script>",r2\n'
        "C,../bag.png,What?,A b\u00e4g.,r3\n"
        "D,bag.png,What?,,r4\n"
        "E,bag.png,What?,A bag.,r5\n"
        "F,<b>.png,What?,A bag.,r6\n"
    )
    path.write_text(text, encoding="utf-8")
    return path, check_dataset(read_csv(path))


def test_kept_and_rejected_make_up_what_was_read(broken):
    _, report = broken
    assert (report.counts["read"], report.counts["kept"], report.counts["rejected"]) == (6, 1, 5)
    assert report.dataset.column_names == [
        "messages", "images", "row", "shelf", "image_path", "instruction", "description", "row_"
    ]  # fmt: skip
    assert [record["row"] for record in report.rejected] == [2, 3, 4, 5, 6]
    assert [record["index"] for record in report.rejected] == [1, 2, 3, 4, 5]
    assert report.rejected[1]["fields"]["shelf"] == "C" and report.rejected[1]["image"] == ""
    assert report.rejected[2]["image"].endswith("bag.png")
    assert report.counts["by_reason"] == {
        "missing file": 2, "path leaves the image root": 1, "empty description": 1, "duplicate": 1,
    }  # fmt: skip


def test_rejected_rows_can_be_saved_mended_and_read_again(broken, tmp_path):
    path, report = broken
    saved = tmp_path / "rejected.csv"
    report.save_rejected(saved)
    with open(saved, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "shelf", "image_path", "instruction", "description", "row", "source_row", "reason", "remedy"
    ]  # fmt: skip
    assert rows[0]["instruction"] == "What,\nand why?" and rows[1]["description"] == "A b\u00e4g."
    assert [row["source_row"] for row in rows] == ["2", "3", "4", "5", "6"]
    assert all(row["reason"] and row["remedy"] for row in rows)
    again = check_dataset(read_csv(saved))
    assert [record["fields"]["shelf"] for record in again.rejected] == [
        "B",
        "C",
        "D",
        "F",
    ]  # E: no longer repeated
    mended = saved.read_text("utf-8-sig").replace("gone.png", "bag.png").replace("../bag", "bag").replace("<b>", "bag")
    saved.write_text(mended.replace("What?,,", "What?,Mended.,"), encoding="utf-8")
    assert check_dataset(read_csv(saved)).counts["kept"] == 4
    again.save_rejected(saved)
    assert saved.read_text("utf-8-sig").splitlines()[0].count("reason") == 1


def test_saving_is_whole_or_not_at_all(broken, tmp_path, monkeypatch):
    _, report = broken
    saved = tmp_path / "rejected.csv"
    saved.write_text("before")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(csv.DictWriter, "writerows", fail)
    with pytest.raises(OSError, match="disk full"):
        report.save_rejected(saved)
    assert saved.read_text() == "before"


def test_rows_without_a_source_are_saved_as_a_csv_for_the_reader(tmp_path):
    rows = [make_row("What?", "A bag.", [{"path": str(tmp_path / "gone.png"), "bytes": None}]), row_of(0)]
    check_dataset({"train": dataset_of(*rows), "test": dataset_of(row_of(1))}).save_rejected(tmp_path / "rejected.csv")
    PICTURES[0].save(tmp_path / "gone.png")
    mended = read_csv(tmp_path / "rejected.csv")
    assert mended[0]["messages"] == rows[0]["messages"] and mended[0]["source_split"] == "train"


def test_plain_text(broken):
    lines = repr(broken[1]).splitlines()
    assert lines[0] == "6 rows read: 1 kept, 5 rejected; 0 repaired, 0 to look at"
    assert lines[1] == "Rejected:"
    assert lines[2].startswith("  row 2  missing file: ") and lines[2].endswith("gone.png")
    assert lines[3] == "         -> put the file there or correct the path"
    assert str(broken[1]) == repr(broken[1])


def test_plain_text_is_cut_and_names_the_splits():
    rows = [make_row(f"Why {i}?", "") for i in range(30)]
    text = repr(check_dataset({"train": dataset_of(row_of(0), *rows), "test": dataset_of(row_of(1))}))
    assert "(kept: train 1 of 31, test 1 of 1)" in text
    assert "  train row 2   empty answer\n" in text and "  ... and 10 more, in report.rejected" in text


def test_what_the_data_says_is_never_a_command_to_the_terminal():
    row = {"messages": [user("Hi"), {"role": "\x1b[31mbot\n\x07", "content": []}], "images": []}
    text = repr(check_dataset(dataset_of(row)))
    assert "\x1b" not in text and "\x07" not in text and text.count("\n") == 3


class _Page(HTMLParser):
    def __init__(self, markup):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(markup)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_html_shows_findings_and_pictures_and_escapes_the_data(broken):
    page = _Page(broken[1]._repr_html_())
    tags = {tag for tag, _ in page.tags}
    assert tags <= {"div", "p", "b", "table", "tr", "th", "td", "img", "br", "span"}
    text = " ".join(page.text)
    for expected in ("6 rows read", "row 2", "missing file", "put the file there", "<b>.png", "'../bag.png'"):
        assert expected in text
    shown = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == 3 and all(source.startswith("data:image/jpeg;base64,") for source in shown)
    assert len([tag for tag, _ in page.tags if tag == "span"]) == 3  # a field for each that cannot be shown


def test_html_stays_small():
    rng = np.random.default_rng(0)
    rows = []
    for i in range(400):  # noise compresses worst, quotes grow when escaped
        picture = Image.fromarray(rng.integers(0, 256, (200, 200, 3), dtype=np.uint8))
        rows.append(make_row("What?", "It." if i % 2 else "", [encoded(picture, "JPEG", quality=50)]))
    dataset = dataset_of(*rows, *({"messages": [{"role": '"' * 500, "content": []}], "images": []} for _ in range(200)))
    report = check_dataset(dataset)
    markup = report._repr_html_()
    assert len(markup.encode()) < 60_000
    assert markup.count("<img") >= 4 and re.search(r"and \d+ more: report.rejected", markup)


def test_checking_writes_nothing(broken, capfd):
    path, _ = broken
    before = {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()}
    check_dataset(read_csv(path))
    assert {file.name: file.stat().st_mtime_ns for file in path.parent.iterdir()} == before
    assert capfd.readouterr() == ("", "")  # done within a second: no bar


# Size

MANY = """
import json, resource, sys, time
import datasets, numpy, PIL.Image
from vlmhelpers.data.validation import check_dataset
from vlmhelpers.data.readers.csv_reader import read_csv

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)

check_dataset(read_csv(sys.argv[1]), near_duplicates=True)  # imports and first allocations
before, start = peak(), time.perf_counter()
report = check_dataset(read_csv(sys.argv[2]))
print(json.dumps({"counts": report.counts, "grown": peak() - before, "seconds": time.perf_counter() - start}))
"""


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
