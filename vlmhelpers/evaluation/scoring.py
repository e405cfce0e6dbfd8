"""Scores of generated answers against the dataset's own: of all rows, by slice, and the worst rows."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from numbers import Real

import numpy as np
import pandas as pd
from datasets import Dataset

from vlmhelpers.common.numbers import first_number, shared_conventions
from vlmhelpers.common.printable import printable
from vlmhelpers.data.given import decoded_row, given_rows, given_texts
from vlmhelpers.data.schema import FEATURES, answer_of, is_blank, message_text
from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.metrics import METRICS, measure
from vlmhelpers.evaluation.statistics import Score, bootstrap, mean, paired_mean, share

EXACT = "exact match"
_FIELD = re.compile(r"(?:^|, |\n)([A-Z][\w ]*): (.*?)(?=, [A-Z][\w ]*: |\n|$)")
_JSON = re.compile(r'[{\[]\s*["{\[]')  # where an object, or a list of objects, texts or lists, may begin
_DECODER = json.JSONDecoder(parse_float=lambda digits: int(n) if (n := float(digits)).is_integer() else n)

nfc = partial(unicodedata.normalize, "NFC")  # the form in which texts are compared: é is one sign, not e and an accent


def parse_fields(text: str) -> dict[str, str]:
    """The fields of an answer by name: of `"Product: hat, Price: $20"`, or of the first JSON object in the text.

    A list of objects has no fields. Values of JSON that are no strings become JSON text with sorted keys: 20.0 is "20".
    Names and values are in Unicode's form NFC.
    """
    start = _JSON.search(text)
    try:
        fields = _DECODER.raw_decode(text, start.start())[0] if start else None
    except (ValueError, RecursionError):  # cut off: the fields of an inner object are not meant
        fields = None
    if not isinstance(fields, dict):
        return dict(_FIELD.findall(nfc(text)))
    as_text = partial(json.dumps, sort_keys=True, ensure_ascii=False)
    texts = ((name, value if isinstance(value, str) else as_text(value)) for name, value in fields.items())
    return {nfc(name): nfc(value) for name, value in texts}


def field_numbers(texts: list[str], field: str, like: list[str] | None = None) -> list[float | None]:
    """The first number of each text under `field` (`$2,150.00` is 2150.0), or None.

    What can be read in two ways goes by the texts `like`, by default these: "1.299" is 1299.0 beside "12,50".
    """
    values, others = ([parse_fields(text).get(field, "") for text in of] for of in (texts, like or texts))
    convention = next(iter(shared_conventions(others)), None)
    return [first_number(value, convention) for value in values]


def without_reasoning(answers: Iterable[str]) -> list[str]:
    """What follows the reasoning in each answer, stripped, in Unicode's form NFC."""
    return [nfc(split_thinking(answer)[1]) for answer in answers]


def references_of(dataset: Dataset) -> list[str]:
    """The expected answers: each row's last assistant turn without its reasoning. No image is decoded.

    Raises ValueError for rows without one, also for one of reasoning alone, and for what are no rows of messages.
    """
    messages = given_rows(dataset).with_format(None)["messages"]
    return [_reference(row, turns) for row, turns in enumerate(messages)]


def _reference(row, messages):
    try:
        (reference,) = without_reasoning([answer_of({"messages": messages})])
        if is_blank(reference):
            raise ValueError("the expected answer at its end is empty: write it, or leave the row out")
    except ValueError as error:
        raise ValueError(f"row {row} (counted from 0): {error}") from None
    return reference


def check_length(values: list | tuple, dataset: Dataset, name: str = "answers") -> None:
    """Raises ValueError unless there is one value per row; `name` is what the message calls them."""
    if len(values) != len(dataset):
        raise ValueError(f"{len(values)} {name} for {len(dataset)} rows: give one per row, in row order")


def texts_of(answers: list[str], dataset: Dataset) -> tuple[list[str], list[str]]:
    """The answers and the references without reasoning. Raises ValueError unless each row has one of both."""
    references = references_of(dataset)
    return without_reasoning(given_texts(answers, references)), references


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: `scores` by name, `hits`, whether each row matches exactly, and the rows' `values` of
    every score that is their mean, by name; None where the reference lacks the field.
    """

    scores: dict[str, Score]
    hits: tuple[bool, ...]
    values: dict[str, tuple]

    def __repr__(self):
        width = max(map(len, self.scores))
        return printable("\n".join(f"{name:<{width}}  {score}" for name, score in self.scores.items()))

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

    Without reasoning: "exact match", each field of the references (see `parse_fields`) over the rows that have it, and
    `metrics`, some of `metrics.METRICS` or "all". `judge(prompt, images, expected, answer)`, which takes a string, PIL
    images and two strings, gives a bool or a number in 0..1; their mean is the score "judge". `dataset` may also be a
    list of rows.

    Raises ValueError unless there is one answer and one reference per row, for an unknown metric or a judge's value
    outside 0..1, and RuntimeError where the judge fails, with the row's index.
    """
    dataset = given_rows(dataset)
    answers, references = texts_of(answers, dataset)
    hits = tuple(answer == reference for answer, reference in zip(answers, references, strict=True))
    values = {EXACT: hits} | _field_hits(answers, references)
    scores = {name: mean(of_rows) for name, of_rows in values.items()}
    names = METRICS if metrics == "all" else [metrics] if isinstance(metrics, str) else metrics or ()
    for name in names:
        if name != EXACT:  # which is always there
            scores[name], of_rows = measure(name, answers, references)
            values |= {name: of_rows} if of_rows else {}
    if judge:
        values["judge"] = tuple(
            _judged(judge, decoded_row(dataset, i), i, answers[i], references[i]) for i in range(len(hits))
        )
        scores["judge"] = mean(values["judge"])
    return Evaluation(scores, hits, values)


def _field_hits(answers, references):
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
    """A judge without a model: whether `answer` holds all values of the expected fields (or its text) in any case."""
    values = parse_fields(expected).values() or [nfc(expected)]
    return all(value.lower() in nfc(answer).lower() for value in values)


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


def price_error(answers: list[str], dataset: Dataset, field: str = "Full Price") -> PriceError:
    """The error of the number under `field`, over the rows whose reference has one there; a missing one counts as 0.

    A number that can be read in two ways, such as 1.299, is read as all references of the field can be.
    """
    answers, references = texts_of(answers, dataset)
    pairs = zip(field_numbers(answers, field, references), field_numbers(references, field), strict=True)
    errors = np.array([abs((given or 0.0) - price) for given, price in pairs if price is not None])
    if not len(errors):
        raise ValueError(f"no reference has a number under {field!r}")
    score = bootstrap(errors, lambda draws: np.median(draws, axis=1), resamples=2000)
    return PriceError(**vars(score), mean=float(errors.mean()))


def word_shift(before: list[str], after: list[str], top: int = 10) -> list[tuple[str, float, float]]:
    """The `top` words whose use changed most, as (word in lower case, share of answers with it before, after)."""
    before, after = (given_texts(texts, texts) for texts in (before, after))
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} and {len(after)} answers: compare answers to the same prompts, at least one")
    words = ([set(re.findall(r"[^\W\d_]+", nfc(text).lower())) for text in texts] for texts in (before, after))
    then, now = (Counter(chain.from_iterable(of_answers)) for of_answers in words)
    shifts = [(word, then[word] / len(before), now[word] / len(after)) for word in then | now]
    return sorted(shifts, key=lambda shift: (-abs(shift[2] - shift[1]), shift[0]))[:top]


def by_slice(
    dataset: Dataset, evaluations: dict[str, Evaluation], by: str | Callable[[dict], object], metric: str = EXACT
) -> pd.DataFrame:
    """The scores of models, by name, in each slice of the rows: the worst slice of the last model first.

    `by`: a column, a field of the expected answers ("Color"), "price band", "image size" (pixels), "answer length"
    (characters), or a function of a row. Bands of numbers are cut at their quartiles. Columns: `rows`, each model's
    score in % with its 95% interval, the `difference` (last minus first, points) with its own, and a `note` on slices
    of fewer than 10 rows. Raises ValueError for an unknown `by`, and for evaluations of other rows.
    """
    dataset = given_rows(dataset, None)
    check_evaluations(evaluations)
    for model, evaluation in evaluations.items():
        if (n := len(evaluation.hits)) != len(dataset):
            raise ValueError(f"{model!r} has {n} rows, the dataset {len(dataset)}: give the same rows")
    values = pd.DataFrame({model: evaluation.values_of(metric) for model, evaluation in evaluations.items()})
    slices = values.groupby(np.array(slice_names(dataset, by), dtype=object), sort=False)
    table = pd.DataFrame([{"slice": name} | _line(rows) for name, rows in slices])
    table = table.sort_values([f"{values.columns[-1]} %", "rows"], ascending=[True, False], kind="stable")
    return table.set_index("slice").rename_axis(by if isinstance(by, str) else "slice")


def check_evaluations(evaluations: dict[str, Evaluation]) -> None:
    """Raises ValueError for what is no dict of evaluations, or an empty one."""
    known = isinstance(evaluations, dict) and all(isinstance(found, Evaluation) for found in evaluations.values())
    if not (known and evaluations):
        raise ValueError("give evaluations by name, such as {'base': vlm.evaluate(answers, dataset)}")


def _line(values):
    line = {"rows": len(values)}
    for model in values:
        line[f"{model} %"], line[f"{model} 95%"] = _cells(values[model], of_hits=set(values[model].dropna()) <= {0, 1})
    if values.shape[1] > 1:
        line["difference"], line["difference 95%"] = _cells(values.iloc[:, -1] - values.iloc[:, 0])
    return line | {"note": "under 10 rows" if len(values) < 10 else ""}


def _cells(values, of_hits=False):
    known = values.dropna().to_numpy()
    if not len(known):
        return np.nan, ""
    score = share(known) if of_hits else paired_mean(known)
    return round(100 * score.value, 1), score.bounds()


def slice_names(dataset: Dataset, by: str | Callable[[dict], object]) -> list[str]:
    """The name of each row's slice; `by` as in `by_slice`."""
    dataset = given_rows(dataset, None)
    if callable(by):
        return [str(by(row)) for row in dataset]
    if by == "image size":
        images = (decoded_row(dataset, i)["images"] for i in range(len(dataset)))
        return _bands([sum(image.width * image.height for image in of_row) or None for of_row in images], "no image")
    references = references_of(dataset)
    if by == "answer length":
        return _bands([len(text) for text in references])
    columns = [name for name in dataset.column_names if name not in FEATURES]
    if by in columns:
        return list(map(str, dataset.with_format(None)[by]))
    fields = list(map(parse_fields, references))
    names = list(dict.fromkeys(name for row in fields for name in row))
    prices = [name for name in names if "price" in name.lower()]
    if by == "price band" and prices:
        return _bands(field_numbers(references, prices[0]), "no price")
    if by in names:
        return [row.get(by, f"no {by}") for row in fields]
    known = [*columns, *names, *(["price band"] if prices else []), "image size", "answer length"]
    raise ValueError(printable(f"no slices by {by!r}: choose one of {', '.join(known)}, or give a function of a row"))


def _bands(numbers, missing=""):
    """For each number the name of its quarter of them all; up to four different numbers stand for themselves."""
    numbers = bands = pd.Series(numbers, dtype=float)
    if numbers.nunique() > 4:
        bands = pd.cut(numbers, [-np.inf, *numbers.quantile([0.25, 0.5, 0.75]), np.inf], duplicates="drop")
    ends = (numbers.groupby(bands, observed=True).transform(end) for end in ("min", "max"))
    names = (" to ".join(dict.fromkeys(f"{end:,.10g}" for end in row)) for row in zip(*ends, strict=True))
    return [missing if np.isnan(number) else name for number, name in zip(numbers, names, strict=True)]


def worst_rows(
    dataset: Dataset, result: Evaluation | Iterable[float | None], k: int = 6, answers: list[str] | None = None
) -> list[int]:
    """The indices of up to `k` rows of a value below 1, the worst first; of equal ones the least similar answers."""
    from rapidfuzz.distance import Indel

    dataset = given_rows(dataset, None)
    values = result.values_of(EXACT) if isinstance(result, Evaluation) else np.array(list(result), dtype=float)
    check_length(values, dataset, "values")
    wrong = np.flatnonzero(values < 1).tolist()
    texts = list(zip(*texts_of(answers, dataset), strict=True)) if answers is not None else [("", "")] * len(dataset)
    similarity = {i: Indel.normalized_similarity(*texts[i]) for i in wrong}
    return sorted(wrong, key=lambda i: (values[i], similarity[i]))[:k]
