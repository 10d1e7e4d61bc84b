"""The recursions of exponential smoothing in state space form; see `ets`.

Let base = level + damping * slope, and let s be the season's value one cycle before. Then the mean
is base + s or base * s, the error is e = value - mean, and

    level' = base + alpha e / w,  slope' = damping slope + beta e / w,  s' = s + gamma e / v

where w = s and v = base for a multiplicative season, and both are 1 otherwise. A multiplicative
error changes only the likelihood: e / mean, instead of e, is normal with variance sigma^2.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

FORMS = tuple(
    error + trend + season
    for error, season in ("AN", "MN", "AA", "MA", "MM")
    for trend in ("N", "A", "Ad")
)
DAMPED = tuple(form for form in FORMS if form[1:-1] != "A")

Pair = tuple[jax.Array, jax.Array]


class Form(NamedTuple):
    """A form as arrays of bool, so that all forms share one program."""

    relative: jax.Array  # the error
    trend: jax.Array
    damped: jax.Array
    product: jax.Array  # the season
    seasonal: jax.Array

    @classmethod
    def of(cls, names: Sequence[str]) -> "Form":
        """The forms with these F names, (F,) each."""
        if unknown := [name for name in names if name not in FORMS] or not names:
            raise ValueError(f"forms must be among {FORMS}, got {unknown or names}")
        rows = [(n[0] == "M", n[1] == "A", "d" in n, n[-1] == "M", n[-1] != "N") for n in names]
        return cls(*jnp.array(rows).T)


class Weights(NamedTuple):
    """Smoothing weights, () each: alpha, beta < alpha, gamma < 1 - alpha, and the damping.

    The damping is in [0.8, 0.98], or 1 for a trend that is not damped.
    """

    alpha: jax.Array
    beta: jax.Array
    gamma: jax.Array
    damping: jax.Array


class State(NamedTuple):
    """Level (), slope () and season (m,), whose first element is that of the next step."""

    level: jax.Array
    slope: jax.Array
    season: jax.Array


def run(
    form: Form, weights: Weights, state: State, values: jax.Array, real: jax.Array
) -> tuple[State, jax.Array]:
    """The state after T values, and the expected value of each, (T,).

    Args:
        form: () each.
        weights: () each.
        state: the state before the first value.
        values: (T,); T is a multiple of the season.
        real: bool (T,), False for padding, which does not change the state.
    """
    m = len(state.season)

    def step(carry: tuple[jax.Array, ...], x: tuple[jax.Array, ...]) -> tuple[Pair, Pair]:
        (level, slope), (value, real, s) = carry, x
        (base, moved), mean = expected(form, weights, level, slope, s)
        new, season = updated(form, weights, base, moved, s, value - mean)
        kept = jnp.where(real, new[0], level), jnp.where(real, new[1], slope)
        return kept, (jnp.where(real, season, s), mean)

    def cycle(carry: State, x: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
        after, (season, means) = jax.lax.scan(step, carry[:2], (*x, carry.season))
        return State(*after, season), means

    if m == 1:  # one loop instead of two compiles faster
        return _without_season(step, state, values, real)
    state, means = jax.lax.scan(cycle, state, (values.reshape(-1, m), real.reshape(-1, m)))
    return state, means.reshape(-1)


def _without_season(
    step: Callable, state: State, values: jax.Array, real: jax.Array
) -> tuple[State, jax.Array]:
    """`run` for a season of one step."""

    def one(carry: State, x: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
        (level, slope), (season, mean) = step(carry[:2], (*x, carry.season[0]))
        return State(level, slope, season[None]), mean

    return jax.lax.scan(one, state, (values, real))


def expected(form: Form, w: Weights, level: jax.Array, slope: jax.Array, s: jax.Array) -> tuple:
    """The base and the damped slope, and the mean."""
    moved = w.damping * slope
    base = level + moved
    return (base, moved), jnp.where(form.product, base * s, base + s)


def updated(
    form: Form, w: Weights, base: jax.Array, moved: jax.Array, s: jax.Array, error: jax.Array
) -> tuple:
    """The level and slope, and the season's value, after an error."""
    scaled = error / jnp.where(form.product, s, 1)
    season = s + w.gamma * error / jnp.where(form.product, base, 1)
    return (base + w.alpha * scaled, moved + w.beta * scaled), season


def paths(form: Form, w: Weights, state: State, sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """Paths (n, H) that start from a state, for standard normal noise (n, H)."""
    n, m = len(noise), len(state.season)

    def step(carry: tuple, x: jax.Array) -> tuple:
        level, slope, season = carry
        s = season[0]
        (base, moved), mean = expected(form, w, level, slope, s)
        error = sigma * x * jnp.where(form.relative, mean, 1)
        (level, slope), s = updated(form, w, base, moved, s, error)
        return (level, slope, jnp.concatenate([season[1:], s[None]])), mean + error

    first = (
        jnp.full(n, state.level),
        jnp.full(n, state.slope),
        jnp.broadcast_to(state.season[:, None], (m, n)),
    )
    return jax.lax.scan(step, first, noise.T)[1].T
