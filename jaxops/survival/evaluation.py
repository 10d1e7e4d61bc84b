"""What predictions score on rows, each figure with its interval."""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxops.survival.metrics import (
    Order,
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

PAIRS = 2**24  # of which matrices are kept for the resamples

Figure = Callable[[np.ndarray], float]


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
    wholes: dict[str, Figure] = {}
    by = in_order(rows)
    small = len(by.events) * len(risk) <= PAIRS
    if incidence is None:
        until = float(times[-1]) * (1 + 1e-12)
        wholes["concordance"] = lambda some: harrell(rows.take(some), risk[some])
        wholes["concordance_ipcw"] = lambda some: uno(rows.take(some), risk[some], censoring, until)
        if small:
            later = np.broadcast_to(-risk, (len(by.events), len(risk)))
            at = rows.time[by.events]
            weights = np.where(at < until, 1 / np.maximum(censoring.at(at), 1e-300), 0) ** 2
            wholes["concordance"] = _by_pairs(by, later, np.ones(len(at)))
            wholes["concordance_ipcw"] = _by_pairs(by, later, weights)
        causes: list[tuple[str, np.ndarray, int | None]] = [("concordance_td", curves, None)]
    else:
        one_less = 1 - np.asarray(incidence, np.float64)
        several = range(one_less.shape[1])
        causes = [(f"concordance_td_{k + 1}", one_less[:, k], k + 1) for k in several]
    for name, part, cause in causes:
        wholes[name] = _by_times(rows, part, times, cause, small)
    return Evaluation(
        "row",
        np.asarray(ids),
        values,
        wholes,
        smaller=frozenset({"integrated_brier"}),
        bare=frozenset() if small else frozenset(name for name, _, _ in causes),
        parts={"risk": risk, "survival": curves, "time": rows.time, "event": rows.event},
    )


def _by_times(
    rows: Outcome, curves: np.ndarray, times: np.ndarray, cause: int | None, small: bool
) -> Figure:
    """Antolini's concordance of some of the rows."""
    if not small:
        return lambda some: antolini(rows.take(some), curves[some], times, cause)
    by = in_order(rows, cause)
    place = np.searchsorted(times, rows.time[by.events], side="right")
    at_events = np.concatenate([np.ones((len(curves), 1)), curves], 1)[:, place].T
    return _by_pairs(by, at_events, np.ones(len(place)))


def _by_pairs(by: Order, later: np.ndarray, weights: np.ndarray) -> Figure:
    """The weighted share of concordant pairs of some of the rows, by matrices of all pairs.

    Args:
        by: of N rows with E events.
        later: (E, N), for each event's pairs larger for later events.
        weights: (E,), of the events.
    """
    own = later[np.arange(len(by.events)), by.events][:, None]
    comparable = np.zeros(later.shape, bool)
    for row, first in enumerate(by.later):
        comparable[row, by.order[first:]] = True
    right = (comparable * ((later > own) + (later == own) / 2)).astype(np.float32)
    pairs = comparable.astype(np.float32)

    def figure(some: np.ndarray) -> float:
        count = np.bincount(some, minlength=later.shape[1]).astype(np.float32)
        # the counts of one event are exact in float32, their sums are not
        weighted = weights * count[by.events]
        return ratio(weighted @ (right @ count), weighted @ (pairs @ count))

    return figure
