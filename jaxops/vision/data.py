"""A user's own images as columns of a vision task, and the reader of a finished model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxops.data.checks import check
from jaxops.data.images import check_shape, class_names, image_files, read_image
from jaxops.model.finished import Classes, Model
from jaxops.task import Column, recorded

Images = Any
"""A folder, a list of files, an array uint8 (N, H, W, C), or one of these in a dict as `image`."""


def files_of(source: Images) -> list[Path] | None:
    """The files that the source lists, or that are in its folder; None for an array of pixels.

    Raises:
        ValueError: the source is neither files nor an array.
    """
    if isinstance(source, Mapping):
        if "image" not in source:
            raise ValueError(f"data must have a column 'image', got {', '.join(source)}")
        source = source["image"]
    if isinstance(source, str | Path):
        return image_files(Path(source)) if Path(source).is_dir() else [Path(source)]
    if getattr(getattr(source, "dtype", None), "kind", "O") not in "OUT":
        return None
    if not hasattr(source, "__len__") or hasattr(source, "columns"):
        wrong = type(source).__name__
    else:
        wrong = next((type(x).__name__ for x in source if not isinstance(x, str | Path)), "")
    if wrong:
        raise ValueError(
            "images must be a folder, a list of files, one uint8 array (N, H, W, C), or one of "
            f"these in a dict as image, got {wrong}"
        )
    return [Path(path) for path in source]


def read_images(paths: Sequence[str | Path], image_shape: tuple[int, int, int]) -> np.ndarray:
    """Read image files as a column `image`, upright and resized to one shape.

    To read a folder with a subfolder for each class, use
    `jaxops.data.Dataset.from_image_folder`.

    Args:
        paths: the files, in any format that Pillow reads with 8 bits a channel.
        image_shape: (H, W, C) as in the task; C is 3 for colour, 1 for grey.

    Returns:
        uint8 (N, H, W, C), in the order of `paths`.

    Raises:
        ValueError: one path instead of a list, no paths, C other than 1 or 3, or a file that is not
            an image (the message names it).
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
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C), got {image_shape}")
    height, width, channels = image_shape
    check_shape((height, width), channels)
    return np.stack([read_image(Path(path), (height, width), channels) for path in paths])


@recorded
@dataclass(frozen=True)
class ImageReader:
    """The reader of a finished vision model.

    Attributes:
        size: (height, width) to which files are resized.
        channels: 3 for colour, 1 for grey.

    >>> ids, images = ImageReader((2, 2), 1).images(np.zeros((3, 2, 2), np.uint8))
    >>> ids.tolist(), images.shape
    ([0, 1, 2], (3, 2, 2, 1))
    """

    room: ClassVar[str] = "vision"
    size: tuple[int, int]
    channels: int = 3

    def images(self, source: Images) -> tuple[np.ndarray, np.ndarray]:
        """The ids and the images, uint8 (N, H, W, C).

        Args:
            source: a folder, whose images (also in subfolders) are read in order of their paths; a
                list or column of files, or one file; an array (N, H, W, C) or, for grey images,
                (N, H, W); or a dict with files or an array as `image`.

        Raises:
            ValueError: no images, a file that is not an image, or an array of another shape or
                dtype.
            FileNotFoundError: no such file.
        """
        shape, files = (*self.size, self.channels), files_of(source)
        if files is not None:
            return np.array([str(path) for path in files], object), read_images(files, shape)
        images = np.asarray(source["image"] if isinstance(source, Mapping) else source)
        images = images[..., None] if images.ndim == 3 and self.channels == 1 else images
        check({"image": images}, (Column("image", shape, "uint8"),))
        return np.arange(len(images)), images

    def columns(
        self, source: Images, classes: tuple[str, ...]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The ids, and the columns of the task.

        Args:
            source: a folder that holds a folder for each class; or a dict with `image`, an array or
                files, and `label`.
            classes: the names of the classes.

        Raises:
            ValueError: see `images`; or a label that is not one of the classes.
        """
        ids, images = self.images(source)
        names = labels_of(source, ids)
        number = {name: i for i, name in enumerate(classes)}
        unknown = next((row for row, name in enumerate(names) if name not in number), None)
        if unknown is not None:
            raise ValueError(
                f"label must be one of {', '.join(classes)}, got {names[unknown]!r} in row "
                f"{unknown}"
            )
        if len(names) != len(images):
            raise ValueError(f"label must have {len(images)} rows, as image, got {len(names)}")
        return ids, {"image": images, "label": np.array([number[n] for n in names], np.int32)}

    def predict(self, model: Model, data: Images) -> Classes:
        """Classes with their probabilities for images.

        Args:
            model: the model.
            data: see `images`.
        """
        ids, images = self.images(data)
        p, classes = model.outputs({"image": images}), model.task.classes
        return Classes(ids, np.array(classes, object)[p.argmax(1)], p, classes)

    def exported(self, model: Model) -> dict[str, Any]:
        """What it knows, as plain data for `jaxops.export`; files are not read there."""
        return {"kind": "images", "channels": self.channels, "classes": [*model.task.classes]}


def _name(row: int, label: Any) -> str:
    if label is None or label == "" or label != label:
        raise ValueError(f"label must have a value in every row, got {label!r} in row {row}")
    return str(int(label)) if isinstance(label, float) and label % 1 == 0 else str(label)


def labels_of(source: Images, ids: np.ndarray) -> list[str]:
    """The name of each image's class: its subfolder in the folder, or its value in `label`."""
    if isinstance(source, Mapping):
        if "label" not in source:
            raise ValueError(f"data must have a column 'label', got {', '.join(source)}")
        label = np.asarray(source["label"])
        if label.ndim != 1:
            raise ValueError(f"label must be one name or number a row, got {label.shape}")
        return [_name(row, one) for row, one in enumerate(label.tolist())]
    if not isinstance(source, str | Path) or not Path(source).is_dir():
        raise ValueError(
            "data must be a folder with a folder for each class, or a dict with image (an array or "
            f"files) and label, got {type(source).__name__}"
        )
    class_names(Path(source))
    return [Path(path).relative_to(source).parts[0] for path in ids]
