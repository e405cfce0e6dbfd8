"""JSON and JSONL in and out: rows of fields, of messages, of conversations or in the Alpaca form."""

import json
import os
from pathlib import Path

from datasets import Dataset

from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.readers.field_names import FieldNames
from vlmhelpers.data.readers.message_rows import MessageRows
from vlmhelpers.data.readers.opening import open_json
from vlmhelpers.data.readers.source import DataError
from vlmhelpers.data.rows import READER_FEATURES, ImageRoot, stream_plain_rows
from vlmhelpers.data.rules import row_problems
from vlmhelpers.data.schema import FEATURES, TRAIN, kind_of


def read_jsonl(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    response_field: str | None = None,
    download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    instruction: str | None = None,
    **rules: object,
) -> Dataset:
    """Reads JSONL, or a JSON list of the same rows, into a `datasets.Dataset`. The rows may have any of the forms in
    docs/data-forms.md, and mix them: a question, an answer and images in fields, `messages`, or a conversation.

    text_field, image_field, response_field: by default the first that is filled of their usual names (text, question,
    ..., image, images, ..., response, answer, ...); of several that differ, one has to be named. `context` and `input`
    come below a question that is not named. instruction: one
    question for all rows, in place of a field. `system` and `history` come first.
    An image stands in the message, in a part of a content, in the text as `<img>path</img>`, or in the row's list, of
    which each `<image>` in a text of the user is the next one; without any, they come before the user's first text. In
    a row without images `<image>` is text, beside an image part it goes. An image is a path, a `file:` URL, or
    encoded: a data URI, base64.
    An answer of weight 0 (`weight`, `loss`, `loss_weight`, `train`) is not learned. A row of two answers to choose from
    has a problem, and so has one with a true or false `label`, see read_preferences and read_rated; and one with a
    field that matters and is not read, such as `videos` or `tools`. Other unused fields are named in the report.

    With `download`, download_images gets http and https URLs, into `cache_dir` and by its `rules`, for rows without
    another problem. For image_root, columns and errors, see vlmhelpers.data.readers.
    """
    names = FieldNames(text_field, image_field, response_field, instruction)
    rows = MessageRows(open_json(path), names, image_root, download, cache_dir, **rules)
    return rows.read("read_jsonl")


def read_alpaca(
    path: str | os.PathLike,
    instruction_field: str = "instruction",
    input_field: str = "input",
    output_field: str = "output",
    image_root: str | os.PathLike | None = None,
) -> Dataset:
    """Reads an Alpaca file, a JSON list or one object per line, into a `datasets.Dataset`.

    The user's turn is the instruction and, below a blank line, the input where there is one (as dolly's `context`); the
    output is the answer. A field `system` (a text) and a field `history` (a list of [question, answer] pairs) become
    turns before that; images in `images` stand at each `<image>`, or before the text. The file may be larger than the
    memory.
    For image_root, the columns and errors, see vlmhelpers.data.readers.
    """
    is_usual = (instruction_field, input_field) == ("instruction", "input")
    names = FieldNames(instruction_field, None, output_field, input_field=None if is_usual else input_field)
    rows = MessageRows(open_json(path), names, image_root)
    rows.renamed = {"text_field": "instruction_field", "response_field": "output_field"}
    rows.given = [] if input_field == "input" else [input_field]
    return rows.read("read_alpaca")


def write_jsonl(dataset: Dataset, path: str | os.PathLike, image_root: str | os.PathLike | None = None) -> None:
    """Writes the messages of a Dataset to a JSONL file that read_jsonl and other tools read; an atomic write in UTF-8.

    A row with images also gets `images`: their paths as seen from image_root, by default the folder of `path`,
    with slashes. Raises ValueError for rows of another kind, and, with the row and a remedy, for one with a problem,
    which would be read back as a sound one, and for an image without a path or outside image_root.
    """
    if (kind := kind_of(dataset.column_names)) != "messages":
        raise DataError(f"write_jsonl writes messages, and these rows are {kind}. to_rows(dataset) takes good answers.")
    with atomic_file(path, encoding="utf-8", newline="\n") as file:
        root = ImageRoot(Path(path).parent if image_root is None else image_root)
        for number, row in enumerate(stream_plain_rows(dataset, [*FEATURES, *READER_FEATURES], "writing"), start=1):
            value = _to_write(row, root, f"{path}, row {row.get('row') or number}")
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _to_write(row, root, name):
    if problems := row_problems(row):
        reason, remedy = problems[0]
        left = "Leave out the rows with problems: write check_dataset(dataset).dataset."
        raise DataError(f"{name}: {reason}. Remedy: {remedy}. {left}")
    messages = []
    for message in row["messages"]:
        content = [{key: value for key, value in part.items() if value is not None} for part in message["content"]]
        weight = {"weight": 0} if message.get(TRAIN) is False else {}
        messages.append({"role": message["role"], "content": content} | weight)
    paths = []
    for image in row.get("images") or []:
        if not image or not image["path"]:
            raise DataError(f"{name}: an image without a path cannot be written to JSONL. Save it as a file first.")
        paths.append(root.relative(image["path"]))
        if paths[-1] is None:
            raise DataError(f"{name}: {image['path']} is outside {root.folder}. Pass its folder as image_root.")
    return {"messages": messages} | ({"images": paths} if paths else {})
