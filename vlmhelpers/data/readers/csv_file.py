"""A CSV file as records of cells, whatever program wrote it: its encoding, its separator, its quotes.

What had to be guessed is noted for the record, what is wrong with a record is said of that record alone, and
what makes the rest of the file unreadable is an error that names the row.
"""

import csv
import re
from dataclasses import dataclass, field

from vlmhelpers.data.readers.text_file import check_encoding

_DELIMITERS = ",;\t"
# What Python's `surrogateescape` leaves of a byte that is not UTF-8 -> its character in Windows-1252, which
# has none for five of the bytes.
_UNDECODED = re.compile("[\udc80-\udcff]")
_WINDOWS_1252 = {
    0xDC00 + byte: bytes([byte]).decode("cp1252")
    for byte in range(0x80, 0x100)
    if byte not in (0x81, 0x8D, 0x8F, 0x90, 0x9D)
}


@dataclass
class Record:
    """One data row: as many `cells` as the header has, without the spaces around them."""

    cells: list
    problems: list = field(default_factory=list)  # (reason, remedy) pairs
    note: str = ""  # what was guessed in order to read it


def read_table(path):
    """The column names of the CSV at `path`, and an iterator over its Records; blank lines do not count.

    The file is UTF-8 with or without a byte order mark; bytes that are not UTF-8 are read as Windows-1252.
    The separator is the one of comma, semicolon and tab that parts the first line into most cells. A record
    with too few cells is filled up with empty ones; of too many, the surplus is joined to the last one, so
    that no text is lost. Raises ValueError for another encoding, an empty file or a column named twice,
    and, while the records are read, for a quote that never closes.
    """
    remedy = "Save it as 'CSV UTF-8 (comma delimited)' and read that."
    check_encoding(path, remedy, "Its first line has to name the columns.")
    delimiter = _delimiter(path)
    records = _records(path, delimiter)
    header = _names(next(records), path)
    return header, (_fit(record, len(header), delimiter) for record in records)


def _open(path):
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(path):
    with _open(path) as file:
        first = next(line for line in file if line.strip())[:10_000]
    return max(_DELIMITERS, key=lambda mark: len(next(csv.reader([first], delimiter=mark))))


class _Lines:
    """The lines of a file, decoded, for csv.reader; it keeps those taken since `taken` was last emptied."""

    def __init__(self, file):
        self.file, self.taken, self.number = file, [], 0
        self.guessed = False

    def __iter__(self):
        for line in self.file:
            if not line.isascii() and _UNDECODED.search(line):
                line, self.guessed = line.translate(_WINDOWS_1252), True
            self.taken.append(line)
            self.number += 1
            yield line


def _records(path, delimiter):
    """The Records of the file as they stand there, the header first."""
    with _open(path) as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
        row = 0  # the header's
        while record := _next_record(reader, lines, f"{path}, row {row}"):
            if len(record.cells) > 1 or "".join(record.cells).strip():
                yield record
                row += 1


def _next_record(reader, lines, place):
    """The reader's next record, None at the end; `place` names it in an error."""
    try:
        record = Record(next(reader))
    except StopIteration:
        return None
    except csv.Error as error:
        if "expected after" not in str(error):  # the end of the file, or 131,072 characters in one cell
            first = lines.number - len(lines.taken) + 1
            remedy = 'Close it; a quote inside a quoted text is written twice ("").'
            raise ValueError(f"{place} (line {first}): a quote opens and does not close: {error}. {remedy}") from None
        lenient = csv.reader(lines.taken, delimiter=reader.dialect.delimiter, skipinitialspace=True)
        cells = [cell for line in lenient for cell in line]
        record = Record(cells, [("misplaced quote", 'write a quote inside a quoted text twice ("")')])
    if lines.guessed:
        _settle_bytes(record)
    lines.taken, lines.guessed = [], False
    return record


def _settle_bytes(record):
    record.note = "bytes that are not UTF-8 read as Windows-1252"
    if any(_UNDECODED.search(cell) for cell in record.cells):
        record.problems.append(("bytes that no known encoding has", "save the file as UTF-8 and mend the text"))
        record.cells = [_UNDECODED.sub("\ufffd", cell) for cell in record.cells]


def _names(header, path):
    if header.problems:
        raise ValueError(f"{path}, header: {header.problems[0][0]}. Remedy: {header.problems[0][1]}.")
    names = [cell.strip() or f"column_{i}" for i, cell in enumerate(header.cells, start=1)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path} has two columns named {twice[0]!r}. Rename or remove one of them.")
    return names


def _fit(record, width, delimiter):
    """The record with trimmed cells, `width` of them."""
    cells = record.cells
    while len(cells) > width and not cells[-1].strip():  # separators at a line's end are harmless
        cells.pop()
    if len(cells) != width and not record.problems:
        few = len(cells) < width
        remedy = "fill in the missing ones" if few else "put a text with a separator in it in double quotes"
        record.problems.append((f"too {'few' if few else 'many'} cells: {len(cells)} of {width}", remedy))
    cells = [*cells[: width - 1], f"{delimiter} ".join(cells[width - 1 :])]
    cells = [cell.strip().replace("\r\n", "\n").replace("\r", "\n") for cell in cells]
    record.cells = cells + [""] * (width - len(cells))
    return record
