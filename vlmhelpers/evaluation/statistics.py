"""Scores with 95% intervals, and tests of the difference of two models on the same rows."""

from collections.abc import Callable
from dataclasses import dataclass
from math import comb

import numpy as np

_NUMBERS_PER_CHUNK = 10**7  # drawn at a time: 80 MB
_PAIRED_RESAMPLES = 10_000
_BOUNDS = [0.025, 0.975]


@dataclass(frozen=True)
class Score:
    """A score of n rows, in 0..1 but for error rates, and its 95% interval: Wilson's of a share, else a bootstrap's."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self):
        return f"{self.value:6.1%}   [{self.low:.1%}, {self.high:.1%}]   n={self.n}"

    def bounds(self) -> str:
        """The interval in percent, or percentage points: "[95.4, 99.5]"."""
        return f"[{100 * self.low:.1f}, {100 * self.high:.1f}]"


def share(hits: list[bool]) -> Score:
    """The share of hits, with Wilson's interval (Wilson 1927, JASA 22:209). Raises ValueError without rows."""
    n, z = len(hits), 1.959964
    if n == 0:
        raise ValueError("no rows to score")
    value = float(np.mean(hits))
    center = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (value * (1 - value) / n + z * z / (4 * n * n)) ** 0.5
    low, high = min(value, center - half), max(value, center + half)  # rounding aside, the share lies inside
    return Score(value, max(0.0, low), min(1.0, high), n)


def mean(values: list[float | None]) -> Score:
    """The mean of row values, without the rows that are None; of booleans, their `share`."""
    values = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in values):
        return share(values)
    return bootstrap(values, lambda draws: draws.mean(axis=1))


def bootstrap(rows: list, score: Callable, resamples: int = 1000, seed: int = 0) -> Score:
    """A score of rows (n,) or (n, numbers), with the percentile interval of draws of n rows with replacement.

    `score` takes (resamples, n) or (resamples, n, numbers) and gives (resamples,). Raises ValueError without rows.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
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


def paired_mean(changes: np.ndarray) -> Score:
    """The mean of the rows' `changes` (n,) in -1..1, with the paired bootstrap's percentile interval (same source).

    Where all rows changed alike, it reaches, on either side, as far as Wilson's of a share of 0 in n rows.
    """
    n, value = len(changes), float(changes.mean())
    if len(set(changes)) == 1:
        unseen = share([False] * n).high
        return Score(value, max(-1.0, value - unseen), min(1.0, value + unseen), n)
    # A resample holds so many rows of each value: a multinomial draw.
    values, counts = (array[::-1] for array in np.unique(changes, return_counts=True))
    draws = np.random.default_rng(0).multinomial(n, counts / n, size=_PAIRED_RESAMPLES)
    return Score(value, *map(float, np.quantile(draws @ values / n, _BOUNDS)), n)


def permutation_test(changes: np.ndarray, resamples: int = _PAIRED_RESAMPLES) -> float:
    """The two-sided p-value of the rows' `changes` having a mean of 0, from flipping their signs at random.

    p is (k + 1) / (resamples + 1), for k flipped sums as large as the observed one. Sources: Efron and Tibshirani
    (1993), chapter 15; Phipson and Smyth 2010, Stat. Appl. in Genetics and Molecular Biology 9:39.
    """
    # Of the rows that changed by the same size, a binomial number keeps its sign.
    sizes, counts = np.unique(np.abs(changes[changes != 0]), return_counts=True)
    kept = np.random.default_rng(0).binomial(counts, 0.5, size=(resamples, len(counts)))
    as_large = np.count_nonzero(np.abs((2 * kept - counts) @ sizes) >= abs(changes.sum()) - 1e-9)
    return (as_large + 1) / (resamples + 1)


def mcnemar_test(gained: int, lost: int) -> float:
    """The two-sided p-value of the exact McNemar test (1947, Psychometrika 12:153) on rows gained and lost."""
    # Twice the chance of so few on the rarer side, where each of these rows goes either way like a coin.
    tail = sum(comb(gained + lost, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2 ** (gained + lost))
