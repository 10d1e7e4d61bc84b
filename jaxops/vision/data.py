"""A user's own image files as the rows that a vision task reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxops.data.images import read_image


def read_images(paths: Sequence[str | Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Read image files as a column `image`, upright and resized to one shape.

    For a folder for each class see `jaxops.data.Dataset.from_image_folder`.

    Args:
        paths: the files, in any format that Pillow reads with 8 bits a channel.
        image_shape: (H, W, C) as in the task; C is 3 for colour, 1 for grey.

    Returns:
        uint8 (N, H, W, C), in the order of `paths`.

    Raises:
        ValueError: one path instead of several, no paths, C other than 1 or 3, or a file that is
            not an image, which the message names.
        FileNotFoundError: no such file.

    >>> import tempfile
    >>> from PIL import Image
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Image.new("L", (56, 56), color=255).save(f"{folder}/white.png")
    ...     images = read_images([f"{folder}/white.png"], (28, 28, 1))
    >>> images.shape, images.dtype, int(images.min())
    ((1, 28, 28, 1), dtype('uint8'), 255)
    """
    if isinstance(paths, str | Path):
        raise ValueError(f"paths must be a list of files, got one path {str(paths)!r}")
    if len(paths) == 0:
        raise ValueError("paths must name at least 1 file, got none")
    height, width, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"image_shape must end with 1 (grey) or 3 (colour), got {image_shape}")
    return np.stack([read_image(Path(path), (height, width), channels) for path in paths])
