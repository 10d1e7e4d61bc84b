"""(s, S) policies: when the inventory position is at s or below, order up to S.

The inventory position is the stock plus the orders on the way, minus back-orders.

These policies are optimal if an order has a fixed cost, demand is discrete and independent from
period to period, and unmet demand is back-ordered. The expected cost of a period is (Zheng and
Federgruen 1991, Finding Optimal (s, S) Policies Is About as Simple as Evaluating a Single Policy)

    c(s, S) = (K + sum_{d < S - s} m(d) G(S - d)) / sum_{d < S - s} m(d),

where K is the fixed cost of an order, G(y) is the expected holding and shortage cost of a period
that begins at y, and m is the renewal density of demand: m(0) = 1 / (1 - p(0)), m(d) =
sum_{0 < k <= d} p(k) m(d - k) / (1 - p(0)).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln, xlogy

from jaxops._shapes import next_power_of_two
from jaxops.decide import _checks as checks
from jaxops.decide.newsvendor import reach

Array = jax.Array
AT_ONCE = 1 << 22  # number of levels S, over all items, that are searched in one call
WIDEST = 1 << 15  # largest number of levels S of an item; with more the search takes minutes


class Levels(NamedTuple):
    """The best (s, S) policy of B items; -1, 0 and 0 for an item without demand.

    Attributes:
        reorder: float32 (B,), s: an order is placed at this inventory position or below.
        up_to: float32 (B,), S: the inventory position after the order.
        cost: float32 (B,), the expected cost per period.
    """

    reorder: Array
    up_to: Array
    cost: Array


def s_s_poisson(mean: Any, holding: Any, shortage: Any, fixed: Any, lead_time: int = 0) -> Levels:
    """The best (s, S) for Poisson demand, for B items at once; see `s_s_discrete`.

    Args:
        mean: (B,) or one, mean of a period's demand, at least 0.
        holding: (B,) or one, cost of a unit in stock at the end of a period.
        shortage: (B,) or one, cost of a unit that waits at the end of a period.
        fixed: (B,) or one, fixed cost of an order, at least 0.
        lead_time: periods until an order arrives, a whole number.

    Raises:
        ValueError: a value that is not finite, or traced; a mean or a fixed cost below 0; another
            cost that is not above 0; an item with more levels than can be compared.

    >>> best = s_s_poisson([6.0, 20.0], holding=1, shortage=4, fixed=5)
    >>> print(best.reorder, best.up_to, best.cost[0].round(4))
    [ 4. 18.] [10. 24.] 8.0341
    """
    checks.known(mean=mean, holding=holding, shortage=shortage, fixed=fixed)
    checks.not_negative(mean=mean)
    means = np.atleast_1d(np.asarray(mean, np.float64))
    if means.ndim != 1:
        raise ValueError(f"mean must have shape (items,), got {means.shape}")
    checks.whole(lead_time=lead_time)

    def probabilities(total: np.ndarray) -> np.ndarray:
        k = np.arange(int(total.max()) + reach(total.max()) + 1)
        # in float64, because in float32 logs of thousands would give errors of percents
        logs = xlogy(k, total[:, None]) - total[:, None] - gammaln(k + 1)
        return np.exp(logs)

    one, all_periods = probabilities(means), probabilities(means * (lead_time + 1))
    return _best(one, all_periods, holding, shortage, fixed)


def s_s_discrete(
    probabilities: Any, holding: Any, shortage: Any, fixed: Any, lead_time: int = 0
) -> Levels:
    """The best (s, S) for any demand in whole units, for B items at once.

    The result is exact: all pairs in a window of levels are compared, and the window grows until G
    at both ends is above the best cost, because no optimum lies beyond. The time grows with the
    square of the window, which is a few times S - s plus a few standard deviations of the demand
    over the lead time. Costs are float32: if the costs of several pairs agree to five digits, any
    of them may be returned.

    Args:
        probabilities: (B, n), of a demand of 0, 1, ... n - 1 units in one period.
        holding: (B,) or one, cost of a unit in stock at the end of a period.
        shortage: (B,) or one, cost of a unit that waits at the end of a period.
        fixed: (B,) or one, fixed cost of an order, at least 0.
        lead_time: periods until an order arrives, a whole number.

    Raises:
        ValueError: probabilities below 0, or with another sum than 1; a fixed cost below 0; another
            cost that is not above 0; shapes that do not fit; a traced value; an item with more
            levels than can be compared.

    >>> best = s_s_discrete([[0.5, 0.0, 0.3, 0.2]], holding=1, shortage=9, fixed=8)
    >>> print(best.reorder, best.up_to)
    [1.] [5.]
    """
    checks.known(probabilities=probabilities, holding=holding, shortage=shortage, fixed=fixed)
    checks.not_negative(probabilities=probabilities)
    checks.whole(lead_time=lead_time)
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError(
            "probabilities must have shape (items, units) and a sum of 1 in each row, got shape "
            f"{p.shape} and sums {p.sum(-1).ravel()[:3].tolist()}"
        )
    p = p / p.sum(1, keepdims=True)
    total = p
    for _ in range(lead_time):
        total = np.stack([np.convolve(a, b) for a, b in zip(total, p, strict=True)])
    return _best(p, total, holding, shortage, fixed)


def _best(p: np.ndarray, total: np.ndarray, holding: Any, shortage: Any, fixed: Any) -> Levels:
    """The best levels from probabilities of demand: (B, n) of one period, (B, m) of the sum."""
    checks.positive(holding=holding, shortage=shortage)
    checks.not_negative(fixed=fixed)
    for name, value in {"holding": holding, "shortage": shortage, "fixed": fixed}.items():
        if np.shape(value) not in ((), (len(p),)):
            raise ValueError(f"{name} must have shape () or ({len(p)},), got {np.shape(value)}")
    h, b, k = (
        np.broadcast_to(np.asarray(c), len(p)).astype(np.float32)
        for c in (holding, shortage, fixed)
    )
    mean = p @ np.arange(p.shape[1])
    units = np.arange(total.shape[1])
    sd = np.sqrt(np.maximum(total @ units**2.0 - (total @ units) ** 2, 0))
    # the rise of G that equals the fixed cost, by the economic order quantity; see `_search`
    rise = np.sqrt(2 * k * mean * h * b / (h + b))
    least = np.maximum(rise / h + 3 * sd, 2 * (rise / b + 3 * sd)) + 8
    _narrow(least)
    width = 1 << np.ceil(np.log2(least)).astype(int)
    p, total = (
        np.pad(x, ((0, 0), (0, next_power_of_two(x.shape[1]) - x.shape[1]))).astype(np.float32)
        for x in (p, total)
    )
    levels = np.tile(np.array([-1, 0, 0], np.float32), (len(p), 1))
    left = np.flatnonzero(p[:, 0] < 1 - 1e-6)  # the items that have demand
    while len(left):
        failed = []
        for size in np.unique(width[left]):
            alike = left[width[left] == size]
            for rows in np.split(alike, range(AT_ONCE // size, len(alike), AT_ONCE // size)):
                # a power of two of items, so that few programs are compiled
                more = np.resize(rows, next_power_of_two(len(rows)))
                best, enough = _search(*(x[more] for x in (p, total, h, b, k)), int(size))
                levels[rows] = np.stack(best, 1)[: len(rows)]
                failed.append(rows[~np.asarray(enough)[: len(rows)]])
        left = np.concatenate(failed)
        width[left] *= 2
        _narrow(width)
    return Levels(*jnp.asarray(levels.T))


def _narrow(width: np.ndarray) -> None:
    """Raise ValueError if a window is too wide."""
    wide = np.flatnonzero(width > WIDEST)
    if len(wide):
        raise ValueError(
            f"an item must have at most {WIDEST:,} levels to compare, got "
            f"{width[wide[0]]:,.0f} for item {wide[0]} ({len(wide):,} such items); measure its "
            "demand in larger units, such as boxes, and check its shortage and holding cost"
        )


@partial(jax.jit, static_argnums=5)
def _search(
    p: Array, total: Array, holding: Array, shortage: Array, fixed: Array, above: int
) -> tuple[Levels, Array]:
    """The best pair with s + 1 at most above / 2 below the newsvendor's order, S at most `above`
    above it.

    The optimum has s < the newsvendor's order <= S, and G(s + 1) and G(S) at most its cost.
    """
    below = above // 2
    count = below + above
    cdf = jnp.cumsum(total, 1)
    order = jnp.argmax(cdf >= (shortage / (holding + shortage))[:, None], 1)
    g = _expected(order, total, cdf, holding, shortage, below, count)
    # levels below the window are never the best
    wide = jnp.concatenate([jnp.full((len(p), count), 1e30), g], 1)
    p = jnp.pad(p[:, :count], ((0, 0), (0, max(0, count - p.shape[1]))))
    turned = jnp.concatenate([p[:, :0:-1], jnp.zeros((len(p), count))], 1)
    some = 1 - p[:, 0]

    def longer(state: Any, d: Array) -> tuple[Any, None]:
        """The step from S - s = d to d + 1, for all S."""
        m, sums, mass, least, distance = state
        before = jax.lax.dynamic_slice_in_dim(turned, count - 1 - d, count, 1)  # p(d - i), 0 < i
        new = jnp.where(d == 0, 1.0, (m * before).sum(1)) / some
        m = jax.lax.dynamic_update_slice_in_dim(m, new[:, None], d, 1)
        sums += new[:, None] * jax.lax.dynamic_slice_in_dim(wide, count + below - d, above, 1)
        mass += new[:, None]
        cost = sums / mass
        return (
            m,
            sums,
            mass,
            jnp.minimum(cost, least),
            jnp.where(cost < least, d + 1, distance),
        ), None

    sums = jnp.broadcast_to(fixed[:, None], (len(p), above))
    state = (
        jnp.zeros((len(p), count)),
        sums,
        jnp.zeros((len(p), 1)),
        jnp.full_like(sums, jnp.inf),
        jnp.zeros(sums.shape, jnp.int32),
    )
    (_, _, _, costs, distances), _ = jax.lax.scan(longer, state, jnp.arange(count))
    place = jnp.argmin(costs, 1, keepdims=True)
    least, distance = (jnp.take_along_axis(x, place, 1)[:, 0] for x in (costs, distances))
    up_to = order + place[:, 0]
    levels = Levels(*(x.astype(jnp.float32) for x in (up_to - distance, up_to, least)))
    return levels, (g[:, 0] > least) & (g[:, -1] > least)


def _expected(
    order: Array, total: Array, cdf: Array, h: Array, b: Array, below: int, count: int
) -> Array:
    """G (B, count) from order - below on, by G(y + 1) - G(y) = (h + b) P(demand <= y) - b."""
    short = jnp.arange(total.shape[1])[None] - order[:, None]
    first = (total * jnp.where(short > 0, b[:, None] * short, -h[:, None] * short)).sum(1)
    y = order[:, None] + jnp.arange(-below, count - below)[None]
    last = total.shape[1] - 1
    f = jnp.take_along_axis(cdf, jnp.clip(y, 0, last), 1)
    steps = (h + b)[:, None] * jnp.where(y < 0, 0, jnp.where(y >= last, 1, f)) - b[:, None]
    rises = jnp.cumsum(steps, 1) - steps
    return first[:, None] + rises - rises[:, below : below + 1]
