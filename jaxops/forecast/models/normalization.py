"""Normalisation of each window by itself, undone in the forecast."""

import jax
import jax.numpy as jnp

Array = jax.Array
KINDS = ("none", "mean_std", "last", "mean")


def normalize(
    values: Array, instance_norm: str, epsilon: float = 1e-5
) -> tuple[Array, Array | None, Array | None]:
    """`(values - loc) / scale`, of each window and channel by itself.

    "mean_std" takes mean and standard deviation, sqrt(variance + epsilon), so that a constant
    window becomes zeros: reversible instance normalisation (Kim et al. 2022, ICLR), without a
    learned affine. "last" subtracts the last value, as NLinear does. "mean" divides by the mean
    absolute value, which keeps counts counts (Salinas et al. 2020, arXiv:1704.04110); where all are
    zero by 1.

    Args:
        values: (B, L, C).
        instance_norm: "none", "mean_std", "last" or "mean".
        epsilon: see above.

    Returns:
        The same shape; loc and scale, (B, 1, C) or `None` for 0 and 1.

    Raises:
        ValueError: another word.

    >>> normalize(jnp.array([[[1.0], [3.0]]]), "last")[0].ravel().tolist()
    [-2.0, 0.0]
    """
    if instance_norm not in KINDS:
        raise ValueError(f"instance_norm: {instance_norm!r} found, one of {KINDS} wanted")
    if instance_norm == "none":
        return values, None, None
    if instance_norm == "last":
        last = values[:, -1:]
        return values - last, last, None
    if instance_norm == "mean":
        size = abs(values).mean(1, keepdims=True)
        size = jnp.where(size > 0, size, 1)
        return values / size, None, size
    mean = values.mean(1, keepdims=True)
    scale = jnp.sqrt(values.var(1, keepdims=True) + epsilon)
    return (values - mean) / scale, mean, scale
