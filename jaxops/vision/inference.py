"""Functions for a finished classifier: the likeliest classes of images, with probabilities."""

from typing import NamedTuple

import numpy as np

from jaxops.model.finished import Model, inside
from jaxops.vision.data import ImageReader, Images


class Labelled(NamedTuple):
    """The likeliest classes of each image, the likeliest first.

    Attributes:
        labels: `str` objects (N, k), names of classes.
        probabilities: float32 (N, k).
    """

    labels: np.ndarray
    probabilities: np.ndarray


def reader_of(model: Model) -> ImageReader:
    """The reader of a vision model; for a model without one, a reader for its image shape.

    Raises:
        ValueError: the model belongs to another room.
    """
    columns = getattr(model.task, "columns", ())
    if model.reader is None and columns and columns[0].name == "image":
        *size, channels = columns[0].shape
        return ImageReader(tuple(size), channels)
    reader: ImageReader = inside(
        model, lambda part: isinstance(part, ImageReader), "of the vision room"
    )
    return reader


def classify(model: Model, data: Images, k: int = 1) -> Labelled:
    """Name the `k` likeliest classes of each image.

    Args:
        model: a model from `vision.fit`, or `jaxops.Model(task, state)`.
        data: a folder, files, or an array; see `ImageReader.images`.
        k: number of classes for each image, 1 to all of them.

    Returns:
        `Labelled`. Of classes with equal probability, the one with the lower index comes first.

    Raises:
        ValueError: `k` out of range, or images that cannot be read.

    >>> import jaxops as jo
    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP(classes=2), (2, 2, 1), classes=("cat", "dog"))
    >>> images = np.zeros((1, 2, 2, 1), np.uint8)
    >>> state = jo.init_state(task, jo.optim.adam(0.001), 0, {"image": images})
    >>> vision.classify(jo.Model(task, state), images)
    Labelled(labels=array([['cat']], dtype=object), probabilities=array([[0.5]], dtype=float32))
    """
    reader, names = reader_of(model), model.task.classes
    if not 1 <= k <= len(names):
        raise ValueError(f"k must be in [1, {len(names)}] (number of classes), got {k}")
    answer = reader.predict(model, data)
    best = np.argsort(-answer.probabilities, axis=1, kind="stable")[:, :k]
    told = np.take_along_axis(answer.probabilities, best, axis=1)
    return Labelled(np.array(names, object)[best], told)
