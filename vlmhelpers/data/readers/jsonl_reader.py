"""JSONL in and out: rows of fields, of messages or of conversations, with the paths or URLs of their images."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.download.safe_http import DownloadRules
from vlmhelpers.data.readers.conversations import read_turns
from vlmhelpers.data.readers.json_file import read_json, read_objects
from vlmhelpers.data.readers.links import LinkedRoot, is_link
from vlmhelpers.data.rows import ImageRoot, stream_plain_rows
from vlmhelpers.data.schema import FEATURES


def read_jsonl(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str = "text",
    image_field: str = "image",
    response_field: str = "response",
    download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **rules,
) -> Dataset:
    """Reads JSONL, or a JSON list of the same rows, into a `datasets.Dataset`.

    Each row has one of three forms, and rows of all three may mix:
    - A text, a response and, in `image_field`, a path, a list of paths or nothing; the images come before the text.
    - `messages`: a content is a text or a list of parts, an image part names its path as `image` or stands for the
      next one of the row's list `images`.
    - `conversations`, as in ShareGPT and LLaVA: turns with `from` and `value`, or `role` and `content`. A field
      `system` comes first.
    Where all contents are texts, each `<image>` in a text of the user stands for the next image of `image_field` or
    `images`; without any, the images come before the first text of the user. In a row without images it is text.

    Paths are relative to image_root (by default the file's own folder), absolute, or `file:` URLs; none may leave
    image_root. With `download`, http and https URLs are got by download_images, into `cache_dir` and by its `rules`,
    for the rows that have no other problem; a line is printed where there are any.

    The Dataset has the schema's `messages` and `images` (paths, opened when a row is used), `row`, `problem` and
    `note` (see rows.READER_FEATURES), and the file's own fields as strings; a name that is taken gets an
    underscore (`messages_`). A row with a problem keeps its number, and so does a preference row (`chosen` and
    `rejected`), which has one unless it also has an answer. Whether messages can be trained on, that is their
    roles, their last turn and the number of their image parts, is for check_dataset to say.

    Raises ValueError for what is wrong with the whole file: none of the forms in its first object, no rows, and what
    json_file.read_objects names; FileNotFoundError or NotADirectoryError where there is no file or image_root;
    TypeError for an unknown rule; OSError where cache_dir cannot be written.
    """
    DownloadRules(**rules)  # says what is wrong with them before the file is read
    root = LinkedRoot(Path(path).parent if image_root is None else image_root)
    fields = text_field, image_field, response_field

    def build(row):
        messages, sources = read_turns(row, *fields)
        return {"messages": messages, "images": row.get_images(sources, root)}

    if download:
        root.download(_links_of_sound_rows(path, root, fields), cache_dir, **rules)
    wanted = {"text_field": text_field, "response_field": response_field}
    return read_json(path, wanted, "read_jsonl", build, also={"messages", "conversations", "chosen"})


def _links_of_sound_rows(path, root: LinkedRoot, fields) -> Iterator[str]:
    for row in read_objects(path):
        _, sources = read_turns(row, *fields)
        links = [source for source in sources if source and is_link(source)]
        row.get_images([source for source in sources if source not in links], root)
        if not row.problems:
            yield from links


def write_jsonl(dataset: Dataset, path: str | os.PathLike, image_root: str | os.PathLike | None = None) -> None:
    """Writes the messages of a Dataset to a JSONL file that read_jsonl and other tools read; UTF-8, a row a line.

    A row with images also gets `images`: their paths as seen from image_root, by default the folder of `path`,
    with slashes. An atomic write. Raises ValueError, with the row and a remedy, for an image without a path or outside
    image_root.
    """
    with atomic_file(path, encoding="utf-8", newline="\n") as file:
        root = ImageRoot(Path(path).parent if image_root is None else image_root)
        for number, row in enumerate(stream_plain_rows(dataset, [*FEATURES, "row"], "writing"), start=1):
            value = _to_write(row, root, f"{path}, row {row.get('row') or number}")
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _to_write(row, root, name):
    messages = [
        {"role": message["role"], "content": [_part_to_write(part) for part in message["content"]]}
        for message in row["messages"]
    ]
    paths = [_path_to_write(image, root, name) for image in row["images"] or []]
    return {"messages": messages} | ({"images": paths} if paths else {})


def _part_to_write(part):
    return {name: value for name, value in part.items() if value is not None}  # an image part has no text


def _path_to_write(image, root, name):
    if not image or not image["path"]:
        raise ValueError(f"{name}: an image without a path cannot be written to JSONL. Save it as a file first.")
    path = root.relative(image["path"])
    if path is None:
        raise ValueError(f"{name}: {image['path']} is outside {root.folder}. Pass its folder as image_root.")
    return path
