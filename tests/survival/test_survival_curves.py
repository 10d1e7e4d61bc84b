"""Curves and tests of groups beside lifelines, scikit-survival and statsmodels."""

import numpy as np
import pytest

from jaxops import survival

pytestmark = pytest.mark.filterwarnings("ignore")
RNG = np.random.default_rng(0)
N = 120
TIME = RNG.integers(1, 25, N).astype(float)  # many ties
ENTRY = np.maximum(TIME - RNG.integers(1, 20, N), 0)
EVENT = (RNG.random(N) < 0.6).astype(int)
GROUPS = RNG.choice(["a", "b", "c"], N)
STRATA = RNG.choice([1, 2], N)


@pytest.mark.parametrize("entry", [None, ENTRY])
def test_kaplan_meier_is_that_of_lifelines(entry):
    lifelines = pytest.importorskip("lifelines")
    curve = survival.kaplan_meier(TIME, EVENT, entry)
    theirs = lifelines.KaplanMeierFitter().fit(TIME, EVENT, entry=entry)
    at = theirs.survival_function_.index.to_numpy()
    np.testing.assert_allclose(curve.at(at), theirs.survival_function_.to_numpy()[:, 0], atol=1e-12)
    bounds = theirs.confidence_interval_.to_numpy()
    kept = (curve.at(at) < 1) & (curve.at(at) > 0)
    for own, their in zip((curve.low, curve.high), bounds.T, strict=True):
        own = curve._replace(estimate=own).at(at)
        np.testing.assert_allclose(own[kept], their[kept], atol=1e-12)
    table = theirs.event_table
    later, at_risk = table.index > 0, table["at_risk"] - table["entrance"]
    np.testing.assert_array_equal(curve.risk_at(table.index[later]), at_risk[later])
    assert curve.median == theirs.median_survival_time_


def test_kaplan_meier_where_nothing_happens():
    curve = survival.kaplan_meier([1.0, 2.0], [0, 0])
    assert curve.estimate.tolist() == curve.low.tolist() == curve.high.tolist() == [1, 1]
    assert curve.median == np.inf and curve.risk_at([0, 2, 3]).tolist() == [2, 1, 0]


def test_nelson_aalen_is_that_of_lifelines():
    lifelines = pytest.importorskip("lifelines")
    curve = survival.nelson_aalen(TIME, EVENT, ENTRY)
    theirs = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False)
    theirs.fit(TIME, EVENT, entry=ENTRY)
    at = theirs.cumulative_hazard_.index.to_numpy()
    np.testing.assert_allclose(curve.at(at), theirs.cumulative_hazard_.to_numpy()[:, 0], atol=1e-12)
    bounds = theirs.confidence_interval_.to_numpy()
    for own, their in zip((curve.low, curve.high), bounds.T, strict=True):
        np.testing.assert_allclose(curve._replace(estimate=own).at(at), their, atol=1e-12)


def test_aalen_johansen_is_that_of_scikit_survival():
    nonparametric = pytest.importorskip("sksurv.nonparametric")
    cause = EVENT * RNG.integers(1, 3, N)
    cause[TIME.max() == TIME] = 0  # else their variance divides by 0
    curves = survival.aalen_johansen(TIME, cause)
    times, incidence, bounds = nonparametric.cumulative_incidence_competing_risks(
        cause, TIME, conf_type="log-log", var_type="Dinse_Approx"
    )
    for k, curve in enumerate(curves):
        np.testing.assert_array_equal(curve.times, times)
        np.testing.assert_allclose(curve.estimate, incidence[k + 1], atol=1e-12)
        kept = curve.estimate > 0
        np.testing.assert_allclose(curve.low[kept], bounds[k + 1, 0][kept], atol=1e-9)
        np.testing.assert_allclose(curve.high[kept], bounds[k + 1, 1][kept], atol=1e-9)
    everything = survival.kaplan_meier(TIME, cause > 0).estimate
    np.testing.assert_allclose(1 - sum(c.estimate for c in curves), everything, atol=1e-12)


def test_aalen_johansen_with_entry_times_adds_up():
    cause = EVENT * (1 + (np.arange(N) % 2))
    curves = survival.aalen_johansen(TIME, cause, ENTRY)
    everything = survival.kaplan_meier(TIME, cause > 0, ENTRY).estimate
    np.testing.assert_allclose(1 - sum(c.estimate for c in curves), everything, atol=1e-12)


@pytest.mark.parametrize(
    ("weights", "options"),
    [
        ("log-rank", {}),
        ("wilcoxon", {"weightings": "wilcoxon"}),
        ("tarone-ware", {"weightings": "tarone-ware"}),
        ((0.5, 1.0), {"weightings": "fleming-harrington", "p": 0.5, "q": 1.0}),
    ],
)
def test_log_rank_is_that_of_lifelines(weights, options):
    statistics = pytest.importorskip("lifelines.statistics")
    made = survival.log_rank(TIME, EVENT, GROUPS, weights=weights)
    theirs = statistics.multivariate_logrank_test(TIME, GROUPS, EVENT, **options)
    assert made.statistic == pytest.approx(theirs.test_statistic, rel=1e-9)
    assert made.p == pytest.approx(theirs.p_value, rel=1e-9) and made.degrees == 2
    assert made.frame()["group"].tolist() == ["a", "b", "c"]


@pytest.mark.parametrize("weights", ["log-rank", "wilcoxon"])
@pytest.mark.parametrize("more", [{"strata": STRATA}, {"entry": ENTRY}])
def test_log_rank_with_strata_or_entry_is_that_of_statsmodels(weights, more):
    survfunc = pytest.importorskip("statsmodels.duration.survfunc")
    made = survival.log_rank(TIME, EVENT, GROUPS, weights=weights, **more)
    kind = {"log-rank": None, "wilcoxon": "gb"}[weights]
    statistic, p = survfunc.survdiff(TIME, EVENT, GROUPS, weight_type=kind, **more)
    assert made.statistic == pytest.approx(statistic, rel=1e-9)
    assert made.p == pytest.approx(p, rel=1e-7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, -2.0], [1, 1]), "time must be finite and at least 0, got -2 in row 1"),
        (([1.0, np.nan], [1, 1]), "time must be finite and at least 0, got nan in row 1"),
        (([1.0, 2.0], [1, 2]), "event must be 0 or 1, got 2 in row 1 .1 such row."),
        (([1.0, 2.0], [0.5, np.nan]), "event must be 0 or 1, got 0.5 in row 0 .2 such rows."),
        (([1.0, 2.0], [1]), r"event must have shape \(2,\), got \(1,\)"),
        (([1.0, 2.0], [1, 1], [0.0, 2.0]), "entry must be below time, got 2 and 2 in row 1"),
        (([1.0, 2.0], [1, 1], [0.0, -1.0]), "entry must be finite and at least 0, got -1 in row 1"),
        (([], []), r"time must have shape \(N,\), N at least 1, got \(0,\)"),
        ((["a"], [1]), "time must be numbers, got <U1"),
    ],
)
def test_wrong_times_and_events(arguments, message):
    with pytest.raises(ValueError, match=message):
        survival.kaplan_meier(*arguments)


def test_wrong_tests():
    with pytest.raises(ValueError, match="groups must be at least 2, got 'a' alone"):
        survival.log_rank([1, 2], [1, 1], ["a", "a"])
    with pytest.raises(ValueError, match="weights must be"):
        survival.log_rank([1, 2], [1, 1], ["a", "b"], weights="peto")
    with pytest.raises(ValueError, match="groups must be at risk together"):
        survival.log_rank([1, 4], [1, 1], ["a", "b"], entry=[0, 2])
    with pytest.raises(ValueError, match="event must be an event in some row, got 2 censored"):
        survival.aalen_johansen([1, 2], [0, 0])
    with pytest.raises(ValueError, match="coverage must be in"):
        survival.kaplan_meier([1, 2], [0, 0], coverage=95)


def test_a_picture_has_bands_and_numbers_at_risk(tmp_path):
    pytest.importorskip("matplotlib")
    curves = {name: survival.kaplan_meier(TIME[name == GROUPS], EVENT[name == GROUPS])
              for name in "ab"}  # fmt: skip
    figure = survival.plot_curves(curves, tmp_path / "curves.png", time="months")
    axes, table = figure.axes
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    assert len(axes.lines) == len(axes.collections) == 2
    numbers = [text.get_text() for text in table.texts]
    assert str((GROUPS == "a").sum()) in numbers and str((GROUPS == "b").sum()) in numbers
    with pytest.raises(ValueError, match="curves must be 1 to 6, got 0"):
        survival.plot_curves({})
