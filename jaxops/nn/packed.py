"""Parameters stored in 4, 8 or 16 bits, which Flax modules read as float32: `Packed`."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax.core import meta
from jax import lax

from jaxops.task import recorded

Array = jax.Array
FLOATS = {"bf16": jnp.bfloat16, "fp8": jnp.float8_e4m3fn}
STORED = {"int8": jnp.int8, "int4": jnp.int8, "bf16": jnp.uint16, "fp8": jnp.uint8}
LIMITS = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
"""The largest stored number of a form; "bf16" has the range of float32."""


@recorded
@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Packed(meta.AxisMetadata[Any]):
    """A float32 array in fewer bits: w = scale * q, with a scale for each output channel.

    It takes the place of an array among the parameters of a Flax module. The module reads it as an
    array: Flax unboxes what is an `AxisMetadata`. The values stay in few bits in the state and in
    the file; the compiled program makes float32 of them.

    The forms are "int8", "int4" (two in a byte: those of the first half of the last axis in the low
    bits, those of the second half in the high bits), "bf16" (bfloat16, without a scale), and "fp8"
    (float8_e4m3fn). The bits of "bf16" and "fp8" are stored as integers, so that every file format
    holds them.

    Attributes:
        values: the stored bits, int8, uint8 or uint16, of the shape of the array; of "int4" the
            last axis is half as long, rounded up.
        scale: float32, as many axes as the array, with 1 for those that share a scale; None of
            "bf16".
        inputs: float32 (), the scale of the inputs of a product in int8, see `int8_product`; None
            for a product in float32.
        form: one of the forms.
        length: the length of the last axis of the array.

    >>> half = pack(jnp.array([[1.0, -2.0, 0.5]]), "int4", scale=jnp.full((1, 1), 0.25))
    >>> isinstance(half, Packed), half.values.shape, half.shape, half.unbox().tolist()
    (True, (1, 2), (1, 3), [[1.0, -1.75, 0.5]])
    """

    values: Any
    scale: Any
    inputs: Any
    form: str = field(metadata={"static": True})
    length: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return (*self.values.shape[:-1], self.length)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements of the array."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> "Packed":
        """The rows of a slice, or of integers of any shape, with their own or the shared scales."""
        scale = self.scale
        if scale is not None and len(scale) == len(self.values):
            scale = scale[rows]
        return replace(self, values=self.values[rows], scale=scale)

    def unbox(self) -> Array:
        """The array, float32."""
        x = jnp.asarray(self.values)
        if self.form in FLOATS:
            x = lax.bitcast_convert_type(x, FLOATS[self.form])
        elif self.form == "int4":
            low = jnp.right_shift(jnp.left_shift(x, 4), 4)  # with the sign
            x = jnp.concatenate([low, jnp.right_shift(x, 4)], -1)[..., : self.length]
        x = x.astype(jnp.float32)
        if self.scale is None:
            return x
        scale = jnp.asarray(self.scale)
        return x * scale.reshape((1,) * (x.ndim - scale.ndim) + scale.shape)

    def __jax_array__(self) -> Array:
        return self.unbox()

    def replace_boxed(self, val: Any) -> Any:
        """A new array instead; see `flax.core.meta.AxisMetadata`."""
        return val

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Packed":
        """The arrays have the axis already, also in `nn.scan`."""
        return self

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Packed":
        """See `add_axis`."""
        return self


def pack(x: Array, form: str, scale: Array | None = None) -> Packed:
    """An array in fewer bits: q = round(x / scale), limited to the range of the form.

    Args:
        x: float32, any shape with at least one axis.
        form: "int8", "int4", "bf16" or "fp8".
        scale: see `Packed`; None of "bf16".

    >>> pack(jnp.array([0.3, -1.0]), "int8", scale=jnp.array([0.01])).values.tolist()
    [30, -100]
    """
    if scale is not None:
        x = jnp.clip(x / scale, -LIMITS[form], LIMITS[form])
    if form in FLOATS:
        bits = lax.bitcast_convert_type(x.astype(FLOATS[form]), STORED[form])
        return Packed(bits, scale, None, form, x.shape[-1])
    q = jnp.round(x).astype(jnp.int8)
    if form == "int4":
        half = -(-x.shape[-1] // 2)
        low, high = q[..., :half], q[..., half:]
        high = jnp.pad(high, [(0, 0)] * (x.ndim - 1) + [(0, 2 * half - x.shape[-1])])
        q = jnp.bitwise_or(jnp.left_shift(high, 4), jnp.bitwise_and(low, 15))
    return Packed(q, scale, None, form, x.shape[-1])


def unpacked(x: Any) -> Any:
    """The array of a `Packed`; anything else as it is.

    >>> unpacked(pack(jnp.ones(2), "bf16")).tolist()
    [1.0, 1.0]
    """
    return x.unbox() if isinstance(x, Packed) else x


def is_packed(x: Any) -> bool:
    """Whether something is a `Packed`, for `jax.tree.map(is_leaf=)`.

    >>> is_packed(jnp.ones(2))
    False
    """
    return isinstance(x, Packed)


def int8_product(x: Array, kernel: Packed) -> Array:
    """The product of rows with an int8 kernel, where the rows are rounded to int8 as well.

    The sums are exact in int32, and the scales are multiplied after them:
    y = (inputs * scale) * (round(x / inputs) @ q).

    Args:
        x: float (..., k).
        kernel: (k, n), "int8" with `inputs`.

    >>> kernel = pack(jnp.array([[2.0], [4.0]]), "int8", scale=jnp.full((1, 1), 0.5))
    >>> int8_product(jnp.array([[1.0, 0.5]]), replace(kernel, inputs=jnp.float32(0.5))).tolist()
    [[4.0]]
    """
    q = jnp.clip(jnp.round(x / kernel.inputs), -127, 127).astype(jnp.int8)
    sums = lax.dot_general(
        q.reshape(-1, q.shape[-1]),
        kernel.values,
        (((1,), (0,)), ((), ())),
        preferred_element_type=jnp.int32,
    )
    y = sums.astype(jnp.float32) * (kernel.inputs * kernel.scale)
    return y.reshape(*x.shape[:-1], kernel.length)
