"""Scores of generated answers, with intervals."""

import json
import re
from collections import Counter
from dataclasses import dataclass
from numbers import Real

import numpy as np

from vlmhelpers.data.schema import answer_of, message_text
from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.intervals import Score, bootstrap, mean, share
from vlmhelpers.evaluation.metrics import METRICS, measure

__all__ = [
    "Evaluation", "PriceError", "Score", "evaluate", "parse_fields", "parsed", "price_error", "share", "word_shift",
]  # fmt: skip

_FIELD = re.compile(r"(?:^|, |\n)([A-Z][\w ]*): (.*?)(?=, [A-Z][\w ]*: |\n|$)")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_JSON = re.compile(r'[{\[]\s*["{\[]')  # where an object, or a list of objects, texts or lists, may begin


def parse_fields(text):
    """The fields of an answer as a dict of strings.

    `"Product: hat, Price: $20"` has the keys Product and Price, and so has the JSON object with these keys, also inside
    other text or a fenced block. Of several objects, the first counts; a list of objects has no fields.

    Values of JSON that are no strings become their JSON text: 20 and 20.0 both become "20", nested objects have sorted
    keys, lists keep their order. Strings stay as they are: "20.0" is not "20".
    """
    fields = _json_of(text)
    if not isinstance(fields, dict):
        return dict(_FIELD.findall(text))
    return {name: value if isinstance(value, str) else _json_text(value) for name, value in fields.items()}


def _json_of(text):
    """The first JSON object or list in a text, or None; an object that is cut off gives None, not an inner one."""
    start = _JSON.search(text)
    try:
        return _DECODER.raw_decode(text, start.start())[0] if start else None
    except (ValueError, RecursionError):
        return None


def _json_text(value):
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _float(digits):
    """A JSON number with a point or an exponent, as an int where it is whole."""
    number = float(digits)
    return int(number) if number.is_integer() else number


_DECODER = json.JSONDecoder(parse_float=_float)


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: `scores` by name ("exact match", then each field, then what else was asked for).

    `hits` says of each row whether it matches exactly. `values` has the rows' values of every score that is a mean of
    them, by name: a tuple with a bool or a number per row, and None where the reference lacks that field.
    """

    scores: dict
    hits: tuple
    values: dict

    def __repr__(self):
        width = max(map(len, self.scores))
        return "\n".join(f"{name:<{width}}  {score}" for name, score in self.scores.items())


def evaluate(answers, dataset, metrics=None, judge=None):
    """Scores of `answers` against the dataset's own last assistant turns, each with its n and its 95% interval.

    `answers` are n strings in row order, as `generate` gives them. Of a thinking model's answers and of the references,
    only what follows the reasoning is compared (see `split_thinking`). There is always "exact match", and a score for
    each field of the references (see `parse_fields`): a field counts as right when the answer has the same value under
    the same key, and it is scored over the rows whose reference has it. `metrics` adds one or several of
    `metrics.METRICS` by name, or "all" of them; that module says what each is. In dollars, there is
    `price_error`.

    `judge` scores a row as a function of (prompt, images, expected, answer): the text before the answer, a list of PIL
    images and two strings. It gives a bool or a number in 0..1, and their mean is the score "judge". It may ask any
    model, such as one that is loaded already:

        def judge(prompt, images, expected, answer):
            question = f"{prompt}\\nIs {answer!r} as good an answer as {expected!r}? Answer yes or no."
            row = Dataset.from_list([make_row(question, "", images)], features=FEATURES)
            return generate(model, processor, row, progress=False)[0].lower().startswith("yes")

    Raises ValueError for too few or too many answers, an unknown metric, or a judge's value that is no number in 0..1,
    and RuntimeError where the judge itself fails, with the row's place in the dataset.
    """
    names = _chosen(metrics)
    answers, references = _texts(answers, dataset)
    hits = tuple(answer == reference for answer, reference in zip(answers, references, strict=True))
    values = {"exact match": hits} | _field_hits(answers, references)
    scores = {name: mean(of_rows) for name, of_rows in values.items()}
    for name in names:
        scores[name], of_rows = measure(name, answers, references)
        values |= {name: of_rows} if of_rows else {}
    if judge:
        values["judge"] = tuple(_verdict(judge, dataset[i], i, answers[i], references[i]) for i in range(len(hits)))
        scores["judge"] = mean(values["judge"])
    return Evaluation(scores, hits, values)


def _chosen(metrics):
    if metrics == "all":
        return METRICS
    names = [metrics] if isinstance(metrics, str) else metrics or ()
    names = [name for name in names if name != "exact match"]  # which is always there
    unknown = [name for name in names if name not in METRICS]
    if unknown:
        raise ValueError(f'unknown metric {unknown[0]!r}: choose "all" or some of {", ".join(METRICS)}')
    return names


def _texts(answers, dataset):
    """The answers and the references, both without their reasoning."""
    if len(answers) != len(dataset):
        raise ValueError(f"{len(answers)} answers for {len(dataset)} rows: give one answer per row, in row order")
    return tuple([split_thinking(text)[1] for text in texts] for texts in (answers, expected_answers(dataset)))


def _field_hits(answers, references):
    """Field -> whether each answer has the reference's value there, None where the reference lacks the field."""
    found, wanted = ([parse_fields(text) for text in texts] for texts in (answers, references))
    return {
        key: tuple(f.get(key) == w[key] if key in w else None for f, w in zip(found, wanted, strict=True))
        for key in dict.fromkeys(key for fields in wanted for key in fields)
    }


def _verdict(judge, row, place, answer, reference):
    prompt = "\n".join(filter(None, map(message_text, row["messages"][:-1])))
    try:
        verdict = judge(prompt, row["images"], reference, answer)
    except Exception as error:
        raise RuntimeError(f"the judge failed on row {place} (counted from 0): {error!r}") from error
    verdict = verdict.item() if hasattr(verdict, "item") else verdict  # of numpy or torch
    if not (isinstance(verdict, Real) and 0 <= verdict <= 1):
        raise ValueError(f"the judge gave {verdict!r} for row {place} (counted from 0): let it give a number in 0..1")
    return verdict


def says_all(prompt, images, expected, answer):
    """A judge for `evaluate` that asks no model: whether `answer` holds every value of the expected answer's fields.

    An expected answer without fields counts as one value. The order and all other words are left out, and so is case:
    this tells what a model knows from the form in which it writes.
    """
    values = parse_fields(expected).values() or [expected]
    return all(value.lower() in answer.lower() for value in values)


def parsed(answers, dataset):
    """The `Score` of answers in which every field of the reference's form can be read, right or wrong."""
    pairs = zip(*_texts(answers, dataset), strict=True)
    return share([parse_fields(reference).keys() <= parse_fields(answer).keys() for answer, reference in pairs])


def expected_answers(dataset):
    """The dataset's own last assistant turns, in row order: n strings. No picture is decoded."""
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

    An answer without a number counts as a price of 0. The interval is the percentile `bootstrap` of the median. Raises
    ValueError where no reference has a number.
    """
    found, wanted = (
        [first_number(parse_fields(text).get(field, "")) for text in texts] for texts in _texts(answers, dataset)
    )
    pairs = zip(found, wanted, strict=True)
    errors = np.array([abs((given or 0.0) - price) for given, price in pairs if price is not None])
    if not len(errors):
        raise ValueError(f"no reference has a number under {field!r}")
    score = bootstrap(errors, lambda draws: np.median(draws, axis=1), resamples, seed)
    return PriceError(score.value, score.low, score.high, float(errors.mean()), score.n)


def first_number(text):
    """The first number in a text (`$2,150.00` is 2150.0), or None."""
    found = _NUMBER.search(text)
    return float(found[0].replace(",", "")) if found else None


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
