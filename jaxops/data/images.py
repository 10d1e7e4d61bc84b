"""Image files and folders of images to columns."""

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
        raise ValueError(f"{path} must hold one folder of images for each class, got no folders")
    return tuple(names)


def read_folder(
    path: Path, size: tuple[int, int], channels: int, classes: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """`image` uint8 (N, height, width, channels) and `label` int32 (N,), in order of the names."""
    unknown = sorted(set(class_names(path)) - set(classes))
    if unknown:
        raise ValueError(
            f"{path} must hold folders of the classes {list(classes)}, got {unknown[0]!r}"
        )
    files = [
        (file, label)
        for label, name in enumerate(classes)
        for file in sorted((path / name).rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise ValueError(f"{path} must hold images ({', '.join(sorted(SUFFIXES))}), got none")
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
                raise ValueError(f"it must have 8 bits a channel, got mode {image.mode}")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            resized = upright.resize(size[::-1], Image.Resampling.BILINEAR)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{file} must be a readable image, got an error: {error}") from None
    return np.asarray(resized, np.uint8).reshape(*size, channels)
