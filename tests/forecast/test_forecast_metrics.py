from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, stats

from jaxops.forecast import compare, evaluation, metrics, table

RNG = np.random.default_rng(0)
FORECAST, TARGET = RNG.normal(size=(2, 6, 4, 3))


@pytest.mark.parametrize("name", ["mse", "mae", "rmse", "smape"])
def test_points_against_a_loop(name):
    one = {
        "mse": lambda f, y: (f - y) ** 2,
        "mae": lambda f, y: abs(f - y),
        "rmse": lambda f, y: (f - y) ** 2,
        "smape": lambda f, y: 200 * abs(f - y) / (abs(f) + abs(y)),
    }[name]
    last = np.sqrt if name == "rmse" else np.asarray
    window = [
        np.mean([one(f, y) for f, y in zip(FORECAST[w].flat, TARGET[w].flat)]) for w in range(6)
    ]
    step = [
        np.mean([one(f, y) for f, y in zip(FORECAST[:, h].flat, TARGET[:, h].flat)])
        for h in range(4)
    ]
    metric = getattr(metrics, name)
    np.testing.assert_allclose(metric(FORECAST, TARGET), last(window))
    np.testing.assert_allclose(metric(FORECAST, TARGET, per="step"), last(step))
    one = metric(FORECAST[2:3, 1:2], TARGET[2:3, 1:2])[0]
    assert metric(FORECAST, TARGET, per="both")[2, 1] == pytest.approx(one)


def test_smape_of_nothing_for_nothing_is_0():
    zero = np.zeros((1, 1, 1))
    assert metrics.smape(zero, zero) == 0 and metrics.smape(zero, zero + 3) == 200


def test_mase_scales_by_the_seasonal_naive_error_of_training():
    history = np.array([[0, 0, 1.0, 5, 2, 7], [1, 3, 2, 6, 4, 4]])
    scale = metrics.seasonal_scale(history, 2, lengths=np.array([4, 6]))
    np.testing.assert_allclose(scale, [(1 + 2) / 2, (1 + 3 + 2 + 2) / 4])
    forecast, target = np.zeros((2, 2, 1)), np.array([[[3.0], [0]], [[2], [2]]])
    np.testing.assert_allclose(metrics.mase(forecast, target, scale), [1.0, 1.0])
    np.testing.assert_allclose(metrics.mase(forecast, target, scale, "step"), [1.5, 0.5])
    assert np.isnan(metrics.seasonal_scale(history, 2, lengths=np.array([2, 6]))[0])
    with pytest.raises(ValueError, match="scale must be above 0, got 0 for window 0"):
        metrics.mase(forecast, target, np.array([0, 1]))


def test_pinball_is_least_at_the_quantile():
    y = np.random.default_rng(1).exponential(size=(20_000, 1, 1))
    for level in (0.1, 0.5, 0.8):
        tried = np.linspace(0.02, 3, 150)
        loss = [metrics.pinball(np.full((*y.shape, 1), q), y, [level]).mean() for q in tried]
        assert tried[np.argmin(loss)] == pytest.approx(-np.log(1 - level), abs=0.05)
    # scikit-learn's, at several levels
    sklearn = pytest.importorskip("sklearn.metrics")
    q = RNG.normal(size=(6, 4, 3, 3))
    levels = (0.2, 0.5, 0.9)
    theirs = [
        sklearn.mean_pinball_loss(TARGET.ravel(), q[..., i].ravel(), alpha=a)
        for i, a in enumerate(levels)
    ]
    assert metrics.pinball(q, TARGET, levels).mean() == pytest.approx(np.mean(theirs))


def test_crps_by_its_integral_its_quantiles_and_its_samples():
    mean, sd, y = 1.0, 2.0, 2.5
    whole = lambda z: (stats.norm.cdf(z, mean, sd) - (z >= y)) ** 2  # noqa: E731
    integral = integrate.quad(whole, -20, y)[0] + integrate.quad(whole, y, 20)[0]
    one = np.ones((1, 1, 1))
    assert metrics.crps_normal(mean * one, sd * one, y * one)[0] == pytest.approx(integral)
    levels = (np.arange(400) + 0.5) / 400
    quantiles = stats.norm.ppf(levels, mean, sd)[None, None, None]
    found = metrics.crps_quantiles(quantiles, y * one, levels)[0]
    assert found == pytest.approx(integral, rel=1e-3)
    # fair: of a few samples right on average
    samples = np.random.default_rng(2).normal(mean, sd, (40_000, 1, 1, 3))
    found = metrics.crps_samples(samples, np.full((40_000, 1, 1), y)).mean()
    assert found == pytest.approx(integral, rel=0.02)


def test_samples_against_all_pairs():
    samples = RNG.normal(size=(6, 4, 3, 5))
    pairs = np.abs(samples[..., None] - samples[..., None, :]).sum((-1, -2)) / 20
    expected = np.abs(samples - TARGET[..., None]).mean(-1) - pairs / 2
    np.testing.assert_allclose(metrics.crps_samples(samples, TARGET), expected.mean((1, 2)))


def test_coverage_and_width():
    low, high = np.array([[[0.0], [0.0], [-np.inf]]]), np.array([[[1.0], [1.0], [np.inf]]])
    target = np.array([[[1.0], [1.1], [9.0]]])
    np.testing.assert_allclose(metrics.coverage(low, high, target), 2 / 3)
    np.testing.assert_array_equal(metrics.coverage(low, high, target, "step"), [1, 0, 1])
    np.testing.assert_array_equal(metrics.width(low, high, "step"), [1, 1, np.inf])
    np.testing.assert_array_equal(metrics.width(high[:, :2], low[:, :2]), 0)


def test_nothing_is_dropped():
    bad = TARGET.copy()
    bad[2, 1, 0] = np.nan
    with pytest.raises(ValueError, match="target must be finite, got 1 of 72 values that are not"):
        metrics.mse(FORECAST, bad)
    with pytest.raises(ValueError, match="forecast must be finite, got 1 of 72"):
        metrics.smape(bad, TARGET)
    with pytest.raises(ValueError, match="low and high must not be NaN"):
        metrics.coverage(bad, TARGET, TARGET)
    with pytest.raises(ValueError, match=r"forecast and target must have shapes \(W, H, C\)"):
        metrics.mae(FORECAST[0], TARGET[0])
    with pytest.raises(ValueError, match=r"levels must be 1 numbers in \(0, 1\), .*, got"):
        metrics.pinball(FORECAST[..., None], TARGET, (0.1, 0.9))
    with pytest.raises(ValueError, match=r"per must be one of .*, got 'series'"):
        metrics.mae(FORECAST, TARGET, "series")


def test_a_table_marks_what_is_surely_best():
    rng = np.random.default_rng(5)
    target = rng.normal(size=(200, 4, 1))
    good, bad = (target + s * rng.normal(size=target.shape) for s in (0.5, 1.0))
    bounds = (target - 1, target + 1)
    scores = {
        n: evaluation.score(f, target, bounds=bounds) for n, f in {"a": good, "b": bad}.items()
    }
    text = table(scores)
    row = next(line for line in text.splitlines() if line.startswith("| a"))
    figures = scores["a"].figures()
    assert figures["rmse"] == pytest.approx(np.sqrt(((good - target) ** 2).mean()))
    assert row.count("**") == 8 and f"**{figures['mae']:.4f}** [" in row  # not coverage, nor width
    low = scores["a"].interval("rmse").low
    assert low == pytest.approx(scores["a"].interval("mse").low ** 0.5, rel=0.02)
    alike = compare({"a": scores["a"], "same": scores["a"]}, ["mae"])
    assert not any("**" in row["mae"] for row in alike)
    overlapping = {name: replace(one, block=10) for name, one in scores.items()}
    assert "**" in compare(overlapping, ["mse"])[0]["mse"]
    for block in (11, 150):  # 18 blocks, and 1: nothing is said to be sure
        few = {name: replace(one, block=block) for name, one in scores.items()}
        assert compare(few, ["mse"])[0]["mse"] == f"{figures['mse']:.4f} [-]"


def test_a_table_of_what_cannot_be_compared():
    whole, part = evaluation.score(FORECAST, TARGET), evaluation.score(FORECAST[:3], TARGET[:3])
    assert [row["windows"] for row in compare({"a": whole, "b": part})] == ["6", "3"]
    with pytest.raises(ValueError, match="of 'a', got"):
        compare({"a": whole}, ["mase"])
    with pytest.raises(ValueError, match="evaluations must hold at least 1, got none"):
        compare({})


def test_scores_with_quantiles():
    levels = (0.1, 0.5, 0.9)
    quantiles = np.stack([TARGET - 1, TARGET, TARGET + 1], -1)
    found = evaluation.score(FORECAST, TARGET, np.ones(6), quantiles, levels, block=2)
    assert found.figures()["pinball"] == pytest.approx(0.2 / 3)
    assert found.figures()["crps"] == pytest.approx(0.4 / 3)
    assert found.figures()["mase"] == found.figures()["mae"]
    for metric, value in {
        "mase": lambda per: metrics.mase(FORECAST, TARGET, np.ones(6), per),
        "crps": lambda per: metrics.crps_quantiles(quantiles, TARGET, levels, per),
        "smape": lambda per: metrics.smape(FORECAST, TARGET, per),
    }.items():
        np.testing.assert_allclose(found.values[metric], value("both"))
        assert found.figures()[metric] == pytest.approx(value("window").mean())


def test_each_step_has_its_interval():
    forecast, target = RNG.normal(size=(2, 24, 4, 3))
    found = evaluation.score(forecast, target)
    alone = evaluation.score(forecast[:, 2:3], target[:, 2:3])
    for metric in ("mse", "smape"):
        assert found.interval(metric, step=2) == alone.interval(metric)
    assert found.interval("mae", step=0).mean == pytest.approx(found.values["mae"][:, 0].mean())
    with pytest.raises(ValueError, match=r"step must be in \[0, 4\), got 4"):
        found.interval("mse", step=4)
    with pytest.raises(ValueError, match=r"metric must be one of .*, got 'mase'"):
        found.interval("mase")


def test_interval_of_owa_is_that_of_the_bootstrap():
    rng = np.random.default_rng(6)
    target = 10 + rng.normal(size=(300, 3, 1))
    size = rng.exponential(size=(300, 1, 1))  # both models are wrong for the same series
    one, naive = (
        evaluation.score(
            target + s * size * rng.normal(size=target.shape), target, np.full(300, 2.0)
        )
        for s in (0.5, 1.0)
    )
    found = evaluation.owa_interval(one, naive)
    four = [s.values[name].mean(1) for s in (one, naive) for name in ("smape", "mase")]
    assert found.mean == pytest.approx(metrics.owa(*(x.mean() for x in four)))
    want = stats.bootstrap(
        four,
        lambda *x, axis: metrics.owa(*(one.mean(axis) for one in x)),
        paired=True,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert found[1:] == pytest.approx((want.low, want.high), abs=0.01)
    assert evaluation.owa_interval(naive, naive) == pytest.approx((1, 1, 1))
    with pytest.raises(ValueError, match="both evaluations must have mase, got"):
        evaluation.owa_interval(one, evaluation.score(target, target))
