"""Embeddings of numbers and of categories: what a network sees in place of single features."""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.nn import Dense, matmul
from jaxops.task import recorded

Array = jax.Array
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform in ±1 / sqrt(inputs), for kernels (inputs, outputs): PyTorch's initial kernels."""
uniform_of_each = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)
"""The same for stacks of kernels, (stack, inputs, outputs)."""


@recorded
class Reads(NamedTuple):
    """How a module wants the columns of a table: its attribute `reads`, if it has one.

    Attributes:
        numbers: "standard", "quantile" or "robust", see `jaxops.data.encoders.fit_encoder`, or
            "bins", the piecewise linear encoding.
        codes: columns of more different texts than so many come as numbers, the last features, for
            an embedding; the others, and by default all, as indicators.

    >>> Reads(numbers="quantile")
    Reads(numbers='quantile', codes=None)
    """

    numbers: str = "bins"
    codes: int | None = None


def uniform_within(bound: float) -> Any:
    """An initializer, uniform in ±bound."""

    def init(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def apart(x: Array, kernel: Array, compute: str | None = None) -> Array:
    """A product for each of several parts with a kernel of its own.

    Args:
        x: float (..., n, k).
        kernel: float (n, k, w).
        compute: see `jaxops.nn.matmul`.

    Returns:
        float (..., n, w).

    >>> apart(jnp.ones((5, 2, 3)), jnp.ones((2, 3, 4))).shape
    (5, 2, 4)
    """
    flat = x.reshape(-1, *x.shape[-2:]).swapaxes(0, 1)
    return matmul(flat, kernel, compute).swapaxes(0, 1).reshape(*x.shape[:-1], kernel.shape[-1])


class Periodic(nn.Module):
    """Embeddings of numbers by sines and cosines of learned frequencies, then a dense layer (PLR).

    A number x becomes relu(W [cos(2 pi f x), sin(2 pi f x)] + b), with frequencies f, W and b of
    each column. Frequencies are initialised with normal values of standard deviation `scale`, cut
    off at 3 of these; it is the setting that matters most.

    Attributes:
        width: of the embedding of a number.
        frequencies: number of frequencies.
        scale: of the initial frequencies.
        lite: W and b are shared by all columns.
        compute: of the products, see `jaxops.nn.matmul`.

    References:
        Gorishniy et al. 2022, arXiv:2203.05556 (PLR); 2023, arXiv:2307.14338 (PLR-lite).

    >>> module, x = Periodic(width=4), jnp.ones((2, 3))
    >>> outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), x)
    >>> outputs.shape
    (2, 12)
    """

    width: int = 24
    frequencies: int = 48
    scale: float = 0.01
    lite: bool = False
    compute: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Embeddings (..., n * width) of numbers (..., n)."""
        normal = nn.initializers.truncated_normal(self.scale, lower=-3.0, upper=3.0)
        count, inputs = x.shape[-1], 2 * self.frequencies
        frequencies = self.param("frequency", normal, (count, self.frequencies))
        angle = 2 * math.pi * x[..., None] * along(frequencies, x.ndim + 1)
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
        within = uniform_within(inputs**-0.5)
        if self.lite:
            dense = Dense(
                self.width,
                compute=self.compute,
                kernel_init=uniform,
                bias_init=within,
                name="dense",
            )
            y = dense(waves)
        else:
            kernel = self.param("kernel", uniform_of_each, (count, inputs, self.width))
            bias = self.param("bias", within, (count, self.width))
            y = apart(waves, kernel, self.compute) + along(bias, x.ndim + 1)
        return nn.relu(y).reshape(*x.shape[:-1], -1)


class PiecewiseLinear(nn.Module):
    """Embeddings of numbers that are linear within bins.

    A number x becomes w x + b + P e(x), where e(x) is its piecewise linear encoding: for each bin
    from a to b min(max((x - a) / (b - a), 0), 1), where the first bin has no lower and the last no
    upper bound. P begins as zero, so that the embedding begins as linear. Bins are between
    quantiles of the train rows.

    Attributes:
        width: of the embedding of a number.
        bins: number of bins; fewer where values are equal.
        edges: the edges of each column's bins; `tabular.fit` sets them.
        compute: of the products, see `jaxops.nn.matmul`.

    References:
        Gorishniy et al. 2022, arXiv:2203.05556; 2024, arXiv:2410.24210 (the linear part).

    >>> module = PiecewiseLinear(width=4, edges=((0.0, 1.0, 2.0), (0.0, 5.0)))
    >>> outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.ones((3, 2)))
    >>> outputs.shape
    (3, 8)
    """

    width: int = 16
    bins: int = 48
    edges: tuple[tuple[float, ...], ...] = ()
    compute: str | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Embeddings (..., n * width) of numbers (..., n)."""
        if len(self.edges) != x.shape[-1]:
            raise ValueError(
                f"edges must be of {x.shape[-1]} columns, got {len(self.edges)}; tabular.fit sets "
                "them"
            )
        slope, start, low, high = (along(jnp.asarray(a), x.ndim + 1) for a in _bins(self.edges))
        encoded = jnp.clip(x[..., None] * slope + start, low, high)
        count, most = x.shape[-1], slope.shape[-1]
        within = uniform_within(self.width**-0.5)
        weight = self.param("weight", within, (count, self.width))
        bias = self.param("bias", within, (count, self.width))
        kernel = self.param("kernel", nn.initializers.zeros, (count, most, self.width))
        y = x[..., None] * along(weight, x.ndim + 1) + along(bias, x.ndim + 1)
        return (y + apart(encoded, kernel, self.compute)).reshape(*x.shape[:-1], -1)


def _bins(edges: tuple[tuple[float, ...], ...]) -> tuple[np.ndarray, ...]:
    """Slopes, starts and bounds of the bins, float32 (n, most); of bins that are not there 0."""
    most = max(len(column) - 1 for column in edges)
    slope, start, low, high = (np.zeros((len(edges), most), np.float32) for _ in range(4))
    for i, column in enumerate(edges):
        at = np.asarray(column, np.float64)
        count = len(at) - 1
        slope[i, :count] = 1 / np.diff(at)
        start[i, :count] = -at[:-1] / np.diff(at)
        high[i, :count] = 1
        low[i, 0], high[i, count - 1] = -np.inf, np.inf
    return slope, start, low, high


def along(x: Array, rank: int) -> Array:
    """An array with axes of one before its own, as many as it takes to a rank."""
    return x.reshape(*[1] * (rank - x.ndim), *x.shape)


def embedded(embedding: Any, x: Array, numbers: int) -> Array:
    """Features whose first columns are embedded.

    Args:
        embedding: a module, (..., n) to (..., n * width); None leaves the features.
        x: (..., d).
        numbers: n, the columns to embed.

    Raises:
        ValueError: an embedding, and no columns for it.

    >>> embedded(None, jnp.ones((2, 3)), 0).shape
    (2, 3)
    """
    if embedding is None:
        return x
    check_numbers("numbers", numbers, x.shape[-1])
    return jnp.concatenate([embedding(x[..., :numbers]), x[..., numbers:]], -1)


def check_numbers(name: str, numbers: int, features: int) -> None:
    """Raise `ValueError` where a module does not know which features are numbers."""
    if not 1 <= numbers <= features:
        raise ValueError(
            f"{name} must be in [1, {features}] (the number of features), got {numbers}; "
            "tabular.fit sets it"
        )


class Categories(nn.Module):
    """Embeddings of the values of columns of text, from one table with one gather.

    Attributes:
        sizes: how many numbers there are for the values of each column, see `Encoder.categories`.
        width: of the embedding of a value.
        table_init: initializer of the table.

    >>> module = Categories((3, 5), width=4)
    >>> codes = jnp.array([[0.0, 4.0], [2.0, 0.0]])
    >>> outputs, _ = module.init_with_output(jax.random.key(0), codes)
    >>> outputs.shape, outputs[0, 0].tolist()
    ((2, 2, 4), [0.0, 0.0, 0.0, 0.0])
    """

    sizes: tuple[int, ...]
    width: int
    table_init: Any = nn.initializers.normal(1.0)

    @nn.compact
    def __call__(self, codes: Array) -> Array:
        """Embeddings (..., c, width) of codes (..., c); zero where a code is 0, of a new value."""
        table = self.param("table", self.table_init, (sum(self.sizes), self.width))
        first = jnp.asarray(np.cumsum([0, *self.sizes[:-1]]), jnp.int32)
        places = codes.astype(jnp.int32) + along(first, codes.ndim)
        return jnp.where(codes[..., None] > 0, table[places], 0.0)
