"""Partial dependence against scikit-learn and by hand; ALE against a hand-written one."""

import numpy as np
import pandas as pd
import pytest
from made_tables import some_rows, table, untrained
from sklearn.inspection import partial_dependence as of_sklearn
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures

from jaxops import explain


def rows(count=60, seed=0):
    """Two numbers that go together, and a category that goes with the second."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=count)
    z = x + 0.3 * rng.normal(size=count)
    kind = np.array(["low", "middle", "high"], object)[np.digitize(z, [-0.5, 0.5])]
    return pd.DataFrame({"x": x, "z": z, "kind": kind})


def product(frame):
    """A linear function with an interaction."""
    return frame["x"] + 2 * frame["z"] + 3 * frame["x"] * frame["z"]


def test_partial_dependence_and_curves_are_scikit_learn_s():
    given = rows()[["x", "z"]]
    peer = make_pipeline(PolynomialFeatures(2), LinearRegression()).fit(given, product(given))
    theirs = of_sklearn(peer, given, ["x"], kind="both", grid_resolution=7)
    grid = theirs["grid_values"][0]
    ours = explain.partial_dependence(peer.predict, given, "x", grid=grid)
    np.testing.assert_allclose(ours.effect, theirs["average"][0], atol=1e-12)
    np.testing.assert_allclose(ours.rows, theirs["individual"][0], atol=1e-12)
    assert ours.kind == "partial dependence" and ours.counts.sum() == 60


def test_partial_dependence_of_a_model_s_probability_by_its_own_predictions():
    model, some = untrained(), some_rows(*range(40))
    found = explain.partial_dependence(model, some, "city", "no")
    assert found.grid.tolist() == ["x", "y", "z"] and found.unit == "p(no)"
    for value, effect, each in zip(found.grid, found.effect, found.rows.T, strict=True):
        told = model.predict({**some, "city": np.full(40, value, object)}).probabilities[:, 0]
        np.testing.assert_allclose(each, told, atol=1e-6)
        assert effect == pytest.approx(told.mean(), abs=1e-6)
    assert found.counts.tolist() == [(some["city"] == c).sum() for c in "xyz"]


def test_the_grid_has_values_that_occur_with_equally_many_rows_between():
    found = explain.partial_dependence(lambda f: f["n"], {"n": np.arange(100)}, "n", points=5)
    assert found.grid.tolist() == [0, 24, 49, 74, 99] and found.grid.dtype.kind == "i"
    days = pd.DataFrame({"day": pd.date_range("2024-01-01", periods=9), "x": np.arange(9.0)})
    found = explain.partial_dependence(lambda f: 1.0 * f["day"].dt.day, days, "day", points=3)
    assert found.effect.tolist() == [1, 5, 9]


def ale_by_hand(function, frame, column, edges):
    """Loops over bins and rows: Apley and Zhu's equation 15 and its centring."""
    steps, counts = [], []
    for k in range(1, len(edges)):
        changes = []
        for _, row in frame.iterrows():
            inside = edges[k - 1] < row[column] <= edges[k] or (k == 1 and row[column] == edges[0])
            if inside:
                high, low = row.copy(), row.copy()
                high[column], low[column] = edges[k], edges[k - 1]
                changes.append(function(high) - function(low))
        steps.append(np.mean(changes))
        counts.append(len(changes))
    total = np.concatenate([[0], np.cumsum(steps)])
    middle = (total[1:] + total[:-1]) / 2
    return total - np.average(middle, weights=counts)


def test_ale_of_numbers_by_hand():
    given = rows()[["x", "z"]]
    found = explain.ale(product, given, "x", bins=6)
    assert len(found.grid) == 7 and set(found.grid) <= set(given["x"])
    assert found.counts.tolist() == [0, 10, 10, 10, 10, 10, 10]
    np.testing.assert_allclose(
        found.effect, ale_by_hand(product, given, "x", found.grid), atol=1e-12
    )


def test_ale_of_a_linear_function_is_its_weight_also_where_columns_go_together():
    """Partial dependence too; with a product only ALE stays near what the rows have."""
    given = rows(400)
    line = lambda frame: 4 * frame["x"] - frame["z"]  # noqa: E731
    for found in (explain.ale(line, given, "x"), explain.partial_dependence(line, given, "x")):
        slopes = np.diff(found.effect) / np.diff(found.grid)
        np.testing.assert_allclose(slopes, 4, atol=1e-9)
    # of x z with z near x the effect of x is near x^2 / 2, as of the integral of E[z | x] = x
    found = explain.ale(lambda frame: frame["x"] * frame["z"], given, "x", bins=30)
    want = found.grid**2 / 2
    want -= np.average((want[1:] + want[:-1]) / 2, weights=found.counts[1:])
    assert np.abs(found.effect - want)[3:-3].max() < 0.15


def test_ale_of_categories_by_hand():
    """Neighbours in the order low, middle, high: the differences of the rows on both sides."""
    given = rows()
    worth = {"low": 0.0, "middle": 1.0, "high": 5.0}

    def function(frame):
        return frame["kind"].map(worth).to_numpy(float) * (1 + frame["z"].to_numpy())

    found = explain.ale(function, given, "kind")
    assert found.grid.tolist() in (["low", "middle", "high"], ["high", "middle", "low"])
    steps = []
    for one, two in zip(found.grid[:-1], found.grid[1:], strict=True):
        z = given["z"][given["kind"].isin([one, two])]
        steps.append(((worth[two] - worth[one]) * (1 + z)).mean())
    total = np.concatenate([[0], np.cumsum(steps)])
    counts = [(given["kind"] == value).sum() for value in found.grid]
    np.testing.assert_allclose(found.effect, total - np.average(total, weights=counts), atol=1e-12)
    assert found.counts.tolist() == counts


def test_rows_without_a_value_are_left_out_of_ale():
    given = {"x": [0.0, 1.0, np.nan, 2.0], "kind": ["a", "", "b", "a"]}
    found = explain.ale(lambda f: f["x"].fillna(0), given, "x", bins=2)
    assert found.grid.tolist() == [0, 1, 2] and found.counts.sum() == 3
    assert explain.ale(lambda f: 1.0 * (f["kind"] == "a"), given, "kind").counts.sum() == 3


def test_pictures():
    model, some = untrained(), some_rows(*range(30))
    (axes,) = explain.partial_dependence(model, some, "age", points=4).plot().axes
    assert len(axes.lines) == 31 and axes.get_xlabel() == "age" and "p(yes)" in axes.get_ylabel()
    (axes,) = explain.ale(model, some, "city").plot().axes
    assert {tick.get_text() for tick in axes.get_xticklabels()} == {"x", "y", "z"}
    assert [*explain.ale(model, some, "city").frame()] == ["city", "effect", "rows"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explain.ale(product, rows(), "w"), "column must be columns of the rows"),
        (lambda: explain.partial_dependence(product, rows(), "x", points=1), "at least 2, got 1"),
        (lambda: explain.ale(product, rows(), "x", bins=0), "bins must be at least 1, got 0"),
        (
            lambda: explain.partial_dependence(product, rows(), "x", grid=[]),
            "grid must be at least",
        ),
        (
            lambda: explain.ale(product, {"x": [1.0, 1.0], "z": [1, 2]}, "x"),
            "x must have at least 2",
        ),
        (
            lambda: explain.ale(untrained(), table(), "age", "maybe"),
            "target must be one of no, yes",
        ),
        (
            lambda: explain.ale(lambda f: np.full(len(f), np.nan), rows(), "x"),
            "must predict finite",
        ),
        (lambda: explain.ale(lambda f: np.ones(3), rows(), "x"), "model must answer 1 rows"),
        (lambda: explain.ale("model", rows(), "x"), "model must be a model or a function of rows"),
        (lambda: explain.partial_dependence(product, None, "x"), "rows must be a table"),
    ],
)
def test_what_has_no_dependence_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
