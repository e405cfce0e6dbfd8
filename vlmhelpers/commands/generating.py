"""Answers of a model to one question or to rows, as lines of JSON."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from vlmhelpers.commands.answering import batch_options, rows_to_answer
from vlmhelpers.commands.served import use_model
from vlmhelpers.commands.settings import Generating
from vlmhelpers.commands.tuned import Tuned, find_run
from vlmhelpers.common.distributed import process_share
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.printable import printable
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import answer_of, last_question
from vlmhelpers.inference.generation import generate
from vlmhelpers.inference.speed import Answers


@dataclass(frozen=True)
class Generated:
    """What `generate_answers` found; as a text it is lines of JSON, or where they are."""

    answers: Answers
    lines: list[str]  # a JSON object for each row: prompt, images (paths), answer, expected (null without one)
    file: str | None
    note: str = ""  # which model a name came to

    def __str__(self):
        return f"{len(self.lines)} answers -> {self.file}" if self.file else "\n".join(self.lines)


def generate_answers(
    settings: Generating,
    progress: Callable[[int, int], object] | None = None,
    tuned: Tuned | None = None,
    images: Iterable[str | Path] = (),
) -> Generated:
    """The answers of a model to a prompt about `images`, or to the rows of a file or of its run.

    Into a file they are written whole, at the end; until then they are in one beside it, whose name ends in .log, from
    which the same call goes on. Processes that `accelerate launch` has started share the rows. `progress` takes how
    many rows are answered, and of how many. `tuned`: the model that the settings name, where it is loaded. Raises
    FileExistsError for an output that holds something else, UnusableImage, and the errors of `use_model`, of the
    readers and of `generate`.
    """
    log = settings.output and f"{settings.output}.log"
    if log and Path(settings.output).exists() and not Path(log).exists():
        raise FileExistsError(f"{settings.output} is not from an earlier call: name another output, or remove it")
    rows = rows_to_answer(settings, find_run(settings.model), images)
    tuned = use_model(settings, tuned)
    options = batch_options(settings, tuned, rows) | {"progress": progress or True}
    answers = generate(tuned.model, tuned.processor, rows, save_to=log, **options)
    lines = list(_lines(rows, answers))
    if settings.output and process_share()[0] == 0:
        with atomic_file(settings.output, encoding="utf-8", newline="\n") as file:
            file.writelines(f"{line}\n" for line in lines)
    return Generated(answers, lines, settings.output, tuned.note)


def _lines(rows: Dataset, answers):
    plain = stream_plain_rows(rows, ["messages", "images"], "writing answers")
    for row, answer in zip(plain, answers, strict=True):
        images = [image and image["path"] for image in row["images"] or []]
        expected = answer_of(row) if row["messages"][-1]["role"] == "assistant" else None
        said = {"prompt": last_question(row["messages"]), "images": images, "answer": answer, "expected": expected}
        line = json.dumps(said, ensure_ascii=False)
        yield line if line == printable(line) else json.dumps(said)
