"""BG/BB: purchases at discrete opportunities, such as a gift in a year, until a customer leaves.

While alive customers buy at an opportunity with probability p ~ Beta(α, β); before each they leave
with probability θ ~ Beta(γ, δ). With x purchases at n opportunities, the last at t_x:

    L = A(n) B(γ, δ + n) / B(γ, δ) + sum_i A(t_x + i) B(γ + 1, δ + t_x + i) / B(γ, δ)

with A(m) = B(α + x, β + m - x) / B(α, β) and the sum over i from 0 to n - t_x - 1.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betaln, gammaln

from jaxops.customers.models.numeric import distinct, in_blocks, log_rising, tally
from jaxops.task import recorded

Array = jax.Array


@recorded
@dataclass(frozen=True)
class BGBB:
    """The BG/BB model of how often a customer buys at discrete opportunities.

    An opportunity is a unit of time after the first purchase: fit it with `period` and `unit`
    alike, such as `customers.fit(log, BGBB(), period="month", unit="month", ...)`.

    References:
        Fader, Hardie and Shang 2010, Customer-base analysis in a discrete-time noncontractual
        setting, Marketing Science 29.

    >>> params = {"alpha": 1.204, "beta": 0.750, "gamma": 0.657, "delta": 2.783}
    >>> alive, _, bought = BGBB().outlook(params, *np.array([[6.0], [6.0], [6.0]]), 5.0)
    >>> print(f"{alive[0]:.2f} {bought[0]:.2f}")
    1.00 3.75
    """

    names: ClassVar[tuple[str, ...]] = ("alpha", "beta", "gamma", "delta")
    scaled: ClassVar[tuple[str, ...]] = ()

    def parts(self, x: np.ndarray, recency: np.ndarray, T: np.ndarray) -> Any:
        """See `BGNBD.parts`.

        Raises:
            ValueError: times that are not whole numbers, or more purchases than opportunities.
        """
        for name, value in (("recency", recency), ("T", T)):
            bad = np.asarray(value != np.round(value))
            if bad.any():
                raise ValueError(
                    f"{name} must be whole numbers of opportunities for BGBB, got "
                    f"{value[bad.argmax()]:g} in row {bad.argmax()} (counted from 0); read the log "
                    "with period and unit alike"
                )
        many = x > recency
        if many.any():
            raise ValueError(
                "frequency must be at most recency for BGBB, got "
                f"{x[many.argmax()]:g} in row {many.argmax()} (counted from 0)"
            )
        rows, weights = tally(x, recency, T)
        return [(_by_row(_longest(recency, T)), rows, weights)]

    def outlook(
        self,
        params: dict[str, float],
        x: np.ndarray,
        recency: np.ndarray,
        T: np.ndarray,
        horizon: float,
        discount: float = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(alive after T opportunities), P(buys again) and expected purchases in the horizon.

        An alive customer has p ~ Beta(α + x, β + T - x) and is alive at the i-th opportunity after
        T with probability (δ + T)_i / (γ + δ + T)_i.

        Args:
            params: the fitted parameters by name.
            x: (N,) frequency.
            recency: (N,).
            T: (N,) opportunities.
            horizon: opportunities ahead, a whole number.
            discount: the continuous rate per opportunity by which a purchase counts less.

        Returns:
            (N,) float32 each.

        Raises:
            ValueError: a horizon that is not a whole number.
        """
        if discount:
            horizon = min(horizon, np.ceil(25 / discount))
        _whole("horizon", horizon)
        shared = {**params, "horizon": np.int32(horizon), "discount": discount}
        function = _expected(_longest(recency, T))
        rows, kind = distinct(x, recency, T)
        columns = x[rows], recency[rows], T[rows]
        alive, again, bought = (part[kind] for part in in_blocks(function, shared, *columns))
        return alive, again, bought

    def population(self, params: dict[str, float], times: np.ndarray) -> np.ndarray:
        """The expected purchases of a new customer at the first opportunities, (M,) float64.

        Raises:
            ValueError: times that are not whole numbers.
        """
        _whole("times", times)
        alpha, beta, gamma, delta = (params[name] for name in self.names)
        i = np.arange(int(np.max(times)))
        alive = np.cumprod((delta + i) / (gamma + delta + i))
        bought = np.concatenate([[0], np.cumsum(alive)]) * alpha / (alpha + beta)
        return bought[np.asarray(times, int)]

    def probability(self, params: dict[str, float], n: np.ndarray, time: float) -> np.ndarray:
        """P(a new customer buys at n of the first opportunities), (M,) float64.

        Raises:
            ValueError: a time that is not a whole number.
        """
        _whole("time", time)
        alpha, beta, gamma, delta = (params[name] for name in self.names)
        n, m = np.asarray(n, np.float64)[:, None], np.arange(int(time) + 1.0)
        ways = gammaln(m + 1) - gammaln(n + 1) - gammaln(np.maximum(m - n, 0) + 1)
        bought = betaln(alpha + n, beta + np.maximum(m - n, 0)) - betaln(alpha, beta)
        left = betaln(gamma + 1, delta + m) - betaln(gamma, delta)
        left[-1] = betaln(gamma, delta + time) - betaln(gamma, delta)
        return np.asarray(np.where(m >= n, np.exp(ways + bought + left), 0).sum(1))


def _whole(name: str, value: Any) -> None:
    bad = np.asarray(value)[value != np.round(value)]
    if bad.size:
        raise ValueError(f"{name} must be a whole number for BGBB, got {bad.flat[0]}")


def _longest(recency: np.ndarray, T: np.ndarray) -> int:
    """The most terms of the sum, rounded up so that few programs are compiled."""
    return max(8, -8 * int(-np.max(T - recency) // 8))


@functools.cache
def _by_row(longest: int) -> Any:
    def function(params: Array, x: Array, recency: Array, n: Array) -> Array:
        stayed, left = _terms(params, x, recency, n, longest)
        return jnp.logaddexp(stayed, left)

    return function


def _terms(params: Array, x: Array, recency: Array, n: Array, longest: int) -> tuple[Array, Array]:
    """log of the likelihoods of having stayed, and of having left; -1e9 for none."""
    alpha, beta, gamma, delta = params
    bought = log_rising(alpha, x)
    m = jnp.concatenate([recency[:, None] + jnp.arange(longest)[None], n[:, None]], 1)
    # in one call, which compiles faster; a customer who left has gone through one opportunity more
    gone = jnp.append(jnp.ones(longest), 0)[None]
    of = jnp.stack([beta, alpha + beta, delta, gamma + delta])[:, None, None]
    rising = log_rising(of, jnp.stack([m - x[:, None], m, m, m + gone]))
    terms = rising[0] - rising[1] + rising[2] - rising[3] + bought[:, None]
    left = jnp.where(m[:, :-1] < n[:, None], terms[:, :-1], -1e9)
    return terms[:, -1], jnp.log(gamma) + jax.nn.logsumexp(left, axis=1)


@functools.cache
def _expected(longest: int) -> Any:
    def function(shared: dict[str, Array], x: Array, recency: Array, T: Array) -> Any:
        alpha, beta, gamma, delta = params = jnp.stack([shared[name] for name in BGBB.names])
        stayed, left = _terms(params, x, recency, T, longest)
        alive = jax.nn.sigmoid(stayed - left)

        def add(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            share, first, again, total = carry  # first: E[p (1 - p)^i]
            share = share * (delta + T + i) / (gamma + delta + T + i)
            total += share * jnp.exp(-shared["discount"] * (i + 1.0))
            again += share * first
            return share, first * (beta + T - x + i) / (alpha + beta + T + i + 1), again, total

        p, none = (alpha + x) / (alpha + beta + T), jnp.zeros_like(T)
        start = jnp.ones_like(T), p, none, none
        _, _, again, total = jax.lax.fori_loop(0, shared["horizon"], add, start)
        return alive, alive * again, alive * total * p

    return function
