"""What a network says of each step: a point or quantiles; `distributions` has the others."""

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
    """What the outputs share; parameters are (..., P) with P = `size`, targets (...).

    Attributes:
        scale_only: it has a place for zero, so it can be scaled but not shifted.
    """

    scale_only: ClassVar[bool] = False

    @property
    @abstractmethod
    def size(self) -> int:
        """P, how many numbers a network gives for each step."""

    @abstractmethod
    def parameters(self, raw: Array) -> Array:
        """Of any numbers (..., P) those that are allowed, such as a positive scale."""

    @abstractmethod
    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """Of `loc + scale * y`, where the parameters are of y.

        Args:
            parameters: (..., P).
            loc: as many axes as parameters without the last, of their lengths or 1; `None` is 0.
            scale: likewise, positive; `None` is 1.

        Raises:
            ValueError: a loc, where it is `scale_only`.
        """

    @abstractmethod
    def loss(self, parameters: Array, target: Array) -> Array:
        """What to minimise, (...): of a distribution the negative logarithm of its density."""

    @abstractmethod
    def mean(self, parameters: Array) -> Array:
        """The expected value (...)."""

    @abstractmethod
    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """Of each level, (..., Q)."""

    @abstractmethod
    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""


@recorded
@dataclass(frozen=True)
class Point(Output):
    """One number. It has no quantiles: conformal intervals can be put around it.

    Attributes:
        error: "mse", "mae", or "huber", quadratic up to an error of 1.

    >>> Point("huber").loss(jnp.array([[3.0]]), jnp.array([0.0])).tolist()
    [2.5]
    """

    error: str = "mse"

    def __post_init__(self) -> None:
        if self.error not in LOSSES:
            raise ValueError(f"error: {self.error!r} found, one of {LOSSES} wanted")

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
        """The squared error, the absolute one, or Huber's, (...)."""
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
        raise ValueError("output: Point has no quantiles; Quantiles or a distribution wanted")

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Raise `ValueError`."""
        raise ValueError("output: Point cannot be drawn from; a distribution wanted")


@recorded
@dataclass(frozen=True)
class Quantiles(Output):
    """Quantiles that cannot cross: the middle one, and steps up and down from it.

    Steps are softplus of what the network says, added up.

    Attributes:
        levels: of the quantiles, rising, between 0 and 1.

    References:
        Wen et al. 2017, arXiv:1711.11053, for the direct forecast of quantiles.

    >>> output = Quantiles((0.1, 0.5, 0.9))
    >>> found = output.parameters(jnp.array([-100.0, 3.0, -100.0]))
    >>> found.tolist()
    [3.0, 3.0, 3.0]
    """

    levels: tuple[float, ...] = (0.1, 0.5, 0.9)

    def __post_init__(self) -> None:
        levels = tuple(self.levels)
        ends = (0.0, *levels, 1.0)
        if not levels or any(b <= a for a, b in itertools.pairwise(ends)):
            raise ValueError(f"levels: {levels} found, rising numbers between 0 and 1 wanted")
        object.__setattr__(self, "levels", levels)  # a list cannot be hashed, as jit wants it

    @property
    def size(self) -> int:
        """How many levels."""
        return len(self.levels)

    def parameters(self, raw: Array) -> Array:
        """Quantiles that do not fall from one level to the next."""
        middle, steps = self.size // 2, jax.nn.softplus(raw)
        found = [raw[..., middle]]
        for i in range(middle + 1, self.size):  # a cumsum may add in another order, and so cross
            found.append(found[-1] + steps[..., i])
        for i in reversed(range(middle)):
            found.insert(0, found[0] - steps[..., i])
        return jnp.stack(found, -1)

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """See `Output`."""
        return shifted(parameters, loc, scale)

    def loss(self, parameters: Array, target: Array) -> Array:
        """The pinball loss, the sum over levels l of max(l e, (l - 1) e), e = target - quantile."""
        error, level = target[..., None] - parameters, self._along(parameters)
        return jnp.maximum(level * error, (level - 1) * error).sum(-1)

    def mean(self, parameters: Array) -> Array:
        """That of a distribution with these quantiles, linear between them and none beyond."""
        ends = np.array([-self.levels[0], *self.levels, 2 - self.levels[-1]])
        weights = (ends[2:] - ends[:-2]) / 2
        return (parameters * self._along(parameters, weights)).sum(-1)

    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """Those of `levels`, linear between two that are known.

        Raises:
            ValueError: a level below the first or above the last.
        """
        own, wanted = np.array(self.levels), np.array(levels, float)
        if len(wanted) and (wanted.min() < own[0] or wanted.max() > own[-1]):
            raise ValueError(f"levels: {tuple(levels)} found, from {own[0]} to {own[-1]} wanted")
        above = np.clip(np.searchsorted(own, wanted), min(1, self.size - 1), None)
        below = np.maximum(above - 1, 0)
        share = (wanted - own[below]) / np.where(above > below, own[above] - own[below], 1)
        low, high = parameters[..., below], parameters[..., above]
        between = low + self._along(low, share) * (high - low)
        # not by the formula, which may miss it by a bit
        return jnp.where(self._along(low, share) == 1, high, between)

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...) from the distribution of `mean`."""
        u = jax.random.uniform(key, (n, *parameters.shape[:-1]))
        own, every = jnp.asarray(self.levels), parameters[None]
        draws = jnp.broadcast_to(every[..., 0], u.shape)
        for i in range(1, self.size):
            share = jnp.clip((u - own[i - 1]) / (own[i] - own[i - 1]), 0, 1)
            draws += share * (every[..., i] - every[..., i - 1])
        return draws

    def _along(self, parameters: Array, numbers: Any = None) -> Array:
        """Levels, or other numbers, along the last of as many axes as parameters have."""
        numbers = self.levels if numbers is None else numbers
        return jnp.asarray(numbers, jnp.float32).reshape(*[1] * (parameters.ndim - 1), -1)


def shifted(x: Array, loc: Array | None, scale: Array | None) -> Array:
    """loc + scale * x, x (..., P)."""
    x = x if scale is None else x * scale[..., None]
    return x if loc is None else x + loc[..., None]
