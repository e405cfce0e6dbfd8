"""Answers in a JSONL file that grows while they come: a line of settings, then one for each answer."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.common.digests import changed_settings, digest, tensors_digest
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.images import image_identity
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import last_question
from vlmhelpers.models.identity import model_identity, processor_identity


class Answer(NamedTuple):
    """One answer, stripped, and whether it was cut off at `max_new_tokens`."""

    text: str
    cut: bool


class OtherAnswers(ValueError):
    """A file holds answers of another model, or with other settings."""


class AnswerLog:
    """The file at `path` for the results of `answer_settings` and `row_keys`; an incomplete last line is dropped.

    `answers`: those in it for the same row at the same index; damaged lines are left out. Raises OtherAnswers for
    a file of other settings, ValueError for one of another kind.
    """

    def __init__(self, path: str | Path, settings: dict, rows: list[tuple[str, str]]):
        self.path, self.rows, self.answers = Path(path), rows, {}
        head = _line({"settings": settings})
        content = self.path.read_bytes() if self.path.exists() else b""
        if head.startswith(content):  # nothing is there, or not all of the first line
            with atomic_file(self.path, "wb") as file:
                file.write(head)
            return
        complete = content[: content.rfind(b"\n") + 1]
        first, *lines = complete.splitlines(keepends=True) or [content]
        if changed := changed_settings(self._settings(first), json.loads(head)["settings"]):
            remedy = "Pass another file as save_to, or delete this one to answer all rows anew"
            raise OtherAnswers(f"{self.path} holds answers with another {', '.join(changed)} than now. {remedy}")
        sound = [(line, found) for line in lines if (found := _answer_of(line))]
        if len(sound) < len(lines):
            print(f"{self.path}: {len(lines) - len(sound)} lines are damaged, and their rows are answered again")
        if len(sound) < len(lines) or complete != content:
            with atomic_file(self.path, "wb") as file:
                file.writelines([first, *(line for line, _ in sound)])
        found = dict(found for _, found in sound)
        self.answers = {i: found[i, key] for i, (key, _) in enumerate(rows) if (i, key) in found}

    def _settings(self, line):
        try:
            return dict(json.loads(line)["settings"])
        except (ValueError, TypeError, KeyError, RecursionError):
            message = f"{self.path} is no file of answers that generate has written. Pass another file as save_to"
            raise ValueError(message) from None

    def append(self, answers: dict[int, Answer]) -> None:
        """Writes answers, by the row's index, to the disk."""
        with open(self.path, "ab") as file:
            for i, answer in answers.items():
                key, prompt = self.rows[i]
                values = {"row": i, "prompt": prompt, "answer": answer.text, "cut": answer.cut, "key": key}
                file.write(_line(values | {"digest": digest(*values.values())}))
            file.flush()
            os.fsync(file.fileno())


def _line(value):
    """As a line of JSON; of objects the name of their class. Separators in strings are escaped: lines stay lines."""
    return (json.dumps(value, default=lambda value: type(value).__name__) + "\n").encode()


def _answer_of(line):
    """((row, key), Answer) of a line, or None where it is not as it was written."""
    try:
        *values, written = json.loads(line).values()
        index, _, text, cut, key = values
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
    return ((index, key), Answer(text, cut)) if written == digest(*values) else None


def row_keys(dataset: Dataset) -> list[tuple[str, str]]:
    """(digest of the prompt with its images, text of the last question) for each row."""
    transformed = dataset.format["type"] == "custom"  # only then images are decoded: they may have been changed
    rows = dataset if transformed else stream_plain_rows(dataset, ["messages", "images"], "identifying rows")
    return [(_prompt_digest(**row), last_question(row["messages"])) for row in rows]


def _prompt_digest(messages, images=None, **_):
    prompt = messages[:-1] if messages[-1]["role"] == "assistant" else messages
    turns = [(m["role"], [(part["type"], part["text"]) for part in m["content"]]) for m in prompt]
    return digest(turns, [image_identity(image) for image in images or []])


def answer_settings(model: PreTrainedModel, processor: ProcessorMixin, options: dict) -> dict:
    """What decides the answers, as JSON values by name; adapters can be switched off, or count for more or less."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    adapters = {str([x.disable_adapters, x.merged, x.active_adapters, getattr(x, "scaling", None)]) for x in layers}
    return {
        **model_identity(model),
        "weights": tensors_digest(model.named_parameters()),
        "adapters": sorted(adapters),
        **processor_identity(processor),
        **options,
    }
