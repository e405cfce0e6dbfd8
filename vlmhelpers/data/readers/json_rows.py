"""From the records of a JSON file to a Dataset: fields as texts, what is wrong with them, and the file's columns."""

import itertools
import json

from vlmhelpers.data.readers.json_file import EXPECTED, read_objects
from vlmhelpers.data.readers.text_file import explain_missing
from vlmhelpers.data.rows import rows_to_dataset, source_column

_ROWS_AHEAD = 1000  # of which the fields become columns
_KINDS = {bool: "true or false", list: "a list", dict: "an object", type(None): "null"}


class Fields:
    """The fields of one Record; `problems` ((reason, remedy) pairs) and `notes` grow while they are read."""

    def __init__(self, record):
        self.values = {} if record.problems else record.value
        self.problems, self.notes = list(record.problems), []
        self._broken = bool(record.problems)

    def reject(self, reason, remedy):
        """Adds a problem, unless the whole record is broken."""
        if not self._broken:
            self.problems.append((reason, remedy))

    def text(self, name, remedy=None):
        """The field's text without the blanks around it. With a `remedy`, an empty or missing one is a problem."""
        value = self.values.get(name)
        text = self.as_text(value, name).strip()
        if remedy and name not in self.values:
            self.reject(f"no field {name!r}", f"add it; the row has {', '.join(self.values) or 'no fields'}")
        elif remedy and not text and isinstance(value, str | None):
            self.reject(f"empty {name}", remedy)
        return text

    def as_text(self, value, where):
        """A text as it is, a number as text, None as an empty one. Anything else is a problem, and empty."""
        if value is None or isinstance(value, str):
            return value or ""
        if isinstance(value, int | float) and not isinstance(value, bool):
            self.notes.append("number read as text")
            return json.dumps(value)
        self.reject(f"{where} is {_KINDS[type(value)]}, not text", "write a text there")
        return ""


def read_rows(path, wanted, reader, build, also=()):
    """The rows that `build(number, fields)` makes of a JSON or JSONL file's records, as a Dataset.

    Beside them stand the file's own fields as columns of strings: texts as they are, other values as JSON. A
    record that is no object keeps its text in the first column. `wanted` maps the arguments of `reader` (its
    name) to names of fields. Raises ValueError where the first object has none of them, nor one of `also`, and
    what read_objects raises.
    """
    first, names, records = _look_ahead(path)
    if not {*wanted.values(), *also} & first.keys():
        raise ValueError(_other_form(path, first) or explain_missing(path, "field", wanted, list(first), reader))
    columns = {name: source_column(name) for name in names}

    def rows():
        for number, record in enumerate(records, start=1):
            fields = Fields(record)
            late = [name for name in fields.values if name not in columns]
            if late:
                fields.notes.append(f"not kept as a column, being new after row {_ROWS_AHEAD}: {', '.join(late)}")
            yield build(number, fields) | _cells(record, columns)

    return rows_to_dataset(rows(), columns.values(), path)


def _look_ahead(path):
    """The first object, the names of the first rows' fields in their order, and an iterator over all Records."""
    records = read_objects(path)
    ahead = list(itertools.islice(records, _ROWS_AHEAD))
    objects = [record.value for record in ahead if isinstance(record.value, dict)]
    if not objects:
        reason, remedy = ahead[0].problems[0]
        raise ValueError(f"{path}, row 1: {reason}; nor are the next rows. {EXPECTED} Remedy: {remedy}.")
    names = dict.fromkeys(name for value in objects for name in value)
    return objects[0], list(names), itertools.chain(ahead, records)


def _other_form(path, first):
    """The text of an error for a file whose one object holds the rows, else None."""
    for name, value in first.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return f"{path} holds its rows inside an object, under {name!r}. {EXPECTED} Save that list as a file."
    return None


def _cells(record, columns):
    """The record's fields as cells of the Dataset's columns."""
    if not isinstance(record.value, dict):
        return dict.fromkeys(columns.values()) | {next(iter(columns.values())): record.value}
    return {column: _cell(record.value.get(name)) for name, column in columns.items()}


def _cell(value):
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)
