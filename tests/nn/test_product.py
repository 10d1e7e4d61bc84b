import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small import SETTINGS, assert_equal, images

import jaxops as jo
from jaxops import vision
from jaxops.nn import Dense, computing, matmul, product

SHAPES = [((5, 7), (7, 3)), ((2, 3, 8), (8, 4)), ((2, 3, 6, 8), (2, 3, 8, 5)), ((9,), (9, 2))]


@pytest.fixture(params=[True, False], ids=["bfloat16", "no bfloat16"])
def has_bfloat16(request, monkeypatch):
    """Both kinds of machine, whatever this one is."""
    monkeypatch.setattr(product, "has_bfloat16", lambda: request.param)
    return request.param


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(product, "has_bfloat16", lambda: True)


def normal(seed, shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16), np.float64)


def transposed(x):
    return np.swapaxes(x, -1, -2)


@functools.cache
def product_and_gradients(shapes, compute, has_bfloat16):
    """Factors and a gradient, and what one program makes of them; JAX's own product for `None`.

    `has_bfloat16` is what the machine is patched to have.
    """
    x, y = normal(0, shapes[0]), normal(1, shapes[1])
    g = normal(2, jax.eval_shape(jnp.matmul, x, y).shape)

    @jax.jit
    def run(x, y, g):
        assert compute is None or product.has_bfloat16() == has_bfloat16
        multiply = jnp.matmul if compute is None else functools.partial(matmul, compute=compute)
        out, pull = jax.vjp(multiply, x, y)
        return out, pull(g)

    return (x, y, g), *run(x, y, g)


@pytest.mark.parametrize("shapes", SHAPES)
def test_bfloat16_rounds_the_factors_and_nothing_else(shapes, fast):
    """Against NumPy in float64, with factors and gradient rounded by hand."""
    (x, y, g), out, (gx, gy) = product_and_gradients(shapes, "bfloat16", True)
    flat = (lambda a: a) if y.ndim > 2 else (lambda a: a.reshape(-1, a.shape[-1]))
    xr, yr, gr = flat(rounded(x)), rounded(y), flat(rounded(g))
    assert out.dtype == gx.dtype == gy.dtype == jnp.float32
    np.testing.assert_allclose(flat(out), xr @ yr, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(flat(gx), gr @ transposed(yr), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(gy, transposed(xr) @ gr, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
def test_it_is_the_product_within_rounding(shapes, compute, has_bfloat16):
    _, got, gradients = product_and_gradients(shapes, compute, has_bfloat16)
    _, want, wanted = product_and_gradients(shapes, None, True)
    rounds = compute == "bfloat16" and has_bfloat16
    # each factor is off by 2**-9 at most, a sum of k products by k * 2**-8 of the largest
    tolerance = 0.06 if rounds else 1e-5
    for ours, theirs in zip((got, *gradients), (want, *wanted), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
        assert (np.abs(ours - theirs).max() > 1e-4) == rounds


def test_a_table_transposed_as_in_tied_embeddings(fast):
    """XLA:CPU refused the program once a transposition of the gradient was put into its product."""
    x, table = normal(0, (24, 64, 128)), normal(1, (70, 128))

    @functools.partial(jax.jit, static_argnums=2)
    def gradients(x, table, compute):
        def loss(x, table):
            return jnp.square(matmul(x, table.T, compute)).mean()

        return jax.grad(loss, (0, 1))(x, table)

    for got, want in zip(
        gradients(x, table, "bfloat16"), gradients(x, table, "float32"), strict=True
    ):
        assert float(jnp.linalg.norm(got - want) / jnp.linalg.norm(want)) < 0.01


def test_it_works_under_vmap_scan_and_on_many_devices(fast):
    from jax.sharding import NamedSharding, PartitionSpec

    xs, w = normal(0, (3, 16, 5)), normal(1, (5, 8))

    def gradient(x, w):
        return jax.grad(lambda w: jnp.square(matmul(x, w, "bfloat16")).sum())(w)

    one = jax.jit(gradient)
    want = np.stack([one(x, w) for x in xs])
    _, scanned = lax.scan(lambda c, x: (c, gradient(x, w)), 0, xs)
    for got in (jax.jit(jax.vmap(gradient, (0, None)))(xs, w), scanned):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    mesh = jo.devices.data_parallel().mesh
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    spread = jax.jit(gradient, in_shardings=(split, whole), out_shardings=whole)(xs[0], w)
    np.testing.assert_allclose(spread, want[0], rtol=1e-5, atol=1e-5)


def test_operands_are_transposed_in_memory_on_a_cpu_only(fast):
    x, w = normal(0, (16, 5)), normal(1, (5, 8))
    step = jax.jit(jax.grad(lambda x, w: matmul(x, w, "bfloat16").sum(), (0, 1)))
    traced = step.trace(x, w)
    cpu, cuda = (traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "cuda"))
    # the kernel as it comes, both factors transposed, and the kernel's gradient
    assert cpu.count("LayoutConstraint") == 4 and "LayoutConstraint" not in cuda
    for text in (cpu, cuda):
        products = [line for line in text.splitlines() if "dot_general" in line]
        assert len(products) >= 2
        assert all(line.count("xbf16>") == 2 and "xf32>" in line for line in products)


def test_gradients_are_of_the_factors_types(fast):
    """Whatever they are; a factor may be used elsewhere too, and integers have none."""
    for types in ((jnp.bfloat16, jnp.float32), (jnp.float16, jnp.bfloat16)):
        x, w = (normal(i, s).astype(t) for i, s, t in zip((0, 1), ((4, 5), (5, 5)), types))

        def total(x, w):
            return (matmul(x, w, "bfloat16") + x.astype(jnp.float32)).sum()

        grads = jax.jit(jax.grad(total, (0, 1)))(x, w)
        assert [g.dtype for g in grads] == list(types)
    tokens = jnp.arange(6).reshape(2, 3)
    found = jax.jit(jax.grad(lambda w: matmul(tokens, w, "bfloat16").sum()))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(found, [[3, 3], [5, 5], [7, 7]])


def test_who_chooses(fast):
    """The layer, else what surrounds it; a jitted function is traced anew for each."""
    x, w = jnp.ones((1, 1)), jnp.full((1, 1), 1.001)
    f = jax.jit(lambda compute: matmul(x, w, compute)[0, 0], static_argnums=0)
    assert f(None) == f("float32") == w[0, 0] and f("bfloat16") == 1
    with computing("bfloat16"):
        assert f(None) == f("bfloat16") == 1 and f("float32") == w[0, 0]
    assert f(None) == w[0, 0]


@pytest.mark.parametrize("use_bias", [True, False])
def test_dense_is_that_of_flax(use_bias):
    x = normal(0, (2, 3, 6))
    ours, flax = Dense(4, use_bias=use_bias), nn.Dense(4, use_bias=use_bias)
    variables, got = jax.jit(lambda x: [m.init(jax.random.key(1), x) for m in (flax, ours)])(x)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, variables)
    assert_equal(got, variables)
    variables = jax.tree.map(lambda p: p + 0.5, variables)  # so that the bias is not zero
    got, want = jax.jit(lambda v, x: [m.apply(v, x) for m in (ours, flax)])(variables, x)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_mistake_is_named():
    with pytest.raises(ValueError, match=r"x and y must be .*, got \(2, 3\) and \(4, 5\)"):
        matmul(jnp.ones((2, 3)), jnp.ones((4, 5)))
    with pytest.raises(ValueError, match=r"got \(2, 2, 3\) and \(4, 3, 5\)"):
        matmul(jnp.ones((2, 2, 3)), jnp.ones((4, 3, 5)))
    with pytest.raises(ValueError, match=r'compute must be .*"bfloat16" or "float16", got'):
        Dense(2, compute="float8").init(jax.random.key(0), jnp.ones((1, 2)))


def learned(model, **settings):
    task = vision.classifier(model, **SETTINGS)
    data = images(64)
    state = jo.fit(
        task, data, optimizer=jo.optim.adam(1e-2), batch_size=16, epochs=10, progress=False,
        **settings,
    )  # fmt: skip
    return jax.device_get(state.params), lambda: jo.evaluate(task, state, data)["loss"]


def test_one_argument_of_fit_or_of_the_model(fast):
    plain, loss = learned(vision.MLP((16,), classes=3))
    by_fit, loss_by_fit = learned(vision.MLP((16,), classes=3), compute="bfloat16")
    by_model, _ = learned(vision.MLP((16,), classes=3, compute="bfloat16"))
    kept, _ = learned(vision.MLP((16,), classes=3, compute="float32"), compute="bfloat16")
    assert_equal(by_fit, by_model)
    assert_equal(plain, kept)
    moved = jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), plain, by_fit))
    assert 0 < max(moved) < 0.05
    assert abs(loss() - loss_by_fit()) < 0.02 * loss()
    with pytest.raises(ValueError, match=r"compute must be .*, got 'half'"):
        learned(vision.MLP((16,), classes=3), compute="half")


def test_a_run_goes_on_in_the_precision_it_began_with(tmp_path, fast):
    model = vision.MLP((16,), classes=3)
    learned(model, compute="bfloat16", checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"compute must be bfloat16, as in .*, got float32"):
        learned(model, checkpoints=tmp_path)
