"""A residual network for rows of features."""

import functools
from typing import Any

import flax.linen as nn
import jax

from jaxops.nn import BatchNorm, Dense, Units
from jaxops.tabular.models.embeddings import Reads, embedded, uniform


class ResNet(nn.Module):
    """A residual network: blocks x + dropout(dense(dropout(relu(dense(norm(x)))))).

    A dense layer is before the blocks; batch norm, ReLU and a dense layer are after them.

    Attributes:
        width: of the residual stream.
        hidden: units of a block's hidden layer.
        depth: number of blocks.
        outputs: number of outputs.
        hidden_dropout: probability of dropping a hidden unit in training.
        dropout: probability of dropping a unit of a block's output in training.
        compute: of the products, see `jaxops.nn.matmul`.
        embedding: of numbers, such as `Periodic()`.
        numbers: how many features it embeds, the first ones; `tabular.fit` sets it.
        reads: how it wants a table.

    References:
        Gorishniy et al. 2021, arXiv:2106.11959.

    >>> shapes = jax.eval_shape(ResNet().init, jax.random.key(0), jax.numpy.ones((2, 20)))
    >>> sorted(shapes["params"])[:3]
    ['block_0_hidden', 'block_0_norm', 'block_0_out']
    """

    width: int = 192
    hidden: int = 384
    depth: int = 3
    outputs: int = 1
    hidden_dropout: float = 0.2
    dropout: float = 0.0
    compute: str | None = None
    embedding: Any = None
    numbers: int = 0
    reads: Reads = Reads("quantile")

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None
    ) -> jax.Array:
        """Outputs (B, outputs) of features (B, d)."""
        dense = functools.partial(Dense, compute=self.compute, kernel_init=uniform)
        x = dense(self.width, name="first")(embedded(self.embedding, x, self.numbers))
        for i in range(self.depth):
            name = f"block_{i}"
            y = BatchNorm(name=f"{name}_norm")(x, train=train, mask=mask)
            y = nn.relu(dense(self.hidden, name=f"{name}_hidden")(y))
            y = nn.Dropout(self.hidden_dropout, deterministic=not train)(y)
            y = dense(self.width, name=f"{name}_out")(y)
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
        x = nn.relu(BatchNorm(name="norm")(x, train=train, mask=mask))
        return dense(self.outputs, name="logits")(x)

    def units(self) -> list[Units]:
        """The units of the blocks' hidden layers."""
        return [
            Units("units", self.hidden, f"^block_{i}_hidden/", f"^block_{i}_out/kernel$", _hidden)
            for i in range(self.depth)
        ]


def _hidden(module: ResNet, count: int) -> ResNet:
    return module.clone(hidden=count)
