"""Augmentation on the device: callables `(key, images) -> images`, for use inside a jitted step.

Images are (B, H, W, C) floats; each is changed by its own draw, and the same key changes them the
same way. What comes in from outside an image is 0. A transformation is a frozen dataclass, so that
it can be one of the arguments that `jaxops.task.recorded` remembers.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from jaxops.task import recorded

Array = jax.Array


@recorded
@dataclass(frozen=True)
class Flip:
    """Mirror left and right.

    Attributes:
        probability: of mirroring an image.

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
    """Rotate, scale and shift in one bilinear resampling, about the image's centre.

    Attributes:
        degrees: the angle is uniform within +- degrees.
        shift: pixels; the shift along each axis is uniform within +- shift, not only whole pixels.
        scale: the factor is uniform within 1 +- scale.

    >>> Affine(15.0, shift=2.0, scale=0.1)(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
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
    """One (H, W, C) image turned anticlockwise, enlarged and moved down and right."""
    angle, scale, down, right = draw
    height, width, _ = image.shape
    middle = (height - 1) / 2, (width - 1) / 2
    y = jnp.arange(height)[:, None] - middle[0] - down
    x = jnp.arange(width)[None, :] - middle[1] - right
    cos, sin = jnp.cos(angle) / (1 + scale), jnp.sin(angle) / (1 + scale)
    source = [sin * x + cos * y + middle[0], cos * x - sin * y + middle[1]]
    # faster on a CPU than three shears or products with interpolation matrices
    return jax.vmap(lambda plane: map_coordinates(plane, source, order=1), -1, -1)(image)


@recorded
@dataclass(frozen=True)
class Rotate:
    """Turn about the centre, bilinearly, by an angle uniform within +- `degrees`."""

    degrees: float = 15.0

    def __call__(self, key: Array, images: Array) -> Array:
        """Turn the images."""
        return Affine(self.degrees)(key, images)


@recorded
@dataclass(frozen=True)
class Shift:
    """Move by whole pixels, uniform within +- `pixels` along each axis."""

    pixels: int = 2

    def __call__(self, key: Array, images: Array) -> Array:
        """Move the images."""
        return _crop(key, images, self.pixels, "constant")


@recorded
@dataclass(frozen=True)
class RandomCrop:
    """Pad each side by `padding` pixels, mirrored at the edge, and cut out the size it had.

    For photographs, whose edges are not black; `Shift` is the same with zeros.
    """

    padding: int = 4

    def __call__(self, key: Array, images: Array) -> Array:
        """Pad and cut the images."""
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
    """Blacken a square of `size` x `size` pixels that lies inside the image.

    DeVries and Taylor 2017, arXiv:1708.04552, where the square may also stick out.
    """

    size: int = 8

    def __call__(self, key: Array, images: Array) -> Array:
        """Blacken one square of each image."""
        batch, height, width, _ = images.shape
        rows, columns = jax.random.split(key)
        inside = self._span(rows, batch, height).reshape(batch, height, 1, 1)
        inside &= self._span(columns, batch, width).reshape(batch, 1, width, 1)
        return jnp.where(inside, 0.0, images)

    def _span(self, key: Array, batch: int, length: int) -> Array:
        """(batch, length): True on `size` neighbours, beginning anywhere."""
        if self.size > length:
            raise ValueError(f"Cutout: a square of {self.size} is larger than the image's {length}")
        start = jax.random.randint(key, (batch, 1), 0, length - self.size + 1)
        distance = jnp.arange(length)[None] - start
        return (distance >= 0) & (distance < self.size)


@recorded
@dataclass(frozen=True)
class Compose:
    """Several transformations, one after the other.

    >>> Compose((Flip(), Shift(2)))(jax.random.key(0), jnp.ones((4, 28, 28, 1))).shape
    (4, 28, 28, 1)
    """

    transforms: tuple[Callable[[Array, Array], Array], ...]

    def __call__(self, key: Array, images: Array) -> Array:
        """Apply each with a key of its own."""
        for i, transform in enumerate(self.transforms):
            images = transform(jax.random.fold_in(key, i), images)
        return images
