"""A serial supply chain of N stages: stage 0 sells to customers, N - 1 buys from outside supply.

The outside supplier always delivers. The echelon stock of stage i is all stock at stage i, at the
stages below it and in transit between these, minus the customers' back-orders. In every period each
stage orders as much as brings its echelon stock plus the units in transit to it up to its level.
`holding` are echelon holding costs, the additional cost of a unit at a stage compared with one
stage up: a unit at stage i, or in transit from it to i - 1, costs holding[i] + ... + holding[N - 1]
per period. A unit of back-orders costs `penalty` per period.

In a period, demand arrives; orders are placed, and shipped at once if there is stock; the shipments
of lead_times[i] periods ago arrive; and costs are counted. So with D the demand of lead_times[i]
periods

    echelon stock of i = min(level of i, echelon stock of i + 1 a lead time ago) - D

(Snyder and Shen 2019, Fundamentals of Supply Chain Theory, section 6.2). This needs no loop over
periods. The cost is piecewise linear in the levels, and the mean of its gradient is the gradient of
the expected cost (Glasserman and Tayur 1995, Sensitivity Analysis for Base-Stock Levels in
Multiechelon Production- Inventory Systems).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.special import ndtr

from jaxops.decide import _checks as checks
from jaxops.decide.bandits import dot

Array = jax.Array


class SerialTrajectory(NamedTuple):
    """A simulation, without the first sum(lead_times) periods, in which the chain is filled.

    Attributes:
        echelon: float32 (B, periods, N), echelon stock of each stage at the end of the period.
        unmet: float32 (B, periods), the customers' back-orders.
        cost: float32 (B, periods), the cost of holding and back-orders.
    """

    echelon: Array
    unmet: Array
    cost: Array


class SerialOptimum(NamedTuple):
    """The best policy of a serial chain.

    Attributes:
        levels: float64 (N,), echelon base-stock levels.
        cost: the expected cost per period.
    """

    levels: np.ndarray
    cost: float


def simulate_serial(
    levels: Any, demand: Any, *, holding: Any, lead_times: Sequence[int], penalty: Any
) -> SerialTrajectory:
    """Simulate a serial chain with echelon base-stock levels; differentiable in the levels.

    Args:
        levels: (N,), stage 0 first, which is next to the customers.
        demand: (B, T), for B paths, T above sum(lead_times).
        holding: (N,), echelon holding costs, above 0.
        lead_times: N whole numbers of periods, at least 1.
        penalty: cost per period of a unit of back-orders, above 0.

    Raises:
        ValueError: other shapes; too few periods; a cost that is not above 0; a lead time that is
            not a whole number of at least 1.

    >>> chain = {"holding": [2, 1], "lead_times": [1, 2], "penalty": 9}
    >>> out = simulate_serial([10, 15], np.full((1, 6), 4.0), **chain)
    >>> print(out.echelon[0, 0], out.cost[0])
    [3. 7.] [13. 13. 13.]
    """
    h, lead_times = _checked(holding, lead_times, penalty)
    checks.finite(demand=demand, levels=levels)
    demand = jnp.asarray(demand, jnp.float32)
    start = sum(lead_times)
    if demand.ndim != 2 or demand.shape[1] <= start:
        raise ValueError(
            f"demand must have shape (paths, periods), more than {start} periods (the sum of "
            f"lead_times), got {demand.shape}"
        )
    levels = jnp.asarray(levels, jnp.float32)
    if levels.shape != h.shape:
        raise ValueError(f"levels must have shape {h.shape}, as holding, got {levels.shape}")
    return _simulate(levels, demand, jnp.asarray(h, jnp.float32), penalty, lead_times)


@partial(jax.jit, static_argnums=4)
def _simulate(
    levels: Array, demand: Array, holding: Array, penalty: Any, lead_times: tuple[int, ...]
) -> SerialTrajectory:
    stages, supply = [], jnp.full_like(demand, jnp.inf)
    for level, lead in reversed(list(zip(levels, lead_times, strict=True))):
        # columns are the ends of periods; in the first `lead` of them the chain is still filling
        demanded = sum(demand[:, i : demand.shape[1] - lead + i] for i in range(1, lead + 1))
        demand = demand[:, lead:]
        supply = jnp.minimum(level, supply[:, :-lead]) - demanded
        stages.append(supply)
    ends = demand.shape[1]
    echelon = jnp.stack([stage[:, -ends:] for stage in reversed(stages)], -1)
    unmet = jnp.maximum(-echelon[..., 0], 0)
    cost = dot("btn,n->bt", echelon, holding) + (penalty + holding.sum()) * unmet
    return SerialTrajectory(echelon, unmet, cost)


def fit_serial(
    demand: Any,
    *,
    holding: Any,
    lead_times: Sequence[int],
    penalty: Any,
    steps: int = 500,
    learning_rate: float = 0.1,
) -> Array:
    """Fit echelon base-stock levels by gradient descent on the mean cost of given demand.

    Adam, with a cosine schedule to 0, starts from the mean demand over the lead times of each stage
    and of the stages below it. No distribution is assumed. If there are many more periods than
    levels, the cost for other demand of the same kind is nearly the same.

    Args:
        demand: (B, T), for B paths, T above sum(lead_times).
        holding: (N,), echelon holding costs, above 0.
        lead_times: N whole numbers of periods, at least 1.
        penalty: cost per period of a unit of back-orders, above 0.
        steps: number of steps of Adam, each over all demand.
        learning_rate: learning rate of the first step, in standard deviations of one period's
            demand.

    Returns:
        (N,) float32 levels.

    Raises:
        ValueError: see `simulate_serial`.

    >>> demand = np.random.default_rng(0).poisson(5, (4, 500))
    >>> print(fit_serial(demand, holding=[1], lead_times=[2], penalty=9).round(0))
    [14.]
    """
    checks.finite(demand=demand)
    demand = jnp.asarray(demand, jnp.float32)
    first = jnp.asarray(np.cumsum(lead_times), jnp.float32) * demand.mean()
    # this call checks the arguments
    simulate_serial(first, demand, holding=holding, lead_times=lead_times, penalty=penalty)
    h, lead_times = _checked(holding, lead_times, penalty)
    costs = jnp.asarray(h, jnp.float32), penalty
    return _fit(first, demand, costs, learning_rate, lead_times, steps)


@partial(jax.jit, static_argnums=(4, 5))
def _fit(
    first: Array,
    demand: Array,
    costs: tuple[Array, Any],
    learning_rate: Array,
    lead_times: tuple[int, ...],
    steps: int,
) -> Array:
    scale = jnp.maximum(demand.std(), 1e-6)
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, steps))

    def cost(shifts: Array) -> Array:
        levels = first + scale * shifts
        return _simulate(levels, demand, *costs, lead_times).cost.mean() / scale

    def step(state: tuple[Array, Any], _: Any) -> tuple[tuple[Array, Any], None]:
        shifts, moments = state
        updates, moments = optimizer.update(jax.grad(cost)(shifts), moments)
        return (shifts + updates, moments), None

    zero = jnp.zeros_like(first)
    (shifts, _), _ = jax.lax.scan(step, (zero, optimizer.init(zero)), None, length=steps)
    return first + scale * shifts


def optimal_serial(
    mean: float,
    sd: float,
    *,
    holding: Any,
    lead_times: Sequence[int],
    penalty: float,
    points: int = 4000,
) -> SerialOptimum:
    """The best levels for independent normal demand, by the recursion of Clark and Scarf.

    With D_i the demand over stage i's lead time and p = penalty + sum h

        g_i(y) = E[h_i (y - D_i) + g_{i-1}(min(S_{i-1}, y - D_i))], S_i = argmin g_i,

    where g_0(y) = h_0 (y - E D_0) + p E[(D_0 - y)^+] has a closed form (Clark and Scarf 1960,
    Optimal Policies for a Multi-Echelon Inventory Problem; Chen and Zheng 1994). Expectations are
    trapezoid sums in float64, on a grid beyond whose ends each g is linear.

    Args:
        mean: mean of a period's demand.
        sd: standard deviation of a period's demand, above 0.
        holding: (N,), echelon holding costs, stage 0 first, which is next to the customers.
        lead_times: N whole numbers of periods, at least 1.
        penalty: cost per period of a unit of back-orders, above 0.
        points: number of grid points on each side of the mean.

    Raises:
        ValueError: see `simulate_serial`.

    >>> best = optimal_serial(10, 2, holding=[4, 3, 1], lead_times=[1, 1, 2], penalty=40)
    >>> print(best.levels.round(2), round(best.cost, 4))
    [12.77 23.53 46.31] 86.0156
    """
    h, lead_times = _checked(holding, lead_times, penalty)
    checks.not_negative(mean=mean)
    checks.positive(sd=sd)
    # for stage i, y is x plus the mean demand over its lead time and those of the stages below
    reach = 10 * sd * np.sqrt(sum(lead_times))
    x = np.linspace(-reach, reach, 2 * points + 1)
    step = x[1] - x[0]
    levels: list[float] = []
    g, below = np.zeros(0), 0.0
    for i, (rate, lead) in enumerate(zip(h, lead_times, strict=True)):
        spread = sd * np.sqrt(lead)
        if i == 0:
            z = x / spread
            density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
            g = rate * x + (penalty + h.sum()) * spread * (density - z * ndtr(-z))
        else:
            held = np.interp(np.minimum(x, levels[-1] - below), x, g) + rate * (x + below)
            side = int(8 * spread / step) + 1
            weights = np.exp(-((np.arange(-side, side + 1) * step / spread) ** 2) / 2)
            # beyond its ends g is a straight line, which odd reflection continues
            wide = np.pad(held, side, mode="reflect", reflect_type="odd")
            g = np.convolve(wide, weights / weights.sum(), "valid")
        below += lead * mean
        levels.append(below + _lowest(x, g))
    return SerialOptimum(np.array(levels), float(g.min()))


def _lowest(x: np.ndarray, g: np.ndarray) -> float:
    """The minimum of the parabola through the lowest point and its neighbours."""
    i = int(np.clip(np.argmin(g), 1, len(g) - 2))
    left, middle, right = g[i - 1 : i + 2]
    bend = left - 2 * middle + right
    return float(x[i] + (x[1] - x[0]) * (left - right) / (2 * bend if bend else 1))


def _checked(
    holding: Any, lead_times: Sequence[int], penalty: Any
) -> tuple[np.ndarray, tuple[int, ...]]:
    checks.positive(holding=holding, penalty=penalty)
    h = np.asarray(holding, np.float64)
    leads = tuple(int(lead) for lead in lead_times)
    if h.ndim != 1 or len(h) == 0 or len(leads) != len(h):
        raise ValueError(
            "holding and lead_times must have one number for each stage, got shape "
            f"{h.shape} and {len(leads)} numbers"
        )
    if min(leads) < 1 or leads != tuple(lead_times):
        raise ValueError(
            f"lead_times must be whole numbers of periods, at least 1, got {tuple(lead_times)}"
        )
    return h, leads
