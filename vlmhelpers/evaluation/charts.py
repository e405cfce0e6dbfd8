"""Results as a reader sees them: scores as bars, gain against loss."""

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair


def plot_scores(evaluations, dataset=None, rows=(), answers=None):
    """A figure of several evaluations side by side: a group of bars per score, each with its 95% interval.

    `evaluations` maps a name ("base", "tuned", ...) to an `Evaluation`. With a `dataset`, some `rows` and a dictionary
    of `answers`, the pictures of these rows stand above the bars, each with its answers.
    """
    figure = Chart(figsize=(9, 5.2 if rows else 3.2), dpi=90, layout="constrained")
    grid = figure.add_gridspec(2 if rows else 1, max(1, len(rows)), height_ratios=[2, 3] if rows else None)
    for column, i in enumerate(rows):
        axes = figure.add_subplot(grid[0, column])
        axes.imshow(repair(dataset[i]["images"][0]))
        axes.axis("off")
        texts = [f"{name}: " + text.replace(", ", "\n") for name, text in ((n, t[i]) for n, t in answers.items())]
        axes.set_title("\n".join(texts), fontsize=7, loc="left")
    axes = figure.add_subplot(grid[-1, :])
    width = 0.8 / len(evaluations)
    for k, (name, evaluation) in enumerate(evaluations.items()):
        scores = list(evaluation.scores.values())
        places = [place + (k - (len(evaluations) - 1) / 2) * width for place in range(len(scores))]
        values = [100 * score.value for score in scores]
        spread = [[v - 100 * s.low for v, s in zip(values, scores, strict=True)],
                  [100 * s.high - v for v, s in zip(values, scores, strict=True)]]  # fmt: skip
        axes.bar(places, values, width, yerr=spread, capsize=2, label=f"{name} (n={scores[0].n})")
    axes.set_xticks(range(len(scores)), list(evaluation.scores))
    axes.set(ylim=(0, 109), ylabel="rows answered exactly, %")
    axes.legend(ncols=len(evaluations), fontsize=8, loc="upper left", frameon=False, bbox_to_anchor=(0, 1.14))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def plot_tradeoff(points, across, up):
    """A figure of what training won against what it cost: a point with both 95% intervals for each entry of `points`.

    `points` maps a name to a pair of `Score`s, the first drawn along the axis called `across`, the second along `up`.
    """
    figure = Chart(figsize=(7.5, 4.6), dpi=90, layout="constrained")
    axes = figure.add_subplot()
    for name, (x, y) in points.items():
        spread = [[[100 * (s.value - s.low)], [100 * (s.high - s.value)]] for s in (x, y)]
        axes.errorbar(100 * x.value, 100 * y.value, xerr=spread[0], yerr=spread[1], fmt="o", capsize=2, label=name)
    axes.set(xlim=(-4, 104), ylim=(-4, 104), xlabel=f"{across}, %", ylabel=f"{up}, %")
    axes.legend(fontsize=8, loc="lower left")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
