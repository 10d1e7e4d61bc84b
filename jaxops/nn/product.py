"""Matrix products in 16 bits with float32 sums, where the hardware is faster that way."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

Array = jax.Array
Initializer = Callable[..., Array]

# part of every jit cache's key, so that a program traced for one is never used for the other
_compute = jax.make_user_context("float32")


@contextmanager
def computing(compute: str) -> Iterator[None]:
    """What is traced inside multiplies matrices so, where a layer does not say otherwise.

    >>> with computing("bfloat16"):
    ...     float(matmul(jnp.ones((1, 1)), jnp.full((1, 1), 1.001))[0, 0])
    1.0
    """
    with _compute(check_compute(compute)):
        yield


def computing_in() -> str:
    """What `computing` says here.

    >>> computing_in()
    'float32'
    """
    return str(_compute.value)


def check_compute(compute: str) -> str:
    """Raise `ValueError` for another word than "float32", "bfloat16" or "float16"."""
    if compute not in ("float32", "bfloat16", "float16"):
        raise ValueError(f'compute: {compute!r} found, "float32", "bfloat16" or "float16" wanted')
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
    """The matrix product, with its backward products on the fast path of the platform as well.

    In "bfloat16" both factors, and the gradients that come back, are rounded to 8 bits of
    mantissa (relative error 2**-9 each); products are exact and sums float32. A CPU gets row-major
    operands, transposed in memory where need be: XLA has no fast path for others. One without
    instructions for bfloat16 (see `has_bfloat16`) multiplies float32.

    "float16" keeps 11 bits of mantissa, but gradients below 6e-8 vanish and those above 65504 are
    infinite, for which there is `optim.loss_scale`. It is for GPUs that are older than bfloat16; on
    a CPU it is slow, and rounds all the same.

    Args:
        x: (..., k), or (..., m, k) where `y` is batched.
        y: (k, n), or (..., k, n) with the leading axes of `x`.
        compute: "float32", "bfloat16" or "float16"; by default what `fit(compute=)` says, else
            "float32". In 16 bits there is no forward-mode derivative.

    Returns:
        (..., n) or (..., m, n): float32, or in "float32" what the factors' types promote to.

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
            f"matmul: {x.shape} and {y.shape} found, (..., k) and (k, n) "
            "or (..., m, k) and (..., k, n) wanted"
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
    """A transposed matrix laid out anew on a CPU; batches of small ones are faster left alone."""
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
    """`x @ kernel + bias` over the last axis: `flax.linen.Dense` with a fast product.

    Its parameters are named and shaped as Flax's: `kernel` (inputs, features), `bias` (features,).

    Attributes:
        features: the number of outputs.
        use_bias: add a bias.
        compute: see `matmul`.
        kernel_init: initializer of the kernel.
        bias_init: initializer of the bias.
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
        y = matmul(x, kernel, self.compute)
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y += bias.reshape(*[1] * (y.ndim - 1), -1)
        return y
