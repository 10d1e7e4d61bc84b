"""Prediction sets, groups, weights, risk and CV+: coverage in simulation, and MAPIE's results."""

import numpy as np
import pytest
from sklearn.model_selection import StratifiedShuffleSplit

from jaxops.trust import conformal as c

N, CLASSES = 60, 4


def drawn(rng, rows, classes=CLASSES):
    """Probabilities of an overconfident classifier, and labels from the true ones."""
    z = rng.normal(size=(rows, classes)) * 2
    true, told = (np.exp(z / t) / np.exp(z / t).sum(1, keepdims=True) for t in (1.0, 0.7))
    label = (true.cumsum(1) < rng.random((rows, 1))).sum(1)
    return told, label


def is_near(covered, coverage, calibration, tests):
    """Whether a share over repeats of one calibration and tests is within 4 deviations."""
    repeats = len(covered)
    within = coverage * (1 - coverage)
    sd = np.sqrt((within / (calibration + 2) + within / tests) / repeats)
    return abs(np.mean(covered) - coverage) < 4 * sd


def test_rows_needed_are_the_fewest_with_a_finite_margin():
    for coverage in (0.5, 0.8, 0.9, 0.95, 0.99, 2 / 3):
        needed = c.rows_needed(coverage)
        scores = np.arange(1.0, needed + 1)
        assert c.margin(scores, coverage) == needed  # the largest
        if needed > 1:
            assert c.margin(scores[1:], coverage) == np.inf
    with pytest.raises(ValueError, match=r"rows must be at least 19 for a coverage of 0.95, got 7"):
        c.check_enough(7, 0.95)


@pytest.mark.parametrize("coverage", [0.9, 0.75])
def test_the_coverage_is_exactly_that_of_the_rank(coverage):
    """Of N exchangeable scores and the next one, the next is among the k smallest with k/(N+1)."""
    rng = np.random.default_rng(0)
    repeats, tests = 3000, 20
    scores = rng.exponential(size=(N, repeats))
    size = c.margin(scores, coverage)
    inside = (rng.exponential(size=(tests, repeats)) <= size).mean(0)
    assert is_near(inside, np.ceil(coverage * (N + 1)) / (N + 1), N, tests)


def test_sets_cover():
    rng, repeats, tests = np.random.default_rng(1), 200, 100
    found = {name: [] for name in ("lac", "aps random", "aps", "raps random")}
    sizes = {name: [] for name in found}
    for _ in range(repeats):
        p, label = drawn(rng, N + tests)
        u = rng.random(len(p))
        scores = {
            "lac": c.lac_scores(p),
            "aps random": c.aps_scores(p, u),
            "aps": c.aps_scores(p),
            "raps random": c.aps_scores(p, u, penalty=0.2, free=1),
        }
        for name, all_of in scores.items():
            own = c.own_scores(all_of, label)
            sets = all_of[N:] <= c.margin(own[:N], 0.9)
            found[name].append(sets[np.arange(tests), label[N:]].mean())
            sizes[name].append(sets.sum(1))
    exact = np.ceil(0.9 * (N + 1)) / (N + 1)
    for name in ("lac", "aps random", "raps random"):
        assert is_near(found[name], exact, N, tests), name
    assert np.mean(found["aps"]) > exact - 0.005  # not randomised: at least
    size = {name: np.concatenate(each) for name, each in sizes.items()}
    assert size["aps"].min() == 1 and size["lac"].min() == 0
    assert size["lac"].mean() < size["aps random"].mean()
    assert size["raps random"].max() < CLASSES or (
        (size["raps random"] == CLASSES).mean() < (size["aps random"] == CLASSES).mean()
    )


def test_scores_by_hand():
    p = np.array([[0.2, 0.5, 0.3]])
    np.testing.assert_allclose(c.lac_scores(p), [[0.8, 0.5, 0.7]])
    np.testing.assert_allclose(c.aps_scores(p), [[0.8, 0.0, 0.5]])
    np.testing.assert_allclose(c.aps_scores(p, np.zeros(1)), [[1.0, 0.5, 0.8]])
    np.testing.assert_allclose(c.aps_scores(p, np.zeros(1), 0.1, 1), [[1.2, 0.5, 0.9]])
    np.testing.assert_allclose(c.aps_scores(p, np.full(1, 0.5)), [[0.9, 0.25, 0.65]])
    np.testing.assert_allclose(c.aps_scores(np.full((1, 3), 1 / 3)), [[0, 1 / 3, 2 / 3]])


def test_each_group_covers():
    """Group b has errors three times as large: one margin for all would cover it too rarely."""
    rng, repeats, tests = np.random.default_rng(2), 400, 50
    groups = np.array(["a", "b"] * N)
    found, together = {"a": [], "b": []}, []
    for _ in range(repeats):
        scores = rng.exponential(size=2 * N) * np.where(groups == "b", 3, 1)
        margins = c.group_margins(scores, groups, 0.9)
        for name, scale in (("a", 1), ("b", 3)):
            new = scale * rng.exponential(size=tests)
            found[name].append((new <= margins[name]).mean())
        together.append((3 * rng.exponential(size=tests) <= c.margin(scores, 0.9)).mean())
    exact = np.ceil(0.9 * (N + 1)) / (N + 1)
    assert all(is_near(found[name], exact, N, tests) for name in found)
    assert np.mean(together) < 0.86
    # the margin of each group is that of its rows alone
    for name in ("a", "b"):
        assert margins[name] == c.margin(scores[groups == name], 0.9)


def test_small_groups_are_named():
    scores, groups = np.arange(20.0), np.array(["many"] * 19 + ["alone"])
    wanted = r"rows of group 'alone' must be at least 9 for a coverage of 0.9, got 1"
    with pytest.raises(ValueError, match=wanted):
        c.group_margins(scores, groups)
    with pytest.raises(ValueError, match=r"rows of group 'none' must be at least 9 .*, got 0"):
        c.group_margins(scores[:19], groups[:19], names=("many", "none"))
    known = c.group_margins(scores[:19], groups[:19])
    with pytest.raises(ValueError, match=r"groups must be among many, .* got 'new' in row 1"):
        c.margins_of(known, np.array(["many", "new"]))
    with pytest.raises(ValueError, match=r"must have the shape \(N,\), got \(20,\) and \(3,\)"):
        c.group_margins(scores, groups[:3])


def test_weights_restore_the_coverage_under_a_shift():
    """Inputs N(0, 1) and then N(1, 1), of density ratio exp(x - 1/2); the noise grows with x."""
    rng, repeats, tests, rows = np.random.default_rng(3), 300, 50, 300
    plain, weighted, learned = [], [], []
    for _ in range(repeats):
        x, new = rng.normal(size=rows), rng.normal(1, 1, tests)
        score, truth = (np.abs(rng.normal(size=len(v))) * np.exp(v) for v in (x, new))
        plain.append((truth <= c.margin(score, 0.9)).mean())
        size = c.weighted_margins(score, np.exp(x), np.exp(new), 0.9)
        weighted.append((truth <= size).mean())
        # the ratio from the true probability of a new row, where both kinds are equally frequent
        p = 1 / (1 + np.exp(0.5 - np.array([*x, *new])))
        w = c.shift_weights(p)
        learned.append((truth <= c.weighted_margins(score, w[:rows], w[rows:], 0.9)).mean())
    assert np.mean(plain) < 0.75
    assert 0.89 < np.mean(weighted) < 0.92
    np.testing.assert_allclose(learned, weighted)


def test_weighted_margins_against_the_definition():
    rng = np.random.default_rng(4)
    scores, w, new = rng.integers(0, 12, 30) / 2, rng.random(30), rng.random(8) * 5
    for own, size in zip(new, c.weighted_margins(scores, w, new, 0.8), strict=True):
        share = [(w[scores <= s].sum()) / (w.sum() + own) for s in np.unique(scores)]
        enough = np.unique(scores)[np.array(share) >= 0.8]
        assert size == (enough[0] if len(enough) else np.inf)
    flat = c.weighted_margins(scores, np.ones(30), np.ones(8), 0.8)
    np.testing.assert_array_equal(flat, c.margin(scores, 0.8))
    for bad, match in (
        ((scores, w[:3], new), r"must have shapes \(N,\), \(N,\) and \(M,\), got \(30,\), \(3,\)"),
        ((scores, -w, new), r"weights must be finite numbers of at least 0, got -0"),
        ((scores, 0 * w, new), "weights must have one above 0"),
        ((scores, w, np.array([np.nan])), "new_weights must be finite"),
    ):
        with pytest.raises(ValueError, match=match):
            c.weighted_margins(*bad)
    with pytest.raises(ValueError, match=r"probabilities must be .* in \[0, 1\), got 1.0 in row 1"):
        c.shift_weights(np.array([0.5, 1.0]))


def least_squares(x, y):
    return np.linalg.lstsq(x, y, rcond=None)[0]


def test_cv_plus_and_jackknife_plus():
    rng, rows, tests, features, repeats = np.random.default_rng(5), 30, 20, 10, 100
    found = {5: [], rows: []}
    naive = []
    for _ in range(repeats):
        x = rng.normal(size=(rows + tests, features))
        y = x.sum(1) + rng.normal(size=rows + tests)
        known, new = (x[:rows], y[:rows]), x[rows:]
        for count in found:
            folds = np.arange(rows) % count
            models = [least_squares(known[0][folds != k], known[1][folds != k])
                      for k in range(count)]  # fmt: skip
            held = np.array([x[i] @ models[folds[i]] for i in range(rows)])
            bounds = c.cv_plus(np.stack([new @ one for one in models]), held, known[1], folds)
            found[count].append(((bounds.low <= y[rows:]) & (y[rows:] <= bounds.high)).mean())
        own = least_squares(*known)
        size = c.margin(np.abs(known[1] - known[0] @ own), 0.9)
        naive.append((np.abs(y[rows:] - new @ own) <= size).mean())
    # with residuals of the rows that were learned from, far too few; 2 coverage - 1 is promised
    assert np.mean(naive) < 0.75
    assert 0.88 < np.mean(found[rows]) < 0.96 and 0.88 < np.mean(found[5]) < 0.97
    # by the definition, for the last of both
    i, place = np.arange(rows), np.ceil(0.9 * (rows + 1)).astype(int)
    for t in range(tests):
        ends = new[t] @ np.stack(models).T
        residual = np.abs(known[1] - held)
        high = np.sort(ends[folds[i]] + residual)[place - 1]
        low = np.sort(ends[folds[i]] - residual)[rows - place]
        np.testing.assert_allclose([bounds.low[t], bounds.high[t]], [low, high], rtol=1e-12)
    few = c.cv_plus(np.zeros((2, 1)), np.zeros(4), np.ones(4), np.arange(4) % 2)
    assert np.isinf(few.high).all() and np.isinf(few.low).all()


def test_risk_is_kept():
    """Labels of 5 with probabilities that are right on average."""
    rng, repeats, rows, tests = np.random.default_rng(6), 150, 80, 100
    lost, by_grid = [], []
    grid = np.linspace(0, 1, 101)[::-1]
    for _ in range(repeats):
        p = rng.random((rows + tests, 5)) ** 2
        true = rng.random(p.shape) < p
        share = true / np.maximum(true.sum(1, keepdims=True), 1)
        threshold = c.label_threshold(p[:rows], true[:rows], 0.1)
        lost.append((share * (p < threshold))[rows:].sum(1).mean())
        losses = np.stack([(share * (p < t)).sum(1) for t in grid], 1)
        place = c.controlled(losses[:rows], 0.1)
        by_grid.append(losses[rows:, place].mean())
        assert grid[place] <= threshold + 1e-12  # the grid is as low or lower
        assert threshold - grid[place] < 0.01 + 1e-9  # and by less than a step
    assert 0.1 - 2 / (rows + 1) - 0.008 < np.mean(lost) < 0.1 + 0.008
    assert np.mean(by_grid) <= np.mean(lost) + 1e-9


def test_risks_that_cannot_be_kept():
    with pytest.raises(ValueError, match=r"rows must be at least 9 for a risk of 0.1, got 5"):
        c.controlled(np.zeros((5, 2)), 0.1)
    with pytest.raises(ValueError, match=r"losses must not rise .* got 0.0 and 1.0 in row 3"):
        c.controlled(np.eye(20)[:, 2:], 0.1)
    with pytest.raises(ValueError, match=r"risk must be at least 0.5.*, which the last setting"):
        c.controlled(np.full((99, 3), 0.5), 0.1)
    with pytest.raises(ValueError, match="with a label in some row"):
        c.label_threshold(np.ones((20, 2)), np.zeros((20, 2)))
    with pytest.raises(ValueError, match=r"probabilities must be finite, got \[nan\] in row 3"):
        c.label_threshold(np.where(np.arange(20) == 3, np.nan, 0.5)[:, None], np.ones((20, 1)))


def test_inputs_that_do_not_fit():
    p = np.full((3, 2), 0.5)
    for call, match in (
        (lambda: c.aps_scores(p, np.ones(2)), r"u must be \(3,\) numbers in \[0, 1\]"),
        (lambda: c.aps_scores(p, free=2), "free must be 0 without a penalty, got 2"),
        (lambda: c.aps_scores(p, penalty=-1.0), "penalty and free must be at least 0"),
        (lambda: c.lac_scores(p[0]), r"probabilities must have shape \(N, C\)"),
        (lambda: c.own_scores(p, np.array([0, 1, 2])), r"labels must be in \[0, 2\), got 2 in row"),
        (lambda: c.own_scores(p, np.array([0.0, 1, 1])), "the labels integers"),
        (lambda: c.quantile_offsets(p, (0.5,)), r"errors must have shape \(N, ..., 1\)"),
        (lambda: c.cv_plus(p, np.zeros(3), np.zeros(3), np.array([0, 1, 3])),
         r"folds must be whole numbers in \[0, 3\), got 3"),
        (lambda: c.split_conformal(p, p, p, spreads=(p, 0 * p)),
         r"spreads must be finite numbers above 0, got 0.0 at \[0, 0\], 6 such"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()


# Of MAPIE 1.6.0 with scikit-learn 1.9.1, for the inputs below: the sets of each test row by
# SplitConformalClassifier(told, confidence_level=0.8, prefit=True, random_state=7,
# conformity_score=LACConformityScore(), APSConformityScore() or RAPSConformityScore()), with
# conformity_score_params={"include_last_label": True or "randomized"}
LAC = (
    "04 23 4 12 04 14 3 2 2 3 0 3 3 13 02 0 0 24 4 04 3 02 0 4 0 4 2 1 1 4 24 14 2 02 12 0 24 1"
    " 34 2 0 04 2 24 4 3 03 02 1 3"
)
APS = (
    "04 023 4 12 04 14 34 02 24 234 023 03 3 13 02 0 0 24 24 04 3 02 012 4 03 14 24 13 013 4 24"
    " 14 2 02 012 04 24 14 34 2 01 014 2 234 024 3 023 024 1 3"
)
APS_RANDOM = (
    "0 023 4 12 04 1 3 2 24 23 03 03 3 1 2 0 0 24 24 4 3 02 012 4 03 4 24 13 013 4 2 14 2 02 12"
    " 04 24 14 3 2 0 014 2 234 24 3 03 024 1 3"
)
RAPS_RANDOM = (
    "0 23 4 12 04 14 3 2 24 23 03 03 3 13 2 0 0 24 24 4 3 02 01 4 03 4 24 13 01 4 2 14 2 02 12 "
    "04 24 14 3 2 0 04 2 24 24 3 03 02 1 3"
)


def questions():
    """Probabilities of five classes; 100 rows calibrate, 50 are to be covered."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(150, 5)) * 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    return p, np.minimum((p.cumsum(1) < rng.random((150, 1))).sum(1), 4)


def told_sets(inside):
    return " ".join("".join(map(str, np.flatnonzero(row))) for row in inside)


def test_sets_of_mapie():
    p, label = questions()
    scores = c.lac_scores(p)
    size = c.margin(c.own_scores(scores[:100], label[:100]), 0.8)
    assert size == pytest.approx(0.7531585340689539, abs=1e-12)  # its quantiles_
    assert told_sets(scores[100:] <= size) == LAC
    # MAPIE draws u from this state anew for calibration and for the sets
    u, new = (np.random.RandomState(7).uniform(size=n) for n in (100, 50))
    size = c.margin(c.own_scores(c.aps_scores(p[:100], u), label[:100]), 0.8)
    assert size == pytest.approx(0.7808792958352578, abs=1e-12)
    assert told_sets(c.aps_scores(p[100:]) <= size) == APS
    assert told_sets(c.aps_scores(p[100:], new) <= size) == APS_RANDOM
    # MAPIE chooses its lambda_star and k_star on a tenth of the rows, and calibrates on the others
    shuffle = StratifiedShuffleSplit(n_splits=1, test_size=0.1, random_state=7)
    rows, _ = next(shuffle.split(p[:100], label[:100]))
    u = np.random.RandomState(7).uniform(size=90)
    size = c.margin(c.own_scores(c.aps_scores(p[rows], u, 0.2, 2), label[rows]), 0.8)
    assert size == pytest.approx(0.7939928859768561, abs=1e-12)
    assert told_sets(c.aps_scores(p[100:], new, 0.2, 2) <= size) == RAPS_RANDOM


def test_groups_of_mapie():
    """It has no Mondrian since version 1, so of each half of the rows by itself."""
    p, label = questions()
    own = c.own_scores(c.lac_scores(p), label)[:100]
    found = c.group_margins(own, np.arange(100) % 2, 0.8)
    assert found == pytest.approx({"0": 0.7848212, "1": 0.70970906}, abs=1e-7)


# of MAPIE 1.6.0: predict_interval of the first three of the test rows by SplitConformalRegressor
# (absolute, and conformity_score=GammaConformityScore(sym=True), whose spread is the prediction),
# ConformalizedQuantileRegressor (symmetric_correction=True), and CrossConformalRegressor(
# LinearRegression(), cv=KFold(5) or LeaveOneOut(), method="plus"); confidence_level=0.8
INTERVALS = {
    "split": [
        [-2.6466959217, 0.1829128947],
        [-2.2690075959, 0.5606012205],
        [0.3481828062, 3.1777916226],
    ],
    "gamma": [
        [-4.4365681059, 12.9003511329],
        [-4.0406127808, 11.7490191563],
        [-4.9933503959, 14.5193248248],
    ],
    "cqr": [
        [-2.4994489982, 0.5356659712],
        [-2.1217606725, 0.913354297],
        [0.4954297297, 3.5305446992],
    ],
    "cv": [
        [-2.7116937355, 0.5015076236],
        [-2.4125583623, 0.7972212756],
        [0.4744494539, 3.7179058772],
    ],
    "jackknife": [
        [-2.667872798, 0.461579163],
        [-2.3925868885, 0.747382389],
        [0.5348024074, 3.6338952231],
    ],
}


def test_intervals_of_mapie():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(140, 3))
    y = x.sum(1) + rng.normal(size=140) * np.exp(x[:, 0] / 2)
    told, known = x.sum(1), y[:100]
    spread = np.abs(told) + 3
    found = {
        "split": c.split_conformal(told[100:], told[:100], known, 0.8),
        "gamma": c.split_conformal(
            spread[100:], spread[:100], known + 10, 0.8, (spread[100:], spread[:100])
        ),
        "cqr": c.conformal_quantiles(
            (told[100:] - 1, told[100:] + 1.5), (told[:100] - 1, told[:100] + 1.5), known, 0.8
        ),
    }
    for name, count in (("cv", 5), ("jackknife", 100)):
        folds = np.arange(100) // (100 // count)
        rows = np.c_[x, np.ones(140)]
        models = [least_squares(rows[:100][folds != k], known[folds != k]) for k in range(count)]
        held = np.array([rows[i] @ models[folds[i]] for i in range(100)])
        new = np.stack([rows[100:] @ one for one in models])
        found[name] = c.cv_plus(new, held, known, folds, 0.8)
    for name, bounds in found.items():
        np.testing.assert_allclose(np.stack(bounds, 1)[:3], INTERVALS[name], atol=1e-8)
