"""Concordance, Brier score and calibration beside scikit-survival, lifelines and plain loops."""

import numpy as np
import pytest

from jaxops import survival

RNG = np.random.default_rng(0)
N = 90
TIME = RNG.integers(1, 30, N).astype(float)
EVENT = (RNG.random(N) < 0.6).astype(int)
RISK = RNG.integers(0, 12, N) / 4 - TIME / 40 * (RNG.random(N) < 0.5)
TIMES = np.array([2.0, 5.0, 9.0, 14.0, 20.0])
CURVES = np.exp(-np.exp(RISK)[:, None] * TIMES[None] / 30).round(2)  # with ties
TRAIN = np.concatenate([TIME, RNG.integers(1, 40, 60)]), np.concatenate([EVENT, np.arange(60) % 2])


def structured(time, event):
    return np.array(list(zip(event.astype(bool), time, strict=True)), [("e", bool), ("t", float)])


def pairs(time, event, cause=1):
    for i in np.flatnonzero(event == cause):
        for j in range(len(time)):
            if time[i] < time[j] or (time[i] == time[j] and event[j] == 0):
                yield i, j


def test_harrell_is_that_of_loops_scikit_survival_and_lifelines():
    metrics = pytest.importorskip("sksurv.metrics")
    utils = pytest.importorskip("lifelines.utils")
    got = survival.concordance(TIME, EVENT, RISK)
    values = [(RISK[i] > RISK[j]) + (RISK[i] == RISK[j]) / 2 for i, j in pairs(TIME, EVENT)]
    assert got == pytest.approx(np.mean(values), abs=1e-12)
    theirs = metrics.concordance_index_censored(EVENT.astype(bool), TIME, RISK)[0]
    assert got == pytest.approx(theirs, abs=1e-12)
    assert got == pytest.approx(utils.concordance_index(TIME, -RISK, EVENT), abs=1e-12)
    assert np.isnan(survival.concordance([1, 1], [1, 1], [1.0, 2.0]))


@pytest.mark.parametrize("seed", range(5))
def test_pairs_are_counted_as_by_loops(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(2, 40))
    time, event = rng.integers(0, 6, n), rng.integers(0, 2, n)
    risk = rng.integers(0, 5, n) / 3
    values = [(risk[i] > risk[j]) + (risk[i] == risk[j]) / 2 for i, j in pairs(time, event)]
    got = survival.concordance(time, event, risk)
    assert got == pytest.approx(np.mean(values), abs=1e-12) if values else np.isnan(got)


def test_antolini_is_that_of_loops():
    place = np.searchsorted(TIMES, TIME, side="right")
    padded = np.concatenate([np.ones((N, 1)), CURVES], 1)
    values = []
    for i, j in pairs(TIME, EVENT):
        a, b = padded[i, place[i]], padded[j, place[i]]
        values.append((a < b) + (a == b) / 2)
    got = survival.concordance_td(TIME, EVENT, CURVES, TIMES)
    assert got == pytest.approx(np.mean(values), abs=1e-12)
    # of proportional hazards on a grid of all times it is Harrell's
    every = np.unique(TIME)
    curves = np.exp(-np.exp(RISK)[:, None] * every[None] / 30)
    wanted = survival.concordance(TIME, EVENT, RISK)
    assert survival.concordance_td(TIME, EVENT, curves, every) == pytest.approx(wanted, abs=1e-12)


def test_uno_is_that_of_scikit_survival():
    metrics = pytest.importorskip("sksurv.metrics")
    censoring = survival.censoring_curve(*TRAIN)
    for until in (None, 15.0):
        theirs = metrics.concordance_index_ipcw(
            structured(*TRAIN), structured(TIME, EVENT), RISK, tau=until
        )[0]
        got = survival.concordance_ipcw(TIME, EVENT, RISK, censoring, until or np.inf)
        assert got == pytest.approx(theirs, abs=1e-9)


def test_brier_is_that_of_scikit_survival():
    metrics = pytest.importorskip("sksurv.metrics")
    known = structured(*TRAIN), structured(TIME, EVENT)
    censoring = survival.censoring_curve(*TRAIN)
    _, wanted = metrics.brier_score(*known, CURVES, TIMES)
    got = survival.brier_score(TIME, EVENT, CURVES, TIMES, censoring)
    np.testing.assert_allclose(got, wanted, atol=1e-12)
    whole = survival.integrated_brier_score(TIME, EVENT, CURVES, TIMES, censoring)
    assert whole == pytest.approx(metrics.integrated_brier_score(*known, CURVES, TIMES), abs=1e-12)


def test_the_figures_of_an_evaluation_are_those_of_the_functions():
    made = survival.score(np.arange(N), TIME, EVENT, RISK, CURVES, TIMES)
    figures = made.figures()
    wanted = {
        "concordance": survival.concordance(TIME, EVENT, RISK),
        "concordance_td": survival.concordance_td(TIME, EVENT, CURVES, TIMES),
        "concordance_ipcw": survival.concordance_ipcw(TIME, EVENT, RISK, until=20.0001),
        "integrated_brier": survival.integrated_brier_score(TIME, EVENT, CURVES, TIMES),
    }
    assert figures == pytest.approx(wanted, abs=1e-9)
    for name, value in figures.items():
        _, low, high = made.interval(name)
        assert low < value < high
    half = np.arange(0, N, 2)
    part = made.part(half).figures()["concordance_td"]
    wanted_td = survival.concordance_td(TIME[half], EVENT[half], CURVES[half], TIMES)
    assert part == pytest.approx(wanted_td, abs=1e-9)
    worse = survival.score(np.arange(N), TIME, EVENT, 0 * RISK, 0.5 + 0 * CURVES, TIMES)
    assert made.paired(worse, "concordance").difference == pytest.approx(
        figures["concordance"] - 0.5
    )


def test_a_resample_is_scored_as_its_rows(monkeypatch):
    made = survival.score(np.arange(N), TIME, EVENT, RISK, CURVES, TIMES)
    rows = RNG.integers(0, N, N)
    wanted = survival.concordance_td(TIME[rows], EVENT[rows], CURVES[rows], TIMES)
    assert made.wholes["concordance_td"](rows) == pytest.approx(wanted, abs=1e-9)
    monkeypatch.setattr("jaxops.survival.evaluation.PAIRS", 0)
    other = survival.score(np.arange(N), TIME, EVENT, RISK, CURVES, TIMES)
    for name in ("concordance", "concordance_ipcw", "concordance_td"):
        by_sorting = other.wholes[name](rows)
        assert made.wholes[name](rows) == pytest.approx(by_sorting, abs=1e-9)
    assert np.isnan(other.interval("concordance_td").low)


def test_causes_are_scored_one_by_one():
    cause = EVENT * (1 + np.arange(N) % 2)
    incidence = np.stack([0.6 * (1 - CURVES), 0.4 * (1 - CURVES)], 1)
    made = survival.score(np.arange(N), TIME, cause, RISK, 1 - incidence.sum(1), TIMES, incidence)
    assert set(made.figures()) == {"concordance_td_1", "concordance_td_2", "integrated_brier"}
    place = np.searchsorted(TIMES, TIME, side="right")
    padded = np.concatenate([np.ones((N, 1)), 1 - incidence[:, 1]], 1)
    values = []
    for i, j in pairs(TIME, cause, cause=2):
        a, b = padded[i, place[i]], padded[j, place[i]]
        values.append((a < b) + (a == b) / 2)
    assert made.figures()["concordance_td_2"] == pytest.approx(np.mean(values), abs=1e-9)


def test_calibration_by_bins():
    rng = np.random.default_rng(2)
    hazard = np.exp(rng.normal(size=4000))
    time = rng.exponential(1 / hazard)
    seen = np.minimum(time, rng.exponential(2.0, 4000))
    p = 1 - np.exp(-hazard * 0.5)
    made = survival.calibration(seen, time <= seen, p, at=0.5, bins=8)
    assert made.rows.sum() == 4000 and (np.diff(made.predicted) > 0).all()
    np.testing.assert_allclose(made.observed, made.predicted, atol=0.06)
    assert ((made.low < made.predicted) & (made.predicted < made.high)).sum() >= 6
    assert made.frame().shape == (8, 5)


def test_sorting_is_quick():
    n = 100_000
    rng = np.random.default_rng(0)
    time = rng.exponential(size=n)
    got = survival.concordance(time, rng.random(n) < 0.5, -time + rng.normal(size=n))
    assert 0.6 < got < 0.8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: survival.concordance([1, 2], [1, 1], [1.0]), r"risk must have shape \(2,\)"),
        (lambda: survival.concordance([1, 2], [1, 1], [1, np.nan]), "risk must be finite.* row 1"),
        (
            lambda: survival.concordance_td([1, 2], [1, 1], [[1, 1], [1, 1]], [2, 1]),
            "times must be sorted",
        ),
        (
            lambda: survival.integrated_brier_score([1, 2], [1, 1], [[1], [1]], [1]),
            "times must be at least 2, got 1",
        ),
        (
            lambda: survival.brier_score([2, 3, 1], [1, 1, 0], np.ones((3, 1)), [2],
                                         survival.censoring_curve([1], [0])),
            "times must be such that not all are censored before, got 2 of row 0",
        ),
        (
            lambda: survival.calibration([1, 2], [1, 1], [0.5, 1.5], 1.0),
            r"probability must be in \[0, 1\], got 0.5 to 1.5",
        ),
        (
            lambda: survival.calibration([1, 2], [1, 1], [0.5, 0.5], 1.0),
            "bins must be 1 to 2",
        ),
    ],
)  # fmt: skip
def test_wrong_scores(call, message):
    with pytest.raises(ValueError, match=message):
        call()
