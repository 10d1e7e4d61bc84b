"""Statistics with noise: the distributions of the draws, accuracy, and bounded contributions."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxops import privacy
from jaxops.privacy import Ledger, Pure


@pytest.mark.parametrize("scale", [Fraction(1, 2), Fraction(7, 3)])
def test_discrete_laplace(scale):
    coins = random.Random(0)
    drawn = np.array([privacy.discrete_laplace(scale, coins) for _ in range(4000)])
    n = np.arange(-6, 7)
    share = np.tanh(1 / (2 * float(scale))) * np.exp(-np.abs(n) / float(scale))
    seen = [(drawn == value).sum() for value in n]
    wanted = [*share, 1 - share.sum()]
    keep = np.array(wanted) * 4000 > 5
    seen, wanted = np.array([*seen, 4000 - sum(seen)])[keep], np.array(wanted)[keep]
    assert stats.chisquare(seen, wanted / wanted.sum() * seen.sum()).pvalue > 0.01


def test_counts_are_exact_but_for_the_noise():
    column = np.repeat(["tea", "milk", "other"], [300, 50, 7])
    drawn = [privacy.counts(column, ["tea", "milk", "none"], epsilon=0.5, seed=seed)
             for seed in range(300)]  # fmt: skip
    gaps = np.array([[r.value["tea"] - 300, r.value["milk"] - 50, r.value["none"]] for r in drawn])
    assert gaps.dtype == np.int64 and drawn[0].ledger == Ledger((Pure(0.5),))
    # the variance of the discrete Laplace is 2 exp(-a) / (1 - exp(-a))², a = epsilon
    std = math.sqrt(2 * math.exp(-0.5)) / (1 - math.exp(-0.5))
    assert np.abs(gaps.mean(0)).max() < 4 * std / math.sqrt(300)
    assert gaps.std() == pytest.approx(std, rel=0.15)
    assert abs(np.corrcoef(gaps.T)[0, 1]) < 0.25
    wide = [privacy.counts(column, ["tea"], epsilon=0.5, at_most=4, seed=seed).value["tea"] - 300
            for seed in range(300)]  # fmt: skip
    assert np.std(wide) == pytest.approx(math.sqrt(2) * 8, rel=0.25)


def test_draws_without_a_seed_differ():
    drawn = {privacy.counts(["a"], ["a"], epsilon=0.01).value["a"] for _ in range(10)}
    assert len(drawn) > 5


def test_mean():
    ages = np.random.default_rng(0).integers(17, 91, size=20_000).astype(float)
    released = [privacy.mean(ages, low=0, high=100, epsilon=0.1, seed=seed) for seed in range(40)]
    gaps = np.array([r.value for r in released]) - ages.mean()
    # sum: scale 50 / 0.05; count: scale 1 / 0.05, times the distance of the mean from the middle
    std = math.sqrt(2 * (1000**2 + (20 * (ages.mean() - 50)) ** 2)) / len(ages)
    assert np.abs(gaps).max() < 8 * std and gaps.std() == pytest.approx(std, rel=0.5)
    assert released[0].ledger.spent == (Pure(0.1),)
    with_missing = np.concatenate([ages, np.full(20_000, np.nan)])
    again = privacy.mean(with_missing, low=0, high=100, epsilon=0.1, seed=0)
    assert again.value == released[0].value
    outside = privacy.mean([1e9, np.inf, 50.0], low=0, high=60, epsilon=1e6, seed=0)
    assert outside.value == pytest.approx(170 / 3, abs=0.1)


def test_one_row_changes_a_mean_no_more_than_its_noise_hides():
    """The worst row moves the sum by half of the range, in whole numbers of the grid."""
    few = privacy.mean([100.0], low=0, high=100, epsilon=1e5, seed=1).value
    assert few == pytest.approx(100, abs=0.01)
    assert privacy.mean([], low=0, high=100, epsilon=1e5, seed=1).value == pytest.approx(
        50, abs=0.1
    )


def permute_and_flip(scores, unit):
    """The probability of each candidate, over all orders."""
    accept = [math.exp((s - max(scores)) / unit) for s in scores]
    chance = np.zeros(len(scores))
    orders = [*itertools.permutations(range(len(scores)))]
    for order in orders:
        left = 1.0
        for i in order:
            chance[i] += left * accept[i] / len(orders)
            left *= 1 - accept[i]
    return chance


def scores(values, level, candidates):
    below = np.array([sum(v < c for v in values) for c in candidates])
    above = np.array([sum(v > c for v in values) for c in candidates])
    n = len(values)
    return -np.maximum(0, np.maximum(below - level * n, above - (1 - level) * n))


def test_quantile_is_permute_and_flip():
    values, level, candidates, epsilon = [1, 2, 2, 3, 7, 8, 8, 9], 0.25, [0, 2.5, 5, 10], 1.0
    unit = 2 * 0.75 / epsilon
    wanted = permute_and_flip(scores(values, level, candidates), unit)
    settings = {"candidates": candidates, "epsilon": epsilon}
    drawn = [privacy.quantile(values, level, **settings, seed=i).value for i in range(1500)]
    seen = np.array([drawn.count(c) for c in candidates])
    assert stats.chisquare(seen, wanted * 1500).pvalue > 0.01
    # and that is private: no neighbour makes a candidate exp(epsilon) times as likely
    neighbours = [[*values, new] for new in (-1, 2.5, 4, 11)]
    neighbours += [values[:i] + values[i + 1 :] for i in range(len(values))]
    for other in neighbours:
        ratio = permute_and_flip(scores(other, level, candidates), unit) / wanted
        assert math.exp(-epsilon) < ratio.min() and ratio.max() < math.exp(epsilon)


def test_quantiles_are_near_the_right_ones():
    values = np.random.default_rng(1).lognormal(3, 1, size=5000)
    grid = np.linspace(0, 500, 1001)
    for level in (0.1, 0.5, 0.9):
        told = privacy.quantile(values, level, candidates=grid, epsilon=1.0, seed=3).value
        rank = (values <= told).mean()
        assert abs(rank - level) < 0.02, level


def test_bounded_keeps_rows_of_users_by_chance():
    log = pd.DataFrame({"user": [*"aaaaabbc"], "item": range(8)}, index=range(10, 18))
    kept = [privacy.bounded(log, user="user", at_most=2, seed=seed) for seed in range(200)]
    for one in kept:
        assert one["user"].value_counts().to_dict() == {"a": 2, "b": 2, "c": 1}
        pd.testing.assert_frame_equal(one, log.loc[one.index])
        assert one.index.is_monotonic_increasing
    seen = pd.concat(kept)["item"].value_counts()[[*range(5)]]
    assert stats.chisquare(seen).pvalue > 0.01
    again = privacy.bounded(log, user="user", at_most=2, seed=7)
    pd.testing.assert_frame_equal(again, kept[7])


@pytest.mark.parametrize("users", [[*"abcab" * 9], [7, 8, 9, 7, 8] * 9])
def test_bounded_keeps_the_same_rows_of_a_user_whatever_others_do(users):
    """Else one user less would change rows of all others, and the bound would protect nobody."""
    log = pd.DataFrame({"user": users, "item": range(45)})
    whole = privacy.bounded(log, user="user", at_most=4, seed=3)
    without = log[log["user"] != users[1]]
    told = privacy.bounded(without, user="user", at_most=4, seed=3)
    pd.testing.assert_frame_equal(told, whole[whole["user"] != users[1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.counts(["a"], ["a"], epsilon=0), "epsilon must be above 0, got 0"),
        (
            lambda: privacy.counts(["a"], ["a"], epsilon=math.inf),
            "epsilon must be above 0, got inf",
        ),
        (lambda: privacy.counts(["a"], ["a", "a"], epsilon=1), "categories must be distinct"),
        (lambda: privacy.counts(["a"], ["a"], epsilon=1, at_most=0), "at_most must be at least 1"),
        (lambda: privacy.mean([1], low=1, high=1, epsilon=1), "low must be below high"),
        (lambda: privacy.mean([1], low=0, high=math.inf, epsilon=1), "both finite, got 0 and inf"),
        (lambda: privacy.mean([1], low=-1e308, high=1e308, epsilon=1), "both finite, got -1e"),
        (lambda: privacy.counts(["a"], ["a"], epsilon=1, at_most=1.5), "at_most must be a whole"),
        (
            lambda: privacy.quantile([1], 1.0, candidates=[1], epsilon=1),
            r"level must be in \(0, 1\)",
        ),
        (lambda: privacy.quantile([1], 0.5, candidates=[2, 2], epsilon=1), "must be distinct"),
        (lambda: privacy.bounded({"u": [1]}, user="u", at_most=0, seed=0), "at_most must be"),
        (lambda: privacy.bounded({"u": [1]}, user="v", at_most=1, seed=0), "a column 'v', got u"),
        (
            lambda: privacy.bounded({"u": ["a", None]}, user="u", at_most=1, seed=0),
            r"column 'u' must have a user in every row, got none in row 1",
        ),
    ],
)
def test_wrong_settings_of_statistics(call, message):
    with pytest.raises(ValueError, match=message):
        call()
