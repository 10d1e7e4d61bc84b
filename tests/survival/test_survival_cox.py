"""Cox's regression beside lifelines, scikit-survival, statsmodels and sums over risk sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops import survival
from jaxops.survival.outcomes import outcome
from jaxops.survival.risk_sets import means, risk_sets, slopes

pytestmark = pytest.mark.filterwarnings("ignore:::(lifelines|autograd|pandas|formulaic)")


@pytest.fixture(scope="module")
def rossi():
    return pytest.importorskip("lifelines.datasets").load_rossi()


def of_rossi(rossi, **options):
    x = rossi.drop(columns=["week", "arrest", *options.pop("drop", [])])
    return survival.cox_regression(
        x.to_numpy(), rossi["week"], rossi["arrest"], names=x.columns, **options
    )


def check_same(fit, theirs, rel=1e-4):
    summary = theirs.summary.loc[fit.names]
    own = fit.frame()
    np.testing.assert_allclose(own["coefficient"], summary["coef"], rtol=rel, atol=1e-6)
    np.testing.assert_allclose(own["error"], summary["se(coef)"], rtol=rel)
    np.testing.assert_allclose(own["z"], summary["z"], rtol=2 * rel, atol=1e-5)
    np.testing.assert_allclose(own["p"], summary["p"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(own["low"], summary["coef lower 95%"], rtol=1e-3, atol=1e-5)
    assert fit.log_likelihood == pytest.approx(theirs.log_likelihood_, rel=1e-6)


@pytest.fixture(scope="module")
def fit(rossi):
    return of_rossi(rossi)


def test_rossi_is_that_of_lifelines(rossi, fit):
    lifelines = pytest.importorskip("lifelines")
    theirs = lifelines.CoxPHFitter().fit(rossi, "week", "arrest")
    check_same(fit, theirs)
    ratio = theirs.log_likelihood_ratio_test().test_statistic
    assert 2 * (fit.log_likelihood - fit.null_log_likelihood) == pytest.approx(ratio, rel=1e-6)
    hazard = theirs.baseline_cumulative_hazard_["baseline cumulative hazard"]
    base = fit.baseline
    at = survival.Baseline([""], base.times, base.hazards).survival(np.zeros(1), hazard.index)
    np.testing.assert_allclose(-np.log(at[0]), hazard, rtol=1e-5)
    x = rossi.drop(columns=["week", "arrest"])[:20]
    curves = theirs.predict_survival_function(x)
    own = base.survival(fit.log_hazard(x.to_numpy()), curves.index.to_numpy())
    np.testing.assert_allclose(own.T, curves.to_numpy(), atol=1e-6)
    np.testing.assert_array_equal(
        base.median(fit.log_hazard(x.to_numpy())), theirs.predict_median(x)
    )


@pytest.mark.parametrize("cluster", [pytest.param(False, marks=pytest.mark.slow), True])
def test_robust_errors_are_those_of_lifelines(rossi, cluster):
    """Of different times, as theirs do not know ties."""
    lifelines = pytest.importorskip("lifelines")
    table = rossi.assign(week=rossi["week"] + np.arange(len(rossi)) / 1000)
    if cluster:
        made = of_rossi(table, cluster=rossi["prio"].to_numpy(), drop=["prio"])
        theirs = lifelines.CoxPHFitter().fit(table, "week", "arrest", cluster_col="prio")
    else:
        made = of_rossi(table, robust=True)
        theirs = lifelines.CoxPHFitter().fit(table, "week", "arrest", robust=True)
    check_same(made, theirs)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_robust_errors_with_ties_are_those_of_weights_of_the_rows(ties):
    """The sandwich is the sum of squared derivatives of the coefficients by the rows' weights."""
    rng = np.random.default_rng(0)
    n = 30
    x, time, event = rng.normal(size=(n, 2)), rng.integers(1, 8, n), rng.random(n) < 0.7

    def best(weights):
        """By Newton's method on weighted sums over risk sets, as R's coxph has them."""
        b = np.zeros(2)
        for _ in range(8):
            gradient, information = np.zeros(2), np.zeros((2, 2))
            for t in np.unique(time[event]):
                tied, r = (time == t) & event, weights * np.exp(x @ b)
                for place in range(tied.sum()):
                    share = place / tied.sum() if ties == "efron" else 0
                    p = r * (time >= t) - share * r * tied
                    p = p / p.sum()
                    mean, w = p @ x, weights[tied].mean()
                    gradient -= w * mean
                    information += w * (x.T @ (p[:, None] * x) - np.outer(mean, mean))
                gradient += weights[tied] @ x[tied]
            b = b + np.linalg.solve(information, gradient)
        return b

    slopes = [(best(1 + 1e-4 * row) - best(1 - 1e-4 * row)) / 2e-4 for row in np.eye(n)]
    made = survival.cox_regression(x, time, event, robust=True, ties=ties)
    np.testing.assert_allclose(made.coefficients, best(np.ones(n)), rtol=1e-6)
    np.testing.assert_allclose(made.covariance, np.transpose(slopes) @ slopes, rtol=1e-5)


def test_proportionality_is_that_of_lifelines(rossi, fit):
    lifelines = pytest.importorskip("lifelines")
    statistics = pytest.importorskip("lifelines.statistics")
    theirs = lifelines.CoxPHFitter().fit(rossi, "week", "arrest")
    summary = statistics.proportional_hazard_test(theirs, rossi, time_transform="km").summary
    x = rossi[fit.names].to_numpy()
    own = survival.proportionality_test(fit, x, rossi["week"], rossi["arrest"])
    with pytest.raises(ValueError, match="fit must have errors that are not robust"):
        survival.proportionality_test(fit._replace(robust=True), x, rossi["week"], rossi["arrest"])
    np.testing.assert_allclose(own["chi2"], summary.loc[fit.names, "test_statistic"], rtol=1e-3)
    np.testing.assert_allclose(own["p"], summary.loc[fit.names, "p"], rtol=1e-3)
    assert own["p"][fit.names.index("age")] < 0.01 < own["p"][fit.names.index("fin")]
    with pytest.raises(ValueError, match=r"features must have shape \(432, 7\), got \(432, 1\)"):
        survival.proportionality_test(fit, x[:, :1], rossi["week"], rossi["arrest"])


def test_strata_are_those_of_lifelines(rossi):
    lifelines = pytest.importorskip("lifelines")
    made = of_rossi(rossi, strata=rossi["wexp"], drop=["wexp"])
    theirs = lifelines.CoxPHFitter().fit(rossi, "week", "arrest", strata=["wexp"])
    check_same(made, theirs)
    hazard = theirs.baseline_cumulative_hazard_
    for place in (0, 1):
        at = made.baseline.survival(np.zeros(1), hazard.index.to_numpy(), np.full(1, place))
        np.testing.assert_allclose(-np.log(at[0]), hazard[place], rtol=1e-5)
    assert made.baseline.labels == ["0", "1"]
    assert set(made.baseline.frame()["stratum"]) == {"0", "1"}


@pytest.mark.slow
def test_breslow_is_that_of_statsmodels(rossi):
    phreg = pytest.importorskip("statsmodels.duration.hazard_regression")
    x = rossi[["age", "prio"]].to_numpy()
    rows = rossi["week"].to_numpy(), x, rossi["arrest"].to_numpy()
    theirs = phreg.PHReg(*rows, strata=rossi["fin"].to_numpy(), ties="breslow").fit()
    made = survival.cox_regression(
        x, rossi["week"], rossi["arrest"], strata=rossi["fin"], ties="breslow"
    )
    np.testing.assert_allclose(made.coefficients, theirs.params, rtol=1e-4)
    np.testing.assert_allclose(made.frame()["error"], theirs.bse, rtol=1e-4)
    assert made.log_likelihood == pytest.approx(theirs.llf, rel=1e-6)


def test_entry_times_are_those_of_lifelines(rossi):
    lifelines = pytest.importorskip("lifelines")
    entry = (np.arange(len(rossi)) * 7) % rossi["week"].to_numpy()
    names = ["age", "prio"]
    table = rossi[["week", "arrest", "fin", *names]].assign(entry=entry)
    theirs = lifelines.CoxPHFitter().fit(table, "week", "arrest", entry_col="entry", strata=["fin"])
    made = survival.cox_regression(
        rossi[names].to_numpy(), rossi["week"], rossi["arrest"], entry=entry,
        strata=rossi["fin"], names=names,
    )  # fmt: skip
    check_same(made, theirs)


@pytest.mark.slow
def test_rows_that_change_over_time_are_those_of_lifelines():
    lifelines = pytest.importorskip("lifelines")
    table = pytest.importorskip("lifelines.datasets").load_stanford_heart_transplants()
    roles = {"id_col": "id", "event_col": "event", "start_col": "start", "stop_col": "stop"}
    theirs = lifelines.CoxTimeVaryingFitter().fit(table, **roles)
    names = ["age", "year", "surgery", "transplant"]
    made = survival.cox_regression(
        table[names].to_numpy(), table["stop"], table["event"], entry=table["start"], names=names
    )
    summary = theirs.summary.loc[names]
    np.testing.assert_allclose(made.coefficients, summary["coef"], rtol=1e-4)
    np.testing.assert_allclose(made.frame()["error"], summary["se(coef)"], rtol=1e-4)
    assert made.log_likelihood == pytest.approx(theirs.log_likelihood_, rel=1e-6)


@pytest.fixture(scope="module")
def whas():
    """Features with standard deviation 1, and times and events, of scikit-survival."""
    x, y = pytest.importorskip("sksurv.datasets").load_whas500()
    x = x.astype(float)
    return (x - x.mean()) / x.std(ddof=0), y


def test_a_ridge_is_that_of_scikit_survival(whas):
    linear = pytest.importorskip("sksurv.linear_model")
    x, y = whas
    theirs = linear.CoxPHSurvivalAnalysis(alpha=30.0, ties="efron").fit(x, y)
    assert survival.Cox("efron", 30.0) == survival.Cox(l2=30.0)
    made = survival.cox_regression(x.to_numpy(), y["lenfol"], y["fstat"], l2=30.0)
    np.testing.assert_allclose(made.coefficients, theirs.coef_, rtol=1e-4, atol=1e-6)
    curves = theirs.predict_survival_function(x[:5])
    own = made.baseline.survival(made.log_hazard(x[:5].to_numpy()), curves[0].x)
    np.testing.assert_allclose(own, [curve.y for curve in curves], atol=1e-5)


@pytest.mark.parametrize("ratio", [1.0, 0.6])
def test_an_elastic_net_is_that_of_scikit_survival(whas, ratio):
    """In other units here: the penalty is that of standardised features."""
    linear = pytest.importorskip("sksurv.linear_model")
    x, y = whas
    alphas, unit = [0.1, 0.03, 0.005], np.arange(1.0, x.shape[1] + 1)
    theirs = linear.CoxnetSurvivalAnalysis(alphas=alphas, l1_ratio=ratio, tol=1e-14).fit(x, y)
    start = None
    for alpha, wanted in zip(alphas, theirs.coef_.T, strict=True):
        penalty = {"l1": len(x) * alpha * ratio, "l2": len(x) * alpha * (1 - ratio)}
        made = survival.cox_regression(
            3 + x.to_numpy() * unit, y["lenfol"], y["fstat"], ties="breslow", start=start, **penalty
        )
        np.testing.assert_allclose(made.coefficients * unit, wanted, rtol=1e-4, atol=1e-6)
        assert (made.coefficients != 0).tolist() == (wanted != 0).tolist()
        start = made.coefficients
    assert 0 < (theirs.coef_ == 0).sum(0)[0] < x.shape[1] and np.isnan(made.frame()["error"]).all()
    with pytest.raises(ValueError, match="got a fit with an l1 penalty, which has none"):
        survival.proportionality_test(made, x.to_numpy(), y["lenfol"], y["fstat"])


def test_a_lasso_of_more_features_than_rows_is_the_best():
    """By the conditions of a maximum: slopes of l1 where a coefficient is not 0, else at most."""
    rng = np.random.default_rng(0)
    n, features, l1 = 40, 60, 4.0
    x, stratum = rng.normal(size=(n, features)), rng.integers(0, 2, n)
    x[:, 1] = x[:, 0]  # the best is not one alone
    time, event = rng.exponential(np.exp(-x[:, 0] - x[:, 5])).round(1) + 0.1, rng.random(n) < 0.8
    made = survival.cox_regression(x, time, event, l1=l1, strata=stratum)
    z = (x - x.mean(0)) / x.std(0)
    b, sets = made.coefficients * x.std(0), risk_sets(outcome(time, event), stratum, True)
    gradient = slopes(np, z, sets, b).gradient
    some = b != 0
    np.testing.assert_allclose(gradient[some], l1 * np.sign(b[some]), atol=1e-5)
    assert np.abs(gradient).max() <= l1 + 1e-5 and 2 <= some.sum() < 30
    highest = np.abs(slopes(np, z, sets, 0 * b).gradient).max()
    none = survival.cox_regression(x, time, event, l1=1.001 * highest, strata=stratum)
    assert not none.coefficients.any() and none.log_likelihood == none.null_log_likelihood


@pytest.mark.slow
@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_other_data_sets_are_those_of_scikit_survival(ties):
    datasets = pytest.importorskip("sksurv.datasets")
    linear = pytest.importorskip("sksurv.linear_model")
    column = pytest.importorskip("sksurv.column")
    for load in (datasets.load_gbsg2, datasets.load_veterans_lung_cancer):
        x, y = load()
        x = column.encode_categorical(x).astype(float)
        event, time = (y[name] for name in y.dtype.names)
        x = x.loc[:, x[event].nunique() > 1]  # a level without an event has no coefficient
        z = x - x.mean()
        rank = [0, *(np.linalg.matrix_rank(z.iloc[:, : i + 1]) for i in range(z.shape[1]))]
        x = x.loc[:, np.diff(rank) > 0]
        theirs = linear.CoxPHSurvivalAnalysis(ties=ties).fit(x, y)
        made = survival.cox_regression(x.to_numpy(), time, event, ties=ties)
        np.testing.assert_allclose(made.coefficients, theirs.coef_, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_lung_is_that_of_lifelines():
    lifelines = pytest.importorskip("lifelines")
    table = pytest.importorskip("lifelines.datasets").load_lung().dropna()
    theirs = lifelines.CoxPHFitter().fit(table, "time", "status", fit_options={"precision": 1e-12})
    x = table.drop(columns=["time", "status"])
    made = survival.cox_regression(x.to_numpy(), table["time"], table["status"], names=x.columns)
    check_same(made, theirs)


def derivatives(xp, x, sets, b):
    at = slopes(xp, x, sets, b)
    mean = means(xp, x, sets, at)
    return at.value, at.gradient, (x * (at.w * at.hazard)[:, None]).T @ x - mean.T @ mean


@jax.jit
def on_device(x, sets, b):
    return derivatives(jnp, jnp.asarray(x, jnp.float32), sets, jnp.asarray(b, jnp.float32))


def brute(x, rows, stratum, b, efron):
    """The log-likelihood, by a sum over the rows at risk for each event time of each stratum."""
    score, total = x @ b, 0.0
    entry = np.full(len(x), -np.inf) if rows.entry is None else rows.entry
    for s in np.unique(stratum):
        for t in np.unique(rows.time[(rows.event > 0) & (stratum == s)]):
            at_risk = (stratum == s) & (entry < t) & (rows.time >= t)
            tied = (stratum == s) & (rows.time == t) & (rows.event > 0)
            weight, own = np.exp(score[at_risk]).sum(), np.exp(score[tied]).sum()
            for place in range(tied.sum()):
                total -= np.log(weight - efron * place / tied.sum() * own)
            total += score[tied].sum()
    return total


@pytest.mark.parametrize("efron", [True, False])
@pytest.mark.parametrize("late", [True, False])
def test_derivatives_are_those_of_a_sum_over_risk_sets(efron, late):
    rng = np.random.default_rng(1)
    n = 40
    x, b = rng.normal(size=(n, 2)), np.array([0.4, -0.7])
    time = rng.integers(2, 12, n)
    entry = np.maximum(time - rng.integers(1, 8, n), 0) if late else None
    rows, stratum = outcome(time, rng.random(n) < 0.7, entry), rng.integers(0, 3, n)
    sets = risk_sets(rows, stratum, efron)
    value, gradient, information = derivatives(np, x, sets, b)

    def wanted(b):
        return brute(x, rows, stratum, b, efron)

    assert value == pytest.approx(wanted(b), rel=1e-12)
    steps = 1e-4 * np.eye(2)
    slopes = [(wanted(b + d) - wanted(b - d)) / 2e-4 for d in steps]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-6)
    curved = [
        [-(wanted(b + d + e) - wanted(b + d - e) - wanted(b - d + e) + wanted(b - d - e)) / 4e-8
         for e in steps] for d in steps
    ]  # fmt: skip
    np.testing.assert_allclose(information, curved, rtol=1e-4, atol=1e-4)
    if late and efron:  # the same in float32 on the device
        own = on_device(x, sets, b)
        assert float(own[0]) == pytest.approx(value, rel=1e-5)
        np.testing.assert_allclose(own[1], gradient, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(own[2], information, rtol=1e-4, atol=1e-4)


def test_a_small_stratum_behind_a_large_one_is_exact():
    """A running sum over all strata would leave the small one the rounding of the large one."""
    n = 4_000
    time = np.concatenate([np.arange(n) + 1.0, [1.0, 2.0, 3.0]])
    stratum = np.concatenate([np.ones(n, int), np.zeros(3, int)])
    event = np.concatenate([np.zeros(n, bool), [True] * 3])
    x = np.concatenate([np.full(n, 4.0), [-0.5, 0.1, 0.4]])[:, None]
    sets = risk_sets(outcome(time, event), stratum, True)
    got = on_device(x, sets, np.ones(1))
    alone = risk_sets(outcome(time[n:], event[n:]), stratum[n:], True)
    wanted = derivatives(np, x[n:], alone, np.ones(1))
    assert float(got[0]) == pytest.approx(wanted[0], rel=1e-4)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        ([[1.0], [1.0], [1.0], [1.0]], {}, "age must vary, got 1 in every row"),
        ([[1.0], [np.inf], [1.0], [2.0]], {}, "age must be finite, got inf in row 1"),
        ([[1.0], [2.0], [1.0], [2.0]], {"ties": "exact"}, 'ties must be "efron" or "breslow"'),
        ([[1.0], [2.0], [1.0], [2.0]], {"l2": -1}, "l2 must be finite and at least 0, got -1"),
        ([[1.0], [2.0], [1.0], [2.0]], {"l1": 1, "robust": True}, "l1 must be 0 with robust"),
        ([[1.0], [2.0], [1.0], [2.0]], {"start": [0, 1]}, "start must be 1 finite numbers"),
        ([[4.0], [3.0], [2.0], [1.0]], {}, "the coefficient of age must be finite, got .* growing"),
        ([[4.0], [3.0]], {}, r"features must have shape \(4, P\), P at least 1, got \(2, 1\)"),
        ([[1.0], [2.0], [1.0], [2.0]], {"strata": [1, 2]}, r"strata must have shape \(4,\)"),
    ],
)
def test_wrong_regressions(x, options, message):
    with pytest.raises(ValueError, match=message):
        survival.cox_regression(x, [1, 2, 3, 4], [1, 1, 1, 1], names=["age"], **options)


def test_a_start_too_far_away_is_not_taken():
    rows = [[0.0], [1.0], [0.0], [1.0]], [4, 2, 3, 5], [1, 1, 1, 0]
    wanted = survival.cox_regression(*rows)
    made = survival.cox_regression(*rows, start=[1000.0])
    np.testing.assert_allclose(made.coefficients, wanted.coefficients, rtol=1e-6)
    assert made.log_likelihood == pytest.approx(wanted.log_likelihood, rel=1e-12)


def test_features_that_determine_each_other():
    x = np.random.default_rng(0).normal(size=(20, 3))
    x[:, 2] = x[:, 0] - x[:, 1]
    with pytest.raises(ValueError, match="features must not determine each other, got x0, x1, x2"):
        survival.cox_regression(x, np.arange(20) + 1, np.ones(20))
    with pytest.raises(ValueError, match="event must be an event in some row, got 20 censored"):
        survival.cox_regression(x, np.arange(20) + 1, np.zeros(20))
    penalised = survival.cox_regression(x, np.arange(20) + 1, np.ones(20), l2=1.0)
    assert np.isfinite(penalised.frame()["error"]).all()


def test_a_thinned_baseline_is_near_the_whole_one():
    rng = np.random.default_rng(0)
    rows = outcome(rng.exponential(size=20_000), np.ones(20_000, int))
    whole = survival.breslow(rows, np.zeros(20_000))
    made = whole.thinned()
    assert len(made.times[0]) <= 1024 and made.hazards[0][-1] == whole.hazards[0][-1]
    scores, at = np.array([-3.0, 0.0, 3.0, 6.0]), np.sort(rows.time)[::7]
    high = made.survival(scores, at) - whole.survival(scores, at)
    assert high.min() >= 0 and high.max() < np.log(whole.hazards[0][-1] * 20_000) / 1023 / np.e
    few = survival.breslow(rows.take(slice(1000)), np.zeros(1000))
    np.testing.assert_array_equal(few.thinned().times[0], few.times[0])
