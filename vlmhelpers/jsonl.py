"""JSONL in and out: a question, an answer and image paths in fields of a row, or rows of messages."""

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

from vlmhelpers.files import whole_file
from vlmhelpers.jsonrow import read_rows
from vlmhelpers.rows import ImageRoot, build_row, finish_row, stream_plain_rows
from vlmhelpers.schema import FEATURES, image_part, text_part

_MESSAGES = 'write [{"role": "user", "content": [{"type": "text", "text": ...}]}, ...]'


def read_jsonl(path, image_root=None, text_field="text", image_field="image", response_field="response"):
    """Reads JSONL, or a JSON list of the same rows, into a `datasets.Dataset`.

    A row has a text, a response and, in `image_field`, a path, a list of paths or nothing; the images come
    before the text. Or it has `messages`: a content is a text or a list of parts, an image part names its path
    as `image` or stands for the next one of the row's list `images`. Paths are relative to image_root (by
    default the file's own folder), absolute, or `file:` URLs; none may leave image_root.

    The Dataset has the schema's `messages` and `images` (paths, opened when a row is used), `row`, `problem` and
    `note` (see rows.READER_FEATURES), and the file's own fields as strings; a name that is taken gets an
    underscore (`messages_`). A row with a problem keeps its place. Whether messages can be trained on, that is
    their roles, their last turn and the number of their images, is for check_dataset to say.

    Raises ValueError for what is wrong with the whole file: neither messages nor a text nor a response in its
    first object, no rows, and what jsonfile.read_objects names; FileNotFoundError or NotADirectoryError where
    there is no file or image_root.
    """
    root = ImageRoot(Path(path).parent if image_root is None else image_root)
    wanted = {"text_field": text_field, "response_field": response_field}

    def build(number, fields):
        if fields.values.get("messages") is not None:
            return _row_of_messages(number, fields, root)
        text = fields.text(text_field, "write the question")
        response = fields.text(response_field, "write the answer that the model should give")
        paths = _paths(fields, image_field)
        return build_row(number, text, response, paths, root, fields.problems, "; ".join(dict.fromkeys(fields.notes)))

    return read_rows(path, wanted, "read_jsonl", build, also={"messages"})


def write_jsonl(dataset, path, image_root=None):
    """Writes the messages of a Dataset to a JSONL file that read_jsonl and other tools read; UTF-8, a row a line.

    A row with images also gets `images`: their paths as seen from image_root, by default the folder of `path`,
    with slashes. The file appears whole or not at all. Raises ValueError, with the row and a remedy, for an
    image without a path or outside image_root.
    """
    with whole_file(path, encoding="utf-8", newline="\n") as file:
        root = ImageRoot(Path(path).parent if image_root is None else image_root)
        for place, row in enumerate(stream_plain_rows(dataset, [*FEATURES, "row"], "writing"), start=1):
            value = _to_write(row, root, f"{path}, row {row.get('row') or place}")
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _row_of_messages(number, fields, root):
    paths = _paths(fields, "images")
    messages, named = _read_messages(fields, iter(paths))
    images, problems, guesses = root.resolve_all(named)
    return finish_row(number, messages, images, fields.problems or problems, [*fields.notes, *guesses])


def _read_messages(fields, listed):
    """The row's messages in the schema's form, and its image paths in the order of the image parts.

    `listed` are the paths for parts that name none; those left over come last, so that check_dataset sees that
    there are too many.
    """
    messages, paths = fields.values["messages"], []
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        fields.reject("messages is no list of messages", _MESSAGES)
        return [], []
    read = []
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str):
            fields.reject("a message without a role", _MESSAGES)
            role = None
        read.append({"role": role, "content": _read_content(fields, content, listed, paths)})
    return read, paths + list(listed)


def _read_content(fields, content, listed, paths):
    """A message's content as the schema's parts; appends the paths of its images to `paths`."""
    if isinstance(content, str):
        return [text_part(content)]
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        fields.reject("content is no text and no list of parts", _MESSAGES)
        return []
    return [_read_part(fields, part, listed, paths) for part in content]


def _read_part(fields, part, listed, paths):
    if part.get("type") == "image":
        path = part.get("image")
        named = next(listed, None) if path is None else _path(fields, path, "an image part")
        paths += [] if named is None else [named]
        return image_part()
    if part.get("type") == "text":
        text = part.get("text")
        return text_part(None if text is None else fields.as_text(text, "a text part"))
    return {"type": str(part.get("type")), "text": None}


def _paths(fields, name):
    """The paths in a field that holds one, a list of them, or nothing."""
    value = fields.values.get(name)
    if value is None or value == "":
        return []
    return [_path(fields, path, name) for path in (value if isinstance(value, list) else [value])]


def _path(fields, value, where):
    """A path as it was written, that of a `file:` URL decoded; what is no text is a problem."""
    if not isinstance(value, str):
        fields.reject(f"no image path in {where}: {str(value)[:40]}", "write the picture's path as a text")
        return ""
    local = re.match(r"file:(?://(?:localhost)?(?=/))?(?!//)", value, re.IGNORECASE)
    if not local:
        return value
    path = unquote(value[local.end() :])
    return re.sub("^/(?=[A-Za-z]:)", "", path) if os.name == "nt" else path


def _to_write(row, root, name):
    messages = [
        {"role": message["role"], "content": [_part_to_write(part) for part in message["content"]]}
        for message in row["messages"]
    ]
    paths = [_path_to_write(image, root, name) for image in row["images"] or []]
    return {"messages": messages, "images": paths} if paths else {"messages": messages}


def _part_to_write(part):
    return {"type": "text", "text": part["text"]} if part["type"] == "text" else {"type": part["type"]}


def _path_to_write(image, root, name):
    if not image or not image["path"]:
        raise ValueError(f"{name}: an image without a path cannot be written to JSONL. Save it as a file first.")
    path = root.relative(image["path"])
    if path is None:
        raise ValueError(
            f"{name}: {image['path']} is outside {root.folder}. Pass the folder that holds it as image_root."
        )
    return path
