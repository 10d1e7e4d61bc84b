import os
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxops import forecast
from jaxops.forecast import evaluation, metrics
from jaxops.forecast.classical import baseline as classical
from jaxops.forecast.classical import ets, theta
from jaxops.forecast.classical import naive as baselines
from jaxops.forecast.classical.naive import drift, repeat_last, right_aligned, seasonal_naive
from jaxops.forecast.classical.theta import naive2, seasonal_indices, simple_smoothing, theta_method

REAL = Path(os.environ.get("JAXOPS_DATA_DIR", "/nowhere"))
LENGTHS = (50, 61, 90, 3, 1)


@pytest.fixture(scope="module")
def series():
    """Five of different lengths, the season of seven in the longer ones."""
    rng = np.random.default_rng(0)
    long = [
        20 + 0.1 * np.arange(n) + 5 * np.sin(2 * np.pi * np.arange(n) / 7) + rng.normal(size=n)
        for n in LENGTHS
    ]
    return [x.astype(np.float32) for x in long]


def together(series):
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in series])])
    return right_aligned(np.concatenate(series), offsets)


def test_right_aligned_series_end_in_the_last_column(series):
    values, lengths = together(series)
    assert values.shape == (5, 90) and lengths.tolist() == list(LENGTHS)
    for row, x in zip(values, series, strict=True):
        np.testing.assert_array_equal(row[-len(x) :], x)
        assert not row[: -len(x)].any()
    with pytest.raises(ValueError, match="with at least a row for each series"):
        right_aligned(np.zeros(3), np.array([0, 2, 2, 3]))


def compiled(method, **settings):
    """One program for each shape, rather than one for each operation."""
    return jax.jit(partial(method, **settings), static_argnums=1, static_argnames="levels")


METHODS = {
    "repeat_last": compiled(repeat_last),
    "seasonal_naive": compiled(seasonal_naive, season=7),
    "drift": compiled(drift),
    "theta_method": compiled(theta_method, season=7),
    "naive2": jax.jit(partial(naive2, season=7), static_argnums=1),
}
SINGLE = ("repeat_last", "seasonal_naive", "drift", "theta_method")
LEVELS = (0.1, 0.5, 0.9)  # with 10 steps the same programs for all tests


@pytest.mark.parametrize("name", SINGLE)
def test_padding_and_company_change_nothing(series, name):
    values, lengths = together(series)
    rubbish = np.where(np.asarray(baselines.inside(values, lengths)), values, 1e4)
    method = METHODS[name]
    batch = np.asarray(method(rubbish, 10, lengths=lengths))
    assert np.isfinite(batch).all()
    for i in (0, 3):
        np.testing.assert_allclose(batch[i], method(series[i][None], 10)[0], rtol=2e-4)


def test_naive_forecasts_by_hand(series):
    values, lengths = together(series)
    lasts, seasons, lines = (
        np.asarray(METHODS[name](values, 10, lengths=lengths))
        for name in ("repeat_last", "seasonal_naive", "drift")
    )
    for i, x in enumerate(series):
        last = np.full(10, x[-1])
        np.testing.assert_array_equal(lasts[i], last)
        season = np.resize(x[-7:], 10) if len(x) >= 7 else last
        np.testing.assert_array_equal(seasons[i], season)
        slope = (x[-1] - x[0]) / max(len(x) - 1, 1)
        line = x[-1] + slope * np.arange(1, 11)
        np.testing.assert_allclose(lines[i], line, rtol=1e-5)


def test_quantiles_are_those_of_normal_errors(series):
    values, lengths = together(series)
    z = 1.2815515655446004
    x = series[0].astype(np.float64)
    h = np.arange(1, 11)
    moves = np.diff(x)
    sd = {
        "repeat_last": np.sqrt((moves**2).mean() * h),
        "seasonal_naive": np.sqrt(((x[7:] - x[:-7]) ** 2).mean() * ((h - 1) // 7 + 1)),
        "drift": np.std(moves, ddof=1) * np.sqrt(h * (1 + h / 49)),
    }
    for name, expected in sd.items():
        found = METHODS[name](values, 10, lengths=lengths, levels=LEVELS)
        mean = np.asarray(METHODS[name](values, 10, lengths=lengths))
        np.testing.assert_allclose(
            found[:4, :, 1], np.where(np.isnan(found[:4, :, 1]), np.nan, mean[:4])
        )
        np.testing.assert_allclose(found[0, :, 2] - mean[0], z * expected, rtol=1e-4)
        np.testing.assert_allclose(found[0, :, 0] - mean[0], -z * expected, rtol=1e-4)
        assert np.isnan(found[4]).all()  # a single value has no error of its own


def test_theta_intervals_cover_a_series_of_its_own_kind():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2000, 120))  # of SES: level += .4 e
    level = 50 + np.cumsum(0.4 * noise, 1) - (0.4 * noise)
    x = (level + noise).astype(np.float32)
    found = compiled(theta_method)(x[:, :108], 12, levels=(0.05, 0.95))
    low, high = np.moveaxis(np.asarray(found), -1, 0)
    covered = metrics.coverage(low[..., None], high[..., None], x[:, 108:, None])
    assert 0.86 < covered.mean() < 0.92  # a little less than .9: parameters are estimated


def test_simple_smoothing_is_the_minimum():
    smoothing = pytest.importorskip("statsmodels.tsa.holtwinters")
    x = np.cumsum(np.random.default_rng(2).normal(size=(4, 80)), 1).astype(np.float32)
    x += np.random.default_rng(3).normal(size=x.shape).astype(np.float32)
    found = simple_smoothing(x, np.full(4, 80))
    for i in range(4):
        theirs = smoothing.SimpleExpSmoothing(
            x[i].astype(float), initialization_method="estimated"
        ).fit()
        assert found.sse[i] <= theirs.sse * 1.0001
        assert found.alpha[i] == pytest.approx(theirs.params["smoothing_level"], abs=0.01)
        assert found.level[i] == pytest.approx(theirs.forecast(1)[0], abs=0.01)


def test_indices_are_those_of_the_classical_decomposition(series):
    seasonal = pytest.importorskip("statsmodels.tsa.seasonal")
    values, lengths = together(series)
    found = np.asarray(seasonal_indices(values, 7, lengths))
    for i in range(3):
        theirs = seasonal.seasonal_decompose(series[i].astype(float), "multiplicative", period=7)
        np.testing.assert_allclose(found[i], theirs.seasonal[-7:], rtol=1e-4)
    np.testing.assert_array_equal(found[3:], 1)  # shorter than three seasons


def test_noise_has_no_season():
    x = np.random.default_rng(4).uniform(1, 2, (500, 100)).astype(np.float32)
    found = (np.asarray(seasonal_indices(x, 7, np.full(500, 100))) != 1).any(1)
    assert 0.05 < found.mean() < 0.16  # the test's own 10 %
    np.testing.assert_array_equal(seasonal_indices(x - 1.5, 7, np.full(500, 100)), 1)


def test_season_test_by_its_definition(series):
    """The autocorrelations up to a lag of 50, of series with and without padding."""
    values, lengths = together(series[:3])
    noise = np.random.default_rng(6).normal(size=(40, 90)).astype(np.float32)
    values = np.concatenate([values, noise + np.sin(np.arange(90) / 7 * 2 * np.pi)])
    lengths = np.append(lengths, np.arange(51, 91))
    there = baselines.inside(values, lengths)
    for season in (7, 17, 30):
        test = jax.jit(theta.seasonal, static_argnums=3)
        found = test(values, there, lengths, season)
        for i, n in enumerate(lengths):
            x = values[i, -n:].astype(np.float64) - values[i, -n:].mean(dtype=np.float64)
            r = np.correlate(x, x, "full")[n - 1 : n + season] / (x @ x)
            limit = 1.645 * np.sqrt((1 + 2 * (r[1:-1] ** 2).sum()) / n)
            if abs(abs(r[-1]) - limit) > 1e-4:
                assert found[i] == (abs(r[-1]) > limit and n >= 3 * season)


def test_what_is_wrong_is_said():
    values = np.ones((2, 5), np.float32)
    with pytest.raises(ValueError, match=r"values must have shape \(B, L\), .*, got \(5,\)"):
        repeat_last(values[0], 3)
    with pytest.raises(ValueError, match="horizon and season must be at least 1, got 0"):
        drift(values, 0)
    with pytest.raises(ValueError, match=r"lengths must have shape \(2,\), .*, got \(3,\)"):
        seasonal_naive(values, 3, 2, np.ones(3))
    with pytest.raises(ValueError, match=r"levels must be between 0 and 1, got \(0.5, 1.0\)"):
        theta_method(values, 3, levels=(0.5, 1.0))


def test_a_constant_series_goes_on():
    values = np.full((1, LENGTHS[0]), 7, np.float32)
    for name in SINGLE:
        np.testing.assert_allclose(METHODS[name](values, 10), 7, rtol=1e-6)
    assert np.isnan(np.asarray(METHODS["repeat_last"](values * np.float32(np.nan), 10))).all()


@pytest.mark.parametrize("method", [name for name in classical.METHODS if name != "ets"])
def test_a_model_of_each_method(series, method):
    """Short series and long ones lie in tables of their own: each is as it is alone."""
    model, levels = forecast.Baseline(method, 7), () if method == "naive2" else LEVELS
    table = forecast.from_arrays(range(5), series)
    found = forecast.forecast(model, table, 10, levels=levels)
    assert found.mean.shape == (5, 10, 1) and found.quantiles.shape == (5, 10, 1, len(levels))
    values, lengths = together(series)
    direct = partial(METHODS["theta_method" if method == "theta" else method], values, 10)
    np.testing.assert_allclose(found.mean[..., 0], direct(lengths=lengths), rtol=2e-3)
    if levels:
        quantiles = direct(lengths=lengths, levels=levels)
        np.testing.assert_allclose(found.quantiles[:, :, 0], quantiles, rtol=2e-3)


def test_one_fit_gives_mean_and_quantiles(monkeypatch):
    fits = []
    fit = classical.fit_smoothing
    monkeypatch.setattr(classical, "fit_smoothing", lambda *a: fits.append(1) or fit(*a))
    x = np.cumsum(np.random.default_rng(5).normal(size=(1, 64)), 1).astype(np.float32)
    table, levels = forecast.from_arrays(["a"], x), (0.1, 0.9)
    found = forecast.forecast(forecast.Baseline("ets"), table, 3, levels=levels)
    assert len(fits) == 1
    np.testing.assert_allclose(found.mean[..., 0], ets.exponential_smoothing(x, 3), rtol=1e-5)
    wanted = ets.exponential_smoothing(x, 3, levels=levels)  # of the same seed
    np.testing.assert_allclose(found.quantiles[:, :, 0], wanted, rtol=1e-5)


def test_a_long_series_does_not_widen_the_short_ones(monkeypatch):
    seen = []
    align = classical.right_aligned
    monkeypatch.setattr(
        classical, "right_aligned", lambda *a: seen.append(align(*a)[0].shape) or align(*a)
    )
    lengths = [3, 4, 1000, 5, 8, 1]
    table = forecast.from_arrays(range(6), [np.arange(n) for n in lengths])
    found = forecast.forecast(forecast.Baseline("drift"), table, 2)
    assert seen == [(5, 8), (1, 1000)]
    np.testing.assert_allclose(found.mean[:5, 1, 0], np.array(lengths[:5]) + 1, rtol=1e-5)
    assert found.mean[5, 1, 0] == 0


def test_naive2_has_no_quantiles(series):
    table = forecast.from_arrays(range(5), series)
    with pytest.raises(ValueError, match=r"levels must be \(\) for 'naive2', .*, got \(0.1, 0.9\)"):
        forecast.forecast(forecast.Baseline("naive2", 7), table, 3, levels=(0.1, 0.9))


def hourly(name):
    import pandas as pd

    table = pd.read_csv(REAL / "m4" / f"Hourly-{name}.csv.gz", index_col=0).to_numpy(np.float32)
    return [row[~np.isnan(row)] for row in table]


@pytest.mark.data("m4")
@pytest.mark.parametrize(
    ("method", "smape", "mase"),
    [
        (lambda v, n: repeat_last(v, 48), 43.003, 11.608),
        (lambda v, n: seasonal_naive(v, 48, 24, n), 13.912, 1.193),
        (lambda v, n: naive2(v, 48, 24, n), 18.383, 2.395),
        (lambda v, n: theta_method(v, 48, 24, n), 18.138, 2.455),
    ],
    ids=["naive", "seasonal naive", "naive 2", "theta"],
)
def test_published_rows_of_m4_hourly(method, smape, mase):
    values, lengths = together(hourly("train"))
    target = np.stack(hourly("test"))[..., None]
    found = evaluation.score(
        np.asarray(jax.jit(method)(values, lengths))[..., None],
        target,
        metrics.seasonal_scale(values, 24, lengths),
    ).figures()
    assert round(found["smape"], 3) == smape and round(found["mase"], 3) == mase


@pytest.mark.data("ett")
def test_published_row_of_etth1():
    import pandas as pd

    table = pd.read_csv(REAL / "ett" / "ETTh1.csv", index_col=0).to_numpy()
    table = (table - table[:8640].mean(0)) / table[:8640].std(0)
    windows = np.lib.stride_tricks.sliding_window_view(table[11519:14400], 97, axis=0)
    assert len(windows) == 2785  # the last row before, and 96 to be forecast
    target = windows[..., 1:].transpose(0, 2, 1)
    last = np.asarray(repeat_last(windows[..., :1].reshape(-1, 1), 96))
    found = evaluation.score(last.reshape(2785, 7, 96).transpose(0, 2, 1), target, block=96)
    figures = found.figures()
    assert round(figures["mse"], 4) == 1.2944 and round(figures["mae"], 4) == 0.7132


def test_they_are_public():
    assert forecast.theta_method is theta_method and forecast.drift is drift
