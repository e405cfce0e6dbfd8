"""Reading JSON lists and JSONL: what begins how, what is wrong with a row or with the file; writing whole files."""

import json
import os
import subprocess
import sys

import pytest

from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.readers.json_file import read_objects

ROWS = [
    {"a": "Gr\u00f6\u00dfe \u540d\u524d \U0001f642", "n": 1, "f": 2.5},
    {"a": None, "b": [True, {"item": {"c": "x"}}]},
]
LINES = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in ROWS)


@pytest.fixture
def read(tmp_path):
    """The rows of a text or bytes."""

    def write_and_read(content):
        path = tmp_path / "rows.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return list(read_objects(path))

    return write_and_read


def reasons(records):
    """The reason of each record's problem, "" for a sound one."""
    return ["; ".join(reason for reason, _ in record.problems) for record in records]


# The form of the file


@pytest.mark.parametrize(
    "content",
    [LINES, f"\n \r\n{LINES}\n\n", LINES.replace("\n", "\r\n"), LINES.rstrip(), f"\ufeff{LINES}",
     json.dumps(ROWS), json.dumps(ROWS, indent=2, ensure_ascii=False), f"\ufeff \n{json.dumps(ROWS)} \n",
     json.dumps(ROWS, separators=(",", ":"))],
)  # fmt: skip
def test_the_first_character_tells_a_list_from_lines(read, content):
    records = read(content)
    assert [record.fields for record in records] == ROWS
    assert reasons(records) == ["", ""]


def test_an_object_longer_than_the_chunks_of_a_list(read):
    rows = [{"a": "\u540d" * 200_000}, {"a": "x"}]
    assert [record.fields for record in read(json.dumps(rows, ensure_ascii=False))] == rows


def test_records_come_before_the_file_is_read_to_its_end(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text("[" + '{"a": 1},' * 100_000)
    assert next(read_objects(path)).fields == {"a": 1}


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\t\n", " \n" * 5000, "[]", "\ufeff[ ]\n"])
def test_a_file_without_rows_is_an_error(read, content):
    with pytest.raises(ValueError, match=r"rows.json (is empty|holds no rows)\. Expected is a list of objects"):
        read(content)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (LINES.encode("utf-16"), "UTF-16 text"),
        (json.dumps(ROWS).encode("utf-16-le"), "UTF-16 text or a binary file"),
        (b"PK\x03\x04\x14\0\x06\0", "an Excel workbook or a zip archive"),
        (b"\x1f\x8b\x08\0", "a gzip archive"),
    ],
)
def test_other_kinds_of_file_are_an_error_with_a_remedy(read, content, what):
    with pytest.raises(ValueError, match=f"rows.json is {what}, not UTF-8 text.* save it as UTF-8"):
        read(content)


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS[0], indent=1),
        json.dumps({"data": ROWS}, indent=1),
        "\n".join(json.dumps(row, indent=1) for row in ROWS),
        '{"data": [\n{"a": 1}\n]}',
        '{"data": [{"a": 1},\n{"a": 2},\n{"a": 3}]}',
        '{"a": "x"\n, "b": "y"}',
    ],
)
def test_an_object_over_several_lines_is_an_error_with_a_remedy(read, content):
    with pytest.raises(ValueError, match="rows.json, line 1: an object that is spread over several lines.*Write each"):
        read(content)


# What is wrong with a line


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1,}', "not JSON: "),
        (b'{"a": "x', "not JSON: Unterminated string starting at at character 7 of line 3"),
        (b'{"a": 1', "not JSON: Expecting ',' delimiter at character 8 of line 3"),
        (b"{'a': 1}", "not JSON: Expecting property name enclosed in double quotes at character 2 of line 3"),
        (b'  {"a": tru}', "not JSON: Expecting value at character 9 of line 3"),
        ("\u00a0".encode(), "not JSON: Expecting value at character 1 of line 3"),
        (b'{"a": 1} {"a": 2}', "not JSON: Extra data at character 10 of line 3"),
        (b'{"a": "Gr\xf6\xdfe"}', "not UTF-8: byte 0xf6 at position 10 of line 3"),
        (b'{"a": ' + b"[" * 100_000, "not JSON: nested too deeply"),
        (b'{"a": ' + b"1" * 5_000 + b"}", "not JSON: nested too deeply, or a number with too many digits"),
        (b'"text"', 'no object: "text"'),
        (b"[1, 2]", "no object: [1, 2]"),
        (b"null", "no object: null"),
        (rb'{"a": "x\ud83dy"}', "half of a UTF-16 pair"),
        (rb'{"a": "x\uDE42"}', "half of a UTF-16 pair"),
    ],
)
def test_a_broken_line_costs_its_own_row_and_says_where(read, line, reason):
    records = read(b'\n{"a": 1}\n' + line + b'\n{"a": 3}\n')
    assert [record.fields for record in records[::2]] == [{"a": 1}, {"a": 3}]
    assert reasons(records)[1].startswith(reason) and not any(reasons(records)[::2])
    assert all(remedy for _, remedy in records[1].problems)


def test_the_text_of_a_broken_line_is_kept(read):
    records = read(b'{"a": 1}\n {"a": "Gr\xf6\xdfe", \n[1]\n')
    assert [record.text for record in records[1:]] == ['{"a": "Gr\ufffd\ufffde",', "[1]"]


def test_a_first_line_that_is_cut_off_is_no_object_over_several_lines(read):
    records = read('{"a": 1\n{"a": 2}\n')
    assert [bool(reason) for reason in reasons(records)] == [True, False]


def test_escaped_pairs_are_whole_characters(read):
    line = json.dumps(ROWS[0])
    assert r"\ud83d" in line
    record = read(f"{line}\n{line}\n")[1]
    assert (record.fields, record.problems) == (ROWS[0], [])


# What is wrong with a list


def test_an_item_that_is_no_object_costs_its_own_row(read):
    records = read('[{"a": 1}, 5, "text", null, [{"a": 2}], {"a": 6}]')
    assert reasons(records) == ["", "no object: 5", 'no object: "text"', "no object: null", 'no object: [{"a": 2}]', ""]
    assert records[4].text == '[{"a": 2}]' and records[5].fields == {"a": 6}


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ('[{"a": 1}, {"a": 2}, {"a": 3', 3),
        ('[{"a": 1}, {"a": 2}', 3),
        ('[{"a": 1}, {"a": 2},]', 3),
        ('[{"a": 1} {"a": 2}]', 2),
        ('[{"a": 1}, {"a": 2,}]', 2),
        ('[{"a": 1}, {"a": "x\ny"}]', 2),
        ('[{"a": 1}]\n[{"a": 2}]', 2),
        (b'[{"a": 1}, {"a": "Gr\xf6\xdfe"}]', 2),
        ("[" + '{"a": 1},' * 50_000 + '{"a"', 50_001),
    ],
)
def test_broken_syntax_in_a_list_names_the_row_after_all_sound_ones(tmp_path, content, row):
    path = tmp_path / "rows.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    records = []
    with pytest.raises(ValueError, match=rf"rows.json, row {row}: the list is no JSON from here on: [^\n]*\. Mend it"):
        for record in read_objects(path):
            records.append(record)
    assert len(records) == row - 1 and not any(reasons(records))


# Memory

MEASURE = """
import resource, sys
{imports}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
{code}
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def growth(imports, code, path):
    """By how many MB the peak memory of a new process rises while it runs `code`.

    A small process starts it: on Linux, the peak begins at the memory of the process that starts one.
    """
    starter = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]], check=True)"
    command = [sys.executable, "-c", starter, "-c", MEASURE.format(imports=imports, code=code), path]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout) / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    pytest.importorskip("resource", reason="not on Windows")
    path = tmp_path / "rows.json"
    row = {"instruction": "What is it?" * 20, "input": "", "output": "A red bag. " * 100}
    with open(path, "w") as file:
        file.write("[" + json.dumps(row))
        file.writelines(f",\n{json.dumps(row)}" for _ in range(50_000 - 1))
        file.write("]")
    reader = "import datasets, tqdm.auto; from vlmhelpers.data.readers.jsonl_reader import read_alpaca"
    assert growth(reader, "read_alpaca(sys.argv[1])", path) < 60
    assert growth("import json", "json.load(open(sys.argv[1]))", path) > 90  # so the other can fail


# Whole files


def test_a_file_appears_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "out.txt"
    with atomic_file(path, encoding="utf-8", newline="\n") as file:
        file.write("Gr\u00f6\u00dfe\n")
        assert not path.exists()
    assert path.read_bytes() == "Gr\u00f6\u00dfe\n".encode()
    assert os.listdir(path.parent) == ["out.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_file_leaves_the_old_one_and_no_draft(tmp_path, error):
    path = tmp_path / "out.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as file:
        file.write("new")
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["out.txt"]


def test_a_file_that_cannot_take_its_place_leaves_no_draft(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OSError), atomic_file(tmp_path / "out") as file:
        file.write("new")
    assert os.listdir(tmp_path) == ["out"]
