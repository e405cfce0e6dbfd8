"""What all readers share: the row of a source, and the way from its fields to a row of the schema."""

import itertools
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from datetime import date, time
from decimal import Decimal
from difflib import get_close_matches
from pathlib import Path

from datasets import Dataset, Features, List, Value
from tqdm.auto import tqdm

from vlmhelpers.common.printable import one_line, printable, shortened
from vlmhelpers.data.rows import (
    READER_FEATURES,
    ImageRoot,
    batches_of,
    note_unused,
    source_column,
    store_batches,
    taken_columns,
)
from vlmhelpers.data.rules import Problem, join_problems
from vlmhelpers.data.schema import KINDS, REJECTED_IMAGES, TRAIN, with_train

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_TEXT = dict.fromkeys([b"\xff\xfe", b"\xfe\xff"], "UTF-16 text")
_NOT_TEXT |= {b"PK\x03\x04": "an Excel workbook or a zip archive", b"\x1f\x8b": "a gzip archive"}
_NOT_TEXT |= {b"PAR1": "a Parquet file, which read_dataset reads"}
TOO_DEEP = "nested too deeply", "leave the row out, or write it flat"
MOST_COLUMNS = 200  # of a source; Arrow and datasets take time and memory for each, also in rows that lack it
TOGETHER = "further_fields"  # the column for what else a row has
_FIRST = 20  # rows that tell which columns are read
_MOST_NAMES = 1000  # of fields, in the lists of those that were met, and that were not used
_LONGEST = 1000  # characters of an error's list of names
_NO_TEXT = re.compile("image|img|pic|photo|file|path|url|(^|_)id$|index|source|split")  # names of no question or answer
_KINDS = {bool: "true or false", list: "a list", dict: "an object", bytes: "bytes"}


class DataError(ValueError):
    """What is wrong with a source, in a sentence that shows its names safely."""

    def __init__(self, message: str):
        super().__init__(shortened(printable(message)))


def is_empty(value: object) -> bool:
    """Whether a field says nothing: null, an empty text, list or object, or NaN, which tables write for null."""
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str | list | dict | bytes) and not value)


def says_nothing(value: object) -> bool:
    """Whether nothing stands anywhere in a value, as in {"bbox": [], "label": [None]}, or in a cell a word for that."""
    value = from_json(value)
    if isinstance(value, list | dict):
        return all(map(says_nothing, value.values() if isinstance(value, dict) else value))
    return is_empty(value) or (isinstance(value, str) and value.strip().lower() in ("", "nan", "none", "null"))


def from_json(value: object) -> object:
    """The list or object that a text holds as JSON; any other value as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


class SourceRow:
    """`fields` by their names; `problems` and `notes` grow while they are read; `text`: of a row without fields.

    `used`: the fields that were read; `folder`: of its file, where a source has several; `number`: in the source that
    a reader has made it of. A row with a problem from the start is broken: it gets no further ones.
    """

    def __init__(self, fields: dict, problems: Iterable[Problem] = (), text: str | None = None):
        self.fields, self.notes, self.text = fields, [], text
        self.problems = [tuple(map(one_line, problem)) for problem in problems]
        self.used, self.unused, self.folder, self.number = set(), set(), None, None
        self._broken = bool(self.problems)

    def with_fields(self, fields: dict) -> "SourceRow":
        """The same row seen with other fields: what is found there is added to this one's problems, notes and uses."""
        view = object.__new__(type(self))
        view.__dict__ = self.__dict__ | {"fields": fields}
        return view

    def take(self, name: str) -> object:
        """The field's value, which counts as read."""
        self.used.add(name)
        return self.fields.get(name)

    def leave(self) -> dict:
        """The fields that say something and were not read."""
        return {name: value for name, value in self.fields.items() if name not in self.used and not says_nothing(value)}

    def reject(self, reason: str, remedy: str) -> None:
        """Adds a problem, unless the row is broken."""
        if not self._broken:
            self.problems.append((shorten(one_line(reason)), one_line(remedy)))

    def get_text(self, name: str, remedy: str | None = None) -> str:
        """The field's text without the blanks around it. With a `remedy`, an empty or missing one is a problem."""
        value = self.take(name)
        before = len(self.problems)
        text = self.as_text(value, name).strip()
        if remedy and name not in self.fields:
            self.reject(f"no field {name!r}", f"add it; the row has {shorten(', '.join(self.fields)) or 'no fields'}")
        elif remedy and not text and len(self.problems) == before:
            self.reject(f"empty {name}", remedy)
        return text

    def as_text(self, value: object, where: str) -> str:
        """A text as it is, a number or a date as text, None as an empty one. Anything else is a problem, and empty."""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, date | time | Decimal):
            self.notes.append("date or number read as text")
            return str(value)
        is_number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        if is_number and not isinstance(value, bool):
            self.notes.append("number read as text")
            return json.dumps(value)
        kind = json.dumps(value) if isinstance(value, float) else _KINDS.get(type(value), type(value).__name__)
        self.reject(f"{where} is {kind}, not text", "write a text there")
        return ""

    def get_images(self, sources: Iterable[str | dict | None], root: ImageRoot | None) -> list[dict | None]:
        """The images of the schema for sources as `image_sources` finds them; an unusable one is a problem, and None.

        root: what paths start from; None where the source has no folder, and a path is a problem.
        """
        images = []
        for source in sources:
            if not isinstance(source, str):
                images.append(source)
                continue
            path, problems, note = root.resolve(source) if root else (None, [_no_root(source)], "")
            for problem in problems:
                self.reject(*problem)
            self.notes.append(note)
            images.append(path and {"path": path, "bytes": None})
        return images


def _no_root(source):
    return f"the path of an image, and no folder that it starts from: {source!r}", "pass image_root"


def shorten(text: str, most: int = 200) -> str:
    """A text of others for an error: its beginning and its end where it has more characters."""
    return text if len(text) <= most else f"{text[: most - 50]} ... {text[-40:]}"


def to_dataset(
    rows: Iterable[SourceRow],
    build: Callable[[SourceRow], dict],
    columns: dict,
    source: str | os.PathLike,
    kind: str = "messages",
    given: Collection[str] = (),
    again: bool = False,
) -> Dataset:
    """The Dataset of the rows of this kind that `build` makes, with the columns of all readers.

    columns: the source's fields with their features; what is no text in a column of strings becomes JSON. Of more than
    MOST_COLUMNS, those are kept that are read, and that most of the first rows have; a row's other fields become an
    object of JSON in the column TOGETHER, which a note says. The text of a row without fields goes to the first column.
    given: fields that the caller named: one that no row has is an error. What no row's `build` has read is named in the
    Dataset's description, see rows.unused_fields. again: the source is of this kind itself, and all its columns are
    kept, those of the schema not twice.

    Raises ValueError, naming `source`, for no rows or two columns of one name.
    """
    made = taken_columns(kind) if again else ()
    kept = {name: source_column(name, kind) for name in columns if name not in made}
    for name in kept:
        if kept[name] != name and kept[name] in kept:
            reason = f"{name!r} would be kept as {kept[name]!r}, which is there"
            raise DataError(f"{source}: {reason}. Rename one of them.")
    finished = _FinishedRows(build, columns, kept, kind, given, None if again else MOST_COLUMNS)
    bar = tqdm(rows, one_line(f"reading {Path(source).name}"), unit=" rows", delay=1)
    batches = batches_of(finished(bar))
    first = next(batches, [])
    if not first:
        raise DataError(f"{source} holds no rows.")
    features = finished.decide_features(first)
    features = Features({**features, **READER_FEATURES, **finished.source_features})
    dataset = store_batches(itertools.chain([first], batches), features)
    if finished.missing:
        missing, there = " and no field ".join(map(repr, finished.missing)), ", ".join(sorted(finished.met))
        raise DataError(f"{source} has no field {missing} in any row. It has: {there}.")
    note_unused(dataset, finished.unused)
    return dataset


class _FinishedRows:
    """Calls `build` for each row, and makes it one of the Dataset, its problems and notes as texts."""

    def __init__(self, build, columns, kept, kind, given, most):
        self.build, self.columns, self.kept = build, columns, kept
        self.met, self.unused, self.missing = set(), set(), dict.fromkeys(given)
        self._is_wide = most is not None and len(kept) > most
        has_others = kind == "pairs" and REJECTED_IMAGES.keys() <= columns.keys()
        self.features = KINDS[kind] | (REJECTED_IMAGES if has_others else {})
        self.has_train = True  # until the first rows have told

    def decide_features(self, first: list[dict]) -> dict:
        self.has_train = any(TRAIN in message for row in first for message in row.get("messages") or [])
        return with_train(self.features) if self.has_train else self.features

    @property
    def source_features(self) -> dict:
        """The features of the source's columns that are kept."""
        features = {new: self.columns[name] for name, new in self.kept.items()}
        return features | ({TOGETHER: Value("string")} if self._is_wide else {})

    def __call__(self, rows):
        built = ((row, self._unless_deep(self._built, row)) for row in rows)
        first = list(itertools.islice(built, _FIRST if self._is_wide else 0))
        if first:
            self._choose_columns([row for row, _ in first])
        for number, (row, finished) in enumerate(itertools.chain(first, built), start=1):
            finished |= self._unless_deep(self._of_source, row)
            note = one_line("; ".join(filter(None, dict.fromkeys(row.notes))))
            yield finished | {"row": row.number or number, "problem": join_problems(row.problems), "note": note}

    def _unless_deep(self, make, row):
        try:
            return make(row)
        except RecursionError:
            row.reject(*TOO_DEEP)
            return {name: [] if isinstance(feature, List) else None for name, feature in self.features.items()}

    def _built(self, row):
        """The columns of the row's kind."""
        built = self.build(row)  # which may add problems and notes
        self._check_columns(row, built)
        for name in self.missing.keys() & row.fields.keys():
            del self.missing[name]
        _collect(self.met, row.fields)
        _collect(self.unused, *([] if row.problems else [row.unused, row.leave()]))
        return built

    def _choose_columns(self, first):
        """Leaves those columns that the first rows' `build` has read, then those that most of the rows have."""
        used = set().union(*(row.used for row in first))
        counts = Counter(name for row in first for name in row.fields)
        free = [name for name in self.kept if name != TOGETHER]
        chosen = {*sorted(free, key=lambda name: (name not in used, -counts[name]))[:MOST_COLUMNS]}
        left = len(self.kept) - len(chosen)
        first[0].notes.append(f"{left} of {len(self.kept)} fields are kept together, as JSON in {TOGETHER}")
        self.kept = {name: new for name, new in self.kept.items() if name in chosen}

    def _of_source(self, row):
        """The columns of the source."""
        fields = row.fields if row.text is None else {next(iter(self.columns)): row.text}
        of_source = {new: _cell(fields.get(name), self.columns[name]) for name, new in self.kept.items()}
        if not self._is_wide:
            return of_source
        others = {name: value for name, value in fields.items() if name not in self.kept}
        return of_source | {TOGETHER: _cell(others or None, Value("string"))}

    def _check_columns(self, row, built):
        if built.keys() - self.features.keys():
            remedy = f"name them in {', '.join(REJECTED_IMAGES)}, also in one of the first rows"
            row.reject("other images on the rejected side, for which the dataset has no column", remedy)
        if not self.has_train and any(TRAIN in message for message in built.get("messages") or []):
            remedy = "put a row that has one among the first of the file"
            row.reject("an answer that is not to be learned, and none of the first rows had one", remedy)


def _collect(names, *more):
    if len(names) < _MOST_NAMES:
        names.update(*more)


def _cell(value, feature):
    is_text = getattr(feature, "dtype", None) != "string" or value is None or isinstance(value, str)
    return value if is_text else json.dumps(value, ensure_ascii=False, default=_written)


def _written(value):
    """What JSON has no form for: how many bytes, a date as text."""
    return f"{len(value)} bytes" if isinstance(value, bytes | bytearray) else str(value)


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
    path: str | os.PathLike,
    what: str,
    wanted: dict[str, str],
    there: Collection[str],
    reader: str,
    taken: Collection[str] = (),
) -> str:
    """The text of an error for a missing `what` ("column" or "field"), with what to pass to the reader instead.

    `wanted` maps the reader's arguments to names, `there` are the names in the file, `taken` those that are found.
    """
    missing = {argument: name for argument, name in wanted.items() if name not in there}
    advised = _advised(missing, [name for name in there if name not in (*wanted.values(), *taken)])
    names = ", ".join(there)
    names = names if len(names) <= _LONGEST else f"{names[:_LONGEST]}…"
    advice = ", ".join(f"{argument}={advised.get(argument, '...')!r}" for argument in missing)
    return (
        f"{path} has no {what} {f' and no {what} '.join(map(repr, missing.values()))}. Its {what}s: "
        f"{names}. Name the right ones, for example {reader}(..., {advice})."
    )


def _advised(missing, free):
    """argument -> the name most like the missing one, or like the argument; else, in their order, those left over."""
    advised, lower = {}, {name.lower(): name for name in free}
    for argument, name in missing.items():
        meant = (name.lower(), argument.removesuffix("_field"))
        if found := [match for word in meant for match in get_close_matches(word, lower, n=1, cutoff=0.6)]:
            advised[argument] = lower[found[0]]
    left = [name for name in free if name not in advised.values() and not _NO_TEXT.search(name.lower())]
    asked = [argument for argument in missing if argument not in (*advised, "image_field")]
    return advised | (dict(zip(asked, left, strict=True)) if len(asked) == len(left) else {})
