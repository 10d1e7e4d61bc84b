"""Folders of images to columns."""

from pathlib import Path

import numpy as np

from jaxops._optional import require

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def class_names(path: Path) -> tuple[str, ...]:
    """The sorted names of the class folders."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise ValueError(f"{path}: no folders found, one folder of images for each class wanted")
    return tuple(names)


def read_folder(
    path: Path, size: tuple[int, int], channels: int, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """`image` uint8 (N, height, width, channels) and `label` int32 (N,), in order of the names."""
    unknown = sorted(set(class_names(path)) - set(classes))
    if unknown:
        raise ValueError(f"{path}: class {unknown[0]!r} found, classes wanted: {list(classes)}")
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise ValueError(f"{path}: no images found ({', '.join(sorted(SUFFIXES))} wanted)")
    images = np.empty((len(files), *size, channels), np.uint8)
    for row, (file, _) in enumerate(files):
        images[row] = read_image(file, size, channels)
    return {"image": images, "label": np.array([label for _, label in files], np.int32)}


def read_image(file: Path, size: tuple[int, int], channels: int) -> np.ndarray:
    """One image file as uint8 (height, width, channels), upright and resized."""
    Image = require("PIL.Image", extra="data")
    ImageOps = require("PIL.ImageOps", extra="data")

    try:
        with Image.open(file) as image:
            if image.mode.startswith("I") or image.mode == "F":
                raise ValueError(f"mode {image.mode} found, 8 bits a channel wanted")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            resized = upright.resize(size[::-1], Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file}: not a readable image: {error}") from None
    return np.asarray(resized, np.uint8).reshape(*size, channels)
