"""Nothing that data hold steers a terminal, whichever way it is shown."""

import io
import re

import pytest
from tqdm import tqdm

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.common.display import Html, html_table
from vlmhelpers.common.printable import PrintableStream, one_line, printable, shortened
from vlmhelpers.common.records import record
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.jsonl_reader import read_jsonl
from vlmhelpers.data.report import show_rows
from vlmhelpers.evaluation.browser import browse
from vlmhelpers.evaluation.comparison import compare
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.export.hub import Upload

RAW = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
KINDS = {"escape": "\x1b[31m", "bell": "\a", "CSI": "\x9b2J", "NUL": "\0", "override": "\u202e", "surrogate": "\udcff"}


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def raw(request):
    """A text with a control character in it."""
    return f"a{request.param}b"


@pytest.fixture
def rows(rows_of, picture):
    return rows_of([("What?", "A bag.", [picture]), ("Why?", "So.", [])])


def is_printable(text):
    return "a" in text and not RAW.search(text)


def test_every_control_character_becomes_its_escape_and_nothing_else_changes():
    assert printable("\x1b\x9b\0\r\u202e\ud800") == r"\x1b\x9b\x00\r\u202e\ud800"
    assert printable("a\r\nb\n\tc") == "a\nb\n\tc" and one_line(" a\r\nb \n\n c  d") == "a b c  d"
    whole = "\u06cc\u200c\u0645 \U0001f468\u200d\U0001f469 \u0915\u094d\u200d\u0937 größer \xa0"
    assert printable(whole) == whole
    assert all(RAW.search(printable(chr(code))) is None for code in range(0x110000))


def test_tables_and_html(raw):
    assert is_printable(html_table([raw], [[raw]])) and "&lt;" in html_table([], [["<"]])
    shown = Html(f"<b>{raw}</b>", raw)
    assert is_printable(shown._repr_html_()) and is_printable(repr(shown))


def test_answers(raw, rows):
    answers = [raw, "So."]
    shown = show_rows(rows, [0], tuned=answers)
    assert is_printable(repr(shown)) and is_printable(shown._repr_html_())
    view = browse(rows, tuned=answers)
    assert is_printable(view._repr_html_()) and is_printable(view.panel.children[-1].value)
    found = evaluate(answers, rows)
    compared = compare(found, found, names=(raw, "tuned"))
    assert is_printable(repr(compared)) and is_printable(compared._repr_html_())


def test_records_and_uploads(raw, capsys):
    record(raw, {raw: raw})
    printed = capsys.readouterr().out
    assert is_printable(printed) and printed.count("\n") == 1
    assert is_printable(repr(Upload("a/b", True, {raw: 1})))


def test_headers_cells_and_names_of_files(raw, tmp_path):
    if "\udcff" in raw:
        raw = raw.replace("\udcff", "\x1b")  # no file of text holds half a character
    path = tmp_path / f"{raw.replace(chr(0), chr(27))}.csv"
    path.write_text(f"image_path,instruction,{raw}\n")
    with pytest.raises(ValueError) as error:
        read_csv(path)
    assert is_printable(str(error.value))
    path.write_text(f"image_path,instruction,description\n{raw}.png,What?,\n{raw}.png,What?,{raw}\n")
    report = check_dataset(read_csv(path))
    assert is_printable(repr(report)) and is_printable(report._repr_html_())
    assert not any(map(RAW.search, read_csv(path)["problem"]))
    path = path.with_suffix(".json")
    path.write_text("[1]")
    with pytest.raises(ValueError) as error:
        read_jsonl(path)
    assert is_printable(str(error.value))


def test_streams_keep_bars_and_drop_colors():
    stream = io.StringIO()
    printing = PrintableStream(stream)
    print("\x1b[1;34mwandb\x1b[0m: \x1b]0;pwn\a", "over\rwritten", file=printing)
    assert stream.getvalue() == "wandb: \\x1b]0;pwn\\x07 over\\rwritten\n"
    plain, through = io.StringIO(), io.StringIO()
    for file in (plain, PrintableStream(through)):
        with tqdm(total=2, desc="outer", file=file, mininterval=0, bar_format="{desc} {n}") as outer:
            for _ in range(2):
                list(tqdm(range(2), desc="inner", file=file, mininterval=0, leave=False, bar_format="{desc} {n}"))
                outer.update()
    assert through.getvalue() == plain.getvalue() and "\x1b[A" in plain.getvalue()


def test_a_long_text_keeps_its_beginning_and_its_end():
    text = f"rows.csv: {'x' * 600}. Rename it."
    short = shortened(text)
    assert len(short) == 500 and short.startswith("rows.csv: x") and short.endswith(" Rename it.") and " … " in short
    assert shortened(text, len(text)) == text and len(shortened(text, 299)) == 299
