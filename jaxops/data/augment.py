"""Augmentation on the device: callables `(key, images) -> images`, for use inside a jitted step.

Images are float (B, H, W, C). Each image is changed at random, and the same key gives the same
changes. Pixels outside an image are 0. A transformation is a frozen dataclass, so that it can be an
argument of a task and stand in a model file (see `jaxops.task.recorded`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from jaxops.task import recorded

__all__ = [
    "Affine",
    "Compose",
    "Cutout",
    "Flip",
    "RandomCrop",
    "Rotate",
    "Shift",
]

Array = jax.Array


@recorded
@dataclass(frozen=True)
class Flip:
    """Mirror images left to right.

    Attributes:
        probability: the probability that an image is mirrored, in [0, 1].

    >>> Flip(1.0)(jax.random.key(0), jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
    [2.0, 1.0, 0.0]
    """

    probability: float = 0.5

    def __call__(self, key: Array, images: Array) -> Array:
        """Mirror some of the images."""
        chosen = jax.random.bernoulli(key, self.probability, (len(images), 1, 1, 1))
        return jnp.where(chosen, images[:, :, ::-1], images)


@recorded
@dataclass(frozen=True)
class Affine:
    """Rotate, scale and shift about the image's centre, in one bilinear resampling.

    Attributes:
        degrees: the angle is uniform in [-degrees, degrees].
        shift: number of pixels; the shift along each axis is uniform in [-shift, shift] and need
            not be a whole number.
        scale: the factor is uniform in [1 - scale, 1 + scale].

    >>> augment = jax.jit(Affine(15.0, shift=2.0, scale=0.1))
    >>> augment(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """

    degrees: float = 0.0
    shift: float = 0.0
    scale: float = 0.0

    def __call__(self, key: Array, images: Array) -> Array:
        """Resample the images."""
        most = jnp.asarray([jnp.deg2rad(self.degrees), self.scale, self.shift, self.shift])
        draws = jax.random.uniform(key, (len(images), 4), minval=-1.0, maxval=1.0) * most[None]
        return jax.vmap(_resample)(images, draws)


def _resample(image: Array, draw: Array) -> Array:
    """Rotate one image (H, W, C) anticlockwise, enlarge it and move it down and right."""
    angle, scale, down, right = draw
    height, width, _ = image.shape
    middle = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height)[:, None] - middle[0] - down
    x = jnp.arange(width)[None, :] - middle[1] - right
    cos, sin = jnp.cos(angle) / (1 + scale), jnp.sin(angle) / (1 + scale)
    source = [sin * x + cos * y + middle[0], cos * x - sin * y + middle[1]]
    # on a CPU this is faster than three shears, or products with interpolation matrices
    return jax.vmap(lambda plane: map_coordinates(plane, source, order=1), -1, -1)(image)


@recorded
@dataclass(frozen=True)
class Rotate:
    """Rotate images about their centre, bilinearly.

    Attributes:
        degrees: the angle is uniform in [-degrees, degrees].

    >>> augment = jax.jit(Rotate(15.0))
    >>> augment(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """

    degrees: float = 15.0

    def __call__(self, key: Array, images: Array) -> Array:
        """Rotate the images."""
        return Affine(self.degrees)(key, images)


@recorded
@dataclass(frozen=True)
class Shift:
    """Move images by whole pixels; new pixels at the edge are 0.

    Attributes:
        pixels: the shift along each axis is uniform in -pixels, ..., pixels.

    >>> jax.jit(Shift(2))(jax.random.key(0), jnp.ones((4, 8, 8, 1))).shape
    (4, 8, 8, 1)
    """

    pixels: int = 2

    def __call__(self, key: Array, images: Array) -> Array:
        """Move the images."""
        return _crop(key, images, self.pixels, "constant")


@recorded
@dataclass(frozen=True)
class RandomCrop:
    """Pad each side with pixels mirrored at the edge, and crop to the original size.

    Use this for photographs, whose edges are not black. `Shift` pads with zeros instead.

    Attributes:
        padding: number of pixels that are added on each side.

    >>> jax.jit(RandomCrop(2))(jax.random.key(0), jnp.ones((4, 8, 8, 3))).shape
    (4, 8, 8, 3)
    """

    padding: int = 4

    def __call__(self, key: Array, images: Array) -> Array:
        """Pad and crop the images."""
        return _crop(key, images, self.padding, "reflect")


def _crop(key: Array, images: Array, padding: int, mode: str) -> Array:
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode)
    corners = jax.random.randint(key, (len(images), 2), 0, 2 * padding + 1)

    def cut(image: Array, corner: Array) -> Array:
        return lax.dynamic_slice(image, (corner[0], corner[1], 0), images.shape[1:])

    return jax.vmap(cut)(padded, corners)


@recorded
@dataclass(frozen=True)
class Cutout:
    """Set a random square inside each image to 0.

    Attributes:
        size: side of the square in pixels.

    Raises:
        ValueError: the square is larger than the image.

    References:
        DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with
        Cutout", arXiv:1708.04552, where the square may also reach beyond the image.

    >>> images = jax.jit(Cutout(2))(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
    >>> int((images == 0).sum())
    4
    """

    size: int = 8

    def __call__(self, key: Array, images: Array) -> Array:
        """Set one square of each image to 0."""
        batch, height, width, _ = images.shape
        rows, columns = jax.random.split(key)
        inside = self._span(rows, batch, height).reshape(batch, height, 1, 1)
        inside &= self._span(columns, batch, width).reshape(batch, 1, width, 1)
        return jnp.where(inside, 0.0, images)

    def _span(self, key: Array, batch: int, length: int) -> Array:
        """(batch, length): True on `size` neighbours at a random place."""
        if self.size > length:
            raise ValueError(f"size must be at most {length} (the image's side), got {self.size}")
        start = jax.random.randint(key, (batch, 1), 0, length - self.size + 1)
        distance = jnp.arange(length)[None] - start
        return (distance >= 0) & (distance < self.size)


@recorded
@dataclass(frozen=True)
class Compose:
    """Apply several transformations one after the other.

    Attributes:
        transforms: callables `(key, images) -> images`; each gets a different key.

    >>> augment = jax.jit(Compose((Flip(), Shift(2))))
    >>> augment(jax.random.key(0), jnp.ones((4, 8, 8, 1))).shape
    (4, 8, 8, 1)
    """

    transforms: tuple[Callable[[Array, Array], Array], ...]

    def __call__(self, key: Array, images: Array) -> Array:
        """Apply each transformation with a different key."""
        for i, transform in enumerate(self.transforms):
            images = transform(jax.random.fold_in(key, i), images)
        return images
