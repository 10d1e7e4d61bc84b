"""Curves without a model: survival, cumulative hazard and incidence; and tests of groups."""

from typing import Any, NamedTuple

import numpy as np
import scipy
from scipy.special import ndtri

from jaxops.model.exported.curves import step
from jaxops.model.finished import frame
from jaxops.survival.outcomes import Outcome, codes, outcome


class Curve(NamedTuple):
    """A step function of time with pointwise bounds.

    Attributes:
        times: (T,), sorted: all at which a row entered, was censored or had an event.
        at_risk: (T,), rows with entry < t <= time.
        events: (T,), rows with an event at t, of the curve's kind.
        estimate: (T,), the value from t on.
        low: (T,), the lower bound; NaN where the variance is not defined.
        high: (T,), the upper bound.
        start: the value before the first time.

    >>> curve = kaplan_meier([1.0, 2.0, 3.0, 4.0], [1, 0, 1, 1])
    >>> curve.estimate.tolist(), curve.median, curve.at([0.5, 1.5]).tolist()
    ([0.75, 0.75, 0.375, 0.0], 3.0, [1.0, 0.75])
    """

    times: np.ndarray
    at_risk: np.ndarray
    events: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    start: float = 1.0

    def at(self, times: Any) -> np.ndarray:
        """The values at any times; after the last one the last value."""
        return step(self.times, self.estimate, times, self.start)

    def risk_at(self, times: Any) -> np.ndarray:
        """The numbers at risk at any times."""
        place = np.searchsorted(self.times, np.asarray(times, np.float64), side="left")
        return np.append(self.at_risk, 0)[place]

    @property
    def median(self) -> float:
        """The first time at which a survival curve is at most 0.5; infinite where there is none.

        Raises:
            ValueError: a curve of hazard or incidence, which has no median.
        """
        if self.start != 1:
            raise ValueError(
                f"median must be asked of a curve from 1 on, got one from {self.start:g}"
            )
        below = np.flatnonzero(self.estimate <= 0.5)
        return float(self.times[below[0]]) if len(below) else np.inf

    def frame(self) -> Any:
        """One row a time."""
        return frame({name: getattr(self, name) for name in self._fields[:-1]})


def _counts(rows: Outcome, causes: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct times (T,), how many are at risk (T,), and the events of each cause (K, T)."""
    entry = np.zeros(0) if rows.entry is None else rows.entry
    times = np.unique(np.concatenate([rows.time, entry]))
    left = np.searchsorted(np.sort(rows.time), times, side="left")
    come = np.searchsorted(np.sort(entry), times, side="left") if len(entry) else len(rows.time)
    events = [
        np.bincount(np.searchsorted(times, rows.time[rows.event == k]), minlength=len(times))
        for k in range(1, causes + 1)
    ]
    return times, come - left, np.stack(events)


def _share(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    return np.divide(count, of, out=np.zeros(len(of)), where=of > 0)


def _log_log(estimate: np.ndarray, error: np.ndarray, coverage: float) -> list[np.ndarray]:
    """The bounds on the scale log(-log), of an error of log(estimate)."""
    _check_coverage(coverage)
    with np.errstate(divide="ignore", invalid="ignore"):
        width = ndtri((1 + coverage) / 2) * error / np.log(estimate)
        bounds = [estimate ** np.exp(sign * width) for sign in (-1, 1)]
    known = [np.where(estimate == 1, 1.0, bound) for bound in bounds]
    return [np.where(estimate == 0, np.nan, bound) for bound in known]


def _check_coverage(coverage: float) -> None:
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")


def kaplan_meier(time: Any, event: Any, entry: Any = None, coverage: float = 0.95) -> Curve:
    """The survival curve by Kaplan and Meier: S(t) = prod over t_i <= t of 1 - d_i / n_i.

    The variance is Greenwood's, and the bounds are on the scale log(-log S), so that they stay in
    [0, 1]; they are NaN where the curve is 0. Without any event the curve is 1.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        entry: (N,), or None.
        coverage: of the bounds.

    Raises:
        ValueError: as `survival.outcome`; a coverage outside (0, 1).

    References:
        Kaplan and Meier 1958; Kalbfleisch and Prentice 1980 (the bounds).

    >>> kaplan_meier([1.0, 1.0, 2.0, 5.0], [1, 0, 1, 0]).frame().round(3).to_numpy()[1].tolist()
    [2.0, 2.0, 1.0, 0.375, 0.011, 0.808]
    """
    times, at_risk, (events,) = _counts(outcome(time, event, entry))
    estimate = np.cumprod(1 - _share(events, at_risk))
    error = np.sqrt(np.cumsum(_share(_share(events, at_risk), at_risk - events)))
    low, high = _log_log(estimate, error, coverage)
    return Curve(times, at_risk, events, estimate, low, high)


def nelson_aalen(time: Any, event: Any, entry: Any = None, coverage: float = 0.95) -> Curve:
    """The cumulative hazard by Nelson and Aalen: H(t) = sum over t_i <= t of d_i / n_i.

    The variance is the sum of d_i (n_i - d_i) / n_i^3, and the bounds are H exp(+-z sd / H).

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        entry: (N,), or None.
        coverage: of the bounds.

    Raises:
        ValueError: as `survival.outcome`; a coverage outside (0, 1).

    References:
        Nelson 1972; Aalen 1978.

    >>> nelson_aalen([1.0, 2.0, 4.0], [1, 1, 0]).estimate.round(4).tolist()
    [0.3333, 0.8333, 0.8333]
    """
    _check_coverage(coverage)
    times, at_risk, (events,) = _counts(outcome(time, event, entry))
    estimate = np.cumsum(_share(events, at_risk))
    sd = np.sqrt(np.cumsum(_share(events * (at_risk - events), at_risk.astype(float) ** 3)))
    width = np.exp(ndtri((1 + coverage) / 2) * _share(sd, estimate))
    return Curve(times, at_risk, events, estimate, estimate / width, estimate * width, 0.0)


def aalen_johansen(
    time: Any, event: Any, entry: Any = None, coverage: float = 0.95
) -> tuple[Curve, ...]:
    """The cumulative incidence of each of several causes by Aalen and Johansen.

    F_k(t) = sum over t_i <= t of S(t_i-) d_ki / n_i, where S is the Kaplan-Meier curve of all
    causes together. The variance is by the delta method (Dinse and Larson 1986, equation 6), and
    the bounds are on the scale log(-log F).

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or the number of a cause, from 1 on.
        entry: (N,), or None.
        coverage: of the bounds.

    Returns:
        A curve for each cause.

    Raises:
        ValueError: as `survival.outcome`; no event; a coverage outside (0, 1).

    >>> one, two = aalen_johansen([1.0, 2.0, 3.0, 4.0], [1, 2, 0, 1])
    >>> one.estimate.tolist(), two.estimate.tolist()
    ([0.25, 0.25, 0.25, 0.75], [0.0, 0.25, 0.25, 0.25])
    """
    rows = outcome(time, event, entry, causes=None, some=True)
    times, n, every = _counts(rows, int(rows.event.max()))
    d = every.sum(0)
    before = np.concatenate([[1.0], np.cumprod(1 - _share(d, n))[:-1]])
    n = n.astype(np.float64)
    curves = []
    for events in every:
        F = np.cumsum(before * _share(events, n))
        a = _share(_share(d, n), n - d)
        b, c = before**2 * _share(events * (n - events), n**3), before * _share(events, n**2)
        # the sums over t_i of (F(t) - F(t_i))^2 a_i and of (F(t) - F(t_i)) c_i, by their parts
        squares = F**2 * np.cumsum(a) - 2 * F * np.cumsum(F * a) + np.cumsum(F**2 * a)
        variance = squares + np.cumsum(b) - 2 * (F * np.cumsum(c) - np.cumsum(F * c))
        error = _share(np.sqrt(np.maximum(variance, 0)), F)
        low, high = _log_log(F, error, coverage)
        low, high = (np.where(F == 0, 0.0, bound) for bound in (low, high))
        curves.append(Curve(times, n.astype(np.int64), events, F, low, high, 0.0))
    return tuple(curves)


class LogRank(NamedTuple):
    """The test of whether groups have one survival curve.

    Attributes:
        statistic: chi-squared under the hypothesis.
        degrees: of freedom, the number of groups less one.
        p: the probability of a statistic as large.
        groups: the G groups, as text.
        observed: (G,), weighted numbers of events.
        expected: (G,), those expected under the hypothesis.

    >>> log_rank([1, 2, 3, 9, 9, 9], [1, 1, 1, 0, 0, 0], list("aaabbb")).p < 0.05
    True
    """

    statistic: float
    degrees: int
    p: float
    groups: list[str]
    observed: np.ndarray
    expected: np.ndarray

    def frame(self) -> Any:
        """One row a group."""
        columns = {"observed": self.observed, "expected": self.expected}
        return frame({"group": np.array(self.groups, object), **columns})


def log_rank(
    time: Any,
    event: Any,
    groups: Any,
    entry: Any = None,
    strata: Any = None,
    weights: str | tuple[float, float] = "log-rank",
) -> LogRank:
    """Test whether groups have one survival curve.

    At each time the weighted difference of observed and expected events of a group is
    w (d_g - d n_g / n); sums over times (and strata) are compared with their hypergeometric
    covariance.

    Args:
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        groups: (N,), at least two different.
        entry: (N,), or None.
        strata: (N,), within which rows are compared; None for one.
        weights: "log-rank" w = 1, the most powerful for proportional hazards; "wilcoxon" w = n
            (Gehan) or "tarone-ware" w = sqrt(n), for early differences; or (p, q) of Fleming and
            Harrington, w = S(t-)^p (1 - S(t-))^q with S of all rows of the stratum.

    Raises:
        ValueError: as `survival.outcome`; no event; fewer than two groups; other weights; groups
            that are never at risk together.

    References:
        Mantel 1966; Gehan 1965; Tarone and Ware 1977; Fleming and Harrington 1991.

    >>> log_rank([1, 2, 3, 4], [1, 1, 1, 0], list("abab"), weights=(1, 0)).degrees
    1
    """
    rows = outcome(time, event, entry, some=True)
    _check_weights(weights)
    group, names = codes("groups", groups, len(rows.time))
    stratum, strata_names = codes("strata", strata, len(rows.time))
    G = len(names)
    if G < 2:
        raise ValueError(f"groups must be at least 2, got {names[0]!r} alone")
    observed, expected, covariance = np.zeros(G), np.zeros(G), np.zeros((G, G))
    for s in range(len(strata_names)):
        for part, more in zip(
            _log_rank_sums(rows.take(stratum == s), group[stratum == s], G, weights),
            (observed, expected, covariance),
            strict=True,
        ):
            more += part
    difference = observed - expected
    inverse = np.linalg.pinv(covariance[1:, 1:], hermitian=True)
    if np.linalg.matrix_rank(covariance, hermitian=True) < G - 1:
        raise ValueError("groups must be at risk together, got some that are not")
    statistic = float(difference[1:] @ inverse @ difference[1:])
    p = float(scipy.stats.chi2.sf(statistic, G - 1))
    return LogRank(statistic, G - 1, p, names, observed, expected)


def _check_weights(weights: Any) -> None:
    named = isinstance(weights, str) and weights in ("log-rank", "wilcoxon", "tarone-ware")
    pair = isinstance(weights, tuple | list) and len(weights) == 2 and min(weights) >= 0
    if not named and not pair:
        raise ValueError(
            'weights must be "log-rank", "wilcoxon", "tarone-ware" or (p, q) of at least 0, got '
            f"{weights!r}"
        )


def _log_rank_sums(
    rows: Outcome, group: np.ndarray, count: int, weights: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    times, n, (d,) = _counts(rows)
    kept = d > 0
    w = np.ones(len(times))
    if weights in ("wilcoxon", "tarone-ware"):
        w = n.astype(float) if weights == "wilcoxon" else np.sqrt(n)
    elif weights != "log-rank":
        before = np.concatenate([[1.0], np.cumprod(1 - _share(d, n))[:-1]])
        w = before ** weights[0] * (1 - before) ** weights[1]
    shares, events = np.zeros((count, kept.sum())), np.zeros((count, kept.sum()))
    for g in range(count):
        own = rows.take(group == g)
        if len(own.time):
            curve = kaplan_meier(own.time, own.event, own.entry)
            shares[g] = curve.risk_at(times[kept])
            place = np.searchsorted(times[kept], own.time[own.event > 0])
            events[g] = np.bincount(place, minlength=kept.sum())
    w, n, d = w[kept], n[kept].astype(float), d[kept]
    shares /= n[None]
    spread = w**2 * d * _share(n - d, np.maximum(n - 1, 1))
    covariance = np.diag((shares * spread[None]).sum(1)) - (shares * spread[None]) @ shares.T
    return (events * w[None]).sum(1), (shares * (w * d)[None]).sum(1), covariance
