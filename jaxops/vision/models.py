"""Flax modules that classify images: float (B, H, W, C) to logits (B, classes)."""

from typing import Any

import flax.linen as nn
import jax

from jaxops.nn import BatchNorm, Conv, Dense, Units, max_pool
from jaxops.nn.units import units_of_widths

Array = jax.Array


def initializers(name: str, fan_in: int) -> dict[str, Any]:
    """Initializers of a layer's kernel and bias, by name.

    Args:
        name: "lecun_normal" (Flax's default: variance 1 / fan_in, zero bias), "keras" (Glorot's
            uniform, zero bias), or "torch" (kernel and bias uniform within 1 / sqrt(fan_in)).
        fan_in: number of inputs that one output sums over.

    Returns:
        `kernel_init` and `bias_init` for a layer.

    Raises:
        ValueError: another name.
    """
    bound = fan_in**-0.5

    def uniform(key: Array, shape: tuple[int, ...], dtype: Any = float) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    known: dict[str, tuple[Any, Any]] = {
        "lecun_normal": (nn.initializers.lecun_normal(), nn.initializers.zeros),
        "keras": (nn.initializers.glorot_uniform(), nn.initializers.zeros),
        "torch": (uniform, uniform),
    }
    if name not in known:
        raise ValueError(f"initializer must be one of {', '.join(known)}, got {name!r}")
    kernel_init, bias_init = known[name]
    return {"kernel_init": kernel_init, "bias_init": bias_init}


def _dense(x: Array, features: int, init: str, compute: str | None, name: str) -> Array:
    return Dense(features, compute=compute, name=name, **initializers(init, x.shape[-1]))(x)


def _conv(x: Array, features: int, padding: str, init: str, name: str) -> Array:
    start = initializers(init, 9 * x.shape[-1])
    return Conv(features, padding=padding, name=name, **start)(x)


class MLP(nn.Module):
    """A multi-layer perceptron: flatten, then dense layers with ReLU.

    Attributes:
        widths: units of each hidden layer.
        classes: number of logits.
        dropout: probability of dropping a hidden unit in training.
        batch_norm: normalise before each ReLU.
        initializer: see `initializers`.
        compute: dtype of the dense layers' products, see `jaxops.nn.matmul`.

    >>> shapes = jax.eval_shape(MLP().init, jax.random.key(0), jax.numpy.ones((1, 28, 28, 1)))
    >>> shapes["params"]["hidden_0"]["kernel"].shape
    (784, 128)
    """

    widths: tuple[int, ...] = (128,)
    classes: int = 10
    dropout: float = 0.0
    batch_norm: bool = False
    initializer: str = "lecun_normal"
    compute: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Logits (B, classes) of images; rows where `mask` (B,) is False are padding."""
        x = x.reshape(len(x), -1)
        for i, width in enumerate(self.widths):
            x = _dense(x, width, self.initializer, self.compute, f"hidden_{i}")
            if self.batch_norm:
                x = BatchNorm(name=f"norm_{i}")(x, train=train, mask=mask)
            x = nn.Dropout(self.dropout, deterministic=not train, name=f"dropout_{i}")(nn.relu(x))
        return _dense(x, self.classes, self.initializer, self.compute, "logits")

    def units(self) -> list[Units]:
        """The hidden units."""
        return units_of_widths(self.widths)


class CNN(nn.Module):
    """A small convolutional network with one convolution.

    Convolution 3x3 without padding, ReLU, max-pool 2x2, dense, ReLU, dense.

    Attributes:
        classes: number of logits.
        features: channels of the convolution.
        hidden: units of the dense layer.
        dropout: probability of dropping a unit of the dense layer in training.
        initializer: see `initializers`.
        compute: dtype of the dense layers' products, see `jaxops.nn.matmul`.

    >>> shapes = jax.eval_shape(CNN().init, jax.random.key(0), jax.numpy.ones((1, 28, 28, 1)))
    >>> shapes["params"]["hidden"]["kernel"].shape
    (5408, 128)
    """

    classes: int = 10
    features: int = 32
    hidden: int = 128
    dropout: float = 0.0
    initializer: str = "lecun_normal"
    compute: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Logits (B, classes) of images."""
        x = max_pool(nn.relu(_conv(x, self.features, "VALID", self.initializer, "conv")), 2)
        x = nn.relu(
            _dense(x.reshape(len(x), -1), self.hidden, self.initializer, self.compute, "hidden")
        )
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        return _dense(x, self.classes, self.initializer, self.compute, "logits")

    def units(self) -> list[Units]:
        """The channels of the convolution and the units of the dense layer."""
        return [
            Units("channels", self.features, "^conv/", "^hidden/kernel$", _with_features),
            Units("units", self.hidden, "^hidden/", "^logits/kernel$", _with_hidden),
        ]


def _with_features(module: CNN, count: int) -> CNN:
    return module.clone(features=count)


def _with_hidden(module: CNN, count: int) -> CNN:
    return module.clone(hidden=count)


class ConvNet(nn.Module):
    """Stages of convolution 3x3, max-pool 2x2, batch norm and ReLU, then one dense layer.

    A stage pools before it normalises, so that normalisation and ReLU take a quarter of the time.
    The first convolution, which has the most pixels, is not padded; the others are.

    Attributes:
        widths: channels of each stage.
        classes: number of logits.
        dropout: probability of dropping a feature before the dense layer in training.
        initializer: see `initializers`.
        compute: dtype of the dense layer's product, see `jaxops.nn.matmul`.

    >>> shapes = jax.eval_shape(ConvNet().init, jax.random.key(0), jax.numpy.ones((1, 28, 28, 1)))
    >>> shapes["params"]["logits"]["kernel"].shape
    (1152, 10)
    """

    widths: tuple[int, ...] = (32, 64, 128)
    classes: int = 10
    dropout: float = 0.0
    initializer: str = "lecun_normal"
    compute: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False, mask: Array | None = None) -> Array:
        """Logits (B, classes) of images; rows where `mask` (B,) is False are padding."""
        for i, width in enumerate(self.widths):
            padding = "SAME" if i else "VALID"
            x = max_pool(_conv(x, width, padding, self.initializer, f"conv_{i}"), 2)
            x = nn.relu(BatchNorm(name=f"norm_{i}")(x, train=train, mask=mask))
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x.reshape(len(x), -1))
        return _dense(x, self.classes, self.initializer, self.compute, "logits")

    def units(self) -> list[Units]:
        """The channels of each stage."""
        return units_of_widths(self.widths, "conv", kind="channels")
