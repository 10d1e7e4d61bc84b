"""Intervals that hold what they promise, on top of any forecast.

A score says how far a target was from what was forecast; a margin is as many of them as must be
added to cover the next. Arrays are (N, ...), N windows of calibration, which the model was neither
trained nor chosen on; each of the other axes, such as step ahead and channel, has its own margin.
`metrics.coverage` and `metrics.width` report what came of it.

Split margins cover at least the level on average where calibration and test windows could change
places. Windows of a series in time cannot quite: overlapping ones carry less than N windows'
worth, and where the series changes coverage is lost. `adaptive` corrects itself as targets come in;
`adaptive_backtest` does so for the windows of any model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.backtests import asked, targets
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Windows


class Bounds(NamedTuple):
    """Of intervals, (W, H, C) or as the forecast given."""

    low: np.ndarray
    high: np.ndarray


def margin(scores: np.ndarray, level: float = 0.9) -> np.ndarray:
    """The ceil((N + 1) level)-th smallest score of each column; infinite where N is less than that.

    So the next score is at most this with probability level or more, and at most 1 / (N + 1) more
    where no two are equal (Vovk et al. 2005; Lei et al. 2018). N must be level / (1 - level) or
    more for a finite one: 9 for 90 %.

    Args:
        scores: (N, ...).
        level: to be covered.

    Returns:
        (...).

    Raises:
        ValueError: none, one that is not finite, or a level outside 0 to 1.

    >>> margin(np.arange(1.0, 20.0), level=0.9)
    array(18.)
    """
    scores = _checked("scores", scores, level)
    k = int(np.ceil((len(scores) + 1) * level - 1e-9))
    if k > len(scores):
        return np.full(scores.shape[1:], np.inf)
    return np.asarray(np.partition(scores, k - 1, axis=0)[k - 1])


def split_conformal(
    forecast: np.ndarray,
    calibration_forecast: np.ndarray,
    calibration_target: np.ndarray,
    level: float = 0.9,
) -> Bounds:
    """Forecast ± the margin of |target - forecast| in calibration, of each step and channel.

    Args:
        forecast: (W, ...), to be given bounds.
        calibration_forecast: (N, ...), of the same model.
        calibration_target: (N, ...).
        level: to be covered.

    Raises:
        ValueError: shapes that do not agree, and what `margin` raises.

    >>> bounds = split_conformal(np.zeros((1, 1)), np.zeros((19, 1)), np.arange(1.0, 20.0)[:, None])
    >>> bounds.low, bounds.high
    (array([[-18.]]), array([[18.]]))
    """
    forecast = np.asarray(forecast)
    _alike(calibration_forecast, calibration_target, forecast)
    size = margin(np.abs(np.subtract(calibration_target, calibration_forecast)), level)
    return Bounds(forecast - size, forecast + size)


def conformal_quantiles(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_target: np.ndarray,
    level: float = 0.9,
) -> Bounds:
    """Conformalised quantile regression (Romano, Patterson and Candes 2019, Theorem 1).

    Two quantiles are moved apart (or, where they covered too much, together) by the margin of
    max(low - target, target - high): wide where the model says wide. Where they cross they are
    swapped; bounds that were moved past each other meet in their middle.

    Args:
        quantiles: low and high, (W, ...) each, such as levels .05 and .95 for level .9.
        calibration_quantiles: (N, ...) each, of the same model.
        calibration_target: (N, ...).
        level: to be covered.

    Raises:
        ValueError: shapes that do not agree, and what `margin` raises.
    """
    low, high = _sorted(quantiles)
    before = _sorted(calibration_quantiles)
    _alike(before.low, calibration_target, low)
    size = margin(quantile_scores(before, calibration_target), level)
    middle = (low + high) / 2
    return Bounds(np.minimum(low - size, middle), np.maximum(high + size, middle))


def quantile_scores(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray], target: np.ndarray
) -> np.ndarray:
    """max(low - target, target - high): how far outside a target is, below 0 inside."""
    low, high = _sorted(quantiles)
    return np.maximum(low - target, target - high)


class Adaptive(NamedTuple):
    """What `adaptive` gives.

    Attributes:
        margins: (T, ...), of each window, known before its target; infinite or -infinite where
            `levels` has left 0 to 1.
        levels: (T, ...), the level that was used, which moves so that coverage is as asked.
    """

    margins: jax.Array
    levels: jax.Array


def adaptive(
    calibration: np.ndarray,
    scores: np.ndarray,
    level: float = 0.9,
    rate: float = 0.01,
    delay: np.ndarray | int = 1,
) -> Adaptive:
    """Adaptive conformal inference (Gibbs and Candes 2021) over windows in the order of time.

    The margin of a window is that of the last N scores known, at a level of its own: whenever a
    target was missed the level rises by rate * level, and when not it falls by rate * (1 - level).
    So over T windows the share covered is within (1 + rate) / (rate T) of the level whatever comes
    (their Proposition 4.1, max(level, 1 - level) bounded by 1; with a delay, a little more).

    Args:
        calibration: (N, ...) scores, all known at the start, the newest last.
        scores: (T, ...), such as |target - forecast| or `quantile_scores`.
        level: to be covered.
        rate: how fast it corrects itself; 0 keeps the level, of the last N scores.
        delay: after how many windows a score is known, 1 or more: the step ahead where windows
            have a stride of 1. An int, or of the shape of the other axes (broadcast).

    Raises:
        ValueError: axes that differ, scores not finite, a level outside 0 to 1, a rate below 0, or
            a delay below 1.

    >>> adaptive(np.arange(1.0, 20.0), np.full(3, 50.0), rate=0.0).margins.tolist()
    [18.0, 19.0, 50.0]
    """
    first, scores = _checked("calibration", calibration, level), _checked("scores", scores, level)
    if first.shape[1:] != scores.shape[1:]:
        raise ValueError(
            f"calibration, scores: found shapes {first.shape} and {scores.shape}, wanted the same"
            " axes after the first"
        )
    axes = scores.shape[1:]
    delay = np.broadcast_to(np.asarray(delay), axes)
    if rate < 0 or (delay < 1).any():
        raise ValueError(f"rate, delay: found {rate} and {delay.min()}, wanted 0 up and 1 up")
    columns = (np.sort(first, 0), first, scores)
    flat = [jnp.asarray(x.reshape(len(x), -1), jnp.float32) for x in columns]
    found = _follow(*flat, jnp.asarray(delay.reshape(-1)), level, rate)
    return Adaptive(*(x.reshape(-1, *axes) for x in found))


@jax.jit
@partial(jax.vmap, in_axes=(1, 1, 1, 0, None, None), out_axes=1)
def _follow(
    ordered: jax.Array,
    first: jax.Array,
    scores: jax.Array,
    delay: jax.Array,
    level: float,
    rate: float,
) -> tuple[jax.Array, jax.Array]:
    """One column: margins and levels, (T,) each."""
    (N,), (T,) = first.shape, scores.shape
    history = jnp.concatenate([first, scores])

    def window(carry: tuple[jax.Array, ...], t: jax.Array) -> tuple[tuple, jax.Array]:
        ordered, current, margins = carry
        known = t - delay  # the window whose target has come in, if there is one
        newest = history[N + known]
        moved = current + rate * jnp.where(newest > margins[known], level, level - 1)
        renewed = _insert(_remove(ordered, history[known]), newest)
        current = jnp.where(known >= 0, moved, current)
        ordered = jnp.where(known >= 0, renewed, ordered)
        k = jnp.ceil((N + 1) * current - 1e-4).astype(int)
        size = jnp.where(k < 1, -jnp.inf, jnp.where(k > N, jnp.inf, ordered[k - 1]))
        return (ordered, current, margins.at[t].set(size)), current

    carry = (ordered, jnp.asarray(level, jnp.float32), jnp.zeros(T))
    (_, _, margins), levels = jax.lax.scan(window, carry, jnp.arange(T))
    return margins, levels


def _remove(ordered: jax.Array, value: jax.Array) -> jax.Array:
    """One occurrence of a value out of N in order."""
    return jnp.where(ordered[:-1] < value, ordered[:-1], ordered[1:])


def _insert(ordered: jax.Array, value: jax.Array) -> jax.Array:
    """A value into N - 1 in order: each place has the middle of its neighbours and the value."""
    end = jnp.array([jnp.inf])
    below, above = jnp.concatenate([-end, ordered]), jnp.concatenate([ordered, end])
    return jnp.clip(value, below, above)


@dataclass(frozen=True, eq=False)
class Conformal:
    """A model whose quantiles are moved so that they cover what they promise.

    Attributes:
        model: any, see `forecast`.
        levels: Q quantiles.
        offsets: (H, C, Q), of each step: how far the quantile is moved, in units of the series.
        context: rows of a history that its unit is taken from.
        season: see `calibrated`.
        left_out: share of the calibration windows whose history does not vary.
        counts: whether no quantile may be below 0, as of whole numbers from 0 up.
    """

    model: Any
    levels: tuple[float, ...]
    offsets: np.ndarray
    context: int
    season: int
    left_out: float = 0.0
    counts: bool = False

    def answer(
        self,
        history: Series,
        horizon: int | None,
        future: np.ndarray | None,
        levels: tuple[float, ...],
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `forecast`."""
        missing = [level for level in levels if level not in self.levels]
        if missing:
            raise ValueError(f"levels: {missing} found, of {self.levels} wanted, as calibrated")
        horizon = len(self.offsets) if horizon is None else horizon
        if horizon > len(self.offsets):
            raise ValueError(f"horizon: {horizon} found, at most {len(self.offsets)} wanted")
        mean, base = _base(self.model, history, horizon, future, self.levels)
        unit = units(history, self.context, self.season)[:, None, :, None]
        # moved by different amounts they may cross
        moved = np.sort(base + self.offsets[None, :horizon] * unit, axis=-1)
        moved = np.maximum(moved, 0) if self.counts else moved
        return mean, moved[..., [self.levels.index(level) for level in levels]]


def calibrated(
    model: Any,
    series: Series,
    windows: Windows,
    horizon: int,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    context: int = 100,
    season: int = 1,
) -> Conformal:
    """Put conformal quantiles around a model, by windows it has not learned from.

    To have a model that is asked by `forecast`, of any series. Where forecasts lie in arrays
    already, `split_conformal` and `conformal_quantiles` give them two bounds, in the values' own
    units and a margin for both sides; here each quantile has its own.

    Each quantile is moved, at each step ahead, as far as would have covered its share of these
    windows (split conformal prediction, Vovk et al. 2005; of quantiles, Romano et al. 2019,
    arXiv:1905.03222, theorem 2). Errors are counted in units of each series, so that series of all
    sizes count alike, and new ones can be forecast: the mean absolute difference of values one
    season apart in the last `context` rows, as in MASE. A history without such a difference
    gets intervals without width. Of series of counts (whole numbers from 0 up) no quantile is moved
    below 0.

    Args:
        model: any, see `forecast`; where it has no quantiles they are put around its mean.
        series: with the rows to calibrate by.
        windows: at least (1 - a) / a where the outermost level is a or 1 - a. Of one whose unit
            is 0 no error can be counted: these are left out, and `Conformal.left_out` is their
            share, for which nothing is promised.
        horizon: H.
        levels: Q.
        context: rows before each origin that the unit is taken from, more than the season.
        season: steps of one.

    Raises:
        ValueError: too few windows; a look-back within the season; else as
            `historical_forecasts`.
    """
    levels = tuple(levels)
    if context <= season:
        raise ValueError(f"context: {context} found, more than the season, {season}, wanted")
    parts = []
    for before, future in asked(model, series, windows, horizon, None):
        _, base = _base(model, before, horizon, future, levels)
        parts.append((base, units(before, context, season)))
    base, unit = (np.concatenate(x) for x in zip(*parts, strict=True))
    used = (unit > 0).all(1)
    target = targets(series, windows, horizon)
    error = (target[..., None] - base)[used] / unit[used][:, None, :, None]
    offsets = []
    for i, level in enumerate(levels):
        sign, share = (1, level) if level >= 0.5 else (-1, 1 - level)
        found = error[..., i]
        needed = int(np.ceil(share / (1 - share) - 1e-9))
        if len(found) < needed:
            raise ValueError(
                f"windows: {len(found)} of {len(unit)} found whose histories vary, {needed} wanted "
                f"for level {level}"
            )
        offsets.append(sign * margin(sign * found, share))
    counts = bool((series.values >= 0).all() and (series.values % 1 == 0).all())
    left_out = float(1 - used.mean())
    return Conformal(model, levels, np.stack(offsets, -1), context, season, left_out, counts)


def units(history: Series, context: int, season: int) -> np.ndarray:
    """Mean |y_t - y_(t - season)| over the last `context` rows, (S, C); 0 for shorter series."""
    place = history.offsets[1:, None] - np.arange(context, 0, -1)
    there = place >= history.offsets[:-1, None]
    rows = history.values[np.maximum(place, 0)].astype(np.float64)
    moves, both = np.abs(rows[:, season:] - rows[:, :-season]), there[:, :-season, None]
    return np.where(both, moves, 0).sum(1) / np.maximum(both.sum(1), 1)


def _base(
    model: Any, history: Series, horizon: int, future: Any, levels: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and what the quantiles are moved from: the model's own, or its mean."""
    if getattr(model, "has_quantiles", True):
        return model.answer(history, horizon, future, levels)
    mean, _ = model.answer(history, horizon, future, ())
    return mean, np.repeat(mean[..., None], len(levels), axis=-1)


def _sorted(quantiles: Bounds | tuple[np.ndarray, np.ndarray]) -> Bounds:
    low, high = (np.asarray(x) for x in quantiles)
    if low.shape != high.shape:
        raise ValueError(f"quantiles: found shapes {low.shape} and {high.shape}, wanted the same")
    return Bounds(np.minimum(low, high), np.maximum(low, high))


def _alike(forecast: np.ndarray, target: np.ndarray, new: np.ndarray) -> None:
    shapes = np.shape(forecast), np.shape(target), np.shape(new)
    if shapes[0] != shapes[1] or shapes[0][1:] != shapes[2][1:]:
        raise ValueError(
            f"calibration's forecast and target, and forecast: found shapes {shapes[0]}, "
            f"{shapes[1]} and {shapes[2]}; wanted (N, ...) twice and (W, ...)"
        )


def _checked(name: str, scores: np.ndarray, level: float) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not 0 < level < 1:
        raise ValueError(f"level: found {level}, wanted between 0 and 1")
    if scores.ndim < 1 or not len(scores) or not np.isfinite(scores).all():
        bad = (~np.isfinite(scores)).sum()
        raise ValueError(
            f"{name}: found shape {scores.shape}, {bad:,} of them not finite; wanted (N, ...)"
        )
    return scores
