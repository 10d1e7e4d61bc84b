"""Counterfactuals: allowed, predicted by the model itself, and the cheapest of all there are."""

import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made_tables import some_rows, table, untrained

from jaxops import explain
from jaxops.explain.tables.recourse import _cell, _changeable

ROWS = pd.DataFrame(
    {
        "age": np.tile([20, 30, 40, 50, 60], 12),
        "pay": np.linspace(0.0, 6.0, 60),
        "plan": np.repeat(["a", "b", "c"], 20),
    }
)
MAD = {"age": 10.0, "pay": np.median(np.abs(ROWS["pay"] - 3.0))}
ONE = {"age": [30], "pay": [1.0], "plan": ["a"]}


def score(rows):
    """More with the age, the pay and plan c, and with both of the latter."""
    last = (rows["plan"] == "c").to_numpy()
    pay = rows["pay"].to_numpy(float)
    return 0.1 * rows["age"].to_numpy(float) + 0.8 * pay + last * (1 + 0.1 * pay)


def cost_of(row):
    """The documented cost, by hand."""
    cost = 0.0
    for name, unit in MAD.items():
        if row[name] != ONE[name][0]:
            cost += 1 + abs(row[name] - ONE[name][0]) / unit
    return cost + 2 * (row["plan"] != ONE["plan"][0])


def cheapest(least, allowed=lambda row: True):
    """The least cost over a fine grid of everything."""
    grid = itertools.product(range(20, 61), np.linspace(0, 6, 601), ["a", "b", "c"])
    rows = pd.DataFrame([*grid], columns=["age", "pay", "plan"])
    rows = rows[score(rows) >= least]
    return min(cost_of(row) for row in rows.to_dict("records") if allowed(row))


@pytest.mark.parametrize("least", [4.6, 6.5, 9.0, 11.5])
def test_the_first_is_the_cheapest_of_a_fine_grid(least):
    found = explain.counterfactuals(score, ONE, ROWS, least=least)
    best = cheapest(least)
    assert found.costs[0] <= best * 1.03 and (np.diff(found.costs) >= 0).all()
    for row, cost, after in zip(
        found.rows.to_dict("records"), found.costs, found.after, strict=True
    ):
        assert cost_of(row) == pytest.approx(cost)
        assert after >= least and after == pytest.approx(score(pd.DataFrame([row]))[0])
        assert row["age"] % 1 == 0 and 20 <= row["age"] <= 60 and 0 <= row["pay"] <= 6
    sets = [{*change} for change in found.changes]
    assert not any(one <= other for one, other in itertools.permutations(sets, 2))


def test_what_is_allowed_is_kept():
    found = explain.counterfactuals(
        score, ONE, ROWS, least=6.4, count=5, immutable=["plan"],
        directions={"age": "down"}, ranges={"pay": (0, 10)}, steps={"pay": 0.5},
    )  # fmt: skip
    for row in found.rows.to_dict("records"):
        assert row["plan"] == "a" and row["age"] <= 30 and (row["pay"] - 1) % 0.5 == 0
    # plan a at age 30: 3 + 0.8 pay >= 6.4 from 4.25 on, so 4.5
    assert found.changes[0] == {"pay": (1.0, 4.5)}
    up = explain.counterfactuals(score, ONE, ROWS, least=4.5, directions={"age": "up"})
    assert all(row["age"] >= 30 for row in up.rows.to_dict("records"))
    some = explain.counterfactuals(
        score, ONE, ROWS, least=4.7, columns=["plan", "age"], ranges={"plan": ["b"]}
    )
    assert [*some.changes] == [{"age": (30, 39)}]
    less = explain.counterfactuals(score, ONE, ROWS, most=3.0, immutable="pay")
    assert less.changes == [{"age": (30, 22)}] and "age 30 -> 22" in str(less)


def test_a_finished_classifier_says_so_itself():
    model, row = untrained(), some_rows(0)
    before = model.predict(row)
    wanted = "yes" if before.labels[0] == "no" else "no"
    found = explain.counterfactuals(model, row, table(), wanted, immutable=["spent"])
    assert found.unit == f"p({wanted})" and found.before < 0.5 and len(found.changes) >= 1
    after = model.predict(found.rows)
    assert (after.labels == wanted).all()
    assert (found.rows["spent"] == row["spent"][0]).all()
    for change, changed in zip(found.changes, found.rows.to_dict("records"), strict=True):
        own = {name: x[0] for name, x in row.items()}
        assert {n: (own[n], x) for n, x in changed.items() if x != own[n]} == change
        assert changed["age"] % 1 == 0 and changed["city"] in "xyz"


def test_a_category_that_the_model_has_not_learned_is_no_answer():
    model, row = untrained(), some_rows(0)
    wanted = "yes" if model.predict(row).labels[0] == "no" else "no"
    rows = {name: x[:4] for name, x in table().items()} | {"city": ["q", "q", "x", "z"]}
    found = explain.counterfactuals(model, row, rows, wanted, count=9, ranges={"age": (0, 90)})
    assert found.changes and not any("q" in change.get("city", ()) for change in found.changes)


def test_a_missing_number_may_get_a_value():
    rows = ROWS.assign(pay=ROWS["pay"].where(ROWS.index % 7 > 0))
    known = lambda frame: score(frame.assign(pay=frame["pay"].fillna(0.0)))  # noqa: E731
    found = explain.counterfactuals(
        known, {**ONE, "pay": [np.nan]}, rows, least=5.0, columns=["pay"]
    )
    assert np.isnan(found.changes[0]["pay"][0]) and found.costs[0] == 2.0 and found.after[0] >= 5


def test_a_whole_number_in_a_column_of_other_numbers():
    """3 + 0.8 pay >= 6.4 from 4.25 on."""
    found = explain.counterfactuals(
        score, {**ONE, "pay": [1]}, ROWS, least=6.4, columns=["pay"], ranges={"pay": (0.5, 6)}
    )
    assert 4.25 <= found.changes[0]["pay"][1] < 4.3


def test_what_a_cell_may_become():
    missing = _cell("age", pd.Series([np.nan], name="age"), ROWS["age"], {}, {}, {})
    assert len(missing.values) > 4 and all(value % 1 == 0 for value in missing.values)
    tenths = _cell("pay", pd.Series([0.0]), ROWS["pay"], {}, {"pay": (0, 0.3)}, {"pay": 0.1})
    assert max(tenths.values) == 0.3  # 3 * 0.1 is more


def test_dates_as_text_do_not_change():
    frame = pd.DataFrame({"joined": ["2024-01-01", "2024-02-01"], "age": [20, 30]})
    model = SimpleNamespace(reader=SimpleNamespace(dates=["joined"]))
    assert _changeable(model, frame, frame, ["joined", "age"], (), ({}, {}, {})) == ["age"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"immutable": ["plam"]},
            "immutable must be columns of the rows .age, pay, plan., got 'pl",
        ),
        ({"immutable": ["age", "pay", "plan"]}, "immutable must leave a column that may change"),
        ({"immutable": ["age"], "directions": {"age": "up"}}, "directions must be of columns that"),
        ({"directions": {"age": "left"}}, r'directions\[.age.\] must be "up" or "down", got .left'),
        (
            {"directions": {"plan": "up"}},
            "directions must be of numbers, got .plan., which has cat",
        ),
        ({"ranges": {"age": (5, 1)}}, r"ranges\[.age.\] must be \(least, largest\), got"),
        ({"ranges": {"plan": "bc"}}, r"ranges\[.plan.\] must be a list of categories, got 'bc'"),
        ({"steps": {"age": -1}}, r"steps\[.age.\] must be at least 0, got -1"),
        ({"least": None}, "least or most must be given"),
        ({"least": 3.0}, "row must not be as wanted already, got prediction 3.8"),
        (
            {"least": 99.0},
            "prediction must become 99 to inf by a change that is allowed, got at best",
        ),
        ({"count": 0}, "count at least 1, got 1 and 0"),
    ],
)
def test_what_cannot_be_changed_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        explain.counterfactuals(score, ONE, ROWS, **{"least": 6.0, **options})


def test_a_class_that_is_not_there():
    with pytest.raises(ValueError, match="target must be one of no, yes, got 'maybe'"):
        explain.counterfactuals(untrained(), some_rows(0), table(), "maybe")
