"""Losses that reduce a whole row to one value; those of optax are elementwise.

For cross-entropy, binary or over classes, use optax: `optax.sigmoid_binary_cross_entropy`,
`optax.softmax_cross_entropy`, `optax.softmax_cross_entropy_with_integer_labels`.

"Squared error" can mean two losses, the mean or half the sum over a row. For rows of n values their
gradients differ by the factor n/2, and so do suitable learning rates. Each has its own name here.
"""

import jax
import optax

__all__ = [
    "half_sum_squares",
    "mse",
    "smoothed_cross_entropy",
]

Array = jax.Array


def mse(predictions: Array, targets: Array) -> Array:
    """Mean of the squared errors of each row: (1/n) Σ (ŷ - y)².

    Args:
        predictions: (B, ...), float.
        targets: the same shape; it is never broadcast.

    Returns:
        (B,): the mean over every axis but the first.

    Raises:
        ValueError: the shapes differ.

    Source: article 000, section 4.1.

    >>> import jax.numpy as jnp
    >>> mse(jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.zeros((2, 2))).tolist()
    [2.5, 8.0]
    """
    errors = optax.squared_error(predictions, targets)
    return errors.mean(axis=tuple(range(1, errors.ndim)))


def half_sum_squares(predictions: Array, targets: Array) -> Array:
    """Half the sum of the squared errors of each row: ½ Σ (ŷ - y)²; its gradient is ŷ - y.

    Args:
        predictions: (B, ...), float.
        targets: the same shape; it is never broadcast.

    Returns:
        (B,): the sum over every axis but the first.

    Raises:
        ValueError: the shapes differ.

    Source: article 003, section 4.1, which calls it MSE.

    >>> import jax.numpy as jnp
    >>> half_sum_squares(jnp.array([[1.0, 2.0, 3.0]]), jnp.zeros((1, 3))).tolist()
    [7.0]
    """
    errors = optax.l2_loss(predictions, targets)
    return errors.sum(axis=tuple(range(1, errors.ndim)))


def smoothed_cross_entropy(logits: Array, label: Array, smoothing: float) -> Array:
    """Cross-entropy with integer labels, where a share of each label is spread over all classes.

    The target is (1 - smoothing) * onehot(label) + smoothing / C; with smoothing 0 it is the plain
    cross-entropy.

    Args:
        logits: (..., C), float.
        label: (...), integers in [0, C).
        smoothing: the share, in [0, 1); a Python number.

    Returns:
        (...).

    References:
        Szegedy et al. 2015, arXiv:1512.00567.

    >>> import jax.numpy as jnp
    >>> loss = smoothed_cross_entropy(jnp.array([[0.0, 0.0]]), jnp.array([1]), smoothing=0.1)
    >>> [round(float(v), 4) for v in loss]
    [0.6931]
    """
    if not smoothing:
        return optax.softmax_cross_entropy_with_integer_labels(logits, label)
    target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
    return optax.softmax_cross_entropy(logits, target)


def over_members(values: Array, rank: int) -> Array:
    """The mean over the members of an ensemble in one module; without members, the values.

    Args:
        values: with `rank` axes, if there are no members; or (B, members, ...), with one axis more.
        rank: number of axes without members: 1 for (B,), 2 for (B, C).

    >>> import jax.numpy as jnp
    >>> over_members(jnp.array([[1.0, 3.0]]), rank=1).tolist()
    [2.0]
    """
    return values.mean(1) if values.ndim > rank else values
