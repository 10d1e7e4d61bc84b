"""Conformal prediction: intervals with a given coverage around any prediction.

A score says how far a target was from its prediction. A margin is added to a prediction to cover
the next target. Arrays are (N, ...), with N calibration rows on which the model was neither trained
nor chosen. Each position along the other axes, such as step ahead and channel, has its own margin.

Split margins have on average at least the given coverage if calibration rows and test rows are
exchangeable. Windows of a time series are not quite exchangeable: overlapping windows carry less
information than the same number of independent ones, and if the series changes, the coverage falls.
`adaptive` corrects its margins when targets become known.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Bounds(NamedTuple):
    """Bounds of intervals.

    Attributes:
        low: (W, ...), the lower bounds, in the shape of the predictions.
        high: (W, ...), the upper bounds.
    """

    low: np.ndarray
    high: np.ndarray


def margin(scores: np.ndarray, coverage: float = 0.9) -> np.ndarray:
    """The ceil((N + 1) coverage)-th smallest score of each column; infinite if that exceeds N.

    The probability that the next score is at most the margin is at least `coverage`, and, if no two
    scores are equal, at most `coverage + 1 / (N + 1)`. The margin is finite if N is at least
    coverage / (1 - coverage), which is 9 for a coverage of 0.9.

    Args:
        scores: (N, ...), the scores of the calibration rows.
        coverage: in (0, 1).

    Returns:
        float64 (...).

    Raises:
        ValueError: there are no scores, one is not finite, or the coverage is outside (0, 1).

    References:
        Vovk, Gammerman and Shafer 2005, Algorithmic Learning in a Random World; Lei et al. 2018,
        arXiv:1604.04173.

    >>> margin(np.arange(1.0, 20.0), coverage=0.9)
    array(18.)
    """
    scores = _checked("scores", scores, coverage)
    k = int(np.ceil((len(scores) + 1) * coverage - 1e-9))
    if k > len(scores):
        return np.full(scores.shape[1:], np.inf)
    return np.asarray(np.partition(scores, k - 1, axis=0)[k - 1])


def split_conformal(
    forecast: np.ndarray,
    calibration_forecast: np.ndarray,
    calibration_target: np.ndarray,
    coverage: float = 0.9,
) -> Bounds:
    """Split conformal intervals: forecast ± the margin of |target - forecast| in calibration.

    Args:
        forecast: (W, ...), predictions to put bounds around.
        calibration_forecast: (N, ...), predictions of the same model for calibration.
        calibration_target: (N, ...), their targets.
        coverage: in (0, 1).

    Returns:
        Bounds, (W, ...) each; each position along the other axes has its own margin.

    Raises:
        ValueError: the shapes do not agree; see also `margin`.

    >>> bounds = split_conformal(np.zeros((1, 1)), np.zeros((19, 1)), np.arange(1.0, 20.0)[:, None])
    >>> bounds.low, bounds.high
    (array([[-18.]]), array([[18.]]))
    """
    forecast = np.asarray(forecast)
    _alike(calibration_forecast, calibration_target, forecast)
    size = margin(np.abs(np.subtract(calibration_target, calibration_forecast)), coverage)
    return Bounds(forecast - size, forecast + size)


def conformal_quantiles(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_quantiles: Bounds | tuple[np.ndarray, np.ndarray],
    calibration_target: np.ndarray,
    coverage: float = 0.9,
) -> Bounds:
    """Conformalised quantile regression: two quantiles, moved by the margin of their errors.

    They are moved apart, or together if they covered too much, by the margin of
    max(low - target, target - high). So the intervals are wide where the model's own are wide.
    Quantiles that cross are swapped. Bounds that would move past each other meet in the middle.

    Args:
        quantiles: low and high, (W, ...) each, such as levels 0.05 and 0.95 for a coverage of 0.9.
        calibration_quantiles: low and high, (N, ...) each, of the same model.
        calibration_target: (N, ...).
        coverage: in (0, 1).

    Returns:
        Bounds, (W, ...) each.

    Raises:
        ValueError: the shapes do not agree; see also `margin`.

    References:
        Romano, Patterson and Candes 2019, arXiv:1905.03222, theorem 1.

    >>> calibration = np.zeros(19), np.ones(19)
    >>> target = np.arange(19) / 4  # 18 of 19 are at most 3.25 above the upper one
    >>> bounds = conformal_quantiles((np.zeros(1), np.ones(1)), calibration, target)
    >>> bounds.low.item(), bounds.high.item()
    (-3.25, 4.25)
    """
    low, high = _sorted(quantiles)
    before = _sorted(calibration_quantiles)
    _alike(before.low, calibration_target, low)
    size = margin(quantile_scores(before, calibration_target), coverage)
    middle = (low + high) / 2
    return Bounds(np.minimum(low - size, middle), np.maximum(high + size, middle))


def quantile_scores(
    quantiles: Bounds | tuple[np.ndarray, np.ndarray], target: np.ndarray
) -> np.ndarray:
    """max(low - target, target - high): how far a target is outside; negative if it is inside.

    Args:
        quantiles: low and high, (N, ...) each; if they cross, they are swapped.
        target: (N, ...).

    Raises:
        ValueError: quantiles of different shapes.

    >>> quantile_scores((np.zeros(3), np.ones(3)), np.array([-1, 0.25, 3])).tolist()
    [1.0, -0.25, 2.0]
    """
    low, high = _sorted(quantiles)
    return np.maximum(low - target, target - high)


class Adaptive(NamedTuple):
    """Margins that adapt to the observed coverage.

    Attributes:
        margins: float32 (T, ...), the margin of each window, known before its target; infinite or
            -infinite where `nominal` is outside [0, 1].
        nominal: float32 (T, ...), the coverage at which each margin was taken. It moves so that the
            share of covered targets approaches `coverage`.
    """

    margins: jax.Array
    nominal: jax.Array


def adaptive(
    calibration: np.ndarray,
    scores: np.ndarray,
    coverage: float = 0.9,
    rate: float = 0.01,
    delay: np.ndarray | int = 1,
) -> Adaptive:
    """Adaptive conformal inference over windows in the order of time.

    The margin of a window is that of the last N known scores, at a nominal coverage that changes:
    it rises by rate * coverage after a missed target, and falls by rate * (1 - coverage) after a
    covered one. So over T windows the share of covered targets is within (1 + rate) / (rate T) of
    `coverage`, for any data (proposition 4.1, with max(coverage, 1 - coverage) bounded by 1; with a
    delay the bound is slightly larger).

    Args:
        calibration: (N, ...), scores that are known at the start, the newest last.
        scores: (T, ...), such as |target - forecast| or `quantile_scores`.
        coverage: in (0, 1).
        rate: the rate of the correction, at least 0; with 0 the nominal coverage stays constant.
        delay: the number of windows after which a score is known, at least 1. For windows with a
            stride of 1 it is the step ahead. An int, or an array that broadcasts to the other axes.

    Returns:
        `Adaptive`, with a margin for each window and each position along the other axes.

    Raises:
        ValueError: the axes differ, a score is not finite, the coverage is outside (0, 1), the rate
            is below 0, or the delay is below 1.

    References:
        Gibbs and Candes 2021, arXiv:2106.00170.

    >>> adaptive(np.arange(1.0, 20.0), np.full(3, 50.0), rate=0.0).margins.tolist()
    [18.0, 19.0, 50.0]
    """
    first, scores = (
        _checked("calibration", calibration, coverage),
        _checked("scores", scores, coverage),
    )
    if first.shape[1:] != scores.shape[1:]:
        raise ValueError(
            "calibration and scores must have the same axes after the first, got shapes "
            f"{first.shape} and {scores.shape}"
        )
    axes = scores.shape[1:]
    delay = np.broadcast_to(np.asarray(delay), axes)
    if rate < 0:
        raise ValueError(f"rate must be at least 0, got {rate}")
    if (delay < 1).any():
        raise ValueError(f"delay must be at least 1, got {delay.min()}")
    columns = (np.sort(first, 0), first, scores)
    flat = [jnp.asarray(x.reshape(len(x), -1), jnp.float32) for x in columns]
    followed = _follow(*flat, jnp.asarray(delay.reshape(-1)), coverage, rate)
    return Adaptive(*(x.reshape(-1, *axes) for x in followed))


@jax.jit
@partial(jax.vmap, in_axes=(1, 1, 1, 0, None, None), out_axes=1)
def _follow(
    ordered: jax.Array,
    first: jax.Array,
    scores: jax.Array,
    delay: jax.Array,
    coverage: float,
    rate: float,
) -> tuple[jax.Array, jax.Array]:
    """One column: margins and nominal coverages, (T,) each."""
    (N,), (T,) = first.shape, scores.shape
    history = jnp.concatenate([first, scores])

    def window(carry: tuple[jax.Array, ...], t: jax.Array) -> tuple[tuple, jax.Array]:
        ordered, current, margins = carry
        known = t - delay  # the window whose target has just become known; negative if none
        newest = history[N + known]
        moved = current + rate * jnp.where(newest > margins[known], coverage, coverage - 1)
        renewed = _insert(_remove(ordered, history[known]), newest)
        current = jnp.where(known >= 0, moved, current)
        ordered = jnp.where(known >= 0, renewed, ordered)
        k = jnp.ceil((N + 1) * current - 1e-4).astype(int)
        size = jnp.where(k < 1, -jnp.inf, jnp.where(k > N, jnp.inf, ordered[k - 1]))
        return (ordered, current, margins.at[t].set(size)), current

    carry = (ordered, jnp.asarray(coverage, jnp.float32), jnp.zeros(T))
    (_, _, margins), nominal = jax.lax.scan(window, carry, jnp.arange(T))
    return margins, nominal


def _remove(ordered: jax.Array, value: jax.Array) -> jax.Array:
    """N sorted values without one occurrence of `value`."""
    return jnp.where(ordered[:-1] < value, ordered[:-1], ordered[1:])


def _insert(ordered: jax.Array, value: jax.Array) -> jax.Array:
    """N - 1 sorted values with `value`: each entry is the median of `value` and two neighbours."""
    end = jnp.array([jnp.inf])
    below, above = jnp.concatenate([-end, ordered]), jnp.concatenate([ordered, end])
    return jnp.clip(value, below, above)


def _sorted(quantiles: Bounds | tuple[np.ndarray, np.ndarray]) -> Bounds:
    low, high = (np.asarray(x) for x in quantiles)
    if low.shape != high.shape:
        raise ValueError(f"quantiles must have equal shapes, got {low.shape} and {high.shape}")
    return Bounds(np.minimum(low, high), np.maximum(low, high))


def _alike(forecast: np.ndarray, target: np.ndarray, new: np.ndarray) -> None:
    shapes = np.shape(forecast), np.shape(target), np.shape(new)
    if shapes[0] != shapes[1] or shapes[0][1:] != shapes[2][1:]:
        raise ValueError(
            "calibration_forecast, calibration_target and forecast must have shapes (N, ...), "
            f"(N, ...) and (W, ...), got {shapes[0]}, {shapes[1]} and {shapes[2]}"
        )


def _checked(name: str, scores: np.ndarray, coverage: float) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be in (0, 1), got {coverage}")
    if scores.ndim < 1 or not len(scores) or not np.isfinite(scores).all():
        bad = (~np.isfinite(scores)).sum()
        raise ValueError(
            f"{name} must have shape (N, ...) and finite values, got shape {scores.shape}, "
            f"{bad:,} values not finite"
        )
    return scores
