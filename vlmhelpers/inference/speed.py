"""How fast answers came."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from vlmhelpers.inference.answer_log import Answer


@dataclass(frozen=True)
class Speed:
    """Of batches of answers: their time goes from reading the images to the texts; loading a model does not count.

    An answer takes as long as its batch, as all come at its end; for `tokens_per_second` that time counts once.
    """

    tokens_per_second: float  # new ones, those that end an answer included, by one process
    median: float  # seconds of an answer
    p95: float
    together: int  # rows of the largest batch
    device: str

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> "Speed | None":
        """The speed of those answers that were timed, also in earlier calls; None where none was."""
        timed = [answer for answer in answers if answer.seconds is not None]
        if not timed:
            return None
        tokens, seconds, together = np.array([answer[2:5] for answer in timed], dtype=float).T
        devices = " and ".join(sorted({answer.device for answer in timed}))
        rate, (median, p95) = tokens.sum() / (seconds / together).sum(), np.quantile(seconds, (0.5, 0.95))
        return cls(float(rate), float(median), float(p95), int(together.max()), devices)

    def __str__(self):
        seconds = f"an answer in {self.median:.2f} s (median), {self.p95:.2f} s (p95)"
        return f"{self.tokens_per_second:,.0f} tokens/s, {seconds}, up to {self.together} together on {self.device}"


class Answers(list):
    """The texts of answers, and the `speed` at which they came."""

    def __init__(self, answers: Iterable[Answer] = ()):
        answers = list(answers)
        super().__init__(answer.text for answer in answers)
        self.speed = Speed.of(answers)
