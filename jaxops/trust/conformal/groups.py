"""Margins of each group of rows, and margins for rows that are distributed differently."""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxops.trust.conformal.margins import check_enough, checked, margin


def group_margins(
    scores: np.ndarray,
    groups: np.ndarray,
    coverage: float = 0.9,
    names: Sequence[str] | None = None,
) -> dict[str, float]:
    """A margin for each group of rows (Mondrian), so that each group has the coverage.

    If the groups are the classes of a classifier, each class has the coverage: pass its own labels
    as groups, and compare the score of each class with the margin of that class.

    Args:
        scores: (N,), the scores of the calibration rows.
        groups: (N,), the group of each row.
        coverage: in (0, 1).
        names: the groups that need a margin; by default those that occur.

    Raises:
        ValueError: a group has fewer rows than its margin needs, or the shapes differ; the message
            names the group. See also `margin`.

    References:
        Vovk, Lindsay, Nouretdinov and Gammerman 2003, Mondrian confidence machine.

    >>> group_margins(np.arange(18.0), np.array(["new", "old"] * 9), coverage=0.9)
    {'new': 16.0, 'old': 17.0}
    """
    scores, groups = checked("scores", scores, coverage), np.asarray(groups)
    if scores.ndim != 1 or groups.shape != scores.shape:
        raise ValueError(
            f"scores and groups must have the shape (N,), got {scores.shape} and {groups.shape}"
        )
    groups = groups.astype(str)
    found = {}
    for name in np.unique(groups).tolist() if names is None else names:
        own = scores[groups == str(name)]
        check_enough(len(own), coverage, f"rows of group {name!r}")
        found[str(name)] = float(margin(own, coverage))
    return found


def margins_of(margins: Mapping[str, float], groups: np.ndarray) -> np.ndarray:
    """The margin of each row, float64 (M,), by its group.

    Args:
        margins: see `group_margins`.
        groups: (M,), the group of each row.

    Raises:
        ValueError: a group without a margin.

    >>> margins_of({"new": 16.0, "old": 17.0}, np.array(["old", "new"])).tolist()
    [17.0, 16.0]
    """
    names = np.asarray(groups).astype(str).tolist()
    unknown = next((row for row, name in enumerate(names) if name not in margins), None)
    if unknown is not None:
        raise ValueError(
            f"groups must be among {', '.join(margins)}, which have calibration rows, got "
            f"{names[unknown]!r} in row {unknown}"
        )
    return np.array([margins[name] for name in names])


def weighted_margins(
    scores: np.ndarray, weights: np.ndarray, new_weights: np.ndarray, coverage: float = 0.9
) -> np.ndarray:
    """Margins for rows whose inputs are distributed differently from those of calibration.

    The weight of a row is w(x) = p_new(x) / p_calibration(x), up to a common factor. The margin of
    a row x is the smallest score s with

        Σ_i w(x_i) 1{s_i ≤ s} ≥ coverage (Σ_i w(x_i) + w(x)),

    and infinite if there is none. With equal weights it is `margin`.

    Args:
        scores: (N,), the scores of the calibration rows.
        weights: (N,), the weights of these rows, at least 0.
        new_weights: (M,), those of the rows to be covered.
        coverage: in (0, 1).

    Returns:
        float64 (M,).

    Raises:
        ValueError: the shapes differ, or a weight is negative or not finite, or all are 0; see also
            `margin`.

    References:
        Tibshirani, Barber, Candes and Ramdas 2019, arXiv:1904.06019.

    >>> scores = np.arange(1.0, 20.0)
    >>> weighted_margins(scores, np.ones(19), np.array([1.0, 3.0])).tolist()
    [18.0, inf]
    """
    scores = checked("scores", scores, coverage)
    weights, new = (np.asarray(x, np.float64) for x in (weights, new_weights))
    if scores.ndim != 1 or weights.shape != scores.shape or new.ndim != 1:
        raise ValueError(
            "scores, weights and new_weights must have shapes (N,), (N,) and (M,), got "
            f"{scores.shape}, {weights.shape} and {new.shape}"
        )
    for name, values in (("weights", weights), ("new_weights", new)):
        wrong = ~((values >= 0) & np.isfinite(values))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(
                f"{name} must be finite numbers of at least 0, got {values[row]} in row {row}"
            )
    if not weights.sum():
        raise ValueError("weights must have one above 0, got only 0")
    order = np.argsort(scores)
    total = weights[order].cumsum()
    needed = coverage * (total[-1] + new) * (1 - 1e-12)  # a sum that is short by rounding counts
    place = np.searchsorted(total, needed)
    found: np.ndarray = np.append(scores[order], np.inf)[place]
    return found


def shift_weights(probabilities: np.ndarray) -> np.ndarray:
    """The weights of rows for `weighted_margins`, from a classifier of new against old rows.

    If p(x) is the probability that a row is a new one, p / (1 - p) is w(x) times a constant.

    Args:
        probabilities: (N,), the probability that each row is one of the new rows, by a classifier
            that has learned from other rows.

    Raises:
        ValueError: a probability outside [0, 1): at 1 a row can only be new, and calibration rows
            say nothing of it.

    >>> shift_weights(np.array([0.5, 0.75])).tolist()
    [1.0, 3.0]
    """
    p = np.asarray(probabilities, np.float64)
    wrong = ~((p >= 0) & (p < 1))
    if p.ndim != 1 or wrong.any():
        given = f"{p[wrong][0]} in row {int(wrong.argmax())}" if p.ndim == 1 else f"{p.shape}"
        raise ValueError(f"probabilities must be (N,) numbers in [0, 1), got {given}")
    return p / (1 - p)
