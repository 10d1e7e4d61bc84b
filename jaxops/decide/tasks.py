"""A task that learns an ordering policy from the cost of its orders."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxops.decide import _checks as checks
from jaxops.decide.data import Costs
from jaxops.decide.inference import simulate, straight_through
from jaxops.decide.policies import order_up_to, reorder_each
from jaxops.task import (
    Batch,
    Column,
    Extra,
    Key,
    Out,
    Params,
    Task,
    masked_sum,
    recorded,
    row_weights,
)

Array = jax.Array


@recorded(formerly={"network": "module"})
def ordering(module: Any, lead_time: int = 0, back_orders: bool = False) -> Task:
    """Learn levels to order up to from features, end to end: the loss is the cost of the orders.

    The loss of an item is its mean cost per period in `simulate` with the policy `order_up_to` and
    the levels scale * module(features). The gradient goes through all periods. Train the task with
    `jo.fit`; `predict` returns the levels (B, T).

    If an order has a fixed cost, ordering in every period is not optimal. Use
    `LevelNetwork(reorder=True)`, which learns S and S - s, (B, T, 2), for `reorder_each`. Whether
    to order then has the gradient of sigmoid((s - position) / w), where w is a quarter of `scale`.
    These gradients have a large variance: clip them (`optax.clip_by_global_norm(0.1)`) and let the
    learning rate decay. With a constant rate of 0.02 and no clipping, two seeds of three ended with
    hardly any orders, at 7 and 12 times the cost of the best (s, S); with clipping, five seeds of
    five came within 4.3 % of it.

    The columns are `demand` (T,); `features` (T, F), known at the start of each period; `scale`,
    the unit of the levels, such as the item's mean demand over lead_time + 1 periods; `stock` at
    the start; and `holding`, `shortage`, `fixed` and `price`, which `Costs.columns` makes.

    Args:
        module: a Flax module, features (B, T, F) -> (B, T) or (B, T, 2), such as `LevelNetwork()`.
        lead_time: periods until an order arrives, a whole number.
        back_orders: whether unmet demand is back-ordered; else it is lost.

    Returns:
        A task; its predictions are levels in units, (B, T), or S and S - s, (B, T, 2).

    Raises:
        ValueError: a lead time that is not a whole number of at least 0.

    >>> from jaxops.decide import LevelNetwork
    >>> ordering(LevelNetwork(), lead_time=1).columns[0].name
    'demand'
    """
    checks.whole(lead_time=lead_time)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        return module.init(key, batch["features"])["params"], {}

    def levels(params: Params, batch: Batch) -> Array:
        outputs = module.apply({"params": params}, batch["features"])
        return outputs * batch["scale"].reshape(-1, *[1] * (outputs.ndim - 1))

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        cost = _cost(levels(params, batch), batch, lead_time, back_orders).mean(1)
        weight = row_weights(batch)
        return masked_sum(cost, weight), Out(weight.sum(), {}, extra)

    names = ("scale", "stock", "holding", "shortage", "fixed", "price")
    return Task(
        init,
        loss,
        lambda params, extra, batch: levels(params, batch),
        columns=(
            Column("demand", (None,), target=True),
            Column("features", (None, None)),
            Column("scale"),
            *(Column(name, target=True) for name in names[1:]),
        ),
    )


def _cost(levels: Array, batch: Batch, lead_time: int, back_orders: bool) -> Array:
    """The cost of each period, (B, T), differentiable in `levels`, (B, T) or (B, T, 2)."""
    softness = jnp.where(batch["scale"] > 0, batch["scale"] / 4, 1)  # padding has a scale of 0
    played = simulate(
        order_up_to if levels.ndim == 2 else reorder_each,
        softness,
        batch["demand"],
        levels.reshape(*batch["demand"].shape, -1),
        costs=Costs(*(batch[name] for name in Costs._fields)),
        lead_time=lead_time,
        back_orders=back_orders,
        stock=batch["stock"],
        softness=softness,
    )
    if levels.ndim == 2:
        return played.cost
    # as in `reorder`, the gradient of whether to order, not of how much
    left = batch["demand"] if back_orders else played.sales
    change = jnp.cumsum(played.orders - left, 1) - played.orders + left
    position = batch["stock"][:, None] + change
    up_to, gap = levels[..., 0], levels[..., 1]
    soft = jax.nn.sigmoid((up_to - gap - position) / softness[:, None])
    now = straight_through((played.orders > 0).astype(jnp.float32), soft)
    return played.cost - played.fixed + batch["fixed"][:, None] * now
