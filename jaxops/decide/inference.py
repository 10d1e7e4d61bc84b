"""Stock over time, for many items in one program, differentiable in whatever the policy is made of.

What happens in period t, for every item:

1. what was ordered `lead_time` periods ago arrives;
2. the policy sees the stock and what is on the way, and orders (at once there if there is no
   lead time);
3. demand comes: what is there is sold, and what is not is lost, or waits (back-orders);
4. the stock at the end costs `holding` a unit, what was lost `shortage` a unit, or what waits
   `shortage` a unit and period; an order costs `fixed`, however large; what is sold earns `price`.

The stock is piecewise linear in the orders, so its gradient is exact almost everywhere, and its
mean over random demand is the gradient of the expected cost (infinitesimal perturbation analysis:
Glasserman and Tayur 1995). The fixed cost is a step: its value here is exact, while its gradient is
that of `fixed (1 - exp(-order / softness))`; gradients thus pull small orders to 0, and leave large
ones alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxops.decide import _checks as checks
from jaxops.decide.data import Costs, checked

Array = jax.Array


class Observation(NamedTuple):
    """What a policy sees of B items when it orders.

    Attributes:
        stock: (B,) after the arrival; below 0 is what waits.
        pipeline: (B, lead_time - 1) on the way, what comes next first.
        position: (B,) stock and all that is on the way.
        features: (B, F) of this period, as given to `simulate`.
    """

    stock: Array
    pipeline: Array
    position: Array
    features: Array


Policy = Callable[[Any, Observation], Array]
"""`(params, observation) -> (B,)` units to order; what is below 0 counts as 0."""


class Trajectory(NamedTuple):
    """What happened, each float32 (B, T).

    Attributes:
        stock: at the end of the period; below 0 is what waits.
        orders: placed in the period.
        sales: handed over in the period, also to those who waited.
        unmet: demand that is lost in the period; or that waits at its end.
        holding, shortage, fixed: their costs.
        revenue: of the sales.
    """

    stock: Array
    orders: Array
    sales: Array
    unmet: Array
    holding: Array
    shortage: Array
    fixed: Array
    revenue: Array

    @property
    def cost(self) -> Array:
        """(B, T) all costs less the revenue."""
        return self.holding + self.shortage + self.fixed - self.revenue


def simulate(
    policy: Policy,
    params: Any,
    demand: Any,
    features: Any = None,
    *,
    costs: Costs,
    lead_time: int = 0,
    back_orders: bool = False,
    stock: Any = 0.0,
    softness: Any = 1.0,
) -> Trajectory:
    """What a policy does to B items over T periods of demand.

    May be called inside `jax.jit` and `jax.grad`; a gradient goes through all periods. It compiles
    once for each policy: give the same function again, not a new lambda.

    Args:
        policy: see `Policy`; such as `decide.base_stock`.
        params: its parameters, what one takes gradients for.
        demand: (B, T), 0 or more.
        features: (B, T, F) what the policy may know at the start of each period; None is nothing.
        costs: of a unit and of an order.
        lead_time: periods until an order is there, 0 up: an order of period t serves demand from
            period t + lead_time on.
        back_orders: whether unmet demand waits; else it is lost.
        stock: (B,) or one, at the start; nothing is on the way then.
        softness: units, (B,) or one; orders of about so many feel the fixed cost in their gradient.

    Raises:
        ValueError: demand of another shape, below 0 or not finite; features of another B or T, or
            not finite; costs not above 0 (fixed, price: below 0) or of another shape; a lead time
            that is not whole; an initial stock below 0; a softness not above 0.

    >>> from jaxops.decide import base_stock
    >>> demand = [[3.0, 6.0, 2.0]]
    >>> known = simulate(base_stock, 5.0, demand, costs=Costs(holding=1, shortage=4), stock=5)
    >>> print(known.stock, known.orders, known.cost.sum())
    [[2. 0. 3.]] [[0. 3. 5.]] 9.0
    """
    demand, features, costs = checked(demand, features, costs, lead_time)
    checks.not_negative(stock=stock)
    checks.positive(softness=softness)
    start = jnp.broadcast_to(jnp.asarray(stock, jnp.float32), demand.shape[:1])
    return _simulate(
        policy, params, demand, features, costs, start, lead_time, back_orders, softness
    )


@partial(jax.jit, static_argnums=(0, 6, 7))
def _simulate(
    policy: Policy,
    params: Any,
    demand: Array,
    features: Array,
    costs: Costs,
    stock: Array,
    lead_time: int,
    back_orders: bool,
    softness: Array,
) -> Trajectory:
    state = stock, jnp.zeros((len(demand), lead_time))

    def period(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, Trajectory]:
        stock, pipeline = state
        wanted, seen = now
        waited = jnp.maximum(-stock, 0)
        if lead_time:
            stock, pipeline = stock + pipeline[:, 0], pipeline[:, 1:]
        position = stock + pipeline.sum(1)
        order = jnp.maximum(policy(params, Observation(stock, pipeline, position, seen)), 0)
        if lead_time:
            pipeline = jnp.concatenate([pipeline, order[:, None]], 1)
        else:
            stock = stock + order
        unmet = jnp.maximum(wanted - stock, 0)
        sales = waited + wanted - unmet
        end = stock - wanted if back_orders else jnp.maximum(stock - wanted, 0)
        return (end, pipeline), Trajectory(
            end,
            order,
            sales,
            unmet,
            costs.holding * jnp.maximum(end, 0),
            costs.shortage * unmet,
            costs.fixed * ordered(order, softness),
            costs.price * sales,
        )

    periods = demand.T, jnp.swapaxes(features, 0, 1)
    _, out = jax.lax.scan(period, state, periods)
    return jax.tree.map(jnp.transpose, out)


def ordered(order: Array, softness: Any) -> Array:
    """1 where there is an order, else 0; with the gradient of 1 - exp(-order / softness)."""
    soft = 1 - jnp.exp(-order / softness)
    return straight_through((order > 0).astype(jnp.float32), soft)


def straight_through(exact: Array, soft: Array) -> Array:
    """The value of the one with the gradient of the other."""
    return soft + jax.lax.stop_gradient(exact - soft)
