import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxops.nn import Conv, conv2d, max_pool
from jaxops.nn.convolution import _as_lax


def reference(x, kernel, padding):
    return lax.conv_general_dilated(
        x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def normal(seed, shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    "shape, kernel, padding",
    [
        ((2, 9, 7, 1), (3, 3, 1, 4), "SAME"),
        ((3, 8, 8, 5), (3, 3, 5, 6), "VALID"),
        ((2, 8, 9, 3), (2, 4, 3, 2), "SAME"),
        ((1, 5, 5, 2), (1, 1, 2, 3), "VALID"),
    ],
)
def test_value_and_gradients_are_those_of_lax(shape, kernel, padding):
    x, k = normal(0, shape), normal(1, kernel)
    g = normal(2, jax.eval_shape(lambda: reference(x, k, padding)).shape)

    @jax.jit
    def value_and_gradients(x, k, g):
        forms = (
            lambda x, k: reference(x, k, padding),
            lambda x, k: conv2d(x, k, padding),
            lambda x, k: _as_lax(
                x, k, lax.padtype_to_pads(shape[1:3], kernel[:2], (1, 1), padding)
            ),
        )
        pairs = [jax.vjp(f, x, k) for f in forms]
        return [(y, *pull(g)) for y, pull in pairs]

    want, *others = value_and_gradients(x, k, g)
    for got in others:
        for ours, theirs in zip(got, want, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=3e-5)


def test_convolution_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.asarray([[1.0, 0.0], [0.0, 10.0]]).reshape(2, 2, 1, 1)  # x[i, j] + 10 x[i+1, j+1]
    assert conv2d(x, kernel, "VALID")[0, :, :, 0].tolist() == [[40.0, 51.0], [73.0, 84.0]]


def test_it_works_under_vmap_scan_and_forward_mode():
    xs, k = normal(0, (3, 2, 6, 6, 2)), normal(1, (3, 3, 2, 4))
    want = jnp.stack([reference(x, k, "SAME") for x in xs])
    np.testing.assert_allclose(jax.vmap(lambda x: conv2d(x, k))(xs), want, rtol=1e-5, atol=1e-5)
    _, ys = lax.scan(lambda c, x: (c, conv2d(x, k)), 0, xs)
    np.testing.assert_allclose(ys, want, rtol=1e-5, atol=1e-5)
    _, tangent = jax.jvp(lambda k: conv2d(xs[0], k), (k,), (k,))  # linear in the kernel
    np.testing.assert_allclose(tangent, want[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("use_bias", [True, False])
def test_module_takes_the_parameters_of_flax(use_bias):
    x = normal(0, (2, 6, 6, 3))
    ours, flax = (
        Conv(4, (3, 2), "VALID", use_bias),
        nn.Conv(4, (3, 2), padding="VALID", use_bias=use_bias),
    )
    variables = flax.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), x)) == jax.tree.map(
        jnp.shape, variables
    )
    variables = jax.tree.map(lambda p: p + 0.5, variables)  # so that the bias is not zero
    np.testing.assert_allclose(
        ours.apply(variables, x), flax.apply(variables, x), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape, window", [((2, 8, 6, 3), 2), ((2, 9, 7, 1), 2), ((1, 7, 9, 2), 3)])
def test_pooling_is_that_of_flax(shape, window):
    x = normal(0, shape)
    y, pull = jax.vjp(lambda x: max_pool(x, window), x)
    want, pull_want = jax.vjp(lambda x: nn.max_pool(x, (window,) * 2, (window,) * 2), x)
    assert np.array_equal(y, want)
    g = normal(1, want.shape)
    np.testing.assert_allclose(pull(g)[0], pull_want(g)[0], rtol=1e-6)


def test_ties_share_the_gradient():
    grad = jax.grad(lambda x: max_pool(x, 2).sum())(
        jnp.asarray([[3.0, 3.0], [1.0, 2.0]]).reshape(1, 2, 2, 1)
    )
    assert grad[0, :, :, 0].tolist() == [[0.5, 0.5], [0.0, 0.0]]


def test_errors_name_what_was_found():
    with pytest.raises(ValueError, match=r"\(2, 8, 8\) and kernel"):
        conv2d(jnp.ones((2, 8, 8)), jnp.ones((3, 3, 1, 4)))
    with pytest.raises(ValueError, match="'same' must be 'SAME' or 'VALID'"):
        conv2d(jnp.ones((2, 8, 8, 1)), jnp.ones((3, 3, 1, 4)), "same")
