"""Image files and folders of images as columns."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxops._optional import require

SUFFIXES = {
    *(".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
}
SPLITS = {  # folders with these names that hold folders are splits
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}


def split_folders(path: Path) -> dict[str, Path]:
    """The folder of each split, which holds the class folders: `path` itself as "train", or the
    folders in it that are named like splits, such as train/ and val/.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no split for training, there are two folders for one split, or there
            are other folders.
    """
    folders = _folders(path)
    found = [f for f in folders if f.name.lower() in SPLITS and not _images(f) and _folders(f)]
    if not found:
        return {"train": path}
    flat = [f for f in folders if f.name.lower() in SPLITS and _images(f)]
    if flat:
        raise ValueError(
            f"{flat[0]} must hold one folder of images for each class, like {found[0]}, got images "
            f"without a class; give {found[0]} for training, and {flat[0]} for prediction"
        )
    splits = {SPLITS[folder.name.lower()]: folder for folder in found}
    if len(found) < len(folders) or len(splits) < len(found) or "train" not in splits:
        raise ValueError(
            f"{path} must hold train and perhaps validation and test, one folder each and no "
            f"others, got {', '.join(folder.name for folder in folders)}"
        )
    return {name: splits[name] for name in ("train", "validation", "test") if name in splits}


def class_names(path: Path) -> tuple[str, ...]:
    """The sorted names of the class folders, each of which holds images.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there are no class folders; one has only folders or no images; or there are
            images next to the class folders.
    """
    folders = _folders(path)
    if not folders:
        raise ValueError(f"{path} must hold one folder of images for each class, got no folders")
    if stray := _images(path):
        raise ValueError(f"{path} must hold images in a folder for each class, got {stray[0]}")
    splits = [SPLITS.get(folder.name.lower()) for folder in folders]
    if None not in splits and "train" in splits and any(map(_images, folders)):
        raise ValueError(
            f"{path} must hold one folder of images for each class, got images in "
            f"{', '.join(folder.name for folder in folders)}, which name no classes"
        )
    nested = [folder for folder in folders if not _images(folder) and _folders(folder)]
    if nested:
        train = next((f for f in nested if SPLITS.get(f.name.lower()) == "train"), nested[0])
        raise ValueError(
            f"{path} must hold one folder of images for each class, got folders of folders "
            f"({', '.join(folder.name for folder in nested[:3])}); give the folder that holds the "
            f"classes, such as {train}"
        )
    for folder in folders:
        image_files(folder)
    return tuple(folder.name for folder in folders)


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and its subfolders, in order of their paths, no hidden ones.

    Raises:
        ValueError: no image.
    """
    every = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    found = sorted(p for p in every if not any(map(_hidden, p.relative_to(folder).parts)))
    if not found:
        raise ValueError(f"{folder} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
    return found


def _hidden(name: str) -> bool:
    return name.startswith((".", "__"))  # also __pycache__, and __MACOSX in unpacked archives


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    return sorted(p for p in path.iterdir() if p.is_dir() and not _hidden(p.name))


def _images(path: Path) -> list[Path]:
    """The images in the folder itself."""
    return [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not _hidden(p.name)]


def check_shape(size: Any, channels: Any) -> None:
    """Raise `ValueError` unless an image can have that size, (height, width), and channels."""
    sides = size if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(x, int | np.integer) and x > 0 for x in sides):
        raise ValueError(f"size must be (height, width) in pixels, got {size!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels!r}")


def read_folder(
    path: Path, size: tuple[int, int], channels: int, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """`image` uint8 (N, height, width, channels) and `label` int32 (N,), in order of the names."""
    names = class_names(path)
    unknown = sorted(set(names) - set(classes))
    if unknown:
        raise ValueError(
            f"{path} must hold folders of the classes {list(classes)}, got {unknown[0]!r}"
        )
    files = [(file, classes.index(name)) for name in names for file in image_files(path / name)]
    images = np.empty((len(files), *size, channels), np.uint8)
    for row, (file, _) in enumerate(files):
        images[row] = read_image(file, size, channels)
    return {"image": images, "label": np.array([label for _, label in files], np.int32)}


def read_image(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image file as uint8 (height, width, channels), upright and resized.

    Transparent pixels become white; otherwise a black sign on a transparent ground would be all
    black.
    """
    Image = require("PIL.Image", extra="data")
    ImageOps = require("PIL.ImageOps", extra="data")

    with opened(file) as image:
        if image.mode.startswith("I") or image.mode == "F":
            raise ValueError(
                f"it must have 8 bits a channel, got mode {image.mode}; scale it: with 16 bits by "
                "np.asarray(image) // 257 as uint8, with fewer used bits by the largest value"
            )
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright)
        upright = upright.convert("L" if channels == 1 else "RGB")
        resized = upright.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8).reshape(*size, channels)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A file as a Pillow image; every error in reading it names the file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not an image, is broken, or has so many pixels that Pillow refuses
            it.
    """
    Image = require("PIL.Image", extra="data")

    try:
        with Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise
    except Exception as error:  # the readers of formats raise errors of any type
        raise ValueError(f"{file} must be a readable image, got an error: {error}") from None
