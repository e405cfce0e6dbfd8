"""The validation report: its records, a CSV to correct, plain text and HTML."""

import csv
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from checked_rows import PICTURES, dataset_of, encoded, row_of
from PIL import Image

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.report import rejected_lines
from vlmhelpers.data.schema import make_row, user


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
    assert [record["fields"]["shelf"] for record in again.rejected] == ["B", "C", "D", "F"]  # E: no longer repeated
    mended = saved.read_text("utf-8-sig").replace("gone.png", "bag.png").replace("../bag", "bag").replace("<b>", "bag")
    saved.write_text(mended.replace("What?,,", "What?,Mended.,"), encoding="utf-8")
    assert check_dataset(read_csv(saved)).counts["kept"] == 4
    again.save_rejected(saved)
    assert saved.read_text("utf-8-sig").splitlines()[0].count("reason") == 1


@pytest.mark.parametrize(
    "text", ["=1+1", "+3.2", "-5", "-5+A1", "'=x", "''@a", "@a", "'plain", "-", "＝1", "a=1", '=HYPERLINK("x","y")']
)
def test_saved_rows_hold_no_formula_and_come_back_as_they_were(text, tmp_path):
    rows = [{"image_path": "gone.png", "instruction": text, "description": "A.", f"{text} ": text}]
    source, saved = tmp_path / "rows.csv", tmp_path / "rejected.csv"
    with open(source, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)
    check_dataset(read_csv(source)).save_rejected(saved)
    with open(saved, encoding="utf-8-sig", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    formulas = [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "＝", "\t", "\r"))]
    assert formulas == ([text] * 3 if text in ("-5", "+3.2") else [])
    again = read_csv(saved)
    assert (again["instruction"][0], again[text][0]) == (text, text)
    assert again["messages"][:] == read_csv(source)["messages"][:]


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
    assert [line.partition(":")[0] for line in lines[1:4]] == ["Images", "Beside the usual advice", "Questions"]
    assert lines[4] == "Fields that are not used: row, shelf." and broken[1].unused == ["row", "shelf"]
    assert lines[5] == "Rejected:"
    assert lines[6].startswith("  row 2  missing file: ") and lines[6].endswith("gone.png")
    assert lines[7] == "         -> put the file there or correct the path"
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


def test_rejected_rows_are_listed_on_one_printable_line_each():
    rows = [make_row(f"Why {i}?", "") for i in range(25)]
    lines = rejected_lines(check_dataset(dataset_of(*rows)).rejected, "rows.csv")
    assert len(lines) == 21 and lines[-1] == "... and 5 more"
    assert lines[0] == "rows.csv, row 1: empty answer -> write the answer that the model should give"
    record = {"row": 1, "reason": "unknown role: \x1b[31mbot\n", "remedy": "use another"}
    assert rejected_lines([record], "rows.csv") == ["rows.csv, row 1: unknown role: \\x1b[31mbot -> use another"]


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
    assert len(shown) == 3 and all(source.startswith("data:image/webp;base64,") for source in shown)
    assert len([tag for tag, _ in page.tags if tag == "span"]) == 3  # a field for each that cannot be shown


def test_a_picture_that_was_refused_is_not_decoded_to_be_shown(monkeypatch):
    rows = [row_of(0, question=" "), make_row("What?", "It.", [encoded(PICTURES[1])[:-40]]), row_of(2)]
    report = check_dataset(dataset_of(*rows))
    opened = []
    monkeypatch.setattr("vlmhelpers.data.report.open_image", lambda image: opened.append(image) or PICTURES[0])
    assert report._repr_html_().count("<img") == 2
    assert [image["bytes"] for image in opened] == [encoded(PICTURES[0]), encoded(PICTURES[2])]


@pytest.mark.slow
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
