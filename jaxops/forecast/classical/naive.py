"""Naive forecasts: baselines for every comparison.

Series are right-aligned in (B, L): all of them end in the last column, and a series of n < L values
has L - n columns of padding before it. The padding may be any finite numbers. The functions are
pure. NaN inside a series results in NaN for that series. With `levels` the functions return
quantiles instead of the point forecast. These assume normal errors whose variance is that of the
one-step errors in the series (Hyndman and Athanasopoulos, Forecasting: Principles and Practice,
3rd ed., 5.5). They are NaN for a series that is too short to have such errors.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import ArrayLike


def right_aligned(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put series that are stored end to end into a right-aligned matrix.

    Args:
        values: (R,), the rows of one channel.
        offsets: (S + 1,), see `Series`.

    Returns:
        The matrix (S, L), where L is the length of the longest series and shorter series have
        zeros before them; and the lengths, int32 (S,).

    Raises:
        ValueError: the offsets do not run from 0 to R, or a series is empty.

    >>> right_aligned(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0, 3, 4]))[0]
    array([[1., 2., 3.],
           [0., 0., 4.]])
    """
    lengths = np.diff(offsets)
    if np.ndim(values) != 1 or offsets[0] != 0 or offsets[-1] != len(values) or (lengths < 1).any():
        raise ValueError(
            "values must have shape (R,) and offsets run from 0 to R, with at least a row for each "
            f"series, got {np.shape(values)}, {offsets[0]} to {offsets[-1]} and a series of "
            f"{lengths.min()} rows"
        )
    out = np.zeros((len(lengths), lengths.max()), values.dtype)
    column = np.arange(lengths.max())[None] - (lengths.max() - lengths)[:, None]
    out[column >= 0] = values
    return out, lengths.astype(np.int32)


def repeat_last(
    values: ArrayLike,
    horizon: int,
    lengths: ArrayLike | None = None,
    levels: Sequence[float] | None = None,
) -> jax.Array:
    """The last value, repeated.

    Args:
        values: (B, L).
        horizon: H.
        lengths: int (B,), the length of each series; L for all by default. It is used with
            `levels` only.
        levels: levels of the Q quantiles of a random walk: the variance at step h is h times that
            of one step.

    Returns:
        (B, H), or quantiles (B, H, Q) with `levels`.

    Raises:
        ValueError: the values are not (B, L) or the lengths not (B,), the horizon is below 1, or a
            level is not between 0 and 1.

    >>> repeat_last(jnp.array([[1.0, 2.0, 4.0]]), 2)
    Array([[4., 4.]], dtype=float32)
    """
    values, lengths = checked(values, lengths, horizon)
    mean = jnp.repeat(values[:, -1:], horizon, axis=1)
    if levels is None:
        return mean
    variance = residual_variance(values[:, 1:] - values[:, :-1], lengths - 1)
    return normal_quantiles(mean, jnp.sqrt(variance[:, None] * steps(horizon)), levels)


def seasonal_naive(
    values: ArrayLike,
    horizon: int,
    season: int,
    lengths: ArrayLike | None = None,
    levels: Sequence[float] | None = None,
) -> jax.Array:
    """The last season, repeated. A series shorter than a season repeats its last value.

    Args:
        values: (B, L).
        horizon: H.
        season: number of steps in one season, such as 24 for hours.
        lengths: int (B,), the length of each series; L for all by default.
        levels: levels of the Q quantiles of a random walk for each step of the season: the variance
            is that of the error one season ahead, times the number of seasons that have begun.

    Returns:
        (B, H), or quantiles (B, H, Q) with `levels`.

    Raises:
        ValueError: see `repeat_last`; or the season is below 1.

    >>> seasonal_naive(jnp.array([[1.0, 2.0, 4.0]]), 3, season=2)
    Array([[2., 4., 2.]], dtype=float32)
    """
    values, lengths = checked(values, lengths, horizon, season)
    ahead = jnp.arange(horizon)
    short = max(season - values.shape[1], 0)
    long = jnp.pad(values, ((0, 0), (short, 0)))
    mean = long[:, long.shape[1] - season + ahead % season]
    mean = jnp.where((lengths >= season)[:, None], mean, values[:, -1:])
    if levels is None:
        return mean
    variance = residual_variance(long[:, season:] - long[:, :-season], lengths - season)
    begun = (ahead // season + 1).astype(values.dtype)
    return normal_quantiles(mean, jnp.sqrt(variance[:, None] * begun[None]), levels)


def drift(
    values: ArrayLike,
    horizon: int,
    lengths: ArrayLike | None = None,
    levels: Sequence[float] | None = None,
) -> jax.Array:
    """The line through the first and the last value; a single value is repeated.

    Args:
        values: (B, L).
        horizon: H.
        lengths: int (B,), the length of each series; L for all by default.
        levels: levels of the Q quantiles of a random walk with drift: for a series of n values, the
            variance at step h is h (1 + h / (n - 1)) times that of one step.

    Returns:
        (B, H), or quantiles (B, H, Q) with `levels`.

    Raises:
        ValueError: see `repeat_last`.

    >>> drift(jnp.array([[1.0, 2.0, 5.0]]), 2)
    Array([[7., 9.]], dtype=float32)
    """
    values, lengths = checked(values, lengths, horizon)
    first = jnp.take_along_axis(values, (values.shape[1] - lengths)[:, None], axis=1)
    moves = jnp.maximum(lengths - 1, 1)[:, None].astype(values.dtype)
    slope = (values[:, -1:] - first) / moves
    mean = values[:, -1:] + slope * steps(horizon)
    if levels is None:
        return mean
    errors = values[:, 1:] - values[:, :-1] - slope
    variance = residual_variance(errors, lengths - 1, estimated=1)
    ahead = steps(horizon)
    return normal_quantiles(mean, jnp.sqrt(variance[:, None] * ahead * (1 + ahead / moves)), levels)


def steps(horizon: int) -> jax.Array:
    """The numbers 1 to H as float32 (1, H)."""
    return jnp.arange(1, horizon + 1, dtype=jnp.float32)[None]


def inside(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Bool (B, L), True for values and False for padding."""
    L = values.shape[1]
    return jnp.arange(L)[None] >= (L - lengths)[:, None]


def residual_variance(errors: jax.Array, count: jax.Array, estimated: int = 0) -> jax.Array:
    """The mean square of the last `count` errors of each row, (B,); NaN where there are none."""
    square = jnp.where(inside(errors, count), errors**2, 0).sum(1)
    free = count - estimated
    return jnp.where(free > 0, square / jnp.maximum(free, 1), jnp.nan)


def normal_quantiles(mean: jax.Array, sd: jax.Array, levels: Sequence[float]) -> jax.Array:
    """Quantiles (B, H, Q) of normal distributions with means and deviations (B, H)."""
    z = ndtri(checked_levels(levels).astype(mean.dtype))
    return mean[..., None] + sd[..., None] * z[None, None]


def checked_levels(levels: Sequence[float]) -> jax.Array:
    """The levels as an array (Q,), after a check that all are between 0 and 1."""
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be between 0 and 1, got {tuple(levels)}")
    return jnp.asarray(levels, jnp.float32)


def checked(
    values: ArrayLike, lengths: ArrayLike | None, horizon: int, season: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The arrays, after the checks of their shapes, which work inside jit too."""
    values = jnp.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"values must have shape (B, L), L at least 1, got {values.shape}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        values = values.astype(jnp.float32)
    if horizon < 1 or season < 1:
        raise ValueError(f"horizon and season must be at least 1, got {horizon} and {season}")
    B, L = values.shape
    lengths = jnp.full(B, L, jnp.int32) if lengths is None else jnp.asarray(lengths, jnp.int32)
    if lengths.shape != (B,):
        raise ValueError(
            f"lengths must have shape ({B},), one for each series, got {lengths.shape}"
        )
    return values, lengths
