"""Flax modules that read rows of features: float (B, d) to outputs (B, outputs)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn import Dense, matmul


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


class TabM(nn.Module):
    """TabM: an ensemble of perceptrons that share their weights, trained as one.

    Each member scales the inputs of the first layer by factors of its own, which start as random
    signs; the hidden layers are shared (TabM-mini), and each member has its own last layer. Tasks
    average the members' losses and predictions.

    Attributes:
        widths: units of each hidden layer.
        outputs: number of outputs.
        members: number of members.
        dropout: probability of dropping a hidden unit in training.
        compute: of the products, see `jaxops.nn.matmul`.

    References:
        Gorishniy et al. 2024, arXiv:2410.24210; Wen et al. 2020, arXiv:2002.06715 (BatchEnsemble).

    >>> module = TabM((8,), outputs=1, members=4)
    >>> outputs, _ = module.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
    >>> outputs.shape
    (2, 4, 1)
    """

    widths: tuple[int, ...] = (128, 128)
    outputs: int = 1
    members: int = 16
    dropout: float = 0.1
    compute: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Outputs (B, members, outputs) of features (B, d)."""
        signs = self.param("signs", _random_signs, (self.members, x.shape[-1]))
        x = x[:, None] * signs[None]
        for i, width in enumerate(self.widths):
            dense = Dense(width, compute=self.compute, name=f"hidden_{i}", kernel_init=_uniform)
            x = nn.relu(dense(x))
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(x)
        shape = (self.members, x.shape[-1], self.outputs)
        kernel = self.param("kernel", _uniform_of_members, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.members, self.outputs))
        x = matmul(x.swapaxes(0, 1), kernel, self.compute).swapaxes(0, 1)
        return x + bias[None]


_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_uniform_of_members = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", batch_axis=0)


def _random_signs(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return jax.random.rademacher(key, shape, dtype)
