"""What to learn for decisions: ordering policies, by the cost of the orders."""

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


@recorded
def ordering(network: Any, lead_time: int = 0, back_orders: bool = False) -> Task:
    """End to end: a network from features to levels, trained on the money that its orders cost.

    The loss of an item is the mean cost of a period that `simulate` finds for `order_up_to` with
    levels scale * network(features); its gradient goes through all periods. Fit it with `jo.fit`;
    `predict` gives the levels (B, T). Where an order has a fixed cost one should not order every
    period: `LevelNetwork(reorder=True)` learns S and S - s, (B, T, 2), for `reorder_each`. Whether
    it orders has the gradient of sigmoid((s - position) / w), with w a quarter of `scale`. Such
    gradients are wild: clip them (`optax.clip_by_global_norm(0.1)`) and let the rate fall. Tried
    with a constant rate of .02 and no clipping, two seeds of three ended in hardly ever ordering,
    at 7 and 12 times the cost of the best (s, S); clipped all of five came within 4.3 % of it.

    Columns: demand (T,), features (T, F) known at the start of each period, `scale` (the item's
    usual demand in L + 1 periods, say: levels are in units of it), stock at the start, and
    holding, shortage, fixed and price, as `Costs.columns` gives them.

    Args:
        network: a Flax module, features (B, T, F) -> (B, T) or (B, T, 2); such as `LevelNetwork()`.
        lead_time: periods, as in `simulate`.
        back_orders: as in `simulate`.

    >>> ordering(LevelNetwork(), lead_time=1).columns[0].name
    'demand'
    """
    checks.whole(lead_time=lead_time)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        return network.init(key, batch["features"])["params"], {}

    def levels(params: Params, batch: Batch) -> Array:
        found = network.apply({"params": params}, batch["features"])
        return found * batch["scale"].reshape(-1, *[1] * (found.ndim - 1))

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
    """(B, T), with the gradients to learn `levels` (B, T), or (B, T, 2), by."""
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
    # of a step in whether one orders, not in how much: as `reorder` passes it on
    left = batch["demand"] if back_orders else played.sales
    change = jnp.cumsum(played.orders - left, 1) - played.orders + left
    position = batch["stock"][:, None] + change
    up_to, gap = levels[..., 0], levels[..., 1]
    soft = jax.nn.sigmoid((up_to - gap - position) / softness[:, None])
    now = straight_through((played.orders > 0).astype(jnp.float32), soft)
    return played.cost - played.fixed + batch["fixed"][:, None] * now
