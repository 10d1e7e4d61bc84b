"""Margins that adapt to the observed coverage, for targets in the order of time."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.trust.conformal.margins import checked


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
        checked("calibration", calibration, coverage),
        checked("scores", scores, coverage),
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
