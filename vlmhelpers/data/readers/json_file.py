"""JSON files as rows: a list of objects, or one object per line (JSONL), in the memory that one row takes."""

import codecs
import itertools
import json
import os
import re
from collections.abc import Iterator

from vlmhelpers.data.readers.source import BYTE_ORDER_MARK, DataError, SourceRow, check_encoding

EXPECTED = "Expected is a list of objects ([{...}, {...}]), or one object per line (JSONL)."
_CHUNK = 2**20  # bytes
_BLANKS = re.compile(r"[ \t\r\n]*")
_LONGEST_WORD = 20  # characters of what may be cut at the end of what was read: true, \\u00e9, -1.5e-300
_NOT_UTF_8 = re.compile("[\udc80-\udcff]")  # what `surrogateescape` leaves of bytes that are not UTF-8
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


def read_objects(path: str | os.PathLike) -> Iterator[SourceRow]:
    """Yields each row of a JSON or JSONL file; its first character tells which it is.

    A line that is not JSON, not UTF-8 or no object, and an item that is no object, become rows with a problem and
    their text; blank lines do not count. Raises ValueError, with the row and a remedy, for broken syntax inside a list
    and an object spread over several lines, and for another encoding and a file without rows.
    """
    check_encoding(path, "Unpack it, or save it as UTF-8 text, and read that.", EXPECTED)
    with open(path, "rb") as file:
        start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
        file.seek(start)
        while (character := file.read(1)).isspace():
            pass
        file.seek(start)
        yield from (_items if character == b"[" else _lines)(file, path)


def _items(file, path):
    """The rows of a list. Where it breaks off, the items before that come first."""
    number = 0
    try:
        for value, has_half in _values(file):
            yield _storable(value, has_half)
            number += 1
    except (ValueError, RecursionError) as error:
        why = "nested too deeply, or a number with too many digits"
        raise DataError(
            f"{path}, row {number + 1}: the list is no JSON from here on: {error if error.args[1:] else why}. Mend it "
            "there (is the file cut off, is there a comma too few or too many?), or write one object per line (JSONL), "
            "where a broken line costs that row alone."
        ) from None
    if not number:
        raise DataError(f"{path} holds no rows. {EXPECTED}")


def _values(file):
    """Yields (item, whether it may hold half of a UTF-16 pair) of a list; no more than one is in memory."""
    text = _Text(file)
    text.take("[")
    is_first = True
    while text.next() != "]":
        if not is_first:
            text.take(",")
        yield text.value()
        is_first = False
    text.take("]")
    if text.next():
        raise _Broken("Extra data", "after the list")


class _Broken(ValueError):
    def __str__(self):
        return " ".join(self.args)


class _Text:
    """The text of a file and a place in it; of what lies before, nothing is kept."""

    def __init__(self, file):
        self.file, self.text, self.place, self.has_ended = file, "", 0, False
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
        self._scan = json.JSONDecoder().raw_decode

    def _read_on(self):
        """As much again as is held: what is scanned anew each time costs no more than twice its length."""
        data = self.file.read(max(_CHUNK, len(self.text) - self.place))
        self.text, self.place = self.text[self.place :] + self._decode(data, not data), 0
        self.has_ended = not data

    def next(self) -> str:
        """The next character that is no blank, "" at the end."""
        while True:
            self.place = _BLANKS.match(self.text, self.place).end()
            if self.place < len(self.text) or self.has_ended:
                return self.text[self.place : self.place + 1]
            self._read_on()

    def take(self, character: str) -> None:
        if self.next() != character:
            raise _Broken(f"Expecting {character!r}", f"before {self.text[self.place :][:20]!r}")
        self.place += 1

    def value(self) -> tuple[object, bool]:
        """The next value, and whether its text may hold half of a UTF-16 pair."""
        self.next()
        while True:
            try:
                value, end = self._scan(self.text, self.place)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - _LONGEST_WORD
                if self.has_ended or not is_cut:
                    raise _Broken(error.msg, f"at character {error.pos - self.place + 1} of the row") from None
            else:
                if end < len(self.text) or self.has_ended:  # else a number may go on
                    break
            self._read_on()
        start, self.place = self.place, end
        if wrong := _NOT_UTF_8.search(self.text, start, end):
            raise _Broken(
                f"not UTF-8: byte 0x{ord(wrong[0]) - 0xDC00:02x}", f"at character {wrong.start() - start + 1}"
            )
        return value, bool(_HALF_PAIR.search(self.text, start, end))


def _lines(file, path):
    numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
    ahead = list(itertools.islice(numbered, 2))
    if len(ahead) == 2 and _is_spread(*ahead):
        raise DataError(
            f"{path}, line {ahead[0][0]}: an object that is spread over several lines. {EXPECTED} Write each object "
            "on one line; where one object holds all the rows, save the list inside it as a file of its own."
        )
    yield from itertools.starmap(_row_of_line, itertools.chain(ahead, numbered))


def _is_spread(first, second):
    """Whether the first (number, line) ends in the middle of an object that the second goes on with."""
    text = first[1].decode(errors="replace").rstrip()
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "pos", 0) >= len(text):
            return text.endswith(("{", "[")) or bool(_row_of_line(*second).problems)
    return False


def _row_of_line(number, line):
    text = line.decode(errors="replace").strip()
    try:
        value = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1} of line {number}"
        return SourceRow({}, [(reason, "save the file as UTF-8 and correct the text")], text)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply, or a number with too many digits, somewhere"
        if isinstance(error, json.JSONDecodeError):
            why = f"{error.msg} at character {error.pos + 1}"
        problem = (f"not JSON: {why} of line {number}", 'write one whole object on the line: {"name": value, ...}')
        return SourceRow({}, [problem], text)
    return _storable(value, bool(_HALF_PAIR.search(text)))


def _storable(value, has_half):
    """The row of a value; half of a UTF-16 pair, which cannot be stored, is a problem of it."""
    if not has_half:
        return _row(value)
    storable = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    halves = (r"half of a UTF-16 pair (\ud800 to \udfff)", "write the whole character")
    return _row(storable, [halves] if storable != value else [])


def _row(value, problems=()):
    if isinstance(value, dict):
        return SourceRow(value, problems)
    text = json.dumps(value, ensure_ascii=False)
    return SourceRow({}, [*problems, (f"no object: {text[:40]}", 'write {"name": value, ...}')], text)
