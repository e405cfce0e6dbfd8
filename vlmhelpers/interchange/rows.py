"""Rows of every kind as other programs read them: texts with `<image>` where an image stands, and image files."""

import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow.compute as pc
from datasets import Dataset
from transformers import ProcessorMixin

from vlmhelpers.batches.chat_template import ChatTemplate
from vlmhelpers.batches.conversation import clean
from vlmhelpers.common.digests import digest
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.images import open_image, repair
from vlmhelpers.data.schema import TRAIN, escape_control_tokens, kind_of

IMAGE = "<image>"
# What these programs take for an image, or for another medium, wherever it stands in a text.
_MEDIA = re.compile("<(?:image|video|audio|bbox|ref-object|cot-process|start-image)>")
_FILES = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}  # formats that any of them opens, and their endings


class Turns:
    """Messages as those of a run here, once they are text: control tokens escaped, no blank lines before an answer.

    What other programs take for an image or another medium is escaped, too. `escaped`: the texts where that was so.
    """

    def __init__(self, processor: ProcessorMixin):
        self._control, self.escaped = ChatTemplate(processor).control, 0

    def __call__(self, messages: list[dict]) -> list[dict]:
        """{"role", "content"} of each message, its content a text; of an answer that is not learned also its "loss"."""
        return [self._turn(message) for message in messages]

    def _turn(self, message):
        loss = {"loss": False} if message.get(TRAIN) is False else {}
        return {"role": message["role"], "content": self._text(message)} | loss

    def _text(self, message):
        content = clean(message, self._control)["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return "".join(IMAGE if part["type"] == "image" else self._escape(part["text"]) for part in parts)

    def _escape(self, text):
        self.escaped += bool(_MEDIA.search(text))
        return escape_control_tokens(text, _MEDIA)


class Images:
    """Writes the images of rows into a folder, each once, named by what they are, and gives their paths from there.

    An image that the model gets smaller is written in that size: other programs resize in two steps, which may end in
    another number of tokens. One that needs no repair stays the file that it was.
    """

    def __init__(self, folder: Path, seen: Callable):
        self.folder, self._seen = folder, seen

    def __call__(self, images: list) -> list[str]:
        """The paths, with slashes, of images as `plain_rows` gives them."""
        return [self._path(image) for image in images]

    def _path(self, image):
        opened = open_image(image)
        form, plain = _FILES.get(opened.format), repair(opened)
        shown = self._seen(plain)
        as_it_was = form and plain is opened and shown is plain
        data = _encoded(image) if as_it_was else None
        name = digest(data) if data else digest(shown.size, shown.tobytes())
        path = self.folder / "images" / f"{name[:32]}.{form if data else 'png'}"
        if not path.is_file():
            with atomic_file(path, "wb", durable=False) as file:
                file.write(data) if data else shown.save(file, "PNG")
        return path.relative_to(self.folder).as_posix()


def _encoded(image):
    return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()


def refuse_rows(dataset: Dataset, rows: Iterator[dict], program: str, takes: Collection[str]) -> Iterator[dict]:
    """The rows, as long as another program takes them as they are; ValueError, with the row, for what it would not.

    takes: of "rejected images" and "unlearned answers", what the program has.
    """
    kind = kind_of(dataset.column_names)
    for number, row in enumerate(rows, 1):
        if problem := _problem(kind, row, takes):
            reason, remedy = problem
            raise ValueError(f"row {row.get('row') or number}: {reason}, which {program} does not train on: {remedy}")
        yield row


def _problem(kind, row, takes):
    sides = {"pairs": ("chosen", "rejected"), "rated": ("completion",)}.get(kind, ())
    if any(len(row[side]) != 1 for side in sides):
        return "an answer of several turns", "put all but the last into the prompt, or leave the row out"
    prompt = row["prompt"] if kind != "messages" else row["messages"]
    roles = [message["role"] for message in prompt]
    turns = roles[roles[:1] == ["system"] :]
    if turns != (["user", "assistant"] * len(turns))[: len(turns)] or not turns:
        return f"turns of {', '.join(roles)}", "let user and assistant alternate, after a system turn or none"
    if row.get("rejected_images") and "rejected images" not in takes:
        return "other images for the rejected answer", "leave the row out"
    if any(message.get(TRAIN) is False for message in prompt) and "unlearned answers" not in takes:
        return "an answer that is not learned", "leave the row out, or let all of its answers be learned"
    return None


def columns_of(dataset: Dataset) -> list[str]:
    """Those columns that are written."""
    names = ("messages", "prompt", "chosen", "rejected", "completion", "label", "answer", "images", "rejected_images")
    return [name for name in (*names, "row") if name in dataset.column_names]


def have_images(dataset: Dataset) -> bool:
    """Whether any row has an image; where none has, the column is left out."""
    columns = dataset.with_format("arrow").select_columns(["images"])[:]["images"]
    return bool(pc.any(pc.greater(pc.list_value_length(columns), 0)).as_py())
