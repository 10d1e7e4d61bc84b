"""BG/NBD and MBG/NBD: Poisson purchases, and a chance to leave at each of them.

While alive customers buy at the rate λ ~ Gamma(r, α). After each purchase they leave with
probability p ~ Beta(a, b). With x purchases after the first, the last at t_x, and the age T:

    L = Γ(r + x) α^r / Γ(r) B(a, b + k) / B(a, b) {(α + T)^-(r+x) + D}
    D = a / (b + k - 1) (α + t_x)^-(r+x), or 0 where k = 0

Here k, the number of chances to leave, is x for BG/NBD; for MBG/NBD, where customers may leave
after the first purchase too, it is x + 1.
"""

import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import betainc, betaln, gammaln

from jaxops.customers.models.numeric import (
    NODES,
    beta_nodes,
    counts_above,
    distinct,
    in_blocks,
    in_pieces,
    legendre,
    tally,
)
from jaxops.task import recorded

Array = jax.Array
COUNTS = 2048  # frequencies that an exported program takes
Parts = list[tuple[Any, tuple[np.ndarray, ...], np.ndarray]]


@recorded
@dataclass(frozen=True)
class BGNBD:
    """The BG/NBD model of how often a customer buys, and whether that goes on.

    A customer who bought once only is alive for certain; see `MBGNBD` where that is wrong.

    References:
        Fader, Hardie and Lee 2005, Counting your customers the easy way, Marketing Science 24.

    >>> params = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}
    >>> alive, _, bought = BGNBD().outlook(params, *np.array([[2.0], [30.43], [38.86]]), 39.0)
    >>> print(f"{alive[0]:.3f} {bought[0]:.3f}")
    0.727 1.226
    """

    names: ClassVar[tuple[str, ...]] = ("r", "alpha", "a", "b")
    scaled: ClassVar[tuple[str, ...]] = ("alpha",)
    """The parameters in the unit of the data, here of time."""
    early: ClassVar[int] = 0
    """1 where a customer may leave after the first purchase."""

    def parts(self, x: np.ndarray, recency: np.ndarray, T: np.ndarray) -> Parts:
        """Functions of the parameters (4,) whose weighted sums over rows are the log-likelihood.

        Args:
            x: (N,) frequency.
            recency: (N,).
            T: (N,) age.

        Returns:
            (function, columns, weights) each; `function(params, *columns)` gives (B,).
        """
        number, above = counts_above(x + self.early)
        rows, weights = tally(x, recency, T)
        return [
            (_by_count(self.early), (number,), above),
            (_by_customer(self.early), rows, weights),
        ]

    def outlook(
        self,
        params: dict[str, float],
        x: np.ndarray,
        recency: np.ndarray,
        T: np.ndarray,
        horizon: float | np.ndarray,
        discount: float | np.ndarray = 0.0,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """P(alive), P(buys again) and the expected number of purchases within the horizon.

        An alive customer has λ ~ Gamma(r + x, α + T) and p ~ Beta(a, b + k). Within t there is a
        purchase with probability 1 - (1 + t / (α + T))^-(r+x), and their expected number is
        E[(1 - (1 + p t / (α + T))^-(r+x)) / p]. This mean over p is the formula with
        (1 - F) / (a - 1), F a hypergeometric function, without its cancellation: within 3e-6 of its
        value by mpmath in 60 digits, for a from 0.07 to 30, b from 0.3 to 40, up to 800 purchases
        and horizons of 0.05 to 2,000. For each x it is a curve of log(t / (α + T)): see
        `in_pieces`.

        Args:
            params: the fitted parameters by name.
            x: (N,) frequency.
            recency: (N,).
            T: (N,) age.
            horizon: length of the time after T, one number or (N,).
            discount: the continuous rate per unit of time by which a purchase counts less, one
                number or (N,).

        Returns:
            (N,) float32 each.
        """
        r, alpha, a, b = (params[name] for name in self.names)
        place = x.astype(np.int32)
        # rounded up, so that few programs are compiled
        k = np.arange(2.0 ** int(place.max()).bit_length()) + self.early
        horizon, discount = np.broadcast_to(horizon, x.shape), np.broadcast_to(discount, x.shape)
        discounted = bool((discount > 0).any())
        ratio = (np.minimum(horizon, 25 / discount) if discounted else horizon) / (alpha + T)
        p, weight = beta_nodes(a, b + k, 1e-7 / (1 + ((r + x + 1) * ratio).max()))
        shared: dict[str, Any] = {"params": np.array([r, alpha, a, b]), "early": self.early}
        if discounted:
            alive, again = in_blocks(_alive_and_again, shared, x, recency, T, horizon)
            rows, kind = distinct(x, T, horizon, discount)
            columns = (column[rows] for column in (place, T, horizon, discount))
            (bought,) = in_blocks(_discounted, shared | {"p": p, "weight": weight}, *columns)
            return alive, again, alive * bought[kind]

        def expected(x: np.ndarray, log_ratio: np.ndarray) -> np.ndarray:
            """Of customers who are alive."""
            bought = -np.expm1(-(r + x)[:, None] * np.log1p(p[x] * np.exp(log_ratio)[:, None]))
            return np.asarray((bought / p[x] * weight[x]).sum(1))

        curve, piece, z = in_pieces(expected, place, np.log(ratio))
        shared["curve"] = curve
        alive, again, bought = in_blocks(_outlook, shared, x, recency, T, horizon, piece, z)
        return alive, again, bought

    def exported(self, params: dict[str, float]) -> tuple[Any, dict[str, Any], int]:
        """What `outlook` tells without a discount, as a function of JAX, for `jaxops.export`.

        The mean over p is a sum for each customer: nodes and weights are laid out for each
        frequency.

        Args:
            params: the fitted parameters by name.

        Returns:
            A function of arrays and of x, recency, T and horizon, (B,) each; these arrays; and the
            number of frequencies that it takes, from 0 on.
        """
        _, _, a, b = values = [params[name] for name in self.names]
        k = np.arange(COUNTS) + self.early
        # for horizons of up to 10,000 times alpha + T; beyond that exactness is lost slowly
        p, weight = beta_nodes(a, b + k, 1e-7 / (1 + (values[0] + COUNTS) * 1e4), 2 * NODES)
        shared = {"params": np.array(values), "p": p, "weight": weight}
        return functools.partial(_expected, self.early), shared, COUNTS

    def population(self, params: dict[str, float], times: np.ndarray) -> np.ndarray:
        """The expected purchases of a new customer within times after the first, (M,) float64."""
        r, alpha, a, b = (params[name] for name in self.names)
        t = np.asarray(times, np.float64)[:, None]
        p, weight = beta_nodes(a, np.array([b + self.early]), 1e-12)
        bought = (-np.expm1(-r * np.log1p(p * t / alpha)) / p * weight).sum(1)
        return bought * (b / (a + b) if self.early else 1)

    def probability(self, params: dict[str, float], n: np.ndarray, time: float) -> np.ndarray:
        """P(a new customer buys n times within a time after the first), (M,) float64."""
        r, alpha, a, b = (params[name] for name in self.names)
        n = np.asarray(n, np.float64)
        z, k = time / (alpha + time), n + self.early
        count = gammaln(r + n) - gammaln(r) - gammaln(n + 1) + r * np.log1p(-z) + n * np.log(z)
        stayed = np.exp(betaln(a, b + k) - betaln(a, b) + count)
        least = np.where(n > 0, betainc(np.maximum(n, 1), r, z), 1)  # P(at least n chances)
        left = np.exp(betaln(a + 1, b + np.maximum(k, 1) - 1) - betaln(a, b)) * least
        return stayed + np.where(k > 0, left, 0)


@recorded
@dataclass(frozen=True)
class MBGNBD(BGNBD):
    """The modified BG/NBD model: a customer may leave after the first purchase too.

    References:
        Batislam, Denizel and Filiztekin 2007; Wagner and Hoppe 2008, International Journal of
        Research in Marketing 24 and 25.

    >>> params = {"r": 0.525, "alpha": 6.183, "a": 0.891, "b": 1.614}
    >>> alive, *_ = MBGNBD().outlook(params, *np.array([[0.0], [0.0], [38.86]]), 39.0)
    >>> bool(alive[0] < 0.5)
    True
    """

    early: ClassVar[int] = 1


@functools.cache
def _by_count(early: int) -> Any:
    """The terms of log Γ(r + x) / Γ(r) and log B(a, b + k) / B(a, b); see `counts_above`."""

    def function(params: Array, number: Array) -> Array:
        r, _, a, b = params
        of_rate = jnp.log(r + jnp.maximum(number - early, 0))
        return jnp.where(number >= early, of_rate, 0) - jnp.log1p(a / (b + number))

    return function


@functools.cache
def _by_customer(early: int) -> Any:
    def function(params: Array, x: Array, recency: Array, T: Array) -> Array:
        r, alpha, _, _ = params
        stayed = -r * jnp.log1p(T / alpha) - x * jnp.log(alpha + T)
        return stayed + jax.nn.softplus(_log_odds(params, early, x, recency, T))

    return function


def _log_odds(params: Array, early: Any, x: Array, recency: Array, T: Array) -> Array:
    """log of P(left) / P(alive) given the history; -1e9 without a chance to leave."""
    r, alpha, a, b = params
    k = x + early
    odds = jnp.log(a) - jnp.log(b + jnp.maximum(k, 1) - 1)
    odds += (r + x) * jnp.log1p((T - recency) / (alpha + recency))
    return jnp.where(k > 0, odds, -1e9)


def _alive_and_again(
    shared: dict[str, Array], x: Array, recency: Array, T: Array, horizon: Array
) -> tuple[Array, Array]:
    """P(alive), and P(alive and buys again)."""
    r, alpha, _, _ = shared["params"]
    alive = jax.nn.sigmoid(-_log_odds(shared["params"], shared["early"], x, recency, T))
    return alive, -alive * jnp.expm1(-(r + x) * jnp.log1p(horizon / (alpha + T)))


def _outlook(
    shared: dict[str, Array],
    x: Array,
    recency: Array,
    T: Array,
    horizon: Array,
    piece: Array,
    z: Array,
) -> tuple[Array, Array, Array]:
    """P(alive), P(alive and buys again), and expected purchases by `in_pieces`."""
    alive, again = _alive_and_again(shared, x, recency, T, horizon)
    bought = functools.reduce(lambda total, one: total * z + one, shared["curve"][piece].T)
    return alive, again, alive * bought


def _expected(
    early: int, shared: dict[str, Any], x: Array, recency: Array, T: Array, horizon: Array
) -> tuple[Array, Array, Array]:
    """P(alive), P(alive and buys again), and expected purchases by the nodes of each frequency."""
    r, alpha, _, _ = shared["params"]
    alive, again = _alive_and_again(shared | {"early": early}, x, recency, T, horizon)
    p, weight = (shared[name][x.astype(jnp.int32)] for name in ("p", "weight"))
    bought = -jnp.expm1(-(r + x)[:, None] * jnp.log1p(p * (horizon / (alpha + T))[:, None]))
    return alive, again, alive * (bought / p * weight).sum(1)


def _discounted(
    shared: dict[str, Array], place: Array, T: Array, horizon: Array, discount: Array
) -> tuple[Array]:
    """The rate (r + x) / (α + T) E[(1 + p u / (α + T))^-(r+x+1)] at u, integrated with e^(-d u)."""
    r, alpha, _, _ = shared["params"]
    size, scale = r + place, alpha + T
    p, weight = shared["p"][place], shared["weight"][place]
    length = jnp.log1p(jnp.minimum(horizon, 25 / discount) / scale)

    def add(total: Array, at: Array) -> tuple[Array, None]:
        node, share = at  # in log(1 + u / scale)
        time = jnp.expm1(length * node)
        rate = jnp.exp(-(size + 1)[:, None] * jnp.log1p(p * time[:, None]))
        money = jnp.exp(-discount * scale * time)
        return total + share * length * (1 + time) * money * size * (rate * weight).sum(1), None

    rule = jnp.asarray(np.stack(legendre(32), 1), jnp.float32)
    total, _ = jax.lax.scan(add, jnp.zeros_like(scale), rule)
    return (total,)
