"""The theta method as in the M competitions, for many series in one program."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from scipy.fft import next_fast_len

from jaxops.forecast.classical.naive import checked, checked_levels, inside, normal_quantiles, steps

CRITICAL = 1.645  # of the seasonality test: two-sided, 90 %


def theta_method(
    values: ArrayLike,
    horizon: int,
    season: int = 1,
    lengths: ArrayLike | None = None,
    levels: Sequence[float] | None = None,
) -> jax.Array:
    """The theta method (Assimakopoulos and Nikolopoulos 2000), with lines 0 and 2 weighted equally.

    A series whose season passes the test is divided by its indices (`seasonal_indices`). The
    forecast is the mean of the straight line by least squares (theta 0) and of simple exponential
    smoothing of 2 x - line (theta 2), its smoothing and first level by least squares; then times
    the indices. That is SES with half the line's slope as drift (Hyndman and Billah 2003). As the
    benchmark of M4, but forecasts below zero are left as they are.

    Args:
        values: (B, L), right-aligned.
        horizon: H.
        season: steps of one season; 1 for none.
        lengths: int (B,), by default all L.
        levels: of Q quantiles, of SES with normal errors: variance 1 + (h - 1) alpha^2 times that
            of one step, times the index squared. NaN of a series of one or two values.

    Returns:
        (B, H), or (B, H, Q) with levels.

    Raises:
        ValueError: not (B, L) with (B,) lengths, a horizon or season below 1, or levels outside
            (0, 1).

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
    # the errors of the theta forecast are half those of line 2: the line itself has none
    variance = smooth.sse / 4 / jnp.where(lengths > 2, lengths - 2, jnp.nan)
    spread = 1 + (steps(horizon) - 1) * (smooth.alpha**2)[:, None]
    return mean, jnp.sqrt(variance[:, None] * spread) * ahead


def naive2(
    values: ArrayLike, horizon: int, season: int, lengths: ArrayLike | None = None
) -> jax.Array:
    """The last seasonally adjusted value, times the indices: the reference of `owa`.

    Args:
        values: (B, L), right-aligned.
        horizon: H.
        season: steps of one season; 1 for none.
        lengths: int (B,), by default all L.

    Returns:
        (B, H).

    Raises:
        ValueError: as `theta_method`.

    >>> naive2(jnp.array([[2.0, 4.0, 6.0, 8.0]]), 2, season=1)
    Array([[8., 8.]], dtype=float32)
    """
    values, lengths = checked(values, lengths, horizon, season)
    indices = seasonal_indices(values, season, lengths)
    return values[:, -1:] / indices[:, -1:] * by_column(indices, horizon, after=True)


def by_column(indices: jax.Array, columns: int, after: bool = False) -> jax.Array:
    """(B, columns) of (B, m) indices in the order in which a season ends with the series."""
    m = indices.shape[1]
    first = 0 if after else -columns
    return indices[:, (jnp.arange(columns) + first) % m]


@partial(jax.jit, static_argnums=1)
def seasonal_indices(values: jax.Array, season: int, lengths: jax.Array) -> jax.Array:
    """Multiplicative indices of mean 1, by the classical decomposition; 1 where there is no season.

    There is one if the autocorrelation r at lag m is beyond its 90 % limit, 1.645 sqrt((1 + 2 sum
    of r_k^2, k < m) / n), n >= 3 m; and if all values are above 0. The trend is a centred moving
    average over a season; an index is the mean of value / trend over all seasons.

    Args:
        values: (B, L), right-aligned.
        season: m.
        lengths: int (B,).

    Returns:
        (B, m), the last that of the last column.
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
    # sums of x_t x_(t - k) for all k at once, by Wiener and Khinchin; zeros separate the ends
    size = next_fast_len(x.shape[1] + season)
    power = jnp.abs(jnp.fft.rfft(x, size)) ** 2
    products = jnp.fft.irfft(power, size)[:, : season + 1]
    r = products[:, 1:] / jnp.where(products[:, :1] > 0, products[:, :1], 1)
    limit = CRITICAL * jnp.sqrt((1 + 2 * (r[:, :-1] ** 2).sum(1)) / n)
    return (jnp.abs(r[:, -1]) > limit) & (lengths >= 3 * season)


def straight_line(values: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(B, L) of the line by least squares, and its slope (B,); of one value, that value."""
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
        alpha: (B,), weight of the newest value.
        first: (B,), the level before the first value.
        level: (B,), after the last, which is the forecast.
        sse: (B,), sum of squared one-step errors.
    """

    alpha: jax.Array
    first: jax.Array
    level: jax.Array
    sse: jax.Array


@partial(jax.jit, static_argnames="points")
def simple_smoothing(values: jax.Array, lengths: jax.Array, points: int = 32) -> Smoothing:
    """The alpha and first level of least squares: level += alpha (value - level).

    For one alpha the errors are linear in the first level, which is solved for; alpha is searched
    on a grid from 0.0001 to 0.9999, which is then refined four times between the best point's
    neighbours.

    Args:
        values: (B, L), right-aligned.
        lengths: int (B,).
        points: of each grid.
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
    """Smoothing with A alphas for each series, all (B, A)."""
    start = jnp.take_along_axis(values, (values.shape[1] - lengths)[:, None], axis=1)

    def step(carry: tuple[jax.Array, ...], column: tuple[jax.Array, jax.Array]) -> tuple:
        level, share, ee, ed, dd = carry  # with the first value as first level; share (1 - alpha)^t
        value, real = column[0][:, None], column[1][:, None]
        error = value - level
        sums = ee + error**2, ed + error * share, dd + share**2
        new = (level + alpha * error, share * (1 - alpha), *sums)
        return tuple(jnp.where(real, a, b) for a, b in zip(new, carry, strict=True)), None

    zero = jnp.zeros_like(alpha)
    carry = (zero + start, zero + 1, zero, zero, zero)
    columns = values.T, inside(values, lengths).T
    (level, share, ee, ed, dd), _ = jax.lax.scan(step, carry, columns)
    move = ed / dd  # of the first level, from the first value
    return Smoothing(alpha, start + move, level + share * move, jnp.maximum(ee - ed * move, 0))
