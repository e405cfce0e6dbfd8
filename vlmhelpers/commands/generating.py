"""Answers of a model to the rows of a file, written as they come."""

from collections.abc import Callable
from dataclasses import dataclass

from vlmhelpers.commands.answering import batch_options, rows_to_answer
from vlmhelpers.commands.settings import Generating
from vlmhelpers.commands.tuned import Tuned, find_run, use_tuned
from vlmhelpers.inference.generation import generate


@dataclass(frozen=True)
class Generated:
    """What `generate_answers` wrote."""

    file: str
    answers: list[str]
    note: str = ""  # which model a name came to

    def __str__(self):
        return "\n".join([*filter(None, [self.note]), f"{len(self.answers)} answers -> {self.file}"])


def generate_answers(
    settings: Generating, progress: Callable[[int, int], object] | None = None, tuned: Tuned | None = None
) -> Generated:
    """Writes the answers of a model to the rows of a file, as `generate` saves them: the same call goes on there.

    `progress` takes how many rows are answered, and of how many. `tuned`: the model that the settings
    name, where it is loaded. Raises the errors of `use_tuned`, of the readers and of `generate`.
    """
    rows = rows_to_answer(settings, find_run(settings.model))
    tuned = use_tuned(settings, tuned)
    options = batch_options(settings, tuned, rows)
    answers = generate(
        tuned.model, tuned.processor, rows, progress=progress or True, save_to=settings.output, **options
    )
    return Generated(settings.output, answers, tuned.note)
