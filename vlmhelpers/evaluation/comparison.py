"""Two or three models on the same rows: what one gained over the other, and whether that is more than chance."""

import html
from dataclasses import dataclass, replace

import numpy as np

from vlmhelpers.common.chart import Chart
from vlmhelpers.evaluation.paired import mcnemar, paired_interval, permutation

EXACT = "exact match"
NAMES = ("base", "tuned", "prompted")
_EXPLAINED = (
    "All models answered the same rows. Gained are the rows that the first model of a difference answers better, lost "
    "those that the second does. An interval that holds 0, or a p above 0.05: chance alone may explain the difference."
)


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows: `difference` (tuned minus base) of their scores with its 95% interval, in 0..1.

    `gained` and `lost` are the row numbers (0-based places in the dataset) where the second model of `names` is better
    and worse than the first. `p_value` and `mcnemar` are two-sided, see `compare`. `scores` are the two models' own
    `Score`s of `metric`. With a third model, `pairs` has its comparisons too, else this one alone.
    """

    difference: float
    low: float
    high: float
    gained: tuple
    lost: tuple
    names: tuple
    p_value: float
    mcnemar: float
    scores: tuple
    n: int
    metric: str = EXACT
    further: tuple = ()

    @property
    def pairs(self):
        """All comparisons of two models, this one first."""
        return (self, *self.further)

    def __repr__(self):
        return "\n".join(map(_sentence, self.pairs))

    def _repr_html_(self):
        """The models' scores, the differences, and what the columns mean."""
        scores = [(name, f"{100 * s.value:.1f}", bounds(s), s.n) for name, s in self._models().items()]
        changes = [
            (_title(pair), f"{100 * pair.difference:+.1f}", bounds(pair), len(pair.gained), len(pair.lost))
            + (_p(pair.p_value), _p(pair.mcnemar))
            for pair in self.pairs
        ]
        heads = ("difference", "points", "95% interval", "rows gained", "rows lost", "p", "McNemar's p")
        sentences = "<br>".join(html.escape(_sentence(pair)) for pair in self.pairs)
        return (
            to_table(("model", f"{self.metric}, %", "95% interval", "rows"), scores)
            + to_table(heads, changes)
            + f"<p>{sentences}</p><p>{html.escape(_EXPLAINED)}</p>"
        )

    def plot(self):
        """A `Chart`: each model's score, and each difference of two models, with 95% intervals and a line at zero."""
        scores = {name: (score.value, score.low, score.high) for name, score in self._models().items()}
        changes = {_title(pair): (pair.difference, pair.low, pair.high) for pair in self.pairs}
        figure = Chart(figsize=(9, 1.4 + 0.4 * len(scores)), dpi=90, layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_intervals(left, scores, f"{self.metric}, %")
        left.set_xlim(left=-4)
        draw_intervals(right, changes, "difference on the same rows, points", "black")
        right.axvline(0, color="grey", linewidth=1)
        return figure

    def _models(self):
        return {name: score for pair in self.pairs for name, score in zip(pair.names, pair.scores, strict=True)}


def compare(base, tuned, prompted=None, metric=EXACT, resamples=10_000, seed=0, names=NAMES):
    """A `Comparison` of two `Evaluation`s of the same rows; with `prompted`, a third, of all three pairs.

    `metric` names a score; rows on which one of the two models has no value are left out. `names` are for the texts, in
    the order of the first three arguments.

    The interval is the percentile one of the paired bootstrap, `p_value` the paired permutation test's, which suits any
    metric, and `mcnemar` the exact McNemar test's, which counts rows gained and lost: `paired.py` has the sources.

    Raises ValueError for evaluations of different numbers of rows, or a metric that one of them lacks.
    """
    names = (*names, *NAMES[len(names) :])
    options = {"metric": metric, "resamples": resamples, "seed": seed}
    if prompted is None:
        return _pair(names[:2], base, tuned, **options)
    further = (
        _pair((names[0], names[2]), base, prompted, **options),
        _pair((names[2], names[1]), prompted, tuned, **options),
    )
    return replace(_pair(names[:2], base, tuned, **options), further=further)


def _pair(names, one, other, metric, resamples, seed):
    if len(one.hits) != len(other.hits):
        raise ValueError(f"{len(one.hits)} rows against {len(other.hits)}: compare answers to the same rows")
    change = values_of(other, metric) - values_of(one, metric)
    known = change[~np.isnan(change)]
    if not len(known):
        raise ValueError(f"no row has a value of {metric!r} from both {names[0]} and {names[1]}")
    low, high = paired_interval(known, resamples, seed)
    gained, lost = (tuple(np.flatnonzero(sign * change > 0).tolist()) for sign in (1, -1))
    return Comparison(
        float(known.mean()),
        low,
        high,
        gained,
        lost,
        names,
        p_value=permutation(known, resamples, seed),
        mcnemar=mcnemar(len(gained), len(lost)),
        scores=(one.scores[metric], other.scores[metric]),
        n=len(known),
        metric=metric,
    )


def values_of(evaluation, metric=EXACT):
    """The value of each row by `metric`: an array of n floats, NaN where a row has none.

    Raises ValueError, with the names there are, for a metric without values per row.
    """
    values = {EXACT: evaluation.hits} | evaluation.values
    if metric not in values:
        raise ValueError(f"no value per row of {metric!r}: choose one of {', '.join(sorted(values))}")
    return np.array(values[metric], dtype=float)


def _title(pair):
    return f"{pair.names[1]} minus {pair.names[0]}"


def _sentence(pair):
    metric = "" if pair.metric == EXACT else f" of {pair.metric}"
    return (
        f"{_title(pair)}: {100 * pair.difference:+.1f} points{metric} {bounds(pair)}, {_p(pair.p_value, 'p ')}; "
        f"{len(pair.gained)} rows gained, {len(pair.lost)} lost"
    )


def bounds(interval):
    """The interval of a `Score` or a `Comparison` as text, in percent or points: "[95.4, 99.5]"."""
    return f"[{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _p(value, name=""):
    equals = "= " if name else ""
    return f"{name}< 0.001" if value < 0.001 else f"{name}{equals}{value:.3f}"


def to_table(heads, rows):
    """An HTML table of plain values."""
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(str(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{html.escape(head)}</th>' for head in heads)}</tr>{lines}</table>"


def draw_intervals(axes, points, label, color=None):
    """Draws a point with its interval for each of `points`, name -> (value, low, high) in 0..1, the first on top.

    Each has a color of its own unless one is given.
    """
    for place, (value, low, high) in enumerate(points.values()):
        spread = [[100 * max(0, value - low)], [100 * max(0, high - value)]]
        axes.errorbar(100 * value, place, xerr=spread, fmt="o", capsize=3, color=color or f"C{place}")
        axes.annotate(
            f"{100 * value:.1f}", (100 * value, place), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(points)), points)
    axes.set(xlabel=label, ylim=(len(points) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)
