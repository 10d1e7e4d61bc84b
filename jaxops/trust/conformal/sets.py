"""Scores of classes: a prediction set has the classes whose score is at most the margin."""

import numpy as np


def lac_scores(probabilities: np.ndarray) -> np.ndarray:
    """1 - p of each class: the least ambiguous sets (LAC), which are the smallest on average.

    Args:
        probabilities: (N, C).

    Returns:
        float64 (N, C); a set may be empty, where no class is likely enough.

    References:
        Sadinle, Lei and Wasserman 2019, arXiv:1609.00451.

    >>> lac_scores(np.array([[0.75, 0.25]])).tolist()
    [[0.25, 0.75]]
    """
    return 1 - _two_axes(probabilities)


def aps_scores(
    probabilities: np.ndarray,
    u: np.ndarray | None = None,
    penalty: float = 0.0,
    free: int = 0,
) -> np.ndarray:
    """How much probability the likelier classes have: adaptive sets (APS, and RAPS with a penalty).

    With the classes in falling order of their probabilities, the score of the one in place r (from
    1) is

        p_1 + ... + p_r - u p_r + penalty max(r - free, 0).

    Sets are larger where the model is less sure. Randomised sets have u uniform on [0, 1), drawn
    for each row; they have the coverage exactly, and some are empty. Without u it is 1: then a set
    without penalty always has the likeliest class, and the coverage may be higher.

    Args:
        probabilities: (N, C).
        u: (N,) in [0, 1], drawn by the caller, also for the rows to be covered.
        penalty: what each class after the first `free` ones adds, at least 0: sets are then rarely
            large.
        free: number of classes that add nothing.

    Returns:
        float64 (N, C).

    Raises:
        ValueError: other shapes, or a negative penalty or number; or `free` without a penalty.

    References:
        Romano, Sesia and Candes 2020, arXiv:2006.02544 (APS); Angelopoulos, Bates, Malik and Jordan
        2021, arXiv:2009.14193 (RAPS).

    >>> aps_scores(np.array([[0.25, 0.75]]), u=np.array([0.0])).tolist()
    [[1.0, 0.75]]
    >>> aps_scores(np.array([[0.25, 0.75]])).tolist()
    [[0.75, 0.0]]
    """
    p = _two_axes(probabilities)
    share = np.ones(len(p)) if u is None else np.asarray(u, np.float64)
    if share.shape != (len(p),) or not ((share >= 0) & (share <= 1)).all():
        raise ValueError(f"u must be ({len(p)},) numbers in [0, 1], got shape {share.shape}")
    if penalty < 0 or free < 0:
        raise ValueError(f"penalty and free must be at least 0, got {penalty} and {free}")
    if free and not penalty:
        raise ValueError(f"free must be 0 without a penalty, got {free}")
    order = np.argsort(-p, axis=1, kind="stable")
    falling = np.take_along_axis(p, order, 1)
    rank = np.arange(1, p.shape[1] + 1)
    scores = falling.cumsum(1) - share[:, None] * falling
    scores = scores + penalty * np.maximum(rank - free, 0)[None]
    found = np.empty_like(scores)
    np.put_along_axis(found, order, scores, 1)
    return found


def own_scores(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The score of each row's own class, (N,), for `margin`.

    Args:
        scores: (N, C).
        labels: (N,) integers in [0, C).

    Raises:
        ValueError: other shapes, or a label that is no class.

    >>> own_scores(np.array([[0.25, 0.75], [0.5, 0.5]]), np.array([1, 0])).tolist()
    [0.75, 0.5]
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or labels.dtype.kind not in "iu":
        raise ValueError(
            "scores and labels must have shapes (N, C) and (N,), the labels integers, got "
            f"{scores.shape} and {labels.shape} of {labels.dtype}"
        )
    wrong = (labels < 0) | (labels >= scores.shape[1])
    if wrong.any():
        row = int(wrong.argmax())
        raise ValueError(
            f"labels must be in [0, {scores.shape[1]}), got {labels[row]} in row {row}"
        )
    own: np.ndarray = np.take_along_axis(scores, labels[:, None], 1)[:, 0]
    return own


def _two_axes(probabilities: np.ndarray) -> np.ndarray:
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not len(p) or not np.isfinite(p).all():
        raise ValueError(
            f"probabilities must have shape (N, C) and finite values, got shape {p.shape}"
        )
    return p
