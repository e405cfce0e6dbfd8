"""Scores of generated answers, with intervals, and two models compared on the same rows."""

import json
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vlmhelpers.schema import answer_of
from vlmhelpers.turns import split_thinking

_FIELD = re.compile(r"(?:^|, |\n)([A-Z][\w ]*): (.*?)(?=, [A-Z][\w ]*: |\n|$)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def parse_fields(text):
    """The fields of an answer as a dict of strings.

    `"Product: hat, Price: $20"` has the keys Product and Price, and so has the JSON object with these keys.
    """
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if isinstance(fields, dict):
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}
    return dict(_FIELD.findall(text))


@dataclass(frozen=True)
class Score:
    """A share of correct rows with its 95% interval, all in 0..1, and the number of rows."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.value:6.1%}   [{self.low:.1%}, {self.high:.1%}]   n={self.n}"


def share(hits):
    """The `Score` of a list of booleans, with Wilson's interval (Wilson 1927, JASA 22:209), fit for 0% and 100%."""
    n, z = len(hits), 1.959964
    if n == 0:
        raise ValueError("no rows to score")
    value = float(np.mean(hits))
    center = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    low, high = min(value, center - half), max(value, center + half)  # rounding aside, the share lies inside
    return Score(value, max(0.0, low), min(1.0, high), n)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: `scores` by name ("exact match", then each field), and `hits`, a boolean per row."""

    scores: dict
    hits: tuple

    def __repr__(self):
        width = max(map(len, self.scores))
        return "\n".join(f"{name:<{width}}  {score}" for name, score in self.scores.items())


def evaluate(answers, dataset):
    """Exact match of `answers` with the dataset's own last assistant turns, overall and per field of the reference.

    `answers` are n strings in row order, as `generate` gives them. Of a thinking model's answers and of the references,
    only what follows the reasoning is compared (see `split_thinking`). A field counts as right when the answer has the
    same value under the same key; fields are scored over the rows whose reference has them.
    """
    if len(answers) != len(dataset):
        raise ValueError(f"{len(answers)} answers for {len(dataset)} rows: give one answer per row, in row order")
    wanted = _references(dataset)
    answers, references = ([split_thinking(text)[1] for text in texts] for texts in (answers, wanted))
    hits = [answer == reference for answer, reference in zip(answers, references, strict=True)]
    by_field = {}
    for answer, reference in zip(answers, references, strict=True):
        found = parse_fields(answer)
        for key, value in parse_fields(reference).items():
            by_field.setdefault(key, []).append(found.get(key) == value)
    scores = {"exact match": share(hits)} | {key: share(values) for key, values in by_field.items()}
    return Evaluation(scores, tuple(hits))


def parsed(answers, dataset):
    """The `Score` of answers in which every field of the reference's form can be read, right or wrong."""
    references = _references(dataset)
    pairs = zip(answers, references, strict=True)
    return share([parse_fields(reference).keys() <= parse_fields(answer).keys() for answer, reference in pairs])


def _references(dataset):
    """The answers that are expected, in row order; no picture is decoded."""
    return [answer_of({"messages": messages}) for messages in dataset.with_format(None)["messages"]]


@dataclass(frozen=True)
class PriceError:
    """The median absolute error of prices with its 95% interval, in the prices' currency; its mean, and the rows."""

    value: float
    low: float
    high: float
    mean: float
    n: int

    def __str__(self):
        return f"{self.value:,.2f}   [{self.low:,.2f}, {self.high:,.2f}]   n={self.n}"


def price_error(answers, dataset, field="Full Price", resamples=2000, seed=0):
    """The `PriceError` of the number that `answers` give under `field`, over the rows whose reference has one there.

    An answer without a number counts as a price of 0. The interval is the percentile bootstrap of the median (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Raises ValueError where no reference has a number.
    """
    references = _references(dataset)
    pairs = [(_number(a, field), _number(r, field)) for a, r in zip(answers, references, strict=True)]
    errors = np.array([abs((found or 0.0) - wanted) for found, wanted in pairs if wanted is not None])
    if not len(errors):
        raise ValueError(f"no reference has a number under {field!r}")
    draws = np.random.default_rng(seed).choice(errors, size=(resamples, len(errors)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return PriceError(float(np.median(errors)), float(low), float(high), float(errors.mean()), len(errors))


def _number(text, field):
    """The number under a field of an answer (`$2,150.00` is 2150.0), or None."""
    found = _NUMBER.search(parse_fields(text).get(field, ""))
    return float(found[0].replace(",", "")) if found else None


@dataclass(frozen=True)
class Comparison:
    """Exact match of two models on the same rows: `difference` (tuned minus base) with its 95% interval, in 0..1.

    `gained` and `lost` are the row numbers (0-based places in the dataset) that only one of the two answers exactly.
    """

    difference: float
    low: float
    high: float
    gained: tuple
    lost: tuple
    names: tuple = ("base", "tuned")

    def __repr__(self):
        return (
            f"{self.names[1]} minus {self.names[0]}: {self.difference:+.1%} [{self.low:+.1%}, {self.high:+.1%}]; "
            f"{len(self.gained)} rows gained, {len(self.lost)} lost"
        )


def compare(base, tuned, resamples=10_000, seed=0, names=("base", "tuned")):
    """A `Comparison` of two `Evaluation`s of the same rows, by the paired bootstrap; `names` are for its text.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13: percentile intervals.
    """
    if len(base.hits) != len(tuned.hits):
        raise ValueError(f"{len(base.hits)} rows against {len(tuned.hits)}: compare answers to the same rows")
    change = np.array(tuned.hits, dtype=int) - np.array(base.hits, dtype=int)
    n = len(change)
    # A resample of n rows holds so many gained, unchanged and lost ones: a multinomial draw.
    shares = [np.mean(change == 1), np.mean(change == 0), np.mean(change == -1)]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    low, high = np.quantile((draws[:, 0] - draws[:, 2]) / n, [0.025, 0.975])
    gained, lost = (tuple(np.flatnonzero(change == sign).tolist()) for sign in (1, -1))
    return Comparison(float(change.mean()), float(low), float(high), gained, lost, tuple(names))


def word_shift(before, after, top=10):
    """The words whose use changed most between two lists of answers to the same prompts, as a list of `top` tuples.

    Each is (word, share of answers with it before, share after), shares in 0..1, the largest change first. A word is a
    run of letters, in lower case. It shows what a data set does to a model that nobody asked for.
    """
    if len(before) != len(after) or not before:
        raise ValueError(
            f"{len(before)} answers against {len(after)}: compare answers to the same prompts, at least one"
        )
    then, now = (Counter(word for answer in answers for word in _words(answer)) for answers in (before, after))
    shifts = [(word, then[word] / len(before), now[word] / len(after)) for word in then | now]
    return sorted(shifts, key=lambda shift: (-abs(shift[2] - shift[1]), shift[0]))[:top]


def _words(text):
    return set(re.findall(r"[^\W\d_]+", text.lower()))


def blank_images(dataset):
    """The same rows with every picture replaced by plain grey of its size: what can be answered without looking."""

    def blanked(batch):
        batch["images"] = [[Image.new("RGB", image.size, "grey") for image in row] for row in batch["images"]]
        return batch

    return dataset.with_transform(blanked)
