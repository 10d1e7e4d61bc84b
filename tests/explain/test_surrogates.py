"""A tree and a linear model of a model, their figures by scikit-learn, and their rules."""

import re

import numpy as np
import pandas as pd
import pytest
from made_tables import some_rows, table, untrained
from sklearn.metrics import r2_score

from jaxops import explain


def rows(count=400, seed=0):
    rng = np.random.default_rng(seed)
    kinds = rng.choice(["cat", "dog", "cow"], count).astype(object)
    weight = np.where(rng.random(count) < 0.1, np.nan, rng.uniform(0, 50, count))
    return pd.DataFrame({"weight": weight, "kind": kinds})


def steps(frame):
    """A tree of depth 2 itself."""
    heavy, missing = (frame["weight"] > 20).to_numpy(), frame["weight"].isna().to_numpy()
    return np.where(missing, 9.0, np.where(heavy, 3.0, np.where(frame["kind"] == "dog", 1.0, -1.0)))


def test_a_tree_finds_a_tree_and_says_its_rules():
    given = rows()
    found = explain.surrogate(steps, given)
    assert found.r2 == pytest.approx(1.0) and found.agreement is None and found.held == 120
    np.testing.assert_allclose(found.predict(given), steps(given))
    assert {"weight is missing: prediction 9", "kind is 'dog': prediction 1"} <= {
        line.strip().split(" (")[0] for line in found.rules.splitlines()
    }
    threshold = float(re.search(r"weight > ([\d.]+): prediction 3", found.rules)[1])
    known = given["weight"].dropna()
    assert known[known <= 20].max() - 1e-3 <= threshold <= known[known > 20].min() + 1e-3
    counts = [int(n) for n in re.findall(r"\((\d+) rows\)", found.rules)]
    assert sum(counts) == 280


def test_the_figures_are_those_of_the_held_out_rows():
    """Of a model that is no tree: the rows that were held out are found again by their number."""
    given = rows().assign(weight=np.linspace(0, 50, 400))
    model = lambda frame: np.sin(frame["weight"].to_numpy() / 5)  # noqa: E731
    found = explain.surrogate(model, given, depth=2, seed=3)
    held = given.iloc[np.random.default_rng(3).permutation(400)[:120]]
    assert found.r2 == pytest.approx(r2_score(model(held), found.predict(held)))
    assert 0.1 < found.r2 < explain.surrogate(model, given, depth=6, seed=3).r2


def test_a_linear_model_of_a_linear_model():
    given = rows()
    line = lambda f: 2 + 0.5 * f["weight"].fillna(25).to_numpy() + 3 * (f["kind"] == "cow")  # noqa: E731
    found = explain.surrogate(line, given, kind="linear")
    np.testing.assert_allclose(found.predict(given), line(given), atol=0.02)
    assert found.r2 > 0.9999
    slope, std = re.search(r"([+-][\d.]+) \* \(weight - [\d.]+\) / ([\d.]+)", found.rules).groups()
    assert float(slope) / float(std) == pytest.approx(0.5, abs=0.01)
    by_kind = {k: float(re.search(rf"([+-][\d.]+) \* kind={k}", found.rules)[1])
               for k in ("cow", "cat", "dog")}  # fmt: skip
    assert by_kind["cow"] - by_kind["dog"] == pytest.approx(3, abs=0.02)
    assert by_kind["cat"] - by_kind["dog"] == pytest.approx(0, abs=0.02)


def test_a_classifier_s_surrogate_agrees_as_often_as_it_says():
    model = untrained()
    found = explain.surrogate(model, table(), "yes", depth=3, held=0.5)
    held = np.random.default_rng(0).permutation(120)[:60]
    p = model.predict(some_rows(*held)).probabilities[:, 1]
    mine = found.predict(some_rows(*held))
    assert found.agreement == pytest.approx(((p >= 0.5) == (mine >= 0.5)).mean())
    assert found.constant == pytest.approx(max((p >= 0.5).mean(), (p < 0.5).mean()))
    assert found.r2 == pytest.approx(r2_score(p, mine), abs=1e-5) and found.r2 > 0.2
    assert {*found.encoder.mean, *found.encoder.values} == {"age", "spent", "plan", "city"}
    assert str(found).startswith("R2 0.") and "same side of 0.5 in" in str(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "forest"}, "kind must be one of tree, linear, got 'forest'"),
        ({"held": 0.0}, "held must leave at least 2 of 400 rows on each side"),
        ({"depth": 0}, "depth be at least 1, got 0.3 and 0"),
        ({"columns": ["size"]}, "columns must be columns of the rows"),
        ({"target": "dog"}, "target must be None for one number a row, got 'dog'"),
    ],
)
def test_what_has_no_surrogate_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explain.surrogate(steps, rows(), **options)


def test_rows_without_a_column_are_refused():
    found = explain.surrogate(steps, rows())
    with pytest.raises(ValueError, match="rows must have the columns kind, got weight"):
        found.predict({"weight": [1.0]})
