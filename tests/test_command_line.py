"""The command line: converters, what they do with bad rows and errors, validation, the sample and training."""

import base64
import csv
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from datasets import Dataset, load_dataset
from misbehaving_server import GOOD, misbehaving_server
from PIL import Image

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.cli import main
from vlmhelpers.cli.parser import STEPS
from vlmhelpers.data.readers import jsonl_reader as jsonl
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.jsonl_reader import read_alpaca, read_jsonl
from vlmhelpers.families import tiny_model
from vlmhelpers.training.background import TrainingRun, wait_for
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.progress import describe_process, write_process

TEXT = "Gr\u00f6\u00dfe \u540d\u524d \U0001f642"
ROWS = [
    {"instruction": f"Explain {TEXT}.", "input": "", "output": "It is a size."},
    {"instruction": "Translate the following phrase into French.", "input": "I love you.", "output": "Je t'aime."},
]
BAD = {"instruction": "Why?", "answer": "So."}


@pytest.fixture
def file(tmp_path):
    """Writes objects as a JSON list, and gives its path."""

    def write(*values, name="input.json"):
        path = tmp_path / name
        path.write_text(json.dumps(values, ensure_ascii=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs a command in tmp_path: its exit code, what it printed, and the lines of its errors without the bars."""
    monkeypatch.chdir(tmp_path)

    def run_main(*arguments):
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err.splitlines()

    return run_main


# Converters


def test_alpaca_becomes_messages_of_exactly_this_shape(run, file, tmp_path):
    file(*ROWS)
    assert run("alpaca", "-i", "input.json", "-o", "new/output.jsonl") == (0, "2 rows -> new/output.jsonl\n", [])
    assert (tmp_path / "new" / "output.jsonl").read_text(encoding="utf-8").splitlines() == [
        f'{{"messages": [{{"role": "user", "content": [{{"type": "text", "text": "Explain {TEXT}."}}]}}, '
        '{"role": "assistant", "content": [{"type": "text", "text": "It is a size."}]}]}',
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": '
        r'"Translate the following phrase into French.\n\nI love you."}]}, '
        '{"role": "assistant", "content": [{"type": "text", "text": "Je t\'aime."}]}]}',
    ]


def test_the_output_is_what_other_readers_take(run, file, tmp_path):
    path = file(*ROWS)
    run("alpaca", "--input", path, "--output", "output.jsonl")
    loaded = load_dataset("json", data_files="output.jsonl", split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.column_names == ["messages"]
    messages = read_jsonl("output.jsonl")["messages"][:]
    assert loaded["messages"][:] == messages == read_alpaca(path)["messages"][:]


def test_fields_by_other_names(run, file):
    file({"prompt": "Hi", "response": "Hello"})
    names = ["--instruction-field", "prompt", "--output-field", "response"]
    assert run("alpaca", "-i", "input.json", "-o", "output.jsonl", *names)[0] == 0
    assert (
        read_jsonl("output.jsonl")["messages"][0]
        == read_alpaca("input.json", "prompt", "input", "response")["messages"][0]
    )


def test_a_csv_with_images_becomes_jsonl(run, data, tmp_path):
    code, printed, errors = run("csv", "-i", data / "products.csv", "-o", "products.jsonl")
    count = len(read_csv(data / "products.csv"))
    line = f"{count} rows -> products.jsonl, {count} images -> products_images\n"
    assert (code, printed, errors) == (0, line, [])
    first = json.loads((tmp_path / "products.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert first["images"] == ["products_images/001.jpg"] and first["messages"][0]["content"][0] == {"type": "image"}
    again, rows = read_jsonl("products.jsonl"), read_csv(data / "products.csv")
    assert again["messages"][:] == rows["messages"][:]
    assert again[-1]["images"][0].tobytes() == rows[-1]["images"][0].tobytes()
    files = written(tmp_path)
    assert run("csv", "-i", data / "products.csv", "-o", "products.jsonl")[1] == line and written(tmp_path) == files


def test_images_beside_the_output_stay_where_they_are(run, data, tmp_path):
    shutil.copytree(data / "images", tmp_path / "a" / "images")
    shutil.copy(data / "products.csv", tmp_path / "a")
    for output, first in (("a/same.jsonl", "images/001.jpg"), ("above.jsonl", "a/images/001.jpg")):
        code, printed, _ = run("csv", "-i", "a/products.csv", "-o", output)
        assert (code, printed.endswith(f" rows -> {output}\n")) == (0, True)
        assert json.loads((tmp_path / output).read_text().splitlines()[0])["images"] == [first]
        assert read_jsonl(output)[0]["images"][0].size


def test_an_image_that_is_not_there_is_a_bad_row(run, file, tmp_path):
    file({"text": "What?", "image": "gone.png", "response": "A bag."}, ROWS[0])
    code, printed, errors = run("jsonl", "-i", "input.json", "-o", "out.jsonl")
    assert (code, printed) == (1, "") and errors[0].startswith("input.json, row 1: image not found: ")
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize("command", ["csv", "jsonl"])
def test_the_image_root_and_the_fields_can_be_named(run, file, data, tmp_path, command):
    row = {"picture": "001.jpg", "question": "What?", "answer": "An umbrella."}
    file(row)
    (tmp_path / "input.csv").write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
    names = ["--image-field", "picture", "--text-field", "question", "--response-field", "answer"]
    source = "input.csv" if command == "csv" else "input.json"
    code, printed, _ = run(command, "-i", source, "-o", "out.jsonl", "--image-root", data / "images", *names)
    assert (code, printed) == (0, f"1 rows -> out.jsonl, image paths start at {data / 'images'}\n")
    written = json.loads((tmp_path / "out.jsonl").read_text())
    assert written["images"] == ["001.jpg"]
    assert written["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "What?"}]


def test_an_embedded_image_becomes_a_file_also_with_an_image_root(run, file, data, tmp_path):
    encoded = base64.b64encode((data / "images" / "002.jpg").read_bytes()).decode()
    rows = [
        {"text": "What?", "response": "A bag."} | {"image": image}
        for image in ("001.jpg", f"data:image/jpeg;base64,{encoded}")
    ]
    code, printed, errors = run("jsonl", "-i", file(*rows), "-o", "out.jsonl", "--image-root", data / "images")
    assert (code, errors) == (0, []) and "2 images -> out_images" in printed
    dataset = read_jsonl(tmp_path / "out.jsonl")
    expected = [Image.open(data / "images" / name).tobytes() for name in ("001.jpg", "002.jpg")]
    assert [row["images"][0].tobytes() for row in dataset] == expected


def test_jsonl_of_messages_is_written_as_it_was(run, file):
    file({"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]})
    assert run("jsonl", "-i", "input.json", "-o", "once.jsonl")[0] == 0
    assert run("jsonl", "-i", "once.jsonl", "-o", "twice.jsonl")[0] == 0
    with open("once.jsonl") as once, open("twice.jsonl") as twice:
        assert once.read() == twice.read() != ""


def test_conversations_become_messages(run, file, tmp_path):
    (tmp_path / "bag.png").write_bytes(GOOD)
    talk = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A bag."}]
    file({"id": 1, "image": "bag.png", "conversations": talk})
    assert run("jsonl", "-i", "input.json", "-o", "out.jsonl") == (0, "1 rows -> out.jsonl\n", [])
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A bag."}]},
        ],
        "images": ["bag.png"],
    }


# Downloads


@pytest.fixture
def server():
    with misbehaving_server() as running:
        yield running


DOWNLOAD = ["--download", "--cache-dir", "cache/images", "--private-hosts", "127.0.0.1"]


@pytest.mark.parametrize("also", [[], ["bag.png"]])
def test_linked_images_are_downloaded_and_their_paths_start_where_it_says(run, file, server, tmp_path, also):
    (tmp_path / "bag.png").write_bytes(GOOD)
    file({"text": "What?", "image": [f"{server.url}/good", *also], "response": "A bag."})
    code, printed, errors = run("jsonl", "-i", "input.json", "-o", "out.jsonl", *DOWNLOAD)
    assert (code, errors) == (0, []) and printed.splitlines() == ["1 linked pictures: 1 there", "1 rows -> out.jsonl"]
    names = json.loads((tmp_path / "out.jsonl").read_text())["images"]
    assert [os.path.dirname(name) for name in names] == ["cache/images", *[""] * len(also)]
    assert [image.size for image in read_jsonl("out.jsonl")[0]["images"]] == [(32, 24)] * (1 + len(also))


def test_paths_of_a_cache_elsewhere_start_at_it(run, file, server, tmp_path):
    (tmp_path / "root").mkdir()
    file({"text": "What?", "image": f"{server.url}/good", "response": "A bag."})
    code, printed, _ = run("jsonl", "-i", "input.json", "-o", "out.jsonl", "--image-root", "root", *DOWNLOAD)
    cache = tmp_path / "cache" / "images"
    assert code == 0 and printed.endswith(f"1 rows -> out.jsonl, image paths start at {cache}\n")
    assert read_jsonl("out.jsonl", image_root=cache)[0]["images"][0].size == (32, 24)


def test_links_without_leave_and_failed_downloads_are_bad_rows(run, file, server, tmp_path):
    rows = [{"text": "What?", "image": f"{server.url}/{name}", "response": "A bag."} for name in ("good", "unknown")]
    file(*rows)
    code, printed, errors = run("jsonl", "-i", "input.json", "-o", "out.jsonl")
    assert (code, printed, len(errors)) == (1, "", 3) and not server.requests
    assert errors[0].startswith("input.json, row 1: not a local file: ") and "--download" in errors[0]
    code, printed, errors = run("jsonl", "-i", "input.json", "-o", "out.jsonl", *DOWNLOAD)
    assert (code, printed) == (1, "2 linked pictures: 1 there, 1 not found\n")
    assert errors[0].startswith("input.json, row 2: not found: HTTP 404") and not (tmp_path / "out.jsonl").exists()
    assert run("jsonl", "-i", "input.json", "-o", "out.jsonl", "--rejected", "bad.csv", *DOWNLOAD)[0] == 0
    assert len(read_jsonl("out.jsonl")) == 1


# Products


@pytest.fixture
def table(tmp_path):
    """Writes a table.parquet of products with these links or paths."""

    def write(*places):
        rows = [
            {"title": f"Scarf {number}", "category3_code": "SCARVES", "full_price": 2150.0, "imageurl": place}
            for number, place in enumerate(places)
        ]
        Dataset.from_list(rows).to_parquet(tmp_path / "table.parquet")
        (tmp_path / "bag.png").write_bytes(GOOD)
        return "products", "-i", "table.parquet", "-o", "out.jsonl", "--cache-dir", "cache/images"

    return write


def test_products_with_paths_become_jsonl(run, table, tmp_path):
    code, printed, errors = run(*table("bag.png"), "--instruction", "Price?", "--response", "{title}: {full_price}")
    assert (code, errors) == (0, [])
    assert printed == "1 rows read: 1 with an answer and an image\n1 rows -> out.jsonl\n"
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Price?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "Scarf 0: 2150.0"}]},
        ],
        "images": ["bag.png"],
    }


@pytest.mark.parametrize("also", [[], ["bag.png"]])
def test_paths_of_downloaded_images_start_where_it_says(run, table, tmp_path, also):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "bag.png").write_bytes(GOOD)
    with misbehaving_server() as server:
        arguments = [*table(f"{server.url}/good", *also), "--image-root", "root", "--private-hosts", "127.0.0.1"]
        code, printed, _ = run(*arguments)
    root = tmp_path if also else tmp_path / "cache" / "images"
    assert code == 0 and printed.splitlines()[1] == f"{1 + len(also)} rows -> out.jsonl, image paths start at {root}"
    images = read_jsonl("out.jsonl", image_root=root)["images"]
    assert [image.size for row in images for image in row] == [(32, 24)] * (1 + len(also))


def test_products_without_an_image_are_bad_rows(run, table, tmp_path):
    code, printed, errors = run(*table("bag.png", "N.A."))
    assert (code, errors[0]) == (
        1,
        "table.parquet, row 2: neither a URL nor a file: 'N.A.' -> put the file there or correct the path",
    )
    assert not (tmp_path / "out.jsonl").exists()
    assert run(*table("bag.png", "N.A."), "--rejected", "bad.csv")[0] == 0
    with open("bad.csv", encoding="utf-8-sig", newline="") as saved:
        (row,) = csv.DictReader(saved)
    assert (row["source_row"], row["title"], row["full_price"]) == ("2", "Scarf 1", "2150.0")


def test_what_was_guessed_in_a_table_is_said_by_the_converter_and_by_check(run, tmp_path):
    (tmp_path / "bag.png").write_bytes(GOOD)
    header = "title,category3_code,full_price,imageurl\n"
    (tmp_path / "table.csv").write_text(header + "Scarf,S,1.299,bag.png\nBag,B,2.499,bag.png\n")
    code, printed, errors = run("products", "-i", "table.csv", "-o", "out.jsonl")
    assert code == 0 and printed.endswith("2 rows -> out.jsonl\n") and len(errors) == 2
    assert errors[0].startswith("table.csv, row 1: '1.299' in full_price read as 1.299, ") and "1299.0" in errors[0]
    code, printed, _ = run("check", "table.csv")
    assert code == 0 and "2 kept, 0 rejected; 2 repaired" in printed and errors[0].partition(": ")[2] in printed
    (tmp_path / "table.csv").write_text("title,imageurl\nScarf,bag.png\n")
    assert run("check", "table.csv")[2][-1].endswith("Name the right ones: products --response '... {title} ...'.")


def test_what_is_guessed_in_many_rows_is_one_line(run, file):
    file(*({"text": "How many?", "response": number} for number in range(30)))
    code, _, errors = run("jsonl", "-i", "input.json", "-o", "out.jsonl")
    assert (code, errors) == (0, ["input.json, row 1 and 29 more: number read as text"])


# Bad rows


def test_bad_rows_end_the_command_and_nothing_is_written(run, file, tmp_path):
    file(ROWS[0], BAD, "text", ROWS[1])
    (tmp_path / "output.jsonl").write_text("old")
    code, printed, errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl")
    assert (code, printed) == (1, "")
    assert errors[:2] == [
        "input.json, row 2: no field 'output' -> add it; the row has instruction, answer",
        'input.json, row 3: no object: "text" -> write {"name": value, ...}',
    ]
    assert len(errors) == 3 and errors[2].startswith("Nothing was written.")
    assert (tmp_path / "output.jsonl").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["input.json", "output.jsonl"]


def test_at_most_twenty_bad_rows_are_listed(run, file):
    file(ROWS[0], *[BAD] * 20)
    errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl")[2]
    assert len(errors) == 21 and errors[19].startswith("input.json, row 21: ")
    file(ROWS[0], *[BAD] * 23)
    errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl")[2]
    assert len(errors) == 22 and errors[20] == "... and 3 more"


def test_messages_that_cannot_be_trained_on_are_bad_rows(run, file):
    file({"messages": [{"role": "user", "content": "Why?"}]}, {"messages": [{"role": "robot", "content": "Why?"}]})
    code, _, errors = run("jsonl", "-i", "input.json", "-o", "output.jsonl")
    assert code == 1
    assert errors[0].startswith("input.json, row 1: no answer") and " -> add the answer" in errors[0]
    assert errors[1].startswith("input.json, row 2: unknown role: 'robot' -> ")


def test_a_listed_row_takes_one_line_and_cannot_steer_the_terminal(run, file):
    file(ROWS[0] | {"tag": "x"}, "\u001b[31mred\nline")
    errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl")[2]
    assert len(errors) == 2 and "\u001b" not in errors[0]


def test_rejected_rows_are_saved_and_the_others_written(run, file, tmp_path):
    file(ROWS[0], BAD, ROWS[1])
    code, printed, errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl", "--rejected", "bad.csv")
    assert (code, printed, errors) == (0, "2 rows -> output.jsonl\n", ["1 rejected rows -> bad.csv"])
    assert read_jsonl("output.jsonl")["messages"][:] == read_alpaca(file(*ROWS))["messages"][:]
    with open("bad.csv", encoding="utf-8-sig", newline="") as saved:
        (row,) = csv.DictReader(saved)
    assert (row["source_row"], row["instruction"], row["answer"]) == ("2", "Why?", "So.")
    assert row["reason"] == "no field 'output'" and row["remedy"]


def test_without_a_good_row_the_output_is_not_written(run, file, tmp_path):
    empty = ROWS[0] | {"output": ""}
    file(empty, empty)
    code, printed, errors = run("alpaca", "-i", "input.json", "-o", "output.jsonl", "--rejected", "bad.csv")
    assert (code, printed) == (1, "") and errors[-1].endswith("Nothing was written.")
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "input.json"]


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["alpaca", "-i", "gone.json", "-o", "output.jsonl"], "gone.json"),
        (["alpaca", "-i", "input.json", "-o", "./input.json"], "are the same file"),
        (["alpaca", "-i", "input.json", "-o", "link.json"], "are the same file"),
        (["alpaca", "-i", "input.json", "-o", "hard.json"], "are the same file"),
        (["alpaca", "-i", "input.json", "-o", "o.jsonl", "--rejected", "o.jsonl"], "are the same file"),
        (["alpaca", "-i", "input.json", "-o", "o.jsonl", "--rejected", "input.json"], "are the same file"),
        (["alpaca", "-i", "input.json", "-o", "folder"], "folder"),
        (
            ["alpaca", "-i", "input.json", "-o", "o.jsonl", "--output-field", "x", "--instruction-field", "y"],
            "Its fields",
        ),
        (["jsonl", "-i", "input.json", "-o", "o.jsonl", "--image-root", "gone"], "there is no folder gone"),
        (["csv", "-i", "input.json", "-o", "output.jsonl"], "input.json, header: "),
        (["check", "gone.jsonl"], "gone.jsonl"),
        (["check", "gone.parquet"], "gone.parquet"),
        (["products", "-i", "input.json", "-o", "output.jsonl"], "input.json is no .csv or .parquet file"),
        (["products", "-i", "gone.csv", "-o", "output.jsonl"], "gone.csv"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, file, tmp_path, arguments, message):
    content = file(*ROWS).read_bytes()
    (tmp_path / "link.json").symlink_to("input.json")
    (tmp_path / "hard.json").hardlink_to(tmp_path / "input.json")
    (tmp_path / "folder").mkdir()
    before = sorted(os.listdir(tmp_path))
    code, printed, errors = run(*arguments)
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith("vlmhelpers: ") and message in errors[0]
    assert sorted(os.listdir(tmp_path)) == before and (tmp_path / "input.json").read_bytes() == content


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt, 130), (OSError, 2)])
def test_an_interruption_leaves_the_old_output_and_no_temporary_file(run, file, tmp_path, monkeypatch, error, code):
    file(*ROWS)
    (tmp_path / "output.jsonl").write_text("old")
    write = jsonl._to_write

    def interrupted(row, root, name):
        if name.endswith("row 2"):
            raise error
        return write(row, root, name)

    monkeypatch.setattr(jsonl, "_to_write", interrupted)
    assert run("alpaca", "-i", "input.json", "-o", "output.jsonl")[0] == code
    assert (tmp_path / "output.jsonl").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["input.json", "output.jsonl"]


def test_a_header_cannot_steer_the_terminal(run, tmp_path):
    (tmp_path / "h\x1b.csv").write_text("image_path,instruction,desc\x1b]0;pwn\a\x1b[31m\u202e\na,b,c\n")
    code, printed, errors = run("csv", "-i", "h\x1b.csv", "-o", "out.jsonl")
    assert (code, printed, len(errors)) == (2, "", 1)
    assert errors[0].startswith(r"vlmhelpers: h\x1b.csv has no column 'description'. Its columns: image_path, ")
    assert r"desc\x1b]0;pwn\x07\x1b[31m\u202e. " in errors[0]


def test_neither_can_an_error_that_nobody_expected(run, file, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no \x1b[31mcolor")

    monkeypatch.setattr("vlmhelpers.read_alpaca", fail)
    code, printed, errors = run("alpaca", "-i", file(*ROWS), "-o", "output.jsonl")
    assert (code, printed, errors[0]) == (2, "", "Traceback (most recent call last):")
    assert errors[-1].startswith("RuntimeError: no ") and "\x1b" not in errors[-1]


@pytest.mark.parametrize(
    "content", [b"\xef", b"\xef\xbb", b"\xef\xbb\xbf", b"\xc2\xa0", b" \n\xc2\xa0\n", b"", b'""\n']
)
@pytest.mark.parametrize("reader", ["alpaca", "csv", "jsonl", "products"])
def test_files_of_next_to_nothing(run, tmp_path, reader, content):
    for ending in {"csv": ["csv"], "products": ["csv", "parquet"]}.get(reader, ["json", "jsonl"]):
        (tmp_path / f"input.{ending}").write_bytes(content)
        code, printed, errors = run(reader, "-i", f"input.{ending}", "-o", "output.jsonl")
        assert (code, printed, len(errors)) == (2, "", 1) and f"input.{ending}" in errors[0]
        found = ("is empty", "not UTF-8 text", "cannot be read as Parquet", 'no object: ""')
        assert any(text in errors[0] for text in found)


STOPPED_WHILE_WRITING = """
import runpy, time
from vlmhelpers.data.readers import jsonl_reader

def write(*arguments):
    try:
        print("writing", flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", flush=True)
        time.sleep({seconds})

jsonl_reader._to_write = write
runpy.run_module("vlmhelpers", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize(
    ("first", "then", "code", "line"),
    [
        (signal.SIGINT, signal.SIGTERM, 130, "vlmhelpers: interrupted"),
        (signal.SIGTERM, signal.SIGINT, 143, "vlmhelpers: terminated"),
    ],
)
def test_signals_end_a_command_that_cleans_up(file, tmp_path, first, then, code, line):
    source = file(*ROWS)
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, "-c", STOPPED_WHILE_WRITING.format(seconds=0.3)]
    command += ["alpaca", "-i", source, "-o", tmp_path / "out.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, **pipes) as process:
        assert process.stdout.readline() == "writing\n" and os.listdir(tmp_path / "tmp")
        process.send_signal(first)
        assert process.stdout.readline() == "cleaning up\n"
        process.send_signal(then)
        assert (process.wait(60), process.stderr.read()) == (code, f"{line}\n")
    assert sorted(os.listdir(tmp_path)) == ["input.json", "tmp"] and not os.listdir(tmp_path / "tmp")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_a_clean_up_that_hangs_can_be_ended(file, tmp_path):
    command = [sys.executable, "-c", STOPPED_WHILE_WRITING.format(seconds=60)]
    command += ["alpaca", "-i", file(*ROWS), "-o", tmp_path / "out.jsonl"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "cleaning up\n"
        time.sleep(2.5)
        process.send_signal(signal.SIGINT)
        assert (process.wait(30), process.stderr.read()) == (130, "")


def test_an_unknown_command_is_an_error(run, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["transmute"])
    assert caught.value.code == 2 and "alpaca" in capsys.readouterr().err


# Validation


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.json", json.dumps(ROWS)),
        ("rows.txt", "".join(json.dumps(row) + "\n" for row in ROWS)),
        (
            "rows.jsonl",
            json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ),
        ("rows.jsonl", json.dumps({"image": "001.jpg", "text": "What?", "response": "An umbrella."})),
        (
            "rows.jsonl",
            json.dumps(
                {
                    "instruction": "",
                    "output": "",
                    "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
                }
            ),
        ),
        ("rows.CSV", "image_path,instruction,description\n001.jpg,What?,An umbrella.\n"),
    ],
)
def test_check_takes_the_reader_that_fits(run, data, tmp_path, name, content):
    (tmp_path / name).write_text(content)
    code, printed, errors = run("check", name, "--image-root", data / "images")
    assert code == 0 and not errors
    assert " kept, 0 rejected" in printed


def test_check_reads_a_table_of_products(run, table, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table("bag.png", "N.A.")
    code, printed, _ = run("check", "table.parquet")
    assert code == 1 and "2 rows read: 1 kept, 1 rejected" in printed and "'N.A.'" in printed


def test_check_takes_a_pattern(run, file):
    for number in (1, 2):
        file({"text": "What?", "response": f"{number} bags."}, name=f"rows-{number}.json")
    assert run("check", "rows-*.json")[1].startswith("2 rows read: 2 kept, 0 rejected")


@pytest.mark.skipif(os.name == "nt", reason="no such pipes")
def test_a_pipe_is_no_source_of_rows(run, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for command in (["check", "pipe.jsonl"], ["jsonl", "-i", "pipe.jsonl", "-o", "out.jsonl"]):
        message = "vlmhelpers: pipe.jsonl is a pipe or a device. Save its rows as a file, and read that."
        assert run(*command) == (2, "", [message])


def test_check_says_what_it_rejects_and_saves_it(run, data):
    code, printed, _ = run("check", data / "broken" / "products.csv", "--rejected", "bad.csv")
    assert code == 1
    assert printed.startswith("32 rows read: 17 kept, 15 rejected") and "truncated or damaged image" in printed
    with open("bad.csv", encoding="utf-8-sig", newline="") as saved:
        assert len(list(csv.DictReader(saved))) == 15


def test_check_finds_bad_rows_of_json(run, file):
    file(*ROWS, BAD)
    code, printed, _ = run("check", "input.json")
    assert code == 1 and "3 rows read: 2 kept, 1 rejected" in printed and "no field 'output'" in printed


def test_check_takes_fields_and_a_question_by_name(run, data, tmp_path):
    (tmp_path / "rows.csv").write_text("picture,title,note\n001.jpg,An umbrella,What is it?\n")
    root = ["--image-root", data / "images", "--image-field", "picture", "--response-field", "title"]
    for question in (["--text-field", "note"], ["--instruction", "What?"]):
        code, printed, errors = run("check", "rows.csv", *root, *question)
        assert (code, errors) == (0, []) and printed.startswith("1 rows read: 1 kept, 0 rejected")
    code, _, errors = run("check", "rows.csv", *root, "--text-field", "gone")
    assert code == 2 and " --text-field " in errors[-1] and "read_" not in errors[-1]


HARD_NAMES = [("Instruction (en)", "Description (en)"), ("Instruction, en", 'It\'s a "description"'), ("-text", "a\\b")]


@pytest.mark.parametrize("names", HARD_NAMES)
@pytest.mark.parametrize("command", ["csv", "jsonl", "check"])
def test_what_an_error_advises_can_be_typed(run, file, tmp_path, command, names):
    fields = {"image": "001.jpg"} | dict.fromkeys(names, "A bag.")
    Image.new("RGB", (8, 8)).save(tmp_path / "001.jpg")
    source = file(fields, name="rows.jsonl") if command == "jsonl" else tmp_path / "rows.csv"
    if command != "jsonl":
        with open(source, "w", newline="") as table:
            csv.writer(table).writerows([fields, fields.values()])
    arguments = ["check", source] if command == "check" else [command, "-i", source, "-o", "out.jsonl"]
    code, _, errors = run(*arguments)
    options = shlex.split(errors[0].partition("for example ")[2].partition(" Where ")[0])
    assert code == 2 and names[1] in options[-1]
    options[-1] = options[-1].removesuffix(".")
    assert run(*arguments, *options)[0] == 0, options


def test_what_a_row_advises_can_be_typed(run, file, data):
    row = {"image": str(data / "images" / "001.jpg"), "instruction": "What?", "answer": "Red.", "caption": "A bag."}
    named = ["--image-root", data]
    for arguments in (["jsonl", "-i", file(row), "-o", "out.jsonl", *named], ["check", file(row), *named]):
        code, printed, errors = run(*arguments)
        assert code == 1 and "response_field" not in (said := printed + " ".join(errors))
        assert run(*arguments, "--response-field", said.partition("--response-field ")[2].split()[0])[0] == 0


@pytest.mark.slow
def test_what_a_run_is_advised_can_be_typed(run, file, tmp_path):
    file({"ask": "What?", "a reply": "A bag."})
    (tmp_path / "run.yaml").write_text("model_id: qwen2.5-vl\ndataset: input.json\noutput_dir: out\n")
    code, _, errors = run("preflight", "run.yaml")
    advised = shlex.split(errors[-1].partition("for example ")[2].removesuffix("."))
    assert (code, advised) == (2, ["--set", "text_field=ask", "--set", "response_field=a reply"])
    assert run("preflight", "run.yaml", *advised)[0] == 0
    said = run("preflight", "run.yaml", "--set", "text_field=ask")[2][-1]
    assert said.endswith(
        " --set 'response_field=a reply'. Where every row is asked the same, pass jsonl --instruction TEXT."
    )
    said = run("generate", "qwen2.5-vl", "input.json")[2][-1]
    assert said.endswith(" for example jsonl --text-field ask --response-field 'a reply'.")


def test_what_a_run_in_the_background_is_advised_can_be_typed(run, tmp_path):
    error = (
        "DataError: rows.jsonl has no field 'text'. Name the right ones, for example read_jsonl(..., text_field='q')."
    )
    write_process(tmp_path, describe_process(os.getpid(), end="failed", error=error))
    assert run("status", tmp_path)[1].endswith(" Name the right ones, for example --set text_field=q.\n")


def test_the_column_of_an_answer_is_advised_by_its_option(run, table):
    code, _, errors = run(*table("bag.png"), "--response", "{titel}")
    assert code == 2 and errors[-1].endswith(" Name the right ones: --response '... {title} ...'.")


def test_an_image_outside_the_root_is_advised_by_its_option(run, file, data):
    file({"text": "What?", "image": str(data / "images" / "001.jpg"), "response": "An umbrella."})
    for command in (["check", "input.json"], ["jsonl", "-i", "input.json", "-o", "out.jsonl"]):
        code, printed, errors = run(*command)
        assert code == 1 and "or pass another --image-root FOLDER" in printed + " ".join(errors)
        assert run(*command, "--image-root", data)[0] == 0


def test_without_a_likely_field_the_advice_is_a_placeholder(run, file):
    code, _, errors = run("jsonl", "-i", file({"image": "a.png", "x": "a", "y": "b", "z": "c"}), "-o", "out.jsonl")
    assert code == 2 and errors[0].endswith("for example --text-field NAME --response-field NAME.")


@pytest.mark.slow
def test_check_is_strict_for_a_model(run, file):
    talk = [{"role": role, "content": "So."} for role in ("user", "user", "assistant")]
    file({"messages": talk})
    for model, code in (("gemma-3", 1), ("qwen3-vl", 0), (tiny_model("qwen3-vl"), 0)):
        found, printed, _ = run("check", "input.json", "--model", model)
        assert found == code and f"{1 - code} kept" in printed, printed
    assert "gone" in run("check", "input.json", "--model", "gone/gone")[2][-1]


def test_the_report_does_not_replace_what_it_is_about(run, file):
    content = file(*ROWS).read_bytes()
    code, _, errors = run("check", "input.json", "--rejected", "./input.json")
    assert code == 2 and "are the same file" in errors[-1] and file(*ROWS).read_bytes() == content


# The sample


def written(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_sample_has_the_guides_fields_and_every_row_is_kept(run, tmp_path):
    code, printed, errors = run("sample", "--output", "new/sample.jsonl", "--num-examples", "12")
    assert (code, errors) == (0, [])
    assert printed == "12 rows -> new/sample.jsonl, their images -> new/images\n"
    rows = [json.loads(line) for line in (tmp_path / "new" / "sample.jsonl").read_text().splitlines()]
    assert [list(row) for row in rows] == [["text", "image", "response"]] * 12
    assert rows[0]["image"] == "images/sample-0001.png" and len(written(tmp_path)) == 13
    report = check_dataset(read_jsonl("new/sample.jsonl"), progress=False)
    assert (report.counts["read"], report.counts["kept"], report.repaired, report.warnings) == (12, 12, [], [])
    assert report.dataset[11]["images"][0].size == (96, 96)


def test_a_sample_of_json_answers_in_larger_images(run, tmp_path):
    assert run("sample", "-o", "s.jsonl", "--num-examples", "5", "--answers", "json", "--size", "144")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert {row["text"] for row in rows} == {"Describe this product as JSON."}
    for row in rows:
        assert list(json.loads(row["response"])) == ["color", "pattern", "category", "price"]
    assert len({row["response"] for row in rows}) > 1
    assert read_jsonl("s.jsonl")[0]["images"][0].size == (144, 144)


def test_a_sample_is_the_same_again_and_other_with_another_seed(run, tmp_path):
    for folder, seed in (("a", []), ("b", ["--seed", "0"]), ("c", ["--seed", "1"])):
        assert run("sample", "-o", f"{folder}/s.jsonl", *seed)[1].startswith("10 rows -> ")
    a, b, c = (written(tmp_path / folder) for folder in "abc")
    assert a == b and a.keys() == c.keys() and not set(a.values()) & set(c.values())
    assert run("sample", "-o", "a/s.jsonl")[0] == 0 and written(tmp_path / "a") == a


def test_samples_of_other_names_share_a_folder(run, tmp_path):
    for name in ("train", "test"):
        assert run("sample", "-o", f"{name}.jsonl", "--num-examples", "3", "--seed", len(name))[0] == 0
    assert len(written(tmp_path)) == 8


@pytest.mark.parametrize("place", ["s.jsonl", "images/s-0002.png"])
def test_a_file_with_other_content_is_not_overwritten_unless_forced(run, tmp_path, place):
    (tmp_path / "images").mkdir()
    (tmp_path / place).write_text("mine")
    code, printed, errors = run("sample", "-o", "s.jsonl")
    assert (code, printed, len(errors)) == (2, "", 1)
    assert f"{place} would be overwritten" in errors[0] and "--force" in errors[0]
    assert list(written(tmp_path).values()) == [b"mine"]
    assert run("sample", "-o", "s.jsonl", "--force")[0] == 0
    assert len(check_dataset(read_jsonl("s.jsonl"), progress=False).dataset) == 10


def test_more_examples_keep_the_images_of_fewer(run, tmp_path):
    run("sample", "-o", "s.jsonl", "--num-examples", "2")
    code, _, errors = run("sample", "-o", "s.jsonl", "--num-examples", "3")
    assert code == 2 and "s.jsonl would be overwritten" in errors[0]
    before = written(tmp_path / "images")
    assert run("sample", "-o", "s.jsonl", "--num-examples", "3", "--force")[0] == 0
    assert before.items() < written(tmp_path / "images").items()


@pytest.mark.parametrize("number", ["0", "-1"])
def test_a_sample_has_at_least_one_example(run, tmp_path, number):
    code, _, errors = run("sample", "-o", "s.jsonl", "--num-examples", number)
    assert (code, errors) == (2, [f"vlmhelpers: num_examples is {number}. Ask for 1 or more."])
    assert os.listdir(tmp_path) == []


# Training


@pytest.fixture
def settings(run, tmp_path):
    """Writes a run's settings and a sample, with `changes`."""

    def write(**changes):
        assert run("sample", "-o", "s.jsonl")[0] == 0
        needed = {"model_id": "qwen2.5-vl", "dataset": "s.jsonl", "output_dir": "out", "bits": 16, "max_steps": 1}
        (tmp_path / "run.json").write_text(json.dumps(needed | changes))

    return write


@pytest.mark.slow
def test_a_file_of_settings_trains_an_adapter(run, settings, tmp_path):
    settings(batch_size=2)
    code, printed, _ = run("train", "run.json", "--set", "output_dir=other", "gradient_accumulation_steps=1", "seed=3")
    assert code == 0 and printed.endswith("1 steps on 10 rows -> other/adapter\n")
    assert (tmp_path / "other" / "adapter" / "adapter_model.safetensors").is_file() and not (tmp_path / "out").exists()
    saved = RunConfig.read(tmp_path / "other" / "run_config.yaml")
    assert (saved.batch_size, saved.seed, saved.dataset) == (2, 3, str(tmp_path / "s.jsonl"))
    longer = [
        "train",
        "run.json",
        "--set",
        "output_dir=other",
        "gradient_accumulation_steps=1",
        "seed=3",
        "max_steps=2",
    ]
    code, _, errors = run(*longer)
    assert code == 2 and "other was trained before this has changed: max_steps." in errors[-1]
    code, printed, _ = run(*longer, "--accept-changes")
    assert code == 0 and "2 steps on 10 rows" in printed


def test_settings_without_a_file_are_those_of_a_file(monkeypatch):
    trained = []
    monkeypatch.setattr("vlmhelpers.train", lambda config, accept_changes: trained.append(config))
    assert main(["train", "--set", "model_id=qwen2.5-vl", "dataset=rows.csv", "output_dir=out", "max_steps=2"]) == 0
    assert trained == [RunConfig("qwen2.5-vl", "rows.csv", "out", max_steps=2)]


@pytest.mark.slow
def test_a_method_of_the_command_line_trains_by_rows_of_its_kind(run, settings, tmp_path):
    settings(lora_r=4, batch_size=2, gradient_accumulation_steps=1, dataset="pairs.jsonl", test_rows=2)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    pairs = [{"prompt": r["text"], "images": [r["image"]], "chosen": r["response"], "rejected": "No."} for r in rows]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    code, printed, _ = run("train", "run.json", "--method", "orpo", "--set", "beta=0.5", "logging_steps=1")
    assert code == 0 and printed.endswith(f"1 steps on 8 rows -> {tmp_path}/out/adapter\n")
    saved = RunConfig.read(tmp_path / "out" / "run_config.yaml")
    assert (saved.method, saved.beta, saved.loss) == ("orpo", 0.5, None)
    code, _, errors = run("train", "run.json", "--method", "cpo")
    assert code == 2 and "out was trained before this has changed: beta, method." in errors[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml"], "gone.yaml"),
        (["--set", "dataset=s.jsonl"], "there is no model_id, no output_dir: name a CONFIG, or add --set model_id=..."),
        (["--set", "model_id=a", "dataset=b", "output_dir=c", "seed=x"], "seed is 'x': it should be a valid integer"),
        (["ok.json", "--method", "dpoo"], "method is 'dpoo': it should be 'sft', 'dpo', 'kto'"),
        (["ok.json", "--method", "kto"], "s.jsonl"),
        (["s.jsonl"], "s.jsonl is no .json, .yaml or .yml file"),
        (["run.json"], "run.json: there is no setting 'epoch'. Did you mean 'epochs'?"),
        (["ok.json", "--set", "lora_rank=4"], "there is no setting 'lora_rank'"),
        (["ok.json", "--set", "seed"], "--set seed: write it as NAME=VALUE"),
        (["ok.json", "--set", "learning_rate=fast"], "learning_rate is 'fast': it should be a valid number"),
        (["ok.json", "--set", "dataset=gone.jsonl"], "gone.jsonl"),
        (
            ["ok.json", "--set", "report_to=paper"],
            "report_to is 'paper': it should be 'none', 'tensorboard', 'trackio' or 'wandb'",
        ),
    ],
)
def test_an_error_in_the_settings_is_one_line(run, settings, tmp_path, arguments, message):
    settings()
    (tmp_path / "run.json").rename(tmp_path / "ok.json")
    settings(epoch=1)
    code, _, errors = run("train", *arguments)
    assert code == 2 and errors[-1].startswith("vlmhelpers: ") and message.lower() in errors[-1].lower()
    assert not (tmp_path / "out" / "adapter").exists()


def test_the_help_says_how_to_train_on_several_gpus(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0 and "accelerate launch --num_processes 2 -m vlmhelpers train" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_the_help_says_how_to_answer_on_several_gpus(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert f"accelerate launch --num_processes 2 -m vlmhelpers {command}" in capsys.readouterr().out


def test_the_help_lists_every_setting_with_its_type_default_and_meaning(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.startswith("  ")}
    for name, field in RunConfig.__pydantic_fields__.items():
        assert field.description and lines[name].endswith(f": {field.description}")
    assert "(int | None, default None): rank of the adapters; none: what suits the model" in lines["lora_r"]
    assert "(int, default 0)" in lines["seed"] and "(str, required)" in lines["dataset"]
    assert "Literal['none', 'pixels', 'features'], default none" in lines["cache"]
    assert "(float | None, default None; simpo): the margin" in lines["simpo_gamma"]


@pytest.mark.parametrize("command", STEPS)
def test_the_help_of_a_step_has_every_setting(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for name, setting in STEPS[command].described().items():
        named = name.upper() if setting.is_required else f"--{name.replace('_', '-')}"
        named = "DATASET" if (command, name) == ("generate", "dataset") else named
        assert named in printed and " ".join(setting.description.split()) in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "run", "--rows", "many"], "rows is 'many': it should be a valid integer"),
        (["evaluate", "run", "--top-p", "2"], "top_p is 2.0: it should be less than or equal to 1"),
        (["generate", "run", "s.jsonl", "-o", "a.jsonl", "--bits", "8"], "bits is 8: it should be 4, 16 or None"),
        (["chat", "run", "--temperature", "-1"], "temperature is -1.0: it should be greater than or equal to 0"),
        (["merge", "run", "--dtype", "int8"], "dtype is 'int8': it should be 'bfloat16'"),
        (["export", "run", "--form", "zip"], "form is 'zip': it should be 'merged', 'gguf', 'onnx' or 'adapter'"),
        (["chat", "gone"], "there is no folder gone: name a run's"),
        (["generate", "gone"], "gone is no run's, so there are no held-out rows: name a dataset"),
        (["generate", "run", "s.jsonl", "--prompt", "What?"], "a dataset has its own: give either"),
        (["generate", "run", "--image", "a.png"], "a prompt asks about images"),
        (["push", "gone", "me/x"], "there is no folder gone: export the run first"),
        (["preflight", "gone.yaml"], "gone.yaml"),
    ],
)
def test_what_a_step_cannot_take_is_refused_by_name(run, arguments, message):
    code, printed, errors = run(*arguments)
    assert (code, printed) == (2, "") and message in errors[-1]


@pytest.mark.slow
def test_preflight_says_what_a_run_takes_and_whether_it_can_be_trained(run, settings):
    settings(batch_size=2)
    code, printed, _ = run("preflight", "run.json", "--gpu", "T4")
    assert code == 0 and "10 rows to train on, 0 rejected" in printed and "it fits on T4 16 GB" in printed
    code, printed, _ = run("preflight", "run.json", "--set", "max_length=9")
    assert code == 1 and "are longer than max_length=9" in printed
    assert run("preflight", "run.json", "--gpu", "K80")[0] == 2


@pytest.mark.slow
def test_a_model_answers_a_file_and_a_conversation(run, settings, tmp_path, monkeypatch):
    settings()
    code, printed, errors = run("generate", "qwen2.5-vl", "s.jsonl", "-o", "a.jsonl", "--rows", "2")
    assert (code, printed) == (0, "2 answers -> a.jsonl\n") and " tokens/s, an answer in " in errors[-1]
    assert any("the tiny base" in line for line in errors)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    first, second = map(json.loads, lines)
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert [first, second] == [
        {"prompt": row["text"], "images": [str(tmp_path / row["image"])], "answer": answer, "expected": row["response"]}
        for row, answer in zip(rows, (first["answer"], second["answer"]), strict=False)
    ]
    assert run("generate", "qwen2.5-vl", "s.jsonl", "--rows", "2")[1].splitlines() == lines
    image, question = rows[0]["image"], rows[0]["text"]
    code, printed, _ = run("generate", "qwen2.5-vl", "--image", image, "--prompt", question, "--max-new-tokens", "64")
    assert code == 0 and json.loads(printed) == first | {"expected": None}
    said = ["/image gone.png", f"/image {image}", "", question, "/system Be brief.", "/clear", question, "/quit", "No."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(said)))
    code, printed, errors = run("chat", "qwen2.5-vl")
    assert code == 0 and first["answer"] in printed and any("gone.png" in line for line in errors)
    monkeypatch.setattr(sys, "stdin", io.StringIO(question))  # which ends
    assert run("chat", "qwen2.5-vl", "--base")[0] == 0


def test_an_export_that_answers_otherwise_is_exit_code_1(run, monkeypatch):
    for wrong in (True, False):
        exported = SimpleNamespace(ok=not wrong)
        monkeypatch.setattr(
            "vlmhelpers.commands.export_run", lambda settings, exported=exported: exported, raising=False
        )
        assert run("merge", "run")[0] == run("export", "run", "--form", "gguf")[0] == int(wrong)


def test_an_image_that_cannot_be_opened_is_refused_before_the_model_is_loaded(run, monkeypatch):
    monkeypatch.setattr("vlmhelpers.commands.load_tuned", None, raising=False)
    monkeypatch.setattr("vlmhelpers.commands.generating.use_model", None)
    for command in (["chat"], ["generate", "--prompt", "What?"]):
        code, _, errors = run(*command, "qwen2.5-vl", "--image", "gone.png")
        assert code == 2 and "gone.png" in errors[-1]


def test_runs_are_gone_on_with_one_after_the_other(run, monkeypatch):
    begun = []
    monkeypatch.setattr(TrainingRun, "start", lambda self, **given: begun.append((self.folder.name, given)) or self)
    assert run("resume", "a", "b", "c", "--accept-changes")[0] == 0
    after = [("a", []), ("b", ["a"]), ("c", ["a", "b"])]
    assert begun == [(name, {"accept_changes": True, "after": others}) for name, others in after]


def test_a_folder_that_is_no_run_is_left_as_it_is(run, tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("folder", "gone", ""):
        code, printed, errors = run("resume", name)
        assert (code, printed, len(errors)) == (2, "", 1)
    for command in (["stop", ""], ["stop", "", "--now"], ["resume", "folder", ""]):
        assert run(*command)[0] == 2
    with pytest.raises(ValueError, match="an empty name is no run"):
        wait_for([""], tmp_path / "stop")
    assert [*tmp_path.rglob("*")] == [tmp_path / "folder"]


def test_the_panel_is_served_as_a_page(run, monkeypatch):
    served = []
    monkeypatch.setattr("vlmhelpers.studio.page.serve", lambda *args, **kw: served.append((args, kw)))
    assert run("studio")[0] == run("studio", "out/run", "--port", "9000", "--language", "de", "--no-browser")[0] == 0
    own = {"open_browser": False, "port": 9000, "language": "de"}
    assert served == [(("outputs/studio",), {"open_browser": True}), (("out/run",), own)]


def test_the_panel_speaks_one_of_its_languages(run, tmp_path):
    code, printed, errors = run("studio", "--language", "xx", "--no-browser")
    assert (code, printed) == (2, "") and "language 'xx': choose one of en, zh," in errors[-1]
    assert not os.listdir(tmp_path)


# As a program

IMPORTED = """
import atexit, runpy, sys
atexit.register(lambda: print(*sys.modules))
sys.argv = ["vlmhelpers", "--help"]
runpy.run_module("vlmhelpers", run_name="__main__")
"""


@pytest.mark.slow
def test_it_runs_as_a_module(file, tmp_path):
    file(*ROWS, BAD)
    command = [sys.executable, "-m", "vlmhelpers", "alpaca", "-i", "input.json", "-o", "output.jsonl"]
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == "" and "Traceback" not in done.stderr
    assert done.stderr.startswith("input.json, row 3: no field 'output' -> ")
    assert os.listdir(tmp_path) == ["input.json"]


def test_its_help_loads_nothing_heavy():
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True)
    assert "usage: python -m vlmhelpers" in done.stdout and " argparse " in done.stdout
    assert not {"torch", "transformers", "datasets", "numpy", "PIL", "pyarrow"} & set(done.stdout.split())


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_memory_that_runs_out_is_one_sentence(run, monkeypatch, error):
    def start(**_):
        try:
            raise error
        finally:
            raise AttributeError("'Pool' object has no attribute '_threads'")  # as a pool's clean-up does

    monkeypatch.setattr("vlmhelpers.cli.data.sample", start)
    code, _, errors = run("sample", "-o", "s.jsonl")
    assert (code, errors) == (2, ["vlmhelpers: no memory is left: end other programs, and start again"])
