import copy
import pickle

import numpy as np
import pytest
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from jaxops.data import Dataset, k_fold


def numbered(n=100, classes=4):
    rng = np.random.default_rng(0)
    label = rng.choice(classes, n, p=[0.6, 0.25, 0.1, 0.05])
    return Dataset.from_arrays(x=rng.normal(5, 3, (n, 2)), row=np.arange(n), label=label)


def test_splits_are_attributes():
    data = numbered()
    assert data.train is data.splits["train"]
    with pytest.raises(AttributeError, match="'validation'; its splits: train"):
        _ = data.validation


def test_can_be_copied_and_pickled():
    for data in (copy.deepcopy(numbered()), pickle.loads(pickle.dumps(numbered()))):
        np.testing.assert_array_equal(data.train["row"], np.arange(100))


def test_repr_counts_rows():
    text = "Dataset(train: 100; columns: x, row, label; source: arrays)"
    assert repr(numbered()) == text


def test_from_arrays_refuses_unequal_columns():
    with pytest.raises(ValueError, match="got 2 of a, 3 of b"):
        Dataset.from_arrays(a=np.zeros(2), b=np.zeros(3))


def test_from_arrays_takes_a_frame():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"a": [1, 2], "b": ["x", "y"]})
    assert Dataset.from_arrays(**frame).train["b"].tolist() == ["x", "y"]


def test_one_fraction_gives_the_rows_of_scikit_learn():
    data = numbered(101)
    label = data.train["label"]
    for stratify in (None, "label"):
        split = data.split(test=0.2, seed=42, stratify=stratify)
        train, test = train_test_split(
            np.arange(101), test_size=0.2, random_state=42, stratify=label if stratify else None
        )
        np.testing.assert_array_equal(split.train["row"], train)
        np.testing.assert_array_equal(split.test["row"], test)


def test_split_keeps_every_row_once_and_the_proportions():
    data = numbered(2000).split(validation=0.1, test=0.2, seed=3, stratify="label")
    sizes = {name: len(split["row"]) for name, split in data.splits.items()}
    assert sizes == {"train": 1400, "validation": 200, "test": 400}
    row = np.concatenate([split["row"] for split in data.splits.values()])
    np.testing.assert_array_equal(np.sort(row), np.arange(2000))
    whole = np.bincount(numbered(2000).train["label"]) / 2000
    for split in data.splits.values():
        counts = np.bincount(split["label"], minlength=4)
        np.testing.assert_allclose(counts, whole * len(split["label"]), atol=1)
        # the columns of a row stay together
        np.testing.assert_array_equal(split["x"], numbered(2000).train["x"][split["row"]])


def test_split_follows_the_seed():
    rows = [numbered().split(test=0.2, seed=seed).test["row"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": 0.0}, r"test must be a fraction in \(0, 1\), got 0.0"),
        ({"test": 1.5}, r"test must be a fraction in \(0, 1\), got 1.5"),
        (
            {"test": 0.5, "validation": 0.5},
            "fractions must leave rows for train, got .* of 100 rows",
        ),
        ({"train": 0.5}, "train must be a new split, got one of"),
        ({"test": 0.2, "stratify": "city"}, "stratify must be one of x, row, label, got 'city'"),
        ({"test": 0.2, "stratify": "row"}, "split test by row"),
    ],
)
def test_split_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        numbered().split(**arguments)


def test_split_comes_before_standardize():
    with pytest.raises(ValueError, match="split must be called before standardize"):
        numbered().standardize("x").split(test=0.2)


def test_statistics_are_those_of_the_train_rows():
    raw = numbered().split(test=0.3, seed=1)
    raw.splits["test"]["x"][:] += 100
    data = raw.standardize("x")
    scaler = StandardScaler().fit(raw.train["x"])
    for name in ("train", "test"):
        assert data.splits[name]["x"].dtype == np.float32
        np.testing.assert_allclose(
            data.splits[name]["x"], scaler.transform(raw.splits[name]["x"]), rtol=1e-6
        )
    mean, std = data.scaling["x"]
    np.testing.assert_allclose([mean, std], [scaler.mean_, scaler.scale_], rtol=1e-12)
    assert raw.scaling == {} and raw.train["x"].dtype == np.float64


@pytest.mark.parametrize("value", [0.1, 7.0, 1e9])
def test_a_constant_column_becomes_zero(value):
    data = Dataset.from_arrays(x=np.full(1001, value), y=np.arange(1001)).standardize("x", "y")
    np.testing.assert_array_equal(data.train["x"], np.zeros(1001))
    assert data.scaling["x"][1] == 1
    np.testing.assert_allclose(data.train["y"].std(), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("columns", "name", "message"),
    [
        ({"x": np.ones(3)}, "y", "columns must be among x, got 'y'"),
        ({"x": np.array(["a", "b"])}, "x", "x must be numbers, got <U1"),
        (
            {"x": np.array([1, np.nan])},
            "x",
            "x must be finite in the train rows, got NaN or infinity",
        ),
    ],
)
def test_standardize_refuses(columns, name, message):
    with pytest.raises(ValueError, match=message):
        Dataset.from_arrays(**columns).standardize(name)


def test_standardize_once():
    with pytest.raises(ValueError, match="x must not be standardised twice"):
        numbered().standardize("x").standardize("x")


def test_k_fold_validates_every_row_once():
    for folds in (k_fold(23, 5, seed=1), k_fold(np.linspace(0, 1, 23), 5, seed=1)):
        np.testing.assert_array_equal(
            np.sort(np.concatenate([validation for _, validation in folds])), np.arange(23)
        )
        for train, validation in folds:
            np.testing.assert_array_equal(np.setdiff1d(np.arange(23), validation), train)


def test_k_fold_keeps_the_proportions_of_labels():
    label = np.repeat([0, 1], [90, 10])
    for train, validation in k_fold(label, 5):
        assert label[validation].sum() == 2 and label[train].sum() == 8


@pytest.mark.parametrize(
    ("labels", "folds", "message"),
    [
        (10, 1, r"folds must be in \[2, 10\] .*, got 1"),
        (3, 5, r"folds must be in \[2, 3\] .*, got 5"),
        (np.repeat([4, 7], [20, 3]), 5, r"folds must be at most 3 \(the rows of label 7\), got 5"),
    ],
)
def test_k_fold_refuses(labels, folds, message):
    with pytest.raises(ValueError, match=message):
        k_fold(labels, folds)
