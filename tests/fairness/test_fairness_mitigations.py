"""Thresholds by group and exponentiated gradient: beside fairlearn, brute force; saved models."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression

import jaxops as jo
from jaxops import cli, fairness
from jaxops.fairness.thresholding import ByGroup
from jaxops.serve.compiled import compiled
from jaxops.serve.readers import inputs_of
from jaxops.serve.refused import Refused


def scores(rows=400, groups=2, seed=0):
    rng = np.random.default_rng(seed)
    group = rng.integers(0, groups, rows)
    p = rng.beta(2 + group, 3, rows).round(2)  # with ties
    return rng.random(rows) < 0.7 * p + 0.1 * group, p, group


# of fairlearn 0.15.0: the expected accuracy of ThresholdOptimizer(grid_size=100_000, flip=False)
THRESHOLDS = {
    "demographic parity": 0.623778555,
    "equal opportunity": 0.645380321,
    "equalised odds": 0.601528877,
}


@pytest.mark.parametrize("constraint", THRESHOLDS)
def test_thresholds_have_fairlearns_accuracy(constraint):
    """Whose grid has 100,000 points: its accuracy is at most as high, and hardly lower."""
    label, p, group = scores(groups=3)
    rules = fairness.optimal_thresholds(label, p, {"g": group}, constraint)
    chance = fairness.chances(rules, fairness.groups_of({"g": group}), p)
    accuracy = np.where(label, chance, 1 - chance).mean()
    assert -1e-9 <= accuracy - THRESHOLDS[constraint] < 1e-4
    rates = np.array([[chance[(group == g) & rows].mean() for rows in
                       (label | True, label, ~label)] for g in range(3)])  # fmt: skip
    equal = {"demographic parity": [0], "equal opportunity": [1], "equalised odds": [1, 2]}
    assert np.ptp(rates[:, equal[constraint]], axis=0).max() < 1e-9


def brute(label, p, group, tolerance):
    """The accuracy of the best mixture of any thresholds under demographic parity."""
    levels = np.r_[-1, np.unique(p)]
    above = [[(p[group == g] > t) for t in levels] for g in (0, 1)]
    right = [[(one == label[group == g]).sum() for one in above[g]] for g in (0, 1)]
    rate = [[one.mean() for one in above[g]] for g in (0, 1)]
    n = len(levels)
    row = np.r_[rate[0], -np.array(rate[1])]
    ones = np.kron(np.eye(2), np.ones(n))
    found = linprog(-np.r_[right[0], right[1]], [row, -row], [tolerance] * 2, ones, [1, 1])
    return -found.fun / len(label)


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.2])
def test_thresholds_are_the_best_of_all_mixtures(tolerance):
    label, p, group = scores(60, seed=3)
    rules = fairness.optimal_thresholds(label, p, {"g": group}, tolerance=tolerance)
    chance = fairness.chances(rules, fairness.groups_of({"g": group}), p)
    accuracy = np.where(label, chance, 1 - chance).mean()
    np.testing.assert_allclose(accuracy, brute(label, p, group, tolerance), atol=1e-9)
    apart = abs(chance[group == 0].mean() - chance[group == 1].mean())
    assert apart <= tolerance + 1e-9


def test_without_a_constraint_it_is_the_best_threshold():
    label, p, group = scores(seed=5)
    rules = fairness.optimal_thresholds(label, p, {"g": group}, tolerance=1.0)
    for g in (0, 1):
        y, own = label[group == g], p[group == g]
        best = max(((own > t) == y).mean() for t in np.r_[-1, np.unique(own)])
        ((share, threshold),) = rules[str(g)]
        np.testing.assert_allclose(((own > threshold) == y).mean(), best)
        assert share == 1


def test_a_model_with_thresholds_is_saved_scored_and_explained(model, table, tmp_path, capsys):
    fair = fairness.thresholds(model, table, protected=["sex"], constraint="equalised odds")
    answer = fair.predict(table)
    plain = model.predict(table)
    np.testing.assert_array_equal(answer.probabilities, plain.probabilities)
    assert (answer.labels != plain.labels).any()
    found = fairness.report(fair, table, protected=["sex"])
    before = fairness.report(model, table, protected=["sex"])
    odds = "equalised odds difference"
    assert found.disparities[odds].value < 0.3 * before.disparities[odds].value
    jo.save(tmp_path / "fair.safetensors", fair)
    loaded = jo.load(tmp_path / "fair.safetensors")
    assert isinstance(loaded.reader, ByGroup) and loaded.reader.rules == fair.reader.rules
    # the same person is told the same, whatever stands beside
    some = {name: column[::-1][:50] for name, column in table.items()}
    np.testing.assert_array_equal(loaded.predict(some).labels, answer.labels[::-1][:50])
    assert "validation" not in loaded.about and loaded.about["thresholds"]["rows"] == 800
    pd.DataFrame(table).to_csv(tmp_path / "rows.csv", index=False)
    for command in ("evaluate", "show"):
        arguments = [tmp_path / "rows.csv"] if command == "evaluate" else []
        assert cli.main([command, *map(str, [tmp_path / "fair.safetensors", *arguments])]) == 0
    told = capsys.readouterr().out
    assert odds in told and "threshold of f" in told and "thresholds for" in told
    out = tmp_path / "labels.parquet"
    names = [tmp_path / "fair.safetensors", tmp_path / "rows.csv"]
    assert cli.main(["predict", *map(str, names), "--out", str(out)]) == 0
    np.testing.assert_array_equal(pd.read_parquet(out)["label"], answer.labels)


def test_draws_have_their_shares(model):
    rules = {"f": ((0.3, 0.2), (0.7, 2.0)), "m": ((1.0, 0.5),)}
    fair = jo.Model(model.task, model.state, ByGroup(model.reader, ("sex",), rules, 1))
    rows = {"who": np.arange(4000), "age": np.full(4000, 45.0), "sex": np.repeat(["f"], 4000)}
    share = (fair.predict(rows).labels == "yes").mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4000)
    # a person's draw does not hang on the digits of the probability, which batches may round
    moved = fair.predict(rows | {"age": np.full(4000, 45.01)})
    assert (moved.probabilities != fair.predict(rows).probabilities).all()
    np.testing.assert_array_equal(moved.labels, fair.predict(rows).labels)
    with pytest.raises(ValueError, match="sex must be one of f; m, got 'x' in row 1"):
        fair.predict({"who": [1, 2], "age": [1.0, 2.0], "sex": ["f", "x"]})
    with pytest.raises(ValueError, match="rows must have a column 'sex', got who, age"):
        fair.predict({"who": [1], "age": [1.0]})


def test_a_server_asks_for_the_protected_column(model, table):
    fair = fairness.thresholds(model, table, protected=["sex"])
    inputs = inputs_of(fair)
    names = ("who", "age", "sex")
    rows = [{name: table[name][i].item() for name in names} for i in range(20)]
    given = inputs.read({"rows": rows}, most=100)
    assert fair.predict(given.data).labels.tolist() == fair.predict(table).labels[:20].tolist()
    with pytest.raises(Refused, match="sex"):
        inputs.read({"rows": [{"who": 1, "age": 3.0}]}, most=100)
    assert compiled(fair, batch_size=2).predict(given.data).labels[0] in ("no", "yes")


def test_thresholds_refuse(model, table):
    y, p = np.array([0, 1, 0, 0]), np.array([0.1, 0.9, 0.2, 0.3])
    group = {"g": list("aabb")}
    optimal = fairness.optimal_thresholds
    cases = [
        (lambda: optimal(y, p, group, "parity"), "constraint must be one of demographic parity"),
        (lambda: optimal(y, p, group, tolerance=2), r"tolerance must be in \[0, 1\], got 2"),
        (lambda: optimal(y, p * 2, group), r"probabilities must be in \[0, 1\]"),
        (lambda: optimal(y, p, group, "equal opportunity"), "rows of class 1 .* got none in b"),
        (lambda: fairness.thresholds(fairness.thresholds(model, table, protected=["sex"]), table,
                                     protected=["sex"]), "without thresholds by group, got one"),
        (lambda: jo.export(fairness.thresholds(model, table, protected=["sex"]), "nowhere"),
         "model must be without thresholds by group to be exported"),
    ]  # fmt: skip
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


# of fairlearn 0.15.0: expected error, and largest distance of a group's rate from all rows', of
# ExponentiatedGradient(LogisticRegression(C=1e3), DemographicParity(difference_bound=0.02),
#     eps=0.02)
GRADIENT = {"demographic parity": (0.259756, 0.02), "equalised odds": (0.248158, 0.02)}


def logistic(rows=1500):
    rng = np.random.default_rng(4)
    group = rng.integers(0, 2, rows)
    x = np.stack([rng.normal(group, 1), rng.normal(0, 1, rows), rng.normal(-group, 1)], 1)
    label = x[:, 0] + x[:, 1] + rng.logistic(0, 1, rows) > 0.7
    return x, label.astype(int), group


@pytest.mark.parametrize("constraint", ["demographic parity", "equalised odds"])
def test_exponentiated_gradient_finds_fairlearns_mixture(constraint):
    x, label, group = logistic()

    def fit(y, weights):
        told = LogisticRegression(C=1e3).fit(x, y, sample_weight=weights)
        return told, told.predict(x)

    found = fairness.exponentiated_gradient(fit, label, {"g": group}, constraint, 0.02)
    error, violation = GRADIENT[constraint]
    assert abs(found.error - error) < 2e-3 and abs(found.violation - violation) < 2e-3
    chance = found.chances(lambda member: member.predict(x), rows=len(x))
    np.testing.assert_allclose(np.where(label == 1, 1 - chance, chance).mean(), found.error)


def test_exponentiated_gradient_where_every_classifier_is_known():
    """Thresholds on a number: the linear program over all of their mixtures gives the truth."""
    label, p, group = scores(300, seed=7)
    levels = np.r_[-1, np.unique(p)]

    def fit(y, weights):
        wrong = [(weights * ((p > t) != y)).sum() for t in levels]
        best = levels[int(np.argmin(wrong))]
        return best, p > best

    found = fairness.exponentiated_gradient(fit, label, {"g": group}, bound=0.03)
    told = [p > t for t in levels]
    rates = np.array([[s[group == g].mean() - s.mean() for g in (0, 1)] for s in told]).T
    cost = [(s != label).mean() for s in told]
    limits = np.concatenate([rates, -rates])
    truth = linprog(cost, limits, [0.03] * 4, [np.ones(len(levels))], [1])
    assert found.violation <= 0.03 + 2 * found.gap
    assert truth.fun - 1e-9 <= found.error + found.gap and found.error <= truth.fun + 2 * found.gap
    np.testing.assert_allclose(sum(found.shares), 1)


def test_exponentiated_gradient_refuses():
    y, group = np.array([0, 1, 0, 1]), {"g": list("aabb")}
    make = fairness.exponentiated_gradient
    cases = [
        (lambda: make(None, y, group, "parity"), "constraint must be one of"),
        (lambda: make(None, y, group, bound=0), r"bound must be in \(0, 1\)"),
        (lambda: make(lambda y, w: (0, y[1:]), y, group), "decisions must have 4 rows"),
        (lambda: make(lambda y, w: (0, y * 2), y, group), "decisions must be 0 or 1, got 2"),
        (lambda: make(None, [1, 1, 0, 0], group, "equalised odds"), "rows of class 0 in each"),
    ]
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_all_or_nobody_needs_no_fit():
    label = np.r_[np.ones(20), np.zeros(20)].astype(int)
    group = np.arange(40) // 20

    def fit(y, weights):
        return tuple(y), y  # a classifier that can learn anything

    found = fairness.exponentiated_gradient(fit, label, {"g": group}, bound=0.05)
    assert found.violation <= 0.05 + 2 * found.gap and 0.3 < found.error < 0.5
    told = found.chances(lambda member: np.array(member), 40)
    rates = [told[group == g].mean() for g in (0, 1)]
    np.testing.assert_allclose(abs(np.subtract(*rates)) / 2, found.violation, atol=1e-9)
