"""How good risks and curves are: concordance, the Brier score, calibration.

Concordances count pairs by sorting, in N log N: the order of the rows in time is divided by the
bits of their ranks (a wavelet matrix), in which the number of later rows below a rank is a sum of
one difference for each bit.
"""

from typing import Any, NamedTuple

import numpy as np

from jaxops.model.finished import frame
from jaxops.survival.curves import Curve, kaplan_meier, step
from jaxops.survival.outcomes import Outcome, outcome


def _count_below(ranks: np.ndarray, starts: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """How many of ranks[start:] are below a bound, (Q,) for Q starts and bounds; ints from 0 on."""
    found = np.zeros(len(starts), np.int64)
    left, right = starts, np.full(len(starts), len(ranks))
    bits = int(max(ranks.max(initial=0), bounds.max(initial=0))).bit_length()
    for bit in reversed(range(bits)):
        one = (ranks >> bit) & 1 == 1
        zeros = np.concatenate([[0], np.cumsum(~one)])
        a, b = zeros[left], zeros[right]
        up = (bounds >> bit) & 1 == 1
        found += np.where(up, b - a, 0)
        left = np.where(up, zeros[-1] + left - a, a)
        right = np.where(up, zeros[-1] + right - b, b)
        ranks = np.concatenate([ranks[~one], ranks[one]])
    return found


class Order(NamedTuple):
    """Rows by time, at one time those with an event first.

    Attributes:
        order: (N,), rows.
        events: (E,), the rows with the event in question.
        later: (E,), from which place in the order on rows outlived the event.
    """

    order: np.ndarray
    events: np.ndarray
    later: np.ndarray


def in_order(rows: Outcome, cause: int | None = None) -> Order:
    """The order of rows, and the events of one cause or of any."""
    seen = rows.event > 0
    order = np.lexsort((~seen, rows.time))
    events = np.flatnonzero(seen if cause is None else rows.event == cause)
    times, ends = np.sort(rows.time), np.sort(rows.time[seen])
    at = rows.time[events]
    tied = np.searchsorted(ends, at, "right") - np.searchsorted(ends, at, "left")
    return Order(order, events, np.searchsorted(times, at, "left") + tied)


def _concordant(by: Order, risk: np.ndarray, some: Any = slice(None)) -> np.ndarray:
    """Of some of the events, how many later rows have less risk, those of equal risk counted half.

    Args:
        by: of N rows.
        risk: (N,).
        some: which of the events, by number.
    """
    ranks = np.unique(risk, return_inverse=True)[1]
    own, later = ranks[by.events[some]], by.later[some]
    first = later.min(initial=len(ranks))
    in_time = ranks[by.order[first:]]
    starts, bounds = np.tile(later - first, 2), np.concatenate([own, own + 1])
    return _count_below(in_time, starts, bounds).reshape(2, -1).sum(0) / 2


def ratio(total: Any, pairs: Any) -> float:
    """total / pairs, NaN where there are none."""
    return float(total / pairs) if pairs else np.nan


def concordance(time: Any, event: Any, risk: Any) -> float:
    """Harrell's concordance: the share of comparable pairs in which the earlier has more risk.

    A pair is comparable if the row with the earlier time has an event; at one time if one row has
    an event and the other is censored. Equal risks count half. In N log N.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        risk: (N,), finite, larger for earlier events.

    Returns:
        In [0, 1]; NaN where no pair is comparable.

    Raises:
        ValueError: as `survival.outcome`; risks of another shape, or not finite.

    References:
        Harrell et al. 1982.

    >>> concordance([1, 2, 3, 4], [1, 1, 0, 1], [4.0, 1.0, 2.0, 1.0])
    0.7
    """
    rows = outcome(time, event)
    return harrell(rows, checked("risk", risk, (len(rows.time),)))


def harrell(rows: Outcome, risk: np.ndarray) -> float:
    """`concordance` of checked rows."""
    by = in_order(rows)
    return ratio(_concordant(by, risk).sum(), (len(risk) - by.later).sum())


def concordance_ipcw(
    time: Any, event: Any, risk: Any, censoring: Curve | None = None, until: float = np.inf
) -> float:
    """Uno's concordance: Harrell's with pairs weighted by 1 / G(t)^2 at the event's time t.

    G is the probability of not yet being censored, so that the result does not depend on how
    censoring fell.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        risk: (N,), finite, larger for earlier events.
        censoring: G, see `censoring_curve`, such as that of the train rows; by default of these.
        until: events from this time on do not count.

    Raises:
        ValueError: as `concordance`; an event where G is 0.

    References:
        Uno et al. 2011.

    >>> concordance_ipcw([1, 2, 3, 4], [1, 1, 0, 1], [4.0, 1.0, 2.0, 1.0])
    0.7
    """
    rows = outcome(time, event)
    risk = checked("risk", risk, (len(rows.time),))
    return uno(rows, risk, censoring or censoring_curve(time, event), until)


def uno(rows: Outcome, risk: np.ndarray, censoring: Curve, until: float) -> float:
    """`concordance_ipcw` of checked rows."""
    by = in_order(rows)
    some = np.flatnonzero(rows.time[by.events] < until)
    weights = _inverse(censoring, rows.time[by.events[some]], by.events[some]) ** 2
    pairs = len(risk) - by.later[some]
    return ratio(weights @ _concordant(by, risk, some), weights @ pairs)


def concordance_td(
    time: Any, event: Any, survival: Any, times: Any, cause: int | None = None
) -> float:
    """Antolini's time-dependent concordance: who has the event has then the lower curve.

    A pair of `concordance` is concordant if S(t | x_i) < S(t | x_j) at the time t of i's event;
    equal values count half. Curves are step functions from each of `times` on, and 1 before. In
    N log N for each of the times.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1; the number of a cause where `cause` is given.
        survival: (N, T), finite; for a cause 1 less its incidence.
        times: (T,), sorted.
        cause: events of other causes are then no events of i, but end the time of j.

    Raises:
        ValueError: as `survival.outcome`; curves of another shape, or not finite; times that are
            not sorted.

    References:
        Antolini et al. 2005.

    >>> concordance_td([1, 2, 3], [1, 1, 0], [[0.5, 0.2], [0.7, 0.1], [0.8, 0.6]], [1, 2])
    1.0
    """
    rows = outcome(time, event, causes=1 if cause is None else None)
    curves, times = checked_curves(survival, times, len(rows.time))
    return antolini(rows, curves, times, cause)


def antolini(rows: Outcome, curves: np.ndarray, times: np.ndarray, cause: int | None) -> float:
    """`concordance_td` of checked rows."""
    by = in_order(rows, cause)
    place = np.searchsorted(times, rows.time[by.events], side="right") - 1
    pairs, total = len(curves) - by.later, 0.0
    for column in np.unique(place):
        some = np.flatnonzero(place == column)
        if column < 0:
            total += pairs[some].sum() / 2
        else:
            total += _concordant(by, -curves[:, column], some).sum()
    return ratio(total, pairs.sum())


def censoring_curve(time: Any, event: Any) -> Curve:
    """The probability of not yet being censored, by Kaplan and Meier; at one time events go first.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0, 1 or the number of a cause.

    >>> censoring_curve([1.0, 1.0, 2.0, 3.0], [1, 0, 0, 1]).estimate.round(3).tolist()
    [0.667, 0.333, 0.333]
    """
    rows = outcome(time, event, causes=None)
    curve = kaplan_meier(rows.time, rows.event == 0)
    place = np.searchsorted(curve.times, rows.time[rows.event > 0])
    left = curve.at_risk - np.bincount(place, minlength=len(curve.times))
    share = np.divide(curve.events, left, out=np.zeros(len(left)), where=left > 0)
    nothing = np.full(len(left), np.nan)
    return curve._replace(at_risk=left, estimate=np.cumprod(1 - share), low=nothing, high=nothing)


def _inverse(censoring: Curve, times: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
    """1 / G at times."""
    share = censoring.at(times)
    zero = np.flatnonzero(share == 0)
    if len(zero):
        row = "" if rows is None else f" of row {rows[zero[0]]}"
        raise ValueError(
            "times must be such that not all are censored before, got "
            f"{times[zero[0]]:g}{row}, from which on all are"
        )
    return 1 / share


def brier_score(
    time: Any, event: Any, survival: Any, times: Any, censoring: Curve | None = None
) -> np.ndarray:
    """The Brier score at each of some times: the mean of (1(T > t) - S(t))^2, for censored rows.

    A row with an event up to t counts with 1 / G at its time, a row that outlived t with 1 / G(t),
    and a row that was censored before not at all.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        survival: (N, T), the curves at `times`.
        times: (T,), sorted.
        censoring: G, see `censoring_curve`, such as that of the train rows; by default of these.

    Returns:
        (T,); a curve that is a half everywhere has 0.25.

    Raises:
        ValueError: as `concordance_td`; a time or an event where G is 0.

    References:
        Graf et al. 1999.

    >>> brier_score([1, 2, 3], [1, 1, 1], [[0.5, 0.0], [1.0, 0.0], [1.0, 1.0]], [1, 2]).round(4)
    array([0.0833, 0.    ])
    """
    rows = outcome(time, event)
    curves, times = checked_curves(survival, times, len(rows.time))
    return brier_of_rows(rows, curves, times, censoring or censoring_curve(time, event)).mean(0)


def brier_of_rows(
    rows: Outcome, curves: np.ndarray, times: np.ndarray, censoring: Curve
) -> np.ndarray:
    """The Brier score of each row, (N, T)."""
    hit = (rows.event > 0)[:, None] & (rows.time[:, None] <= times[None])
    hits = np.flatnonzero(hit.any(1))
    own = np.zeros(len(curves))
    own[hits] = _inverse(censoring, rows.time[hits], hits)
    outlived = rows.time[:, None] > times[None]
    reached = outlived.any(0)
    at = np.zeros(len(times))
    at[reached] = _inverse(censoring, times[reached])
    return hit * curves**2 * own[:, None] + outlived * (1 - curves) ** 2 * at[None]


def integrated_brier_score(
    time: Any, event: Any, survival: Any, times: Any, censoring: Curve | None = None
) -> float:
    """The mean of `brier_score` over the time from the first to the last of `times`.

    By the trapezoidal rule.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        survival: (N, T), the curves at `times`.
        times: (T,), sorted, at least 2.
        censoring: see `brier_score`.

    Raises:
        ValueError: as `brier_score`; fewer than 2 times.

    >>> integrated_brier_score([1, 2, 3], [1, 1, 1], 0.5 * np.ones((3, 2)), [1, 2])
    0.25
    """
    times = np.asarray(times, np.float64)
    if times.size < 2:
        raise ValueError(f"times must be at least 2, got {times.size}")
    scores = brier_score(time, event, survival, times, censoring)
    return float(np.trapezoid(scores, times) / (times[-1] - times[0]))


class Calibration(NamedTuple):
    """Predicted and observed shares of events before a time, in bins of rows.

    Attributes:
        predicted: (B,), the mean prediction.
        observed: (B,), 1 less the Kaplan-Meier curve of the bin.
        low: (B,), its lower bound.
        high: (B,), its upper bound.
        rows: (B,), their number.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    rows: np.ndarray

    def frame(self) -> Any:
        """One row a bin."""
        return frame(self._asdict())


def calibration(
    time: Any, event: Any, probability: Any, at: float, bins: int = 10, coverage: float = 0.95
) -> Calibration:
    """Whether of rows with P(event before t) = p the share p has it.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        probability: (N,), predicted, of an event up to the time `at`.
        at: the time.
        bins: rows are sorted by their prediction into so many bins of equal size.
        coverage: of the bounds.

    Raises:
        ValueError: as `survival.outcome`; probabilities outside [0, 1]; more bins than rows.

    >>> calibration([1, 2, 3, 4], [1, 1, 1, 0], [0.9, 0.8, 0.2, 0.1], at=2.5, bins=2).observed
    array([0., 1.])
    """
    rows = outcome(time, event)
    p = checked("probability", probability, (len(rows.time),))
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"probability must be in [0, 1], got {p.min():g} to {p.max():g}")
    if not 1 <= bins <= len(p):
        raise ValueError(f"bins must be 1 to {len(p)} (the number of rows), got {bins}")
    found = []
    for part in np.array_split(np.argsort(p, kind="stable"), bins):
        own = rows.take(part)
        curve = kaplan_meier(own.time, own.event, coverage=coverage)
        low, high = (1 - step(curve.times, x, at, 1.0) for x in (curve.high, curve.low))
        found.append((p[part].mean(), 1 - curve.at(at), low, high, len(part)))
    columns = (np.array(column) for column in zip(*found, strict=True))
    return Calibration(*columns)


def checked(name: str, values: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values of that shape as float64; raises `ValueError` where they are not, or not finite."""
    array = np.asarray(values, np.float64)
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape}")
    wrong = ~np.isfinite(array)
    if wrong.any():
        row = int(np.argwhere(wrong)[0][0])
        raise ValueError(f"{name} must be finite, got {array[wrong][0]:g} in row {row}")
    return array


def checked_curves(survival: Any, times: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Curves (count, T) and their times; raises `ValueError` where they are others."""
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or len(times) == 0 or not (np.diff(times) > 0).all():
        raise ValueError(f"times must be sorted numbers, each once, got {times}")
    return checked("survival", survival, (count, len(times))), times
