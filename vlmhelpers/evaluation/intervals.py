"""A score with its 95% interval: of a share, of a mean, of any score of rows."""

from dataclasses import dataclass

import numpy as np

_NUMBERS_PER_CHUNK = 10**7  # drawn at a time: 80 MB
_BOUNDS = [0.025, 0.975]


@dataclass(frozen=True)
class Score:
    """A score with its 95% interval and the number of rows, such as a share of correct rows.

    Shares and similarities lie in 0..1; CIDEr and error rates can exceed 1. Two kinds of interval are in use. That of
    a share is Wilson's, which still has a width at 0% and 100%, where resampling gives the same share every time. All
    others are percentiles of a bootstrap over the rows; where all rows have the same value, they have no width.
    """

    value: float
    low: float
    high: float
    n: int
    percent: bool = True  # whether it is shown in percent

    def __str__(self):
        if not self.percent:
            return f"{self.value:6.2f}   [{self.low:.2f}, {self.high:.2f}]   n={self.n}"
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


def mean(values):
    """The `Score` of the mean of row values, without the rows that are None; of booleans, their `share`."""
    values = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in values):
        return share(values)
    return bootstrap(values, lambda draws: draws.mean(axis=1))


def bootstrap(rows, score, resamples=1000, seed=0):
    """The `Score` of rows with the percentile interval of as many resamples of them, drawn with replacement.

    `rows` holds a number or a vector of numbers per row. `score` takes an array (resamples, rows) of numbers, or one
    (resamples, rows, numbers) of vectors, and gives a score for each resample. Same seed, same interval. Raises
    ValueError without rows. Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    rows = np.asarray(rows, dtype=float)
    n, rng = len(rows), np.random.default_rng(seed)
    if n == 0:
        raise ValueError("no rows to score")
    value, chunk = float(score(rows[None])[0]), max(1, _NUMBERS_PER_CHUNK // rows.size)
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    scores = np.concatenate([score(rows[rng.integers(n, size=(size, n))]) for size in sizes])
    low, high = map(float, np.quantile(scores, _BOUNDS))
    return Score(value, min(low, value), max(high, value), n)  # a bar with its interval can always be drawn
