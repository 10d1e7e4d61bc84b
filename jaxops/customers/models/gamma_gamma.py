"""Gamma-Gamma: what a customer spends at a purchase, apart from how often that happens.

A purchase is of amount Gamma(p, ν), and ν ~ Gamma(q, v) differs by customer. The mean m of x
purchases has the density

    Γ(p x + q) / (Γ(p x) Γ(q)) v^q m^(p x - 1) x^(p x) / (v + x m)^(p x + q)
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.customers.models.numeric import log_rising
from jaxops.task import recorded

Array = jax.Array


@recorded
@dataclass(frozen=True)
class GammaGamma:
    """The Gamma-Gamma model of the mean amount of a customer's purchases.

    It takes amounts to be independent of how often a customer buys; `Model.about` of a fit has the
    correlation of both.

    References:
        Fader, Hardie and Lee 2005, RFM and CLV, Journal of Marketing Research 42; Fader and Hardie
        2013, The Gamma-Gamma model of monetary value.

    >>> params = {"p": 6.25, "q": 3.74, "v": 15.45}
    >>> GammaGamma().mean(params, np.array([0.0, 10.0]), np.array([0.0, 50.0])).round(2).tolist()
    [35.24, 49.38]
    """

    names: ClassVar[tuple[str, ...]] = ("p", "q", "v")
    scaled: ClassVar[tuple[str, ...]] = ("v",)

    def parts(self, x: np.ndarray, mean: np.ndarray) -> Any:
        """See `BGNBD.parts`.

        Args:
            x: (N,) purchases, at least 1.
            mean: (N,) their mean amount, above 0.
        """
        numbers, counts = np.unique(x, return_counts=True)
        return [(_by_count, (numbers,), counts), (_by_customer, (x, mean), np.ones(len(x)))]

    def mean(self, params: dict[str, float], x: np.ndarray, mean: np.ndarray) -> np.ndarray:
        """The expected amount of a purchase, p (v + x m) / (p x + q - 1), (N,) float64.

        Args:
            params: the fitted parameters by name; q is above 1, else a new customer has no mean.
            x: (N,) purchases with an amount.
            mean: (N,) their mean amount.
        """
        p, q, v = (params[name] for name in self.names)
        return p * (v + x * mean) / (p * x + q - 1)


def _by_count(params: Array, x: Array) -> Array:
    p, q, _ = params
    # log Γ(p x + q) - log Γ(p x) - log Γ(q)
    rising = log_rising(jnp.stack([p * x, jnp.ones_like(x)]), q)
    return rising[0] - rising[1] + jnp.log(q)


def _by_customer(params: Array, x: Array, mean: Array) -> Array:
    p, q, v = params
    total = x * mean
    return -p * x * jnp.log1p(v / total) - q * jnp.log1p(total / v) - jnp.log(mean)
