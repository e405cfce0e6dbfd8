"""CSV files as rows, whatever program wrote them: their encoding, separator and quotes."""

import codecs
import csv
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

from charset_normalizer import from_bytes

from vlmhelpers.data.readers.source import DataError, SourceRow, check_encoding
from vlmhelpers.data.spreadsheets import REASON, REMEDY, SOURCE_ROW, cell_text

_EXPECTED = "Its first line has to name the columns."
_REMEDY = "Save it as 'CSV UTF-8 (comma delimited)' and read that."
_LONGEST_CELL = 2**24  # characters; Python's own limit is 131,072
csv.field_size_limit(_LONGEST_CELL)
_UNDECODED = re.compile("[\udc80-\udcff]")  # what `surrogateescape` leaves of bytes that are not UTF-8
_SEPARATOR = re.compile('\ufeff?"?sep=(.)"?[,;\t]*[\r\n]*', re.IGNORECASE)  # a first line by which Excel is told
_NO_VALUE = ("nan", "NaN", "None", "null")  # what programs write into a cell for none
_ENCODINGS = {  # those of spreadsheets, by Python's name and the one that people know
    **{f"cp125{number}": f"Windows-125{number}" for number in (2, 0, 1, 3, 4)},
    **{"mac_roman": "Mac Roman", "gb18030": "GBK", "big5": "Big5", "cp932": "Shift JIS", "cp949": "Korean (CP949)"},
}
_SAMPLE = 2**16  # characters by which an encoding is recognized
_NOT_IN_A_WORD = re.compile(
    "[a-z\u00df-\u00ff]([\u00c0-\u00de]|(?![\u00df-\u00ff\u0152-\u0192\u00b7\u00ad\u2010-\u201d])[\u0080-\u2122](?=\\w))"
)
_WINDOWS_1252 = {0xDC00 + byte: text for byte in range(128, 256) if (text := bytes([byte]).decode("cp1252", "ignore"))}


def read_table(path: str | os.PathLike) -> tuple[list[str], Iterator[SourceRow]]:
    """The column names of the CSV at `path`, and its rows, which are read while they are asked for.

    UTF-8 with or without a byte order mark, and UTF-16 with one; other bytes are read as Windows-1252 where that makes
    words, else in the encoding that they look like, with a note. The separator is that of a line `sep=;`, or the one of
    comma, semicolon and tab that parts the first line into most cells. Cells lose the spaces around them;
    blank lines do not count. A row with too few cells is filled up; surplus ones are joined to the last. What
    `Report.save_rejected` wrote is read as it was before. Raises ValueError for another encoding, damaged UTF-16, an
    empty file or a column named twice, and, while the rows are read, for a quote that never closes.
    """
    if not _is_utf_16(path):
        check_encoding(path, _REMEDY, _EXPECTED)
    with _open(path) as file:
        first = next((line for line in file if line.strip()), "")[:10_000]
    told = _SEPARATOR.fullmatch(first)
    delimiter = told[1] if told else max(",;\t", key=lambda mark: len(next(csv.reader([first], delimiter=mark))))
    decode = _Decoder(path)
    records = _records(path, delimiter, decode, first if told else None)
    cells, problems, _ = next(records, ([], [], []))
    for reason, remedy in problems:
        raise DataError(f"{path}, header: {reason}. Remedy: {remedy}.")
    if not cells:
        raise DataError(f"{path} is empty. {_EXPECTED}")
    header = [cell.strip() or f"column_{i}" for i, cell in enumerate(cells, start=1)]
    was_text = cell_text if {SOURCE_ROW, REASON, REMEDY} <= set(header) else str
    header = list(map(was_text, header))
    if twice := next((name for name, count in Counter(header).items() if count > 1), None):
        raise DataError(f"{path} has two columns named {twice!r}. Rename or remove one of them.")
    return header, (_row(header, delimiter, was_text, decode, *record) for record in records)


def _is_utf_16(path):
    """Whether the file begins with the byte order mark of UTF-16, and not of UTF-32."""
    with open(path, "rb") as file:
        mark = file.read(4)
    return mark.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and mark != codecs.BOM_UTF32_LE


@contextmanager
def _open(path):
    """The file as text, its line ends as they are."""
    encoding, errors = ("utf-16", "strict") if _is_utf_16(path) else ("utf-8-sig", "surrogateescape")
    with open(path, encoding=encoding, errors=errors, newline="") as file:
        try:
            yield file
        except UnicodeError as error:
            raise DataError(f"{path} is damaged UTF-16 text: {error}. {_REMEDY}") from None


class _Decoder:
    """Called with a line of the file, gives it with its bytes that are not UTF-8 in the encoding of the file.

    `name` of that encoding, which is recognized when it is needed.
    """

    def __init__(self, path):
        self._path = path

    @cached_property
    def _encoding(self):
        with _open(self._path) as file:
            lines, size = [], 0
            for line in filter(_UNDECODED.search, file):
                lines.append(_as_bytes(line[:_SAMPLE]))
                if (size := size + len(lines[-1])) > _SAMPLE:
                    break
        return _recognize(b"".join(lines))

    @property
    def name(self):
        return _ENCODINGS[self._encoding]

    def __call__(self, line):
        if line.isascii() or not _UNDECODED.search(line):
            return line
        if self._encoding == "cp1252":  # where it stands, also in a line that has UTF-8
            return line.translate(_WINDOWS_1252)
        return _as_bytes(line).decode(self._encoding, "surrogateescape")


def _as_bytes(line):
    return line.encode("utf-8", "surrogateescape")


def _recognize(sample):
    """The encoding of bytes that are not UTF-8: Windows-1252 wherever it makes words of them, or nothing else does."""
    western = sample.decode("cp1252", "replace")
    if not any(map(str.isalpha, filter(lambda mark: mark > "\x7f", western))):  # dashes, quotes, signs
        return "cp1252"
    found = from_bytes(sample, cp_isolation=[*_ENCODINGS])
    may_be = {name for match in found for name in match.could_be_from_charset}
    if not found or ("cp1252" in may_be and not _NOT_IN_A_WORD.search(western)):
        return "cp1252"
    others = (match.encoding for match in found if match.encoding != "cp1252")
    return next(others, "cp1252")


def _records(path, delimiter, decode, told=None):
    """(cells, problems, lines) of each record of the file, the header first, without blank lines; `told`: the first
    line, where it tells the separator."""
    options = {"delimiter": delimiter, "skipinitialspace": True}
    number, lines = 0, []  # the header's number; the lines of the next record

    def take(file):
        for line in file:
            lines.append(line)
            yield decode(line) if line != told else "\n"

    with _open(path) as file:
        reader = csv.reader(take(file), strict=True, **options)
        while True:
            lines.clear()
            try:
                cells, problems = next(reader), []
            except StopIteration:
                return
            except csv.Error as error:
                if "field larger" in str(error):
                    name = f"{path}, row {number}: a cell of more than {_LONGEST_CELL:,} characters"
                    raise DataError(f"{name}, or a quote that does not close. Shorten it, or close it.") from None
                if "expected after" not in str(error):  # the end of the file
                    name = f"{path}, row {number} (line {reader.line_num - len(lines) + 1})"
                    remedy = 'Close it; a quote inside a quoted text is written twice ("").'
                    raise DataError(f"{name}: a quote opens and does not close: {error}. {remedy}") from None
                cells = [cell for line in csv.reader(map(decode, lines), **options) for cell in line]
                problems = [("misplaced quote", 'write a quote inside a quoted text twice ("")')]
            if len(cells) > 1 or "".join(cells).strip():
                yield cells, problems, lines
                number += 1


class _Row(SourceRow):
    """A row whose cells may hold a word for no value, which is no question and no answer."""

    def get_text(self, name: str, remedy: str | None = None) -> str:
        text = super().get_text(name, remedy)
        if remedy and text in _NO_VALUE:
            self.reject(f"empty {name}: {text}", remedy)
        return text


def _row(header, delimiter, was_text, decode, cells, problems, lines):
    """The row of a record's cells, of which there may be more or fewer than the header has."""
    width = len(header)
    while len(cells) > width and not cells[-1].strip():  # separators at a line's end are harmless
        cells.pop()
    if len(cells) != width and not problems:
        few = len(cells) < width
        remedy = "fill in the missing ones" if few else "put a text with a separator in it in double quotes"
        problems = [(f"too {'few' if few else 'many'} cells: {len(cells)} of {width}", remedy)]
    if any(map(_UNDECODED.search, cells)):
        problems = [*problems, ("bytes that no known encoding has", "save the file as UTF-8 and correct the text")]
    cells = [*cells[: width - 1], f"{delimiter} ".join(cells[width - 1 :])]
    cells = [_UNDECODED.sub("\ufffd", cell.strip().replace("\r\n", "\n").replace("\r", "\n")) for cell in cells]
    cells = [*map(was_text, cells), *[""] * (width - len(cells))]
    row = _Row(dict(zip(header, cells, strict=True)), problems)
    if any(map(_UNDECODED.search, lines)):
        row.notes.append(f"bytes that are not UTF-8 read as {decode.name}")
    return row
