"""Weights of rows by which label and group are independent."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops.data.columns import read_with_dates
from jaxops.fairness.groups import check_rows, groups_of


def reweigh(label: Any, protected: Mapping[str, Any]) -> np.ndarray:
    """Row weights that make the label independent of the group in the weighted rows.

    A row with label y of group a gets n_a n_y / (N n_ay), for n_a rows of the group, n_y of the
    label and n_ay of both, of N. Their sum is N, and so is that of each group n_a. A room's `fit`
    takes them as the column `weights`, and `jaxops.fit` as the column `mask`.

    Args:
        label: (N,), of any number of classes.
        protected: see `groups_of`.

    Returns:
        float64 (N,).

    Raises:
        ValueError: a group without rows of a label, for which no weight makes up; a row without a
            label; or columns of unequal lengths.

    References:
        Kamiran and Calders 2012, Data preprocessing techniques for classification without
        discrimination.

    >>> reweigh([1, 1, 0, 1, 0, 0], {"sex": list("mmmfff")}).round(3).tolist()
    [0.75, 0.75, 1.5, 1.5, 0.75, 0.75]
    """
    groups = groups_of(protected)
    texts = read_with_dates({"label": label}, ["label"], exact=["label"])[0]["label"]
    missing = texts == ""
    if missing.any():
        raise ValueError(
            f"label must have a value in every row, got none in row {int(missing.argmax())}"
        )
    names, y = np.unique(texts, return_inverse=True)
    check_rows({"label": y}, groups)
    both = np.zeros((len(groups.names), len(names)))
    np.add.at(both, (groups.place, y), 1)
    if (both == 0).any():
        a, b = np.argwhere(both == 0)[0]
        raise ValueError(
            f"protected must have rows of every label in each group, got none of {names[b]!r} in "
            f"{groups.names[a]}; join groups"
        )
    weights = both.sum(1, keepdims=True) * both.sum(0, keepdims=True) / (len(y) * both)
    found: np.ndarray = weights[groups.place, y]
    return found
