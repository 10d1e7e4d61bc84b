"""What a trained classifier says of images: the likeliest classes and their probabilities."""

from typing import NamedTuple

import numpy as np

from jaxops.state import TrainState
from jaxops.task import Task
from jaxops.train.evaluation import predict


class Labelled(NamedTuple):
    """The likeliest classes of each image, the likeliest first.

    Attributes:
        labels: `str` objects (N, k), names of classes.
        probabilities: float32 (N, k).
    """

    labels: np.ndarray
    probabilities: np.ndarray


def classify(task: Task, state: TrainState, images: np.ndarray, k: int = 1) -> Labelled:
    """Name the `k` likeliest classes of each image.

    Args:
        task: see `vision.classifier`.
        state: its trained state.
        images: uint8 (N, H, W, C) as the task reads them; `vision.read_images` makes them of files.
        k: number of classes for each image, 1 to all of them.

    Returns:
        `Labelled`. Of classes with equal probability the one with the lower number comes first.

    Raises:
        ValueError: `k` out of range, or images of another shape or dtype.

    >>> import jaxops as jo
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP(classes=2), (2, 2, 1), classes=("cat", "dog"))
    >>> images = np.zeros((1, 2, 2, 1), np.uint8)
    >>> state = jo.init_state(task, jo.optim.adam(0.001), 0, {"image": images})
    >>> vision.classify(task, state, images)
    Labelled(labels=array([['cat']], dtype=object), probabilities=array([[0.5]], dtype=float32))
    """
    if not 1 <= k <= len(task.classes):
        raise ValueError(f"k must be in [1, {len(task.classes)}] (number of classes), got {k}")
    probabilities = predict(task, state, {"image": images})
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    names = np.array(task.classes, object)
    return Labelled(names[best], np.take_along_axis(probabilities, best, axis=1))
