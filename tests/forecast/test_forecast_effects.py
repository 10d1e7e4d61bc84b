"""Effects against scikit-learn's Poisson regression with a column for each series, and refits."""

import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from sklearn.linear_model import PoissonRegressor

from jaxops.forecast import effects, from_arrays
from jaxops.forecast.classical.least_squares import least_squares
from jaxops.forecast.effects import effect, log_linear

TRUE = {"promotion": 0.4, "log_price": -1.5, "weekend": 0.2}


def world(seed, count=12, lengths=(60, 90), shock=0.0):
    """Ragged series; `shock` makes neighbouring days of a series alike, as promotions are."""
    rng = np.random.default_rng(seed)
    sales, known = [], []
    for _ in range(count):
        days = rng.integers(*lengths)
        promotion = np.repeat(rng.random(days // 7 + 1) < 0.25, 7)[:days]
        price = rng.normal(3, 0.2, days) - 0.2 * promotion
        x = np.stack([promotion, price, np.arange(days) % 7 > 4], 1).astype(np.float32)
        drift = np.repeat(rng.normal(0, 1, days // 7 + 1), 7)[:days] * shock - shock**2 / 2
        mean = np.exp(rng.normal(6, 0.7) + x @ list(TRUE.values()) + drift)
        sales.append(rng.negative_binomial(5, 5 / (5 + mean)))
        known.append(x)
    log = from_arrays(np.arange(count), sales, channels=("sales",))
    return replace(log, known=np.concatenate(known), known_names=tuple(TRUE))


def dummies(series):
    """The same likelihood, its levels K more coefficients; no penalty."""
    x = np.concatenate([series.known, np.eye(len(series))[series.index()]], 1)
    fit = PoissonRegressor(
        alpha=0, fit_intercept=False, solver="newton-cholesky", tol=1e-10, max_iter=1000
    ).fit(x, series.values[:, 0])
    return fit.coef_


def test_coefficients_and_levels_are_scikit_learns():
    series = world(0)
    fitted, wanted = log_linear(series), dummies(series)
    assert fitted.names == ("promotion", "log_price", "weekend")
    np.testing.assert_allclose(fitted.coefficients, wanted[:3], atol=2e-4)
    np.testing.assert_allclose(fitted.level, wanted[3:], atol=1e-3)
    np.testing.assert_allclose(fitted.by_series.mean(0), fitted.coefficients, atol=1e-9)
    fewer = log_linear(series, columns=["log_price"])
    alone = dummies(replace(series, known=series.known[:, 1:2], known_names=("log_price",)))
    np.testing.assert_allclose(fewer.coefficients, alone[:1], atol=2e-4)


def test_jackknife_is_that_of_refits():
    """One Newton step away, but for terms of higher order."""
    series = world(1, count=12, lengths=(84, 85))  # one shape, one compilation
    fitted, everyone = log_linear(series), np.arange(12)
    refits = np.stack([log_linear(series.part(everyone != s)).coefficients for s in everyone])
    values = 12 * fitted.coefficients[None] - 11 * refits
    np.testing.assert_allclose(np.cov(fitted.by_series.T), np.cov(values.T), rtol=0.05, atol=2e-3)
    for found, wanted in zip(fitted.by_series.T, values.T, strict=True):
        assert np.corrcoef(found, wanted)[0, 1] > 0.99


def test_effect_of_several_changes():
    fitted = log_linear(world(0))
    both = effect(fitted, {"promotion": 1, "log_price": -0.2})
    b = dict(zip(fitted.names, fitted.coefficients, strict=True))
    assert both.mean == pytest.approx(b["promotion"] - 0.2 * b["log_price"])
    assert both.low < 0.4 + 0.3 < both.high
    assert (
        effect(fitted, {"promotion": 1}, coverage=0.5).high < effect(fitted, {"promotion": 1}).high
    )


def test_a_scale_of_columns_changes_nothing():
    """Prices in the ten thousands, say."""
    series = world(0)
    known = series.known * [1, 1e-3, 1] + np.array([[0, 1e-2, 0]])
    wanted, found = log_linear(series), log_linear(replace(series, known=known.astype(np.float32)))
    np.testing.assert_allclose(
        found.coefficients, wanted.coefficients * [1, 1e3, 1], rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_95_of_100_intervals_hold_the_truth():
    """Of 120 worlds with shocks that last a week, as promotions do; binomial bounds at 1 %."""
    held = {name: [] for name in TRUE}
    for seed in range(120):
        fitted = log_linear(world(seed, count=60, lengths=(84, 85), shock=0.5))
        for name, truth in TRUE.items():
            found = effect(fitted, {name: 1})
            held[name].append(found.low <= truth <= found.high)
    for name, times in held.items():
        assert 0.88 <= np.mean(times) <= 0.99, name


def test_promotions_in_high_season_are_confounded():
    """Without the season's column its sales are the promotion's."""
    rng, days = np.random.default_rng(0), np.arange(364)
    season = np.cos(2 * np.pi * days / 364)
    on = rng.random((20, 364)) < 0.05 + 0.4 * (season > 0.5)[None]
    sales = rng.poisson(np.exp(3 + 0.5 * season[None] + 0.3 * on))
    known = np.stack([on, np.broadcast_to(season, on.shape)], 2).reshape(-1, 2)
    series = replace(
        from_arrays(np.arange(20), sales),
        known=known.astype(np.float32),
        known_names=("on", "season"),
    )
    right = effect(log_linear(series), {"on": 1})
    assert right.low < 0.3 < right.high
    wrong = effect(log_linear(series, columns=["on"]), {"on": 1})
    assert wrong.low > 0.45


def changed(row=None, value=None, **arrays):
    series = world(0)
    if row is not None:
        values = series.values.copy()
        values[row] = value
        arrays = {"values": values}
    return replace(series, **arrays)


FIRST = slice(0, int(world(0).offsets[1]))
KNOWN = world(0).known


@pytest.mark.parametrize(
    "series, arguments, message",
    [
        (
            changed(5, -1),
            {},
            r"sales must be finite and at least 0, got -1\.0 in row 5 \(series '0'\)",
        ),
        (changed(FIRST, 0), {}, "sales must have sales in each series, got none in series '0'"),
        (changed(), {"channel": "units"}, "channel must be one of .*, got 'units'"),
        (changed(), {"columns": ["sun"]}, r"columns must be some of .*, got \['sun'\]"),
        (changed(), {"columns": []}, r"columns must be some of .*, got \[\]"),
        (changed().part([0]), {}, "series must be at least 2, .*, got 1"),
        (
            changed(known=np.ones_like(KNOWN)),
            {},
            "columns must vary within some series, got 'promotion' constant",
        ),
        (
            changed(known=KNOWN[:, [0, 1, 0]]),
            {},
            "columns must be linearly independent .* of rank 2",
        ),
    ],
)
def test_bad_series(series, arguments, message):
    with pytest.raises(ValueError, match=message):
        log_linear(series, **arguments)


def test_sales_that_are_0_in_every_promotion():
    """Their log is minus infinity, and no number fits."""
    values = np.where(KNOWN[:, :1] > 0, 0, world(0).values)
    with pytest.raises(ValueError, match="columns must have finite best coefficients"):
        log_linear(changed(values=values))


@pytest.mark.parametrize("change", [{"sun": 1}, {}])
def test_change_of_no_column(change):
    with pytest.raises(ValueError, match="change must have some of"):
        effect(log_linear(world(0)), change)


def test_products_keep_float32_on_gpus():
    rows = jax.ShapeDtypeStruct((6, 2), np.float32), jax.ShapeDtypeStruct((6,), np.float32)
    index = jax.ShapeDtypeStruct((6,), np.int32)
    start = jax.ShapeDtypeStruct((5,), np.float32), jax.ShapeDtypeStruct((5,), bool)
    for text in (
        str(jax.make_jaxpr(lambda *a: effects._fit(*a, 3))(*rows, index)),
        str(jax.make_jaxpr(lambda *a: least_squares(jax.numpy.sin, *a))(*start)),
    ):
        products = text.count("dot_general[")
        assert products >= 2 and len(re.findall(r"\bprecision=\S*HIGHEST", text)) == products
