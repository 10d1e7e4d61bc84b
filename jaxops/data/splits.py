"""Which rows are held out for validation."""

from typing import Any

import numpy as np

from jaxops._optional import require


def held_out(
    count: int, share: float, labels: Any = None, groups: Any = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of train and validation rows, drawn at random.

    Args:
        count: number of rows.
        share: of the rows (or groups) that are held out, in (0, 1).
        labels: (count,), whose classes keep their shares in both; a class of one row is for
            training.
        groups: (count,), such as a customer's id; no group is on both sides.
        seed: of the draw.

    Returns:
        Train and validation, int64, both sorted.

    Raises:
        ValueError: a share outside (0, 1), or one that leaves a side empty; a seed that is none.

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
            raise ValueError(f"groups must leave some for both sides: {error}") from None
        return train, validation
    alone = np.zeros(0, np.int64)
    if labels is not None:
        _, place, number = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
        labels = place
        alone, rows = rows[number[place] == 1], rows[number[place] > 1]
        classes = (number > 1).sum()
        if min(share, 1 - share) * len(rows) < classes:  # too few to have each class on both sides
            labels = None
    if len(rows) < 2:
        more = f" and {len(alone)} that are alone in their class" if len(alone) else ""
        raise ValueError(f"data must have at least 2 rows to hold some out, got {len(rows)}{more}")
    train, validation = selection.train_test_split(
        rows, test_size=share, random_state=seed, stratify=None if labels is None else labels[rows]
    )
    return np.sort(np.concatenate([alone, train])), np.sort(validation)
