"""Charts of scores with their 95% intervals."""

import numpy as np
from datasets import Dataset
from matplotlib.axes import Axes

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair
from vlmhelpers.evaluation.scoring import Evaluation
from vlmhelpers.evaluation.statistics import Score


def plot_scores(
    evaluations: dict[str, Evaluation], dataset: Dataset, rows: list[int], answers: dict[str, list[str]]
) -> Chart:
    """A group of bars per score, with a bar for each of `evaluations`, below the images of some rows with `answers`."""
    figure = Chart(figsize=(9, 5.2), dpi=90, layout="constrained")
    grid = figure.add_gridspec(2, len(rows), height_ratios=[2, 3])
    for column, i in enumerate(rows):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(repair(dataset[i]["images"][0]))
        axes.axis("off")
        texts = [f"{name}: " + given[i].replace(", ", "\n") for name, given in answers.items()]
        axes.set_title("\n".join(texts), fontsize=7, loc="left")
    axes = figure.add_subplot(grid[1, :])
    width = 0.8 / len(evaluations)
    for k, (name, evaluation) in enumerate(evaluations.items()):
        values, errors = _in_percent(evaluation.scores.values())
        x = np.arange(len(values)) + (k - (len(evaluations) - 1) / 2) * width
        axes.bar(x, values, width, yerr=errors, capsize=2, label=f"{name} (n={len(evaluation.hits)})")
    axes.set_xticks(range(len(values)), list(evaluation.scores))
    axes.set(ylim=(0, 109), ylabel="rows answered exactly, %")
    axes.legend(ncols=len(evaluations), fontsize=8, loc="upper left", frameon=False, bbox_to_anchor=(0, 1.14))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_tradeoff(points: dict[str, tuple[Score, Score]], across: str, up: str) -> Chart:
    """A point with both intervals for each of `points`: its first score along the axis called `across`, then `up`."""
    figure = Chart(figsize=(7.5, 4.6), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for name, scores in points.items():
        (x, y), errors = _in_percent(scores)
        axes.errorbar(x, y, xerr=errors[:, [0]], yerr=errors[:, [1]], fmt="o", capsize=2, label=name)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), xlabel=f"{across}, %", ylabel=f"{up}, %")
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_intervals(axes: Axes, scores: dict[str, Score], label: str, color: str | None = None) -> None:
    """Draws each score as a point with its interval, the first on top, each in its color unless one is given."""
    values, errors = _in_percent(scores.values())
    for y, value in enumerate(values):
        axes.errorbar(value, y, xerr=errors[:, [y]], fmt="o", capsize=3, color=color or f"C{y}")
        axes.annotate(f"{value:.1f}", (value, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    axes.set_yticks(range(len(scores)), scores)
    axes.set(xlabel=label, ylim=(len(scores) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)


def _in_percent(scores):
    """The values of n scores (n,) and how far their intervals reach below and above (2, n)."""
    values, low, high = 100 * np.array([(score.value, score.low, score.high) for score in scores]).T
    return values, np.maximum(0, [values - low, high - values])
