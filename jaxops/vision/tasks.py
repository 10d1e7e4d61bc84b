"""Tasks on images."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.data.checks import class_names
from jaxops.losses import smoothed_cross_entropy
from jaxops.task import Batch, Column, Key, Task, recorded, supervised

Array = jax.Array


@recorded(formerly={"model": "module"})
def classifier(
    module: Any,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    classes: int | tuple[str, ...] = 10,
    mean: float | tuple[float, ...] = 0.0,
    std: float | tuple[float, ...] = 1.0,
    augment: Callable[[Key, Array], Array] | None = None,
    label_smoothing: float = 0.0,
) -> Task:
    """Image classification: softmax cross-entropy over the module's logits.

    A batch holds `image`, uint8 (B, *image_shape), and `label`, integers (B,) in [0, classes).
    Images stay bytes until the step, which scales them to (image / 255 - mean) / std.
    With label smoothing s and C classes, the loss of a row with logits z and label y is
    -sum_c q_c log softmax(z)_c, where q_c = (1 - s) [c = y] + s / C.

    Args:
        module: a Flax module, images (B, H, W, C) float32 to logits (B, classes).
        image_shape: (H, W, C).
        classes: number of classes, or their names in order.
        mean: is subtracted from an image in [0, 1]; one number or one for each channel.
        std: divides the difference; one number or one for each channel.
        augment: changes training images before mean and std are applied, `(key, images in
            [0, 1]) -> images`; see `jaxops.data.augment`.
        label_smoothing: s, in training; an evaluation has no label smoothing.

    Returns:
        A task whose predictions are probabilities (B, classes), with the metrics loss and accuracy.

    Raises:
        ValueError: the module's `classes` differ from the task's, or the names are invalid or not
            distinct.

    References:
        Szegedy et al. 2015, "Rethinking the Inception Architecture", arXiv:1512.00567 (label
        smoothing).

    >>> from jaxops import vision
    >>> vision.classifier(vision.MLP(classes=2), classes=("cat", "dog")).classes
    ('cat', 'dog')
    """
    names = class_names(classes)
    if getattr(module, "classes", len(names)) != len(names):
        raise ValueError(
            f"module.classes must be {len(names)} (the task's {names}), got {module.classes}"
        )
    middle, scale = (np.reshape(v, (1, 1, 1, -1)).astype(np.float32) for v in (mean, std))

    def inputs(batch: Batch, key: Key | None) -> Array:
        x = batch["image"].astype(jnp.float32) / 255
        if augment is not None and key is not None:
            x = augment(key, x)
        return (x - middle) / scale

    def cross_entropy(logits: Array, batch: Batch, train: bool) -> Array:
        return smoothed_cross_entropy(logits, batch["label"], label_smoothing if train else 0.0)

    return supervised(
        module,
        inputs,
        cross_entropy,
        lambda logits, b, w: {"accuracy": metrics.accuracy(logits, b["label"], w)},
        jax.nn.softmax,
        (
            Column("image", image_shape, "uint8"),
            Column("label", (), "int", classes=len(names), target=True),
        ),
        names,
    )
