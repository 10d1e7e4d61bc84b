"""What a network says of each step: a point, quantiles, or the parameters of a distribution."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

Array = jax.Array
LOSSES = ("mse", "mae", "huber")


class Output:
    """What the outputs share; parameters are (..., P) with P = `size`, targets (...).

    Attributes:
        counts: of whole numbers from 0, which can be scaled but not shifted.
    """

    counts: ClassVar[bool] = False

    @property
    def size(self) -> int:
        """P, how many numbers a network gives for each step."""
        raise NotImplementedError

    def parameters(self, raw: Array) -> Array:
        """Of any numbers (..., P) those that are allowed, such as a positive scale."""
        raise NotImplementedError

    def scaled(self, parameters: Array, loc: Array | None, scale: Array | None) -> Array:
        """Of `loc + scale * y`, where the parameters are of y.

        Args:
            parameters: (..., P).
            loc: as many axes as parameters without the last, of their lengths or 1; `None` is 0.
            scale: likewise, positive; `None` is 1.

        Raises:
            ValueError: a loc, for counts.
        """
        raise NotImplementedError

    def loss(self, parameters: Array, target: Array) -> Array:
        """What to minimise, (...): of a distribution the negative logarithm of its density."""
        raise NotImplementedError

    def mean(self, parameters: Array) -> Array:
        """The expected value (...)."""
        raise NotImplementedError

    def quantiles(self, parameters: Array, levels: tuple[float, ...]) -> Array:
        """Of each level, (..., Q)."""
        raise NotImplementedError

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Draws (n, ...)."""
        raise NotImplementedError


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
        return _shifted(parameters, loc, scale)

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
        raise ValueError("output: Point has no quantiles: Quantiles or a distribution wanted")

    def sample(self, parameters: Array, key: Array, n: int) -> Array:
        """Raise `ValueError`."""
        raise ValueError("output: Point cannot be drawn from: a distribution wanted")


def _shifted(x: Array, loc: Array | None, scale: Array | None) -> Array:
    """loc + scale * x, x (..., P)."""
    x = x if scale is None else x * scale[..., None]
    return x if loc is None else x + loc[..., None]
