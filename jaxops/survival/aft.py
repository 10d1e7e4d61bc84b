"""Accelerated failure times: Weibull, log-normal and log-logistic regressions."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from jaxops.survival.families import Law
from jaxops.survival.newton import (
    check_converged,
    coefficient_table,
    from_start,
    newton,
    scaled,
    started,
)
from jaxops.survival.outcomes import outcome
from jaxops.task import recorded

Array = jax.Array
LAWS = ("weibull", "log-normal", "log-logistic")
HALF_LOG_2_PI = float(np.log(2 * np.pi) / 2)
POLISHED = 20  # the most steps in float64; two or three are usual
EXACT = 1e-7  # of the last of them
ROUNDING = 1e-14  # of eigenvalues, by the largest one


class Slopes(NamedTuple):
    """The log-likelihood and its derivatives, in the dtype of the features.

    Attributes:
        value: (), of log times.
        gradient: (P + 2,).
        information: (P + 2, P + 2), the negative Hessian.
    """

    value: Any
    gradient: Any
    information: Any


def _survival(xp: Any, law: str, z: Any) -> tuple[Any, Any, Any]:
    """log S(z) of rows (N,) and its first two derivatives."""
    special = scipy.special if xp is np else jax.scipy.special
    if law == "weibull":
        hazard = xp.exp(z)
        return -hazard, -hazard, -hazard
    if law == "log-normal":
        value = special.log_ndtr(-z)
        hazard = xp.exp(-(z**2) / 2 - HALF_LOG_2_PI - value)
        return value, -hazard, -hazard * (hazard - z)
    share = special.expit(z)
    return -xp.logaddexp(0, z), -share, -share * (1 - share)


def _density(xp: Any, law: str, z: Any) -> tuple[Any, Any, Any]:
    """log f(z) of rows (N,) and its first two derivatives."""
    if law == "log-normal":
        return -(z**2) / 2 - HALF_LOG_2_PI, -z, -xp.ones_like(z)
    value, first, second = _survival(xp, law, z)
    if law == "weibull":
        return z + value, 1 + first, second
    return z + 2 * value, 1 + 2 * first, 2 * second


def _slopes(xp: Any, law: str, x: Any, rows: Sequence[Any], b: Any) -> Slopes:
    """See `Slopes`, at (intercept, slopes, log scale).

    With z = (log t - location) / scale a function f(z) has the derivatives -f' / scale and -z f' in
    the location and the log scale, and f'' / scale^2, (z f'' + f') / scale, z^2 f'' + z f' are the
    second ones.

    Args:
        xp: NumPy, or JAX's.
        law: of z.
        x: (N, P).
        rows: log times, events, log entries and whether there is one, each (N,).
        b: (P + 2,).
    """
    log_time, event, log_entry, late = rows
    design = xp.concatenate([xp.ones((len(x), 1), x.dtype), x], 1)
    location, scale = design @ b[:-1], xp.exp(b[-1])
    z, z_entry = (log_time - location) / scale, (log_entry - location) / scale
    at_time = [
        xp.where(event, seen, not_yet)
        for seen, not_yet in zip(_density(xp, law, z), _survival(xp, law, z), strict=True)
    ]
    at_entry = [xp.where(late, part, 0) for part in _survival(xp, law, z_entry)]
    value = at_time[0].sum() - at_entry[0].sum() - event.sum() * b[-1]
    gradient: list[Any] = [0.0, -event.sum()]
    curve: list[Any] = [0.0, 0.0, 0.0]
    for sign, at, (_, first, second) in ((1, z, at_time), (-1, z_entry, at_entry)):
        gradient[0] -= sign * first
        gradient[1] -= sign * (at * first).sum()
        curve[0] -= sign * second
        curve[1] -= sign * (at * second + first)
        curve[2] -= sign * (at**2 * second + at * first).sum()
    block = design.T @ (curve[0][:, None] * design) / scale**2
    cross = (curve[1] @ design / scale)[:, None]
    last = xp.concatenate([cross.T, xp.reshape(curve[2], (1, 1))], 1)
    information = xp.concatenate([xp.concatenate([block, cross], 1), last])
    slope = gradient[0] @ design / scale
    return Slopes(value, xp.append(slope, gradient[1]), information)


@functools.partial(jax.jit, static_argnums=0)
def _near(law: str, x: Array, start: Array, *rows: Array) -> Array:
    """Parameters near the maximum."""
    with jax.default_matmul_precision("highest"):
        return newton(lambda b: _slopes(jnp, law, x, rows, b), start)[0]


def _polished(
    law: str, x: np.ndarray, rows: Sequence[Any], b: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, Slopes]:
    """The maximum by steps in float64, and the derivatives there.

    Raises:
        ValueError: there is none, or features that determine each other.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        at = _slopes(np, law, x, rows, b)
    step = np.full(len(b), np.nan if np.isnan(at.value) else 0.0)
    for _ in range(POLISHED):
        with np.errstate(over="ignore", invalid="ignore"):
            new = _slopes(np, law, x, rows, b + step)
        if new.value >= at.value - ROUNDING * abs(at.value):
            b, at = b + step, new
            try:
                step = np.linalg.solve(at.information, at.gradient)
            except np.linalg.LinAlgError:
                step = np.full(len(b), np.inf)
        else:
            step = step / 2
        if not np.abs(step).max() > EXACT:
            break
    check_converged(step[1:-1], b[1:-1], names[1:-1], EXACT)  # the intercept grows with them
    check_converged(step, b, names, EXACT)
    b = b + step
    values, vectors = np.linalg.eigh(at.information)
    if values[0] <= ROUNDING * values[-1]:
        worst = names[int(np.abs(vectors[:, 0]).argmax())]
        raise ValueError(f"the times must tell the coefficient of {worst}, got some that do not")
    return b, at


@recorded
class AFTFit(NamedTuple):
    """An accelerated failure time regression, fitted; see `aft_regression`.

    Attributes:
        names: "intercept", those of the P features, "log(scale)".
        coefficients: (P + 2,); exp of a feature's is the factor by which one unit stretches time.
        covariance: (P + 2, P + 2), of the coefficients.
        log_likelihood: of the times.
        law: of the times of a row.
        rows: number of rows.
        events: number of events.
    """

    names: list[str]
    coefficients: np.ndarray
    covariance: np.ndarray
    log_likelihood: float
    law: Law
    rows: int
    events: int

    def location(self, features: Any) -> np.ndarray:
        """The location of the log times (N,) of rows."""
        return self.coefficients[0] + np.asarray(features, np.float64) @ self.coefficients[1:-1]

    def frame(self, coverage: float = 0.95) -> Any:
        """One row a parameter: coefficient, standard error, bounds, exp(coefficient), z and p."""
        return coefficient_table(self.names, self.coefficients, self.covariance, coverage)


def aft_regression(
    features: Any,
    time: Any,
    event: Any,
    *,
    entry: Any = None,
    law: str = "weibull",
    names: Sequence[str] | None = None,
    start: Any = None,
) -> AFTFit:
    """Accelerated failure time: log t = a + x b + scale * e, by maximum likelihood.

    The error e has Gumbel's law of extreme values, so that times are Weibull with shape 1 / scale
    and scale exp(a + x b); or is standard normal; or logistic. Newton's method on the device in
    float32; the last steps are made in float64 on the host.

    Args:
        features: (N, P), finite.
        time: (N,), above 0; see `survival.outcome`.
        event: (N,), 0 or 1.
        entry: (N,), or None.
        law: "weibull", "log-normal" or "log-logistic".
        names: of the features; x0 and so on by default.
        start: (P + 2,), coefficients to begin with, such as those of an earlier fit. The result
            does not depend on them.

    Raises:
        ValueError: as `survival.outcome`; no event, a time of 0; features that are not finite, do
            not vary or determine each other, or whose coefficient is infinite; another law.

    References:
        Kalbfleisch and Prentice 2002, The statistical analysis of failure time data, chapter 3.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(400, 1))
    >>> fit = aft_regression(x, np.exp(1 + 0.5 * x[:, 0]) * rng.weibull(2.0, 400), np.ones(400))
    >>> [round(float(c), 1) for c in fit.coefficients]
    [1.0, 0.5, -0.7]
    """
    if law not in LAWS:
        raise ValueError(f"law must be one of {', '.join(LAWS)}, got {law!r}")
    rows = outcome(time, event, entry, some=True)
    zero = np.flatnonzero(rows.time == 0)
    if len(zero):
        raise ValueError(f"time must be above 0 for a law of log times, got 0 in row {zero[0]}")
    x, mean, std, names = scaled(features, len(rows.time), names, collinear=False)
    # in float64, and in the unit of the geometric mean: small numbers for the device
    log_time = np.log(rows.time)
    centre = log_time.mean()
    entry = np.zeros(len(x)) if rows.entry is None else rows.entry
    log_entry = np.log(np.where(entry > 0, entry, rows.time))  # of no entry any number
    # of features as they are: the intercept is at x = 0, not at the mean
    change = np.eye(x.shape[1] + 2)
    change[1:-1, 1:-1] /= std[:, None]
    change[0, 1:-1] = -mean / std
    usual = np.zeros(len(change))
    usual[-1] = np.log(max(log_time.std(), 1e-3))
    given = None
    if start is not None:
        given = started("start", start, len(change))
        given[0] -= centre
        given = np.linalg.solve(change, given)
    seen, late = rows.event > 0, entry > 0
    columns = (log_time - centre, seen, log_entry - centre, late)
    every = ["intercept", *names, "log(scale)"]

    def maximum(first: np.ndarray) -> tuple[np.ndarray, Slopes]:
        device = [
            jnp.asarray(c, jnp.float32 if c.dtype == float else bool) for c in (x, first, *columns)
        ]
        near = _near(law, *device)
        return _polished(law, x, columns, np.asarray(near, np.float64), every)

    b, at = from_start(maximum, given, usual)
    coefficients = change @ b
    coefficients[0] += centre
    covariance = change @ np.linalg.inv(at.information) @ change.T
    value = float(at.value - log_time[seen].sum())  # of t, not of log t
    found = Law(law, float(np.exp(b[-1])))
    return AFTFit(every, coefficients, covariance, value, found, len(x), rows.events)
