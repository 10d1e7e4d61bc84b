"""The theta method as in the M competitions, for many series in one compiled program."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from scipy.fft import next_fast_len

from jaxops.forecast.classical.naive import checked, checked_levels, inside, normal_quantiles, steps

CRITICAL = 1.645  # critical value of the seasonality test: two-sided, 90 %


def theta_method(
    values: ArrayLike,
    horizon: int,
    season: int = 1,
    lengths: ArrayLike | None = None,
    levels: Sequence[float] | None = None,
) -> jax.Array:
    """The theta method (Assimakopoulos and Nikolopoulos 2000), with lines 0 and 2 weighted equally.

    A series whose season passes the test is first divided by its indices (`seasonal_indices`).
    Theta 0 is the straight line fitted by least squares. Theta 2 is simple exponential smoothing
    (SES) of 2 x - line, whose alpha and first level are fitted by least squares. The forecast is
    the mean of both, times the indices. It equals SES with half the line's slope as drift (Hyndman
    and Billah 2003). It is the benchmark of M4, except that forecasts below zero are kept.

    Args:
        values: (B, L), right-aligned.
        horizon: H.
        season: number of steps in one season; 1 for no season.
        lengths: int (B,), the length of each series; L for all by default.
        levels: levels of the Q quantiles of SES with normal errors. The variance at step h is
            1 + (h - 1) alpha^2 times that of one step, times the index squared. The quantiles are
            NaN for a series of one or two values.

    Returns:
        (B, H), or quantiles (B, H, Q) with `levels`.

    Raises:
        ValueError: the values are not (B, L) or the lengths not (B,), the horizon or the season is
            below 1, or a level is not between 0 and 1.

    >>> theta_method(jnp.array([[2.0, 4.0, 6.0, 8.0]]), 2).round(2)
    Array([[ 9., 10.]], dtype=float32)
    """
    if levels is not None:
        checked_levels(levels)
    mean, sd = theta_normal(*checked(values, lengths, horizon, season), horizon, season)
    return mean if levels is None else normal_quantiles(mean, sd, levels)


@partial(jax.jit, static_argnums=(2, 3))
def theta_normal(
    values: jax.Array, lengths: jax.Array, horizon: int, season: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of each step, (B, H) each; see `theta_method`."""
    indices = seasonal_indices(values, season, lengths)
    adjusted = values / by_column(indices, values.shape[1])
    ahead = by_column(indices, horizon, after=True)
    line, slope = straight_line(adjusted, lengths)
    smooth = simple_smoothing(2 * adjusted - line, lengths)
    end = (smooth.level + line[:, -1])[:, None] / 2
    mean = (end + slope[:, None] / 2 * steps(horizon)) * ahead
    # the errors of the theta forecast are half those of theta 2, since the line has no errors
    variance = smooth.sse / 4 / jnp.where(lengths > 2, lengths - 2, jnp.nan)
    spread = 1 + (steps(horizon) - 1) * (smooth.alpha**2)[:, None]
    return mean, jnp.sqrt(variance[:, None] * spread) * ahead


def naive2(
    values: ArrayLike, horizon: int, season: int, lengths: ArrayLike | None = None
) -> jax.Array:
    """The last seasonally adjusted value, times the indices. It is the reference of `owa`.

    Args:
        values: (B, L), right-aligned.
        horizon: H.
        season: number of steps in one season; 1 for no season.
        lengths: int (B,), the length of each series; L for all by default.

    Returns:
        (B, H).

    Raises:
        ValueError: see `theta_method`.

    >>> naive2(jnp.array([[2.0, 4.0, 6.0, 8.0]]), 2, season=1)
    Array([[8., 8.]], dtype=float32)
    """
    values, lengths = checked(values, lengths, horizon, season)
    indices = seasonal_indices(values, season, lengths)
    return values[:, -1:] / indices[:, -1:] * by_column(indices, horizon, after=True)


def by_column(indices: jax.Array, columns: int, after: bool = False) -> jax.Array:
    """Indices (B, m) repeated to (B, columns), so that the last index belongs to the last column.

    With `after` they are those of the columns that follow the series instead.
    """
    m = indices.shape[1]
    first = 0 if after else -columns
    return indices[:, (jnp.arange(columns) + first) % m]


@partial(jax.jit, static_argnums=1)
def seasonal_indices(values: jax.Array, season: int, lengths: jax.Array) -> jax.Array:
    """Multiplicative seasonal indices with mean 1, by the classical decomposition.

    The trend is a centred moving average over a season. An index is the mean of value / trend over
    all seasons. A series has a season if all its values are above 0, it has n >= 3 m values, and
    the size of its autocorrelation r at lag m is above the 90 % limit, 1.645 sqrt((1 + 2 sum of
    r_k^2, k < m) / n). The indices of other series are 1.

    Args:
        values: (B, L), right-aligned.
        season: m.
        lengths: int (B,).

    Returns:
        (B, m); the last index is that of the last column.
    """
    (B, L), m = values.shape, season
    if m == 1 or 3 * m > L:
        return jnp.ones((B, m), values.dtype)
    real = inside(values, lengths)
    weights = jnp.concatenate([jnp.array([0.5]), jnp.ones(m - 1), jnp.array([0.5])]) / m
    weights = weights if m % 2 == 0 else jnp.ones(m) / m
    weights = weights.astype(values.dtype)
    average = lambda row: jnp.convolve(row, weights, "valid", precision="highest")  # noqa: E731
    trend = jax.vmap(average)(values)
    half = m // 2
    trended = real[:, half : L - half] & real[:, : L - 2 * half]
    ratio = jnp.where(trended, values[:, half : L - half] / trend, 0)
    cycles = -(-L // m)
    left = cycles * m - L + half
    fold = lambda x: jnp.pad(x, ((0, 0), (left, half))).reshape(B, cycles, m).sum(1)  # noqa: E731
    means = fold(ratio) / jnp.maximum(fold(trended.astype(values.dtype)), 1)
    indices = means / means.mean(1, keepdims=True)
    positive = jnp.where(real, values > 0, True).all(1)
    tested = seasonal(values, real, lengths, m) & positive
    return jnp.where(tested[:, None], indices, 1)


def seasonal(values: jax.Array, real: jax.Array, lengths: jax.Array, season: int) -> jax.Array:
    """Whether the test finds a season, bool (B,)."""
    n = lengths.astype(values.dtype)
    mean = jnp.where(real, values, 0).sum(1) / n
    x = jnp.where(real, values - mean[:, None], 0)
    x = x / jnp.maximum(jnp.abs(x).max(1, keepdims=True), 1e-30)  # squares stay within float32
    # sums of x_t x_(t - k) for all k at once, by the Wiener-Khinchin theorem; zeros separate the
    # ends
    size = next_fast_len(x.shape[1] + season)
    power = jnp.abs(jnp.fft.rfft(x, size)) ** 2
    products = jnp.fft.irfft(power, size)[:, : season + 1]
    r = products[:, 1:] / jnp.where(products[:, :1] > 0, products[:, :1], 1)
    limit = CRITICAL * jnp.sqrt((1 + 2 * (r[:, :-1] ** 2).sum(1)) / n)
    return (jnp.abs(r[:, -1]) > limit) & (lengths >= 3 * season)


def straight_line(values: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The line of least squares (B, L) and its slope (B,); a single value gives a flat line."""
    real = inside(values, lengths)
    n = lengths.astype(values.dtype)[:, None]
    time = jnp.arange(values.shape[1], dtype=values.dtype)[None] - values.shape[1] + (n + 1) / 2
    mean = jnp.where(real, values, 0).sum(1, keepdims=True) / n
    cross = jnp.where(real, (values - mean) * time, 0).sum(1, keepdims=True)
    slope = cross / jnp.maximum(jnp.where(real, time**2, 0).sum(1, keepdims=True), 1e-9)
    return mean + slope * time, slope[:, 0]


class Smoothing(NamedTuple):
    """Simple exponential smoothing of B series.

    Attributes:
        alpha: (B,), the weight of the newest value.
        first: (B,), the level before the first value.
        level: (B,), the level after the last value, which is the forecast.
        sse: (B,), the sum of squared one-step errors.
    """

    alpha: jax.Array
    first: jax.Array
    level: jax.Array
    sse: jax.Array


@partial(jax.jit, static_argnames="points")
def simple_smoothing(values: jax.Array, lengths: jax.Array, points: int = 32) -> Smoothing:
    """Fit alpha and the first level by least squares: level += alpha (value - level).

    For a given alpha the errors are linear in the first level, so it is solved for. Alpha is
    searched on a grid from 0.0001 to 0.9999. The grid is then refined four times, each time between
    the neighbours of the best point.

    Args:
        values: (B, L), right-aligned.
        lengths: int (B,).
        points: number of points of each grid.
    """
    low, high = jnp.full(len(values), 1e-4), jnp.full(len(values), 0.9999)
    share = jnp.linspace(0, 1, points)[None]

    def refine(bounds: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple, Smoothing]:
        low, high = bounds
        alpha = low[:, None] + (high - low)[:, None] * share
        tried = smoothed(values, lengths, alpha)
        best = tried.sse.argmin(1)[:, None]
        pick = lambda x, i: jnp.take_along_axis(x, jnp.clip(i, 0, points - 1), 1)[:, 0]  # noqa: E731
        narrower = pick(alpha, best - 1), pick(alpha, best + 1)
        return narrower, Smoothing(*(pick(x, best) for x in tried))

    _, refined = jax.lax.scan(refine, (low, high), length=5)
    return Smoothing(*(x[-1] for x in refined))


def smoothed(values: jax.Array, lengths: jax.Array, alpha: jax.Array) -> Smoothing:
    """The smoothing of each series with A values of alpha; all results are (B, A)."""
    start = jnp.take_along_axis(values, (values.shape[1] - lengths)[:, None], axis=1)

    def step(carry: tuple[jax.Array, ...], column: tuple[jax.Array, jax.Array]) -> tuple:
        # the level starts at the first value; share is (1 - alpha)^t
        level, share, ee, ed, dd = carry
        value, real = column[0][:, None], column[1][:, None]
        error = value - level
        sums = ee + error**2, ed + error * share, dd + share**2
        new = (level + alpha * error, share * (1 - alpha), *sums)
        return tuple(jnp.where(real, a, b) for a, b in zip(new, carry, strict=True)), None

    zero = jnp.zeros_like(alpha)
    carry = (zero + start, zero + 1, zero, zero, zero)
    columns = values.T, inside(values, lengths).T
    (level, share, ee, ed, dd), _ = jax.lax.scan(step, carry, columns)
    move = ed / dd  # the best first level minus the first value
    return Smoothing(alpha, start + move, level + share * move, jnp.maximum(ee - ed * move, 0))
