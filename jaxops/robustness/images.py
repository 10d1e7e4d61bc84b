"""Corruptions of images on the device, one compiled program for each kind."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.ndimage import map_coordinates

from jaxops.data.augment import _resample

Array = jax.Array
AT_ONCE = 2**22  # numbers of images in one call
SIDE = 32  # pixels of the images for which lengths are given


class Kind(NamedTuple):
    """A kind of corruption.

    Attributes:
        levels: a number for each of the levels 1 to 5.
        change: `(key, image (H, W, C) in [0, 1], prepared) -> image`.
        prepare: `(number, (H, W)) -> prepared`, arrays; by default the number itself.
    """

    levels: tuple[float, ...]
    change: Callable[[Array, Array, Any], Array]
    prepare: Callable[[float, tuple[int, int]], Any] = lambda number, size: number


def _gaussian_noise(key: Array, x: Array, std: Array) -> Array:
    return x + std * jax.random.normal(key, x.shape)


def _shot_noise(key: Array, x: Array, photons: Array) -> Array:
    return jax.random.poisson(key, x * photons, x.shape) / photons


def _impulse_noise(key: Array, x: Array, share: Array) -> Array:
    draw = jax.random.uniform(key, x.shape)
    return jnp.where(draw < share / 2, 0.0, jnp.where(draw < share, 1.0, x))


def _contrast(key: Array, x: Array, factor: Array) -> Array:
    mean = x.mean((0, 1), keepdims=True)
    return (x - mean) * factor + mean


def _brightness(key: Array, x: Array, shift: Array) -> Array:
    """The value of the colour in HSV is raised; hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    raised = jnp.clip(value + shift, 0, 1)
    return jnp.where(value > 0, x * (raised / jnp.where(value > 0, value, 1.0)), raised)


def _linear(key: Array, x: Array, maps: tuple[Array, Array]) -> Array:
    return jnp.einsum("ab,cd,bdk->ack", *maps, x)


def _blur(sigma: float, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """The products with rows and columns that blur an image, whose edge goes on outside."""
    sigma = sigma * min(size) / SIDE
    reach = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    maps = []
    for length in size:
        found = np.zeros((length, length), np.float32)
        for offset, weight in zip(range(-reach, reach + 1), kernel / kernel.sum(), strict=True):
            place = np.clip(np.arange(length) + offset, 0, length - 1)
            np.add.at(found, (np.arange(length), place), weight)
        maps.append(found)
    return tuple(maps)


def _boxes(factor: float, size: tuple[int, int]) -> tuple[np.ndarray, ...]:
    """Means over boxes, as Pillow's BOX takes them, and back to the size."""
    maps = []
    for length in size:
        small = max(1, int(length * factor))
        centre = (np.arange(small)[:, None] + 0.5) * length / small
        place = (np.arange(length)[None] + 0.5 - centre) * small / length
        down = ((place > -0.5) & (place <= 0.5)).astype(np.float32)
        back = ((np.arange(length) + 0.5) * small / length).astype(int)
        maps.append((down / down.sum(1, keepdims=True))[back])
    return tuple(maps)


MOTION = (1.0, 1.5, 2.0, 2.5, 3.0)


def _trail(sigma: float, size: tuple[int, int]) -> np.ndarray:
    """The weights of the places behind a pixel, as many for all levels."""
    scale = min(size) / SIDE
    taps = np.arange(math.ceil(4 * MOTION[-1] * scale) + 1)
    weights = np.exp(-0.5 * (taps / (sigma * scale)) ** 2)
    return np.asarray(weights / weights.sum(), np.float32)


def _motion_blur(key: Array, x: Array, weights: Array) -> Array:
    angle = jax.random.uniform(key, minval=-jnp.pi / 4, maxval=jnp.pi / 4)
    down, right = jnp.meshgrid(*map(jnp.arange, x.shape[:2]), indexing="ij")

    def add(total: Array, tap: tuple[Array, Array]) -> tuple[Array, None]:
        place, weight = tap
        at = [down + place * jnp.sin(angle), right + place * jnp.cos(angle)]
        moved = jax.vmap(lambda p: map_coordinates(p, at, order=1, mode="nearest"), -1, -1)(x)
        return total + weight * moved, None

    return lax.scan(add, jnp.zeros_like(x), (jnp.arange(len(weights)), weights))[0]


def _rotation(key: Array, x: Array, degrees: Array) -> Array:
    angle = jnp.deg2rad(degrees) * jax.random.rademacher(key, (), jnp.float32)
    return _resample(x, jnp.stack([angle, 0.0, 0.0, 0.0]))


def _square(share: float, size: tuple[int, int]) -> np.ndarray:
    return np.array([max(1, round(math.sqrt(share) * length)) for length in size])


def _occlusion(key: Array, x: Array, square: Array) -> Array:
    inside = jnp.ones(x.shape[:2], bool)
    for axis, one in enumerate(jax.random.split(key)):
        length = x.shape[axis]
        start = jax.random.randint(one, (), 0, length - square[axis] + 1)
        place = jnp.arange(length) - start
        own = (place >= 0) & (place < square[axis])
        inside &= own[:, None] if axis == 0 else own[None]
    return jnp.where(inside[..., None], 0.0, x)


IMAGES = {
    "gaussian_noise": Kind((0.04, 0.06, 0.08, 0.09, 0.1), _gaussian_noise),
    "shot_noise": Kind((500.0, 250.0, 100.0, 75.0, 50.0), _shot_noise),
    "impulse_noise": Kind((0.01, 0.02, 0.03, 0.05, 0.07), _impulse_noise),
    "gaussian_blur": Kind((0.4, 0.6, 0.7, 0.8, 1.0), _linear, _blur),
    "motion_blur": Kind(MOTION, _motion_blur, _trail),
    "contrast": Kind((0.75, 0.5, 0.4, 0.3, 0.15), _contrast),
    "brightness": Kind((0.05, 0.1, 0.15, 0.2, 0.3), _brightness),
    "pixelate": Kind((0.95, 0.9, 0.85, 0.75, 0.65), _linear, _boxes),
    "rotation": Kind((5.0, 10.0, 15.0, 20.0, 30.0), _rotation),
    "occlusion": Kind((0.02, 0.05, 0.1, 0.15, 0.25), _occlusion, _square),
}


@functools.partial(jax.jit, static_argnames="kind")
def _corrupted(images: Array, first: Array, key: Array, prepared: Any, kind: str) -> Array:
    rows = first + jnp.arange(len(images))
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, rows)
    x = images.astype(jnp.float32) / 255
    changed = jax.vmap(IMAGES[kind].change, (0, 0, None))(keys, x, prepared)
    return jnp.round(jnp.clip(changed, 0, 1) * 255).astype(jnp.uint8)


def corrupted_images(images: np.ndarray, kind: str, level: int, seed: int = 0) -> np.ndarray:
    """Images with a corruption; see `jaxops.robustness.corrupt`.

    Args:
        images: uint8 (N, H, W, C) or (N, H, W).
        kind: one of `IMAGES`.
        level: 1 to 5.
        seed: image number i has the randomness of `fold_in(key(seed), i)`.

    >>> corrupted_images(np.full((1, 4, 4, 1), 100, np.uint8), "brightness", 2)[0, 0, 0].tolist()
    [126]
    """
    x = np.asarray(images)
    x = x[..., None] if x.ndim == 3 else x
    if x.dtype != np.uint8 or x.ndim != 4:
        raise ValueError(
            f"rows must be images, uint8 (N, H, W, C) or (N, H, W), got {x.dtype} {images.shape}"
        )
    chosen = IMAGES[kind]
    prepared = chosen.prepare(chosen.levels[level - 1], x.shape[1:3])
    size = min(len(x), max(1, AT_ONCE // math.prod(x.shape[1:])))
    key, parts = jax.random.key(seed), []
    for first in range(0, len(x), size):
        some = x[first : first + size]
        padded = np.concatenate([some, np.zeros((size - len(some), *x.shape[1:]), np.uint8)])
        parts.append(np.asarray(_corrupted(padded, first, key, prepared, kind))[: len(some)])
    return np.concatenate(parts).reshape(images.shape)
