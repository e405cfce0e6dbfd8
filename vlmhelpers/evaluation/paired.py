"""The statistics of two models on the same rows: an interval and two tests of the paired difference."""

from math import comb

import numpy as np

from vlmhelpers.evaluation.intervals import share


def paired_interval(change, resamples=10_000, seed=0):
    """The 95% interval (low, high) of the mean of `change`, an array of n: percentiles of the means of resamples.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13. Where all rows changed alike,
    resampling gives the same mean every time; then the interval is as wide as Wilson's of a share of 0 in n rows, that
    of the rows that could have changed otherwise, on either side, within -1..1.
    """
    if len(set(change)) == 1:
        unseen = share([False] * len(change)).high
        return max(-1.0, float(change[0]) - unseen), min(1.0, float(change[0]) + unseen)
    # A resample holds so many rows of each value: a multinomial draw.
    kinds, counts = (array[::-1] for array in np.unique(change, return_counts=True))
    draws = np.random.default_rng(seed).multinomial(len(change), counts / len(change), size=resamples)
    low, high = np.quantile(draws @ kinds / len(change), [0.025, 0.975])
    return float(low), float(high)


def permutation(change, resamples=10_000, seed=0):
    """The two-sided p-value of the mean of `change` being 0, from flipping the signs of its rows at random.

    Source: Efron and Tibshirani (1993), chapter 15, for two samples that are paired: under the hypothesis, each row's
    change could as well have had the other sign. With k of the flipped sums as large as the observed one, p is
    (k + 1) / (resamples + 1), so never 0 (Phipson and Smyth 2010, Statistical Applications in Genetics and Molecular
    Biology 9:39).
    """
    # Of the rows that changed by the same size, a binomial number keeps its sign.
    sizes, counts = np.unique(np.abs(change[change != 0]), return_counts=True)
    kept = np.random.default_rng(seed).binomial(counts, 0.5, size=(resamples, len(counts)))
    flipped = (2 * kept - counts) @ sizes
    as_large = np.count_nonzero(np.abs(flipped) >= abs(change.sum()) - 1e-9)
    return (as_large + 1) / (resamples + 1)


def mcnemar(gained, lost):
    """The two-sided p-value of the exact McNemar test on the numbers of rows gained and lost.

    Twice the chance of so few on the rarer side, where each of these rows goes either way like a coin. Source: McNemar
    1947, Psychometrika 12:153, in its binomial form.
    """
    changed = gained + lost
    tail = sum(comb(changed, k) for k in range(min(gained, lost) + 1))
    return min(1.0, 2 * tail / 2**changed)
