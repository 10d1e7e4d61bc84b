"""What comes in: the costs of a unit and of an order, and demand and features as checked arrays."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.decide import _checks as checks

Array = jax.Array


class Costs(NamedTuple):
    """In money; one number for all items, or (B,) one an item.

    Attributes:
        holding: of a unit in stock at the end of a period, above 0.
        shortage: of a unit of demand that is lost; or that waits, each period. Above 0.
        fixed: of an order.
        price: that a unit sold earns.
    """

    holding: Any
    shortage: Any
    fixed: Any = 0.0
    price: Any = 0.0

    def columns(self, count: int) -> dict[str, np.ndarray]:
        """float32 (count,) each, by name: columns of a data set of items."""
        return {
            name: np.broadcast_to(np.asarray(value, np.float32), (count,))
            for name, value in self._asdict().items()
        }


def checked(demand: Any, features: Any, costs: Costs, lead_time: int) -> tuple[Array, Array, Costs]:
    """Demand (B, T), features (B, T, F) and costs (B,) as float32 arrays, or ValueError."""
    if np.ndim(demand) != 2:
        raise ValueError(f"demand: shape {np.shape(demand)} found, (items, periods) wanted")
    checks.not_negative(demand=demand)
    checks.whole(lead_time=lead_time)
    checks.positive(holding=costs.holding, shortage=costs.shortage)
    checks.not_negative(fixed=costs.fixed, price=costs.price)
    demand = jnp.asarray(demand, jnp.float32)
    if features is None:
        features = jnp.zeros((*demand.shape, 0))
    if np.ndim(features) != 3 or np.shape(features)[:2] != demand.shape:
        raise ValueError(
            f"features: shape {np.shape(features)} found, {(*demand.shape, 'F')} wanted as of "
            "the demand"
        )
    for name, value in costs._asdict().items():
        if np.shape(value) not in ((), demand.shape[:1]):
            raise ValueError(
                f"{name}: shape {np.shape(value)} found, one number or ({len(demand)},) wanted"
            )
    checks.finite(features=features)
    rows = [jnp.broadcast_to(jnp.asarray(c, jnp.float32), demand.shape[:1]) for c in costs]
    return demand, jnp.asarray(features), Costs(*rows)
