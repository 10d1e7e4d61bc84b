"""Prediction sets, groups, weights, risk and CV+: coverage in simulation, and MAPIE's results."""

import numpy as np
import pytest

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
    rng, repeats, tests = np.random.default_rng(1), 300, 100
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
    rng, rows, tests, features, repeats = np.random.default_rng(5), 30, 20, 10, 200
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
        assert bounds.high[t] == np.sort(ends[folds[i]] + residual)[place - 1]
        assert bounds.low[t] == np.sort(ends[folds[i]] - residual)[rows - place]
    few = c.cv_plus(np.zeros((2, 1)), np.zeros(4), np.ones(4), np.arange(4) % 2)
    assert np.isinf(few.high).all() and np.isinf(few.low).all()


def test_risk_is_kept():
    """Labels of 5 with probabilities that are right on average."""
    rng, repeats, rows, tests = np.random.default_rng(6), 300, 80, 100
    lost, by_grid = [], []
    grid = np.linspace(0, 1, 201)[::-1]
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
        assert threshold - grid[place] <= 0.005 + 1e-9 or losses[:rows, place - 1].mean() > 0.05
    assert 0.1 - 2 / (rows + 1) - 0.005 < np.mean(lost) < 0.1 + 0.005
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
        (lambda: c.split_conformal(p[0], p, p, spreads=(p[0], 0 * p)),
         r"spreads must be finite numbers above 0, got 0.0 at \[0, 0\], 6 such"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=match):
            call()


# MAPIE 1.6.0, scikit-learn 1.9.1: see the functions below for the calls
