"""Accelerated failure times beside lifelines."""

import numpy as np
import pytest

from jaxops import survival

pytestmark = pytest.mark.filterwarnings("ignore:::(lifelines|autograd|pandas|formulaic)")
FITTERS = {
    "weibull": ("WeibullAFTFitter", "lambda_", "rho_", -1),
    "log-normal": ("LogNormalAFTFitter", "mu_", "sigma_", 1),
    "log-logistic": ("LogLogisticAFTFitter", "alpha_", "beta_", -1),
}


@pytest.fixture(scope="module")
def rossi():
    return pytest.importorskip("lifelines.datasets").load_rossi()


@pytest.mark.parametrize(
    ("law", "late"),
    [
        ("weibull", False),
        ("log-normal", True),
        pytest.param("weibull", True, marks=pytest.mark.slow),
        pytest.param("log-logistic", True, marks=pytest.mark.slow),
    ],
)
def test_a_law_is_that_of_lifelines(rossi, law, late):
    lifelines = pytest.importorskip("lifelines")
    fitter, location, scale, sign = FITTERS[law]
    table = rossi[["week", "arrest", "fin", "age", "prio"]].copy()
    entry = (np.arange(len(table)) * 5) % (table["week"].to_numpy() // 2 + 1)
    options = {}
    if late:
        table["entry"] = entry
        options = {"entry_col": "entry"}
    theirs = getattr(lifelines, fitter)().fit(
        table, "week", "arrest", fit_options={"ftol": 1e-14}, **options
    )
    names = ["fin", "age", "prio"]
    made = survival.aft_regression(
        table[names].to_numpy(),
        table["week"],
        table["arrest"],
        entry=entry if late else None,
        law=law,
        names=names,
    )
    order = [(location, "Intercept"), *((location, name) for name in names), (scale, "Intercept")]
    summary = theirs.summary.loc[order]
    signs = np.array([1, 1, 1, 1, sign])
    own = made.frame()
    np.testing.assert_allclose(own["coefficient"] * signs, summary["coef"], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(own["error"], summary["se(coef)"], rtol=1e-4)
    assert made.log_likelihood == pytest.approx(theirs.log_likelihood_, rel=1e-9)
    if not late:
        x = table[names][:10]
        curves = theirs.predict_survival_function(x)
        located = made.location(x.to_numpy())
        np.testing.assert_allclose(
            made.law.survival(located, curves.index.to_numpy()).T, curves, atol=1e-5
        )
        np.testing.assert_allclose(
            made.law.median(located), theirs.predict_median(x).to_numpy(), rtol=1e-4
        )


@pytest.mark.parametrize("law", FITTERS)
def test_features_that_are_nearly_equal(law):
    """By the same model in features that are not: u a + (u + epsilon v) d."""
    epsilon = 2e-3
    rng = np.random.default_rng(0)
    u, v = rng.normal(size=(2, 200))
    until = np.exp(1 + u + 0.5 * v + 0.7 * rng.logistic(size=200))
    rows = np.minimum(until, 9.0), until < 9.0
    plain = survival.aft_regression(np.stack([u, v], 1), *rows, law=law)
    close = survival.aft_regression(np.stack([u, u + epsilon * v], 1), *rows, law=law)
    change = np.array([[1, 0, 0, 0], [0, 1, -1 / epsilon, 0], [0, 0, 1 / epsilon, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(close.coefficients, change @ plain.coefficients, rtol=1e-6)
    wanted = change @ plain.covariance @ change.T
    np.testing.assert_allclose(close.covariance, wanted, rtol=1e-5)
    assert close.log_likelihood == pytest.approx(plain.log_likelihood, abs=1e-9)


@pytest.mark.parametrize("law", FITTERS)
def test_a_coefficient_without_end_is_named(law):
    """All rows of one value outlive the others' events."""
    x = np.arange(20) % 2
    with pytest.raises(ValueError, match="the coefficient of paid must be finite"):
        survival.aft_regression(x[:, None], 1 + np.arange(20) // 2, x == 0, law=law, names=["paid"])


def test_the_restricted_mean_is_the_integral():
    quad = pytest.importorskip("scipy.integrate").quad
    for law in (survival.Law("weibull", 2.5), survival.Law("log-normal", 0.7)):
        wanted, _ = quad(lambda t, law=law: law.survival(np.ones(1), np.array([t]))[0, 0], 0, 7)
        assert law.mean(np.ones(1), 7.0)[0] == pytest.approx(wanted, rel=1e-4)


def test_a_start_too_far_away_is_not_taken():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))  # of the shape of another test
    rows = x, np.exp(x[:, 0]) * rng.weibull(2.0, 200), np.arange(200) % 5 > 0
    wanted = survival.aft_regression(*rows)
    for start in ([0.0, 50.0, 0.0, 0.0], [0.0, 0.0, 0.0, -20.0], [0.0, 0.0, 0.0, 30.0]):
        made = survival.aft_regression(*rows, start=start)
        np.testing.assert_allclose(made.coefficients, wanted.coefficients, rtol=1e-6)


def test_wrong_laws():
    with pytest.raises(ValueError, match="law must be one of weibull, log-normal, log-logistic"):
        survival.aft_regression([[1.0], [2.0]], [1, 2], [1, 1], law="gamma")
    with pytest.raises(ValueError, match=r"time must be above 0 .* got 0 in row 1"):
        survival.aft_regression([[1.0], [2.0]], [1, 0], [1, 0])
