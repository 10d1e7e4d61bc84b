"""Proportional hazards: Cox's regression by Newton's method, for millions of rows."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxops.model.finished import frame
from jaxops.survival.curves import kaplan_meier
from jaxops.survival.families import Baseline
from jaxops.survival.newton import (
    CLOSE,
    check_converged,
    coefficient_table,
    from_start,
    newton,
    scaled,
    shrinking,
    started,
    uphill,
)
from jaxops.survival.outcomes import Outcome, codes, outcome
from jaxops.survival.risk_sets import (
    RiskSets,
    Slopes,
    at_risk,
    means,
    of_events,
    of_ties,
    risk_sets,
    slopes,
)
from jaxops.task import recorded

Array = jax.Array
POLISHED = 8  # the most steps in float64
EXACT = 1e-7  # of the last of them
FLAT = 1e-6  # of curvatures, by the largest: what float32 does not tell from 0


@functools.partial(jax.jit, static_argnames="sparse")
def _maximum(
    x: Array, sets: RiskSets, start: Array, l1: Array, l2: Array, sparse: bool
) -> tuple[Array, Array, Array]:
    def evaluate(b: Array) -> tuple[Array, Array, Array]:
        at = slopes(jnp, x, sets, b)
        mean = means(jnp, x, sets, at)
        information = (x * (at.w * at.hazard)[:, None]).T @ x - mean.T @ mean
        penalty = l1 * jnp.abs(b).sum() + l2 * (b @ b) / 2
        curved = information + l2 * jnp.eye(len(b), dtype=x.dtype)
        return at.value - penalty, at.gradient - l2 * b, curved

    with jax.default_matmul_precision("highest"):
        return newton(evaluate, start, shrinking(l1) if sparse else uphill)


@recorded
class CoxFit(NamedTuple):
    """Cox's regression, fitted; see `cox_regression`.

    Attributes:
        names: of the P features.
        coefficients: (P,), the log hazard ratio of one unit of a feature.
        covariance: (P, P), of the coefficients; the sandwich's where robust errors were asked for;
            NaN with an l1 penalty.
        mean: (P,), of the features, at which the baseline is.
        log_likelihood: the partial log-likelihood, without the penalty.
        null_log_likelihood: the same with all coefficients 0.
        rows: number of rows.
        events: number of events.
        baseline: the cumulative hazard of a row with mean features, by stratum (Breslow).
        robust: whether the covariance is the sandwich's.
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
    robust: bool = False

    def log_hazard(self, features: Any) -> np.ndarray:
        """The log hazard ratio (N,) of rows to a row with mean features."""
        return (np.asarray(features, np.float64) - self.mean) @ self.coefficients

    def frame(self, coverage: float = 0.95) -> Any:
        """One row a feature: coefficient, standard error, bounds, hazard ratio, z and p.

        With an l1 penalty all but coefficient and hazard ratio are NaN.
        """
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
    l1: float = 0.0,
    l2: float = 0.0,
    names: Sequence[str] | None = None,
    start: Any = None,
) -> CoxFit:
    """Cox's proportional hazards: the hazard of a row is h(t) exp(x b), with any h of its stratum.

    The partial log-likelihood, less l1 sum |b_j| + l2 / 2 sum b_j^2 for coefficients b of features
    with standard deviation 1, is maximised by Newton's method on the device in float32; the last
    steps are made by gradients in float64 on the host. A row whose features change over time is
    given as several, each with its own `entry` and `time`.

    With `l1` (the lasso; with both the elastic net) the steps are those of coordinate descent on
    the quadratic model of the likelihood, and coefficients that are best at 0 are exactly 0. The
    likelihood is a sum over rows. That of glmnet and of scikit-survival's CoxnetSurvivalAnalysis is
    a mean: for features that are standardised there too, and ties by Breslow, their alpha and
    l1_ratio are l1 = N alpha l1_ratio and l2 = N alpha (1 - l1_ratio) here. Coefficients that were
    selected have no standard errors: they are NaN.

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
        l1: the weight of the sum of the absolute coefficients of standardised features.
        l2: the weight of half the sum of their squares.
        names: of the features; x0 and so on by default.
        start: (P,), coefficients to begin with, such as those of an earlier fit; 0 by default. The
            result does not depend on them.

    Raises:
        ValueError: as `survival.outcome`; no event; features that are not finite, do not vary or,
            without a penalty, determine each other, or whose coefficient is infinite; another
            method for ties; a negative penalty; robust errors with an l1 penalty.

    References:
        Cox 1972; Efron 1977; Breslow 1974; Lin and Wei 1989 (the sandwich); Simon, Friedman, Hastie
        and Tibshirani 2011, Regularization paths for Cox's proportional hazards model via
        coordinate descent.

    >>> fit = cox_regression([[0.0], [1.0], [0.0], [1.0]], [4, 2, 3, 5], [1, 1, 1, 0])
    >>> round(float(fit.coefficients[0]), 3), round(fit.log_likelihood, 3)
    (-0.481, -3.099)
    >>> lasso = cox_regression([[0.0], [1.0], [0.0], [1.0]], [4, 2, 3, 5], [1, 1, 1, 0], l1=2.0)
    >>> lasso.coefficients.tolist()
    [0.0]
    """
    rows = outcome(time, event, entry, some=True)
    if ties not in ("efron", "breslow"):
        raise ValueError(f'ties must be "efron" or "breslow", got {ties!r}')
    for name, weight in (("l1", l1), ("l2", l2)):
        if not 0 <= weight < np.inf:
            raise ValueError(f"{name} must be finite and at least 0, got {weight}")
    robust = robust or cluster is not None
    if robust and l1 > 0:
        raise ValueError(f"l1 must be 0 with robust or cluster, as it leaves no errors, got {l1}")
    stratum, labels = codes("strata", strata, len(rows.time))
    x, mean, std, names = scaled(features, len(rows.time), names, collinear=l1 + l2 > 0)
    sets = risk_sets(rows, stratum, ties == "efron")
    # within strata the likelihood has no constant, and small differences no large one to lose
    on_device = jnp.asarray(x - _mean_of_strata(x, stratum), jnp.float32)

    def maximum(first: np.ndarray) -> tuple[np.ndarray, Slopes, np.ndarray]:
        given = (jnp.float32(value) for value in (first, l1, l2))
        near, step, information = map(np.asarray, _maximum(on_device, sets, *given, sparse=l1 > 0))
        return *_polished(x, sets, l1, l2, near, step, information, names), information

    given = None if start is None else started("start", start, len(std)) * std
    b, at, information = from_start(maximum, given, np.zeros(len(std)))
    covariance = np.full(information.shape, np.nan)
    if l1 == 0:
        covariance = np.linalg.inv(information.astype(np.float64))
    if robust:
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
        robust,
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
    l1: float,
    l2: float,
    b: np.ndarray,
    step: np.ndarray,
    information: np.ndarray,
    names: Sequence[str],
) -> tuple[np.ndarray, Slopes]:
    """The maximum, by gradients in float64, and the derivatives there.

    The curvature may be that of float32: its error only slows the last steps down. With an l1
    penalty a coefficient is 0 or not as its own best step has it, the others given; those that are
    not make a step of Newton's method together.
    """
    check_converged(step, b, names, CLOSE)
    b, information = b.astype(np.float64) + step, information.astype(np.float64)
    curve = np.maximum(np.diagonal(information), FLAT * np.trace(information))
    for _ in range(POLISHED):
        at = slopes(np, x, sets, b)
        pull = at.gradient - l2 * b + curve * b
        free = np.abs(pull) > l1 if l1 else np.ones(len(b), bool)
        step = -b * ~free
        slope = at.gradient - l2 * b - l1 * np.sign(pull) - information @ step
        part = information[np.ix_(free, free)]
        # with an l1 penalty features may determine each other
        step[free] = np.linalg.lstsq(part, slope[free], rcond=FLAT if l1 else 0)[0]
        if l1:  # none goes beyond 0
            step = np.where((b + step) * pull < 0, -b, step)
        b = b + step
        if np.abs(step).max() <= EXACT:
            break
    check_converged(step, b, names, EXACT)
    return b, at


def _meat(x: np.ndarray, sets: RiskSets, at: Slopes, cluster: np.ndarray) -> np.ndarray:
    """The sum over clusters of s s', with s the sum of the score residuals of a cluster's rows."""
    mean, none = means(np, x, sets, at), np.zeros((1, x.shape[1]))
    tied = of_ties(np, mean, sets) / sets.sizes[:, None]
    of_row = np.concatenate([tied, none])[sets.own]
    seen = (sets.own < len(sets.sizes))[:, None]
    passed = x * at.hazard[:, None] - of_events(np, mean * at.inverse, sets)
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
    sums = at_risk(np, np.exp(score - largest)[:, None], sets)[:, 0]
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
        fit: of `cox_regression` for these rows, without robust errors and l1 penalty.
        features: (N, P), as for the fit.
        time: (N,), as for the fit.
        event: (N,), as for the fit.
        entry: as for the fit.
        strata: as for the fit.
        ties: as for the fit.

    Returns:
        A pandas frame with name, chi-squared of one degree of freedom, and p.

    Raises:
        ValueError: as `survival.outcome`; features of another shape; a fit with robust errors, or
            with none.

    References:
        Grambsch and Therneau 1994.

    >>> rows = [[0.0], [1.0], [0.0], [1.0], [1.0]], [1, 2, 3, 4, 5], [1, 1, 1, 1, 0]
    >>> proportionality_test(cox_regression(*rows), *rows).columns.tolist()
    ['name', 'chi2', 'p']
    """
    rows = outcome(time, event, entry, some=True)
    if fit.robust or np.isnan(fit.covariance).any():
        why = "robust or cluster" if fit.robust else "an l1 penalty, which has none"
        raise ValueError(f"fit must have errors that are not robust, got a fit with {why}")
    x = np.asarray(features, np.float64)
    if x.shape != (len(rows.time), len(fit.names)):
        wanted = (len(rows.time), len(fit.names))
        raise ValueError(f"features must have shape {wanted}, got {x.shape}")
    x = x - fit.mean
    sets = risk_sets(rows, codes("strata", strata, len(x))[0], ties == "efron")
    mean = means(np, x, sets, slopes(np, x, sets, fit.coefficients))
    tied = of_ties(np, mean, sets) / sets.sizes[:, None]
    residuals = (x[sets.event] - tied[sets.tie]) @ fit.covariance * len(sets.event)
    curve = kaplan_meier(rows.time, rows.event, rows.entry)
    at = curve.at(rows.time[sets.event])
    at = at - at.mean()
    scale = len(sets.event) * np.diagonal(fit.covariance) * (at @ at)
    statistic = (at @ residuals) ** 2 / scale
    names = np.array(fit.names, object)
    return frame({"name": names, "chi2": statistic, "p": scipy.stats.chi2.sf(statistic, 1)})
