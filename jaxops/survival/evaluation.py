"""What predictions score on rows, each figure with its interval."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxops.survival.metrics import (
    antolini,
    brier_of_rows,
    censoring_curve,
    checked,
    checked_curves,
    harrell,
    in_order,
    ratio,
    uno,
)
from jaxops.survival.outcomes import Outcome, outcome
from jaxops.trust.evaluation import Evaluation

PAIRS = 2**24  # of which a matrix is kept for the resamples


def score(
    ids: Any,
    time: Any,
    event: Any,
    risk: Any,
    survival: Any,
    times: Any,
    incidence: Any = None,
) -> Evaluation:
    """What predictions score on N rows, each figure with its interval.

    Args:
        ids: (N,), of the rows.
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1, or the number of a cause.
        risk: (N,), larger for earlier events.
        survival: (N, T), the curves at `times`.
        times: (T,), sorted, at least 2.
        incidence: (N, K, T), of several causes.

    Returns:
        "concordance" (Harrell), "concordance_td" (Antolini), "concordance_ipcw" (Uno, up to the
        last of the times) and "integrated_brier", weighted by the censoring of these rows; with
        causes instead of the first three "concordance_td_1" and so on. Antolini's has no interval
        where the matrix of pairs would have more than 2^24 elements.

    Raises:
        ValueError: as the functions of these names.

    >>> made = score(range(3), [1, 2, 3], [1, 1, 0], [3, 2, 1], np.ones((3, 2)) / 2, [1, 2])
    >>> made.figures()["concordance"], made.figures()["integrated_brier"]
    (1.0, 0.25)
    """
    rows = outcome(time, event, causes=None)
    curves, times = checked_curves(survival, times, len(rows.time))
    risk = checked("risk", risk, (len(curves),))
    any_event = rows._replace(event=(rows.event > 0).astype(np.int64))
    censoring = censoring_curve(rows.time, rows.event)
    brier = np.trapezoid(brier_of_rows(any_event, curves, times, censoring), times, axis=1)
    values = {"integrated_brier": brier / (times[-1] - times[0])}
    wholes: dict[str, Callable[[np.ndarray], float]] = {}
    bare = set()
    if incidence is None:
        until = float(times[-1]) * (1 + 1e-12)
        wholes["concordance"] = lambda some: harrell(rows.take(some), risk[some])
        wholes["concordance_ipcw"] = lambda some: uno(rows.take(some), risk[some], censoring, until)
        parts: Sequence[tuple[str, np.ndarray, int | None]] = [("", curves, None)]
    else:
        one_less = 1 - np.asarray(incidence, np.float64)
        parts = [(f"_{k + 1}", one_less[:, k], k + 1) for k in range(one_less.shape[1])]
    for name, part, cause in parts:
        wholes[f"concordance_td{name}"], kept = _by_pairs(rows, part, times, cause)
        bare |= set() if kept else {f"concordance_td{name}"}
    return Evaluation(
        "row",
        np.asarray(ids),
        values,
        wholes,
        smaller=frozenset({"integrated_brier"}),
        bare=frozenset(bare),
        parts={"risk": risk, "survival": curves, "time": rows.time, "event": rows.event},
    )


def _by_pairs(
    rows: Outcome, curves: np.ndarray, times: np.ndarray, cause: int | None
) -> tuple[Callable[[np.ndarray], float], bool]:
    """Antolini's concordance of some rows, and whether it is quick: by a matrix of all pairs."""
    by = in_order(rows, cause)
    if len(by.events) * len(curves) > PAIRS:
        return lambda some: antolini(rows.take(some), curves[some], times, cause), False
    place = np.searchsorted(times, rows.time[by.events], side="right") - 1
    own = np.concatenate([np.ones((len(curves), 1)), curves], 1)[:, place + 1].T  # (E, N)
    mine = own[np.arange(len(by.events)), by.events][:, None]
    comparable = np.zeros(own.shape, bool)
    for row, later in enumerate(by.later):
        comparable[row, by.order[later:]] = True
    right = (comparable * ((own > mine) + (own == mine) / 2)).astype(np.float32)
    pairs = comparable.astype(np.float32)

    def figure(some: np.ndarray) -> float:
        count = np.bincount(some, minlength=len(curves)).astype(np.float32)
        weights = count[by.events]
        # in float64: counts of pairs exceed what float32 holds exactly
        total, of = (weights.astype(np.float64) @ (part @ count) for part in (right, pairs))
        return ratio(total, of)

    return figure, True
