"""RealMLP: a perceptron whose parts and training were tuned on many tables."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import matmul
from jaxops.tabular.models.embeddings import (
    Categories,
    Reads,
    along,
    apart,
    check_numbers,
    uniform_of_each,
    uniform_within,
)

Array = jax.Array
EQUAL = 1e-5  # standard deviation below which rows are equal
ACTIVATIONS = {"selu": nn.selu, "mish": lambda x: x * jnp.tanh(nn.softplus(x))}


class RealMLP(nn.Module):
    """RealMLP: a perceptron with embedded numbers, a scaling layer and parametric activations.

    - A number x becomes (x, W cos(2 pi f x + c) + b), with frequencies f, phases c, W and b of each
      column (PBLD: periodic, bias, linear, densely connected).
    - Each input of the first layer is multiplied by a learned factor.
    - A layer is x W / sqrt(inputs) + b, with W from a standard normal distribution (neural tangent
      parametrisation).
    - The activation is x + a (f(x) - x) with a learned factor a of each unit, which begins at 1.
    - In the second half of `steps` dropout falls to 0 by a cosine.
    - Outside training a predicted number is cut off at the least and the largest train target.
    - Initial weights look at the rows that `init` is given (`tabular.fit` gives train rows): W is
      divided by the standard deviation of x W / sqrt(inputs), so that this is 1 in each unit, and b
      is minus a random mean of the values of five rows, so that each unit bends among the rows.
      Where all rows are equal W stays as it is, and b is normal with standard deviation 0.58.

    `tabular.recipe` has the rest: rates and decays of each kind of parameter, their schedules and
    label smoothing. Other than in the paper's program, numbers of two values and indicators are 0
    and 1.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of outputs.
        dropout: probability of dropping a hidden unit in training.
        activation: f, "selu" or "mish"; by default `tabular.fit` sets the paper's, "selu" for
            classes and "mish" for numbers, and without it "selu" is used.
        frequencies: number of frequencies of a number.
        frequency_scale: standard deviation of the initial frequencies.
        width: of the embedding of a number; 1 of it is the number itself.
        category_width: of the embedding of a text.
        compute: of the products, see `jaxops.nn.matmul`.
        numbers: how many features are numbers, the first ones; `tabular.fit` sets it.
        categories: how many values each of the last features may have, which are texts by their
            number; `tabular.fit` sets it.
        steps: of training; `tabular.fit` sets it. With 0 dropout stays as it is.
        limits: of the outputs outside training; `tabular.fit` sets it where the label is a number.
        reads: how it wants a table.

    References:
        Holzmüller et al. 2024, "Better by default", arXiv:2407.04491.

    >>> module = RealMLP((8,), numbers=2)
    >>> outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.ones((3, 5)))
    >>> outputs.shape
    (3, 1)
    """

    widths: tuple[int, ...] = (256, 256, 256)
    outputs: int = 1
    dropout: float = 0.15
    activation: str | None = None
    frequencies: int = 16
    frequency_scale: float = 0.1
    width: int = 4
    category_width: int = 8
    compute: str | None = None
    numbers: int = 0
    categories: tuple[int, ...] = ()
    steps: int = 0
    limits: tuple[float, float] | None = None
    reads: Reads = Reads("robust", codes=8)

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> Array:
        """Outputs (B, outputs) of features (B, d)."""
        activation = "selu" if self.activation is None else self.activation
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ValueError(f"activation must be one of {known}, got {activation!r}")
        dropout, act = self._dropout(train), ACTIVATIONS[activation]
        x = self._inputs(x)
        x = x * along(self.param("scale", nn.initializers.ones, x.shape[-1:]), 2)
        for i, width in enumerate(self.widths):
            x = self._layer(x, width, f"hidden_{i}")
            share = self.param(f"hidden_{i}_activation", nn.initializers.ones, (width,))
            x = x + along(share, 2) * (act(x) - x)
            if train and self.dropout:
                kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - dropout, x.shape)
                x = jnp.where(kept, x / (1 - dropout), 0.0)
        x = self._layer(x, self.outputs, "logits")
        return x if train or self.limits is None else jnp.clip(x, *self.limits)

    def _inputs(self, x: Array) -> Array:
        """Features with numbers and texts embedded, (B, D)."""
        first, last = self.numbers, x.shape[-1] - len(self.categories)
        parts = [x[:, first:last]]
        if first:
            check_numbers("numbers", first, last)
            parts.append(self._numbers(x[:, :first]))
        if self.categories:
            embed = Categories(self.categories, self.category_width, name="texts")
            texts = embed(x[:, last:].astype(jnp.int32))
            parts.append(texts.reshape(len(x), -1))
        return jnp.concatenate(parts, -1)

    def _numbers(self, x: Array) -> Array:
        """The embeddings of numbers (B, n), (B, n * width)."""
        shape, outs = (x.shape[-1], self.frequencies), self.width - 1
        normal, within = nn.initializers.normal(self.frequency_scale), self.frequencies**-0.5
        frequencies = self.param("numbers_frequencies", normal, shape)
        phases = self.param("numbers_phases", uniform_within(math.pi), shape)
        kernel = self.param("numbers_kernel", uniform_of_each, (*shape, outs))
        bias = self.param("numbers_bias", uniform_within(within), (shape[0], outs))
        waves = jnp.cos(2 * math.pi * x[..., None] * along(frequencies, 3) + along(phases, 3))
        y = apart(waves, kernel, self.compute) + along(bias, 3)
        return jnp.concatenate([x[..., None], y], -1).reshape(len(x), -1)

    def _layer(self, x: Array, width: int, name: str) -> Array:
        kernel = self.param(f"{name}_kernel", _of_spread_one, x, width)
        x = matmul(x, kernel, self.compute) * x.shape[-1] ** -0.5
        return x + along(self.param(f"{name}_bias", _among, x), 2)

    def _dropout(self, train: bool) -> Any:
        """The probability at this step; counts the steps."""
        if not self.steps:
            return self.dropout
        step = self.variable("schedule", "step", lambda: jnp.zeros((), jnp.int32))
        done = step.value / self.steps
        if train and not self.is_initializing():
            step.value += 1
        return self.dropout * flat_cosine(done)


def _of_spread_one(key: Array, x: Array, width: int) -> Array:
    """A kernel of which x W / sqrt(inputs) has a standard deviation of 1 over the rows."""
    kernel = jax.random.normal(key, (x.shape[-1], width))
    spread = jnp.matmul(x, kernel, precision="highest").std(0) * x.shape[-1] ** -0.5
    return kernel / jnp.where(spread > EQUAL, spread, 1.0)[None]


def _among(key: Array, x: Array) -> Array:
    """Biases that are minus a random mean of five values of each unit."""
    count, width = x.shape
    rows, shares, other = jax.random.split(key, 3)
    places = jax.random.randint(rows, (5, width), 0, count)
    share = jax.random.exponential(shares, (5, width))  # over their sum: a flat Dirichlet's draw
    mean = (x[places, jnp.arange(width)[None]] * share).sum(0) / share.sum(0)
    normal = jax.random.normal(other, (width,)) * 3**-0.5
    return jnp.where(x.std(0) > EQUAL, -mean, normal)


def flat_cosine(done: Any) -> Any:
    """1 in the first half, then down to 0 by a cosine.

    Args:
        done: the share of the steps that are made.

    >>> [round(float(flat_cosine(done)), 4) for done in (0.0, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.5, 0.0]
    """
    return (1 + jnp.cos(jnp.pi * jnp.clip(2 * done - 1, 0, 1))) / 2


def cosines(done: Any, cycles: int = 4) -> Any:
    """Waves from 0 to 1 and back, each twice as long as the one before it.

    (1 - cos(2 pi log2(1 + (2^cycles - 1) done))) / 2, "coslog4" in the paper.

    Args:
        done: the share of the steps that are made.
        cycles: number of waves.

    >>> [round(float(cosines(done)), 4) for done in (0.0, 1 / 15, 3 / 15, 1.0)]
    [0.0, 0.0, 0.0, 0.0]
    """
    return (1 - jnp.cos(2 * jnp.pi * jnp.log2(1 + (2**cycles - 1) * jnp.clip(done, 0, 1)))) / 2
