"""What errors and reports advise, arguments of a reader, as options of a command, which can be typed."""

import ast
import re
import shlex
from contextlib import suppress

import vlmhelpers as vlm
from vlmhelpers.cli.parser import OF_RUNS, STEPS, options_of

_TEXT = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\""""  # as repr writes it
_ARGUMENT = re.compile(rf"(\w+)=({_TEXT})")
_UNNAMED = re.compile(r"(?<=pass )((?:another )?image_root)(?![\w=])")
_ADVICE = re.compile(
    rf"read_(?P<reader>\w+)\(\.\.\., (?P<given>(?:(?:, )?\w+=(?:{_TEXT}))+)\)"
    rf"|(?<![\w-])(?:\w+_field|instruction|image_root)=(?:{_TEXT})"
)
_USUAL = {  # what readers call the fields that commands for rows of any kind call otherwise
    **dict.fromkeys(["output_field", "chosen_field", "completion_field", "answer_field"], "response_field"),
    "instruction_field": "text_field",
}


def with_options(command: str, text: str) -> str:
    """A text with the options of a command, as a shell takes them, in place of the arguments of a reader.

    What the command does not have is an option of the converter that does; what none has stays.
    """

    def option(found):
        arguments = found["given"] or found[0]
        converter = found["reader"] or "jsonl"
        others = _options(converter, arguments)
        return _options(command, arguments) or (others and f"{converter} {others}") or found[0]

    return _ADVICE.sub(option, _UNNAMED.sub(r"\1='...'", text))


def _options(command, arguments):
    """The options for arguments of a reader; None where the command lacks one, or a text of others looked like some."""
    there = _named(command)
    with suppress(SyntaxError, ValueError, KeyError):
        given = [(name, ast.literal_eval(value)) for name, value in _ARGUMENT.findall(arguments)]
        named = [(name if name in there else _USUAL[name], value) for name, value in given]
        return " ".join(_option(command, name, value, there[name]) for name, value in named)
    return None


def _named(command):
    """The names of arguments that a command has options for -> what its help calls their values."""
    if command in OF_RUNS:
        return {name: "FOLDER" if name == "image_root" else "NAME" for name in vlm.RunConfig.described()}
    if command in STEPS:
        return {"image_root": "FOLDER"} if "image_root" in STEPS[command].described() else {}
    return {flag.removeprefix("--").replace("-", "_"): shown for flag, shown in options_of(command).items()}


def _option(command, name, value, placeholder):
    value = placeholder if value == "..." else value
    if command in OF_RUNS:
        return f"--set {shlex.quote(f'{name}={value}')}"
    return f"--{name.replace('_', '-')}{'=' if value.startswith('-') else ' '}{shlex.quote(value)}"
