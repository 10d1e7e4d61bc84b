import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small import assert_close

from jaxops.nn import Conv, conv2d, max_pool


def reference(x, kernel, strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1):
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


CLOSE = {"rtol": 1e-5, "atol": 5e-5}


@pytest.mark.parametrize(
    "shape, kernel, strides, padding, dilation, groups",
    [
        ((2, 9, 7, 1), (3, 3, 1, 4), (1, 1), "SAME", (1, 1), 1),
        pytest.param(
            *((2, 8, 9, 3), (2, 4, 3, 2), (1, 1), "SAME", (1, 1), 1), marks=pytest.mark.slow
        ),
        ((1, 5, 5, 2), (1, 1, 2, 3), (1, 1), "VALID", (1, 1), 1),
        pytest.param(
            *((2, 9, 8, 3), (3, 3, 3, 4), (2, 2), "SAME", (1, 1), 1), marks=pytest.mark.slow
        ),
        ((2, 9, 11, 3), (3, 2, 3, 4), (2, 3), "VALID", (1, 1), 1),
        ((2, 8, 8, 3), (1, 1, 3, 4), (2, 2), "SAME", (1, 1), 1),  # strides past the window
        pytest.param(
            *((2, 7, 7, 3), (2, 2, 3, 4), (3, 4), "VALID", (1, 1), 1), marks=pytest.mark.slow
        ),
        ((2, 11, 9, 2), (3, 2, 2, 4), (2, 2), "SAME", (2, 3), 1),
        ((2, 6, 7, 3), (3, 3, 3, 4), (2, 1), ((1, 2), (0, 3)), (1, 2), 1),
        ((2, 6, 7, 3), (2, 2, 3, 4), (2, 2), ((-1, 1), (2, -2)), (1, 1), 1),  # lax crops, too
        ((2, 8, 7, 6), (3, 2, 2, 9), (2, 1), "VALID", (1, 2), 3),
        ((2, 8, 7, 5), (3, 3, 1, 5), (1, 1), "SAME", (1, 1), 5),
        ((2, 9, 7, 4), (3, 3, 1, 12), (2, 2), ((0, 1), (1, 1)), (2, 1), 4),
        ((2, 3, 8, 2), (5, 3, 2, 4), (1, 1), "VALID", (1, 1), 1),  # nothing fits: H' is 0
    ],
)
def test_value_and_gradients_are_those_of_lax(shape, kernel, strides, padding, dilation, groups):
    x, k = normal(0, shape), normal(1, kernel)
    how = (strides, padding, dilation, groups)
    g = normal(2, jax.eval_shape(lambda: reference(x, k, *how)).shape)

    @jax.jit
    def value_and_gradients(x, k, g):
        pairs = [jax.vjp(lambda x, k: f(x, k, *how), x, k) for f in (conv2d, reference)]
        return [(y, *pull(g)) for y, pull in pairs]

    assert_close(*value_and_gradients(x, k, g), **CLOSE)


def test_convolution_by_hand():
    x = jnp.arange(9.0).reshape(1, 3, 3, 1)
    kernel = jnp.asarray([[1.0, 0.0], [0.0, 10.0]]).reshape(2, 2, 1, 1)  # x[i, j] + 10 x[i+1, j+1]
    y = conv2d(x, kernel, padding="VALID")
    assert y[0, :, :, 0].tolist() == [[40.0, 51.0], [73.0, 84.0]]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_it_works_under_vmap_loops_and_forward_mode(groups):
    xs, k = normal(0, (3, 2, 6, 6, 4)), normal(1, (3, 3, 4 // groups, 4))
    how = ((2, 1), "SAME", (1, 2), groups)

    @jax.jit
    def run(xs, k):
        mapped = jax.vmap(lambda x: conv2d(x, k, *how))(xs)
        _, scanned = lax.scan(lambda c, x: (c, conv2d(x, k, *how)), 0, xs)
        _, tangent = jax.jvp(lambda k: conv2d(xs[0], k, *how), (k,), (k,))  # linear in the kernel
        return jnp.stack([reference(x, k, *how) for x in xs]), mapped, scanned, tangent

    want, mapped, scanned, tangent = run(xs, k)
    assert_close(mapped, want, **CLOSE)
    assert_close(scanned, want, **CLOSE)
    assert_close(tangent, want[0], **CLOSE)

    def descend(f):
        def loss(k):
            return (max_pool(f(xs[0], k, *how), 2) ** 2).sum()

        return lambda k: lax.fori_loop(0, 3, lambda i, k: k - 1e-3 * jax.grad(loss)(k), k)

    assert_close(*jax.jit(lambda k: [descend(f)(k) for f in (conv2d, reference)])(k), **CLOSE)


@pytest.mark.parametrize("groups", [1, 4])
def test_types_promote_and_half_precision_is_that_of_lax(groups):
    x, k = normal(0, (2, 6, 6, 4)).astype(jnp.bfloat16), normal(1, (3, 3, 4 // groups, 4))
    y = conv2d(x, k, groups=groups)
    assert y.dtype == jnp.float32
    assert_close(y, reference(x.astype(jnp.float32), k, groups=groups), **CLOSE)
    k = k.astype(jnp.bfloat16)
    y = conv2d(x, k, groups=groups)
    assert y.dtype == jnp.bfloat16
    want = reference(x, k, groups=groups).astype(jnp.float32)
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=2**-7, atol=2**-7)


def test_the_platform_chooses_the_form():
    def f(x, k):
        return max_pool(conv2d(x, k, 2, groups=2), 2)

    def text(platform):
        return traced.lower(lowering_platforms=(platform,)).as_text()

    traced = jax.jit(jax.grad(lambda x, k: f(x, k).sum(), (0, 1))).trace(
        jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 2, 4))
    )
    for name in ("stablehlo.convolution", "stablehlo.select_and_scatter"):
        assert name not in text("cpu")
        assert name in text("cuda")
        assert name in text("tpu")
    assert "stablehlo.dot_general" not in text("cuda")


def test_without_a_derivative_a_cpu_gets_the_plain_form_too():
    """XLA's own convolution is the faster one there, but for groups."""
    x, k = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 4))
    text = jax.jit(lambda x, k: max_pool(conv2d(x, k), 2)).lower(x, k).as_text()
    assert "stablehlo.convolution" in text and "stablehlo.reduce_window" in text
    text = jax.jit(lambda x, k: conv2d(x, k, groups=4)).lower(x, k[:, :, :1]).as_text()
    assert "stablehlo.convolution" not in text


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"padding": "VALID", "use_bias": False}, marks=pytest.mark.slow),
        {"strides": 2, "kernel_dilation": (1, 2)},
        {"strides": (2, 1), "padding": ((1, 0), (2, 1)), "feature_group_count": 3},
        pytest.param({"padding": 1, "kernel_dilation": 2}, marks=pytest.mark.slow),
        pytest.param({"padding": (1, 2)}, marks=pytest.mark.slow),
    ],
)
def test_module_is_that_of_flax(settings):
    x = normal(0, (2, 7, 6, 3))
    ours, flax = Conv(6, (3, 2), **settings), nn.Conv(6, (3, 2), **settings)

    @jax.jit
    def start_value_and_gradient(x):
        variables = flax.init(jax.random.key(1), x)
        moved = jax.tree.map(lambda p: p + 0.5, variables)  # so that the bias is not zero
        found = []
        for module in (ours, flax):
            y, pull = jax.vjp(module.apply, moved, x)
            found.append((module.init(jax.random.key(1), x), y, pull(y)))
        return found

    found, wanted = start_value_and_gradient(x)
    assert_close(found, wanted, rtol=1e-5, atol=1e-4)


POOLS = [
    ((2, 8, 6, 3), 2, None, "VALID"),
    ((2, 9, 7, 1), 2, None, "VALID"),
    ((1, 7, 9, 2), 3, None, "VALID"),
    ((2, 9, 8, 2), 3, 2, "SAME"),
    ((2, 9, 8, 2), (3, 2), (1, 2), "VALID"),
    ((2, 7, 7, 2), 2, 3, "SAME"),
    ((2, 7, 7, 2), 3, 2, ((1, 1), (0, 2))),
    ((2, 6, 6, 2), (1, 5), 1, "SAME"),
    ((2, 6, 6, 2), 1, 2, "VALID"),
]


def pool_of_flax(x, window, strides, padding):
    pair = (window, window) if isinstance(window, int) else window
    strides = pair if strides is None else strides
    return nn.max_pool(
        x, pair, (strides, strides) if isinstance(strides, int) else strides, padding
    )


@pytest.mark.parametrize("shape, window, strides, padding", POOLS)
def test_pooling_is_that_of_flax(shape, window, strides, padding):

    @jax.jit
    def value_and_gradient(x):
        pairs = [
            jax.vjp(lambda x: f(x, window, strides, padding), x) for f in (max_pool, pool_of_flax)
        ]
        g = jnp.cos(jnp.arange(pairs[1][0].size, dtype=float)).reshape(pairs[1][0].shape)
        return [(y, *pull(g)) for y, pull in pairs]

    x = normal(0, shape)
    # whole numbers from 0 to 2, as after a ReLU: the first of equals has the gradient
    ties = np.round(np.clip(x, 0, 2))
    for images in (x, ties):
        (y, g), (want_y, want_g) = value_and_gradient(images)
        assert np.array_equal(y, want_y)
        np.testing.assert_allclose(g, want_g, rtol=1e-5, atol=1e-6)


def test_nan_wins_wherever_it_stands():
    x = jnp.tile(jnp.arange(4.0).reshape(1, 2, 2, 1), (4, 1, 1, 1))
    x = jnp.where(jnp.eye(4).reshape(4, 2, 2, 1) == 1, jnp.nan, x)
    assert np.isnan(max_pool(x, 2)).all()
    assert np.isnan(pool_of_flax(x, 2, None, "VALID")).all()


def test_pooling_of_whole_numbers_under_vmap_and_forward_mode():
    x = jnp.arange(-72, 0, dtype=jnp.int32).reshape(2, 6, 6, 1)
    want = np.asarray(x)[:, 1::2, 1::2]
    assert np.array_equal(max_pool(x, 3, 2, ((1, 0), (1, 0))), want)
    assert np.array_equal(jax.vmap(lambda x: max_pool(x[None], 2)[0])(x), want)
    y, t = jax.jvp(lambda x: max_pool(x, 2), (x.astype(float),), (10.0 * x,))
    assert np.array_equal(t, 10 * y)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda x, k: conv2d(x[0], k), r"x and kernel must be .*, got \(8, 8, 4\) and"),
        (lambda x, k: conv2d(x, k[:, :, :3]), r"kernel must be .* 4, O\) .*, got \(3, 3, 3, 6\)"),
        (lambda x, k: conv2d(x, k, groups=3), r"groups must divide 4 \(channels\) .*, got 3"),
        (
            lambda x, k: conv2d(x, k, groups=4),
            r"groups must divide 4 \(channels\) and 6 \(features\), got 4",
        ),
        (lambda x, k: conv2d(x, k, groups=0), "groups must .*, got 0"),
        (lambda x, k: conv2d(x, k, padding="same"), "padding must be 'SAME', .*, got 'same'"),
        (lambda x, k: conv2d(x, k, padding=((1, 1),)), r"padding must be .*, got \(\(1, 1\),\)"),
        (
            lambda x, k: conv2d(x, k, padding=((1, 1), (1, 1, 1))),
            r"padding must be .*, got \(1, 1, 1\)",
        ),
        (lambda x, k: conv2d(x, k, 0), "strides must be .* at least 1, got 0"),
        (lambda x, k: conv2d(x, k, dilation=(1, -1)), r"dilation must be .*, got \(1, -1\)"),
        (lambda x, k: max_pool(x[0], 2), r"x must be \(B, H, W, C\), got \(8, 8, 4\)"),
        (lambda x, k: max_pool(x, (2, 0)), r"window must be .*, got \(2, 0\)"),
        (lambda x, k: max_pool(x, 2, (1, 2, 3)), r"strides must be .*, got \(1, 2, 3\)"),
        (lambda x, k: max_pool(x, 2, padding="FULL"), "padding must be .*, got 'FULL'"),
        (
            lambda x, k: Conv(6, feature_group_count=3).init(jax.random.key(0), x),
            "feature_group_count must divide .*, got 3",
        ),
        (
            lambda x, k: Conv(6, (3, 0)).init(jax.random.key(0), x),
            r"kernel_size must be .*, got \(3, 0\)",
        ),
    ],
)
def test_errors_name_what_was_given(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6)))
