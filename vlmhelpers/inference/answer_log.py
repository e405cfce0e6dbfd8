"""Answers in a JSONL file that grows while they come, so that an interrupted run loses none.

The first line says which model and settings the answers are of. Every other line is one answer: `row` (the row's place
in the dataset, from 0), `prompt` (the text of its last question), `answer`, `cut` and `key`, a hash of the whole prompt
with its pictures.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from PIL import Image

from vlmhelpers.common.images import repair
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import message_text

_SAMPLED = 256  # numbers of each weight that are looked at


class AnswersFile:
    """The file at `path`, opened for `settings` and rows as `row_keys` gives them. `answers`: (text, cut) by place.

    Answers are taken over for the same row at the same place; others stay in the file and do not count. A last line
    that was not written to its end is dropped. Raises ValueError for a file of other settings, and for one that holds
    something else, which then stays as it is.
    """

    def __init__(self, path, settings, keys):
        self.path, self.keys, self.answers = Path(path), keys, {}
        first = _line({"settings": settings})
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if first.startswith(content):  # nothing is there, or not all of the first line
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(first)
            return
        values = self._read(whole)
        self._check(settings, values)
        if whole != content:
            os.truncate(self.path, len(whole))
        for value in values[1:]:
            if value["row"] < len(keys) and keys[value["row"]][0] == value["key"]:
                self.answers[value["row"]] = value["answer"], value["cut"]

    def append(self, answers):
        """Adds answers, a dict from place to (text, cut), and hands them to the disk."""
        with open(self.path, "ab") as file:
            for place, (text, cut) in answers.items():
                key, prompt = self.keys[place]
                file.write(_line({"row": place, "prompt": prompt, "answer": text, "cut": cut, "key": key}))
            file.flush()
            os.fsync(file.fileno())

    def _read(self, content):
        try:
            values = [json.loads(line) for line in content.splitlines()]
            if (
                values
                and "settings" in values[0]
                and all({"row", "answer", "cut", "key"} <= set(v) for v in values[1:])
            ):
                return values
        except (ValueError, TypeError):
            pass
        raise ValueError(f"{self.path} is no file of answers that generate has written. Pass another file as save_to")

    def _check(self, settings, values):
        before, now = values[0]["settings"], json.loads(_line(settings))
        changed = sorted(name for name in before | now if before.get(name) != now.get(name))
        if changed:
            raise ValueError(
                f"{self.path} holds answers with another {', '.join(changed)} than now. Pass another file as save_to, "
                "or delete this one to answer all rows anew"
            )


def _line(value):
    """As a line of JSON; of objects the name of their class. Separators in strings are escaped: lines stay lines."""
    return (json.dumps(value, default=lambda value: type(value).__name__) + "\n").encode()


def row_keys(dataset):
    """(hash of the prompt with its pictures, text of the last question) for each row.

    Pictures are told apart by their encoded bytes, else by the path and size of their file, and by their pixels only
    where the dataset has a transform, which could have changed them.
    """
    changed = dataset.format["type"] == "custom"
    rows = dataset if changed else stream_plain_rows(dataset, ["messages", "images"], "telling rows apart")
    return [_key(row) for row in rows]


def _key(row):
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    turns = [(m["role"], [(part["type"], part["text"]) for part in m["content"]]) for m in messages]
    told = json.dumps([turns, [_picture(image) for image in row.get("images") or []]])
    return hashlib.sha256(told.encode()).hexdigest()[:16], message_text(messages[-1])


def _picture(image):
    """What tells one image of a row from others, as JSON values."""
    if isinstance(image, Image.Image):
        image = repair(image)
        return [image.size, hashlib.sha256(image.tobytes()).hexdigest()]
    if image and image.get("bytes"):
        return hashlib.sha256(image["bytes"]).hexdigest()
    path = image and image["path"]
    return [image, os.path.getsize(path) if path and os.path.exists(path) else None]


def settings_of(model, processor, settings):
    """What decides the answers, as JSON values by name: the model and its weights, the processor, and `settings`."""
    told = processor.image_processor.to_json_string() + str(processor.chat_template)
    model_is = {"model": model.config._name_or_path, "weights": _weights(model), "adapters": _adapters(model)}
    return model_is | {"processor": hashlib.sha256(told.encode()).hexdigest()[:16]} | settings


def _weights(model):
    """A hash of some numbers of every weight, evenly spread: training changes them, and a large model takes no time."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        numbers = parameter.detach().flatten()
        some = numbers[:: max(1, len(numbers) // _SAMPLED)].contiguous().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _adapters(model):
    """How the adapters take part: they can be switched off, or count for more or less."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    states = {str([x.disable_adapters, x.merged, x.active_adapters, getattr(x, "scaling", None)]) for x in layers}
    return sorted(states)
