"""Where a model is good and where it is not: scores by slice of the rows, and the rows that it gets most wrong."""

import difflib
from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from datasets import Dataset

from vlmhelpers.data.schema import FEATURES
from vlmhelpers.evaluation.scoring import EXACT, Evaluation, field_numbers, parse_fields, references_of, texts_of
from vlmhelpers.evaluation.statistics import paired_mean, share

_FEW = 10  # rows: fewer tell little
_QUARTILES = [0.25, 0.5, 0.75]


def by_slice(
    dataset: Dataset, evaluations: dict[str, Evaluation], by: str | Callable[[dict], object], metric: str = EXACT
) -> pd.DataFrame:
    """The scores of models, by name, in each slice of the rows: the worst slice of the last model first.

    by: a column, a field of the expected answers ("Color"), "price band" (of the field whose name has "price" in it),
        "image size" (pixels), "answer length" (characters of the expected answer), or a function of a row that gives
        the slice's name. Bands of numbers are cut at their quartiles.

    Columns: `rows`, each model's score in % and its 95% interval, with several models the `difference` (last minus
    first, in points) and its interval, and `note`, which marks slices of fewer than 10 rows. Raises ValueError for an
    unknown `by`, and for evaluations of other rows.
    """
    for model, evaluation in evaluations.items():
        if (n := len(evaluation.hits)) != len(dataset):
            raise ValueError(f"{model!r} has {n} rows, the dataset {len(dataset)}: give the same rows")
    values = pd.DataFrame({model: evaluation.values_of(metric) for model, evaluation in evaluations.items()})
    slices = values.groupby(np.array(slice_names(dataset, by), dtype=object), sort=False)
    table = pd.DataFrame([{"slice": name} | _line(rows) for name, rows in slices])
    table = table.sort_values([f"{values.columns[-1]} %", "rows"], ascending=[True, False], kind="stable")
    return table.set_index("slice").rename_axis(by if isinstance(by, str) else "slice")


def _line(values):
    """The line of a slice whose rows have these values, a column for each model."""
    line = {"rows": len(values)}
    for model in values:
        line[f"{model} %"], line[f"{model} 95%"] = _cells(values[model], of_hits=set(values[model].dropna()) <= {0, 1})
    if values.shape[1] > 1:
        line["difference"], line["difference 95%"] = _cells(values.iloc[:, -1] - values.iloc[:, 0])
    return line | {"note": f"under {_FEW} rows" if len(values) < _FEW else ""}


def _cells(values, of_hits=False):
    """The mean of the known values in percent, and its interval: Wilson's of hits, else the bootstrap's."""
    known = values.dropna().to_numpy()
    if not len(known):
        return np.nan, ""
    score = share(known) if of_hits else paired_mean(known)
    return round(100 * score.value, 1), score.bounds()


def slice_names(dataset: Dataset, by: str | Callable[[dict], object]) -> list[str]:
    """The name of each row's slice; `by` as in `by_slice`."""
    if callable(by):
        return [str(by(row)) for row in dataset]
    if by == "image size":
        rows = dataset.select_columns("images")
        return _bands([sum(image.width * image.height for image in row["images"]) or None for row in rows], "no image")
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
    raise ValueError(f"no slices by {by!r}: choose one of {', '.join(known)}, or give a function of a row")


def _bands(numbers, missing=""):
    """For each number the name of its quarter of them all, by its ends; few different numbers stand for themselves."""
    numbers = bands = pd.Series(numbers, dtype=float)
    if numbers.nunique() > len(_QUARTILES) + 1:
        bands = pd.cut(numbers, [-np.inf, *numbers.quantile(_QUARTILES), np.inf], duplicates="drop")
    ends = (numbers.groupby(bands, observed=True).transform(end) for end in ("min", "max"))
    names = (" to ".join(dict.fromkeys(f"{end:,.10g}" for end in row)) for row in zip(*ends, strict=True))
    return [missing if np.isnan(number) else name for number, name in zip(numbers, names, strict=True)]


def worst_rows(
    dataset: Dataset, result: Evaluation | Iterable[float | None], k: int = 6, answers: list[str] | None = None
) -> list[int]:
    """The indices of the at most `k` rows that are most wrong, the worst first, for `show_rows`.

    `result`: an `Evaluation`, or a value in 0..1 per row (None is skipped). Rows of value 1 are left out. With
    `answers`, among rows of equal value those less similar to the expected answer come first.
    """
    values = result.values_of(EXACT) if isinstance(result, Evaluation) else np.array(list(result), dtype=float)
    if len(values) != len(dataset):
        raise ValueError(f"{len(values)} values for {len(dataset)} rows: give one per row, in row order")
    wrong, similarity = np.flatnonzero(values < 1).tolist(), dict.fromkeys(range(len(dataset)), 0.0)
    if answers is not None:
        texts = list(zip(*texts_of(answers, dataset), strict=True))
        similarity = {i: difflib.SequenceMatcher(None, *texts[i], autojunk=False).ratio() for i in wrong}
    return sorted(wrong, key=lambda i: (values[i], similarity[i]))[:k]
