"""The newsvendor: the best order for one period, or the best base-stock level, for many items.

A unit too many costs `holding`, a unit too few `shortage`. The order with the least expected cost
is the quantile of demand at level shortage / (holding + shortage) (Arrow, Harris and Marschak 1951,
Optimal Inventory Policy). With back-orders and a lead time of L periods the best base-stock level
is the same quantile of the demand of L + 1 periods (Snyder and Shen 2019, Fundamentals of Supply
Chain Theory, section 4.3).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from jaxops._shapes import next_power_of_two
from jaxops.decide import _checks as checks

Array = jax.Array


class Order(NamedTuple):
    """The best order, or base-stock level, and its expected cost per period.

    Attributes:
        quantity: float32 (...), in units of demand.
        cost: float32 (...), in money.
    """

    quantity: Array
    cost: Array


def newsvendor_normal(mean: Any, sd: Any, holding: Any, shortage: Any, lead_time: int = 0) -> Order:
    """The best order for normal demand: mean + sd z, at a cost of (holding + shortage) sd pdf(z).

    z is the standard normal quantile at shortage / (holding + shortage). The function is
    differentiable, and may be called inside a compiled program. The order is below 0 if that
    quantile of the demand is below 0.

    Args:
        mean: mean of one period's demand, at least 0; all arguments broadcast.
        sd: standard deviation of one period's demand, 0 for certain demand; periods are
            independent.
        holding: cost of a unit too many.
        shortage: cost of a unit too few.
        lead_time: periods until an order arrives, a whole number.

    Raises:
        ValueError: a value that is not finite; a mean or an sd below 0; a cost that is not above 0;
            a lead time that is not a whole number of at least 0.

    >>> order = newsvendor_normal(120, 10, holding=2, shortage=18)
    >>> print(f"{order.quantity:.4f} {order.cost:.4f}")
    132.8155 35.0997
    """
    checks.not_negative(mean=mean, sd=sd)
    checks.positive(holding=holding, shortage=shortage)
    checks.whole(lead_time=lead_time)
    return _normal(
        *checks.together(mean=mean, sd=sd, holding=holding, shortage=shortage), lead_time + 1
    )


@jax.jit
def _normal(mean: Array, sd: Array, holding: Array, shortage: Array, periods: int) -> Order:
    sd = sd * jnp.sqrt(periods)
    # computed from the smaller tail, because 1 - x loses the digits of a float32 x close to 1
    z = -ndtri(jnp.minimum(holding, shortage) / (holding + shortage))
    quantity = mean * periods + sd * z * jnp.sign(shortage - holding)
    return Order(quantity, (holding + shortage) * sd * norm.pdf(z))


def newsvendor_poisson(mean: Any, holding: Any, shortage: Any, lead_time: int = 0) -> Order:
    """The exact best order for Poisson demand.

    It is the smallest q with P(demand <= q) >= shortage / (holding + shortage).
    Probabilities are float32, each with about six correct digits. If the costs of two orders agree
    to that many digits, either may be returned.

    Args:
        mean: mean of one period's demand, at least 0. All arguments broadcast. None may be traced,
            because the item with the widest distribution decides the number of demand values in a
            sum.
        holding: cost of a unit too many.
        shortage: cost of a unit too few.
        lead_time: periods until an order arrives, a whole number.

    Raises:
        ValueError: a mean below 0; a cost that is not above 0; a value that is not finite, or
            traced; a lead time that is not a whole number of at least 0.

    >>> order = newsvendor_poisson([50.0, 0.3], holding=1, shortage=4)
    >>> print(*order.quantity, *order.cost.round(4))
    56.0 1.0 10.0752 0.9041
    """
    checks.known(mean=mean, holding=holding, shortage=shortage)
    checks.not_negative(mean=mean)
    checks.positive(holding=holding, shortage=shortage)
    checks.whole(lead_time=lead_time)
    mean = np.multiply(mean, lead_time + 1.0)
    rarest = np.min(np.divide(holding, np.add(holding, shortage)), initial=1.0)
    wide = next_power_of_two(reach(mean, 1e-6 * rarest))
    return _poisson(*checks.together(mean=mean, holding=holding, shortage=shortage), wide)


def reach(mean: Any, chance: float = 1e-12) -> int:
    """A distance from the mean that Poisson demand exceeds with at most this probability.

    Bernstein's bound: P(|demand - mean| > x) < 2 exp(-x^2 / (2 mean + 2 x / 3)).
    """
    nats = np.log(2 / chance)
    return int(nats / 3 + np.sqrt(nats**2 / 9 + 2 * nats * np.max(mean, initial=0))) + 1


def poisson(mean: Array, first: Array, count: int) -> Array:
    """P(demand = first + 0 .. count - 1) of each mean, (count, ...), renormalised over this range.

    They are computed from ratios of neighbours, because log-gamma of large counts loses most digits
    in float32.
    """
    start = jnp.zeros_like(mean)

    def following(logit: Array, k: Array) -> tuple[Array, Array]:
        logit = logit + jnp.log(mean) - jnp.log(first + k)
        return logit, logit

    _, rest = jax.lax.scan(following, start, jnp.arange(1.0, count))
    return jax.nn.softmax(jnp.concatenate([start[None], rest]), 0)


@partial(jax.jit, static_argnums=3)
def _poisson(mean: Array, holding: Array, shortage: Array, reach: int) -> Order:
    first = jnp.maximum(jnp.floor(mean) - reach, 0)
    allowed = holding / (holding + shortage)

    # from the largest value of demand down, so that sums of small probabilities keep their digits
    def lower(state: Any, p: Array) -> tuple[Any, None]:
        more, place, cost = state  # P(demand > value); number of values where that is too large
        short = more > allowed
        # a unit above the order is short with probability `more`; below, it is held with 1 - more
        cost = cost + jnp.where(short, holding * jnp.maximum(1 - more, 0), shortage * more)
        return (more + p, place + short, cost), None

    zero = jnp.zeros_like(mean)
    chances = poisson(mean, first, 2 * reach + 1)
    (_, place, cost), _ = jax.lax.scan(lower, (zero, zero, zero), chances, reverse=True)
    return Order(first + place, cost)


def newsvendor_samples(samples: Any, holding: Any, shortage: Any) -> Order:
    """The best order for samples of demand, such as past sales or sampled forecasts.

    The order is the sample of rank ceil(n shortage / (holding + shortage)). With few samples the
    cost is too low, because the same samples choose the order and evaluate it; this bias falls as
    1 / n.

    Args:
        samples: (..., n), samples of demand; with a lead time of L periods, samples of the sum over
            L + 1 periods.
        holding: (...) or one, cost of a unit too many.
        shortage: (...) or one, cost of a unit too few.

    Raises:
        ValueError: no samples; one that is below 0 or not finite; a cost that is not above 0.

    >>> print(newsvendor_samples([3.0, 8.0, 1.0, 5.0], holding=1, shortage=2).quantity)
    5.0
    """
    checks.not_negative(samples=samples)
    checks.positive(holding=holding, shortage=shortage)
    samples = jnp.asarray(samples, jnp.float32)
    if samples.ndim == 0 or samples.shape[-1] == 0:
        raise ValueError(f"samples must have shape (..., n), n of at least 1, got {samples.shape}")
    return _samples(samples, *_costs(samples, holding, shortage))


def _costs(rows: Array, *costs: Any) -> list[Array]:
    return [jnp.broadcast_to(jnp.asarray(c, jnp.float32), rows.shape[:-1]) for c in costs]


@jax.jit
def _samples(samples: Array, holding: Array, shortage: Array) -> Order:
    count = samples.shape[-1]
    rank = jnp.ceil(count * shortage / (holding + shortage) * (1 - 1e-6))  # 10 x .9 must give 9
    place = jnp.clip(rank.astype(jnp.int32) - 1, 0, count - 1)[..., None]
    quantity = jnp.take_along_axis(jnp.sort(samples, -1), place, -1)
    short = samples - quantity
    cost = jnp.where(short > 0, shortage[..., None] * short, -holding[..., None] * short)
    return Order(quantity[..., 0], cost.mean(-1))


def newsvendor_quantiles(levels: Any, quantiles: Any, holding: Any, shortage: Any) -> Order:
    """The best order for a forecast given by quantiles.

    The quantile function is linear between two levels. Beyond the outer levels it has exponential
    tails, each with the scale that the two outer quantiles imply (as in Park et al. 2022, Learning
    Quantile Functions without Quantile Crossing): at level u above the highest level t it is
    q + b log((1 - t) / (1 - u)). Demand below 0 counts as 0. Differentiable.

    Args:
        levels: (Q,), at least two, rising in (0, 1).
        quantiles: (..., Q), not falling with the level.
        holding: (...) or one, cost of a unit too many.
        shortage: (...) or one, cost of a unit too few.

    Raises:
        ValueError: levels that do not rise in (0, 1); quantiles of another number, that fall or are
            not finite; a cost that is not above 0.

    >>> order = newsvendor_quantiles([0.1, 0.5, 0.9], [107.2, 120.0, 132.8], 2, 6)
    >>> print(f"{order.quantity:.1f} {order.cost:.1f}")
    128.0 29.1
    """
    levels, quantiles = _checked(levels, quantiles)
    checks.positive(holding=holding, shortage=shortage)
    return _quantiles(levels, quantiles, *_costs(quantiles, holding, shortage))


def _checked(levels: Any, quantiles: Any) -> tuple[Array, Array]:
    t = np.asarray(levels, np.float64)
    if t.ndim != 1 or len(t) < 2 or not (np.diff(t) > 0).all() or not (0 < t[0] <= t[-1] < 1):
        raise ValueError(f"levels must be two or more that rise in (0, 1), got {t.tolist()}")
    checks.finite(quantiles=quantiles)
    if np.shape(quantiles)[-1:] != t.shape:
        raise ValueError(
            f"quantiles must have shape (..., {len(t)}), one for each level, got "
            f"{np.shape(quantiles)}"
        )
    if not checks.traced(quantiles) and (np.diff(quantiles) < 0).any():
        place = tuple(map(int, np.argwhere(np.diff(quantiles) < 0)[0]))
        raise ValueError(f"quantiles must not fall with the level, got a fall after {place}")
    return jnp.asarray(t, jnp.float32), jnp.asarray(quantiles, jnp.float32)


@jax.jit
def _quantiles(t: Array, q: Array, holding: Array, shortage: Array) -> Order:
    q, u = jnp.maximum(q, 0), shortage / (holding + shortage)
    upper = (q[..., -1] - q[..., -2]) / jnp.log((1 - t[-2]) / (1 - t[-1]))
    lower = (q[..., 1] - q[..., 0]) / jnp.log(t[1] / t[0])
    inner = _interpolated(u, t, q)
    low = jnp.maximum(q[..., 0] + lower * jnp.log(jnp.minimum(u / t[0], 1)), 0)
    high = q[..., -1] + upper * jnp.log(jnp.maximum((1 - t[-1]) / (1 - u), 1))
    quantity = jnp.where(u < t[0], low, jnp.where(u > t[-1], high, inner))

    def below(u: Array, at: Array) -> Array:  # the integral of the lower tail up to level u
        none = jnp.minimum(t[0] * jnp.exp(-q[..., 0] / jnp.where(lower > 0, lower, 1)), u)
        return u * at - jnp.where(lower > 0, lower * (u - none), 0)

    def above(u: Array, at: Array) -> Array:  # the same of the upper tail, which is memoryless
        return (1 - u) * (at + upper)

    grid = jnp.broadcast_to(t[(None,) * u.ndim], q.shape)
    mean = below(t[0], q[..., 0]) + jnp.trapezoid(q, grid, axis=-1) + above(t[-1], q[..., -1])
    right = jnp.maximum(grid, jnp.clip(u, t[0], t[-1])[..., None])
    right_q = jnp.maximum(q, jnp.clip(quantity, q[..., 0], q[..., -1])[..., None])
    over = above(t[-1], q[..., -1]) + jnp.trapezoid(right_q, right, axis=-1)
    over = jnp.where(u < t[0], mean - below(u, quantity), over)
    over = jnp.where(u > t[-1], above(u, quantity), over)
    # shortage times the integral of Q above u, minus holding times that below
    return Order(quantity, (holding + shortage) * over - holding * mean)


def _interpolated(u: Array, t: Array, q: Array) -> Array:
    place = jnp.clip(jnp.searchsorted(t, u), 1, len(t) - 1)
    share = jnp.clip((u - t[place - 1]) / (t[place] - t[place - 1]), 0, 1)
    left, right = (jnp.take_along_axis(q, p[..., None], -1)[..., 0] for p in (place - 1, place))
    return left + share * (right - left)


def total_quantiles(levels: Any, quantiles: Any, correlation: Any = 0.0) -> Array:
    """Quantiles of the demand over several periods, from the quantiles of each period.

    Quantiles cannot be added. With m the interpolated median of each period and d = q - m, the
    quantiles of the sum are sum m + sign(sum d) sqrt((1 - c) sum d^2 + c (sum d)^2). This is exact
    for normal demand with correlation c between any two periods, and with c = 1 for any demand
    whose periods rise and fall together.

    Args:
        levels: (Q,), rising in (0, 1), from at most 0.5 to at least 0.5.
        quantiles: (..., periods, Q).
        correlation: correlation of the errors of two periods, in [0, 1].

    Returns:
        (..., Q) float32.

    Raises:
        ValueError: see `newsvendor_quantiles`; also for levels all below or all above 0.5,
            quantiles with less than two axes, or a correlation outside [0, 1].

    >>> print(total_quantiles([0.1, 0.5, 0.9], [[7, 10, 14], [6, 10, 13]]))
    [15. 20. 25.]
    """
    t, q = _checked(levels, quantiles)
    if not t[0] <= 0.5 <= t[-1] or q.ndim < 2:
        raise ValueError(
            "levels must lie around 0.5 and quantiles have shape (..., periods, levels), got "
            f"{np.asarray(levels).tolist()} and {q.shape}"
        )
    checks.share(correlation=correlation)
    return _total(t, q, jnp.asarray(correlation, jnp.float32))


@jax.jit
def _total(t: Array, q: Array, correlation: Array) -> Array:
    middle = _interpolated(jnp.full(q.shape[:-1], 0.5), t, q)[..., None]
    d = q - middle
    total = d.sum(-2)
    spread = jnp.sqrt((1 - correlation) * (d**2).sum(-2) + correlation * total**2)
    return middle.sum(-2) + jnp.sign(total) * spread
