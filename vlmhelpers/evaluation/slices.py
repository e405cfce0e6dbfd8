"""Where a model is good and where it is not: scores by slice of the rows, and the rows that it gets most wrong."""

import difflib

import numpy as np
import pandas as pd

from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.comparison import EXACT, values_of
from vlmhelpers.evaluation.intervals import share
from vlmhelpers.evaluation.paired import paired_interval
from vlmhelpers.evaluation.scoring import expected_answers, first_number, parse_fields

_FEW = 10  # rows: fewer tell little
_BANDS = 4


def by_slice(dataset, evaluations, by, metric=EXACT):
    """A DataFrame of the scores in each slice of the rows, the worst slice of the last model first.

    evaluations: name -> `Evaluation` of this dataset's rows, such as {"base": base, "tuned": tuned}.
    by: a column, a field of the expected answers ("Color"), "price band" (of the field whose name has "price" in it),
        "image size" (pixels of the row's pictures), "answer length" (characters of the expected answer), or a function
        that takes a row and returns the slice's name. Numbers of the bands are cut at their quartiles.

    The index holds the slices. Columns: `rows`, for each model its score in % and the 95% interval, with two models or
    more the `difference` (last minus first, in points) with its interval, and `note`, which marks slices of fewer than
    10 rows. Raises ValueError for an unknown `by`, with a list of what there is, and for evaluations of other rows.
    """
    for model, evaluation in evaluations.items():
        if len(evaluation.hits) != len(dataset):
            raise ValueError(
                f"{model!r} has {len(evaluation.hits)} rows, the dataset {len(dataset)}: give the same rows"
            )
    groups = {}
    for i, name in enumerate(slice_names(dataset, by)):
        groups.setdefault(name, []).append(i)
    values = [(model, values_of(evaluation, metric)) for model, evaluation in evaluations.items()]
    table = pd.DataFrame([_line(name, rows, values) for name, rows in groups.items()])
    table = table.sort_values([f"{values[-1][0]} %", "rows"], ascending=[True, False], kind="stable")
    return table.set_index("slice").rename_axis(by if isinstance(by, str) else "slice")


def _line(name, rows, values):
    line = {"slice": name, "rows": len(rows)}
    for model, array in values:
        line[f"{model} %"], line[f"{model} 95%"] = _score(array[rows])
    if len(values) > 1:
        line["difference"], line["difference 95%"] = _change(values[-1][1][rows] - values[0][1][rows])
    return line | {"note": f"under {_FEW} rows" if len(rows) < _FEW else ""}


def _score(values):
    """The mean of the known values in percent, and its interval: Wilson's of hits, else the bootstrap's."""
    known = values[~np.isnan(values)]
    if set(known) <= {0.0, 1.0} and len(known):
        score = share(known.tolist())
        return _percent(score.value, (score.low, score.high))
    return _change(values)


def _change(values):
    known = values[~np.isnan(values)]
    return _percent(float(known.mean()), paired_interval(known)) if len(known) else (np.nan, "")


def _percent(value, ends):
    return round(100 * value, 1), f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"


def slice_names(dataset, by):
    """The name of the slice of each row, a list of n strings; `by` as in `by_slice`."""
    if callable(by):
        return [str(by(row)) for row in dataset]
    if by == "image size":
        return _bands([_pixels(row) for row in dataset.select_columns("images")], "no picture")
    references = [split_thinking(text)[1] for text in expected_answers(dataset)]
    if by == "answer length":
        return _bands([len(text) for text in references])
    columns = [name for name in dataset.column_names if name not in ("messages", "images")]
    if by in columns:
        return list(map(str, dataset.with_format(None)[by]))
    fields = [parse_fields(text) for text in references]
    names = list(dict.fromkeys(name for row in fields for name in row))
    prices = [name for name in names if "price" in name.lower()]
    if by == "price band" and prices:
        return _bands([first_number(row.get(prices[0], "")) for row in fields], "no price")
    if by in names:
        return [row.get(by, f"no {by}") for row in fields]
    known = [*columns, *names, *(["price band"] if prices else []), "image size", "answer length"]
    raise ValueError(f"no slices by {by!r}: choose one of {', '.join(known)}, or give a function of a row")


def _pixels(row):
    return sum(image.width * image.height for image in row["images"]) or None


def _bands(numbers, missing="none"):
    """For each number the name of its quarter of them all, by its ends; few different numbers stand for themselves."""
    known = sorted({number for number in numbers if number is not None})
    if len(known) <= _BANDS:
        bands = [[number] for number in known]
    else:
        edges = np.quantile([number for number in numbers if number is not None], [0.25, 0.5, 0.75])
        bands = [[n for n in known if np.searchsorted(edges, n) == k] for k in range(_BANDS)]
    names = {number: _between(band) for band in bands for number in band}
    return [names.get(number, missing) for number in numbers]


def _between(band):
    ends = dict.fromkeys((band[0], band[-1]))
    return " to ".join(f"{end:,.10g}" for end in ends)


def worst_rows(dataset, result, k=6, answers=None):
    """The places of the at most `k` rows that are most wrong, the worst first, for `show_rows`.

    result: an `Evaluation` of the dataset's rows, or a value in 0..1 per row (None is skipped). Rows of value 1 are
    right and left out. answers: the answers as strings; among rows of equal value those less similar to the expected
    answer come first (`difflib.SequenceMatcher.ratio` of what follows the reasoning).
    """
    values = values_of(result) if hasattr(result, "hits") else np.array(list(result), dtype=float)
    for name, given in (("values", values), ("answers", answers)):
        if given is not None and len(given) != len(dataset):
            raise ValueError(f"{len(given)} {name} for {len(dataset)} rows: give one per row, in row order")
    wrong = np.flatnonzero(values < 1).tolist()
    if answers is None:
        return sorted(wrong, key=lambda i: values[i])[:k]
    references = expected_answers(dataset)
    return sorted(wrong, key=lambda i: (values[i], _similarity(answers[i], references[i])))[:k]


def _similarity(answer, reference):
    answer, reference = (split_thinking(text)[1] for text in (answer, reference))
    return difflib.SequenceMatcher(None, answer, reference, autojunk=False).ratio()
