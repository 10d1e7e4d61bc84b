"""Accelerated failure times: Weibull, log-normal and log-logistic regressions."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from jaxops.survival.families import Law
from jaxops.survival.newton import CLOSE, check_converged, coefficient_table, newton, scaled
from jaxops.survival.outcomes import outcome
from jaxops.task import recorded

Array = jax.Array
LAWS = ("weibull", "log-normal", "log-logistic")


def _log_survival(law: str, z: Array) -> Array:
    if law == "weibull":
        return -jnp.exp(z)
    return norm.logsf(z) if law == "log-normal" else -jax.nn.softplus(z)


def _log_density(law: str, z: Array) -> Array:
    if law == "weibull":
        return z - jnp.exp(z)
    return norm.logpdf(z) if law == "log-normal" else z - 2 * jax.nn.softplus(z)


def _row(
    law: str, theta: Array, log_time: Array, event: Array, log_entry: Array, late: Array
) -> Array:
    """The log-likelihood of one row, up to -log t, for theta = (location, log scale)."""
    z, z_entry = ((x - theta[0]) * jnp.exp(-theta[1]) for x in (log_time, log_entry))
    seen = _log_density(law, z) - theta[1]
    value = jnp.where(event, seen, _log_survival(law, z))
    return value - jnp.where(late, _log_survival(law, z_entry), 0)


@functools.partial(jax.jit, static_argnums=0)
def _maximum(law: str, x: Array, start: Array, *rows: Array) -> tuple[Array, Array, Array, Array]:
    """The parameters (intercept, slopes, log scale), the last step, values (N,), information."""
    of_row = functools.partial(_row, law)

    def theta(b: Array) -> Array:
        return jnp.stack([b[0] + x @ b[1:-1], jnp.broadcast_to(b[-1], len(x))], 1)

    def evaluate(b: Array) -> tuple[Array, Array, Array]:
        at = theta(b)
        value, slope = jax.vmap(jax.value_and_grad(of_row))(at, *rows)
        curve = -jax.vmap(jax.hessian(of_row))(at, *rows)
        ones = jnp.concatenate([jnp.ones((len(x), 1)), x], 1)
        cross = ones.T @ curve[:, 0, 1]
        block = ones.T @ (curve[:, :1, 0] * ones)
        last = jnp.append(cross, curve[:, 1, 1].sum())
        information = jnp.concatenate([jnp.concatenate([block, cross[:, None]], 1), last[None]])
        gradient = jnp.append(slope[:, 0] @ ones, slope[:, 1].sum())
        return value.sum(), gradient, information

    with jax.default_matmul_precision("highest"):
        b, step, information = newton(evaluate, start)
        return b + step, step, jax.vmap(of_row)(theta(b + step), *rows), information


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
) -> AFTFit:
    """Accelerated failure time: log t = a + x b + scale * e, by maximum likelihood.

    The error e has Gumbel's law of extreme values, so that times are Weibull with shape 1 / scale
    and scale exp(a + x b); or is standard normal; or logistic. Newton's method on the device, in
    float32, with derivatives by JAX.

    Args:
        features: (N, P), finite.
        time: (N,), above 0; see `survival.outcome`.
        event: (N,), 0 or 1.
        entry: (N,), or None.
        law: "weibull", "log-normal" or "log-logistic".
        names: of the features; x0 and so on by default.

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
    start = np.zeros(x.shape[1] + 2)
    start[-1] = np.log(max(log_time.std(), 1e-3))
    b, step, values, information = (
        np.asarray(part, np.float64)
        for part in _maximum(
            law,
            jnp.asarray(x, jnp.float32),
            jnp.asarray(start, jnp.float32),
            jnp.asarray(log_time - centre, jnp.float32),
            rows.event > 0,
            jnp.asarray(log_entry - centre, jnp.float32),
            entry > 0,
        )
    )
    every = ["intercept", *names, "log(scale)"]
    check_converged(step, b, every, CLOSE)
    # of features as they are: the intercept is at x = 0, not at the mean
    change = np.eye(len(b))
    change[1:-1, 1:-1] /= std[:, None]
    change[0, 1:-1] = -mean / std
    coefficients = change @ b
    coefficients[0] += centre
    covariance = change @ np.linalg.inv(information) @ change.T
    value = float(values.sum() - log_time[rows.event > 0].sum())  # of t, not of log t
    found = Law(law, float(np.exp(b[-1])))
    return AFTFit(every, coefficients, covariance, value, found, len(x), rows.events)
