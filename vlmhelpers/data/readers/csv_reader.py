"""CSV files of images, questions and answers."""

import itertools
import os

from datasets import Dataset

from vlmhelpers.data.readers.field_names import CSV_NAMES, FieldNames
from vlmhelpers.data.readers.message_rows import MessageRows
from vlmhelpers.data.readers.opening import open_csv
from vlmhelpers.data.readers.source import DataError, explain_missing


def read_csv(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    image_field: str | None = None,
    text_field: str | None = None,
    response_field: str | None = None,
    instruction: str | None = None,
) -> Dataset:
    """Reads a CSV with an image path, a question and an answer in each row into a `datasets.Dataset`.

    path: the file, see csv_table.read_table. image_field, text_field, response_field: the names of the three columns,
    by default the first that is there of image_path, image and the like, instruction, question, ..., description,
    answer, ...; of several that may be meant, one has to be named. instruction: one question for all rows, in place of
    a column. A cell of images, or of messages, may be a JSON list. A row with a rejected answer or a true or false
    `label` has a problem, see read_preferences and read_rated. For image_root, the Dataset's columns and the errors,
    see vlmhelpers.data.readers.
    """
    names = FieldNames(text_field, image_field, response_field, instruction, first=CSV_NAMES)
    source = open_csv(path)
    _check_columns(source, names)
    return MessageRows(source, names, image_root).read("read_csv")


def _check_columns(source, names):
    """Raises ValueError for a table without a column for each of image, question and answer, or a conversation."""
    arguments = ["image_field", "text_field", "response_field"]
    if names.instruction is not None:
        arguments.remove("text_field")
    meant = names.in_usual_case(dict.fromkeys(source.columns))
    there = {*source.columns, *meant.values()}
    missing = {name: names.usual[name][0] for name in arguments if not set(names.usual[name]) & there}
    if missing and not {"messages", "conversations"} & there:
        wanted = missing | {name: names.usual[name][0] for name in arguments if names.usual[name][0] in there}
        taken = {*meant, *itertools.chain(*(names.usual[name] for name in arguments if name not in missing))}
        raise DataError(explain_missing(source.name, "column", wanted, source.columns, "read_csv", taken))
