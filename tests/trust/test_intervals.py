"""Intervals and paired tests against SciPy's, and by simulation."""

import numpy as np
import pytest
from scipy import stats

from jaxops.trust import intervals
from jaxops.trust.intervals import block_interval, interval, paired

SIMULATIONS = 4000  # the standard error of 95 % is then .34 %


def reciprocal_ranks(rng, shape):
    """Of one target, @3: mostly 0."""
    rank = rng.integers(1, 31, shape)
    return np.where(rank <= 3, 1 / rank, 0)


@pytest.mark.parametrize("few", [True, False])
def test_interval_is_scipys(few):
    rng = np.random.default_rng(0)
    values = rng.random(300) < 0.07 if few else rng.random(300) ** 6
    got = interval(values, 50_000)
    want = stats.bootstrap(
        (values,), np.mean, n_resamples=50_000, method="BCa", random_state=1
    ).confidence_interval
    assert got.mean == values.mean()
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=0.02)


def test_values_alike_are_drawn_by_the_same_law(monkeypatch):
    """How often each distinct value is drawn, or each user: the same mean and spread."""
    values = reciprocal_ranks(np.random.default_rng(0), 500)
    quick = intervals._means(values, 20_000, np.random.default_rng(1))
    quick_flips = intervals._flipped(values, 20_000, np.random.default_rng(1))
    monkeypatch.setattr(intervals, "_few", lambda *_: False)
    plain = intervals._means(values, 20_000, np.random.default_rng(2))
    plain_flips = intervals._flipped(values, 20_000, np.random.default_rng(2))
    error = values.std() / np.sqrt(500)
    assert abs(quick.mean() - values.mean()) < error / 20
    assert quick.std() == pytest.approx(error, rel=0.03)
    assert plain.std() == pytest.approx(error, rel=0.03)
    assert quick_flips.std() == pytest.approx(np.sqrt((values**2).sum()), rel=0.03)
    assert plain_flips.std() == pytest.approx(np.sqrt((values**2).sum()), rel=0.03)
    assert stats.ks_2samp(quick.round(9), plain.round(9)).pvalue > 1e-3
    assert stats.ks_2samp(quick_flips.round(9), plain_flips.round(9)).pvalue > 1e-3


@pytest.mark.parametrize(
    "metric",
    ["hr", *(pytest.param(metric, marks=pytest.mark.slow) for metric in ("mrr", "difference"))],
)
def test_95_of_100_intervals_hold_the_truth(metric):
    """The truth is drawn each time: at one, the grid of a share of 2,000 users helps or harms."""
    rng = np.random.default_rng(0)
    found = []
    for simulation in range(SIMULATIONS):
        p, u = rng.uniform(0.04, 0.06), rng.random(2000)
        if metric == "hr":
            values, truth = u < p, p
        elif metric == "mrr":  # the first three places p / 3 each
            values = np.where(u < p, 1 / (1 + np.floor(3 * u / p)), 0)
            truth = p / 3 * (1 + 1 / 2 + 1 / 3)
        else:  # of two models' hits, most of which they share
            q = rng.uniform(0, 0.02)
            values, truth = (u < p) * 1.0 - (u > 1 - q), p - q
        bounds = interval(values, 1000, seed=simulation)
        found.append((bounds.low <= truth, truth <= bounds.high))
    low, high = np.mean(found, axis=0)
    assert low + high - 1 == pytest.approx(0.95, abs=0.01)
    assert (low, high) == pytest.approx((0.975, 0.975), abs=0.0075)


def test_one_in_twenty_models_alike_is_called_different():
    """The size of the test, by the p-value and by the bounds; two models of one hit rate."""
    rng = np.random.default_rng(1)
    found = []
    for simulation in range(SIMULATIONS):
        one, other = rng.random((2, 1000)) < 0.3
        result = paired(one, other, 1000, seed=simulation)
        assert result.difference == pytest.approx(one.mean() - other.mean(), abs=1e-12)
        found.append((result.p < 0.05, not result.low <= 0 <= result.high))
    assert np.mean(found, axis=0) == pytest.approx((0.05, 0.05), abs=0.01)


def test_turns_change_no_draw(monkeypatch):
    values = np.random.default_rng(0).random(300)
    whole = interval(values), block_interval(values, 7)
    monkeypatch.setattr(intervals, "AT_ONCE", 1000)
    assert (interval(values), block_interval(values, 7)) == whole


def test_p_value_is_the_exact_one():
    rng = np.random.default_rng(0)
    for a, b in ((rng.random(12), rng.random(12) - 0.2), (rng.integers(0, 2, (2, 14)))):
        want = stats.permutation_test(
            (a, b), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf
        )
        assert paired(a, b, 40_000).p == pytest.approx(want.pvalue, abs=0.01)


def test_pairs_see_what_intervals_hide():
    """One hit in a hundred more, of the same users: both intervals overlap widely."""
    hits = np.arange(10_000) % 20 == 0
    better = hits | (np.arange(10_000) % 500 == 1)
    assert interval(better).low < interval(hits).high
    result = paired(better, hits)
    assert result.low > 0
    assert result.p < 0.001
    back = paired(hits, better)
    assert (back.difference, back.p) == (-result.difference, result.p)


def test_no_spread():
    assert interval(np.ones(5)) == (1.0, 1.0, 1.0)
    assert paired(np.ones(5), np.ones(5)) == (0.0, 0.0, 0.0, 1.0)


def test_block_interval_covers_where_windows_overlap():
    rng = np.random.default_rng(3)
    horizon, covered = 20, {"alone": 0, "blocks": 0}
    for trial in range(100):
        errors = rng.exponential(size=1219)
        windows = np.convolve(errors, np.ones(horizon) / horizon, "valid")
        for name, found in {
            "alone": interval(windows, 200, seed=trial),
            "blocks": block_interval(windows, 2 * horizon, 200, seed=trial),
        }.items():
            covered[name] += found.low <= 1 <= found.high
    assert covered["alone"] < 60 and covered["blocks"] >= 86
    with pytest.raises(ValueError, match=r"values must be .* got shape"):
        block_interval(np.ones(10), 6)


def test_blocks_of_one_are_the_bootstrap():
    values = np.random.default_rng(4).normal(size=400)
    found = block_interval(values, 1)
    np.testing.assert_allclose(found, interval(values), atol=0.01)
    assert found.mean == pytest.approx(values.mean())


@pytest.mark.parametrize("values", [np.ones(1), np.ones((3, 2)), np.array([0.0, np.nan])])
def test_bad_values_are_named(values):
    with pytest.raises(ValueError, match=r"values must be .* got shape"):
        interval(values)
    with pytest.raises(ValueError, match=r"a must be .* got shape"):
        paired(values, np.ones(3))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="a and b must be of the same users, got 3 and 2 values"):
        paired(np.ones(3), np.ones(2))
    with pytest.raises(ValueError, match=r"coverage must be .* got 95"):
        interval(np.arange(3), coverage=95)
