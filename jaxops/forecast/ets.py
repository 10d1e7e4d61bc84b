"""Exponential smoothing in state space form (ETS), fitted to many series in one program.

Hyndman, Koehler, Ord and Snyder 2008, Forecasting with Exponential Smoothing. A form is named by
its error (A additive, M multiplicative), trend (N none, A, Ad damped) and season (N, A, M): ANN is
simple smoothing, AAN Holt's, AAA and MAM Holt and Winters'. With base = level + damping * slope and
season s of a cycle before, the mean is base + s or base * s, the error e = value - mean, and

    level' = base + alpha e / w,  slope' = damping slope + beta e / w,  s' = s + gamma e / v

w = s and v = base for a multiplicative season, else 1. A multiplicative error changes none of this
but the likelihood: e / mean, not e, is normal of variance sigma^2.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.forecast.baselines import checked, inside, normal_quantiles

FORMS = tuple(
    error + trend + season
    for error, season in ("AN", "MN", "AA", "MA", "MM")
    for trend in ("N", "A", "Ad")
)
ITERATIONS = 20  # of Levenberg and Marquardt's method
CHUNK = 1 << 24  # numbers in the Jacobians that are held at once


class Form(NamedTuple):
    """Which of the forms, as arrays of bool, so that all are one program."""

    relative: jax.Array  # the error
    trend: jax.Array
    damped: jax.Array
    product: jax.Array  # the season
    seasonal: jax.Array

    @classmethod
    def of(cls, names: Sequence[str]) -> "Form":
        """Of F names, (F,) each."""
        if unknown := [name for name in names if name not in FORMS] or not names:
            raise ValueError(f"forms: found {unknown or names}, wanted of {FORMS}")
        rows = [(n[0] == "M", n[1] == "A", "d" in n, n[-1] == "M", n[-1] != "N") for n in names]
        return cls(*jnp.array(rows).T)


class Weights(NamedTuple):
    """alpha, beta < alpha, gamma < 1 - alpha, and damping .8 to .98, or 1 without; () each."""

    alpha: jax.Array
    beta: jax.Array
    gamma: jax.Array
    damping: jax.Array


class State(NamedTuple):
    """() level and slope, and (m,) season, the next step's first."""

    level: jax.Array
    slope: jax.Array
    season: jax.Array


class Fit(NamedTuple):
    """Exponential smoothing of B series, each of its own form.

    Attributes:
        form: int (B,), place in the `forms` asked for.
        weights: (B,) each.
        state: after the last value, (B,), (B,) and (B, m).
        sigma: (B,), of the error, relative where the form's is.
        log_likelihood: (B,), at its maximum.
        aicc: (B, F), of all forms, inf where a form does not fit the series: a multiplicative one
            with values at or below 0, a seasonal one with less than two seasons.
    """

    form: jax.Array
    weights: Weights
    state: State
    sigma: jax.Array
    log_likelihood: jax.Array
    aicc: jax.Array


def exponential_smoothing(
    values: jax.Array,
    horizon: int,
    season: int = 1,
    lengths: jax.Array | None = None,
    levels: Sequence[float] | None = None,
    forms: Sequence[str] = FORMS,
    samples: int = 1000,
    seed: int = 0,
) -> jax.Array:
    """ETS of the form that has the least AICc, for each series.

    Args:
        values: (B, L), right-aligned.
        horizon: H.
        season: steps of one; 1 is none.
        lengths: int (B,), by default all L.
        levels: Q quantiles, from paths drawn from the model.
        forms: to choose from; give one to have just that.
        samples: paths, for levels.
        seed: of them.

    Returns:
        (B, H), the path without errors, or (B, H, Q) with levels.

    Raises:
        ValueError: as `fit_smoothing`, or levels outside 0 to 1.

    >>> x = jnp.array([[2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]])
    >>> exponential_smoothing(x, 2, forms=["AAN"]).round(1)
    Array([[18., 20.]], dtype=float32)
    """
    fit = fit_smoothing(values, season, lengths, forms)
    form = jax.tree.map(lambda x: x[fit.form], Form.of(forms))
    if levels is None:
        noise = jnp.zeros((len(fit.sigma), 1, horizon))
        return jax.vmap(paths)(form, fit.weights, fit.state, fit.sigma, noise)[:, 0]
    normal_quantiles(jnp.zeros((1, 1)), jnp.ones((1, 1)), levels)  # are they levels?
    levels = jnp.asarray(levels)

    def quantiles(series: tuple) -> jax.Array:
        key, *rest = series
        drawn = paths(*rest, jax.random.normal(key, (samples, horizon)))
        return jnp.quantile(drawn, levels, axis=0).T

    keys = jax.random.split(jax.random.key(seed), len(fit.sigma))
    each = (keys, form, fit.weights, fit.state, fit.sigma)
    return jax.lax.map(quantiles, each, batch_size=min(64, len(keys)))


def fit_smoothing(
    values: jax.Array,
    season: int = 1,
    lengths: jax.Array | None = None,
    forms: Sequence[str] = FORMS,
) -> Fit:
    """The weights and first states of greatest likelihood, for every series and form at once.

    The likelihood of each form is a sum of squares (with a relative error, of the errors times the
    geometric mean of what was expected), which Levenberg and Marquardt's method makes least in 20
    steps from the best of a few weights. Its Jacobian comes by forward differentiation of the
    recursion: all states and weights at once, and no series waits for another.

    Args:
        values: (B, L), right-aligned.
        season: m steps; 1 leaves the seasonal forms out.
        lengths: int (B,), by default all L.
        forms: of `FORMS`, to be chosen from by AICc.

    Raises:
        ValueError: not (B, L) with (B,) lengths, a season below 1, or a form unknown or none left.
    """
    values, lengths = checked(values, lengths, 1, season)
    Form.of(forms)
    plain = tuple(name for name in forms if name[-1] == "N")
    seasonal = tuple(name for name in forms if name[-1] != "N") if season > 1 else ()
    if not plain + seasonal:
        raise ValueError(f"forms: found {tuple(forms)} with season {season}: none is left")
    return _fit(values, lengths, season, tuple(forms), plain, seasonal)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _fit(
    values: jax.Array,
    lengths: jax.Array,
    season: int,
    forms: tuple[str, ...],
    plain: tuple[str, ...],
    seasonal: tuple[str, ...],
) -> Fit:
    found = []
    for names, m in ((plain, 1), (seasonal, season)):
        if names:
            every = _every(values, lengths, m, Form.of(names))
            repeated = jnp.broadcast_to(every[1].season, (*every[1].level.shape, m))
            widened = jnp.tile(repeated, (1, 1, season // m))
            found.append((every[0], every[1]._replace(season=widened), *every[2:]))
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts, 1), *found)
    aicc = joined[-1]
    best = aicc.argmin(1)
    rows = jnp.arange(len(best))
    weights, state, sigma, likelihood = jax.tree.map(lambda x: x[rows, best], joined[:-1])
    there = [forms.index(name) for name in plain + seasonal]
    every_aicc = jnp.full((len(best), len(forms)), jnp.inf).at[:, np.array(there)].set(aicc)
    return Fit(jnp.array(there)[best], weights, state, sigma, likelihood, every_aicc)


def _every(values: jax.Array, lengths: jax.Array, m: int, forms: Form) -> tuple:
    """Weights, state, sigma, log-likelihood and AICc of every series and form, (B, F) each."""
    B, L = values.shape
    values = jnp.pad(values, ((0, 0), (-L % m, 0)))  # whole seasons: the next step is of phase 0
    F, T = len(forms.trend), values.shape[1]
    chunk = max(1, min(B, CHUNK // (F * T * (5 + m))))
    there = inside(values, lengths)
    scale = jnp.where(there, jnp.abs(values), 0).sum(1) / lengths
    scale = jnp.where(scale > 0, scale, 1)
    more = -B % chunk  # the same series again, so that chunks are alike
    batch = (values / scale[:, None], there, lengths, scale)
    batch = jax.tree.map(lambda x: jnp.concatenate([x, x[:more]]), batch)
    batch = jax.tree.map(lambda x: x.reshape(-1, chunk, *x.shape[1:]), batch)
    one = jax.vmap(partial(_one, m=m), in_axes=(0, None, None, None, None))  # forms
    many = jax.vmap(one, in_axes=(None, 0, 0, 0, 0))  # series
    found = jax.lax.map(lambda part: many(forms, *part), batch)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:B], found)


def _one(
    form: Form, values: jax.Array, there: jax.Array, n: jax.Array, scale: jax.Array, m: int
) -> tuple:
    """One form for one series of mean size 1, (T,)."""
    residuals = partial(scaled_errors, form=form, values=values, there=there, n=n, m=m)
    first = first_guess(form, values, n, m)
    tried = jnp.array(list(product((-2.0, 0.0, 2.0), (-3.0, 0.0, 3.0), (-3.0, 0.0), (1.0,))))
    starts = jnp.concatenate([tried, jnp.tile(first[None], (len(tried), 1))], 1)
    costs = jax.vmap(lambda u: jnp.sum(residuals(u) ** 2))(starts)
    free = jnp.concatenate(
        [
            jnp.array([True]),
            jnp.stack([form.trend, form.seasonal, form.damped]),
            jnp.array([True]),
            form.trend[None],
            jnp.broadcast_to(form.seasonal, (m - 1,)),
        ]
    )
    u = least_squares(residuals, starts[_least(costs)], free)
    weights, state = unpack(u, form, m)
    state, means = run(form, weights, state, values, there)
    square = jnp.maximum(jnp.sum(residuals(u) ** 2), 1e-12)
    # log|mean| of a relative error is within the residuals; units are those of the values again
    likelihood = -n / 2 * (jnp.log(2 * jnp.pi * square / n) + 1) - n * jnp.log(scale)
    k = free.sum() + 1
    aicc = -2 * likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1)
    positive = jnp.where(there, values > 0, True).all()
    fits = jnp.isfinite(aicc) & (n > k + 1) & (~(form.relative | form.product) | positive)
    fits &= ~form.seasonal | (n >= 2 * m)
    error = jnp.where(there, values - means, 0) / jnp.where(form.relative, means, 1)
    sigma = jnp.sqrt(jnp.sum(error**2) / jnp.maximum(n - k + 1, 1))
    size = jnp.where(form.product, 1, scale)
    state = State(state.level * scale, state.slope * scale, state.season * size)
    sigma = sigma * jnp.where(form.relative, 1, scale)
    return weights, state, sigma, likelihood, jnp.where(fits, aicc, jnp.inf)


def _least(costs: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(costs), costs, jnp.inf).argmin()


def run(
    form: Form, weights: Weights, state: State, values: jax.Array, there: jax.Array
) -> tuple[State, jax.Array]:
    """The state after T values and the mean expected of each, (T,); T is whole seasons.

    Args:
        form: () each.
        weights: () each.
        state: before the first value.
        values: (T,).
        there: bool (T,), False where there is no value: nothing changes.
    """
    m = len(state.season)

    def step(carry: tuple[jax.Array, ...], x: tuple[jax.Array, ...]) -> tuple:
        (level, slope), (value, there, s) = carry, x
        (base, moved), mean = expected(form, weights, level, slope, s)
        new, season = updated(form, weights, base, moved, s, value - mean)
        kept = jnp.where(there, new[0], level), jnp.where(there, new[1], slope)
        return kept, (jnp.where(there, season, s), mean)

    def cycle(carry: State, x: tuple[jax.Array, ...]) -> tuple[State, jax.Array]:
        (level, slope), (s, means) = jax.lax.scan(step, carry[:2], (*x, carry.season))
        return State(level, slope, s), means

    state, means = jax.lax.scan(cycle, state, (values.reshape(-1, m), there.reshape(-1, m)))
    return state, means.reshape(-1)


def expected(form: Form, w: Weights, level: jax.Array, slope: jax.Array, s: jax.Array) -> tuple:
    """(base, damped slope) and the mean."""
    moved = w.damping * slope
    base = level + moved
    return (base, moved), jnp.where(form.product, base * s, base + s)


def updated(
    form: Form, w: Weights, base: jax.Array, moved: jax.Array, s: jax.Array, error: jax.Array
) -> tuple:
    """(level, slope) and the season after an error."""
    own = error / jnp.where(form.product, s, 1)
    season = s + w.gamma * error / jnp.where(form.product, base, 1)
    return (base + w.alpha * own, moved + w.beta * own), season


def paths(form: Form, w: Weights, state: State, sigma: jax.Array, noise: jax.Array) -> jax.Array:
    """What follows a state, (n, H), for standard normal noise (n, H)."""
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


def scaled_errors(
    u: jax.Array, form: Form, values: jax.Array, there: jax.Array, n: jax.Array, m: int
) -> jax.Array:
    """(T,) whose sum of squares S gives the log-likelihood -n/2 (log(2 pi S / n) + 1)."""
    _, means = run(form, *unpack(u, form, m), values, there)
    error = jnp.where(there, values - means, 0)
    safe = jnp.where(there & form.relative, means, 1)
    return error / safe * jnp.exp(jnp.log(jnp.abs(safe)).sum() / n)


def unpack(u: jax.Array, form: Form, m: int) -> tuple[Weights, State]:
    """Weights and first state of (5 + m,) numbers: 4, level, slope, m - 1 of the season."""
    alpha = 1e-4 + (1 - 2e-4) * jax.nn.sigmoid(u[0])
    weights = Weights(
        alpha,
        jnp.where(form.trend, alpha * jax.nn.sigmoid(u[1]), 0),
        jnp.where(form.seasonal, (1 - alpha) * jax.nn.sigmoid(u[2]), 0),
        jnp.where(form.damped, 0.8 + 0.18 * jax.nn.sigmoid(u[3]), 1),
    )
    middle = jnp.where(form.product, 1.0, 0.0)
    season = jnp.append(u[6:], middle * m - u[6:].sum()) if m > 1 else middle[None]
    return weights, State(u[4], jnp.where(form.trend, u[5], 0), season)


def first_guess(form: Form, values: jax.Array, n: jax.Array, m: int) -> jax.Array:
    """(1 + m,) level, slope and season from the first two seasons, or the first ten values."""
    T = len(values)
    start = T - n
    if m == 1:
        far = jnp.clip(n - 1, 1, 9)
        slope = (values[jnp.minimum(start + far, T - 1)] - values[start]) / far
        return jnp.stack([values[start] - jnp.where(form.trend, slope, 0), slope])
    two = jax.lax.dynamic_slice(jnp.pad(values, (0, 2 * m)), (start,), (2 * m,)).reshape(2, m)
    mean = two.mean(1)
    slope = jnp.where(form.trend, (mean[1] - mean[0]) / m, 0)
    level = jnp.where(form.trend, mean[0], mean.mean()) - slope * (m + 1) / 2
    line = (level + slope * jnp.arange(1, 2 * m + 1)).reshape(2, m)
    line = jnp.where(form.trend, line, mean[:, None])
    apart = jnp.where(form.product, two / line, two - line).mean(0)
    middle = jnp.where(form.product, apart / apart.mean(), apart - apart.mean())
    return jnp.concatenate([level[None], slope[None], jnp.roll(middle, start % m)[:-1]])


def least_squares(
    residuals: Callable[[jax.Array], jax.Array], u: jax.Array, free: jax.Array
) -> jax.Array:
    """Levenberg and Marquardt's method: each step the best of four dampings, if it is better."""
    tries = jnp.array([0.1, 1.0, 10.0, 100.0])

    def both(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = residuals(u)
        return r, r

    def step(carry: tuple[jax.Array, jax.Array], _: None) -> tuple:
        u, damping = carry
        J, r = jax.jacfwd(both, has_aux=True)(u)
        J = jnp.where(free[None], J, 0)
        H, g = J.T @ J, J.T @ r
        size = jnp.diagonal(H)
        ridge = size + 1e-7 * size.max() + 1e-20

        def move(d: jax.Array) -> jax.Array:
            change = jnp.linalg.solve(H + jnp.diag(d * ridge), g)
            new = u - jnp.where(free, jnp.clip(change, -3, 3), 0)
            return jnp.concatenate([jnp.clip(new[:4], -9, 9), new[4:]])

        dampings = damping * tries
        moved = jax.vmap(move)(dampings)
        costs = jax.vmap(lambda u: jnp.sum(both(u)[0] ** 2))(moved)
        best = _least(costs)
        better = costs[best] < jnp.sum(r**2)
        new = jnp.where(better, moved[best], u)
        damping = jnp.clip(jnp.where(better, dampings[best], damping * 1000), 1e-6, 1e6)
        return (new, damping), None

    (u, _), _ = jax.lax.scan(step, (u, jnp.asarray(1e-2)), length=ITERATIONS)
    return u
