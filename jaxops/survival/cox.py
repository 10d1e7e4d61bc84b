"""Proportional hazards: Cox's regression by Newton's method, for millions of rows.

The rows are sorted once. A sum over the rows at risk at an event is then a running sum, read at the
event's place: rows enter it at their time and leave it at their entry, going back in time within a
stratum. A row's sum over the events at which it is at risk is one as well, forward in time. With
w = exp(x b) and the sums S0 of w and S1 of w x over the rows at risk, the negative Hessian is

    sum over rows of A w x x'  -  sum over events of (S1 / S0) (S1 / S0)'

with A the sum of 1 / S0 over the events of a row: two matrix products instead of a running sum of
P x P matrices. Efron's method takes from S0 and S1 of the l-th of m tied events l / m of the sums
over the tied rows.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

from jaxops.model.finished import frame
from jaxops.survival.curves import kaplan_meier
from jaxops.survival.families import Baseline
from jaxops.survival.newton import (
    CLOSE,
    check_converged,
    coefficient_table,
    newton,
    scaled,
)
from jaxops.survival.outcomes import Outcome, codes, outcome
from jaxops.task import recorded

Array = jax.Array
POLISHED = 8  # the most steps in float64
EXACT = 1e-7  # of the last of them


class RiskSets(NamedTuple):
    """The order of N rows, M changes of the rows at risk and E events with G distinct times.

    Attributes:
        row: (M,), the row of each change, back in time within a stratum.
        sign: (M,), 1 where it enters the rows at risk, -1 where it leaves them.
        first: (M,), the first change of a stratum.
        event: (E,), the rows with an event, forward in time within a stratum.
        begins: (E,), the first event of a stratum.
        at: (E,), the last change that counts at the event.
        tie: (E,), the number of the event's time.
        share: (E,), l / m of Efron's method, 0 for Breslow's.
        until: (N,), of the events of the row's stratum up to its time, the last, counted from 1; 0
            for none.
        since: (N,), the same of its entry.
        own: (N,), the number of the row's tied events; G for a row without an event.
        sizes: (G,), the number of events at a time.
    """

    row: np.ndarray
    sign: np.ndarray
    first: np.ndarray
    event: np.ndarray
    begins: np.ndarray
    at: np.ndarray
    tie: np.ndarray
    share: np.ndarray
    until: np.ndarray
    since: np.ndarray
    own: np.ndarray
    sizes: np.ndarray


def risk_sets(rows: Outcome, stratum: np.ndarray, efron: bool) -> RiskSets:
    """Sort the rows; see `RiskSets`."""
    N = len(rows.time)
    entry = np.zeros(0) if rows.entry is None else rows.entry
    values, rank = np.unique(np.concatenate([rows.time, entry]), return_inverse=True)
    base = stratum.astype(np.int64) * len(values)
    key, entry_key = base + rank[:N], base[: len(entry)] + rank[N:]
    events = np.flatnonzero(rows.event)
    events = events[np.argsort(key[events], kind="stable")]
    event_key = key[events]
    _, start, tie, sizes = np.unique(
        event_key, return_index=True, return_inverse=True, return_counts=True
    )
    change_key = np.concatenate([key, entry_key])
    order = np.argsort(-change_key, kind="stable")
    row = np.concatenate([np.arange(N), np.arange(len(entry))])[order]
    sign = np.where(order < N, 1.0, -1.0)
    at = np.searchsorted(-change_key[order], -event_key, side="right") - 1
    none = np.searchsorted(event_key, base, side="left")

    def passed(keys: np.ndarray) -> np.ndarray:
        place = np.searchsorted(event_key, keys, side="right")
        return np.where(place > none, place, 0)

    own = np.full(N, len(sizes))
    own[events] = tie
    share = (np.arange(len(events)) - start[tie]) / sizes[tie] * efron
    first = np.diff(stratum[row], prepend=-1) != 0
    begins = np.diff(stratum[events], prepend=-1) != 0
    since = passed(entry_key) if len(entry) else np.zeros(N, np.int64)
    sets = (row, sign, first, events, begins, at, tie, share, passed(key), since, own, sizes)
    return RiskSets(*(x.astype(np.int32) if x.dtype.kind == "i" else x for x in sets))


def _running(xp: Any, values: Any, first: Any) -> Any:
    """The sums (M, K) of the rows of values (M, K) so far, anew from each row that is first."""
    if xp is np:
        total = np.cumsum(values, 0)
        start = np.maximum.accumulate(np.where(first, np.arange(len(first)), 0))
        return total - (total - values)[start]

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] + b[1])

    return jax.lax.associative_scan(add, (first[:, None], values))[1]


def _of_ties(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (G, K) of values (E, K) over tied events."""
    if xp is np:
        return np.add.reduceat(values, np.cumsum(sets.sizes) - sets.sizes, axis=0)
    return jax.ops.segment_sum(values, sets.tie, len(sets.sizes), indices_are_sorted=True)


def _at_risk(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (E, K) of values (N, K) over the rows at risk at each event."""
    sign = sets.sign[:, None].astype(values.dtype)
    return _running(xp, sign * values[sets.row], sets.first)[sets.at]


def _of_events(xp: Any, values: Any, sets: RiskSets) -> Any:
    """The sums (N, K) of values (E, K) over the events at which each row is at risk."""
    none = xp.zeros_like(values[:1])
    total = xp.concatenate([none, _running(xp, values, sets.begins)])
    share = sets.share[:, None].astype(values.dtype)
    ties = xp.concatenate([_of_ties(xp, values * share, sets), none])
    return total[sets.until] - total[sets.since] - ties[sets.own]


class Slopes(NamedTuple):
    """The log-likelihood and its first derivatives, in the dtype of the features.

    Attributes:
        value: (), the log-likelihood.
        gradient: (P,).
        w: (N,), up to a factor.
        inverse: (E, 1), 1 / S0, up to the same factor.
        hazard: (N,), A.
    """

    value: Any
    gradient: Any
    w: Any
    inverse: Any
    hazard: Any


def slopes(xp: Any, x: Any, sets: RiskSets, b: Any) -> Slopes:
    """See `Slopes`: sums of single numbers."""
    score = x @ b
    largest = score.max()
    w = xp.exp(score - largest)
    inverse = 1 / _of_tied(xp, w[:, None], sets)
    hazard = _of_events(xp, inverse, sets)[:, 0]
    value = (score[sets.event] - largest + xp.log(inverse[:, 0])).sum()
    seen = (sets.own < len(sets.sizes)).astype(x.dtype)
    return Slopes(value, (seen - w * hazard) @ x, w, inverse, hazard)


def means(xp: Any, x: Any, sets: RiskSets, at: Slopes) -> Any:
    """S1 / S0 at each event, (E, P)."""
    return _of_tied(xp, at.w[:, None] * x, sets) * at.inverse


def _of_tied(xp: Any, values: Any, sets: RiskSets) -> Any:
    """`_at_risk`, less the shares of the tied rows."""
    share = sets.share[:, None].astype(values.dtype)
    ties = _of_ties(xp, values[sets.event], sets)[sets.tie]
    return _at_risk(xp, values, sets) - share * ties


@jax.jit
def _maximum(x: Array, sets: RiskSets, l2: Array) -> tuple[Array, Array, Array]:
    def evaluate(b: Array) -> tuple[Array, Array, Array]:
        at = slopes(jnp, x, sets, b)
        mean = means(jnp, x, sets, at)
        information = (x * (at.w * at.hazard)[:, None]).T @ x - mean.T @ mean
        penalty = l2 * jnp.eye(len(b), dtype=x.dtype)
        return at.value - l2 * (b @ b) / 2, at.gradient - l2 * b, information + penalty

    with jax.default_matmul_precision("highest"):
        return newton(evaluate, jnp.zeros(x.shape[1], x.dtype))


@recorded
class CoxFit(NamedTuple):
    """Cox's regression, fitted; see `cox_regression`.

    Attributes:
        names: of the P features.
        coefficients: (P,), the log hazard ratio of one unit of a feature.
        covariance: (P, P), of the coefficients; the sandwich's where robust errors were asked for.
        mean: (P,), of the features, at which the baseline is.
        log_likelihood: the partial log-likelihood, without the penalty.
        null_log_likelihood: the same with all coefficients 0.
        rows: number of rows.
        events: number of events.
        baseline: the cumulative hazard of a row with mean features, by stratum (Breslow).
    """

    names: list[str]
    coefficients: np.ndarray
    covariance: np.ndarray
    mean: np.ndarray
    log_likelihood: float
    null_log_likelihood: float
    rows: int
    events: int
    baseline: Baseline | None

    def log_hazard(self, features: Any) -> np.ndarray:
        """The log hazard ratio (N,) of rows to a row with mean features."""
        return (np.asarray(features, np.float64) - self.mean) @ self.coefficients

    def frame(self, coverage: float = 0.95) -> Any:
        """One row a feature: coefficient, standard error, bounds, hazard ratio, z and p."""
        return coefficient_table(self.names, self.coefficients, self.covariance, coverage)


def cox_regression(
    features: Any,
    time: Any,
    event: Any,
    *,
    entry: Any = None,
    strata: Any = None,
    cluster: Any = None,
    robust: bool = False,
    ties: str = "efron",
    l2: float = 0.0,
    names: Sequence[str] | None = None,
) -> CoxFit:
    """Cox's proportional hazards: the hazard of a row is h(t) exp(x b), with any h of its stratum.

    The partial log-likelihood is maximised by Newton's method on the device in float32; the
    last steps are made by gradients in float64 on the host. A row whose features
    change over time is given as several, each with its own `entry` and `time`.

    Args:
        features: (N, P), finite.
        time: (N,), see `survival.outcome`.
        event: (N,), 0 or 1.
        entry: (N,), or None.
        strata: (N,), each of which has a baseline hazard of its own; None for one.
        cluster: (N,), such as the customer's id: rows of one cluster are dependent, and the errors
            are those of the sandwich.
        robust: the errors of the sandwich, with each row a cluster.
        ties: "efron" or "breslow".
        l2: the penalty is l2 / 2 times the sum of the squared coefficients of standardised
            features.
        names: of the features; x0 and so on by default.

    Raises:
        ValueError: as `survival.outcome`; no event; features that are not finite, do not vary or
            determine each other, or whose coefficient is infinite; another method for ties; a
            negative penalty.

    References:
        Cox 1972; Efron 1977; Breslow 1974; Lin and Wei 1989 (the sandwich).

    >>> fit = cox_regression([[0.0], [1.0], [0.0], [1.0]], [4, 2, 3, 5], [1, 1, 1, 0])
    >>> round(float(fit.coefficients[0]), 3), round(fit.log_likelihood, 3)
    (-0.481, -3.099)
    """
    rows = outcome(time, event, entry, some=True)
    if ties not in ("efron", "breslow"):
        raise ValueError(f'ties must be "efron" or "breslow", got {ties!r}')
    if not 0 <= l2 < np.inf:
        raise ValueError(f"l2 must be finite and at least 0, got {l2}")
    stratum, labels = codes("strata", strata, len(rows.time))
    x, mean, std, names = scaled(features, len(rows.time), names, collinear=l2 > 0)
    sets = risk_sets(rows, stratum, ties == "efron")
    # within strata the likelihood has no constant, and small differences no large one to lose
    on_device = jnp.asarray(x - _mean_of_strata(x, stratum), jnp.float32)
    start, step, information = map(np.asarray, _maximum(on_device, sets, jnp.float32(l2)))
    b, at = _polished(x, sets, l2, start, step, information, names)
    covariance = np.linalg.inv(information.astype(np.float64))
    if robust or cluster is not None:
        number = np.arange(len(x)) if cluster is None else codes("cluster", cluster, len(x))[0]
        covariance = covariance @ _meat(x, sets, at, number) @ covariance
    hazards = _baseline(rows, sets, x @ b, stratum, labels)
    return CoxFit(
        names,
        b / std,
        covariance / np.outer(std, std),
        mean,
        float(at.value),
        float(slopes(np, x, sets, np.zeros(len(b))).value),
        len(x),
        rows.events,
        hazards,
    )


def _mean_of_strata(x: np.ndarray, stratum: np.ndarray) -> np.ndarray:
    """The mean of x (N, P) in each row's stratum, (N, P); (1, P) for one stratum."""
    if not stratum.any():
        return x.mean(0, keepdims=True)
    count = np.bincount(stratum)
    sums = np.stack([np.bincount(stratum, column) for column in x.T], 1)
    return (sums / np.maximum(count, 1)[:, None])[stratum]


def _polished(
    x: np.ndarray,
    sets: RiskSets,
    l2: float,
    b: np.ndarray,
    step: np.ndarray,
    information: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, Slopes]:
    """The maximum, by gradients in float64, and the derivatives there.

    The curvature may be that of float32: its error only slows the last steps down.
    """
    check_converged(step, b, names, CLOSE)
    b = b.astype(np.float64) + step
    for _ in range(POLISHED):
        at = slopes(np, x, sets, b)
        step = np.linalg.solve(information, at.gradient - l2 * b)
        if np.abs(step).max() <= EXACT:
            break
        b = b + step
    check_converged(step, b, names, EXACT)
    return b, at


def _meat(x: np.ndarray, sets: RiskSets, at: Slopes, cluster: np.ndarray) -> np.ndarray:
    """The sum over clusters of s s', with s the sum of the score residuals of a cluster's rows."""
    mean, none = means(np, x, sets, at), np.zeros((1, x.shape[1]))
    of_ties = _of_ties(np, mean, sets) / sets.sizes[:, None]
    of_row = np.concatenate([of_ties, none])[sets.own]
    seen = (sets.own < len(sets.sizes))[:, None]
    passed = x * at.hazard[:, None] - _of_events(np, mean * at.inverse, sets)
    residual = np.where(seen, x - of_row, 0) - at.w[:, None] * passed
    sums = np.stack([np.bincount(cluster, column) for column in residual.T], 1)
    return sums.T @ sums


def breslow(
    rows: Outcome, score: np.ndarray, stratum: np.ndarray | None = None, labels: Any = ("",)
) -> Baseline:
    """The baseline's cumulative hazard: the sum of d / S0 over the event times of each stratum.

    Args:
        rows: with at least one event.
        score: (N,), log hazards.
        stratum: (N,), the number of the stratum; None for one.
        labels: of the strata.

    References:
        Breslow 1974.

    >>> rows = outcome([1.0, 2.0, 3.0], [1, 0, 1])
    >>> breslow(rows, np.zeros(3)).hazards[0].round(3).tolist()
    [0.333, 1.333]
    """
    stratum = np.zeros(len(rows.time), np.int64) if stratum is None else stratum
    sets = risk_sets(rows, stratum, efron=False)
    return _baseline(rows, sets, np.asarray(score, np.float64), stratum, labels)


def _baseline(
    rows: Outcome, sets: RiskSets, score: np.ndarray, stratum: np.ndarray, labels: Any
) -> Baseline:
    largest = score.max()
    sums = _at_risk(np, np.exp(score - largest)[:, None], sets)[:, 0]
    start = np.cumsum(sets.sizes) - sets.sizes
    hazard = sets.sizes / (sums[start] * np.exp(largest))
    row = sets.event[start]
    times, of = rows.time[row], stratum[row]
    every = range(len(labels))
    hazards = [np.cumsum(hazard[of == s]) for s in every]
    return Baseline(list(labels), [times[of == s] for s in every], hazards)


def proportionality_test(
    fit: CoxFit,
    features: Any,
    time: Any,
    event: Any,
    *,
    entry: Any = None,
    strata: Any = None,
    ties: str = "efron",
) -> Any:
    """Test for each feature whether its hazard ratio stays the same over time.

    The scaled Schoenfeld residuals of the events are correlated with the Kaplan-Meier curve at
    their times; a small p says that the ratio changes with time: stratify, or give the feature's
    product with time.

    Args:
        fit: of `cox_regression` for these rows, without robust errors.
        features: (N, P), as for the fit.
        time: (N,), as for the fit.
        event: (N,), as for the fit.
        entry: as for the fit.
        strata: as for the fit.
        ties: as for the fit.

    Returns:
        A pandas frame with name, chi-squared of one degree of freedom, and p.

    Raises:
        ValueError: as `survival.outcome`; features of another shape.

    References:
        Grambsch and Therneau 1994.

    >>> rows = [[0.0], [1.0], [0.0], [1.0], [1.0]], [1, 2, 3, 4, 5], [1, 1, 1, 1, 0]
    >>> proportionality_test(cox_regression(*rows), *rows).columns.tolist()
    ['name', 'chi2', 'p']
    """
    rows = outcome(time, event, entry, some=True)
    x = np.asarray(features, np.float64)
    if x.shape != (len(rows.time), len(fit.names)):
        wanted = (len(rows.time), len(fit.names))
        raise ValueError(f"features must have shape {wanted}, got {x.shape}")
    x = x - fit.mean
    sets = risk_sets(rows, codes("strata", strata, len(x))[0], ties == "efron")
    mean = means(np, x, sets, slopes(np, x, sets, fit.coefficients))
    of_ties = _of_ties(np, mean, sets) / sets.sizes[:, None]
    residuals = (x[sets.event] - of_ties[sets.tie]) @ fit.covariance * len(sets.event)
    curve = kaplan_meier(rows.time, rows.event, rows.entry)
    at = curve.at(rows.time[sets.event])
    at = at - at.mean()
    scale = len(sets.event) * np.diagonal(fit.covariance) * (at @ at)
    statistic = (at @ residuals) ** 2 / scale
    names = np.array(fit.names, object)
    return frame({"name": names, "chi2": statistic, "p": chi2.sf(statistic, 1)})
