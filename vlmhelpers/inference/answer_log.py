"""Answers in a JSONL file that grows while they come: a line of settings, then one for each answer."""

import glob
import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.common.digests import changed_settings, digest, tensors_digest
from vlmhelpers.common.files import atomic_file, name_full_disk
from vlmhelpers.common.images import image_identity
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import last_question
from vlmhelpers.models.identity import model_identity, processor_identity


class Answer(NamedTuple):
    """One answer, stripped, and how it came; the last four are None in files of earlier versions."""

    text: str
    cut: bool  # off, at `max_new_tokens`
    tokens: int | None = None  # new ones, with the one that ends it
    seconds: float | None = None  # that its batch took
    together: int | None = None  # rows of its batch
    device: str | None = None


class OtherAnswers(ValueError):
    """A file holds answers of another model, or with other settings."""


class AnswerLog:
    """The file at `path` for the results of `answer_settings` and `row_keys`; an incomplete last line is dropped.

    Of several processes each writes a file of its own, by its number `part`, and reads those of all. `answers`: those
    in them for the same row at the same index; damaged lines are left out. Raises OtherAnswers for a file of other
    settings, ValueError for one of another kind.
    """

    def __init__(self, path: str | Path, settings: dict, rows: list[tuple[str, str]], part: int = 0):
        self.path, self.rows = log_file(path, part), rows
        head, found = _line({"settings": settings}), {}
        for file in sorted({self.path, *log_files(path)}):
            found |= _read(file, head, repair=file == self.path)
        self.answers = {i: found[i, key] for i, (key, _) in enumerate(rows) if (i, key) in found}

    def append(self, answers: dict[int, Answer]) -> None:
        """Writes answers, by the row's index, to the disk."""
        with name_full_disk(self.path), open(self.path, "ab") as file:
            for i, answer in answers.items():
                key, prompt = self.rows[i]
                values = {"row": i, "prompt": prompt, "answer": answer.text, "cut": answer.cut, "key": key}
                values |= dict(zip(Answer._fields[2:], answer[2:], strict=True))
                file.write(_line(values | {"digest": digest(*values.values())}))
            file.flush()
            os.fsync(file.fileno())


def log_file(path: str | Path, part: int = 0) -> Path:
    """The file that a process writes for `path`."""
    return Path(f"{path}.{part}" if part else path)


def log_files(path: str | Path) -> list[Path]:
    """Those that processes have written for `path`."""
    path = Path(path)
    named = re.compile(re.escape(path.name) + r"(\.\d+)?").fullmatch
    return [file for file in path.parent.glob(f"{glob.escape(path.name)}*") if named(file.name)]


def _read(file, head, repair):
    """{(row, key): Answer} of a file that begins with `head`; its own process repairs it."""
    content = file.read_bytes() if file.exists() else b""
    # At the beginning nothing is there, or not all of the first line.
    complete = head if head.startswith(content) else content[: content.rfind(b"\n") + 1]
    first, *lines = complete.splitlines(keepends=True) or [content]
    if changed := changed_settings(_settings(file, first), _settings(file, head)):
        remedy = "Pass another file as save_to, or delete this one to answer all rows anew"
        raise OtherAnswers(f"{file} holds answers with another {', '.join(changed)} than now. {remedy}")
    sound = [(line, found) for line in lines if (found := _answer_of(line))]
    whole = b"".join([first, *(line for line, _ in sound)])
    if repair and len(sound) < len(lines):
        print(f"{file}: {len(lines) - len(sound)} lines are damaged, and their rows are answered again")
    if repair and whole != content:
        with atomic_file(file, "wb") as repaired:
            repaired.write(whole)
    return dict(found for _, found in sound)


def _settings(file, line):
    try:
        return dict(json.loads(line)["settings"])
    except (ValueError, TypeError, KeyError, RecursionError):
        message = f"{file} is no file of answers that generate has written. Pass another file as save_to"
        raise ValueError(message) from None


def _line(value):
    """As a line of JSON; of objects the name of their class. Separators in strings are escaped: lines stay lines."""
    return (json.dumps(value, default=lambda value: type(value).__name__) + "\n").encode()


def _answer_of(line):
    """((row, key), Answer) of a line, or None where it is not as it was written."""
    try:
        *values, written = json.loads(line).values()
        index, _, text, cut, key, *how = values
        return ((index, key), Answer(text, cut, *how)) if written == digest(*values) else None
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


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
