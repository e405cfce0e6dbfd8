"""Which reader a file is for, by its ending and its first rows."""

import itertools
import os
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset

from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.dataset_reader import read_dataset
from vlmhelpers.data.readers.field_names import FieldNames
from vlmhelpers.data.readers.jsonl_reader import read_alpaca, read_jsonl
from vlmhelpers.data.readers.opening import OTHER_FILES, open_source
from vlmhelpers.data.readers.preference_reader import find_reader, read_preferences, read_prompts, read_rated
from vlmhelpers.data.readers.products_reader import read_products

_READERS = {  # what a file is read by -> the kind of its rows, and what the reader calls text, image and response field
    read_jsonl: ("messages", ("text_field", "image_field", "response_field")),
    read_csv: ("messages", ("text_field", "image_field", "response_field")),
    read_alpaca: ("messages", ("instruction_field", None, "output_field")),
    read_dataset: ("messages", ("text_field", "image_field", "response_field")),
    read_products: ("messages", (None, "image_field", None)),
    read_preferences: ("pairs", ("text_field", "image_field", "chosen_field")),
    read_rated: ("rated", ("text_field", "image_field", "completion_field")),
    read_prompts: ("prompts", ("text_field", "image_field", "answer_field")),
}
_BY_NAME = {reader.__name__: reader for reader in _READERS}
_NOT_ALPACA = ("messages", "conversations", "image", "images")


class Form(NamedTuple):
    """What a file is: the name of its reader in `data`, the kind of its rows, the fields of its first rows."""

    reader: str
    kind: str
    fields: list[str]


def recognize(path: str | os.PathLike, text_field: str | None = None) -> Form:
    """The form of a file, by its first rows with fields, of which `text_field` may name that of the question.

    Raises ValueError and OSError as the readers do.
    """
    ahead = [row.fields for row in open_source(path).ahead() if row.fields]
    first, names = next(iter(ahead), {}), list(dict.fromkeys(itertools.chain.from_iterable(ahead)))
    found = find_reader(first, text_field)
    reader = _BY_NAME[found] if found else _of_answers(Path(path), first, names, text_field)
    return Form(reader.__name__, _READERS[reader][0], names)


def _of_answers(path, first, names, text_field):
    suffix = path.suffix.lower()
    asked = {*itertools.chain(*(FieldNames().usual[argument] for argument in ("text_field", "image_field")))}
    is_products = {"imageurl", "title"} <= first.keys() and text_field is None and asked.isdisjoint(names)
    if is_products and suffix in (".csv", ".parquet") and path.is_file():
        return read_products
    if suffix in OTHER_FILES or not path.is_file():
        return read_dataset
    if suffix == ".csv":
        return read_csv
    is_alpaca = {"instruction", "output"} <= first.keys() and set(names).isdisjoint(_NOT_ALPACA)
    return read_alpaca if is_alpaca else read_jsonl


def reader_call(
    path: str | os.PathLike, kind: str | None = None, image_root: str | os.PathLike | None = None, **fields: str | None
) -> tuple[str, dict[str, object]]:
    """The name of the reader in `data` for a file, and its arguments besides the path.

    `kind`: of the rows, as `data.kind_of` names it; None: what the file holds. `fields`: text_field, image_field and
    response_field by name, whatever the reader calls them; None and those that it does not have are left out. A file
    that cannot be read has the usual reader of `kind`, which will say why; without one, ValueError and OSError.
    """
    try:
        form = recognize(path, fields.get("text_field"))
    except (OSError, ValueError):
        if kind is None:
            raise
        form = Form("", "", [])
    reader = _BY_NAME.get(form.reader)
    if kind not in (None, form.kind):  # its rows will say what is wrong with them
        is_csv = kind == "messages" and Path(path).suffix.lower() == ".csv"
        reader = read_csv if is_csv else next(found for found, (its, _) in _READERS.items() if its == kind)
    if reader is read_alpaca and fields.get("image_field") in form.fields:
        reader = read_jsonl  # an Alpaca row is text alone
    names = dict(zip(("text_field", "image_field", "response_field"), _READERS[reader][1], strict=True))
    if reader is read_csv:
        fields = {name: fields.get(name) or _column(name, form.fields) for name in names}
    arguments = {names[name]: field for name, field in fields.items() if field is not None and names.get(name)}
    return reader.__name__, arguments | ({"image_root": image_root} if image_root else {})


def _column(argument, header):
    """The column of a usual name, where it is the only one, or that of a run's settings."""
    usual = FieldNames().usual[argument]
    there = [name for name in header if name.strip().lower() in usual]
    return usual[0] if usual[0] in there else there[0] if len(there) == 1 else None


def read_rows(
    path: str | os.PathLike, kind: str | None = None, image_root: str | os.PathLike | None = None, **fields: str | None
) -> Dataset:
    """Reads a file of any form into a `datasets.Dataset`, by the reader that `reader_call` finds.

    Raises ValueError and OSError as the readers do.
    """
    reader, arguments = reader_call(path, kind, image_root, **fields)
    return _BY_NAME[reader](path, **arguments)
