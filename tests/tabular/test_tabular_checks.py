"""What is found wrong with a table before anything is learned, and how its rows are divided."""

import warnings

import numpy as np
import pytest

from jaxops import tabular
from jaxops.data.splits import folds_of, held_out_later
from jaxops.tabular import checks, jobs
from jaxops.tabular.parts import Roles, parts_of

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
N = 600
AGE = RNG.uniform(20, 60, N)
PLAN = RNG.choice(["a", "b"], N).astype(object)
LEFT = np.where(AGE + RNG.normal(0, 9, N) > 40, "yes", "no").astype(object)
TABLE = {"age": AGE, "plan": PLAN, "left": LEFT}
QUICK = tabular.LightGBM(n_estimators=3, n_jobs=1)  # as nothing is compiled for it


def fitted(table, method=QUICK, **options):
    pytest.importorskip("lightgbm")
    return tabular.fit(table, method, **{"label": "left", "progress": False, **options})


def parted(table, validation=0.15, label="left", **roles):
    """What `fit` does before it trains."""
    plain = dict.fromkeys(("id", "groups", "time", "weights")) | {"drop": (), "text": ()}
    return parts_of(table, Roles(label, **{**plain, **roles}), validation, None, 0, False)


def test_columns_of_which_nothing_can_be_learned_are_reported(capsys):
    dates = np.array(["2024-01-01", "2024-02-03"], object)[np.arange(N) % 2]
    table = {
        **TABLE,
        "same": np.ones(N),
        "word": np.full(N, "x", object),
        "gaps": np.full(N, np.nan),
        "none": np.full(N, "", object),
        "half": np.where(np.arange(N) % 2, 1.0, np.nan),  # the gaps may tell something
        "twin": AGE.copy(),
        "copy": PLAN.copy(),
        "name": np.array([f"n{i}" for i in range(N)], object),
        "since": dates,
        "until": dates.copy(),
    }
    model = fitted(table, progress=True)
    why = model.about["left out"]
    assert why == {
        "same": "1 in every row",
        "word": "'x' in every row",
        "gaps": "no value",
        "none": "no value",
        "twin": "the same as age",
        "copy": "the same as plan",
        "name": "510 texts in 510 rows: an identifier, or text for jaxops.text; group or hash them "
        "to fewer to learn from them here",
        "until": "the same as since",
    }
    assert "left out: same (1 in every row), word ('x' in every row)" in capsys.readouterr().out
    known = {"age", "plan", "half", "since", "since month"}
    assert known <= model.reader.encoder.mean.keys() | model.reader.encoder.values.keys()
    new = {name: table[name][:3] for name in ("age", "plan", "half", "since")}
    assert model.predict(new).labels.shape == (3,)  # what was left out is not asked for


def test_a_column_that_tells_the_label_is_warned_of():
    told = np.where(LEFT == "yes", RNG.normal(5, 1, N), RNG.normal(-5, 1, N))
    with pytest.warns(UserWarning, match=r"told tells left by itself, with an AUC of 1.0000: .*"
                      r"drop=\['told'\]"):  # fmt: skip
        parted({**TABLE, "told": told})
    code = np.where(LEFT == "yes", "closed", "open").astype(object)
    with pytest.warns(UserWarning, match="status tells left by itself"):
        parted({**TABLE, "status": code})
    rare = np.where(np.arange(N) < 30, "yes", "no").astype(object)  # 5 % of the rows
    with pytest.warns(UserWarning, match="hit tells left by itself"):
        parted({**TABLE, "left": rare, "hit": (rare == "yes") + RNG.normal(0, 0.01, N)})
    with pytest.warns(UserWarning, match="euros tells spent by itself, with an R² of 0.99"):
        parted({"plan": PLAN, "euros": AGE**3, "spent": AGE**3 + AGE}, label="spent")


def test_strong_columns_and_small_tables_are_not_warned_of():
    strong = np.where(LEFT == "yes", 1.0, -1.0) + RNG.normal(0, 0.7, N)
    many = RNG.choice([f"c{i}" for i in range(200)], N).astype(object)  # three rows a value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parted({**TABLE, "strong": strong, "many": many})
        few = {n: c[:200] for n, c in TABLE.items()}
        parted({**few, "told": (few["left"] == "yes") * 1.0})
    assert 0.9 < checks.told(strong, (LEFT == "yes").astype(int), 2) < 0.99


def test_the_figure_is_that_of_a_loop():
    """By a brute-force sum over pairs, for a column of texts."""
    target, column = RNG.integers(0, 3, 120), RNG.choice(["a", "b", "c", "d"], 120).astype(object)
    half, prior = 60, np.bincount(target[:60], minlength=3) / 60
    score = []
    for k in range(3):
        p = []
        for value in column[half:]:
            rows = column[:half] == value
            p.append(((target[:half][rows] == k).sum() + prior[k]) / (rows.sum() + 1))
        true = target[half:] == k
        pairs = [(a > b) + (a == b) / 2 for a in np.array(p)[true] for b in np.array(p)[~true]]
        score.append(np.mean(pairs))
    wanted = np.mean([s for k, s in enumerate(score) if (target[half:] == k).sum() >= 20])
    assert checks.told(column, target, 3) == pytest.approx(wanted)


def test_whole_numbers_that_number_the_rows_are_warned_of():
    with pytest.warns(UserWarning, match=r"row should not be an identifier, .* id='row', if it is"):
        parted({**TABLE, "row": RNG.permutation(N) + 1000.0})
    parted({**TABLE, "row": RNG.permutation(N) + 1000.0}, id="row")


def test_rows_in_training_and_validation_are_warned_of():
    train, held = ({n: c[rows] for n, c in TABLE.items()} for rows in (slice(500), slice(450, N)))
    with pytest.warns(UserWarning, match="validation should .* 50 of 150 rows .* first in row 0"):
        parted(train, validation=held)
    plans = {"plan": PLAN, "left": LEFT}  # equal by chance, as in training
    train, held = ({n: c[rows] for n, c in plans.items()} for rows in (slice(450), slice(450, N)))
    parted(train, validation=held)


def test_validation_is_later_than_training():
    day = RNG.integers(0, 50, N)
    train, held = held_out_later(day, 0.2)
    assert day[train].max() < day[held].min() and len(train) + len(held) == N
    assert 0.15 < len(held) / N < 0.25
    group = RNG.integers(0, 200, N)
    train, held = held_out_later(day, 0.2, group)
    assert day[train].max() < day[held].min() and not {*group[train]} & {*group[held]}
    dates = np.datetime64("2024-01-01") + day.astype("timedelta64[D]")
    parts = parted({**TABLE, "when": dates, "day": day + AGE / 100}, time="when")
    assert {*parts.train} == {"age", "plan", "day", "left"} and parts.reader.dates == ()
    first, last = (np.floor(rows["day"]) for rows in (parts.train, parts.validation))
    assert first.max() < last.min() and len(first) + len(last) == N


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"time": "plan"}, "plan must be dates or numbers, got '[ab]' in row 0"),
        ({"day": np.where(np.arange(N) == 7, np.nan, 1.0)}, {"time": "day"},
         r"day must have a value in every row, got none in row 7 \(1 such rows\)"),
        ({"day": np.ones(N)}, {"time": "day"}, "times must vary enough to hold the last 15%"),
        ({}, {"time": "age", "validation": TABLE}, "time must be None where .* a table of its own"),
        ({}, {"groups": "plan", "validation": TABLE}, "groups must be None where validation is"),
        ({}, {"time": "when"}, "time must be one of age, plan, left, got 'when'"),
        ({}, {"weights": "plan"}, "plan must be numbers of at least 0, got '[ab]' in row 0"),
        ({"w": np.where(np.arange(N) == 5, -1.0, 1.0)}, {"weights": "w"},
         "w must be numbers of at least 0, got -1 in row 5"),
        ({"w": np.where(np.arange(N) == 5, np.nan, 1.0)}, {"weights": "w"}, "got nan in row 5"),
        ({"w": np.zeros(N)}, {"weights": "w"}, "w must be above 0 in some row"),
        ({}, {"method": tabular.MLP(reads=tabular.Reads("bin"))},
         "reads.numbers must be one of bins, standard, quantile, robust, got 'bin'"),
        ({}, {"method": []}, "method must be at least 1, got an empty list"),
        ({}, {"target": "quantiles", "levels": np.array([0.9, 0.1])}, "levels must be rising"),
        ({}, {"drop": ["left"]}, "drop must be columns beside the label, got 'left' among them"),
        ({"left": np.where(np.arange(N) == 3, np.inf, AGE)}, {"classes": False},
         "left must be finite float32 numbers, got 'inf' in row 3"),
    ],
)  # fmt: skip
def test_what_cannot_be(change, options, message):
    with pytest.raises(ValueError, match=message):
        fitted({**TABLE, **change}, **options)


def test_classes_that_were_not_in_training():
    odd = {**TABLE, "left": np.where(np.arange(N) == 9, "perhaps", LEFT).astype(object)}
    with pytest.raises(ValueError, match=r"left must be one of \['no', 'yes'\], got 'perhaps' in"):
        tabular.evaluate(fitted(TABLE), odd)


def test_folds_keep_the_shares_of_classes_and_hold_groups_together():
    label = np.array(["a"] * 50 + ["b"] * 7 + ["c"], object)
    for train, held in folds_of(58, 5, label, seed=3):
        assert 9 <= (label[held] == "a").sum() <= 11 and 1 <= (label[held] == "b").sum() <= 2
        assert sorted([*train, *held]) == [*range(58)]
    groups = np.repeat(np.arange(30), 2)
    drawn = [folds_of(60, 3, groups=groups, seed=seed) for seed in (0, 0, 1)]
    sides = [[held.tolist() for _, held in folds] for folds in drawn]
    assert sides[0] == sides[1] != sides[2] and {len(side) for side in sides[2]} == {20}
    with pytest.raises(ValueError, match=r"folds must be in \[2, 2\] \(the number of groups\)"):
        folds_of(4, 3, groups=["a", "a", "b", "b"])


def test_a_label_of_several_values_says_what_to_do():
    pd = pytest.importorskip("pandas")
    tags = pd.DataFrame({"age": AGE[:2], "tags": [["a"], ["a", "b"]]})
    with pytest.raises(ValueError, match=r"got \['a'\] in row 0 .*; make a column of each value"):
        fitted(tags, label="tags")


def test_what_is_trained_without_a_method(monkeypatch):
    tried = {}
    monkeypatch.setattr(jobs, "selected", lambda methods, *rest: tried.update(methods=methods))
    monkeypatch.setattr(jobs, "_trained", lambda method, *rest: (method, None))
    monkeypatch.setattr(jobs, "_with_reference", lambda model, table: model)
    plain = {"label": "left", "progress": False}
    assert tabular.fit(TABLE, **plain) == tabular.TabM()
    tabular.fit(TABLE, [None], **plain)
    assert tried["methods"] == [tabular.TabM()]
    tabular.fit(TABLE, budget="30min", **plain)
    names = [type(one).__name__ for one in tried["methods"]]
    assert names[0] == "HistGradientBoosting" and names[-3:] == ["TabM", "RealMLP", "MLP"]
    for more in (
        {"label": ["left", "plan"]},
        {"label": "age", "target": "quantiles", "levels": [0.5]},
    ):
        tabular.fit(TABLE, **{**plain, "budget": 60, **more})
        assert [type(one).__name__ for one in tried["methods"]] == names[-3:]
