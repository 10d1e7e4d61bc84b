"""Which price to ask: a bandit whose arms are prices, and which learns one demand curve for all."""

from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from jaxops.decide.bandits import (
    Array,
    Bandit,
    Linear,
    checked,
    dot,
    learn,
    noise_of,
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
    """Thompson sampling of prices by a linear demand, units = a - b price + noise, b >= 0.

    The reward of a row is its margin in money, (price - cost) units, so what was sold at one price
    tells of all others, unlike with an arm of its own for each price. a is a constant plus the
    context's linear part. Of (a, b) there are always the same 512 points, turned and stretched to
    the posterior; a price's probability is the share of the points at which its margin is the
    greatest, where demand neither rises with the price (b is taken as 0) nor falls below 0.

    Args:
        prices: (A,) the arms, rising, above cost.
        cost: of a unit.
        features: D, columns of the context; 0 where there is none.
        noise: the units' standard deviation; learned by default, see `bandits.thompson`.
        ridge: of the regression on 1, context and price / mean(prices).

    Raises:
        ValueError: prices that do not rise, or are not above the cost.

    References:
        Ferreira, Simchi-Levi and Wang 2018, Online network revenue management using Thompson
        sampling, Operations Research 66, for the idea.

    >>> bandit = demand_curve([2.0, 3.0, 4.0], cost=1.0)
    >>> arm = np.tile([0, 2], 50)  # 8 units at 2, 2 at 4: 10 - 5 at 3, which was never asked
    >>> margin = np.where(arm == 0, (2 - 1) * 8.0, (4 - 1) * 2.0)
    >>> nothing = jnp.zeros((100, 0))
    >>> state = bandit.update(bandit.init(), nothing, arm, margin)
    >>> bandit.probabilities(state, nothing[:1]).argmax().item()
    1
    """
    found = np.asarray(prices, np.float64)
    if found.ndim != 1 or len(found) < 2 or not (np.diff(found) > 0).all() or found[0] <= cost:
        raise ValueError(
            f"prices: found {found.tolist()}, wanted two or more, rising, above {cost}"
        )
    return _demand_curve(tuple(found.tolist()), float(cost), features, noise, ridge)


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
        ones, price = jnp.ones((len(arm), 1)), relative[arm][:, None]
        rows = jnp.concatenate([ones, context, -price], axis=1)
        return learn(state, rows, jnp.zeros_like(arm), reward / margin[arm], weight)

    def probabilities(state: Linear, context: Array) -> Array:
        mean, factor = (x[0] for x in posterior(state))
        level = jnp.concatenate(
            [jnp.ones((len(context), 1)), context, jnp.zeros((len(context), 1))], 1
        )
        slope = jnp.zeros_like(level).at[:, -1].set(1)
        # of the two, rows of L^-1 whose products are variances and covariance
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
        best = (margin[None, None] * jnp.maximum(units, 0)).argmax(-1)
        return jax.nn.one_hot(best, len(prices)).mean(0)

    return Bandit(lambda: start(1, features + 2, ridge), probabilities, update)


def _points() -> np.ndarray:
    """(2, DRAWS) standard normal, evenly spread: Roberts' additive sequence in two dimensions."""
    golden = 1.32471795724474602596  # x^3 = x + 1
    steps = np.arange(DRAWS)[None] * np.array([[1 / golden], [1 / golden**2]])
    return ndtri((0.5 + steps) % 1)
