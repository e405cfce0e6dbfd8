"""Two or three models on the same rows: what one gained over the other, and whether that is more than chance."""

from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.display import html_table
from vlmhelpers.evaluation.charts import draw_intervals
from vlmhelpers.evaluation.scoring import EXACT, Evaluation
from vlmhelpers.evaluation.statistics import Score, mcnemar_test, paired_mean, permutation_test

_NAMES = ("base", "tuned", "prompted")
_EXPLAINED = (
    "All models answered the same rows. Gained are the rows that the first model of a difference answers better, lost "
    "those that the second does. An interval that holds 0, or a p above 0.05: chance alone may explain the difference."
)


@dataclass(frozen=True)
class Comparison(Score):
    """Two models on the same rows: the `Score` of their difference, the second of `names` minus the first.

    `gained` and `lost`: the indices of the rows where the second is better and worse. `scores`: the models' own.
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
        """Of the two scores, in -1..1."""
        return self.value

    @property
    def pairs(self) -> tuple["Comparison", ...]:
        """This comparison, and with a third model its two."""
        return (self, *self.further)

    @property
    def title(self) -> str:
        """Such as "tuned minus base"."""
        return f"{self.names[1]} minus {self.names[0]}"

    def __str__(self):
        return "\n".join(map(_sentence, self.pairs))

    __repr__ = __str__

    def _repr_html_(self):
        """The models' scores, the differences, and what the columns mean."""
        scores = [(name, f"{100 * score.value:.1f}", score.bounds(), score.n) for name, score in self._models().items()]
        changes = [
            (pair.title, f"{100 * pair.value:+.1f}", pair.bounds(), len(pair.gained), len(pair.lost))
            + (_p(pair.p_value), _p(pair.mcnemar))
            for pair in self.pairs
        ]
        heads = ("difference", "points", "95% interval", "rows gained", "rows lost", "p", "McNemar's p")
        tables = html_table(("model", f"{self.metric}, %", "95% interval", "rows"), scores) + html_table(heads, changes)
        sentences = Markup("<br>").join(map(_sentence, self.pairs))
        return tables + Markup("<p>{}</p><p>{}</p>").format(sentences, _EXPLAINED)

    def plot(self) -> Chart:
        """Each model's score, and each difference of two models, with 95% intervals and a line at zero."""
        scores = self._models()
        figure = Chart(figsize=(9, 1.4 + 0.4 * len(scores)), dpi=90, layout="constrained")
        left, right = figure.subplots(1, 2)
        draw_intervals(left, scores, f"{self.metric}, %")
        left.set_xlim(left=-4)
        draw_intervals(right, {pair.title: pair for pair in self.pairs}, "difference on the same rows, points", "black")
        right.axvline(0, color="gray", linewidth=1)
        return figure

    def _models(self):
        return {name: score for pair in self.pairs for name, score in zip(pair.names, pair.scores, strict=True)}


def compare(
    base: Evaluation,
    tuned: Evaluation,
    prompted: Evaluation | None = None,
    metric: str = EXACT,
    resamples: int = 10_000,
    seed: int = 0,
    names: tuple[str, ...] = _NAMES,
) -> Comparison:
    """Two evaluations of the same rows, compared in pairs; with `prompted`, a third, all three pairs.

    `metric` names a row-wise score; rows without a value are left out. `names` are the models', in the order of the
    arguments. The interval is the paired bootstrap's, `p_value` the paired permutation test's, which suits any metric,
    `mcnemar` the exact McNemar test's on rows gained and lost. Raises ValueError for evaluations of different numbers
    of rows, or a metric that one of them lacks.
    """
    models = tuple(zip((*names, *_NAMES[len(names) :]), (base, tuned, prompted), strict=True))
    pairs = [(0, 1)] if prompted is None else [(0, 1), (0, 2), (2, 1)]
    first, *further = (_pair(models[i], models[k], metric, resamples, seed) for i, k in pairs)
    return replace(first, further=tuple(further))


def _pair(one, other, metric, resamples, seed):
    names, (one, other) = zip(one, other, strict=True)
    if len(one.hits) != len(other.hits):
        raise ValueError(f"{len(one.hits)} rows against {len(other.hits)}: compare answers to the same rows")
    changes = other.values_of(metric) - one.values_of(metric)
    known = changes[~np.isnan(changes)]
    if not len(known):
        raise ValueError(f"no row has a value of {metric!r} from both {names[0]} and {names[1]}")
    mean = paired_mean(known, resamples, seed)
    gained, lost = (tuple(np.flatnonzero(sign * changes > 0).tolist()) for sign in (1, -1))
    p_values = permutation_test(known, resamples, seed), mcnemar_test(len(gained), len(lost))
    scores = one.scores[metric], other.scores[metric]
    return Comparison(mean.value, mean.low, mean.high, mean.n, gained, lost, names, *p_values, scores, metric)


def _sentence(pair):
    metric = "" if pair.metric == EXACT else f" of {pair.metric}"
    return (
        f"{pair.title}: {100 * pair.value:+.1f} points{metric} {pair.bounds()}, p {_p(pair.p_value, '= ')}; "
        f"{len(pair.gained)} rows gained, {len(pair.lost)} lost"
    )


def _p(value, equals=""):
    return "< 0.001" if value < 0.001 else f"{equals}{value:.3f}"
