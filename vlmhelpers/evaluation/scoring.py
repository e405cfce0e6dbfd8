"""Scores of generated answers against the dataset's own, with intervals."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real

import numpy as np
from datasets import Dataset

from vlmhelpers.data.schema import answer_of, message_text
from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.metrics import METRICS, measure
from vlmhelpers.evaluation.statistics import Score, bootstrap, mean, share

EXACT = "exact match"
_FIELD = re.compile(r"(?:^|, |\n)([A-Z][\w ]*): (.*?)(?=, [A-Z][\w ]*: |\n|$)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_JSON = re.compile(r'[{\[]\s*["{\[]')  # where an object, or a list of objects, texts or lists, may begin
_DECODER = json.JSONDecoder(parse_float=lambda digits: int(n) if (n := float(digits)).is_integer() else n)


def parse_fields(text: str) -> dict[str, str]:
    """The fields of an answer by name.

    `"Product: hat, Price: $20"` has the keys Product and Price, and so has the JSON object with these keys, also inside
    other text or a fenced block. Of several objects, the first counts; a list of objects has no fields. Values of JSON
    that are no strings become their JSON text, with sorted keys: 20 and 20.0 both become "20". "20.0" stays "20.0".
    """
    start = _JSON.search(text)
    try:
        fields = _DECODER.raw_decode(text, start.start())[0] if start else None
    except (ValueError, RecursionError):  # cut off: the fields of an inner object are not meant
        fields = None
    if not isinstance(fields, dict):
        return dict(_FIELD.findall(text))
    return {
        name: value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
        for name, value in fields.items()
    }


def field_numbers(texts: list[str], field: str) -> list[float | None]:
    """The first number that each text has under `field` (`$2,150.00` is 2150.0), or None."""
    found = (_NUMBER.search(parse_fields(text).get(field, "")) for text in texts)
    return [number and float(number[0].replace(",", "")) for number in found]


def without_reasoning(answers: Iterable[str]) -> list[str]:
    """What follows the reasoning in each answer, stripped."""
    return [split_thinking(answer)[1] for answer in answers]


def references_of(dataset: Dataset) -> list[str]:
    """The expected answers: each row's last assistant turn without its reasoning. No image is decoded."""
    return without_reasoning(answer_of({"messages": messages}) for messages in dataset.with_format(None)["messages"])


def check_length(values: list | tuple, dataset: Dataset, name: str = "answers") -> None:
    """Raises ValueError unless there is one value per row; `name` is what the message calls them."""
    if len(values) != len(dataset):
        raise ValueError(f"{len(values)} {name} for {len(dataset)} rows: give one per row, in row order")


def texts_of(answers: list[str], dataset: Dataset) -> tuple[list[str], list[str]]:
    """The answers and the references, both without their reasoning. Raises ValueError unless there is one per row."""
    check_length(answers, dataset)
    return without_reasoning(answers), references_of(dataset)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: `scores` by name, and `hits`, whether each row matches exactly.

    `values` has the rows' values of every score that is their mean, by name; None where the reference lacks the field.
    """

    scores: dict[str, Score]
    hits: tuple[bool, ...]
    values: dict[str, tuple]

    def __repr__(self):
        width = max(map(len, self.scores))
        return "\n".join(f"{name:<{width}}  {score}" for name, score in self.scores.items())

    def values_of(self, metric: str) -> np.ndarray:
        """The rows' values (n,) of `metric`, NaN for None. Raises ValueError for a metric without values per row."""
        values = {EXACT: self.hits} | self.values
        if metric not in values:
            raise ValueError(f"no value per row of {metric!r}: choose one of {', '.join(sorted(values))}")
        return np.array(values[metric], dtype=float)


def evaluate(
    answers: list[str], dataset: Dataset, metrics: str | Iterable[str] = (), judge: Callable | None = None
) -> Evaluation:
    """Scores of `answers`, one per row in row order, against the last assistant turns, each with its 95% interval.

    Reasoning is left out on both sides. There is always "exact match", and a score for each field of the references
    (see `parse_fields`), over the rows that have it. `metrics` adds some of `metrics.METRICS` by name, or "all".

    `judge(prompt, images, expected, answer)` gives a bool or a number in 0..1 for a row, whose mean is the score
    "judge": from the text before the answer, a list of PIL images and two strings. It may ask any model.

    Raises ValueError for too few or too many answers, an unknown metric, or a judge's value that is no number in 0..1,
    and RuntimeError where the judge itself fails, with the row's index in the dataset.
    """
    answers, references = texts_of(answers, dataset)
    hits = tuple(answer == reference for answer, reference in zip(answers, references, strict=True))
    values = {EXACT: hits} | _field_hits(answers, references)
    scores = {name: mean(of_rows) for name, of_rows in values.items()}
    names = METRICS if metrics == "all" else [metrics] if isinstance(metrics, str) else metrics
    for name in names:
        if name != EXACT:  # which is always there
            scores[name], of_rows = measure(name, answers, references)
            values |= {name: of_rows} if of_rows else {}
    if judge:
        values["judge"] = tuple(_judged(judge, dataset[i], i, answers[i], references[i]) for i in range(len(hits)))
        scores["judge"] = mean(values["judge"])
    return Evaluation(scores, hits, values)


def _field_hits(answers, references):
    """Field -> whether each answer has the reference's value there, None where the reference lacks the field."""
    found, expected = (list(map(parse_fields, texts)) for texts in (answers, references))
    return {
        key: tuple(f.get(key) == e[key] if key in e else None for f, e in zip(found, expected, strict=True))
        for key in dict.fromkeys(key for fields in expected for key in fields)
    }


def _judged(judge, row, index, answer, reference):
    prompt = "\n".join(filter(None, map(message_text, row["messages"][:-1])))
    try:
        value = judge(prompt, row["images"], reference, answer)
    except Exception as error:
        raise RuntimeError(f"the judge failed on row {index} (counted from 0): {error!r}") from error
    value = value.item() if hasattr(value, "item") else value  # of numpy or torch
    if not (isinstance(value, Real) and 0 <= value <= 1):
        raise ValueError(f"the judge gave {value!r} for row {index} (counted from 0): let it give a number in 0..1")
    return value


def says_all(prompt: str, images: list, expected: str, answer: str) -> bool:
    """A judge for `evaluate` that asks no model: whether `answer` holds every value of the expected answer's fields.

    An expected answer without fields is one value. Case and all else do not count: what it knows, not how it writes.
    """
    values = parse_fields(expected).values() or [expected]
    return all(value.lower() in answer.lower() for value in values)


def parsed(answers: list[str], dataset: Dataset) -> Score:
    """The share of answers in which every field of the reference's form can be read, right or wrong."""
    pairs = zip(*texts_of(answers, dataset), strict=True)
    return share([parse_fields(reference).keys() <= parse_fields(answer).keys() for answer, reference in pairs])


@dataclass(frozen=True)
class PriceError(Score):
    """The median absolute error of prices with its 95% interval, in the prices' currency, and its `mean`."""

    mean: float

    def __str__(self):
        return f"{self.value:,.2f}   [{self.low:,.2f}, {self.high:,.2f}]   n={self.n}"


def price_error(
    answers: list[str], dataset: Dataset, field: str = "Full Price", resamples: int = 2000, seed: int = 0
) -> PriceError:
    """The error of the number under `field`, over the rows whose reference has one there; a missing one counts as 0."""
    pairs = zip(*(field_numbers(texts, field) for texts in texts_of(answers, dataset)), strict=True)
    errors = np.array([abs((given or 0.0) - price) for given, price in pairs if price is not None])
    if not len(errors):
        raise ValueError(f"no reference has a number under {field!r}")
    score = bootstrap(errors, lambda draws: np.median(draws, axis=1), resamples, seed)
    return PriceError(score.value, score.low, score.high, score.n, float(errors.mean()))


def word_shift(before: list[str], after: list[str], top: int = 10) -> list[tuple[str, float, float]]:
    """The `top` words whose use changed most between two lists of answers to the same prompts, most changed first.

    Each is (word in lower case, share of answers with it before, share after): what was learned and not asked for.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} answers: compare answers to the same prompts, at least one")
    then, now = (
        Counter(word for answer in answers for word in set(re.findall(r"[^\W\d_]+", answer.lower())))
        for answers in (before, after)
    )
    shifts = [(word, then[word] / len(before), now[word] / len(after)) for word in then | now]
    return sorted(shifts, key=lambda shift: (-abs(shift[2] - shift[1]), shift[0]))[:top]
