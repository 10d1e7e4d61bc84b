"""Normalisation of each window, which the forecast undoes."""

import jax
import jax.numpy as jnp

Array = jax.Array
KINDS = ("none", "mean_std", "last", "mean")


def normalize(
    values: Array, instance_norm: str, epsilon: float = 1e-5
) -> tuple[Array, Array | None, Array | None]:
    """Normalise each window and channel by itself: `(values - loc) / scale`.

    "mean_std" uses the mean and sqrt(variance + epsilon), so that a constant window becomes zeros.
    This is reversible instance normalisation (Kim et al. 2022, ICLR) without a learned affine map.
    "last" subtracts the last value, as NLinear does. "mean" divides by the mean absolute value, or
    by 1 if all values are 0. It does not shift the values, which suits counts (Salinas et al. 2020,
    arXiv:1704.04110).

    Args:
        values: (B, L, C).
        instance_norm: "none", "mean_std", "last" or "mean".
        epsilon: added to the variance for "mean_std".

    Returns:
        The normalised values (B, L, C); loc and scale, (B, 1, C), or `None` for 0 and 1.

    Raises:
        ValueError: `instance_norm` is unknown.

    >>> normalize(jnp.array([[[1.0], [3.0]]]), "last")[0].ravel().tolist()
    [-2.0, 0.0]
    """
    if instance_norm not in KINDS:
        raise ValueError(f"instance_norm must be one of {KINDS}, got {instance_norm!r}")
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
