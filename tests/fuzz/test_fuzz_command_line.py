"""Command lines of any arguments: an exit code that is documented, and short printable lines where it is 2."""

import argparse
import contextlib
import io
import os

from fuzzing import assert_sentence, folder_with, texts
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.cli import main
from vlmhelpers.cli.parser import make_parser

COMMANDS = ["csv", "jsonl", "alpaca", "products", "check", "sample", "status", "stop", "convert", "preflight", "train"]
COMMANDS += ["generate", "evaluate", "merge", "export", "push", "chat", "none", ""]
FILES = {
    "rows__jsonl": b'{"text": "What?", "response": "A bag.", "image": "a.png"}\n{"text": "Why?", "response": "So."}',
    "rows__csv": b"image_path,instruction,description\na.png,What?,A bag.\n",
    "alpaca__json": b'[{"instruction": "Why?", "input": "", "output": "So."}]',
    "talk__jsonl": b'{"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]}',
    "run__yaml": b"model_id: gone\ndataset: gone.jsonl\noutput_dir: out\n",
    "a__png": b"\x89PNG\r\n\x1a\n",
}
NAMES = [name.replace("__", ".") for name in FILES]
NUMBERS = ["0", "1", "2", "-1", "3.5", "nan", "9" * 30]
SAFE = texts.filter(lambda text: "\0" not in text and not text.startswith(("/", "..")) and ".png" not in text)
VALUES = st.one_of(st.sampled_from([*NAMES, "gone", "out.jsonl", "new/out.jsonl", ".", *NUMBERS]), SAFE)
(PARSERS,) = [action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction)]


@st.composite
def command_lines(draw):
    """A command with its own options, most of them with a value, and sometimes those of others."""
    command = draw(st.sampled_from(COMMANDS))
    parser = PARSERS.choices.get(command, PARSERS.choices["check"])
    options = [option for action in parser._actions for option in action.option_strings if action.dest != "help"]
    pieces = [[option, draw(VALUES)] for option in ("-i", "-o") if option in options]
    others = st.tuples(st.sampled_from([*options, "--x", ""]), st.lists(VALUES, max_size=2))
    pieces += [[option, *found] for option, found in draw(st.lists(others, max_size=4))]
    places = [] if "-i" in options else draw(st.lists(VALUES, max_size=2))
    return [command, *places, *(part for piece in draw(st.permutations(pieces)) for part in piece)]


def is_safe(arguments):
    """Whether it ends by itself in a moment: it starts no server, draws few images and loads no model."""
    large = any(text.isdecimal() and int(text) > 9 for text in arguments)
    return not large and not {"--host", "--port"} & set(arguments)


@given(command_lines().filter(is_safe))
def test_any_command_line(arguments):
    out, err = io.StringIO(), io.StringIO()
    with folder_with() as outside, contextlib.chdir(outside):
        os.mkdir("inside")
        for name, content in FILES.items():
            with open(os.path.join("inside", name.replace("__", ".")), "wb") as file:
                file.write(content)
        with contextlib.chdir("inside"), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(arguments)
            except SystemExit as end:  # of argparse
                code = end.code
    assert code in (0, 1, 2) and "Traceback" not in err.getvalue(), err.getvalue()
    if code == 2:
        assert_sentence(err.getvalue().splitlines()[-1])
