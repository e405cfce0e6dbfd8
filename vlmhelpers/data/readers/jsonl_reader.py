"""JSON and JSONL in and out: rows of fields, of messages, of conversations or in the Alpaca form."""

import json
import os
from collections import Counter
from pathlib import Path

from datasets import Dataset

from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.download.downloader import download_images, is_link
from vlmhelpers.data.download.safe_http import DownloadRules
from vlmhelpers.data.readers.conversations import read_history, read_turns, refuse_preference
from vlmhelpers.data.readers.json_file import read_json, read_objects
from vlmhelpers.data.readers.source import DataError
from vlmhelpers.data.rows import ImageRoot, stream_plain_rows
from vlmhelpers.data.schema import FEATURES, assistant, text_part, user

_WITH_IMAGES = "leave it out, or read the file by read_jsonl(text_field=..., response_field=...)"


def read_jsonl(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str = "text",
    image_field: str = "image",
    response_field: str = "response",
    download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **rules: object,
) -> Dataset:
    """Reads JSONL, or a JSON list of the same rows, into a `datasets.Dataset`. Rows of three forms may mix:

    - A text, a response and, in `image_field`, a path, a list of paths or nothing; the images come before the text.
    - `messages`: a content is a text or a list of parts, an image part names its path as `image` or stands for the
      next one of the row's list `images`.
    - `conversations`, as in ShareGPT and LLaVA: turns with `from` and `value`, or `role` and `content`. A field
      `system` comes first.
    Where all contents are texts, each `<image>` in a text of the user stands for the next image of `image_field` or
    `images`; without any, the images come before the first text of the user. In a row without images it is text.
    A row of two answers to choose from (`rejected_response`, `rejected_messages`, `chosen` and `rejected` without an
    answer beside them) has a problem, and so has one with a true or false `label` or `kto_tag`: see read_preferences.

    A path may be a `file:` URL. With `download`, download_images gets http and https URLs, into `cache_dir` and by its
    `rules`, for rows without another problem. For image_root, columns and errors, see vlmhelpers.data.readers.
    """
    DownloadRules(**rules)  # says what is wrong with them before the file is read
    root = _LinkedRoot(Path(path).parent if image_root is None else image_root)
    fields = text_field, image_field, response_field

    def build(row):
        messages, sources = read_turns(row, *fields)
        return {"messages": messages, "images": row.get_images(sources, root)}

    if download:
        root.downloaded = download_images(_links_of_sound_rows(path, root, fields), cache_dir, **rules)
        failures = [found[0].partition(":")[0] for found in root.downloaded.values() if isinstance(found, tuple)]
        counts = "".join(f", {count} {kind}" for kind, count in Counter(failures).most_common())
        if total := len(root.downloaded):
            print(f"{total} linked pictures: {total - len(failures)} there{counts}")
    wanted = {"text_field": text_field, "response_field": response_field}
    return read_json(path, wanted, build, {"messages", "conversations", "chosen"}, "read_jsonl")


class _LinkedRoot(ImageRoot):
    """An ImageRoot that also resolves URLs, to what download_images returned for them."""

    downloaded = None

    def resolve(self, written):
        if not is_link(written):
            return super().resolve(written)
        if self.downloaded is None:
            remedy = "pass download=True (with the command jsonl: --download), or write the path of an image"
            return None, [(f"not a local file: {written!r}", remedy)], ""
        found = self.downloaded.get(written)  # None in a row with another problem
        if isinstance(found, tuple):
            return None, [(f"{found[0]} ({written[:80]!r})", found[1])], ""
        return found, [], ""


def _links_of_sound_rows(path, root, fields):
    for row in read_objects(path):
        _, sources = read_turns(row, *fields)
        links = [source for source in sources if source and is_link(source)]
        row.get_images([source for source in sources if source not in links], root)
        if not row.problems:
            yield from links


def read_alpaca(
    path: str | os.PathLike,
    instruction_field: str = "instruction",
    input_field: str = "input",
    output_field: str = "output",
) -> Dataset:
    """Reads an Alpaca file, a JSON list or one object per line, into a `datasets.Dataset` of text-only rows.

    The user's turn is the instruction and, below a blank line, the input where there is one; the output is the
    answer. A field `system` (a text) and a field `history` (a list of [question, answer] pairs) become turns
    before that. The file may be larger than the memory. For the columns and errors, see vlmhelpers.data.readers.
    """

    def build(row):
        question = row.get_text(instruction_field, "write what the model is to do")
        context = row.get_text(input_field)
        refused = refuse_preference(row, row.fields.get(output_field))
        if row.fields.get("image") or row.fields.get("images"):
            row.reject("an image, and an Alpaca row is text alone", _WITH_IMAGES)
        answer = row.get_text(output_field, None if refused else "write the answer that the model should give")
        last = user("\n\n".join(filter(None, [question, context]))), assistant(answer)
        system = row.get_text("system")
        first = [{"role": "system", "content": [text_part(system)]}] if system else []
        return {"messages": [*first, *read_history(row), *last], "images": []}

    wanted = {"instruction_field": instruction_field, "output_field": output_field}
    return read_json(path, wanted, build, (), "read_alpaca")


def write_jsonl(dataset: Dataset, path: str | os.PathLike, image_root: str | os.PathLike | None = None) -> None:
    """Writes the messages of a Dataset to a JSONL file that read_jsonl and other tools read; an atomic write in UTF-8.

    A row with images also gets `images`: their paths as seen from image_root, by default the folder of `path`,
    with slashes. Raises ValueError, with the row and a remedy, for an image without a path or outside image_root.
    """
    with atomic_file(path, encoding="utf-8", newline="\n") as file:
        root = ImageRoot(Path(path).parent if image_root is None else image_root)
        for number, row in enumerate(stream_plain_rows(dataset, [*FEATURES, "row"], "writing"), start=1):
            value = _to_write(row, root, f"{path}, row {row.get('row') or number}")
            file.write(json.dumps(value, ensure_ascii=False) + "\n")


def _to_write(row, root, name):
    messages = []
    for message in row["messages"]:
        content = [{key: value for key, value in part.items() if value is not None} for part in message["content"]]
        messages.append({"role": message["role"], "content": content})
    paths = []
    for image in row["images"] or []:
        if not image or not image["path"]:
            raise DataError(f"{name}: an image without a path cannot be written to JSONL. Save it as a file first.")
        paths.append(root.relative(image["path"]))
        if paths[-1] is None:
            raise DataError(f"{name}: {image['path']} is outside {root.folder}. Pass its folder as image_root.")
    return {"messages": messages} | ({"images": paths} if paths else {})
