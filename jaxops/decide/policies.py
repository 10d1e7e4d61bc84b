"""Ordering policies for `simulate`, and the lowest cost with perfect knowledge of demand."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxops.decide import _checks as checks
from jaxops.decide.data import Costs, checked
from jaxops.decide.inference import Observation, straight_through
from jaxops.decide.newsvendor import newsvendor_quantiles, total_quantiles

Array = jax.Array


def base_stock(level: Any, observation: Observation) -> Array:
    """Order up to `level`, () or (B,): the order is the level minus the inventory position.

    >>> seen = Observation(*map(jnp.array, ([2.0], [[3.0]], [5.0], [[]])))
    >>> print(base_stock(9.0, seen))
    [4.]
    """
    return level - observation.position


def order_up_to(params: Any, observation: Observation) -> Array:
    """Order up to the level of each period, which is the first feature; `params` are not used.

    >>> seen = Observation(*map(jnp.array, ([2.0], [[]], [2.0], [[9.0]])))
    >>> print(order_up_to(None, seen))
    [7.]
    """
    return observation.features[:, 0] - observation.position


def reorder(params: Any, observation: Observation) -> Array:
    """An (s, S) policy: at inventory position s or below, order up to S.

    `params` is (s, S), or (s, S, softness) to learn them, each () or (B,). Whether to order is a
    step function, which has no gradient. With a softness w it gets the gradient of sigmoid((s -
    position) / w), which is biased but makes it possible to learn s; the orders do not change.

    >>> seen = Observation(*map(jnp.array, ([2.0, 3.0], [[], []], [2.0, 3.0], [[], []])))
    >>> print(reorder((2.0, 9.0), seen))
    [7. 0.]
    """
    low, high, *softness = params
    gap = low - observation.position
    now = (gap >= 0).astype(jnp.float32)
    if softness:
        now = straight_through(now, jax.nn.sigmoid(gap / softness[0]))
    return now * (high - observation.position)


def quantile_rule(
    levels: Any, quantiles: Any, holding: Any, shortage: Any, correlation: Any = 0.0
) -> Array:
    """Levels to order up to, from a forecast's quantiles over lead time and review period.

    Each level is the newsvendor's quantile of demand over the lead_time + 1 periods that an order
    covers. It is optimal with back-orders if the forecast is right. With lost sales and a lead time
    it is somewhat too high.

    Args:
        levels: (Q,), the levels of the quantiles, rising in (0, 1), from at most 0.5 to at least
            0.5.
        quantiles: (..., lead_time + 1, Q), forecast before each period, for this period and the
            next ones.
        holding: () or (...), cost per period of a unit in stock.
        shortage: () or (...), cost of a unit of unmet demand.
        correlation: correlation of the errors of two periods, see `total_quantiles`.

    Returns:
        (...) float32, such as (B, T): the first feature of `order_up_to`.

    Raises:
        ValueError: see `total_quantiles` and `newsvendor_quantiles`.

    >>> print(quantile_rule([0.1, 0.5, 0.9], [[[7, 10, 14], [6, 10, 13]]], 1, 9))
    [25.]
    """
    total = total_quantiles(levels, quantiles, correlation)
    return newsvendor_quantiles(levels, total, holding, shortage).quantity


def reorder_each(softness: Any, observation: Observation) -> Array:
    """An (s, S) policy for each period: the features are S and S - s; `params` is the softness.

    >>> seen = Observation(*map(jnp.array, ([2.0, 3.0], [[], []], [2.0, 3.0], [[9.0, 7.0]] * 2)))
    >>> print(reorder_each(1.0, seen))
    [7. 0.]
    """
    up_to, gap = observation.features.T
    return reorder((up_to - gap, up_to, softness), observation)


def hindsight(
    demand: Any,
    *,
    costs: Costs,
    lead_time: int = 0,
    back_orders: bool = False,
    stock: Any = 0.0,
) -> Array:
    """The lowest possible cost over all periods if all demand were known in advance.

    The cost is exact, also with fixed costs. It is found by dynamic programming over the orders
    that serve each demand (Wagner and Whitin 1958, Dynamic Version of the Economic Lot Size Model;
    Zangwill 1966 for back-orders). The initial stock serves first. Every later demand waits, is
    lost, or is served from one order, and each order serves consecutive periods. The result is a
    lower bound for the cost of every policy in `simulate`. The time is O(B T^2).

    Args:
        demand: (B, T), at least 0.
        costs: the costs of a unit and of an order.
        lead_time: periods until an order arrives, a whole number.
        back_orders: whether unmet demand is back-ordered; else it is lost.
        stock: () or (B,), the stock at the start.

    Returns:
        float32 (B,), all costs minus the revenue.

    Raises:
        ValueError: see `simulate`.

    >>> costs = Costs(holding=1, shortage=20, fixed=5)
    >>> print(hindsight([[4.0, 3.0, 0.0, 9.0]], costs=costs))
    [13.]
    """
    demand, _, costs = checked(demand, None, costs, lead_time)
    checks.not_negative(stock=stock)
    start = jnp.broadcast_to(jnp.asarray(stock, jnp.float32), demand.shape[:1])
    return _hindsight(demand, start, costs, lead_time, back_orders)


@partial(jax.jit, static_argnums=(3, 4))
def _hindsight(
    demand: Array, stock: Array, costs: Costs, lead_time: int, back_orders: bool
) -> Array:
    count = demand.shape[1]
    holding, shortage, fixed, price = (c[:, None] for c in costs)
    left = jnp.maximum(stock[:, None] - jnp.cumsum(demand, 1), 0)
    before = jnp.concatenate([stock[:, None], left[:, :-1]], 1)
    net = demand - (before - left)
    # until[a]: total demand of the periods before a
    until = jnp.concatenate([jnp.zeros_like(stock)[:, None], jnp.cumsum(net, 1)], 1)
    place = jnp.arange(count + 1)[None]
    served = jnp.broadcast_to(jnp.where(place == 0, 0.0, jnp.inf), until.shape)
    lost = shortage + (
        0.0 if back_orders else price
    )  # cost per period of a unit of back-orders, or cost of a unit of lost demand

    # served[:, a]: lowest cost of the periods before a, if all their demand is served or lost;
    # unmet[:, a]: cost of the demand of periods a .. j - 1 that waits until j, or is lost
    def arrival(state: tuple[Array, Array], j: Array) -> tuple[tuple[Array, Array], None]:
        served, unmet = state
        best = jnp.min(served + unmet, 1, keepdims=True) + fixed
        later = jnp.maximum(place[:, :-1] - j, 0) * holding
        kept = later if back_orders else jnp.minimum(later, lost)
        stretch = jnp.cumsum(jnp.where(place[:, :-1] >= j, kept * net, 0), 1)
        new = jnp.where((place[:, 1:] > j) & (j >= lead_time), best + stretch, jnp.inf)
        served = served.at[:, 1:].min(new)
        return (served, waited(unmet, j + 1)), None

    def waited(unmet: Array, j: Array) -> Array:
        now = jnp.take_along_axis(until, jnp.broadcast_to(j, (len(until), 1)), 1)
        cost = jnp.maximum(now - until, 0) * lost
        if back_orders:
            cost = cost + jnp.where(place < j, unmet, 0)
        return jnp.where(place <= j, cost, jnp.inf)

    (served, unmet), _ = jax.lax.scan(arrival, (served, served), jnp.arange(count))
    if back_orders:  # back-orders at the end have not been paid for
        unmet = unmet + price * (until[:, -1:] - until)
    best = (served + unmet).min(1)
    return best + (holding * left).sum(1) - (price * demand).sum(1)
