"""Accelerated failure times beside lifelines."""

import numpy as np
import pytest

from jaxops import survival

pytestmark = pytest.mark.filterwarnings("ignore")
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
        pytest.param("log-logistic", False, marks=pytest.mark.slow),
        pytest.param("log-normal", False, marks=pytest.mark.slow),
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
    assert made.log_likelihood == pytest.approx(theirs.log_likelihood_, rel=1e-6)
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


def test_the_restricted_mean_is_the_integral():
    quad = pytest.importorskip("scipy.integrate").quad
    for law in (survival.Law("weibull", 2.5), survival.Law("log-normal", 0.7)):
        wanted, _ = quad(lambda t, law=law: law.survival(np.ones(1), np.array([t]))[0, 0], 0, 7)
        assert law.mean(np.ones(1), 7.0)[0] == pytest.approx(wanted, rel=1e-4)


def test_wrong_laws():
    with pytest.raises(ValueError, match="law must be one of weibull, log-normal, log-logistic"):
        survival.aft_regression([[1.0], [2.0]], [1, 2], [1, 1], law="gamma")
    with pytest.raises(ValueError, match=r"time must be above 0 .* got 0 in row 1"):
        survival.aft_regression([[1.0], [2.0]], [1, 0], [1, 0])
