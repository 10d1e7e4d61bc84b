"""The task of a closed form: parameters of the highest likelihood, by Newton's method.

The likelihood is a sum over rows of functions of positive parameters. Its value, gradient and
matrix of second derivatives with respect to the logarithms of the parameters come from automatic
differentiation, in float32, for groups of rows; the sums over groups and the small linear systems
are float64.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.customers.models.numeric import call_size
from jaxops.model.finished import frame

Array = jax.Array
Part = tuple[Callable[..., Array], tuple[np.ndarray, ...], np.ndarray]
GROUP = 512  # rows whose sum is float32
STEPS = 100
GAIN = 1e-5  # the step is the last where it would raise the log-likelihood by less
FAR = 15.0  # from the start, as a logarithm: a parameter without a bound
SAMPLE = 2**16  # rows of which the start is found where there are many more


class Estimate(NamedTuple):
    """Parameters of the highest likelihood, with their uncertainty.

    Attributes:
        names: of the parameters.
        values: (K,) float64.
        covariance: (K, K) float64, of the logarithms of the parameters: the inverse of the observed
            information.
        log_likelihood: the highest.
        steps: of Newton's method.

    >>> one = Estimate(("r",), np.array([0.2]), np.array([[0.01]]), -9.0, 5)
    >>> one.frame()[["name", "value", "error"]].round(3).values.tolist()
    [['r', 0.2, 0.02]]
    """

    names: tuple[str, ...]
    values: np.ndarray
    covariance: np.ndarray
    log_likelihood: float
    steps: int

    @property
    def errors(self) -> np.ndarray:
        """The standard errors of the parameters, (K,), by the delta method."""
        return self.values * np.sqrt(np.diag(self.covariance))

    def frame(self) -> Any:
        """One row a parameter: name, value, standard error, and the bounds of a 95 % interval.

        The interval is symmetric for the logarithm of the parameter.
        """
        far = np.exp(1.96 * np.sqrt(np.diag(self.covariance)))
        return frame(
            {
                "name": np.array(self.names),
                "value": self.values,
                "error": self.errors,
                "low": self.values / far,
                "high": self.values * far,
            }
        )


def estimate(
    method: Any, *columns: np.ndarray, covariates: Mapping[str, np.ndarray] | None = None
) -> Estimate:
    """The parameters of a closed form with the highest likelihood.

    Columns in the unit of the data are divided by their mean first, all parameters start at 1, and
    a step goes uphill along every direction of curvature, so that the start is no matter of luck.
    With many rows the start is found on a sample of them.

    Args:
        method: such as `BGNBD()`.
        *columns: of its `parts`, (N,) each: frequency, recency and T; or for `GammaGamma` the
            number of purchases and their mean amount.
        covariates: columns of numbers by name, (N,) each, that do not change with time. Each has a
            parameter, the factor by which one more of it multiplies the pace of a customer's
            clock: the rate of purchases, and for `ParetoNBD` that of leaving as well. They are
            standardised inside; the factor is that of one more in the unit given.

    Raises:
        ValueError: a covariate that is the same for all customers.

    Warns:
        UserWarning: a parameter grows or shrinks without bound, or there is no maximum after 100
            steps.

    References:
        Dauphin et al. 2014, arXiv:1406.2572 (steps by the curvature's absolute value).

    >>> from jaxops.customers import GammaGamma
    >>> rng = np.random.default_rng(0)
    >>> x, spend = rng.integers(1, 9, 4000), 15 / rng.gamma(4, 1, 4000)
    >>> found = estimate(GammaGamma(), x, rng.gamma(6 * x) / x * spend)
    >>> bool(np.abs(found.values - [6, 4, 15]).max() < 3)
    True
    """
    given = [np.asarray(column, np.float64) for column in columns]
    name, scale = type(method).__name__, 1.0
    if method.scaled:  # the last column has the unit, and others beside the first
        scale = float(given[-1].mean()) or 1.0
        given = [given[0], *(column / scale for column in given[1:])]
    added = _of_scale(method, given, scale)
    centre = spread = np.empty(0)
    if covariates:
        table = np.stack([np.asarray(column, np.float64) for column in covariates.values()])
        centre, spread = table.mean(1), table.std(1)
        for one, column in zip(covariates, table, strict=True):
            if np.ptp(column) == 0:
                raise ValueError(f"covariates must vary, got {column[0]:g} in all rows of {one!r}")
        method = _Paced(method, tuple(covariates))
        given += list((table - centre[:, None]) / spread[:, None])
    start = np.zeros(len(method.names))
    if len(given[0]) > 4 * SAMPLE:
        rows = np.random.default_rng(0).choice(len(given[0]), SAMPLE, replace=False)
        start, *_ = _climb(method, [column[np.sort(rows)] for column in given], start)
    theta, value, curvature, steps = _climb(method, given, start)
    back = _in_units(method, centre, spread)
    values = np.exp(back @ theta)
    far = np.abs(theta) > FAR - 1
    if far.any() or steps > STEPS:
        what = " and ".join(f"{n} is {v:.3g}" for n, v in zip(method.names, values, strict=True))
        warnings.warn(
            f"{name} should have a highest likelihood at finite parameters, but "
            f"{what} after {min(steps, STEPS)} steps; a simpler model may do",
            stacklevel=3,
        )
    covariance = np.full_like(curvature, np.nan)
    if (np.linalg.eigvalsh(curvature) < 0).all():
        covariance = back @ np.linalg.inv(-curvature) @ back.T
    values[[name in method.scaled for name in method.names]] *= scale
    return Estimate(method.names, values, covariance, value - added, min(steps, STEPS))


@dataclass(frozen=True)
class _Paced:
    """A method whose customers' clocks run at a pace of exp(sum of log(factor) covariate)."""

    method: Any
    covariates: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.method.names, *self.covariates)

    @property
    def scaled(self) -> tuple[str, ...]:
        scaled: tuple[str, ...] = self.method.scaled
        return scaled

    def parts(self, x: np.ndarray, recency: np.ndarray, T: np.ndarray, *given: np.ndarray) -> Any:
        count = len(self.method.names)
        return [
            (_paced(function, count), (x, recency, T, *given), np.ones(len(x)))
            if len(columns) == 3
            else (_first(function, count), columns, weights)
            for function, columns, weights in self.method.parts(x, recency, T)
        ]


def _in_units(method: Any, centre: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """The matrix that makes logarithms of parameters for standardised covariates those for given.

    A clock whose pace is at another level shows times in another unit.
    """
    back = np.eye(len(method.names))
    for i, place in enumerate(range(len(back) - len(centre), len(back))):
        back[place, place] = 1 / spread[i]
        for name in method.scaled:
            back[method.names.index(name), place] = centre[i] / spread[i]
    return back


@functools.cache
def _paced(function: Callable[..., Array], count: int) -> Callable[..., Array]:
    """The density of x purchases at times that a clock of another pace shows."""

    def paced(params: Array, x: Array, recency: Array, T: Array, *given: Array) -> Array:
        log_pace = sum(jnp.log(params[count + i]) * column for i, column in enumerate(given))
        pace = jnp.exp(log_pace)
        return function(params[:count], x, pace * recency, pace * T) + x * log_pace

    return paced


@functools.cache
def _first(function: Callable[..., Array], count: int) -> Callable[..., Array]:
    return lambda params, *columns: function(params[:count], *columns)


def _of_scale(method: Any, columns: list[np.ndarray], scale: float) -> float:
    """What the change of unit adds to the log-likelihood: a density is per unit."""
    if not method.scaled:
        return 0.0
    per_row = columns[0].sum() if len(columns) == 3 else len(columns[0])
    return float(per_row * np.log(scale))


def _climb(
    method: Any, columns: Sequence[np.ndarray], theta: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray, int]:
    """The logarithms of the parameters, the value and curvature there, and the number of steps."""
    placed = [_placed(part) for part in method.parts(*columns)]
    value, slope, curvature = _totals(placed, theta)
    for steps in range(1, STEPS + 1):
        size, direction = np.linalg.eigh(curvature)
        along = direction.T @ slope / np.maximum(np.abs(size), 1e-6 * np.abs(size).max() + 1e-12)
        step = direction @ along
        step *= min(1.0, 2 / np.abs(step).max())
        gain = step @ slope / 2
        if gain < GAIN:  # nothing is to be seen of it
            return np.clip(theta + step, -FAR, FAR), value + gain, curvature, steps
        for _ in range(20):
            to = np.clip(theta + step, -FAR, FAR)
            found = _totals(placed, to)
            if found[0] > value - 1e-6 * abs(value):  # as exact as float32 is
                break
            step = step / 2
        else:
            break
        theta, (value, slope, curvature) = to, found
    return theta, value, curvature, STEPS + 1


def _placed(part: Part) -> tuple[Callable[..., Array], list[tuple[Array, ...]]]:
    """A part with its rows on the device, in groups, in pieces of one call each."""
    function, columns, weights = part
    count = len(weights)
    size = call_size(count)
    pieces = []
    for first in range(0, count, size):
        rows = slice(first, first + size)
        short = size - len(weights[rows])
        padded = [np.pad(column[rows], (0, short), mode="edge") for column in columns]
        padded.append(np.pad(weights[rows], (0, short)))
        pieces.append(tuple(jnp.asarray(x.reshape(-1, GROUP), jnp.float32) for x in padded))
    return function, pieces


def _totals(placed: list[Any], theta: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Value, gradient and second derivatives of the log-likelihood."""
    at = jnp.asarray(theta, jnp.float32)
    found = [_sums(function, at, *piece) for function, pieces in placed for piece in pieces]
    value, slope, curvature = (
        sum(np.asarray(x, np.float64).sum(0) for x in sums)
        for sums in zip(*jax.device_get(found), strict=True)
    )
    return (value if np.isfinite(value) else -np.inf), slope, curvature


@functools.partial(jax.jit, static_argnums=0)
def _sums(function: Callable[..., Array], theta: Array, *rows: Array) -> tuple[Array, Array, Array]:
    """For each group its sum (G,), gradient (G, K) and second derivatives (G, K, K)."""

    def one(*rows: Array) -> tuple[Array, Array, Array]:
        *columns, weights = rows

        def total(theta: Array) -> Array:
            return (weights * function(jnp.exp(theta), *columns)).sum()

        def slope(theta: Array) -> tuple[Array, tuple[Array, Array]]:
            value, slope = jax.value_and_grad(total)(theta)
            return slope, (value, slope)

        curvature, (value, found) = jax.jacfwd(slope, has_aux=True)(theta)
        return value, found, curvature

    return jax.vmap(one)(*rows)
