"""Pricing: a bandit whose arms are prices, and that learns one demand curve for all prices."""

from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from jaxops.decide import _checks as checks
from jaxops.decide.bandits import (
    Array,
    Bandit,
    Linear,
    checked,
    dot,
    learn,
    noise_of,
    offers,
    posterior,
    start,
)

DRAWS = 512


def demand_curve(
    prices: Sequence[float],
    cost: float,
    features: int = 0,
    noise: float | None = None,
    ridge: float = 0.01,
) -> Bandit:
    """Thompson sampling of prices with linear demand: units = a - b price + noise, b >= 0.

    The reward of a row is its margin in money, (price - cost) units. All prices share one demand
    curve, so sales at one price give information about all others. a is a constant plus a linear
    function of the context. The posterior of (a, b) is represented by 512 fixed points, which are
    scaled and rotated to it. The probability of a price is the share of points at which its margin
    is the largest. If b is below 0 at a point, it is replaced by 0, and so is demand below 0.

    Args:
        prices: (A,), the arms, at least two, rising, above cost.
        cost: cost of a unit.
        features: D, number of columns of the context; 0 for none.
        noise: standard deviation of the units; learned by default, see `thompson`.
        ridge: penalty of the regression on 1, context and price / mean(prices).

    Raises:
        ValueError: prices that do not rise, or are not above the cost.

    References:
        Ferreira, Simchi-Levi and Wang 2018, Online network revenue management using Thompson
        sampling, Operations Research 66.

    >>> bandit = demand_curve([2.0, 3.0, 4.0], cost=1.0)
    >>> arm = np.tile([0, 2], 50)  # 8 units at 2, 2 at 4: 10 - 5 at 3, a price never set
    >>> margin = np.where(arm == 0, (2 - 1) * 8.0, (4 - 1) * 2.0)
    >>> nothing = jnp.zeros((100, 0))
    >>> state = bandit.update(bandit.init(), nothing, arm, margin)
    >>> bandit.probabilities(state, nothing[:1]).argmax().item()
    1
    """
    checks.finite(prices=prices, cost=cost)
    checks.positive(ridge=ridge, **({} if noise is None else {"noise": noise}))
    arms = np.asarray(prices, np.float64)
    if arms.ndim != 1 or len(arms) < 2 or not (np.diff(arms) > 0).all() or arms[0] <= cost:
        raise ValueError(
            f"prices must be two or more, rising, above {cost} (the cost), got {arms.tolist()}"
        )
    return _demand_curve(tuple(arms.tolist()), float(cost), features, noise, ridge)


@lru_cache(maxsize=64)
def _demand_curve(
    prices: tuple[float, ...], cost: float, features: int, noise: float | None, ridge: float
) -> Bandit:
    relative = jnp.asarray(np.array(prices) / np.mean(prices), jnp.float32)
    margin = jnp.asarray(np.array(prices) - cost, jnp.float32)

    def update(
        state: Linear, context: Array, arm: Array, reward: Array, mask: Array | None = None
    ) -> Linear:
        context, arm, reward, weight = checked(len(prices), features, context, arm, reward, mask)
        rows, units = regression(context, arm, reward)
        return learn(state, rows, jnp.zeros_like(arm), units, weight)

    @jax.jit
    def regression(context: Array, arm: Array, reward: Array) -> tuple[Array, Array]:
        ones, price = jnp.ones((len(arm), 1)), relative[arm][:, None]
        return jnp.concatenate([ones, context, -price], axis=1), reward / margin[arm]

    @jax.jit
    def probabilities(state: Linear, context: Array, allowed: Array | None = None) -> Array:
        mean, factor = (x[0] for x in posterior(state))
        level = jnp.concatenate(
            [jnp.ones((len(context), 1)), context, jnp.zeros((len(context), 1))], 1
        )
        slope = jnp.zeros_like(level).at[:, -1].set(1)
        # the rows of L^-1 for slope and level; their products are the variances and the covariance
        half = [
            jax.scipy.linalg.solve_triangular(factor, x.T, lower=True).T for x in (slope, level)
        ]
        sd = noise_of(state, noise)
        sd_b = jnp.sqrt((half[0] ** 2).sum(1))
        along = (half[0] * half[1]).sum(1) / sd_b
        across = jnp.sqrt(jnp.maximum((half[1] ** 2).sum(1) - along**2, 0))
        z = jnp.asarray(_points(), jnp.float32)[:, :, None]
        b = mean[-1] + sd * sd_b[None] * z[0]  # (DRAWS, B)
        a = dot("bd,d->b", level, mean)[None] + sd * (along[None] * z[0] + across[None] * z[1])
        units = a[..., None] - jnp.maximum(b, 0)[..., None] * relative[None, None]
        some = offers(allowed, len(context), len(prices))[None]
        best = jnp.where(some, margin[None, None] * jnp.maximum(units, 0), -1).argmax(-1)
        return jax.nn.one_hot(best, len(prices)).mean(0)

    return Bandit(lambda: start(1, features + 2, ridge), probabilities, update)


def _points() -> np.ndarray:
    """Evenly spread standard normal points, (2, DRAWS): Roberts' additive sequence."""
    golden = 1.32471795724474602596  # x^3 = x + 1
    steps = np.arange(DRAWS)[None] * np.array([[1 / golden], [1 / golden**2]])
    return ndtri((0.5 + steps) % 1)
