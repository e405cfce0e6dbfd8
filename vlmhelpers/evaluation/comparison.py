"""Two or three models on the same rows: what one gained, whether by chance, and charts of scores."""

import textwrap
import unicodedata
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.common.display import html_table
from vlmhelpers.common.images import repair
from vlmhelpers.common.printable import one_line, printable
from vlmhelpers.data.given import decoded_row, given_rows, row_indices, texts_of_rows
from vlmhelpers.evaluation.scoring import EXACT, Evaluation, check_evaluations, references_of
from vlmhelpers.evaluation.statistics import Score, mcnemar_test, paired_mean, permutation_test

if TYPE_CHECKING:
    from vlmhelpers.common.chart import Chart

_NAMES = ("base", "tuned", "prompted")
_EXPLAINED = (
    "All models answered the same rows. Gained are the rows that the first model of a difference answers better, lost "
    "those that the second does. An interval that holds 0, or a p above 0.05: chance alone may explain the difference."
)


@dataclass(frozen=True)
class Comparison(Score):
    """The `Score` of the difference in -1..1 of two models on the same rows, the second of `names` minus the first.

    `gained` and `lost`: indices of the rows where the second is better and worse. `further`: a third model's pairs.
    """

    gained: tuple[int, ...]
    lost: tuple[int, ...]
    names: tuple[str, str]
    p_value: float
    mcnemar: float
    scores: tuple[Score, Score]
    metric: str = EXACT
    further: tuple["Comparison", ...] = ()

    @property
    def difference(self) -> float:
        return self.value

    @property
    def pairs(self) -> tuple["Comparison", ...]:
        return (self, *self.further)

    @property
    def title(self) -> str:
        return f"{self.names[1]} minus {self.names[0]}"

    def __str__(self):
        return "\n".join(map(one_line, map(_sentence, self.pairs)))

    __repr__ = __str__

    def _repr_html_(self):
        scores = [(name, f"{100 * score.value:.1f}", score.bounds(), score.n) for name, score in self._models().items()]
        changes = [
            (p.title, f"{100 * p.value:+.1f}", p.bounds(), len(p.gained), len(p.lost), _p(p.p_value), _p(p.mcnemar))
            for p in self.pairs
        ]
        heads = ("difference", "points", "95% interval", "rows gained", "rows lost", "p", "McNemar's p")
        tables = html_table(("model", f"{self.metric}, %", "95% interval", "rows"), scores) + html_table(heads, changes)
        sentences = Markup("<br>").join(map(_sentence, self.pairs))
        return tables + printable(Markup("<p>{}</p><p>{}</p>").format(sentences, _EXPLAINED))

    def plot(self) -> "Chart":
        """Each model's score, and each difference of two models, with 95% intervals and a line at zero."""
        from vlmhelpers.common.chart import Chart

        scores = self._models()
        figure = Chart(figsize=(9, 1.4 + 0.5 * len(scores)), dpi=90, layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_intervals(left, scores, f"{self.metric}, %")
        left.set_xlim(left=-4)
        _draw_intervals(right, {p.title: p for p in self.pairs}, "difference on the same rows, points", "black")
        right.axvline(0, color="gray", linewidth=1)
        return figure

    def _models(self):
        return {name: score for pair in self.pairs for name, score in zip(pair.names, pair.scores, strict=True)}


def compare(
    base: Evaluation,
    tuned: Evaluation,
    prompted: Evaluation | None = None,
    metric: str = EXACT,
    names: tuple[str, ...] = _NAMES,
) -> Comparison:
    """Two evaluations of the same rows, with `prompted` three, compared in pairs by a row-wise `metric`.

    The interval is the paired bootstrap's, `p_value` the paired permutation test's, `mcnemar` the exact McNemar test's,
    over rows with values. Raises ValueError for different numbers of rows, or a metric that one lacks.
    """
    for found in (base, tuned, *([] if prompted is None else [prompted])):
        if not isinstance(found, Evaluation):
            raise ValueError(
                f"a {type(found).__name__} is no evaluation: give what vlm.evaluate(answers, dataset) gives"
            )
    if isinstance(names, str) or not 1 <= len(names) <= len(_NAMES):
        raise ValueError(f"names={names!r}: give a name for each model, as {_NAMES}")
    models = tuple(zip((*names, *_NAMES[len(names) :]), (base, tuned, prompted), strict=True))
    pairs = [(0, 1)] if prompted is None else [(0, 1), (0, 2), (2, 1)]
    first, *further = (_pair(models[i], models[k], metric) for i, k in pairs)
    return replace(first, further=tuple(further))


def _pair(one, other, metric):
    names, (one, other) = zip(one, other, strict=True)
    if len(one.hits) != len(other.hits):
        raise ValueError(f"{len(one.hits)} rows against {len(other.hits)}: compare answers to the same rows")
    changes = other.values_of(metric) - one.values_of(metric)
    known = changes[~np.isnan(changes)]
    if not len(known):
        raise ValueError(f"no row has a value of {metric!r} from both {names[0]} and {names[1]}")
    gained, lost = (tuple(np.flatnonzero(sign * changes > 0).tolist()) for sign in (1, -1))
    p_values = permutation_test(known), mcnemar_test(len(gained), len(lost))
    scores = one.scores[metric], other.scores[metric]
    return Comparison(*astuple(paired_mean(known)), gained, lost, names, *p_values, scores, metric)


def _sentence(pair):
    metric = "" if pair.metric == EXACT else f" of {pair.metric}"
    return (
        f"{pair.title}: {100 * pair.value:+.1f} points{metric} {pair.bounds()}, p {_p(pair.p_value, '= ')}; "
        f"{len(pair.gained)} rows gained, {len(pair.lost)} lost{_doubt(pair)}"
    )


def _doubt(pair):
    """The word on an interval and a p-value that contradict each other."""
    if (pair.low <= 0 <= pair.high) == (pair.p_value >= 0.05):
        return ""
    return "; interval and p disagree: go by p, the bootstrap is rough where few rows change"


def _p(value, equals=""):
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"


def plot_scores(
    evaluations: dict[str, Evaluation], dataset: Dataset, rows: list[int], answers: dict[str, list[str]]
) -> "Chart":
    """A group of bars per score, with a bar for each of `evaluations`, below the images of some rows with `answers`.

    Before the answers, which are shortened, stands what the dataset expects.
    """
    from vlmhelpers.common.chart import Chart

    dataset = given_rows(dataset)
    check_evaluations(evaluations)
    rows = row_indices(rows, len(dataset))
    if not rows:
        raise ValueError("no rows to draw: give the indices of some, such as range(3)")
    for name, given in answers.items():
        texts_of_rows(given, rows, dataset, f"answers of {name!r}")
    texts = {"expected": references_of(dataset)} | answers
    width = 140 // len(rows)  # characters of 7 points
    said = ["\n".join(_shortened(f"{name}: {given[i]}", width) for name, given in texts.items()) for i in rows]
    heights = [1.6, 0.15 * max(text.count("\n") + 1 for text in said), 2.9]  # inches
    figure = Chart(figsize=(9, sum(heights) + 0.6), dpi=90, layout="constrained")
    grid = figure.add_gridspec(3, len(rows), height_ratios=heights)
    for column, (i, text) in enumerate(zip(rows, said, strict=True)):
        above, below = (figure.add_subplot(grid[k, column], frameon=False, xticks=[], yticks=[]) for k in (0, 1))
        for image in decoded_row(dataset, i)["images"][:1]:
            above.imshow(repair(image))
        above.set_anchor("W")
        below.text(0, 1, text, fontsize=7, va="top", in_layout=False, clip_on=True)
    _draw_bars(figure.add_subplot(grid[2, :]), evaluations)
    figure.legend(ncols=min(3, len(evaluations)), fontsize=8, loc="outside lower left", frameon=False)
    return figure


def _shortened(text, width, most=5):
    """The beginning of a text in `most` lines of `width` characters; Chinese ones are twice as wide as others."""
    wide = "".join(sign + "\0" * (unicodedata.east_asian_width(sign) in "WF") for sign in one_line(text[:2000]))
    lines = textwrap.wrap(wide, width)
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1][: width - 1] + "…"]
    return "\n".join(lines).replace("\0", "")


def _draw_bars(axes, evaluations):
    width = 0.8 / len(evaluations)
    for k, (name, evaluation) in enumerate(evaluations.items()):
        values, errors = _in_percent(evaluation.scores.values())
        x = np.arange(len(values)) + (k - (len(evaluations) - 1) / 2) * width
        label = f"{_shortened(name, 40, 1)} (n={len(evaluation.hits)})"
        axes.bar(x, values, width, yerr=errors, capsize=2, label=label)
    axes.set_xticks(range(len(values)), [_shortened(name, 100 // len(values), 2) for name in evaluation.scores])
    axes.set(ylim=(0, 109), ylabel="rows answered exactly, %")
    axes.spines[["top", "right"]].set_visible(False)


def plot_tradeoff(points: dict[str, tuple[Score, Score]], across: str, up: str) -> "Chart":
    """A point with both intervals for each of `points`: its first score along the axis called `across`, then `up`."""
    from vlmhelpers.common.chart import Chart

    figure = Chart(figsize=(7.5, 4.6), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for k, (name, scores) in enumerate(points.items()):
        (x, y), errors = _in_percent(scores)
        marker, label = "os^D"[k // 10 % 4], _shortened(name, 60, 1)  # colors come again after ten
        axes.errorbar(x, y, xerr=errors[:, [0]], yerr=errors[:, [1]], fmt=marker, capsize=2, label=label)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), xlabel=f"{across}, %", ylabel=f"{up}, %")
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_intervals(axes, scores, label, color=None):
    values, errors = _in_percent(scores.values())
    for y, value in enumerate(values):
        axes.errorbar(value, y, xerr=errors[:, [y]], fmt="o", capsize=3, color=color or f"C{y}")
        axes.annotate(f"{value:.1f}", (value, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(scores)), [_shortened(name, 24, 3) for name in scores])
    axes.set(xlabel=label, ylim=(len(scores) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)


def _in_percent(scores):
    values, low, high = 100 * np.array([(score.value, score.low, score.high) for score in scores]).T
    return values, np.maximum(0, [values - low, high - values])
