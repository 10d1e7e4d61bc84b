"""Simulation of an ordering policy for many items in one program, differentiable in its parameters.

In each period, for every item:

1. the order of `lead_time` periods ago arrives;
2. the policy sees the stock and the orders on the way, and orders; without a lead time the order
   arrives at once;
3. demand arrives: it is met as far as there is stock, and the rest is lost or back-ordered;
4. a unit in stock at the end costs `holding`, a unit of lost demand or of back-orders costs
   `shortage`, and an order of any size costs `fixed`; a unit sold earns `price`.

The stock is piecewise linear in the orders, so its gradient is exact almost everywhere, and the
mean of the gradient over random demand is that of the expected cost (infinitesimal perturbation
analysis: Glasserman and Tayur 1995). The fixed cost is a step function of the order: its value is
exact, and its gradient is that of `fixed (1 - exp(-order / softness))`, which pulls small orders to
0 and has almost no effect on large ones.
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
    """What a policy knows about B items when it orders.

    Attributes:
        stock: float32 (B,), the stock after the arrival; back-orders are negative stock.
        pipeline: float32 (B, lead_time - 1), the orders on the way, the next arrival first.
        position: float32 (B,), the stock and all orders on the way.
        features: float32 (B, F), the features of this period, as given to `simulate`.
    """

    stock: Array
    pipeline: Array
    position: Array
    features: Array


Policy = Callable[[Any, Observation], Array]
"""`(params, observation) -> (B,)` units to order; negative orders count as 0."""


class Trajectory(NamedTuple):
    """A simulation, each field float32 (B, T).

    Attributes:
        stock: the stock at the end of the period; back-orders are negative stock.
        orders: the order placed in the period.
        sales: units delivered in the period, also for back-orders.
        unmet: demand lost in the period; or with back-orders, the back-orders at its end.
        holding: cost of the stock.
        shortage: cost of unmet demand.
        fixed: fixed cost of the order.
        revenue: revenue of the sales.
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
        """All costs minus the revenue, (B, T)."""
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
    pipeline: Any = None,
    softness: Any = 1.0,
) -> Trajectory:
    """Simulate an ordering policy for B items over T periods of demand.

    May be called inside `jax.jit` and `jax.grad`; gradients go through all periods. It compiles
    once for each policy function: pass the same function again, not a new lambda.

    Args:
        policy: see `Policy`; such as `decide.base_stock`.
        params: parameters of the policy, with respect to which gradients can be taken.
        demand: (B, T), at least 0.
        features: (B, T, F), known to the policy at the start of each period; None for none.
        costs: the costs of a unit and of an order.
        lead_time: periods until an order arrives, a whole number: an order of period t serves
            demand from period t + lead_time on.
        back_orders: whether unmet demand is back-ordered; else it is lost.
        stock: () or (B,), the stock at the start; with `back_orders` it may be below 0, for
            customers who are waiting.
        pipeline: (B, lead_time), the orders on the way at the start, the next arrival first; None
            if there are none.
        softness: () or (B,), in units: the fixed cost acts on the gradient of orders up to about
            this size.

    Returns:
        A `Trajectory`.

    Raises:
        ValueError: demand of another shape, below 0 or not finite; features of another B or T, or
            not finite; a holding or shortage cost that is not above 0; a fixed cost or price below
            0; costs of another shape; a lead time that is not a whole number of at least 0; an
            initial stock below 0 without `back_orders`; a pipeline of another shape, or below 0; a
            softness that is not above 0; a policy that does not return (B,).

    >>> from jaxops.decide import base_stock
    >>> demand = [[3.0, 6.0, 2.0]]
    >>> known = simulate(base_stock, 5.0, demand, costs=Costs(holding=1, shortage=4), stock=5)
    >>> print(known.stock, known.orders, known.cost.sum())
    [[2. 0. 3.]] [[0. 3. 5.]] 9.0
    """
    demand, features, costs = checked(demand, features, costs, lead_time)
    (checks.finite if back_orders else checks.not_negative)(stock=stock)
    checks.positive(softness=softness)
    shape = len(demand), lead_time
    if pipeline is None:
        pipeline = jnp.zeros(shape)
    checks.not_negative(pipeline=pipeline)
    pipeline = jnp.asarray(pipeline, jnp.float32)
    if pipeline.shape != shape:
        raise ValueError(
            f"pipeline must have shape {shape}, the items and the lead time, got {pipeline.shape}"
        )
    at_first = jnp.broadcast_to(jnp.asarray(stock, jnp.float32), demand.shape[:1])
    start = at_first, pipeline
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
    start: tuple[Array, Array],
    lead_time: int,
    back_orders: bool,
    softness: Array,
) -> Trajectory:
    def period(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, Trajectory]:
        stock, pipeline = state
        needed, seen = now
        waited = jnp.maximum(-stock, 0)
        if lead_time:
            stock, pipeline = stock + pipeline[:, 0], pipeline[:, 1:]
        position = stock + pipeline.sum(1)
        order = jnp.asarray(policy(params, Observation(stock, pipeline, position, seen)))
        if order.shape != stock.shape:
            raise ValueError(
                f"policy must return shape {stock.shape}, an order for each item, got {order.shape}"
            )
        order = jnp.maximum(order, 0)
        if lead_time:
            pipeline = jnp.concatenate([pipeline, order[:, None]], 1)
        else:
            stock = stock + order
        unmet = jnp.maximum(needed - stock, 0)
        sales = waited + needed - unmet
        end = stock - needed if back_orders else jnp.maximum(stock - needed, 0)
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
    _, out = jax.lax.scan(period, start, periods)
    return jax.tree.map(jnp.transpose, out)


def ordered(order: Array, softness: Any) -> Array:
    """1 where there is an order, else 0, with the gradient of 1 - exp(-order / softness)."""
    soft = 1 - jnp.exp(-order / softness)
    return straight_through((order > 0).astype(jnp.float32), soft)


def straight_through(exact: Array, soft: Array) -> Array:
    """The value of `exact` with the gradient of `soft`."""
    return soft + jax.lax.stop_gradient(exact - soft)
