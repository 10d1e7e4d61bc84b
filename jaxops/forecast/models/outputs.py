"""Outputs of a module for each step: a point or quantiles; see also `distributions`."""

import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.task import recorded

Array = jax.Array
LOSSES = ("mse", "mae", "huber")


class Output(ABC):
    """Base class of outputs; parameters are (..., P) with P = `size`, targets (...).

    Attributes:
        scale_only: whether the output can be scaled but not shifted, because 0 has a meaning.
    """

    scale_only: ClassVar[bool] = False

    @property
    @abstractmethod
    def size(self) -> int:
        """P, the number of parameters that a module computes for each step and channel."""

    @abstractmethod
    def parameters(self, raw: Array) -> Array:
        """Turn any numbers (..., P) into valid parameters, such as a positive scale."""

    @abstractmethod
    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """The parameters of `loc + scale * y`, from the parameters of y.

        Args:
            parameters: (..., P).
            loc: an array that broadcasts with (...), the shape of the parameters without their last
                axis, and has as many axes; `None` is 0.
            scale: a positive array of the same form; `None` is 1.

        Raises:
            ValueError: loc is given for an output that is `scale_only`.
        """

    @abstractmethod
    def loss(self, parameters: Array, target: Array) -> Array:
        """The loss to minimise, (...). For a distribution it is the negative log likelihood."""

    @abstractmethod
    def mean(self, parameters: Array) -> Array:
        """The expected value (...)."""

    @abstractmethod
    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """The quantile of each level, (..., Q)."""

    @abstractmethod
    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""


@recorded
@dataclass(frozen=True)
class Point(Output):
    """A point forecast. It has no quantiles; `calibrated` puts conformal ones around it.

    Attributes:
        error: the loss, "mse", "mae", or "huber", which is quadratic up to an error of 1.

    >>> Point("huber").loss(jnp.array([[3.0]]), jnp.array([0.0])).tolist()
    [2.5]
    """

    error: str = "mse"

    def __post_init__(self) -> None:
        if self.error not in LOSSES:
            raise ValueError(f"error must be one of {LOSSES}, got {self.error!r}")

    @property
    def size(self) -> int:
        """1."""
        return 1

    def parameters(self, raw: Array) -> Array:
        """The number itself."""
        return raw

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        return shifted(parameters, loc, scale)

    def loss(self, parameters: Array, target: Array) -> Array:
        """The squared, absolute or Huber loss, (...)."""
        size = abs(parameters[..., 0] - target)
        if self.error == "mae":
            return size
        if self.error == "mse":
            return size**2
        return jnp.where(size <= 1, 0.5 * size**2, size - 0.5)

    def mean(self, parameters: Array) -> Array:
        """The number."""
        return parameters[..., 0]

    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """Raise `ValueError`."""
        raise ValueError(
            "output must be Quantiles or a distribution, got Point, which has no quantiles"
        )

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Raise `ValueError`."""
        raise ValueError("output must be a distribution, got Point, which cannot be sampled")


@recorded
@dataclass(frozen=True)
class Quantiles(Output):
    """Quantiles that cannot cross: the middle one, and the differences up and down from it.

    The differences are the softplus of the module's numbers, so they are never negative.

    Attributes:
        levels: levels of the quantiles, rising numbers between 0 and 1.

    References:
        Wen et al. 2017, arXiv:1711.11053, for the direct forecast of quantiles.

    >>> output = Quantiles((0.1, 0.5, 0.9))
    >>> quantiles = output.parameters(jnp.array([-100.0, 3.0, -100.0]))
    >>> quantiles.tolist()
    [3.0, 3.0, 3.0]
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        levels = tuple(self.levels)
        ends = (0.0, *levels, 1.0)
        if not levels or any(b <= a for a, b in itertools.pairwise(ends)):
            raise ValueError(f"levels must be rising numbers between 0 and 1, got {levels}")
        object.__setattr__(self, "levels", levels)  # jit needs a hashable value; a list is not

    @property
    def size(self) -> int:
        """The number of levels."""
        return len(self.levels)

    def parameters(self, raw: Array) -> Array:
        """Quantiles that do not fall from one level to the next."""
        middle, steps = self.size // 2, jax.nn.softplus(raw)
        quantiles = [raw[..., middle]]
        for i in range(
            middle + 1, self.size
        ):  # a cumsum may add in another order, and then quantiles can cross
            quantiles.append(quantiles[-1] + steps[..., i])
        for i in reversed(range(middle)):
            quantiles.insert(0, quantiles[0] - steps[..., i])
        return jnp.stack(quantiles, -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        return shifted(parameters, loc, scale)

    def loss(self, parameters: Array, target: Array) -> Array:
        """The pinball loss, the sum over levels l of max(l e, (l - 1) e), e = target - quantile."""
        error, level = target[..., None] - parameters, self._along(parameters)
        return jnp.maximum(level * error, (level - 1) * error).sum(-1)

    def mean(self, parameters: Array) -> Array:
        """The mean of a distribution that is linear between these quantiles and has no tails."""
        ends = np.array([-self.levels[0], *self.levels, 2 - self.levels[-1]])
        weights = (ends[2:] - ends[:-2]) / 2
        return (parameters * self._along(parameters, weights)).sum(-1)

    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """Quantiles of other levels, interpolated linearly between the trained quantiles.

        Raises:
            ValueError: a level is below the first trained level or above the last.
        """
        trained, other = np.array(self.levels), np.array(levels, float)
        if len(other) and (other.min() < trained[0] or other.max() > trained[-1]):
            raise ValueError(
                f"levels must be from {trained[0]} to {trained[-1]}, got {tuple(levels)}"
            )
        above = np.clip(np.searchsorted(trained, other), min(1, self.size - 1), None)
        below = np.maximum(above - 1, 0)
        gap = np.where(above > below, trained[above] - trained[below], 1)
        share = (other - trained[below]) / gap
        low, high = parameters[..., below], parameters[..., above]
        between = low + self._along(low, share) * (high - low)
        # trained levels are taken exactly, since the formula may round
        return jnp.where(self._along(low, share) == 1, high, between)

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...) from the distribution that `mean` describes."""
        u = jax.random.uniform(key, (n, *parameters.shape[:-1]))
        levels, every = jnp.asarray(self.levels), parameters[None]
        draws = jnp.broadcast_to(every[..., 0], u.shape)
        for i in range(1, self.size):
            share = jnp.clip((u - levels[i - 1]) / (levels[i] - levels[i - 1]), 0, 1)
            draws += share * (every[..., i] - every[..., i - 1])
        return draws

    def _along(self, parameters: Array, numbers: Any = None) -> Array:
        """The levels, or other numbers, as an array with as many axes as the parameters.

        They lie along the last axis.
        """
        numbers = self.levels if numbers is None else numbers
        return jnp.asarray(numbers, jnp.float32).reshape(*[1] * (parameters.ndim - 1), -1)


def shifted(x: Array, loc: Array | None, scale: Array | None) -> Array:
    """loc + scale * x for x (..., P)."""
    x = x if scale is None else x * scale[..., None]
    return x if loc is None else x + loc[..., None]
