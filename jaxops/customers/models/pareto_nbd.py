"""Pareto/NBD: Poisson purchases until a customer leaves, at any time.

While alive customers buy at the rate λ ~ Gamma(r, α), and they leave at the rate μ ~ Gamma(s, β).
With x purchases after the first, the last at t_x, and the age T:

    L = Γ(r + x) / Γ(r) α^r β^s {(α + T)^-(r+x) (β + T)^-s + s ∫ (α + t)^-(r+x) (β + t)^-(s+1) dt}

with the integral over t from t_x to T. As a difference of two hypergeometric functions it would
lose digits; here it is a sum of positive terms. With m = min(α, β) and
t = t_x + (m + t_x)(e^w - 1), the integrand is smooth in w with no singularity nearer than π i. Once
it falls it does so at least exponentially. Gauss and Legendre's rule integrates it up to where it
has fallen by e^-25.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import gammaln

from jaxops.customers.models.numeric import (
    counts_above,
    decayed,
    distinct,
    in_blocks,
    legendre,
    tally,
)
from jaxops.task import recorded

Array = jax.Array


@recorded
@dataclass(frozen=True)
class ParetoNBD:
    """The Pareto/NBD model of how often a customer buys, and whether that goes on.

    References:
        Schmittlein, Morrison and Colombo 1987, Counting your customers, Management Science 33;
        Fader and Hardie 2005, A note on deriving the Pareto/NBD model.

    >>> params = {"r": 0.553, "alpha": 10.578, "s": 0.606, "beta": 11.669}
    >>> alive, _, bought = ParetoNBD().outlook(params, *np.array([[2.0], [30.43], [38.86]]), 39.0)
    >>> print(f"{alive[0]:.2f} {bought[0]:.2f}")
    0.87 1.46
    """

    names: ClassVar[tuple[str, ...]] = ("r", "alpha", "s", "beta")
    scaled: ClassVar[tuple[str, ...]] = ("alpha", "beta")

    def parts(self, x: np.ndarray, recency: np.ndarray, T: np.ndarray) -> Any:
        """See `BGNBD.parts`."""
        number, above = counts_above(x)
        rows, weights = tally(x, recency, T)
        return [(_by_count, (number,), above), (_by_customer, rows, weights)]

    def outlook(
        self,
        params: dict[str, float],
        x: np.ndarray,
        recency: np.ndarray,
        T: np.ndarray,
        horizon: float | np.ndarray,
        discount: float | np.ndarray = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(alive), P(buys again) and the expected purchases in the horizon; see `BGNBD.outlook`.

        An alive customer buys at the rate (r + x) / (α + T) ((β + T) / (β + T + u))^s at the time u
        after T.
        """
        horizon, discount = np.broadcast_to(horizon, x.shape), np.broadcast_to(discount, x.shape)
        function = _discounted if (discount > 0).any() else _expected
        rows, kind = distinct(x, recency, T, horizon, discount)
        columns = (column[rows] for column in (x, recency, T, horizon, discount))
        alive, again, bought = (part[kind] for part in in_blocks(function, params, *columns))
        return alive, again, bought

    def exported(self, params: dict[str, float]) -> tuple[Any, dict[str, Any], None]:
        """See `BGNBD.exported`; it takes any frequency."""

        def function(
            shared: dict[str, Array], x: Array, recency: Array, T: Array, horizon: Array
        ) -> tuple[Array, Array, Array]:
            return _expected(shared, x, recency, T, horizon, jnp.zeros_like(x))

        return function, {name: params[name] for name in self.names}, None

    def population(self, params: dict[str, float], times: np.ndarray) -> np.ndarray:
        """The expected purchases of a new customer within times after the first, (M,) float64."""
        r, alpha, s, beta = (params[name] for name in self.names)
        length = np.log1p(np.asarray(times, np.float64) / beta)
        part = length if s == 1 else -np.expm1(-(s - 1) * length) / (s - 1)
        return r / alpha * beta * part

    def probability(self, params: dict[str, float], n: np.ndarray, time: float) -> np.ndarray:
        """P(a new customer buys n times within a time after the first), (M,) float64.

        The number of purchases up to t is negative binomial; the customer leaves at t with density
        s β^s / (β + t)^(s+1), or later than the time.
        """
        r, alpha, s, beta = (params[name] for name in self.names)
        n = np.asarray(n, np.float64)[:, None]
        node, weight = legendre(200)
        least = min(alpha, beta)
        length = np.log1p(time / least)
        t = np.append(least * np.expm1(length * node), time)
        left = weight * length * (least + t[:-1]) * s / (beta + t[:-1])
        share = np.append(left, 1) * (beta / (beta + t)) ** s
        count = gammaln(r + n) - gammaln(r) - gammaln(n + 1)
        count = count - r * np.log1p(t / alpha) + n * np.log(t / (alpha + t))
        return np.asarray((np.exp(count) * share).sum(1))


def _by_count(params: Array, number: Array) -> Array:
    return jnp.log(params[0] + number)


def _by_customer(params: Array, x: Array, recency: Array, T: Array) -> Array:
    r, alpha, s, beta = params
    stayed = -r * jnp.log1p(T / alpha) - x * jnp.log(alpha + T) - s * jnp.log1p(T / beta)
    return stayed + jax.nn.softplus(_log_odds(r, alpha, s, beta, x, recency, T))


def _log_odds(
    r: Array, alpha: Array, s: Array, beta: Array, x: Array, recency: Array, T: Array
) -> Array:
    """log of P(left) / P(alive) given the history; -1e9 where the last purchase was at T."""
    some = recency < T
    span = jnp.where(some, T - recency, 1)
    least = jnp.minimum(alpha, beta)
    first = least + recency
    fall = first * ((r + x) / (alpha + recency) + (s + 1) / (beta + recency)) - 1
    end = jax.lax.stop_gradient(jnp.where(fall > 0, 25 / jnp.where(fall > 0, fall, 1), jnp.inf))
    length = jnp.minimum(jnp.log1p(span / first), end)
    node, weight = legendre(32)
    later = first[:, None] * jnp.expm1(length[:, None] * jnp.asarray(node, jnp.float32)[None])
    t = recency[:, None] + later
    rest = span[:, None] - later
    terms = (
        (r + x)[:, None] * jnp.log1p(rest / (alpha + t))
        + s * jnp.log1p(rest / (beta + t))
        + jnp.log((least + t) / (beta + t))
        + jnp.asarray(np.log(weight), jnp.float32)[None]
    )
    odds = jnp.log(s) + jnp.log(length) + jax.nn.logsumexp(terms, axis=1)
    return jnp.where(some, odds, -1e9)


def _alive_and_again(
    shared: dict[str, Array], x: Array, recency: Array, T: Array, horizon: Array
) -> tuple[Array, Array]:
    """The next purchase: density (r+x) α'^(r+x) / (α' + u)^(r+x+1) (β' / (β' + u))^s at u."""
    r, alpha, s, beta = (shared[name] for name in ParetoNBD.names)
    alive = jax.nn.sigmoid(-_log_odds(r, alpha, s, beta, x, recency, T))
    size, one, two = r + x, alpha + T, beta + T
    least = jnp.minimum(one, two)
    fall = least * ((size + 1) / one + s / two) - 1
    end = jnp.where(fall > 0, 25 / jnp.where(fall > 0, fall, 1), jnp.inf)
    far = jnp.log1p(jnp.maximum(one, two) / least) + 50 / (size + s)
    length = jnp.minimum(jnp.minimum(jnp.log1p(horizon / least), end), jnp.minimum(far, 60))
    node, weight = legendre(48)
    u = least[:, None] * jnp.expm1(length[:, None] * jnp.asarray(node, jnp.float32)[None])
    density = -(size + 1)[:, None] * jnp.log1p(u / one[:, None]) - s * jnp.log1p(u / two[:, None])
    terms = jnp.exp(density) * (least[:, None] + u) * jnp.asarray(weight, jnp.float32)[None]
    return alive, alive * jnp.minimum(size / one * length * terms.sum(1), 1)


def _expected(
    shared: dict[str, Array], x: Array, recency: Array, T: Array, horizon: Array, discount: Array
) -> tuple[Array, Array, Array]:
    scale = shared["beta"] + T
    length = jnp.log1p(horizon / scale)
    rate = (shared["r"] + x) / (shared["alpha"] + T)
    alive, again = _alive_and_again(shared, x, recency, T, horizon)
    return alive, again, alive * rate * scale * decayed(shared["s"] - 1, length)


def _discounted(
    shared: dict[str, Array], x: Array, recency: Array, T: Array, horizon: Array, discount: Array
) -> tuple[Array, Array, Array]:
    scale = shared["beta"] + T
    length = jnp.log1p(jnp.minimum(horizon, 25 / discount) / scale)
    node, weight = legendre(32)
    w = length[:, None] * jnp.asarray(node, jnp.float32)[None]  # log(1 + u / scale)
    terms = (1 - shared["s"]) * w - (discount * scale)[:, None] * jnp.expm1(w)
    integral = length * (jnp.asarray(weight, jnp.float32)[None] * jnp.exp(terms)).sum(1)
    rate = (shared["r"] + x) / (shared["alpha"] + T)
    alive, again = _alive_and_again(shared, x, recency, T, horizon)
    return alive, again, alive * rate * scale * integral
