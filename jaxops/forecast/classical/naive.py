"""Naive forecasts: baselines for every comparison.

Series lie right-aligned in (B, L), so that all of them end in the last column: a series of n < L
values has L - n columns of padding before it, which may hold anything finite. The functions are
pure, and NaN inside a series gives NaN for that series. With `levels` they give quantiles instead,
of normal errors with the variance of the one-step errors in the series (Hyndman and
Athanasopoulos, Forecasting: Principles and Practice, 3rd ed., 5.5); where a series has no such
error these are NaN.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.typing import ArrayLike


def right_aligned(values: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Series stored end to end, as a right-aligned matrix.

    Args:
        values: (R,), of one channel.
        offsets: (S + 1,), as in `Series`.

    Returns:
        (S, L) with the longest series' L, zeros before the shorter ones; and int32 (S,) lengths.

    Raises:
        ValueError: offsets that are not those of R rows, or an empty series.

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
        lengths: int (B,), by default all L; used for `levels` only.
        levels: of Q quantiles, of a random walk: the variance at step h is h times that of one
            step.

    Returns:
        (B, H), or (B, H, Q) with levels.

    Raises:
        ValueError: not (B, L) with (B,) lengths, a horizon below 1, or levels outside (0, 1).

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
    """The last season, repeated; for a series shorter than a season, its last value.

    Args:
        values: (B, L).
        horizon: H.
        season: steps of one season, such as 24 for hours.
        lengths: int (B,), by default all L.
        levels: of Q quantiles, of a random walk for each step of the season: the variance is that
            of the error one season ahead, times the number of seasons started.

    Returns:
        (B, H), or (B, H, Q) with levels.

    Raises:
        ValueError: as `repeat_last`, or a season below 1.

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
        lengths: int (B,), by default all L.
        levels: of Q quantiles, of a random walk with drift: of n values, the variance at step h is
            h (1 + h / (n - 1)) times that of one step.

    Returns:
        (B, H), or (B, H, Q) with levels.

    Raises:
        ValueError: as `repeat_last`.

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
    """1 to H as float32 (1, H)."""
    return jnp.arange(1, horizon + 1, dtype=jnp.float32)[None]


def inside(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """Bool (B, L), which columns are not padding."""
    L = values.shape[1]
    return jnp.arange(L)[None] >= (L - lengths)[:, None]


def residual_variance(errors: jax.Array, count: jax.Array, estimated: int = 0) -> jax.Array:
    """(B,) mean square of the last `count` errors of each row, NaN where there is none."""
    square = jnp.where(inside(errors, count), errors**2, 0).sum(1)
    free = count - estimated
    return jnp.where(free > 0, square / jnp.maximum(free, 1), jnp.nan)


def normal_quantiles(mean: jax.Array, sd: jax.Array, levels: Sequence[float]) -> jax.Array:
    """(B, H, Q) from (B, H) each."""
    z = ndtri(checked_levels(levels).astype(mean.dtype))
    return mean[..., None] + sd[..., None] * z[None, None]


def checked_levels(levels: Sequence[float]) -> jax.Array:
    """(Q,), where all lie between 0 and 1."""
    if not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be between 0 and 1, got {tuple(levels)}")
    return jnp.asarray(levels, jnp.float32)


def checked(
    values: ArrayLike, lengths: ArrayLike | None, horizon: int, season: int = 1
) -> tuple[jax.Array, jax.Array]:
    """The arrays, where their shapes are right: what a jitted function can check."""
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
