import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import compilations

from jaxops import forecast
from jaxops.forecast.classical import ets, recursions
from jaxops.forecast.classical import naive as baselines

SEASON, LENGTHS = 4, (64, 61, 50, 3, 30, 40, 20)
run, paths = jax.jit(recursions.run), jax.jit(recursions.paths)


@pytest.fixture(scope="module")
def batch():
    """Of different lengths; the fifth with values below zero, the last constant: 7, and 0."""
    rng = np.random.default_rng(0)
    rows = []
    for n in LENGTHS:
        wave = np.array([1.0, 1.3, 0.8, 0.9])[np.arange(n) % 4]
        level = 50 + np.cumsum(0.5 + rng.normal(size=n))
        rows.append((level * wave * (1 + 0.03 * rng.normal(size=n))).astype(np.float32))
    rows[4] -= 60
    rows[5][:], rows[6][:] = 7, 0
    return baselines.right_aligned(np.concatenate(rows), np.concatenate([[0], np.cumsum(LENGTHS)]))


@pytest.fixture(scope="module")
def fits(batch):
    """The batch's, and those of the batch upside down with rubbish before each series.

    One after the other: compiled programs may be dropped between two tests.
    """
    values, lengths = batch
    rubbish = np.where(np.asarray(baselines.inside(values, lengths)), values, -1e3)
    upside_down = ets.fit_smoothing(rubbish[::-1], SEASON, lengths[::-1], recursions.FORMS)
    return ets.fit_smoothing(values, SEASON, lengths, recursions.FORMS), upside_down


@pytest.fixture(scope="module")
def fit(fits):
    return fits[0]


def theirs(y, form, **known):
    """statsmodels' model of a form."""
    module = pytest.importorskip("statsmodels.tsa.exponential_smoothing.ets")
    full = {"N": None, "A": "add", "M": "mul"}
    return module.ETSModel(
        y.astype(float),
        error=full[form[0]],
        trend=full[form[1]],
        damped_trend="d" in form,
        seasonal=full[form[-1]],
        seasonal_periods=SEASON if form[-1] != "N" else None,
        **known,
    )


@pytest.mark.parametrize("form", recursions.FORMS)
def test_likelihood_and_forecast_for_given_weights(batch, form):
    y = batch[0][0]
    trend, seasonal = form[1] == "A", form[-1] != "N"
    # the phase of the first value comes first in ours, last in theirs
    season = np.array([1.1, 1.2, 0.8, 0.9]) if form[-1] == "M" else np.array([1.0, 9, -7, -3])
    known = {"initial_level": 48.0}
    known |= {"initial_trend": 0.7} if trend else {}
    known |= {"initial_seasonal": season} if seasonal else {}
    model = theirs(y, form, initialization_method="known", **known)
    values = {"smoothing_level": 0.3, "smoothing_trend": 0.1, "damping_trend": 0.9}
    # statsmodels 0.14 and 0.15 divide a multiplicative season's error by the new level, the book
    # (and statsmodels' own formula) by what was expected of it
    gamma = values["smoothing_seasonal"] = 0.0 if form[-1] == "M" else 0.2
    result = model.smooth([values[name] for name in model.param_names if name in values])

    one = jax.tree.map(lambda x: x[0], recursions.Form.of([form]))
    weights = recursions.Weights(0.3, 0.1 * trend, gamma * seasonal, 0.9 if "d" in form else 1.0)
    first = jnp.asarray(season if seasonal else np.zeros(4), jnp.float32)
    state = recursions.State(jnp.float32(48), jnp.float32(0.7 * trend), first)
    there = jnp.ones(64, bool)
    after, means = run(one, weights, state, jnp.asarray(y), there)
    np.testing.assert_allclose(means, result.fittedvalues, rtol=1e-4)
    ahead = paths(one, weights, after, jnp.float32(1), jnp.zeros((1, 9)))[0]
    np.testing.assert_allclose(ahead, result.forecast(9), rtol=1e-4)

    error = (y - means) / np.where(form[0] == "M", means, 1)
    square = float((error**2).sum())
    likelihood = -32 * (np.log(2 * np.pi * square / 64) + 1)
    likelihood -= np.log(np.abs(means)).sum() if form[0] == "M" else 0
    assert likelihood == pytest.approx(result.llf, abs=0.05)


def test_multiplicative_season_by_the_book(batch):
    y = batch[0][0]
    level, slope, season, expected = 48.0, 0.7, [1.1, 1.2, 0.8, 0.9], []
    for t, value in enumerate(y):  # as Table 2.2 has it, of Holt and Winters
        base = level + 0.9 * slope
        expected.append(base * season[t])
        new = 0.3 * value / season[t] + 0.7 * base
        slope = 0.9 * slope + 0.1 / 0.3 * (new - base)
        season.append(0.2 * value / base + 0.8 * season[t])
        level = new
    one = jax.tree.map(lambda x: x[0], recursions.Form.of(["MAdM"]))
    state = recursions.State(jnp.float32(48), jnp.float32(0.7), jnp.array(season[:4], jnp.float32))
    weights = recursions.Weights(0.3, 0.1, 0.2, 0.9)
    after, means = run(one, weights, state, jnp.asarray(y), jnp.ones(64, bool))
    np.testing.assert_allclose(means, expected, rtol=1e-4)
    np.testing.assert_allclose(after.season, season[-4:], rtol=1e-4)


@pytest.mark.parametrize("form", recursions.FORMS)
def test_fit_is_as_likely_as_statsmodels(batch, fit, form):
    y, n = batch[0][0], 64
    result = theirs(y, form).fit(disp=False)
    k = 3 + 2 * (form[1] == "A") + ("d" in form) + 4 * (form[-1] != "N")
    ours = k + k * (k + 1) / (n - k - 1) - fit.aicc[0, recursions.FORMS.index(form)] / 2
    assert ours > result.llf - 1


def test_company_and_padding_change_nothing(fits):
    fit, again = fits
    np.testing.assert_array_equal(again.form[::-1], fit.form)
    np.testing.assert_allclose(again.log_likelihood[::-1], fit.log_likelihood, rtol=1e-3)


def test_each_series_has_a_form_that_fits_it(batch, fit):
    aicc = np.asarray(fit.aicc)
    np.testing.assert_array_equal(aicc.argmin(1)[[0, 1, 2, 4]], np.asarray(fit.form)[[0, 1, 2, 4]])
    assert recursions.FORMS[int(fit.form[0])][-1] == "M"  # as it was made
    assert recursions.FORMS[int(fit.form[3])] == "ANN" and np.isinf(aicc[3]).all()  # three values
    relative = [name[0] == "M" for name in recursions.FORMS]
    assert np.isinf(aicc[4, relative]).all() and np.isfinite(aicc[4, ~np.array(relative)]).all()
    w = fit.weights
    assert ((w.beta <= w.alpha) & (w.gamma <= 1 - w.alpha) & (w.alpha > 0) & (w.alpha < 1)).all()


@pytest.mark.slow
def test_the_weights_of_a_long_series_are_found():
    rng = np.random.default_rng(1)
    form = jax.tree.map(lambda x: x[0], recursions.Form.of(["AAdA"]))
    weights = recursions.Weights(0.5, 0.1, 0.2, 0.9)
    state = recursions.State(jnp.float32(100), jnp.float32(1), jnp.array([5.0, 3, -2, -6]))
    x = recursions.paths(
        form, weights, state, jnp.float32(1), jnp.asarray(rng.normal(size=(8, 1000)))
    )
    found = ets.fit_smoothing(x.astype(jnp.float32), 4, forms=["AAdA"])
    for name in ("alpha", "beta", "gamma"):
        assert np.median(getattr(found.weights, name)) == pytest.approx(
            getattr(weights, name), abs=0.05
        )
    np.testing.assert_allclose(found.sigma, 1, atol=0.1)


def test_quantiles_are_those_of_the_model_and_a_second_call_compiles_nothing(batch):
    values, lengths = batch
    forms, levels = ["ANN"], (0.1, 0.5, 0.9)
    fit = ets.fit_smoothing(values, 1, lengths, forms)
    found = ets.exponential_smoothing(values, 6, 1, lengths, levels, forms, samples=20_000)
    assert found.shape == (7, 6, 3)
    spread = np.asarray(found[..., 2] - found[..., 0]) / (2 * 1.2815515655446)
    variance = 1 + np.arange(6)[None] * np.asarray(fit.weights.alpha)[:, None] ** 2
    exact = np.asarray(fit.sigma)[:, None] * np.sqrt(variance)
    np.testing.assert_allclose(spread[:5], exact[:5], rtol=0.04)
    mean = ets.exponential_smoothing(values, 6, 1, lengths, forms=forms)
    assert (np.abs(found[..., 1] - mean) < 0.05 * exact)[:5].all()

    with compilations() as names:
        ets.exponential_smoothing(values + 1, 6, 1, lengths, levels, forms, samples=20_000)
        ets.exponential_smoothing(values + 1, 6, 1, lengths, forms=forms)
    assert not names


def test_constant_series_go_on(fit):
    ahead = ets.mean_path(fit, 5, recursions.FORMS)
    np.testing.assert_allclose(ahead[5:], [[7] * 5, [0] * 5], atol=1e-3)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match=r"forms must be among .*, got"):
        ets.fit_smoothing(np.ones((1, 9)), forms=["AMN"])
    with pytest.raises(ValueError, match="forms must include one without a season for season=1"):
        ets.fit_smoothing(np.ones((1, 9)), 1, forms=["ANA"])
    with pytest.raises(ValueError, match=r"values must have shape \(B, L\)"):
        ets.exponential_smoothing(np.ones(9), 3)


PASSENGERS = """112 118 132 129 121 135 148 148 136 119 104 118 115 126 141 135 125 149 170 170 158
133 114 140 145 150 178 163 172 178 199 199 184 162 146 166 171 180 193 181 183 218 230 242 209 191
172 194 196 196 236 235 229 243 264 272 237 211 180 201 204 188 235 227 234 264 302 293 259 229 203
229 242 233 267 269 270 315 364 347 312 274 237 278 284 277 317 313 318 374 413 405 355 306 271 306
315 301 356 348 355 422 465 467 404 347 305 336 340 318 362 348 363 435 491 505 404 359 310 337 360
342 406 396 420 472 548 559 463 407 362 405 417 391 419 461 472 535 622 606 508 461 390 432"""
LIKELY = {"ANA": (-586.04, -480.37), "MNM": (-530.60, -425.04), "MAM": (-522.49, -417.15)}
"""What statsmodels' ETSModel reaches on all 144 months, and on the first 120."""


@pytest.mark.slow
def test_airline_passengers_are_fitted_to_the_greatest_likelihood():
    """Seasons that do not change, and those that change as much as they may (ANA of 120)."""
    values = np.array(PASSENGERS.split(), np.float32)
    batch = np.stack([values, np.append(np.zeros(24, np.float32), values[:120])])
    fit = ets.fit_smoothing(batch, 12, [144, 120], tuple(LIKELY))
    n, k = np.array([[144.0], [120.0]]), np.array([[15.0, 15.0, 17.0]])
    likelihood = k + k * (k + 1) / (n - k - 1) - np.asarray(fit.aicc, np.float64) / 2
    assert (likelihood > np.array(list(LIKELY.values())).T - 0.1).all()


def test_quantiles_of_outliers_and_short_series_are_of_their_size():
    """A relative error as large as the mean has normal paths that cross 0."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(20, 60).astype(float)
    counts[-10] = 400
    rows = [np.append(np.ones(39), 1e6), counts, [1.0, 2, 4, 3, 5], [5.0]]
    history = forecast.from_arrays(["spike", "outlier", "short", "one"], rows)
    told = forecast.forecast(forecast.Baseline("ets"), history, 10)
    low, middle, high = np.moveaxis(told.quantiles[:, :, 0], -1, 0)
    mean, largest = told.mean[:, :, 0], np.array([[max(x)] for x in rows[:3]])
    assert np.isfinite(mean).all() and np.isfinite(low[:3]).all()
    assert (np.abs(np.stack([low, middle, high]))[:, :3] < 5 * largest).all()
    assert (np.abs(middle - mean) < 0.25 * (high - low))[:3].all()  # and not far from the mean
    assert (mean[3] == 5).all() and np.isnan(low[3]).all()  # no error to learn from


@pytest.mark.parametrize(
    ("row", "forms"),
    [([0.0, 3, 0, 5, 2, 0, 1, 4] * 2, ["MAM"]), ([3.0, 1, 4, 1, 5, 9], ["ANA"])],
)
def test_a_form_that_does_not_fit_is_refused(row, forms):
    with pytest.raises(ValueError, match="forms must include 'ANN' or one that fits each series"):
        ets.exponential_smoothing(np.array([row], np.float32), 2, SEASON, forms=forms)
