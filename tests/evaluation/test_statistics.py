"""Intervals against the shares of data sets that they should hold, and against formulas."""

import numpy as np
import pytest

from vlmhelpers.evaluation.statistics import bootstrap, mean, share


def mean_of(draws):
    return draws.mean(axis=1)


@pytest.mark.parametrize(
    "draw, truth",
    [(lambda rng: rng.beta(2, 5, 60), 2 / 7), (lambda rng: rng.binomial(1, 0.6, 60) + 0.5, 1.1)],
    ids=["similarities", "two values"],
)
def test_about_95_of_100_bootstrap_intervals_hold_the_true_mean(draw, truth):
    rng = np.random.default_rng(0)
    scores = [bootstrap(draw(rng), mean_of, seed=seed) for seed in range(300)]
    assert 0.90 <= np.mean([score.low <= truth <= score.high for score in scores]) <= 0.99


def test_about_95_of_100_intervals_of_a_ratio_of_sums_hold_it():
    """A score of a corpus, such as edits over characters, whose rows are vectors."""
    rng, inside = np.random.default_rng(1), []
    for seed in range(200):
        characters = rng.integers(5, 30, 80)
        rows = np.stack([rng.binomial(characters, 0.2), characters], axis=1)
        score = bootstrap(rows, lambda draws: np.divide(*draws.sum(axis=1).T), seed=seed)
        inside.append(score.low <= 0.2 <= score.high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_a_bootstrap_of_a_mean_is_about_as_wide_as_the_normal_interval():
    values = np.random.default_rng(2).normal(5, 2, 400)
    score, half = bootstrap(values, mean_of), 1.96 * values.std() / 20
    assert (score.low, score.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert (score.value, score.n) == (pytest.approx(values.mean()), 400)


def test_the_seed_and_not_the_chunks_decides(monkeypatch):
    values = np.random.default_rng(3).random(50)
    whole = bootstrap(values, mean_of, seed=4)
    assert whole != bootstrap(values, mean_of, seed=5)
    monkeypatch.setattr("vlmhelpers.evaluation.statistics._NUMBERS_PER_CHUNK", 50 * 7)
    assert bootstrap(values, mean_of, seed=4) == whole


def test_a_mean_of_booleans_is_a_share_and_rows_without_a_value_are_left_out():
    assert mean([True, None, False, True]) == share([True, False, True])
    found = mean([0.5, None, True])
    assert (found.value, found.n) == (0.75, 2) and (found.low, found.high) == (0.5, 1.0)
    same = mean([0.1] * 3)  # whose mean is not quite 0.1
    assert same.low <= same.value <= same.high and same.high - same.low < 1e-15


def test_the_score_lies_within_its_interval_even_where_no_resample_reaches_it():
    score = bootstrap(range(100), lambda draws: np.array([len(np.unique(draw)) for draw in draws]))
    assert score.low < 75 and score.high == score.value == 100


@pytest.mark.parametrize("values", [[], [None]])
def test_nothing_to_score_is_an_error(values):
    with pytest.raises(ValueError, match="no rows to score"):
        mean(values)
    with pytest.raises(ValueError, match="no rows to score"):
        bootstrap([], mean_of)
