"""Distributions as outputs of a module: Gaussian, Student's t, counts, and zero-inflated ones."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy import special, stats

from jaxops.forecast.models.outputs import Output, shifted
from jaxops.task import recorded

Array = jax.Array
LEAST = 1e-4  # the least scale, in the normalised units of the module


class Distribution(Output):
    """Base class of distributions.

    Attributes:
        discrete: whether its values are whole numbers.
    """

    discrete: ClassVar[bool] = False

    @abstractmethod
    def log_prob(self, parameters: Array, x: Array) -> Array:
        """The log density, or log probability, at x (...)."""

    @abstractmethod
    def cdf(self, parameters: Array, x: Array) -> Array:
        """The probability of x or less; x and parameters (..., P) broadcast."""

    @abstractmethod
    def inverse(self, parameters: Array, u: Array) -> Array:
        """The smallest x whose `cdf` is at least u; u and parameters (..., P) broadcast."""

    def loss(self, parameters: Array, target: Array) -> Array:
        """The negative log likelihood, (...)."""
        return -self.log_prob(parameters, target)

    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """The quantile of each level, (..., Q).

        Raises:
            ValueError: a level is not between 0 and 1.
        """
        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"levels must be numbers between 0 and 1, got {tuple(levels)}")
        shape = (*parameters.shape[:-1], len(levels))
        u = jnp.broadcast_to(jnp.array(levels).reshape(*[1] * (len(shape) - 1), -1), shape)
        return self.inverse(parameters[..., None, :], u)


@recorded
@dataclass(frozen=True)
class Gaussian(Distribution):
    """A normal distribution. Parameters: mean, and standard deviation by softplus.

    >>> Gaussian().quantiles(jnp.array([3.0, 2.0]), (0.5,)).tolist()
    [3.0]
    """

    @property
    def size(self) -> int:
        """2."""
        return 2

    def parameters(self, raw: Array) -> Array:
        """Mean, standard deviation."""
        return jnp.stack([raw[..., 0], jax.nn.softplus(raw[..., 1]) + LEAST], -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        mean = shifted(parameters[..., :1], loc, scale)
        return jnp.concatenate([mean, shifted(parameters[..., 1:], None, scale)], -1)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        return stats.norm.logpdf(x, parameters[..., 0], parameters[..., 1])

    def cdf(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        return special.ndtr((x - parameters[..., 0]) / parameters[..., 1])

    def inverse(self, parameters: Array, u: Array) -> Array:
        """See `Distribution`."""
        return parameters[..., 0] + parameters[..., 1] * special.ndtri(u)

    def mean(self, parameters: Array) -> Array:
        """The mean."""
        return parameters[..., 0]

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""
        every = parameters[None]
        return every[..., 0] + every[..., 1] * jax.random.normal(key, (n, *every.shape[1:-1]))


@recorded
@dataclass(frozen=True)
class StudentT(Distribution):
    """Student's t. Parameters: location, scale, and degrees of freedom above 2 (finite variance).

    >>> StudentT().mean(jnp.array([3.0, 2.0, 5.0])).item()
    3.0
    """

    @property
    def size(self) -> int:
        """3."""
        return 3

    def parameters(self, raw: Array) -> Array:
        """Location, scale, degrees of freedom."""
        positive = jax.nn.softplus(raw[..., 1:])
        return jnp.stack([raw[..., 0], positive[..., 0] + LEAST, 2 + positive[..., 1]], -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        location = shifted(parameters[..., :1], loc, scale)
        wide = shifted(parameters[..., 1:2], None, scale)
        return jnp.concatenate([location, wide, parameters[..., 2:]], -1)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        loc, scale, df = jnp.moveaxis(parameters, -1, 0)
        z = (x - loc) / scale
        return (
            -special.betaln(df / 2, jnp.full_like(df, 0.5))
            - jnp.log(df) / 2
            - jnp.log(scale)
            - (df + 1) / 2 * jnp.log1p(z**2 / df)
        )

    def cdf(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        loc, scale, df = jnp.moveaxis(parameters, -1, 0)
        z = (x - loc) / scale
        return 0.5 + jnp.sign(z) * _between(df, abs(z)) / 2

    def inverse(self, parameters: Array, u: Array) -> Array:
        """See `Distribution`; by bisection."""
        loc, scale, df = jnp.moveaxis(parameters, -1, 0)
        between = abs(2 * u - 1)

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends  # bounds of z / (1 + z)
            middle = (low + high) / 2
            enough = _between(df, middle / (1 - middle)) >= between
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        low, _ = jax.lax.fori_loop(0, 24, halve, (jnp.zeros_like(u), jnp.ones_like(u)))
        return loc + scale * jnp.sign(u - 0.5) * low / (1 - low)

    def mean(self, parameters: Array) -> Array:
        """The location."""
        return parameters[..., 0]

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""
        loc, scale, df = jnp.moveaxis(parameters[None], -1, 0)
        return loc + scale * jax.random.t(key, df, (n, *df.shape[1:]))


def _between(df: Array, z: Array) -> Array:
    """The probability that Student's t is between -z and z."""
    df, z = jnp.broadcast_arrays(df, z)
    return special.betainc(jnp.full_like(df, 0.5), df / 2, z**2 / (df + z**2))


@recorded
@dataclass(frozen=True)
class NegativeBinomial(Distribution):
    """Counts. Parameters: mean m and dispersion a; the variance is m + a m^2.

    Salinas et al. 2020, arXiv:1704.04110. Scaling multiplies m and does not change a. The
    dispersion is at least 0.001. Its limit 0 is a Poisson distribution.

    >>> NegativeBinomial().quantiles(jnp.array([3.0, 0.5]), (0.1, 0.5, 0.9)).tolist()
    [0.0, 2.0, 7.0]
    """

    scale_only: ClassVar[bool] = True
    discrete: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """2."""
        return 2

    def parameters(self, raw: Array) -> Array:
        """Mean, dispersion."""
        positive = jax.nn.softplus(raw)
        return jnp.stack([positive[..., 0] + LEAST, positive[..., 1] + 1e-3], -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        _refuse(self, loc)
        mean = shifted(parameters[..., :1], None, scale)
        return jnp.concatenate([mean, parameters[..., 1:]], -1)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`; a density where x is not a whole number."""
        mean, a = parameters[..., 0], parameters[..., 1]
        more = jnp.log1p(a * mean)
        # this form avoids a difference of large log-gammas
        ways = -special.betaln(1 / a, x + 1) - jnp.log(1 / a + x)
        return ways - more / a + x * (jnp.log(a * mean) - more)

    def cdf(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        mean, a = parameters[..., 0], parameters[..., 1]
        mean, a, x = jnp.broadcast_arrays(mean, a, x)
        known = special.betainc(1 / a, jnp.maximum(jnp.floor(x), 0) + 1, 1 / (1 + a * mean))
        return jnp.where(x < 0, 0, known)

    def inverse(self, parameters: Array, u: Array) -> Array:
        """See `Distribution`; by bisection, up to the bound of Cantelli's inequality."""
        mean, a = parameters[..., 0], parameters[..., 1]
        most = mean + jnp.sqrt((mean + a * mean**2) * u / (1 - u))

        def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends  # low is too low, high is high enough
            middle = jnp.floor((low + high) / 2)
            enough = self.cdf(parameters, middle) >= u
            return jnp.where(enough, low, middle), jnp.where(enough, middle, high)

        ends = -jnp.ones_like(u), jnp.ceil(most) + 1
        return jax.lax.fori_loop(0, 26, halve, ends)[1]

    def mean(self, parameters: Array) -> Array:
        """The mean."""
        return parameters[..., 0]

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...) from Poisson distributions whose means are gamma distributed."""
        mean, a = jnp.moveaxis(parameters[None], -1, 0)
        rate, count = jax.random.split(key)
        rates = mean * a * jax.random.gamma(rate, 1 / a, (n, *mean.shape[1:]))
        return jax.random.poisson(count, rates).astype(parameters.dtype)


@recorded(formerly={"of": "base"})
@dataclass(frozen=True)
class ZeroInflated(Distribution):
    """Zero with an additional probability, else a draw from `base`: for intermittent demand.

    Parameters: the additional probability of a zero, then the parameters of `base`. Lambert 1992,
    Technometrics 34.

    Attributes:
        base: the distribution of the other values.

    >>> ZeroInflated(Gaussian()).quantiles(jnp.array([0.5, 8.0, 1.0]), (0.4, 0.75)).tolist()
    [0.0, 8.0]
    """

    base: Distribution = NegativeBinomial()

    scale_only: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """One more than the size of `base`."""
        return 1 + self.base.size

    def parameters(self, raw: Array) -> Array:
        """The additional probability of a zero, then the parameters of `base`."""
        zero = jnp.clip(jax.nn.sigmoid(raw[..., :1]), 1e-6, 1 - 1e-6)
        return jnp.concatenate([zero, self.base.parameters(raw[..., 1:])], -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        _refuse(self, loc)
        rest = self.base.scaled(parameters[..., 1:], None, scale)
        return jnp.concatenate([parameters[..., :1], rest], -1)

    def log_prob(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`: the log probability of a zero at 0, a log density elsewhere."""
        zero = parameters[..., 0]
        other = jnp.log1p(-zero) + self.base.log_prob(parameters[..., 1:], x)
        at_zero = jnp.log(zero)
        if self.base.discrete:
            at_zero = jnp.logaddexp(at_zero, other)
        return jnp.where(x == 0, at_zero, other)

    def cdf(self, parameters: Array, x: Array) -> Array:
        """See `Distribution`."""
        zero = parameters[..., 0]
        return jnp.where(x < 0, 0, zero) + (1 - zero) * self.base.cdf(parameters[..., 1:], x)

    def inverse(self, parameters: Array, u: Array) -> Array:
        """See `Distribution`. It is the inverse of `base` with a step at zero."""
        zero, rest = parameters[..., 0], parameters[..., 1:]
        below = jnp.zeros_like(u)
        if not self.base.discrete:
            below = (1 - zero) * self.base.cdf(rest, jnp.zeros_like(u))
        level = jnp.where(u <= below, u, u - zero) / (1 - zero)
        other = self.base.inverse(rest, jnp.clip(level, 1e-6, 1 - 1e-6))
        return jnp.where((u > below) & (u <= below + zero), 0, other)

    def mean(self, parameters: Array) -> Array:
        """The mean of `base`, times the probability of a draw from it."""
        return (1 - parameters[..., 0]) * self.base.mean(parameters[..., 1:])

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""
        which, other = jax.random.split(key)
        draws = self.base.sample(parameters[..., 1:], other, n)
        return jnp.where(
            jax.random.uniform(which, draws.shape) < parameters[None, ..., 0], 0, draws
        )


def _refuse(output: Output, loc: Array | None) -> None:
    if loc is not None:
        raise ValueError(
            f"loc must be None for {output}, which can be scaled but not shifted, got an array"
        )
