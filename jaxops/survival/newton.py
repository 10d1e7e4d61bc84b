"""Newton's method on the device, and what regressions share: scaling, and the table of results."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr, ndtri

from jaxops.model.finished import frame

Array = jax.Array
T = TypeVar("T")
STEPS = 60  # of Newton's method; ten are many
SWEEPS = 1000  # of coordinate descent in one of them
CLOSE = 1e-5  # of a step on standardised features: the next one is of the order of its square
COLLINEAR = 1e-7  # the least eigenvalue of the features' correlations


def uphill(at: Array, gradient: Array, information: Array) -> Array:
    """A step of Newton's method (P,).

    Curvatures that are not positive are taken as their absolute values, so that it goes uphill.
    """
    values, vectors = jnp.linalg.eigh(information)
    size = jnp.maximum(jnp.abs(values), 1e-6 * jnp.abs(values).max())
    return vectors @ ((vectors.T @ gradient) / size)


def shrinking(l1: Array) -> Callable[[Array, Array, Array], Array]:
    """A step of Newton's method with the penalty l1 times the sum of absolute parameters.

    It goes to the maximum of the quadratic model less the penalty, by coordinate descent: each
    parameter in turn is best at S(h b + g) / h, with b its value, g its slope, h its curvature and
    S the soft threshold, which makes many exactly 0.
    """

    def direction(at: Array, gradient: Array, information: Array) -> Array:
        curve = jnp.diagonal(information)
        curve = jnp.maximum(curve, 1e-6 * curve.sum())

        def one(place: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            to, slope = state
            pull = curve[place] * to[place] + slope[place]
            new = jnp.sign(pull) * jnp.maximum(jnp.abs(pull) - l1, 0) / curve[place]
            return to.at[place].set(new), slope - information[place] * (new - to[place])

        def sweep(state: Any) -> Any:
            count, to, slope, _ = state
            new, slope = jax.lax.fori_loop(0, len(at), one, (to, slope))
            far = jnp.abs(new - to) > CLOSE / 10 * (1 + jnp.abs(new))
            return count + 1, new, slope, far.any()

        def more(state: Any) -> Array:
            count, _, _, moved = state
            return (count < SWEEPS) & moved

        start = jnp.int32(0), at, gradient, jnp.bool_(True)
        return jax.lax.while_loop(more, sweep, start)[1] - at

    return direction


def newton(
    evaluate: Callable[[Array], tuple[Array, Array, Array]],
    start: Array,
    direction: Callable[[Array, Array, Array], Array] = uphill,
) -> tuple[Array, Array, Array]:
    """The maximum of a log-likelihood, by Newton's method with halved steps; within `jax.jit`.

    Args:
        evaluate: parameters (P,) -> log-likelihood (), gradient (P,), negative Hessian (P, P); the
            gradient without the slope of a penalty that `direction` has.
        start: (P,).
        direction: parameters, gradient and negative Hessian -> step (P,).

    Returns:
        The parameters, the step (P,) from them to the maximum, which is NaN where there was none,
        and the negative Hessian.
    """

    def more(state: Any) -> Array:
        count, at, _, step, _ = state
        small = (jnp.abs(step) <= CLOSE * (1 + jnp.abs(at))).all()
        return (count == 0) | ((count < STEPS) & ~small & ~jnp.isnan(step).any())

    def advance(state: Any) -> Any:
        count, at, value, step, known = state
        new, gradient, information = evaluate(at + step)
        # float32 sums are not exact: what is smaller by their rounding is not worse
        better = (count == 0) | (new >= value - 1e-5 * jnp.abs(value))
        further = direction(at + step, gradient, information)
        return (
            count + 1,
            jnp.where(better, at + step, at),
            jnp.where(better, new, value),
            jnp.where(better, further, step / 2),
            jnp.where(better, information, known),
        )

    # the first round only evaluates, so that `evaluate` is compiled once
    zero = jnp.zeros((), start.dtype)
    nothing = jnp.zeros((len(start), len(start)), start.dtype)
    state = jnp.int32(0), start, zero, jnp.zeros_like(start), nothing
    _, at, _, step, information = jax.lax.while_loop(more, advance, state)
    return at, step, information


def started(name: str, start: Any, count: int) -> np.ndarray:
    """Parameters to begin with, (count,) float64.

    Raises:
        ValueError: another shape, or values that are not finite.

    >>> started("start", [1, 2], 2)
    array([1., 2.])
    """
    first = np.asarray(start, np.float64)
    if first.shape != (count,) or not np.isfinite(first).all():
        raise ValueError(f"{name} must be {count} finite numbers, one a parameter, got {start}")
    return first


def from_start(find: Callable[[np.ndarray], T], given: np.ndarray | None, usual: np.ndarray) -> T:
    """What is found from the start given, or, where there is none or it leads nowhere, the usual.

    Args:
        find: start (P,) -> a maximum; raises `ValueError` where there is none.
        given: (P,), or None.
        usual: (P,).

    >>> from_start(lambda start: start.sum(), None, np.ones(2))
    np.float64(2.0)
    """
    if given is not None:
        with contextlib.suppress(ValueError):
            return find(given)
    return find(usual)


class Scaled(NamedTuple):
    """Features with mean 0 and standard deviation 1, float64 (N, P), and what they were."""

    x: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    names: list[str]


def scaled(features: Any, count: int, names: Sequence[str] | None, collinear: bool) -> Scaled:
    """Check and standardise features.

    Args:
        features: (N, P), finite.
        count: N.
        names: P names; x0 and so on by default.
        collinear: whether they may be collinear, as with a penalty.

    Raises:
        ValueError: another shape; a value that is not finite, a feature that does not vary, or one
            that the others determine, by its name.

    >>> scaled(np.array([[1.0], [3.0]]), 2, ["age"], False).x.tolist()
    [[-1.0], [1.0]]
    """
    x = np.asarray(features, np.float64)
    if x.ndim != 2 or len(x) != count or x.shape[1] == 0:
        raise ValueError(f"features must have shape ({count}, P), P at least 1, got {x.shape}")
    names = [f"x{i}" for i in range(x.shape[1])] if names is None else list(names)
    if len(names) != x.shape[1]:
        raise ValueError(f"names must be {x.shape[1]}, one for each feature, got {len(names)}")
    if not np.isfinite(x).all():
        row, place = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(f"{names[place]} must be finite, got {x[row, place]} in row {row}")
    mean, std = x.mean(0), x.std(0)
    still = np.flatnonzero(np.ptp(x, 0) == 0)
    if len(still):
        raise ValueError(
            f"{names[still[0]]} must vary, got {x[0, still[0]]:g} in every row; leave it out"
        )
    x = (x - mean) / std
    if not collinear:
        values, vectors = np.linalg.eigh(x.T @ x / len(x))
        if values[0] < COLLINEAR:
            some = [names[i] for i in np.flatnonzero(np.abs(vectors[:, 0]) > 0.05)]
            raise ValueError(
                f"features must not determine each other, got {', '.join(some)}, which do; leave "
                "one out"
            )
    return Scaled(x, mean, std, names)


def check_converged(step: np.ndarray, at: np.ndarray, names: Sequence[str], close: float) -> None:
    """Raise `ValueError` where the last step of Newton's method is no small one; names the feature.

    >>> check_converged(np.array([0.9]), np.array([20.0]), ["age"], 1e-4)
    Traceback (most recent call last):
    ValueError: the coefficient of age must be finite, got 20 and growing; ...
    """
    relative = np.abs(step) / (1 + np.abs(at))
    worst = int(np.argmax(np.where(np.isfinite(relative), relative, np.inf)))
    if not relative[worst] <= close:
        raise ValueError(
            f"the coefficient of {names[worst]} must be finite, got {at[worst]:.3g} and growing; "
            "where a feature separates the events from the rest no coefficient is the best: leave "
            "it out, or penalise the coefficients"
        )


def coefficient_table(
    names: Sequence[str], coefficients: np.ndarray, covariance: np.ndarray, coverage: float
) -> Any:
    """A pandas frame of coefficients with their errors, bounds and two-sided p-values.

    Args:
        names: P names.
        coefficients: (P,).
        covariance: (P, P).
        coverage: of the bounds.

    >>> coefficient_table(["age"], np.array([0.5]), np.array([[0.04]]), 0.95).round(3).iloc[0, 3]
    np.float64(0.108)
    """
    error = np.sqrt(np.diagonal(covariance))
    width = ndtri((1 + coverage) / 2) * error
    return frame(
        {
            "name": np.array(list(names), object),
            "coefficient": coefficients,
            "error": error,
            "low": coefficients - width,
            "high": coefficients + width,
            "exp(coefficient)": np.exp(coefficients),
            "z": coefficients / error,
            "p": 2 * ndtr(-np.abs(coefficients / error)),
        }
    )
