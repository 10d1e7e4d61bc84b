"""What is wrong with the columns of a table before anything is learned from it."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops._optional import require

ENOUGH = 500  # rows of which a column that tells the label is no chance
SAMPLE = 10_000  # rows by which a column is judged
LEAVES = 32  # into which a column of numbers is divided to tell the label
FOUND = 0.99  # AUC or R² from which a column tells the label by itself
OF_A_CLASS = 20  # rows of a class that its AUC is computed with
DUPLICATES = 0.01  # share of validation rows that may be in the train rows by chance


def useless(table: Mapping[str, np.ndarray], label: str) -> dict[str, str]:
    """The columns that nothing can be learned from, with the reason.

    Args:
        table: the train rows, as `read` gives them.
        label: the column to predict.

    >>> table = {"a": np.array([1.0, 2.0]), "b": np.array([1.0, 2.0]), "c": np.zeros(2)}
    >>> useless({**table, "y": np.arange(2.0)}, "y")
    {'b': 'the same as a', 'c': '0 in every row'}
    """
    found, seen = {}, dict[bytes, str]()
    for name, column in table.items():
        if name == label:
            continue
        if column.dtype.kind == "O":
            values = set(column.tolist())
            count, most = len(values), max(20, len(column) // 2)
            if count > most:
                found[name] = (
                    f"{count:,} texts in {len(column):,} rows: an identifier, or text for "
                    "jaxops.text; group or hash them to fewer to learn from them here"
                )
            elif count == 1:
                found[name] = f"{column[0]!r} in every row" if column[0] else "no value"
        elif np.isnan(column).all():
            found[name] = "no value"
        elif (column == column[0]).all():
            found[name] = f"{column[0]:g} in every row"
        if name in found:
            continue
        text = column.dtype.kind == "O"
        key = "\0".join(column.tolist()).encode() if text else (column + 0.0).tobytes()
        if key in seen:
            found[name] = f"the same as {seen[key]}"
        seen.setdefault(key, name)
    return found


def warn_of_leaks(
    table: Mapping[str, np.ndarray], label: str, target: np.ndarray, classes: int
) -> None:
    """Warn of columns that tell the label by themselves, and of identifiers.

    Args:
        table: the columns to learn from of the train rows, as `read` gives them.
        label: the column to predict.
        target: (N,), whole numbers, or numbers.
        classes: number of classes; 0 for a number.

    Warns:
        UserWarning: a column by which alone the AUC (R² of a number) on rows that were not looked
            at is above 0.99; whole numbers of which every row has another.
    """
    count = len(target)
    if count < ENOUGH:
        return
    rows = np.random.default_rng(0).permutation(count)[:SAMPLE]
    for name, column in table.items():
        score = told(column[rows], target[rows], classes)
        if score > FOUND:
            what = "AUC" if classes else "R²"
            warnings.warn(
                f"{name} tells {label} by itself, with an {what} of {score:.4f}: if it is not "
                f"known before {label} is, leave it out, drop=[{name!r}]",
                stacklevel=3,
            )
        whole = column.dtype.kind == "f" and (column == np.floor(column)).all()
        if whole and len(np.unique(column)) == count:
            warnings.warn(
                f"{name} should not be an identifier, but every row has another whole number: "
                f"drop=[{name!r}], or id={name!r}, if it is",
                stacklevel=3,
            )


def told(column: np.ndarray, target: np.ndarray, classes: int) -> float:
    """How well one column tells the target of rows that were not looked at: AUC, or R².

    The first half of the rows gives the mean of the target for each text, or for each of 32 leaves
    of a tree of the numbers; the other half scores it. With more than two classes the AUC is the
    mean over the classes with at least 20 rows.

    Args:
        column: (N,) numbers or texts.
        target: (N,), whole numbers in [0, classes), or numbers.
        classes: number of classes; 0 for a number.

    >>> x = np.arange(100) % 10 * 1.0
    >>> told(x, (x > 6).astype(int), 2), round(told(x, x, 0), 3)
    (1.0, 1.0)
    """
    tree = require("sklearn.tree", extra="data")
    metrics = require("sklearn.metrics", extra="data")

    half = len(column) // 2
    text = column.dtype.kind == "O"
    if text:
        parts = column.astype(str)
    else:
        make = tree.DecisionTreeClassifier if classes else tree.DecisionTreeRegressor
        one = make(max_leaf_nodes=LEAVES, min_samples_leaf=5, random_state=0)
        parts = one.fit(column[:half, None], target[:half]).apply(column[:, None])
    _, place = np.unique(parts, return_inverse=True)
    wanted = np.eye(classes)[target] if classes else target[:, None].astype(np.float64)
    sums, counts = np.zeros((place.max() + 1, wanted.shape[1])), np.bincount(place[:half])
    np.add.at(sums, place[:half], wanted[:half])
    counts = np.pad(counts, (0, len(sums) - len(counts)))[:, None]
    prior = wanted[:half].mean(0)
    # a text of few rows says little, and one of none nothing; a leaf has at least 5 rows
    p, true = ((sums + text * prior) / (counts + text))[place[half:]], wanted[half:]
    if not classes:
        spread = float(((true - true.mean()) ** 2).mean())
        return 1 - float(((p - true) ** 2).mean()) / spread if spread else 0.0
    known = [k for k in range(classes) if OF_A_CLASS <= true[:, k].sum() < len(true)]
    scores = [metrics.roc_auc_score(true[:, k], p[:, k]) for k in known]
    return float(np.mean(scores)) if scores else 0.0


def warn_of_known_rows(
    train: Mapping[str, np.ndarray], validation: Mapping[str, np.ndarray]
) -> None:
    """Warn where many validation rows stand among the train rows.

    In tables of few values some rows are equal by chance, as among the train rows themselves.

    Args:
        train: the columns that are learned from and the label, as `read` gives them.
        validation: the same columns.

    Warns:
        UserWarning: more than one of a hundred validation rows, and twice the share of train rows
            that are there twice, equal a train row.
    """
    pd = require("pandas", extra="data")

    def hashes(part: Mapping[str, np.ndarray]) -> Any:
        columns = (one for name in train for one in np.atleast_2d(part[name].T))  # of labels L
        return pd.util.hash_pandas_object(pd.DataFrame(dict(enumerate(columns))), index=False)

    known, own = hashes(train), hashes(validation)
    twice = known.duplicated(keep=False).mean()
    there = own.isin(known).to_numpy()
    if there.mean() > DUPLICATES + 2 * twice:
        warnings.warn(
            f"validation should have other rows than those of training, got {there.sum():,} of "
            f"{len(there):,} rows that stand in both, the first in row {there.argmax()}",
            stacklevel=3,
        )
