"""Flax modules that read rows of features: float (B, d) to logits (B, outputs)."""

import functools

import flax.linen as nn
import jax

from jaxops.nn import Dense


class MLP(nn.Module):
    """A multi-layer perceptron: dense layers with ReLU.

    Kernels are initialised with Glorot's uniform, as in Keras, and biases with zero.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of logits.
        dropout: probability of dropping a hidden unit in training.
        compute: of the products, see `jaxops.nn.matmul`.

    >>> shapes = jax.eval_shape(MLP().init, jax.random.key(0), jax.numpy.ones((1, 20)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 128 * 20 + 8_449
    True
    """

    widths: tuple[int, ...] = (128, 64)
    outputs: int = 1
    dropout: float = 0.0
    compute: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits (B, outputs) of features (B, d)."""
        init = nn.initializers.glorot_uniform()
        dense = functools.partial(Dense, compute=self.compute, kernel_init=init)
        for i, width in enumerate(self.widths):
            x = nn.relu(dense(width, name=f"hidden_{i}")(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(x)
        return dense(self.outputs, name="logits")(x)
