"""A JSON file as records: a list of objects, or one object per line (JSONL), in the memory that one row takes.

What is wrong with one line or one item is said of that record alone. Broken syntax inside a list makes the rest
of it unreadable, and is an error that names the row.
"""

import itertools
import json
import re
from typing import NamedTuple

import ijson

from vlmhelpers.data.readers.text_file import BYTE_ORDER_MARK, check_encoding

EXPECTED = "Expected is a list of objects ([{...}, {...}]), or one object per line (JSONL)."
_CHUNK = 65_536  # bytes
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class Record(NamedTuple):
    """One row: its object, or, with `problems` ((reason, remedy) pairs), what could be read of it."""

    value: object
    problems: list


def read_objects(path):
    """Yields a Record for each row of the JSON or JSONL file at `path`; its first character says which it is.

    A line that is not JSON, not UTF-8 or no object, and an item that is no object, become Records with a
    problem; blank lines do not count. Raises ValueError, with the row and a remedy, for broken syntax inside a
    list and for an object spread over several lines; also for another encoding and for a file without rows.
    """
    check_encoding(path, "Unpack it, or save it as UTF-8 text, and read that.", EXPECTED)
    with open(path, "rb") as file:
        records = _items(file, path) if _first_character(file) == b"[" else _lines(file, path)
        first = next(records, None)
        if first is None:
            raise ValueError(f"{path} holds no rows. {EXPECTED}")
        yield first
        yield from records


def _first_character(file):
    """The first character that is not blank; `file` then stands behind the byte order mark, if there is one."""
    start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
    file.seek(start)
    while (character := file.read(1)).isspace():
        pass
    file.seek(start)
    return character


def _items(file, path):
    """The Records of a list. Where it breaks off, the items before that come first."""
    items = ijson.sendable_list()
    parser = ijson.items_coro(items, "item", use_float=True)
    number = 0
    for chunk in itertools.chain(iter(lambda: file.read(_CHUNK), b""), [b""]):
        failure = _feed(parser, chunk)
        for item in items:
            number += 1
            yield _checked(item)
        items.clear()
        if failure:
            remedy = "Mend it there (is the file cut off, is there a comma too few or too many?)"
            raise ValueError(
                f"{path}, row {number + 1}: the list is no JSON from here on: {failure}. {remedy}, or write one object "
                "per line (JSONL), where a broken line costs that row alone."
            )


def _feed(parser, chunk):
    """Gives the parser a chunk, an empty one at the end of the file; returns what is wrong with it, if anything."""
    try:
        parser.send(chunk) if chunk else parser.close()
    except (ijson.JSONError, ValueError) as error:
        return re.split(r"\n|\\n", str(error).removeprefix("b'"))[0].rstrip(". ")
    return None


def _checked(value):
    if isinstance(value, dict):
        return Record(value, [])
    text = json.dumps(value, ensure_ascii=False)
    return Record(text, [(f"no object: {text[:40]}", 'write {"name": value, ...}')])


def _lines(file, path):
    """The Records of a JSONL file."""
    numbered = ((number, line) for number, line in enumerate(file, 1) if line.strip())
    ahead = list(itertools.islice(numbered, 2))
    if len(ahead) == 2 and _is_spread(*ahead):
        raise ValueError(
            f"{path}, line {ahead[0][0]}: an object that is spread over several lines. {EXPECTED} Write each object on "
            "one line; where one object holds all the rows, save the list inside it as a file of its own."
        )
    for number, line in itertools.chain(ahead, numbered):
        yield _line_record(number, line)


def _is_spread(first, second):
    """Whether the first (number, line) ends in the middle of an object that the second goes on with."""
    text = first[1].decode(errors="replace").rstrip()
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        if getattr(error, "pos", 0) >= len(text):
            return text.endswith(("{", "[")) or bool(_line_record(*second).problems)
    return False


def _line_record(number, line):
    """A line's Record; what is no object keeps its text, so that it can be mended."""
    try:
        text = line.decode().rstrip()
        value = json.loads(text)
    except UnicodeDecodeError as error:
        reason = f"not UTF-8: byte 0x{line[error.start]:02x} at position {error.start + 1} of line {number}"
        return Record(line.decode(errors="replace").strip(), [(reason, "save the file as UTF-8 and mend the text")])
    except (ValueError, RecursionError) as error:
        reason = f"not JSON: {_explain(error)} of line {number}"
        return Record(text.strip(), [(reason, 'write one whole object on the line: {"name": value, ...}')])
    return _paired(value) if _HALF_PAIR.search(text) else _checked(value)


def _explain(error):
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "nested too deeply, or a number with too many digits, at some place"


def _paired(value):
    """The Record of a value whose texts may hold one half of a UTF-16 pair, which no file can keep."""
    text = json.dumps(value, ensure_ascii=False)
    record = _checked(json.loads(text.encode(errors="replace")))
    if not _is_unicode(text):
        record.problems.append((r"half of a UTF-16 pair (\ud800 to \udfff)", "write the whole character"))
    return record


def _is_unicode(text):
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
