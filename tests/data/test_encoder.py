import json

import numpy as np
import pytest
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from jaxops.data import load
from jaxops.tabular import Encoder, encode, fit_encoder

TABLE = {
    "age": np.array([20, 40, 60, 40]),
    "income": np.array([1.0, np.nan, 3.0, np.nan]),
    "plan": np.array(["b", "a", "b", "c"]),
    "left": np.array(["yes", "no", "no", "yes"]),
}


def test_worked_by_hand():
    encoder = fit_encoder(TABLE, label="left")
    out = encode(encoder, TABLE)
    assert encoder.names == ["age", "income", "income missing", "plan=a", "plan=b", "plan=c"]
    root = np.sqrt(2)
    wanted = [
        [-root, -1, 0, 0, 1, 0],
        [0, 0, 1, 1, 0, 0],
        [root, 1, 0, 0, 1, 0],
        [0, 0, 1, 0, 0, 1],
    ]
    np.testing.assert_allclose(out["features"], wanted, rtol=1e-6)
    assert out["features"].dtype == np.float32
    assert encoder.classes == ["no", "yes"]
    assert out["label"].tolist() == [1, 0, 0, 1] and out["label"].dtype == np.int32


def test_rows_that_training_has_not_seen():
    encoder = fit_encoder(TABLE, drop=["income"], label="left")
    new = {"age": np.array([np.nan, 80.0]), "plan": np.array(["z", "a"]), "more": np.zeros((2, 9))}
    out = encode(encoder, new)
    np.testing.assert_allclose(out["features"], [[0, 0, 0, 0], [2 * np.sqrt(2), 1, 0, 0]], 1e-6)
    assert [*out] == ["features"]


def test_json_holds_it():
    encoder = fit_encoder(TABLE, label="left")
    assert Encoder(**json.loads(json.dumps(encoder._asdict()))) == encoder


def test_whole_number_labels_are_in_their_order():
    columns = {"x": np.arange(4.0), "y": np.array([10, 9, -1, 9])}
    encoder = fit_encoder(columns, label="y")
    assert encoder.classes == ["-1", "9", "10"]
    assert encode(encoder, columns)["label"].tolist() == [2, 1, 0, 1]


def test_constant_numbers_become_zero():
    columns = {"x": np.full(1001, 0.1)}
    encoder = fit_encoder(columns)
    assert encoder.std == {"x": 1.0}
    np.testing.assert_array_equal(encode(encoder, columns)["features"], np.zeros((1001, 1)))


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({}, {}, "columns must hold at least one column, got none"),
        ({"a": np.zeros(0)}, {}, "at least 1 row, got 0"),
        ({"a": np.zeros(2), "b": np.zeros(3)}, {}, "equal numbers of rows, got 2 of a, 3 of b"),
        ({"a": np.zeros(2)}, {"drop": ["id"]}, "columns must include 'id', got a"),
        ({"a": np.zeros(2)}, {"label": "y"}, "columns must include 'y', got a"),
        (
            {"a": np.zeros(2)},
            {"label": "a"},
            r"a must be text or whole numbers, got 0.0 in row 0; convert it: a.astype\(int\)",
        ),
        ({"a": np.zeros(2, int)}, {"label": "a"}, "columns must include one to learn from, got a"),
        ({"a": np.zeros((2, 3))}, {}, r"a must be one value a row, got rows of shape \(3,\)"),
        ({"a": np.array([np.nan, np.nan])}, {}, "a must have a value in some row, got none"),
        ({"a": np.array([0, np.inf])}, {}, "a must be finite, .*, got infinity in row 1"),
        ({"a": np.array(["x", 1], object)}, {}, "a must be text or numbers, got 1 in row 1"),
        (
            {"id": np.array([f"c{i}" for i in range(30)])},
            {},
            "id must have at most 20 different texts, got 30 in 30 rows",
        ),
    ],
)
def test_fit_refuses(columns, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_encoder(columns, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": np.array(["old"] * 4)}, r"age must be numbers, .*, got text \('old' in row 0\)"),
        ({"plan": np.arange(4)}, "plan must be text, .*, got numbers"),
        (
            {"left": np.array(["no", "no", "maybe", "no"])},
            "left must be one of .*, got 'maybe' in row 2",
        ),
        ({"plan": np.array(["a"])}, "1 of plan"),
        (
            {"income": np.array([0, 0, 0, -np.inf])},
            "income must be finite, .*, got infinity in row 3",
        ),
    ],
)
def test_encode_refuses(change, message):
    encoder = fit_encoder(TABLE, label="left")
    with pytest.raises(ValueError, match=message):
        encode(encoder, {**TABLE, **change})


def test_encode_needs_every_column():
    with pytest.raises(ValueError, match="columns must include 'plan', got age, income"):
        encode(fit_encoder(TABLE), {name: TABLE[name] for name in ("age", "income")})


@pytest.mark.data("telco_churn")
def test_telco_churn_agrees_with_scikit_learn():
    data = load("telco_churn").split(test=0.2, seed=0, stratify="Churn")
    encoder = fit_encoder(data.train, drop=["customerID"], label="Churn")
    assert encoder.missing == ["TotalCharges"] and encoder.classes == ["No", "Yes"]
    numeric = ["SeniorCitizen", "tenure", "MonthlyCharges", "TotalCharges"]
    text = [name for name in data.train if name not in (*numeric, "customerID", "Churn")]

    def table(columns, names, dtype):
        return np.stack([columns[name] for name in names], 1).astype(dtype)

    scaler = StandardScaler().fit(table(data.train, numeric, float))
    one_hot = OneHotEncoder(sparse_output=False).fit(table(data.train, text, object))
    for columns in data.splits.values():
        numbers = table(columns, numeric, float)
        missing = np.isnan(numbers[:, -1:])
        wanted = np.concatenate(
            [
                np.where(np.isnan(numbers), 0, scaler.transform(numbers)),
                missing,
                one_hot.transform(table(columns, text, object)),
            ],
            axis=1,
        )
        found = encode(encoder, columns)
        assert found["features"].shape[1] == len(encoder.names) == 46
        np.testing.assert_allclose(found["features"], wanted, atol=1e-6)
        np.testing.assert_array_equal(found["label"], columns["Churn"] == "Yes")
    counts = [np.isnan(columns["TotalCharges"]).sum() for columns in (data.train, data.test)]
    assert sum(counts) == 11


def test_the_piecewise_linear_encoding():
    x = np.concatenate([np.zeros(900), np.arange(1.0, 101)])  # one value fills nine bins of ten
    encoder = fit_encoder({"gain": x}, bins=10)
    edges = encoder.edges["gain"]
    assert edges[:2] == [0, 1] and edges[-1] == 100 and 10 <= len(edges) <= 13
    assert encoder.names == [f"gain>{edge:g}" for edge in edges[:-1]]
    new = np.array([-5.0, 0.0, 0.5, edges[3], 200.0, np.nan])
    pieces = encode(encoder, {"gain": new})["features"]
    assert pieces[0, 0] == -5 and not pieces[0, 1:].any()  # the first bin has no lower bound
    assert not pieces[1].any() and pieces[2, 0] == 0.5
    np.testing.assert_array_equal(pieces[3], np.arange(len(edges) - 1) < 3)
    assert (pieces[4, :-1] == 1).all() and pieces[4, -1] > 1  # the last has no upper
    assert not pieces[5].any()
    # a sum of the bins' widths gives the number again
    np.testing.assert_allclose(pieces[:5] @ np.diff(edges), new[:5] - edges[0], rtol=1e-5)
