"""Convolution and pooling that are fast on a CPU too, also inside `lax.scan` and under `grad`."""

import itertools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array
Initializer = Callable[..., Array]


def conv2d(x: Array, kernel: Array, padding: str = "SAME") -> Array:
    """Convolve images with a kernel, stride 1.

    `y[b, i, j, o] = sum over (di, dj, c) of x[b, i + di, j + dj, c] * kernel[di, dj, c, o]`

    Args:
        x: (B, H, W, C).
        kernel: (h, w, C, O).
        padding: "SAME" surrounds the image with zeros so that it keeps its size; "VALID" does not,
            so that H shrinks by h - 1 and W by w - 1.

    Returns:
        (B, H', W', O).

    Raises:
        ValueError: the shapes do not fit, or the padding is another word.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), "VALID").shape
    (1, 2, 2, 2)
    """
    if x.ndim != 4 or kernel.ndim != 4 or x.shape[3] != kernel.shape[2]:
        raise ValueError(
            f"conv2d: x {x.shape} and kernel {kernel.shape} must be (B, H, W, C) and (h, w, C, O)"
        )
    if padding not in ("SAME", "VALID"):
        raise ValueError(f"conv2d: padding {padding!r} must be 'SAME' or 'VALID'")
    pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
    return lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, k: _as_product(x, k, pads),
        default=lambda x, k: _as_lax(x, k, pads),
    )


def _as_lax(x: Array, kernel: Array, pads: list[tuple[int, int]]) -> Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _as_product(x: Array, kernel: Array, pads: list[tuple[int, int]]) -> Array:
    """The same as one matrix product over the shifted images.

    XLA:CPU turns the gradient of a convolution inside a loop into a naive one, 10 to 100 times
    slower. Of the forms measured (a sum of h * w products, stacked slices, hand-written gradients)
    this is the fastest at every size; the product has to be of two matrices, not of higher rank.
    """
    h, w, _, features = kernel.shape
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    rows, columns = x.shape[1] - h + 1, x.shape[2] - w + 1
    shifted = [
        x[:, i : i + rows, j : j + columns] for i, j in itertools.product(range(h), range(w))
    ]
    patches = jnp.concatenate(shifted, axis=-1).reshape(-1, h * w * x.shape[3])
    return (patches @ kernel.reshape(-1, features)).reshape(len(x), rows, columns, features)


def max_pool(x: Array, window: int) -> Array:
    """The largest value of every `window` x `window` square; rows and columns over are dropped.

    Where values tie for the largest, they share its gradient evenly; `flax.linen.max_pool` gives
    it to the first, through an operation that is several times slower on a CPU.

    Args:
        x: (B, H, W, C).
        window: the side of the square, and the stride.

    Returns:
        (B, H // window, W // window, C).

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels).max(axis=(2, 4))


class Conv(nn.Module):
    """Convolution over images with stride 1, (B, H, W, C) to (B, H', W', features).

    Its parameters are named and shaped as those of `flax.linen.Conv`: `kernel` (h, w, C, features)
    and `bias` (features,).

    Attributes:
        features: the number of output channels.
        kernel_size: (h, w).
        padding: "SAME" or "VALID", see `conv2d`.
        use_bias: add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    padding: str = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve."""
        shape = (*self.kernel_size, x.shape[-1], self.features)
        y = conv2d(x, self.param("kernel", self.kernel_init, shape), self.padding)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,)).reshape(1, 1, 1, -1)
        return y
