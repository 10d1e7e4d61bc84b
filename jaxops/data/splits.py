"""Splits of rows into training and validation."""

from typing import Any

import numpy as np

from jaxops._optional import require


def held_out(
    count: int, share: float, labels: Any = None, groups: Any = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and validation rows, drawn at random.

    Args:
        count: number of rows.
        share: the share of the rows (or groups) that are held out, in (0, 1).
        labels: (count,), whose classes keep their shares in both parts; a class with one row goes
            to training.
        groups: (count,), such as a customer's id; no group is in both parts.
        seed: the seed of the draw.

    Returns:
        Train and validation, int64, both sorted.

    Raises:
        ValueError: a share outside (0, 1), or one that leaves a part empty; an invalid seed.

    >>> train, validation = held_out(8, 0.25, labels=[0, 0, 0, 0, 1, 1, 1, 1])
    >>> len(train), (validation < 4).sum()
    (6, np.int64(1))
    """
    selection = require("sklearn.model_selection", extra="data")

    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be a whole number in [0, 2**32), got {seed!r}")
    if not 0 < share < 1:
        raise ValueError(f"validation must be a share in (0, 1), got {share}")
    rows = np.arange(count)
    if groups is not None:
        splitter = selection.GroupShuffleSplit(1, test_size=share, random_state=seed)
        try:
            train, validation = next(splitter.split(rows, groups=np.asarray(groups)))
        except ValueError as error:
            raise ValueError(f"groups must leave some for both parts: {error}") from None
        return train, validation
    alone = np.zeros(0, np.int64)
    if labels is not None:
        _, place, number = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        labels = place
        alone, rows = rows[number[place] == 1], rows[number[place] > 1]
        classes = (number > 1).sum()
        if min(share, 1 - share) * len(rows) < classes:  # too few to have each class in both parts
            labels = None
    if len(rows) < 2:
        more = f" and {len(alone)} that are alone in their class" if len(alone) else ""
        raise ValueError(f"data must have at least 2 rows to hold some out, got {len(rows)}{more}")
    train, validation = selection.train_test_split(
        rows, test_size=share, random_state=seed, stratify=None if labels is None else labels[rows]
    )
    return np.sort(np.concatenate([alone, train])), np.sort(validation)


def held_out_later(
    times: np.ndarray, share: float, groups: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and validation rows: validation is later than training.

    About the last `share` of the rows are held out. Rows of equal time are in the same part. With
    groups, the later rows of a group that is in training are in neither part.

    Args:
        times: (N,) numbers.
        share: the share of the rows that are held out, in (0, 1).
        groups: (N,), such as a customer's id; no group is in both parts.

    Returns:
        Train and validation, int64, both sorted.

    Raises:
        ValueError: a share outside (0, 1); times or groups that leave a part empty.

    >>> train, validation = held_out_later(np.array([5, 1, 2, 3]), 0.25)
    >>> train.tolist(), validation.tolist()
    ([1, 2, 3], [0])
    >>> held_out_later(np.array([1, 2, 3, 4]), 0.5, groups=["a", "b", "a", "c"])[1].tolist()
    [3]
    """
    if not 0 < share < 1:
        raise ValueError(f"validation must be a share in (0, 1), got {share}")
    at = min(int(np.ceil(len(times) * (1 - share))), len(times) - 1)
    later = times >= np.sort(times)[at]
    if later.all():
        raise ValueError(
            f"times must vary enough to hold the last {share:.0%} out, got {times.min():g} in "
            f"{np.mean(times == times.min()):.0%} of the rows"
        )
    train, validation = np.flatnonzero(~later), np.flatnonzero(later)
    if groups is not None:
        of = np.asarray(groups)
        validation = validation[~np.isin(of[validation], of[train])]
    if not len(validation):
        raise ValueError("groups must include some with only later rows, got all in earlier rows")
    return train, validation


def folds_of(
    count: int, folds: int, labels: Any = None, groups: Any = None, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices of train and validation rows of each fold; every row is in one validation part.

    Args:
        count: number of rows.
        folds: number of folds.
        labels: (count,), whose classes keep their shares in every fold, as far as their number of
            rows allows.
        groups: (count,), such as a customer's id; no group is in two folds. The folds get about
            equally many rows, and `labels` are not used.
        seed: the seed of the draw; with groups it orders groups with equally many rows.

    Raises:
        ValueError: there are fewer than two folds, or more folds than rows or groups.

    >>> [held.tolist() for _, held in folds_of(4, 2, groups=["a", "a", "b", "b"])]
    [[2, 3], [0, 1]]
    """
    units = np.arange(count)
    if groups is not None:
        _, units = np.unique(np.asarray(groups), return_inverse=True)
    most = int(units.max()) + 1
    if not 2 <= folds <= most:
        what = "rows" if groups is None else "groups"
        raise ValueError(f"folds must be in [2, {most}] (the number of {what}), got {folds}")
    if groups is not None:
        selection = require("sklearn.model_selection", extra="data")

        units = np.random.default_rng(seed).permutation(most)[units]  # orders groups of equal size
        splitter = selection.GroupKFold(folds)
        return [(train, held) for train, held in splitter.split(units, groups=units)]
    drawn = np.random.default_rng(seed).permutation(count)
    if labels is not None:
        drawn = drawn[np.argsort(np.asarray(labels)[drawn], kind="stable")]
    fold = np.empty(count, int)
    fold[drawn] = np.arange(count) % folds
    return [(np.flatnonzero(fold != one), np.flatnonzero(fold == one)) for one in range(folds)]
