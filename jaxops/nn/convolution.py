"""Convolution and pooling that are fast on a CPU too, also inside `lax.scan` and under `grad`.

On GPU and TPU they are the operations of `jax.lax`. XLA:CPU compiles the gradient of a convolution
inside a loop to a naive one, 10 to 100 times slower, and that of `reduce_window` to a serial
scatter; so where a derivative is computed on a CPU, both are written over shifted copies of the
image. The form is chosen when a program is lowered for its platform; values and gradients of both
are the same up to rounding.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
Initializer = Callable[..., Array]
Pair = tuple[int, int]
Padding = str | int | Sequence[int | Sequence[int]]


def conv2d(
    x: Array,
    kernel: Array,
    strides: int | Sequence[int] = (1, 1),
    padding: Padding = "SAME",
    dilation: int | Sequence[int] = (1, 1),
    groups: int = 1,
) -> Array:
    """Convolve images with a kernel, as `jax.lax.conv_general_dilated` does.

    `y[b, i, j, o] = sum over (di, dj, c) of kernel[di, dj, c, o]
    * x[b, i * strides[0] + di * dilation[0], j * strides[1] + dj * dilation[1], c]`,
    where x is 0 outside the image. With groups, input and output channels are divided into `groups`
    equal runs, and the outputs of a run read only its inputs.

    Args:
        x: (B, H, W, C).
        kernel: (h, w, C / groups, O).
        strides: rows and columns between one output and the next; an int sets both.
        padding: "SAME" pads with zeros so that strides of 1 keep the size, and others give
            ceil(size / stride); "VALID" does not pad; or ((top, bottom), (left, right)), where an
            int sets both of a pair.
        dilation: rows and columns between the pixels that the kernel reads; an int sets both.
        groups: number of runs; C of them are a depthwise convolution.

    Returns:
        (B, H', W', O), of the type that x and kernel promote to.

    Raises:
        ValueError: the shapes do not fit, or an argument is not one of the above.

    >>> conv2d(jnp.ones((1, 4, 4, 1)), jnp.ones((3, 3, 1, 2)), padding="VALID").shape
    (1, 2, 2, 2)
    >>> conv2d(jnp.ones((1, 9, 9, 4)), jnp.ones((3, 3, 1, 8)), strides=2, groups=4).shape
    (1, 5, 5, 8)
    """
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            "x and kernel must be (B, H, W, C) and (h, w, C / groups, O), got "
            f"{x.shape} and {kernel.shape}"
        )
    channels, features = x.shape[3], kernel.shape[3]
    if groups < 1 or channels % groups or features % groups:
        raise ValueError(
            f"groups must divide {channels} (channels) and {features} (features), got {groups}"
        )
    if kernel.shape[2] != channels // groups:
        raise ValueError(
            f"kernel must be (h, w, {channels // groups}, O) for x {x.shape} and groups {groups}, "
            f"got {kernel.shape}"
        )
    strides, dilation = _pair("strides", strides, 1), _pair("dilation", dilation, 1)
    spans = [(n - 1) * d + 1 for n, d in zip(kernel.shape[:2], dilation, strict=True)]
    pads = _pads(padding, x.shape[1:3], spans, strides)
    dtype = jnp.result_type(x, kernel)

    def as_lax(x: Array, kernel: Array) -> Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            strides,
            pads,
            rhs_dilation=dilation,
            feature_group_count=groups,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    def as_products(x: Array, kernel: Array) -> Array:
        shifted = _shifted(x, kernel.shape[:2], strides, dilation, pads, 0)
        return _product(shifted, kernel, groups)

    # XLA:CPU's convolution with groups is slow even without a derivative
    on_cpu = as_products if groups > 1 else _where_differentiated(as_products, as_lax)
    return lax.platform_dependent(x.astype(dtype), kernel.astype(dtype), cpu=on_cpu, default=as_lax)


def _where_differentiated(fast: Callable[..., Array], plain: Callable[..., Array]) -> Any:
    """`plain` for values, `fast` where a derivative is computed as well."""
    chosen = jax.custom_jvp(plain)
    chosen.defjvp(lambda primals, tangents: jax.jvp(fast, primals, tangents))
    return chosen


def _product(shifted: list[Array], kernel: Array, groups: int) -> Array:
    """One matrix product over the patches that the kernel reads, of all groups at once.

    It was the fastest of the forms measured (a sum of h * w products, transposed patches, a product
    for each group, a sum over the kernel's pixels for depthwise ones). Without groups it must be a
    product of two matrices, not of higher rank.
    """
    h, w, channels, features = kernel.shape
    runs = [s.reshape(-1, groups, channels) for s in shifted]
    patches = jnp.concatenate(runs, axis=-1)
    if groups == 1:
        y = patches.reshape(-1, h * w * channels) @ kernel.reshape(-1, features)
    else:
        y = jnp.einsum("ngk,kgo->ngo", patches, kernel.reshape(-1, groups, features // groups))
    return y.reshape(*shifted[0].shape[:3], features)


def max_pool(
    x: Array,
    window: int | Sequence[int],
    strides: int | Sequence[int] | None = None,
    padding: Padding = "VALID",
) -> Array:
    """Take the largest value of each window, as `jax.lax.reduce_window` does.

    Where several values are the largest, the first of them, row by row, gets the gradient.

    Args:
        x: (B, H, W, C).
        window: its rows and columns; an int sets both.
        strides: rows and columns between windows; by default the window's size, so that they do
            not overlap. (`flax.linen.max_pool` has 1.)
        padding: as in `conv2d`, with minus infinity. With "VALID" the rows and columns that fill no
            window are dropped.

    Returns:
        (B, H', W', C).

    Raises:
        ValueError: x is not images, or an argument is not one of the above.

    >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    if x.ndim != 4:
        raise ValueError(f"x must be (B, H, W, C), got {x.shape}")
    window = _pair("window", window, 1)
    strides = window if strides is None else _pair("strides", strides, 1)
    pads = _pads(padding, x.shape[1:3], window, strides)
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min

    def as_lax(x: Array) -> Array:
        around = [(0, 0), *pads, (0, 0)]
        least = np.array(lowest, x.dtype)
        return lax.reduce_window(x, least, lax.max, (1, *window, 1), (1, *strides, 1), around)

    def as_tournament(x: Array) -> Array:
        """Rounds of pairwise maxima: faster than one after the other, or than `max`."""
        left = _shifted(x, window, strides, (1, 1), pads, lowest)
        while len(left) > 1:
            odd = left[len(left) // 2 * 2 :]
            left = [_larger(a, b) for a, b in zip(left[::2], left[1::2], strict=False)] + odd
        return left[0]

    return lax.platform_dependent(
        x, cpu=_where_differentiated(as_tournament, as_lax), default=as_lax
    )


def _larger(a: Array, b: Array) -> Array:
    """`lax.max`, but where a == b the gradient is a's alone. NaN wins, as there."""
    return jnp.where((a >= b) | (a != a), a, b)


def _shifted(
    x: Array, window: Sequence[int], strides: Pair, dilation: Pair, pads: list[Pair], fill: float
) -> list[Array]:
    """What each pixel of the window reads: (B, H', W', C) for each, row by row.

    Rows are split into (blocks, stride): row i of a window is row i % stride of block i // stride.
    Slices of that are faster than slices with a stride, and their gradients too.
    """
    (h, w), (dh, dw), (sh, sw) = window, dilation, strides
    around, counts = [(0, 0, 0)], []
    for size, n, d, stride, (low, high) in zip(
        x.shape[1:3], window, dilation, strides, pads, strict=True
    ):
        last = (n - 1) * d
        count = max(0, (size + low + high - last - 1) // stride + 1)
        whole = (last // stride + count) * stride  # cuts rows off, or adds rows that are not read
        around.append((low, whole - size - low, 0))
        counts.append(count)
    rows, columns = counts
    x = lax.pad(x, np.array(fill, x.dtype), [*around, (0, 0, 0)])
    x = x.reshape(len(x), x.shape[1] // sh, sh, x.shape[2] // sw, sw, x.shape[3])
    return [
        x[:, i // sh : i // sh + rows, i % sh, j // sw : j // sw + columns, j % sw]
        for i in range(0, h * dh, dh)
        for j in range(0, w * dw, dw)
    ]


def _pair(name: str, value: Any, least: int | None = None) -> Pair:
    both = (value, value) if isinstance(value, int) else value
    match both:
        case [int(a), int(b)] if least is None or min(a, b) >= least:
            return a, b
    bound = "" if least is None else f" of at least {least}"
    raise ValueError(f"{name} must be an int or a pair of ints{bound}, got {value!r}")


def _pads(
    padding: Padding, sizes: Sequence[int], spans: Sequence[int], strides: Pair
) -> list[Pair]:
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                "padding must be 'SAME', 'VALID' or ((top, bottom), (left, right)), got "
                f"{padding!r}"
            )
        return [(low, high) for low, high in lax.padtype_to_pads(sizes, spans, strides, padding)]
    both = (padding, padding) if isinstance(padding, int) else padding
    if len(both) != 2:
        raise ValueError(f"padding must be ((top, bottom), (left, right)), got {padding!r}")
    return [_pair("padding", one) for one in both]


class Conv(nn.Module):
    """Convolution over images, (B, H, W, C) to (B, H', W', features): see `conv2d`.

    Its attributes and parameters are those of `flax.linen.Conv`: `kernel` (h, w,
    C / feature_group_count, features) and `bias` (features,).

    Attributes:
        features: the number of output channels.
        kernel_size: (h, w).
        strides: rows and columns between one output and the next.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)).
        kernel_dilation: rows and columns between the pixels that the kernel reads.
        feature_group_count: number of groups, see `conv2d`.
        use_bias: add a bias.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.

    >>> shapes = jax.eval_shape(Conv(8, strides=2).init, jax.random.key(0), jnp.ones((1, 9, 9, 4)))
    >>> shapes["params"]["kernel"].shape
    (3, 3, 4, 8)
    """

    features: int
    kernel_size: Sequence[int] = (3, 3)
    strides: int | Sequence[int] = 1
    padding: Padding = "SAME"
    kernel_dilation: int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Convolve (B, H, W, C) to (B, H', W', features)."""
        groups = self.feature_group_count
        if groups < 1 or x.shape[-1] % groups or self.features % groups:
            raise ValueError(
                f"feature_group_count must divide {x.shape[-1]} (channels) and {self.features} "
                f"(features), got {groups}"
            )
        shape = (*_pair("kernel_size", self.kernel_size, 1), x.shape[-1] // groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        y = conv2d(x, kernel, self.strides, self.padding, self.kernel_dilation, groups)
        if self.use_bias:
            y += self.param("bias", self.bias_init, (self.features,)).reshape(1, 1, 1, -1)
        return y
