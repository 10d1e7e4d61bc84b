"""Tables made anonymous: by hand, against brute force, and on Adult checked by pandas."""

import itertools
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxops import anonymity
from jaxops.anonymity import ranges


def test_mondrian_by_hand():
    # LeFevre et al. 2006, figure 1: the patients by age, sex and zip code
    table = {
        "age": [25, 25, 26, 27, 27, 28],
        "sex": ["m", "f", "m", "m", "f", "m"],
        "zip": [53711, 53712, 53711, 53710, 53712, 53711],
        "disease": ["flu", "hepatitis", "bronchitis", "broken arm", "aids", "hang nail"],
    }
    told = anonymity.mondrian(table, ["age", "sex", "zip"], k=2)
    # the widest is age, all of it; it is cut at its median: 25, 25, 26 and 27, 27, 28
    assert told.table["age"].tolist() == ["[25, 26]"] * 3 + ["[27, 28]"] * 3
    assert told.table["sex"].tolist() == ["{f, m}"] * 6
    assert told.table["zip"].tolist() == ["[53711, 53712]"] * 3 + ["[53710, 53712]"] * 3
    assert told.table["disease"].tolist() == table["disease"]
    assert told.losses == {
        "age": pytest.approx(1 / 3),
        "sex": pytest.approx(1.0),
        "zip": pytest.approx((0.5 + 1) / 2),
    }
    assert told.loss == pytest.approx(sum(told.losses.values()) / 3) and told.dropped == 0


@pytest.fixture(scope="module")
def people():
    rng = np.random.default_rng(0)
    n = 400
    age = rng.integers(18, 90, n).astype(float)
    age[rng.random(n) < 0.05] = np.nan
    job = rng.choice(["cook", "baker", "smith", None], n)
    pay = rng.lognormal(7, 1, n).round()
    ill = rng.choice(["flu", "cold", "ulcer"], n, p=[0.6, 0.3, 0.1])
    return pd.DataFrame({"age": age, "job": job, "pay": pay, "ill": ill})


@pytest.mark.parametrize("k", [2, 7, 400])
def test_mondrian_keeps_k(people, k):
    told = anonymity.mondrian(people, ["age", "job", "pay"], k=k)
    sizes = told.table.groupby(["age", "job", "pay"], dropna=False).size()
    assert sizes.min() >= k and sizes.sum() == 400
    assert (told.loss == 1) == (k == 400)
    assert anonymity.k_anonymity(told.table, ["age", "job", "pay"]) == sizes.min()
    if k < 400:  # each value lies in its range
        for value, text in zip(people["pay"], told.table["pay"], strict=True):
            low, high = (float(end) for end in text.strip("[]").split(", ")) if "," in text else (
                float(text), float(text))  # fmt: skip
            assert low <= value <= high
        missing = told.table["age"][people["age"].isna()]
        assert all(pd.isna(text) or text.endswith("missing") for text in missing)


def test_mondrian_keeps_diversity_and_closeness(people):
    columns = ["age", "job", "pay"]
    plain = anonymity.mondrian(people, columns, k=3)
    assert anonymity.l_diversity(plain.table, columns, "ill").distinct == 1
    diverse = anonymity.mondrian(people, columns, k=3, sensitive="ill", diversity=3)
    assert anonymity.l_diversity(diverse.table, columns, "ill").distinct == 3
    close = anonymity.mondrian(people, columns, k=3, sensitive="ill", closeness=0.15)
    assert anonymity.t_closeness(close.table, columns, "ill") <= 0.15
    assert plain.loss < diverse.loss and plain.loss < close.loss
    numbers = anonymity.mondrian(people, ["age", "job"], k=3, sensitive="pay", closeness=0.1)
    assert anonymity.t_closeness(numbers.table, ["age", "job"], "pay") <= 0.1


LEVELS = {
    "age": [ranges(10), ranges(20)],
    "job": [{"cook": "food", "baker": "food", "smith": "metal"}],
}


@pytest.mark.parametrize("drop", [0.0, 0.02, 0.3])
def test_generalised_is_the_best_of_all(people, drop):
    """Against all combinations of levels, with losses counted by pandas."""
    told = anonymity.generalised(people, LEVELS, k=5, drop=drop)

    def age(level):
        low, high = people["age"].min(), people["age"].max()
        if level == 0:
            return people["age"], pd.Series(0.0, people.index)
        width = {1: 10, 2: 20, 3: 1000}[level]
        part = people["age"] // width
        if level == 3:  # missing ones are among all
            return pd.Series(0, people.index), pd.Series(1.0, people.index)
        spread = people["age"].groupby(part).transform(lambda a: (a.max() - a.min()) / (high - low))
        return part, spread.fillna(0)

    def job(level):
        if level == 0:
            return people["job"], pd.Series(0.0, people.index)
        if level == 2:
            return pd.Series(0, people.index), pd.Series(1.0, people.index)
        part = people["job"].map({"cook": "food", "baker": "food", "smith": "metal"})
        return part, (part == "food") / 3

    best = np.inf
    for one, two in itertools.product(range(4), range(3)):
        (a, loss_a), (j, loss_j) = age(one), job(two)
        sizes = people.assign(a=a, j=j).groupby(["a", "j"], dropna=False)["pay"].transform("size")
        keep = sizes >= 5
        if (~keep).sum() <= int(drop * 400) and keep.any():
            best = min(best, ((loss_a + loss_j)[keep].sum() / 2 + (~keep).sum()) / 400)
    assert told.loss == pytest.approx(best)
    assert anonymity.k_anonymity(told.table, ["age", "job"]) >= 5
    assert len(told.table) == 400 - told.dropped == len(told.rows) and told.dropped <= drop * 400
    kept = people.iloc[told.rows]
    pd.testing.assert_series_equal(told.table["ill"], kept["ill"])
    assert told.loss == pytest.approx(sum(told.losses.values()) / 2)


def test_generalised_keeps_diversity_and_closeness(people):
    told = anonymity.generalised(
        people, LEVELS, k=3, sensitive="ill", diversity=3, closeness=0.25, drop=0.2
    )
    columns = ["age", "job"]
    assert anonymity.k_anonymity(told.table, columns) >= 3
    assert anonymity.l_diversity(told.table, columns, "ill").distinct == 3
    assert anonymity.t_closeness(told.table, columns, "ill") <= 0.25


@pytest.mark.data("adult")
def test_adult_in_groups_of_ten():
    file = Path(os.environ["JAXOPS_DATA_DIR"], "adult", "adult-train.csv.gz")
    adult = pd.read_csv(file, header=None, skipinitialspace=True)
    columns = ["age", "marital", "race", "sex", "country"]
    adult = adult.rename(columns=dict(zip((0, 5, 8, 9, 13), columns, strict=True)))
    adult.columns = adult.columns.map(str)
    before = adult.groupby(columns, dropna=False).size()
    risk = anonymity.reidentification(adult, columns)
    assert risk.groups == len(before) and risk.unique == (before == 1).sum() / len(adult)
    told = anonymity.mondrian(adult, columns, k=10)
    after = told.table.groupby(columns, dropna=False).size()
    assert after.min() >= 10 and after.sum() == len(adult)
    assert told.loss < 0.2
    assert anonymity.reidentification(told.table, columns).prosecutor <= 0.1


TABLE = {"age": [1, 2, 3, 4], "ill": ["a", "b", "a", "b"]}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: anonymity.mondrian(TABLE, ["age"], k=1), r"k must be in \[2, 4\] \(the number of"),
        (lambda: anonymity.mondrian(TABLE, ["age"], k=5), r"k must be in \[2, 4\] .*, got 5"),
        (lambda: anonymity.mondrian(TABLE, ["zip"], k=2), "a column 'zip', got age, ill"),
        (lambda: anonymity.mondrian(TABLE, ["age"], k=2, diversity=2), "sensitive must be given"),
        (
            lambda: anonymity.mondrian(TABLE, ["age"], k=2, sensitive="ill", diversity=3),
            r"diversity must be at most 2 \(the different values of 'ill'\), got 3",
        ),
        (
            lambda: anonymity.mondrian(TABLE, ["age"], k=2, sensitive="ill", closeness=2.0),
            "closeness in",
        ),
        (
            lambda: anonymity.mondrian(
                {"age": [1, 2], "pay": [1.0, np.nan]}, ["age"], k=2, sensitive="pay", closeness=0.5
            ),
            r"'pay' must have no missing numbers for closeness, got one in row 1",
        ),
        (lambda: ranges(0), "width must be above 0 and finite, got 0"),
        (lambda: anonymity.generalised(TABLE, {"age": []}, k=2, drop=1.0), r"drop must be in \[0,"),
        (
            lambda: anonymity.generalised(TABLE, {"ill": [{"a": "x"}]}, k=2),
            r"hierarchies\['ill'\] must have all values, got none for 'b'",
        ),
        (
            lambda: anonymity.generalised(TABLE, {"age": [ranges(2), ranges(3)]}, k=2),
            r"must join at each level what the one below joins, got 2 levels and then one that sep",
        ),
        (
            lambda: anonymity.generalised(
                {"age": [1, 2], "ill": ["a", "a"]}, {"age": []}, k=2, sensitive="ill", diversity=2
            ),
            "diversity must be at most 1",
        ),
    ],
)
def test_wrong_settings_of_generalisation(call, message):
    with pytest.raises(ValueError, match=message):
        call()
