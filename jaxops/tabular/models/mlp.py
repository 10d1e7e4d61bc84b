"""The multi-layer perceptron, with or without embeddings of numbers."""

import functools
from typing import Any

import flax.linen as nn
import jax

from jaxops.nn import Dense, Units
from jaxops.nn.units import units_of_widths
from jaxops.tabular.models.embeddings import Reads, embedded


class MLP(nn.Module):
    """A multi-layer perceptron: dense layers with ReLU. `MLP(())` is a linear model.

    Kernels are initialised with Glorot's uniform, as in Keras, and biases with zero.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of logits.
        dropout: probability of dropping a hidden unit in training.
        compute: of the products, see `jaxops.nn.matmul`.
        embedding: of numbers, such as `Periodic()`.
        numbers: how many features it embeds, the first ones; `tabular.fit` sets it.
        reads: how it wants a table; by default with numbers in bins, or with an embedding by
            quantiles.

    >>> shapes = jax.eval_shape(MLP().init, jax.random.key(0), jax.numpy.ones((1, 20)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 128 * 20 + 8_449
    True
    """

    widths: tuple[int, ...] = (128, 64)
    outputs: int = 1
    dropout: float = 0.0
    compute: str | None = None
    embedding: Any = None
    numbers: int = 0
    reads: Reads | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, outputs) of features (B, d)."""
        x = embedded(self.embedding, x, self.numbers)
        init = nn.initializers.glorot_uniform()
        dense = functools.partial(Dense, compute=self.compute, kernel_init=init)
        for i, width in enumerate(self.widths):
            x = nn.relu(dense(width, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(x)
        return dense(self.outputs, name="logits")(x)

    def units(self) -> list[Units]:
        """The hidden units."""
        return units_of_widths(self.widths)
