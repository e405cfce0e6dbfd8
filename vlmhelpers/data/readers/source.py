"""What all readers share: the row of a source, and the way from its fields to a row of the schema."""

import copy
import json
import os
from collections.abc import Callable, Collection, Iterable
from difflib import get_close_matches
from pathlib import Path

from datasets import Dataset, Features
from tqdm.auto import tqdm

from vlmhelpers.common.printable import one_line, printable
from vlmhelpers.data.rows import READER_FEATURES, ImageRoot, source_column, store_rows
from vlmhelpers.data.rules import Problem, join_problems
from vlmhelpers.data.schema import KINDS, REJECTED_IMAGES

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_TEXT = dict.fromkeys([b"\xff\xfe", b"\xfe\xff"], "UTF-16 text")
_NOT_TEXT |= {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\x1f\x8b": "a gzip archive"}
_LONGEST = 1000  # characters of an error's list of names
_KINDS = {bool: "true or false", list: "a list", dict: "an object", type(None): "null"}


class DataError(ValueError):
    """What is wrong with a source, in a sentence that shows its names safely."""

    def __init__(self, message: str):
        super().__init__(printable(message))


class SourceRow:
    """`fields` by their names; `problems` and `notes` grow while they are read; `text`: of a row without fields.

    A row with a problem from the start is broken: it gets no further ones.
    """

    def __init__(self, fields: dict, problems: Iterable[Problem] = (), text: str | None = None):
        self.fields, self.problems, self.notes, self.text = fields, list(problems), [], text
        self._broken = bool(self.problems)

    def with_fields(self, fields: dict) -> "SourceRow":
        """The same row seen with other fields: what is wrong with them is added to this one's problems and notes."""
        view = copy.copy(self)
        view.fields = fields
        return view

    def reject(self, reason: str, remedy: str) -> None:
        """Adds a problem, unless the row is broken."""
        if not self._broken:
            self.problems.append((reason, remedy))

    def get_text(self, name: str, remedy: str | None = None) -> str:
        """The field's text without the blanks around it. With a `remedy`, an empty or missing one is a problem."""
        value = self.fields.get(name)
        text = self.as_text(value, name).strip()
        if remedy and name not in self.fields:
            self.reject(f"no field {name!r}", f"add it; the row has {', '.join(self.fields) or 'no fields'}")
        elif remedy and not text and isinstance(value, str | None):
            self.reject(f"empty {name}", remedy)
        return text

    def as_text(self, value: object, where: str) -> str:
        """A text as it is, a number as text, None as an empty one. Anything else is a problem, and empty."""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.notes.append("number read as text")
            return json.dumps(value)
        self.reject(f"{where} is {_KINDS[type(value)]}, not text", "write a text there")
        return ""

    def get_images(self, sources: Iterable[str | None], root: ImageRoot) -> list[dict | None]:
        """The images of the schema for paths as a user wrote them; an unusable path is a problem, and None."""
        images = []
        for source in sources:
            path, problems, note = (None, [], "") if source is None else root.resolve(source)
            for problem in problems:
                self.reject(*problem)
            self.notes.append(note)
            images.append(path and {"path": path, "bytes": None})
        return images


def to_dataset(
    rows: Iterable[SourceRow],
    build: Callable[[SourceRow], dict],
    columns: dict,
    source: str | os.PathLike,
    kind: str = "messages",
) -> Dataset:
    """The Dataset of the rows of this kind that `build` makes, with the columns of all readers.

    columns: the source's fields with their features; what is no text in a column of strings becomes JSON. The text of
    a row without fields goes to the first. Raises ValueError, naming `source`, for no rows or two columns of one name.
    """
    kept = {name: source_column(name, kind) for name in columns}
    features = KINDS[kind] | (REJECTED_IMAGES if kind == "pairs" and REJECTED_IMAGES.keys() <= columns.keys() else {})
    for name in columns:
        if kept[name] != name and kept[name] in columns:
            reason = f"{name!r} would be kept as {kept[name]!r}, which is there"
            raise DataError(f"{source}: {reason}. Rename one of them.")

    def finished():
        for number, row in enumerate(
            tqdm(rows, one_line(f"reading {Path(source).name}"), unit=" rows", delay=1), start=1
        ):
            built = build(row)  # which may add problems and notes
            if built.keys() - features.keys():
                remedy = f"name them in {', '.join(REJECTED_IMAGES)}, also in one of the first rows"
                row.reject("other images on the rejected side, for which the dataset has no column", remedy)
            fields = row.fields if row.text is None else {next(iter(columns)): row.text}
            note = "; ".join(filter(None, dict.fromkeys(row.notes)))
            cells = {kept[name]: _cell(fields.get(name), feature) for name, feature in columns.items()}
            problem = join_problems([(one_line(reason), one_line(remedy)) for reason, remedy in row.problems])
            yield {**built, "row": number, "problem": problem, "note": one_line(note), **cells}

    of_source = {kept[name]: feature for name, feature in columns.items()}
    dataset = store_rows(finished(), Features({**features, **READER_FEATURES, **of_source}))
    if not len(dataset):
        raise DataError(f"{source} holds no rows.")
    return dataset


def _cell(value, feature):
    is_text = getattr(feature, "dtype", None) != "string" or value is None or isinstance(value, str)
    return value if is_text else json.dumps(value, ensure_ascii=False)


def check_encoding(path: str | os.PathLike, remedy: str, expected: str) -> None:
    """Raises ValueError, with a sentence each, for what is no UTF-8 text by its first 4,096 bytes, or is empty."""
    with open(path, "rb") as file:
        head = file.read(4096)
        blank = not head.decode("utf-8-sig", "replace").strip()
        blank = blank and not any(line.decode(errors="replace").strip() for line in file)
    found = next((what for mark, what in _NOT_TEXT.items() if head.startswith(mark)), None)
    if head in (BYTE_ORDER_MARK[:1], BYTE_ORDER_MARK[:2]):
        found = "the first bytes of a byte order mark"
    if found or b"\0" in head.split(b"\n")[0]:
        raise DataError(f"{path} is {found or 'UTF-16 text or a binary file'}, not UTF-8 text. {remedy}")
    if blank:
        raise DataError(f"{path} is empty. {expected}")


def explain_missing(
    path: str | os.PathLike, what: str, wanted: dict[str, str], there: Collection[str], reader: str
) -> str:
    """The text of an error for a missing `what` ("column" or "field"), with what to pass to the reader instead.

    `wanted` maps the reader's arguments to names, `there` are the names in the file.
    """
    missing = {argument: name for argument, name in wanted.items() if name not in there}
    free = {name.lower(): name for name in there if name not in wanted.values()}

    def closest(argument):  # to the name, else to the argument's own: image, text or response
        for meant in (missing[argument].lower(), argument.removesuffix("_field")):
            if found := get_close_matches(meant, free, n=1, cutoff=0.6):
                return free[found[0]]
        return "..."

    names = ", ".join(there)
    names = names if len(names) <= _LONGEST else f"{names[:_LONGEST]}…"
    advice = ", ".join(f"{argument}={closest(argument)!r}" for argument in missing)
    return (
        f"{path} has no {what} {f' and no {what} '.join(map(repr, missing.values()))}. Its {what}s: "
        f"{names}. Name the right ones, for example {reader}(..., {advice})."
    )
