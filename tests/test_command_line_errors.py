"""What a user can do to a command: it ends with an exit code and a short sentence, never with a traceback."""

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from vlmhelpers.cli import main
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.printable import one_line
from vlmhelpers.common.signals import Signals

ROW = {"text": "What?", "response": "A bag."}
SETTINGS = "model_id: qwen2.5-vl\ndataset: rows.jsonl\noutput_dir: out\n"
CONVERTERS = ("csv", "jsonl", "alpaca", "products")
NAMES = {  # a file of rows -> what it holds
    "empty.jsonl": b"",
    "binary.jsonl": bytes(range(256)) * 10,
    "nul.jsonl": bytes(3000),
    "utf16.jsonl": json.dumps(ROW).encode("utf-16"),
    "deep.jsonl": b'{"text":' * 3000,
    "digits.jsonl": b'{"text": ' + b"9" * 5000 + b', "response": "a"}',
    "scalar.jsonl": b"3",
    "numbers.jsonl": b"[1, 2]",
    "null.jsonl": b"null\n",
    "text.parquet": b"no",
    "empty.parquet": b"",
    "columns.csv": b"x,y\n1,2",
    "long.csv": b"a" * 200_000,
    "quote.csv": b'image_path,instruction,description\na,b,"c',
    "book.xlsx": b"PK\x03\x04aaaa",
}
PLACES = [
    "gone.jsonl",
    "folder",
    "",
    "http://localhost:1/rows.jsonl",
    "hf://datasets/a/b",
    "/dev/null",
    "loop",
    "x" * 5000,
]
WRONG_SETTINGS = {  # a file's name -> its content
    "key.yaml": f"{SETTINGS}epoch: 1",
    "list.yaml": "[1, 2]",
    "scalar.yaml": "3",
    "empty.yaml": "",
    "tag.yaml": f"{SETTINGS}seed: !!python/object/apply:os.system ['true']",
    "twice.yaml": f"{SETTINGS}seed: 1\nseed: 2",
    "bomb.yaml": "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]",
    "tab.yaml": f"{SETTINGS}\tseed: 1",
    "utf16.yaml": SETTINGS.encode("utf-16"),
    "binary.yaml": bytes(range(256)),
    "nan.yaml": f"{SETTINGS}learning_rate: .nan",
    "infinite.yaml": f"{SETTINGS}learning_rate: -.inf",
    "date.yaml": f"{SETTINGS}seed: 2020-01-01",
    "null.yaml": f"{SETTINGS}seed: null",
    "of_list.yaml": f"{SETTINGS}seed: [1]",
    "nested.yaml": f"{SETTINGS}seed: {'[' * 3000}",
    "two.yaml": f"{SETTINGS}---\n{SETTINGS}",
    "long.yaml": f"{SETTINGS}{'k' * 5000}: 1",
    "many.yaml": SETTINGS + "".join(f"k{number}: 1\n" for number in range(500)),
    "digits.yaml": f"{SETTINGS}seed: {'9' * 5000}",
    "large.yaml": "x" * 200_000,
    "cut.json": "{",
    "list.json": "[]",
    "twice.json": '{"seed": 1, "seed": 2}',
    "nested.json": "[" * 50_000,
    "settings.txt": SETTINGS,
}
WRONG_CHANGES = (
    ["seed", "=", "=3", "seed=", "seed=x", "seed=1.5", "seed=1e400", "seed=nan", "seed=[1]", "seed=true", "seed==3"]
    + [f"seed={'9' * 5000}", f"{'k' * 5000}=1", f"method={'x' * 5000}", "learning_rate=inf", "learning_rate=1,5"]
    + ["vision=maybe", "bits=8", "max_steps=0", "report_to=x", "model_id=", "output_dir=", "output_dir=rows.jsonl"]
    + ["output_dir=rows.jsonl/x", "image_root=gone", "dataset=folder", "dataset=gone.jsonl", "chat_template=gone.jinja"]
)
NO_MODELS = ["folder", "gone", "gone/gone", "rows.jsonl", "x" * 5000, "https://x/y", "/dev/null"]


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a command that cannot work: its one line on stderr, which is short."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW))
    (tmp_path / "ok.yaml").write_text(SETTINGS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")

    def run(*arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(list(arguments))
            except SystemExit as end:  # of argparse
                code = end.code
        line, *more = err.getvalue().splitlines()
        assert not more, err.getvalue()
        assert code == 2 and line == one_line(line) and len(line) <= 500 and "->" not in out.getvalue(), line
        assert "Traceback" not in line and "[Errno" not in line.partition("(")[0]
        return line

    return run


@pytest.mark.parametrize("name", [*NAMES, *PLACES])
def test_what_holds_no_rows(refused, tmp_path, name):
    if name in NAMES:
        (tmp_path / name).write_bytes(NAMES[name])
    there = sorted(os.listdir(tmp_path))
    for command in (["check", name], *([reader, "-i", name, "-o", "new.jsonl"] for reader in CONVERTERS)):
        refused(*command)
    assert sorted(os.listdir(tmp_path)) == there


@pytest.mark.parametrize("name", ["folder", "rows.jsonl/x", "/proc/x/y", "x" * 300, "/dev/stdout", ""])
def test_what_cannot_be_written_to(refused, tmp_path, name):
    for command in (["jsonl", "-i", "rows.jsonl", "-o", name], ["sample", "-o", name]):
        refused(*command)
    if name:
        refused("jsonl", "-i", "rows.jsonl", "-o", "new.jsonl", "--rejected", name)
    assert sorted(os.listdir(tmp_path)) == ["folder", "loop", "ok.yaml", "rows.jsonl"]


@pytest.mark.parametrize("name", WRONG_SETTINGS)
def test_settings_that_are_none(refused, tmp_path, name):
    content = WRONG_SETTINGS[name]
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for command in (["train", name], ["convert", name, "--to", "swift"]):
        assert name in refused(*command)


@pytest.mark.parametrize("change", WRONG_CHANGES)
def test_settings_that_are_changed_to_what_they_are_not(refused, change):
    refused("train", "ok.yaml", "--set", *([] if change.startswith("dataset") else ["dataset=gone.jsonl"]), change)


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_MODELS)
def test_what_is_no_model(refused, name):
    for command in ("generate", "evaluate", "chat", "merge", "export"):
        refused(command, name, *(["rows.jsonl"] if command in ("generate", "evaluate") else []))
    refused("push", name, "me/x")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x" * 5000],
        [f"--{'x' * 5000}"],
        ["check"],
        ["check", "a", "b"],
        ["sample", "-o", "s.jsonl", "--num-examples", "1" * 5000],
        ["sample", "-o", "s.jsonl", "--size", "-5"],
        ["sample", "-o", "s.jsonl", "--size", "1000000000"],
        ["convert", "ok.yaml"],
        ["convert", "ok.yaml", "--to", "swift", "--name", "a/b"],
        ["generate", "qwen2.5-vl", "--prompt", "What?", "--image", "rows.jsonl"],
        ["preflight", "ok.yaml", "--gpu", "x" * 3000],
        ["serve", "--port", "99999999"],
        ["serve", "--token-file", "gone"],
        ["studio", "--language", "x" * 3000, "--no-browser"],
    ],
)
def test_arguments_that_are_none(refused, arguments):
    refused(*arguments)


@pytest.mark.parametrize("error", [CannotRun("there is no GPU: find one"), ImportError("no onnx: pip install it")])
def test_what_the_machine_lacks_is_a_sentence(refused, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("vlmhelpers.cli.data.sample", fail)
    assert refused("sample", "-o", "s.jsonl") == f"vlmhelpers: {error}"


def test_an_error_of_arguments_names_the_help(refused):
    assert refused("train", "--epochs").endswith("See python -m vlmhelpers --help")


# Streams and signals


def run(tmp_path, script):
    """What a shell makes of a script in which $RUN is the command line: its exit code, and what came out on stderr."""
    command = f'cd {tmp_path}; RUN="{sys.executable} -m vlmhelpers"; {script}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such shell")
@pytest.mark.parametrize(
    ("script", "code", "error"),
    [
        ("$RUN train --help | true; exit ${PIPESTATUS[0]}", 141, "vlmhelpers: the program that read the output has"),
        ("$RUN sample -o s.jsonl | true; exit ${PIPESTATUS[0]}", 141, "vlmhelpers: the program that read the output"),
        ("$RUN train --help >/dev/full", 2, "vlmhelpers: <stdout> cannot be written to: No space left on device"),
        ("$RUN sample -o s.jsonl >/dev/full", 2, "vlmhelpers: <stdout> cannot be written to: No space left on device"),
        ("$RUN sample -o s.jsonl >&-", 0, ""),
        ("$RUN sample -o s.jsonl <&- >&- 2>&-", 0, ""),
        ("$RUN status gone 2>&-", 2, ""),
        ("$RUN status gone 2>/dev/full", 2, ""),
        ("PYTHONIOENCODING=ascii $RUN status $'gone\\u00e9'", 2, r"vlmhelpers: gone\xe9 is not there"),
        ("ulimit -f 0; trap '' XFSZ; $RUN sample -o s.jsonl", 2, "vlmhelpers: the disk took no more of images/"),
    ],
)
def test_streams_that_are_closed_or_full(tmp_path, script, code, error):
    found, said = run(tmp_path, script)
    assert found == code and said.startswith(error) and len(said.splitlines()) == bool(error), said


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_an_interruption_at_any_moment_is_one_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(ROW)}\n" * 200_000)
    for seconds in (0.15, 0.3, 0.6, 1.2, 2, 3):
        command = [sys.executable, "-m", "vlmhelpers", "jsonl", "-i", "rows.jsonl", "-o", "new.jsonl"]
        with subprocess.Popen(
            command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
            without_bars = re.sub(r"[^\r\n]*rows/s[^\]]*\]", "", process.stderr.read())
            said = [line for line in without_bars.splitlines() if line.strip()]
        assert (process.returncode, said) in [(130, ["vlmhelpers: interrupted"]), (0, [])], seconds
    assert os.listdir(tmp_path) in (["rows.jsonl"], ["new.jsonl", "rows.jsonl"])


IN_A_DESTRUCTOR = """
import signal, time
from vlmhelpers.common.signals import Signals

class Interrupting:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

signals = Signals()
signals.begin()
Interrupting()
try:
    while True:
        time.sleep(0.01)
except KeyboardInterrupt:
    print("interrupted later")
"""


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
def test_an_interruption_in_a_destructor_is_not_forgotten():
    done = subprocess.run([sys.executable, "-c", IN_A_DESTRUCTOR], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted later\n", "")


@pytest.mark.skipif(os.name == "nt", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_it_begins_a_command_is_ended_at_once(number):
    script = f"import os\nfrom vlmhelpers.common.signals import Signals\nSignals()\nos.kill(os.getpid(), {int(number)})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert (done.returncode, done.stderr) == (128 + number, f"vlmhelpers: {word}\n")


def test_what_a_library_makes_of_an_interruption_is_one_still(refused, capsys, monkeypatch):
    def fail(*arguments, **options):
        try:
            signals.received = KeyboardInterrupt()
            raise signals.received
        except KeyboardInterrupt:
            raise ImportError("cannot import") from None

    signals = Signals.__new__(Signals)
    signals.received = None
    monkeypatch.setattr("vlmhelpers.cli.data.sample", fail)
    assert main(["sample", "-o", "s.jsonl"], signals) == 130
    assert capsys.readouterr().err == "vlmhelpers: interrupted\n"
