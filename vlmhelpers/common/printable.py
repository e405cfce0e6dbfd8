"""Text from others as a terminal, a table or an error may show it. Loads nothing heavy."""

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TextIO

# What steers a terminal, turns the direction of a text, or cannot be encoded; not the joiners U+200C and U+200D, which
# emoji, Persian and Hindi need.
_CONTROL = re.compile("[\0-\b\v-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COLOR = re.compile(r"\x1b\[[\d;]*m")  # as libraries write it
_UP = re.compile(r"\n*(?:\x1b\[A)*")  # as tqdm writes it, alone, between two bars


def printable(text: str) -> str:
    r"""`text`, which may be `Markup`, with its control characters as escapes such as \x1b. Line breaks and tabs stay.

    What a terminal, a table or an error shows of data, names of files included, goes through it.
    """
    return type(text)(_CONTROL.sub(lambda found: repr(found[0])[1:-1], text.replace("\r\n", "\n")))


def one_line(text: str) -> str:
    """`text` as `printable` makes it, on one line."""
    return " ".join(filter(None, map(str.strip, printable(text).split("\n"))))


def shortened(text: str, length: int = 500) -> str:
    """`text` in at most `length` characters: its beginning and, as that of an error is the remedy, a longer end."""
    if len(text) <= length:
        return text
    start = length // 3
    return f"{text[:start]} … {text[start + 3 - length :]}"


class NotWritten(OSError):
    """A stream took no more: its reader has ended, or the disk is full."""


class PrintableStream:
    """A text stream to a terminal or a file that gets what is written as `printable` makes it, without colors.

    What its encoding does not have is written as an escape. Raises NotWritten.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._failure = stream, None

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if not _UP.fullmatch(text):
            start = "\r" * text.startswith("\r")  # as tqdm begins a line anew
            text = start + printable(_COLOR.sub("", text[len(start) :]))
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._attempt(self._stream.write, text.encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._attempt(self._stream.flush)
        if self._failure:  # of an earlier write, which others may have kept to themselves, as argparse does
            raise self._failure

    def _attempt(self, act, *arguments):
        try:
            return act(*arguments)
        except OSError as error:
            self._discard()
            name = getattr(self._stream, "name", "the output")
            self._failure = NotWritten(error.errno, f"{name} cannot be written to: {error.strerror}")
            raise self._failure from error

    def _discard(self):
        """What waits to be written goes nowhere: Python would try again, and complain, when the process ends."""
        with suppress(OSError, ValueError), open(os.devnull, "wb") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())
