"""k, l and t of tables that papers work out, and the risk of small tables counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxops import anonymity

# Machanavajjhala et al. 2006, figure 2: a 4-anonymous table of inpatients
PATIENTS = {
    "zip": ["130**"] * 4 + ["1485*"] * 4 + ["130**"] * 4,
    "age": ["<30"] * 4 + [">=40"] * 4 + ["3*"] * 4,
    "condition": [*("heart", "heart", "virus", "virus"), *("cancer", "heart", "virus", "virus")]
    + ["cancer"] * 4,
}
# Li, Li and Venkatasubramanian 2007, table 3: a 3-diverse table of salaries
SALARIES = {
    "zip": ["476**"] * 3 + ["4790*"] * 3 + ["476**"] * 3,
    "age": ["2*"] * 3 + [">=40"] * 3 + ["3*"] * 3,
    "salary": [3, 4, 5, 6, 11, 8, 7, 9, 10],
    "disease": [
        *("ulcer", "gastritis", "stomach cancer", "gastritis", "flu", "bronchitis"),
        *("bronchitis", "pneumonia", "stomach cancer"),
    ],
}


def test_patients():
    assert anonymity.k_anonymity(PATIENTS, ["zip", "age"]) == 4
    told = anonymity.l_diversity(PATIENTS, ["zip", "age"], "condition")
    assert told.distinct == 1 and told.entropy == 1.0
    without = {name: column[:8] for name, column in PATIENTS.items()}
    told = anonymity.l_diversity(without, ["zip", "age"], "condition")
    assert told.distinct == 2 and told.entropy == pytest.approx(2.0)
    # the second group: shares 1/4, 1/4, 1/2
    second = {name: column[4:8] for name, column in PATIENTS.items()}
    told = anonymity.l_diversity(second, ["zip", "age"], "condition")
    assert told.entropy == pytest.approx(math.exp(1.5 * math.log(2)))


def test_salaries():
    # the paper: 0.375 for {3, 4, 5} and 0.167 for {6, 8, 11}
    first = pd.DataFrame(SALARIES)
    assert anonymity.t_closeness(SALARIES, ["zip", "age"], "salary") == pytest.approx(0.375)
    merged = first.assign(zip=["a"] * 3 + ["b"] * 3 + ["a"] * 3, age="*")
    two = anonymity.t_closeness(merged, ["zip", "age"], "salary")
    assert two == pytest.approx(1 / 6)  # of {6, 8, 11}; that of the other six is smaller


def test_closeness_of_texts():
    # a group with 3 of 9 values, each alone in it: half of (3 (1/3 - share) + the rest)
    groups = pd.DataFrame(SALARIES).groupby(["zip", "age"])["disease"]
    overall = pd.Series(SALARIES["disease"]).value_counts(normalize=True)
    want = max(
        (group.value_counts(normalize=True).reindex(overall.index, fill_value=0) - overall)
        .abs()
        .sum()
        / 2
        for _, group in groups
    )
    assert anonymity.t_closeness(SALARIES, ["zip", "age"], "disease") == pytest.approx(want)
    table = {"g": [1, 1, 2, 2], "size": ["s", "m", "l", "l"]}
    ordered = anonymity.t_closeness(table, ["g"], "size", order=["s", "m", "l"])
    # group 2 has all at l, the table (1/4, 1/4, 1/2): (1/4 + 1/2) / 2
    assert ordered == pytest.approx(0.375)
    with pytest.raises(ValueError, match=r"order must have all values of 'size', got none 'l'"):
        anonymity.t_closeness(table, ["g"], "size", order=["s", "m"])


def test_missing_values_are_values():
    table = {"age": [30.0, np.nan, np.nan, 30.0], "job": ["a", None, None, "a"]}
    assert anonymity.k_anonymity(table, ["age", "job"]) == 2
    assert anonymity.k_anonymity({"age": [30.0, np.nan, 30.0]}, ["age"]) == 1
    with pytest.raises(ValueError, match=r"'age' must have no missing numbers, got one in row 1"):
        anonymity.t_closeness(table, ["job"], "age")


def test_risk_by_hand():
    table = {
        "age": [30, 30, 30, 41, 41, 52],
        "sex": ["f", "f", "m", "m", "m", "m"],
        "zip": ["1", "2", "1", "1", "1", "1"],
    }
    risk = anonymity.reidentification(table, ["age", "sex", "zip"])
    # groups: (30 f 1), (30 f 2), (30 m 1), (41 m 1) twice, (52 m 1)
    assert (risk.rows, risk.groups, risk.unique) == (6, 5, pytest.approx(4 / 6))
    assert (risk.prosecutor, risk.prosecutor_mean) == (1.0, pytest.approx(5 / 6))
    assert risk.journalist is None
    by_name = {column.name: column for column in risk.columns}
    assert by_name["age"].alone == pytest.approx(1 / 6)
    assert by_name["zip"].alone == pytest.approx(1 / 6)
    assert by_name["sex"].alone == 0
    # without age: (f 1), (f 2), (m 1) four times
    assert by_name["age"].without == pytest.approx(2 / 6)
    assert by_name["sex"].without == pytest.approx(2 / 6)  # (30 2) and (52 1) are alone
    assert by_name["zip"].without == pytest.approx(2 / 6)  # (30 m) and (52 m)
    assert "6 rows in 5 groups" in str(risk) and "| zip    | 16.67% | 33.33%  |" in str(risk)


def test_journalist_counts_in_the_population():
    everybody = {"age": [30] * 5 + [40] * 2 + [50], "job": ["a"] * 8}
    few = {"age": [30, 40], "job": ["a", "a"]}
    assert anonymity.reidentification(few, ["age", "job"], everybody).journalist == 0.5
    with pytest.raises(ValueError, match="population must have all rows of the table, got none li"):
        anonymity.reidentification({"age": [31], "job": ["a"]}, ["age", "job"], everybody)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: anonymity.k_anonymity(t, ["age", "zap"]), "a column 'zap', got age, ill"),
        (lambda t: anonymity.k_anonymity(t, []), "identifiers must be names of columns, at least"),
        (lambda t: anonymity.k_anonymity(t, "age"), "identifiers must be names of columns, at le"),
        (lambda t: anonymity.k_anonymity(t, ["age", "age"]), "identifiers must be distinct"),
        (lambda t: anonymity.l_diversity(t, ["age"], "age"), "without the sensitive column, got"),
        (lambda t: anonymity.k_anonymity({"age": []}, ["age"]), "at least 1 row, got 0"),
    ],
)
def test_wrong_tables(call, message):
    with pytest.raises(ValueError, match=message):
        call({"age": [1, 2], "ill": ["a", "b"]})
