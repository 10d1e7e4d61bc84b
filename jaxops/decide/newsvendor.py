"""How much to order once, or up to which level to order again and again, for many items at once.

A unit too many costs `holding`, a unit too few `shortage`. The order that costs least on average is
the quantile of demand at shortage / (holding + shortage) (Arrow, Harris and Marschak 1951, Optimal
Inventory Policy). With back-orders and a lead time of L periods the best base-stock level is the
same quantile of the demand of L + 1 periods: the period that waits for the order, and L more
(Snyder and Shen 2019, Fundamentals of Supply Chain Theory, section 4.3).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from jaxops.decide import _checks as checks

Array = jax.Array


class Order(NamedTuple):
    """The best order, or base-stock level, and what it is expected to cost a period.

    Attributes:
        quantity: float32 (...), in units of demand.
        cost: float32 (...), in money.
    """

    quantity: Array
    cost: Array


def newsvendor_normal(mean: Any, sd: Any, holding: Any, shortage: Any, lead_time: int = 0) -> Order:
    """Of normal demand: mean + sd z, at a cost of (holding + shortage) sd pdf(z).

    Differentiable, and may be called inside a compiled program. The order may be below 0 where
    much of the demand is.

    Args:
        mean: of one period's demand; all arguments broadcast.
        sd: of one period's demand; periods are independent.
        holding: cost of a unit too many.
        shortage: cost of a unit too few.
        lead_time: periods until an order is there, whole.

    Raises:
        ValueError: a value that is not finite, a mean below 0, or another at or below 0.

    >>> order = newsvendor_normal(120, 10, holding=2, shortage=18)
    >>> print(f"{order.quantity:.4f} {order.cost:.4f}")
    132.8155 35.0997
    """
    checks.not_negative(mean=mean)
    checks.positive(sd=sd, holding=holding, shortage=shortage)
    checks.whole(lead_time=lead_time)
    return _normal(*checks.together(mean, sd, holding, shortage), lead_time + 1)


@jax.jit
def _normal(mean: Array, sd: Array, holding: Array, shortage: Array, periods: int) -> Order:
    sd = sd * jnp.sqrt(periods)
    # of the smaller share: a float32 just below 1 knows little of what it lacks
    z = -ndtri(jnp.minimum(holding, shortage) / (holding + shortage))
    quantity = mean * periods + sd * z * jnp.sign(shortage - holding)
    return Order(quantity, (holding + shortage) * sd * norm.pdf(z))


def newsvendor_poisson(mean: Any, holding: Any, shortage: Any, lead_time: int = 0) -> Order:
    """Of Poisson demand, exact: the smallest order that meets demand often enough.

    The probabilities are float32, each right to about six digits; where two orders cost the same to
    that many digits, either may come out.

    Args:
        mean: of one period's demand, 0 or more. All arguments broadcast; none may be traced, for
            the widest item decides how many values of demand are looked at.
        holding: cost of a unit too many.
        shortage: cost of a unit too few.
        lead_time: periods until an order is there, whole.

    Raises:
        ValueError: a mean below 0, a cost at or below 0, one that is not finite, or is traced.

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
    wide = checks.power_of_two(reach(mean, 1e-6 * rarest))
    return _poisson(*checks.together(mean, holding, shortage), wide)


def reach(mean: Any, chance: float = 1e-12) -> int:
    """How far at most from its mean Poisson demand is but for so small a chance.

    Bernstein's bound: P(|demand - mean| > x) < 2 exp(-x^2 / (2 mean + 2 x / 3)).
    """
    nats = np.log(2 / chance)
    return int(nats / 3 + np.sqrt(nats**2 / 9 + 2 * nats * np.max(mean, initial=0))) + 1


def poisson(mean: Array, first: Array, count: int) -> Array:
    """P(demand = first + 0 .. count - 1) of each mean, shape (count, ...), as if no other were.

    From ratios of neighbours: log-gamma of large counts in float32 would cost most of the digits.
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

    # from the largest value of demand down, for the sums of small chances to keep their digits
    def lower(state: Any, p: Array) -> tuple[Any, None]:
        more, place, cost = state  # P(demand > value); values at which that is too much
        short = more > allowed
        # a unit above the order lacks with chance `more`; one below it is too many with 1 - more
        cost = cost + jnp.where(short, holding * jnp.maximum(1 - more, 0), shortage * more)
        return (more + p, place + short, cost), None

    zero = jnp.zeros_like(mean)
    chances = poisson(mean, first, 2 * reach + 1)
    (_, place, cost), _ = jax.lax.scan(lower, (zero, zero, zero), chances, reverse=True)
    return Order(first + place, cost)


def newsvendor_samples(samples: Any, holding: Any, shortage: Any) -> Order:
    """Of samples of demand, such as paths of a forecast or the past: exact for these samples.

    The order is the sample of rank ceil(n shortage / (holding + shortage)). With few samples the
    cost is too low: they chose the order and judge it (its optimism falls as 1 / n).

    Args:
        samples: (..., n) of demand; for a lead time, sums over the periods that it takes.
        holding: (...) or one, cost of a unit too many.
        shortage: (...) or one, cost of a unit too few.

    Raises:
        ValueError: no samples, one below 0 or not finite, a cost at or below 0.

    >>> print(newsvendor_samples([3.0, 8.0, 1.0, 5.0], holding=1, shortage=2).quantity)
    5.0
    """
    checks.not_negative(samples=samples)
    checks.positive(holding=holding, shortage=shortage)
    samples = jnp.asarray(samples, jnp.float32)
    if samples.ndim == 0 or samples.shape[-1] == 0:
        raise ValueError(f"samples: shape {samples.shape} found, (..., n) with n of 1 up wanted")
    return _samples(samples, *_costs(samples, holding, shortage))


def _costs(rows: Array, *costs: Any) -> list[Array]:
    return [jnp.broadcast_to(jnp.asarray(c, jnp.float32), rows.shape[:-1]) for c in costs]


@jax.jit
def _samples(samples: Array, holding: Array, shortage: Array) -> Order:
    count = samples.shape[-1]
    rank = jnp.ceil(count * shortage / (holding + shortage) * (1 - 1e-6))  # 10 x .9 is 9, not 9.01
    place = jnp.clip(rank.astype(jnp.int32) - 1, 0, count - 1)[..., None]
    quantity = jnp.take_along_axis(jnp.sort(samples, -1), place, -1)
    short = samples - quantity
    cost = jnp.where(short > 0, shortage[..., None] * short, -holding[..., None] * short)
    return Order(quantity[..., 0], cost.mean(-1))


def newsvendor_quantiles(levels: Any, quantiles: Any, holding: Any, shortage: Any) -> Order:
    """Of a forecast's quantiles.

    Between two levels the quantile function is a straight line. Beyond the outer ones it goes on
    as an exponential tail, whose scale the two outer quantiles give (as in Park et al. 2022,
    Learning Quantile Functions without Quantile Crossing): above the highest level t
    it is q + b log((1 - t) / (1 - u)). Demand below 0 counts as 0. Differentiable.

    Args:
        levels: (Q,), rising, within 0 to 1; two up.
        quantiles: (..., Q), none below the one before it.
        holding: (...) or one, cost of a unit too many.
        shortage: (...) or one, cost of a unit too few.

    Raises:
        ValueError: levels that do not rise within 0 to 1, quantiles of another number, that fall
            or are not finite, a cost at or below 0.

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
        raise ValueError(f"levels: {t} found, two or more wanted that rise within 0 to 1")
    checks.finite(quantiles=quantiles)
    if np.shape(quantiles)[-1:] != t.shape:
        raise ValueError(
            f"quantiles: shape {np.shape(quantiles)} found, {len(t)} in the last axis wanted, "
            "one a level"
        )
    if not checks.traced(quantiles) and (np.diff(quantiles) < 0).any():
        place = tuple(map(int, np.argwhere(np.diff(quantiles) < 0)[0]))
        raise ValueError(f"quantiles: they fall after {place}; wanted in the order of the levels")
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

    def above(u: Array, at: Array) -> Array:  # of the upper tail, which forgets where it began
        return (1 - u) * (at + upper)

    grid = jnp.broadcast_to(t[(None,) * u.ndim], q.shape)
    mean = below(t[0], q[..., 0]) + jnp.trapezoid(q, grid, axis=-1) + above(t[-1], q[..., -1])
    right = jnp.maximum(grid, jnp.clip(u, t[0], t[-1])[..., None])
    right_q = jnp.maximum(q, jnp.clip(quantity, q[..., 0], q[..., -1])[..., None])
    over = above(t[-1], q[..., -1]) + jnp.trapezoid(right_q, right, axis=-1)
    over = jnp.where(u < t[0], mean - below(u, quantity), over)
    over = jnp.where(u > t[-1], above(u, quantity), over)
    # shortage times the integral of Q above u, less holding times that below
    return Order(quantity, (holding + shortage) * over - holding * mean)


def _interpolated(u: Array, t: Array, q: Array) -> Array:
    place = jnp.clip(jnp.searchsorted(t, u), 1, len(t) - 1)
    share = jnp.clip((u - t[place - 1]) / (t[place] - t[place - 1]), 0, 1)
    left, right = (jnp.take_along_axis(q, p[..., None], -1)[..., 0] for p in (place - 1, place))
    return left + share * (right - left)


def total_quantiles(levels: Any, quantiles: Any, correlation: Any = 0.0) -> Array:
    """Quantiles of the sum over periods, such as those of a lead time, from each period's own.

    They do not add up. With m the interpolated median and d = q - m of each period, the sum's is
    sum m + sign(d) sqrt((1 - c) sum d^2 + c (sum d)^2): exact for normal demand of equal
    correlation c between periods; with c = 1 for any demand whose periods rise together.

    Args:
        levels: (Q,), rising, within 0 to 1, with .5 between the outer ones.
        quantiles: (..., periods, Q).
        correlation: between the errors of two periods, 0 to 1.

    Returns:
        (..., Q) float32.

    Raises:
        ValueError: as `newsvendor_quantiles`; no level on either side of .5; a correlation
            outside 0 to 1.

    >>> print(total_quantiles([0.1, 0.5, 0.9], [[7, 10, 14], [6, 10, 13]]))
    [15. 20. 25.]
    """
    t, q = _checked(levels, quantiles)
    if not t[0] <= 0.5 <= t[-1] or q.ndim < 2:
        raise ValueError(
            f"levels, quantiles: {np.asarray(levels)} and shape {q.shape} found; levels around .5 "
            "and (..., periods, levels) wanted"
        )
    checks.share(correlation=correlation)
    middle = _interpolated(jnp.full(q.shape[:-1], 0.5), t, q)[..., None]
    d = q - middle
    total = d.sum(-2)
    spread = jnp.sqrt((1 - correlation) * (d**2).sum(-2) + correlation * total**2)
    return middle.sum(-2) + jnp.sign(total) * spread
