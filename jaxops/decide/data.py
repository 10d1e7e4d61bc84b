"""Inputs of a simulation: costs, demand and features, as checked arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.decide import _checks as checks

Array = jax.Array


class Costs(NamedTuple):
    """Costs in money, each one number for all items or (B,), one for each item.

    Attributes:
        holding: cost of a unit in stock at the end of a period, above 0.
        shortage: cost of a unit of lost demand; or, with back-orders, cost per period of a unit
            that waits. Above 0.
        fixed: cost of an order of any size, at least 0.
        price: revenue for a unit sold, at least 0.

    >>> Costs(holding=1, shortage=[4, 9]).columns(2)["shortage"].tolist()
    [4.0, 9.0]
    """

    holding: Any
    shortage: Any
    fixed: Any = 0.0
    price: Any = 0.0

    def columns(self, count: int) -> dict[str, np.ndarray]:
        """The costs as columns of a data set of `count` items: name -> float32 (count,)."""
        return {
            name: np.broadcast_to(np.asarray(value, np.float32), (count,))
            for name, value in self._asdict().items()
        }


def checked(demand: Any, features: Any, costs: Costs, lead_time: int) -> tuple[Array, Array, Costs]:
    """Demand (B, T), features (B, T, F) and costs (B,) as float32 arrays; raises ValueError."""
    if np.ndim(demand) != 2:
        raise ValueError(f"demand must have shape (items, periods), got {np.shape(demand)}")
    checks.not_negative(demand=demand)
    checks.whole(lead_time=lead_time)
    checks.positive(holding=costs.holding, shortage=costs.shortage)
    checks.not_negative(fixed=costs.fixed, price=costs.price)
    demand = jnp.asarray(demand, jnp.float32)
    if features is None:
        features = jnp.zeros((*demand.shape, 0))
    if np.ndim(features) != 3 or np.shape(features)[:2] != demand.shape:
        raise ValueError(
            f"features must have shape ({demand.shape[0]}, {demand.shape[1]}, F), as demand, got "
            f"{np.shape(features)}"
        )
    for name, value in costs._asdict().items():
        if np.shape(value) not in ((), demand.shape[:1]):
            raise ValueError(
                f"{name} must have shape () or ({len(demand)},), got {np.shape(value)}"
            )
    checks.finite(features=features)
    rows = [jnp.broadcast_to(jnp.asarray(c, jnp.float32), demand.shape[:1]) for c in costs]
    return demand, jnp.asarray(features), Costs(*rows)
