"""TabM: an ensemble of perceptrons in one module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import Dense, Units, matmul
from jaxops.nn.units import in_widths
from jaxops.tabular.models.embeddings import (
    Reads,
    along,
    embedded,
    uniform,
    uniform_of_each,
    uniform_within,
)

FORMS = ("mini", "full", "packed")


class TabM(nn.Module):
    """TabM: an ensemble of perceptrons that share their weights, trained as one.

    Each member has its own last layer. The hidden layers are y = s * (W (r * x)) + b, with a matrix
    W that all members share, and of each member:

    - "mini": the factors r of the first layer.
    - "full": the factors r and s and the bias b of each layer (BatchEnsemble).
    - "packed": everything; nothing is shared.

    The first factors start as random signs, or with an `embedding` as normal values, one for each
    number and each indicator (in the paper's program one for all indicators of a column); the
    others as ones. Biases of the form "mini" and of the last layer start at 0, where they are
    uniform in that program. Tasks average the members' losses and predictions.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of outputs.
        members: number of members; 32 in the paper.
        dropout: probability of dropping a hidden unit in training.
        compute: of the products, see `jaxops.nn.matmul`.
        form: what members share: "mini", "full" or "packed".
        embedding: of numbers, such as `PiecewiseLinear()`.
        numbers: how many features it embeds, the first ones; `tabular.fit` sets it.
        own_batches: whether `tabular.fit` shows each member other rows in a step, as in the paper.
            A step then reads `members` times as many rows, and each member sees every row once an
            epoch. In training the state holds the train rows, up to three times (the best state and
            a checkpoint have their own). The finished model has False.
        reads: how it wants a table; by default with numbers in bins, or with an embedding by
            quantiles.

    References:
        Gorishniy et al. 2024, arXiv:2410.24210; Wen et al. 2020, arXiv:2002.06715 (BatchEnsemble).

    >>> module = TabM((8,), outputs=1, members=4)
    >>> outputs, _ = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.ones((2, 3)))
    >>> outputs.shape
    (2, 4, 1)
    """

    widths: tuple[int, ...] = (128, 128)
    outputs: int = 1
    members: int = 16
    dropout: float = 0.1
    compute: str | None = None
    form: str = "mini"
    embedding: Any = None
    numbers: int = 0
    own_batches: bool = False
    reads: Reads | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Outputs (B, members, outputs) of features (B, d), or of each member's (B, members, d)."""
        if self.form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {self.form!r}")
        x = embedded(self.embedding, x, self.numbers)
        x = x if x.ndim == 3 else x[:, None]
        if self.form == "mini":
            x = x * along(self.param("signs", self._first, (self.members, x.shape[-1])), 3)
        for i, width in enumerate(self.widths):
            x = nn.relu(self._hidden(x, width, i))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(x)
        x = jnp.broadcast_to(x, (len(x), self.members, x.shape[-1]))  # without hidden layers
        shape = (self.members, x.shape[-1], self.outputs)
        kernel = self.param("kernel", uniform_of_each, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.members, self.outputs))
        return self._of_members(x, kernel) + bias[None]

    def units(self) -> list[Units]:
        """The hidden units, each of all members."""

        def one(i: int) -> Units:
            last = i + 1 == len(self.widths)
            own = rf"^hidden_{i}(/|_)(kernel|bias|s)$|^hidden_{i + 1}_r$"
            read = "^kernel$" if last else rf"^hidden_{i + 1}(/|_)kernel$"
            return Units("units", self.widths[i], own, read, in_widths(i))

        return [one(i) for i in range(len(self.widths))]

    def _hidden(self, x: jax.Array, width: int, i: int) -> jax.Array:
        """A hidden layer of all members, before its activation: (B, members or 1, width)."""
        inputs, name = x.shape[-1], f"hidden_{i}"
        if self.form == "mini":
            return Dense(width, compute=self.compute, name=name, kernel_init=uniform)(x)
        if self.form == "packed":
            kernel = self.param(f"{name}_kernel", uniform_of_each, (self.members, inputs, width))
            within = uniform_within(inputs**-0.5)
            bias = self.param(f"{name}_bias", within, (self.members, width))
            x = jnp.broadcast_to(x, (len(x), self.members, inputs))
            return self._of_members(x, kernel) + bias[None]
        ones = nn.initializers.ones
        before = self.param(f"{name}_r", ones if i else self._first, (self.members, inputs))
        after = self.param(f"{name}_s", ones, (self.members, width))
        bias = self.param(f"{name}_bias", _alike(inputs**-0.5), (self.members, width))
        dense = Dense(width, False, compute=self.compute, name=name, kernel_init=uniform)
        return dense(x * before[None]) * after[None] + bias[None]

    def _of_members(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The product of each member with its own kernel: (B, members, k) to (B, members, w)."""
        return matmul(x.swapaxes(0, 1), kernel, self.compute).swapaxes(0, 1)

    def _first(self, key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        """The initial factors of the members at the first layer."""
        if self.embedding is None:
            return jax.random.rademacher(key, shape, dtype)
        members, inputs = shape
        width = self.embedding.width
        numbers, others = jax.random.split(key)
        each = jax.random.normal(numbers, (members, self.numbers), dtype)
        rest = jax.random.normal(others, (members, inputs - self.numbers * width), dtype)
        return jnp.concatenate([jnp.repeat(each, width, axis=1), rest], 1)


def _alike(bound: float) -> Any:
    """An initializer of biases that are equal in all members, uniform in ±bound."""

    def init(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
        return jnp.broadcast_to(uniform_within(bound)(key, shape[1:], dtype), shape)

    return init
