"""Matrix products in 16 bits with float32 sums, where the hardware is faster in 16 bits."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from jaxops.nn.packed import Packed, int8_product

Array = jax.Array
Initializer = Callable[..., Array]

# part of every jit cache's key, so that a program traced for one is never used for the other
_compute = jax.make_user_context("float32")


@contextmanager
def computing(compute: str) -> Iterator[None]:
    """Set how `matmul` computes in programs that are traced inside this context.

    Args:
        compute: "float32", "bfloat16" or "float16", see `matmul`; a layer's `compute` has priority.

    Raises:
        ValueError: another word.

    >>> with computing("float16"):
    ...     float(matmul(jnp.ones((1, 1)), jnp.full((1, 1), 1.001))[0, 0])
    1.0009765625
    """
    with _compute(check_compute(compute)):
        yield


def computing_in() -> str:
    """Return the `compute` of the innermost `computing` context, by default "float32".

    >>> computing_in()
    'float32'
    """
    return str(_compute.value)


def check_compute(compute: str) -> str:
    """Return `compute`, or raise `ValueError` if it is unknown."""
    if compute not in ("float32", "bfloat16", "float16"):
        raise ValueError(f'compute must be "float32", "bfloat16" or "float16", got {compute!r}')
    return compute


@functools.cache
def has_bfloat16() -> bool:
    """Whether this backend multiplies bfloat16 faster than float32.

    Accelerators do; a CPU does with AMX or AVX512_BF16 instructions, as Linux names them.
    """
    if jax.default_backend() != "cpu":
        return True
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text().split() if cpuinfo.exists() else []
    return not {"amx_bf16", "avx512_bf16"}.isdisjoint(flags)


def matmul(x: Array, y: Array, compute: str | None = None) -> Array:
    """Multiply matrices, forward and backward on the platform's fast path.

    In "bfloat16" both factors, and the gradients in the backward products, are rounded to 8 bits of
    mantissa (relative error 2**-9 each); products are exact and sums float32. On a CPU the operands
    are copied to row-major order where needed, because XLA has no fast path for others. A CPU
    without bfloat16 instructions multiplies in float32.

    "float16" keeps 11 bits of mantissa, but gradients below 6e-8 become 0 and those above 65504
    infinite; see `optim.loss_scale`. It is meant for GPUs older than bfloat16; on a CPU it rounds
    as well, and is slow.

    Args:
        x: float (..., k), or (..., m, k) where `y` is batched.
        y: float (k, n), or (..., k, n) with the leading axes of `x`.
        compute: "float32", "bfloat16" or "float16"; by default that of `fit(compute=)` or
            `computing`, else "float32". In 16 bits there is no forward-mode derivative.

    Returns:
        (..., n) or (..., m, n): float32, or in "float32" the type that the factors promote to.

    Raises:
        ValueError: the shapes do not fit, or `compute` is another word.

    >>> matmul(jnp.ones((2, 3, 4)), jnp.ones((4, 5))).shape
    (2, 3, 5)
    """
    compute = check_compute(compute or _compute.value)
    batched = y.ndim > 2
    leading = x.shape[:-2] if batched else ()
    if x.shape[-1:] != y.shape[-2:-1] or y.shape[:-2] != leading:
        raise ValueError(
            "x and y must be (..., k) and (k, n), or (..., m, k) and (..., k, n), got "
            f"{x.shape} and {y.shape}"
        )
    product = jnp.matmul
    if compute == "float16" or (compute == "bfloat16" and has_bfloat16()):
        # so that gradients are of the factors' own types, whatever these are
        x, y = x.astype(jnp.float32), y.astype(jnp.float32)
        product = functools.partial(_low_product, compute)
    if batched:
        return product(x, y)
    # of two matrices: the gradient's product over several axes would be slower on a CPU
    return product(x.reshape(-1, x.shape[-1]), y).reshape(*x.shape[:-1], y.shape[-1])


def _dot(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, preferred_element_type=jnp.float32)


def _row_major(x: Array) -> Array:
    """Copy a transposed matrix to row-major order on a CPU; not batches, which are faster as is."""
    if x.ndim > 2:
        return x
    layout = Layout(major_to_minor=(0, 1))
    return lax.platform_dependent(
        x, cpu=lambda x: with_layout_constraint(x, layout), default=lambda x: x
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_product(dtype: str, x: Array, y: Array) -> Array:
    return _forward(dtype, x, y)[0]


def _forward(dtype: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    x, y = x.astype(dtype), _row_major(y.astype(dtype))  # it may be a table transposed
    return _dot(x, y), (x, y)


def _backward(dtype: str, saved: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, y = saved
    g = g.astype(dtype)
    # the result too: a transposition after it would be put into the product
    return _dot(g, _row_major(y.mT)), _row_major(_dot(_row_major(x.mT), g))


_low_product.defvjp(_forward, _backward)


class Dense(nn.Module):
    """`x @ kernel + bias` over the last axis: `flax.linen.Dense` with the product of `matmul`.

    Its parameters are named and shaped as Flax's: `kernel` (inputs, features), `bias` (features,).

    Attributes:
        features: the number of outputs.
        use_bias: add a bias.
        compute: see `matmul`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.

    >>> shapes = jax.eval_shape(Dense(5).init, jax.random.key(0), jnp.ones((2, 3)))
    >>> shapes["params"]["kernel"].shape, shapes["params"]["bias"].shape
    ((3, 5), (5,))
    """

    features: int
    use_bias: bool = True
    compute: str | None = None
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., inputs) to (..., features)."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        stored: Any = self.get_variable("params", "kernel")
        if isinstance(stored, Packed) and stored.inputs is not None:
            y = int8_product(x, stored)
        else:
            y = matmul(x, kernel, self.compute)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y += bias.reshape(*[1] * (y.ndim - 1), -1)
        return y
