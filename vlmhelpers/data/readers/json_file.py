"""JSON files as rows: a list of objects, or one object per line (JSONL), in the memory that one row takes."""

import itertools
import json
import os
import re
from collections.abc import Iterator

import ijson

from vlmhelpers.data.readers.source import BYTE_ORDER_MARK, DataError, SourceRow, check_encoding

EXPECTED = "Expected is a list of objects ([{...}, {...}]), or one object per line (JSONL)."
_CHUNK = 65_536  # bytes
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
    items = ijson.sendable_list()
    parser = ijson.items_coro(items, "item", use_float=True)
    number, failure = 0, None
    for chunk in itertools.chain(iter(lambda: file.read(_CHUNK), b""), [b""]):
        try:
            parser.send(chunk) if chunk else parser.close()
        except (ijson.JSONError, ValueError) as error:
            failure = re.split(r"\n|\\n", str(error).removeprefix("b'"))[0].rstrip(". ")
        number += len(items)
        yield from map(_row, items)
        items.clear()
        if failure:
            raise DataError(
                f"{path}, row {number + 1}: the list is no JSON from here on: {failure}. Mend it there (is the file "
                "cut off, is there a comma too few or too many?), or write one object per line (JSONL), where a "
                "broken line costs that row alone."
            )
    if not number:
        raise DataError(f"{path} holds no rows. {EXPECTED}")


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
    if not _HALF_PAIR.search(text):
        return _row(value)
    storable = json.loads(json.dumps(value, ensure_ascii=False).encode(errors="replace"))
    halves = (r"half of a UTF-16 pair (\ud800 to \udfff)", "write the whole character")
    return _row(storable, [halves] if storable != value else [])


def _row(value, problems=()):
    if isinstance(value, dict):
        return SourceRow(value, problems)
    text = json.dumps(value, ensure_ascii=False)
    return SourceRow({}, [*problems, (f"no object: {text[:40]}", 'write {"name": value, ...}')], text)
