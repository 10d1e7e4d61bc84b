"""(s, S): when the stock and what is on the way are at s or below, order up to S.

Optimal where an order has a fixed cost, demand is discrete and independent from period to period,
and what is not met waits. A period's expected cost of a policy is (Zheng and Federgruen 1991,
Finding Optimal (s, S) Policies Is About as Simple as Evaluating a Single Policy)

    c(s, S) = (K + sum_{d < S - s} m(d) G(S - d)) / sum_{d < S - s} m(d),

with G(y) the expected cost of holding and shortage after a period begun at y, and m the renewal
density of demand: m(0) = 1 / (1 - p(0)), m(d) = sum_{0 < k <= d} p(k) m(d - k) / (1 - p(0)).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.decide import given
from jaxops.decide.newsvendor import poisson, reach

Array = jax.Array
AT_ONCE = 1 << 24  # pairs (s, S), of all the items looked at together


class Levels(NamedTuple):
    """The best policy, float32 (B,) each: reorder at or below, order up to, cost a period."""

    reorder: Array
    up_to: Array
    cost: Array


def s_s_poisson(mean: Any, holding: Any, shortage: Any, fixed: Any, lead_time: int = 0) -> Levels:
    """The best (s, S) for Poisson demand, for B items at once; see `s_s_discrete`.

    Args:
        mean: (B,) or one, of a period's demand, above 0.
        holding: (B,) or one, of a unit in stock at the end of a period.
        shortage: (B,) or one, of a unit that waits at the end of a period.
        fixed: (B,) or one, of an order; 0 up.
        lead_time: periods until an order is there, whole.

    Raises:
        ValueError: a value that is not finite; a fixed cost below 0, or another at or below 0.

    >>> best = s_s_poisson([6.0, 20.0], holding=1, shortage=4, fixed=5)
    >>> print(best.reorder, best.up_to, best.cost[0].round(4))
    [ 4. 18.] [10. 24.] 8.0341
    """
    given.positive(mean=mean)
    means = np.atleast_1d(np.asarray(mean, np.float64))
    if means.ndim != 1:
        raise ValueError(f"mean: shape {means.shape} found, (items,) wanted")
    given.whole(lead_time=lead_time)

    def probabilities(periods: int) -> Array:
        total = jnp.asarray(means * periods, jnp.float32)
        size = int(means.max() * periods) + reach(means.max() * periods) + 1
        return poisson(total, jnp.zeros_like(total), size)

    return _best(probabilities(1), probabilities(lead_time + 1), holding, shortage, fixed)


def s_s_discrete(
    probabilities: Any, holding: Any, shortage: Any, fixed: Any, lead_time: int = 0
) -> Levels:
    """The best (s, S) for any demand in whole units, for B items at once.

    Exact: all pairs in a window of levels are compared, and the window grows until G at either
    end is above the best cost, beyond which no optimum lies. Time and memory grow with the square
    of the window, which is about S - s and twenty standard deviations of lead time demand.

    Args:
        probabilities: (B, n) of a demand of 0, 1, ... n - 1 units in one period.
        holding: (B,) or one, of a unit in stock at the end of a period.
        shortage: (B,) or one, of a unit that waits at the end of a period.
        fixed: (B,) or one, of an order; 0 up.
        lead_time: periods until an order is there, whole.

    Raises:
        ValueError: probabilities that are below 0, do not sum to 1, or say that there is never any
            demand; a fixed cost below 0, or another at or below 0; shapes that do not fit.

    >>> best = s_s_discrete([[0.5, 0.0, 0.3, 0.2]], holding=1, shortage=9, fixed=8)
    >>> print(best.reorder, best.up_to)
    [1.] [5.]
    """
    given.not_negative(probabilities=probabilities)
    given.whole(lead_time=lead_time)
    p = np.asarray(probabilities, np.float64)
    if p.ndim != 2 or not np.allclose(p.sum(1), 1, atol=1e-4):
        raise ValueError(
            f"probabilities: shape {p.shape} found; (items, units) wanted, each row a sum of 1"
        )
    if (p[:, 0] > 1 - 1e-6).any():
        row = int(np.argmax(p[:, 0]))
        raise ValueError(f"probabilities: item {row} has no demand, some wanted")
    p = p / p.sum(1, keepdims=True)
    total = p
    for _ in range(lead_time):
        total = np.stack([np.convolve(a, b) for a, b in zip(total, p, strict=True)])
    return _best(
        jnp.asarray(p, jnp.float32), jnp.asarray(total, jnp.float32), holding, shortage, fixed
    )


def _best(p: Array, total: Array, holding: Any, shortage: Any, fixed: Any) -> Levels:
    given.positive(holding=holding, shortage=shortage)
    given.not_negative(fixed=fixed)
    for name, value in {"holding": holding, "shortage": shortage, "fixed": fixed}.items():
        if np.shape(value) not in ((), (len(p),)):
            raise ValueError(f"{name}: shape {np.shape(value)} found, one or ({len(p)},) wanted")
    h, b, k = (
        np.broadcast_to(np.asarray(c, np.float32), len(p)) for c in (holding, shortage, fixed)
    )
    units = np.arange(p.shape[1])
    mean = np.asarray(p) @ units
    # about S - s of the economic order quantity with shortages, and some spread
    width = int(np.max(np.sqrt(2 * k * mean * (h + b) / (h * b)) + 2 * np.sqrt(mean)) + 8)
    while True:
        batch = max(1, AT_ONCE // (2 * width) ** 2)
        levels, enough = _search(p, total, h, b, k, width, min(batch, len(p)))
        if enough.all():
            return levels
        width *= 2


@partial(jax.jit, static_argnums=(5, 6))
def _search(
    p: Array, total: Array, holding: Array, shortage: Array, fixed: Array, width: int, batch: int
) -> tuple[Levels, Array]:
    """The best of a window of `width` levels on either side of the newsvendor's order."""
    count = 2 * width

    def item(row: tuple[Array, ...]) -> tuple[Levels, Array]:
        p, total, holding, shortage, fixed = row
        cdf = jnp.cumsum(total)
        best = jnp.argmax(cdf >= shortage / (holding + shortage))
        y = best - width + jnp.arange(count)
        g = _expected(y, total, cdf, holding, shortage)
        m = _renewal(p, count)
        # row: S; column: d = 0 ..; the policy that stops after column d has s = S - d - 1
        d = jnp.arange(count)
        place = d[:, None] - d[None]
        sums = fixed + jnp.cumsum(m[None] * g[place], 1)
        cost = jnp.where(place >= 0, sums / jnp.cumsum(m)[None], jnp.inf)
        up_to, column = jnp.unravel_index(jnp.argmin(cost), cost.shape)
        least = cost[up_to, column]
        low, high = (x.astype(jnp.float32) for x in (y[up_to] - column - 1, y[up_to]))
        return Levels(low, high, least), (g[0] > least) & (g[-1] > least)

    return jax.lax.map(item, (p, total, holding, shortage, fixed), batch_size=batch)


def _expected(y: Array, total: Array, cdf: Array, holding: Array, shortage: Array) -> Array:
    """G at the whole levels y, which rise by 1: G(y + 1) - G(y) = (holding + shortage) F(y) - b."""
    short = jnp.arange(len(total)) - y[0]
    first = (total * jnp.where(short > 0, shortage * short, -holding * short)).sum()
    inside = cdf[jnp.clip(y, 0, len(cdf) - 1)]
    f = jnp.where(y < 0, 0, jnp.where(y >= len(cdf), 1, inside))
    steps = (holding + shortage) * f - shortage
    return first + jnp.concatenate([jnp.zeros(1), jnp.cumsum(steps[:-1])])


def _renewal(p: Array, count: int) -> Array:
    """m(0), ..., m(count - 1)."""
    p = jnp.zeros(count).at[: len(p)].set(p[:count])
    some = 1 - p[0]

    def step(last: Array, _: Any) -> tuple[Array, Array]:  # last: m(d - 1), m(d - 2), ...
        new = (p[1:] * last).sum() / some
        return jnp.concatenate([new[None], last[:-1]]), new

    first = jnp.zeros(count - 1).at[0].set(1 / some)
    _, rest = jax.lax.scan(step, first, None, length=count - 1)
    return jnp.concatenate([first[:1], rest])
