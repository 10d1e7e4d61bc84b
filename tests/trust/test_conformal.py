"""Conformal margins against what their theorems promise, and recursions against plain Python."""

import numpy as np
import pytest
from scipy import stats
from small import adaptive_margins, compilations

from jaxops.forecast import metrics
from jaxops.trust import conformal


def binomial(covered, count, level, more=0.0):
    """Within what chance allows in 1 of 10,000, of a coverage of level to level + more."""
    low, high = stats.binom.ppf([5e-5, 1 - 5e-5], count, [level, level + more])
    return low <= covered <= high


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95])
def test_margin_covers_the_next_score(level):
    rng = np.random.default_rng(0)
    trials, N = 20_000, 29  # (N + 1) level is whole, save for .95, where it is rounded up
    scores = rng.exponential(size=(N + 1, trials))
    found = conformal.margin(scores[:N], level)
    exact = np.ceil((N + 1) * level) / (N + 1)
    assert binomial((scores[N] <= found).sum(), trials, exact)


def test_margin_is_an_order_statistic():
    scores = np.random.default_rng(1).permutation(99)[:, None] + np.array([[1.0, 101.0]])
    np.testing.assert_array_equal(conformal.margin(scores, 0.9), [90, 190])
    np.testing.assert_array_equal(conformal.margin(scores, 0.05), [5, 105])
    np.testing.assert_array_equal(conformal.margin(scores[:8], 0.9), [np.inf, np.inf])
    assert np.isfinite(conformal.margin(scores[:9], 0.9)).all()


def test_split_covers_each_step_by_itself():
    rng = np.random.default_rng(2)
    spread = np.array([1.0, 2, 4])[None, :, None]
    noise = lambda n: rng.standard_t(3, size=(n, 3, 1)) * spread  # noqa: E731
    N, W = 999, 4000
    bounds = conformal.split_conformal(np.full((W, 3, 1), 5.0), np.zeros((N, 3, 1)), noise(N), 0.9)
    covered = metrics.coverage(*bounds, 5 + noise(W), per="step")
    # given its calibration the coverage is Beta(900, 100), then binomial
    low, high = stats.betabinom.ppf([5e-5, 1 - 5e-5], W, 900, 100) / W
    assert ((low <= covered) & (covered <= high)).all()
    widths = metrics.width(*bounds, per="step")
    np.testing.assert_allclose(widths / widths[0], [1, 2, 4], rtol=0.25)


def test_quantiles_of_the_wrong_width_are_mended():
    rng = np.random.default_rng(3)
    N, W = 999, 4000
    x = rng.uniform(0.5, 2, N + W)  # the spread, which the model knows up to a factor
    y = rng.normal(size=N + W) * x
    for factor in (0.5, 3.0):  # too narrow, too wide
        low, high = -factor * x, factor * x
        bounds = conformal.conformal_quantiles(
            (low[N:], high[N:]), (low[:N], high[:N]), y[:N], coverage=0.9
        )
        covered = ((bounds.low <= y[N:]) & (y[N:] <= bounds.high)).sum()
        low, high = stats.betabinom.ppf([5e-5, 1 - 5e-5], W, 900, 100)
        assert low <= covered <= high
        assert np.corrcoef(bounds.high - bounds.low, x[N:])[0, 1] > 0.99


def test_quantiles_that_cross():
    found = conformal.conformal_quantiles(
        (np.array([3.0]), np.array([1.0])), (np.zeros(19), np.full(19, 10.0)), np.full(19, 5.0)
    )
    assert found.low == found.high == 2  # all of calibration was 5 inside: they meet
    np.testing.assert_array_equal(
        conformal.quantile_scores((np.zeros(3), np.ones(3)), np.array([-1, 0.25, 3])), [1, -0.25, 2]
    )


@pytest.mark.parametrize(("delay", "rate"), [(1, 0.03), (1, 0.3), (5, 0.03)])
def test_adaptive_follows_the_recursion(delay, rate):
    rng = np.random.default_rng(4)
    calibration, scores = rng.integers(0, 12, 30) + 0.5, rng.integers(0, 18, 300) * 1.0
    found = conformal.adaptive(calibration, scores, 0.8, rate, delay)
    margins, levels = adaptive_margins(calibration, scores, 0.8, rate, delay)
    np.testing.assert_allclose(found.nominal, levels, atol=1e-5)
    np.testing.assert_allclose(found.margins, margins, rtol=1e-6)
    assert np.isinf(margins).any() == (rate == 0.3)


def test_each_column_has_its_own_delay():
    rng = np.random.default_rng(5)
    calibration, scores = rng.exponential(size=(40, 3, 2)), rng.exponential(size=(100, 3, 2))
    delay = np.arange(1, 4)[:, None]
    found = conformal.adaptive(calibration, scores, 0.9, 0.02, delay).margins
    for h in range(3):
        alone = conformal.adaptive(calibration[:, h, 1], scores[:, h, 1], 0.9, 0.02, h + 1)
        np.testing.assert_array_equal(found[:, h, 1], alone.margins)


def test_adaptive_compiles_once_for_all_of_a_shape():
    rng = np.random.default_rng(7)
    scores = rng.exponential(size=(2, 23, 2))
    with compilations() as names:
        conformal.adaptive(scores[0], scores[1], 0.9, 0.02)
    assert any("_follow" in name for name in names)
    with compilations() as names:
        conformal.adaptive(scores[1], scores[0], 0.8, 0.1, delay=3)
    assert not names


def test_adaptive_keeps_its_coverage_where_the_variance_shifts():
    rng = np.random.default_rng(6)
    T, rate, level = 4000, 0.02, 0.9
    spread = np.where(np.arange(T) < 1000, 1.0, 3.0)
    calibration, scores = np.abs(rng.normal(size=500)), np.abs(rng.normal(size=T)) * spread
    split = scores <= conformal.margin(calibration, level)
    found = conformal.adaptive(calibration, scores, level, rate)
    covered = scores <= np.asarray(found.margins)
    assert binomial(
        split[:1000].sum(), 1000, level - 0.02, more=0.04
    )  # of 500 scores, themselves drawn
    assert split[1000:].mean() < 0.5  # three times the spread: 2 Phi(1.645 / 3) - 1 = .42
    assert abs(covered.mean() - level) <= (1 + rate) / (rate * T)  # their Proposition 4.1
    assert binomial(covered[1000:].sum(), 3000, level - 0.01, more=0.01)
    still = conformal.adaptive(calibration, scores, level, 0.0)
    late = scores[:200] <= np.asarray(still.margins)[:200]
    assert np.ptp(still.nominal) == 0 and late.mean() > 0.8


def test_what_is_wrong_is_said():
    scores = np.ones((20, 2))
    with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\), got 1.0"):
        conformal.margin(scores, 1.0)
    with pytest.raises(ValueError, match=r"scores must have .*, 1 values not finite"):
        conformal.margin(np.array([1.0, np.nan]))
    with pytest.raises(
        ValueError, match=r"must have shapes \(N, ...\), \(N, ...\) and \(W, ...\), got"
    ):
        conformal.split_conformal(np.ones((3, 5)), scores, scores)
    with pytest.raises(
        ValueError, match=r"quantiles must have equal shapes, got \(20, 2\) and \(3, 2\)"
    ):
        conformal.quantile_scores((scores, scores[:3]), scores)
    with pytest.raises(ValueError, match="calibration and scores must have the same axes"):
        conformal.adaptive(scores, scores[:, 0])
    with pytest.raises(ValueError, match="delay must be at least 1, got 0"):
        conformal.adaptive(scores, scores, delay=0)
