import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxops.data.augment import Affine, Compose, Cutout, Flip, RandomCrop, Rotate, Shift, _resample

resample = jax.jit(_resample)
ALL = [Flip(), Affine(15.0, 2.0, 0.1), Rotate(15.0), Shift(2), RandomCrop(3), Cutout(4)]
KEY = jax.random.key(0)


def blobs(batch=3, size=28, channels=1):
    """Smooth pictures, black at the edge."""
    rng = np.random.default_rng(0)
    inner = rng.uniform(size=(batch, size - 14, size - 14, channels))
    padded = np.pad(inner, ((0, 0), (7, 7), (7, 7), (0, 0)))
    return ndimage.gaussian_filter(padded, (0, 1.5, 1.5, 0)).astype(np.float32)


@pytest.mark.parametrize("augment", [*ALL, Compose(tuple(ALL))], ids=lambda a: type(a).__name__)
def test_by_key_and_by_row(augment):
    images = jnp.repeat(jax.random.uniform(KEY, (1, 12, 10, 2)), 64, 0)
    run = jax.jit(augment)
    a, b, c = run(KEY, images), run(KEY, images), run(jax.random.key(1), images)
    assert a.shape == images.shape and a.dtype == images.dtype
    assert np.array_equal(a, b) and not np.array_equal(a, c)
    assert len(np.unique(np.asarray(a).reshape(64, -1), axis=0)) > 1  # the rows were equal
    twin = augment.__class__(*vars(augment).values())
    assert hash(augment) == hash(twin) and augment == twin


def test_in_a_loop_it_is_the_same():
    images = jnp.repeat(jax.random.uniform(KEY, (1, 12, 10, 2)), 4, 0)
    augment = Compose(tuple(ALL))
    run = jax.jit(lambda x: jax.lax.scan(lambda i, k: (i, augment(k, i)), x, KEY[None])[1][0])
    np.testing.assert_allclose(run(images), jax.jit(augment)(KEY, images), atol=1e-5)


def test_flip_is_exact_and_as_frequent_as_asked():
    images = jnp.asarray(blobs(2000, 16, 2))
    out = np.asarray(jax.jit(Flip(0.3))(KEY, images))
    flipped = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (flipped | (out == images).all((1, 2, 3))).all()
    assert abs(flipped.mean() - 0.3) < 0.04
    assert np.array_equal(jax.jit(Flip(1.0))(KEY, images), images[:, :, ::-1])


@pytest.mark.parametrize("degrees", [-15.0, 5.0, 40.0])
def test_a_rotation_is_that_of_scipy(degrees):
    image = blobs(channels=2)[0]
    got = resample(jnp.asarray(image), jnp.asarray([np.deg2rad(degrees), 0.0, 0.0, 0.0]))
    want = ndimage.rotate(image, degrees, reshape=False, order=1)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_scale_and_shift_are_those_of_scipy():
    image = blobs()[0]
    got = resample(jnp.asarray(image), jnp.asarray([0.0, 0.1, 1.5, -0.5]))
    centre = 13.5
    offset = centre - (centre + np.asarray([1.5, -0.5])) / 1.1
    want = ndimage.affine_transform(image[..., 0], np.eye(2) / 1.1, offset, order=1)
    np.testing.assert_allclose(got[..., 0], want, atol=1e-5)


def test_rotation_stays_within_its_range_and_leaves_no_bias():
    size = 33
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    bar = np.exp(-(y**2) / 4 - x**2 / 50).astype(np.float32)
    out = np.asarray(jax.jit(Rotate(15.0))(KEY, np.repeat(bar[None, :, :, None], 1000, 0)))[..., 0]
    moments = [(out * m[None]).sum((1, 2)) for m in (x * y, x * x - y * y)]
    angles = np.rad2deg(np.arctan2(2 * moments[0], moments[1]) / 2)  # of each bar's main axis
    assert 14 < np.abs(angles).max() < 15.2
    assert abs(angles.mean()) < 1 and abs(angles.std() - 15 / np.sqrt(3)) < 0.5


def moved(image, down, right):
    out = np.roll(image, (down, right), (0, 1))
    rows = np.arange(len(image)) - down
    columns = np.arange(image.shape[1]) - right
    out[(rows < 0) | (rows >= len(image))] = 0
    out[:, (columns < 0) | (columns >= image.shape[1])] = 0
    return out


def test_shift_is_exact_and_reaches_every_place():
    image = np.random.default_rng(0).uniform(1, 2, size=(6, 7, 2)).astype(np.float32)
    out = np.asarray(jax.jit(Shift(2))(KEY, np.repeat(image[None], 1000, 0)))
    places = np.stack([moved(image, *d) for d in itertools.product(range(-2, 3), repeat=2)])
    equal = (out[:, None] == places[None]).all((2, 3, 4))
    assert (equal.sum(1) == 1).all()
    counts = equal.sum(0)  # 40 expected at each of 25 places
    assert counts.min() > 15 and counts.max() < 70


def test_random_crop_cuts_from_the_mirrored_image():
    image = np.random.default_rng(0).uniform(size=(6, 5, 3)).astype(np.float32)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    crops = [padded[i : i + 6, j : j + 5] for i in range(5) for j in range(5)]
    out = np.asarray(jax.jit(RandomCrop(2))(KEY, np.repeat(image[None], 500, 0)))
    equal = (out[:, None] == np.stack(crops)[None]).all((2, 3, 4))
    assert (equal.sum(1) == 1).all() and equal.any(0).all()


def test_cutout_blackens_one_whole_square():
    out = np.asarray(jax.jit(Cutout(3))(KEY, np.ones((2000, 8, 6, 2), np.float32)))
    black = out[..., 0] == 0
    assert np.array_equal(out[..., 0], out[..., 1]) and set(np.unique(out)) == {0.0, 1.0}
    assert (black.sum((1, 2)) == 9).all()
    assert (black.any(2).sum(1) == 3).all() and (black.any(1).sum(1) == 3).all()
    corners = black.any(2).argmax(1), black.any(1).argmax(1)
    assert np.histogram2d(*corners, (6, 4))[0].min() > 50  # 83 expected at each of 24 places
    with pytest.raises(ValueError, match=r"size must be at most 8 \(the image's side\), got 9"):
        Cutout(9)(KEY, jnp.ones((1, 8, 8, 1)))


def test_compose_is_one_after_the_other():
    @jax.jit
    def run(images):
        keys = [jax.random.fold_in(KEY, i) for i in range(2)]
        want = Cutout(5)(keys[1], Flip()(keys[0], images))
        return Compose((Flip(), Cutout(5)))(KEY, images), want

    assert np.array_equal(*run(jnp.asarray(blobs())))


def test_nothing_asked_changes_nothing():
    images = jnp.asarray(blobs())
    same = (Flip(0.0), Shift(0), RandomCrop(0), Cutout(0), Compose(()))
    *exact, close = jax.jit(lambda x: [augment(KEY, x) for augment in (*same, Affine())])(images)
    for result in exact:
        assert np.array_equal(result, images)
    np.testing.assert_allclose(close, images, atol=1e-6)
