import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

from jaxops.vision import CNN, MLP, ConvNet

KEY = jax.random.key(0)
DIGITS = jax.ShapeDtypeStruct((6, 28, 28, 1), jnp.float32)
IMAGES = jax.random.uniform(KEY, (6, 12, 12, 1))  # smaller, which compiles and runs faster


def start(model):
    return filled(model.init, IMAGES)


@pytest.mark.parametrize(
    "model, count",
    [(MLP(), 101_770), (MLP((256, 128)), 235_146), (CNN(), 693_962), (ConvNet(), 104_650)],
)
def test_parameter_counts_are_those_of_the_articles(model, count):
    variables = jax.eval_shape(model.init, KEY, DIGITS)
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"])) == count
    assert jax.eval_shape(model.apply, variables, DIGITS).shape == (6, 10)


def test_mlp_is_its_formula():
    model = MLP((16, 8), classes=3)
    p = start(model)["params"]
    x = np.asarray(IMAGES).reshape(6, -1)
    for name in ("hidden_0", "hidden_1"):
        x = np.maximum(x @ p[name]["kernel"] + p[name]["bias"][None], 0)
    want = x @ p["logits"]["kernel"] + p["logits"]["bias"][None]
    got = jax.jit(model.apply)({"params": p}, IMAGES)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_cnn_is_that_of_flax_layers():
    class Reference(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(32, (3, 3), padding="VALID", name="conv")(x))
            x = nn.max_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
            return nn.Dense(10, name="logits")(nn.relu(nn.Dense(128, name="hidden")(x)))

    variables = start(CNN())
    ours, want = jax.jit(lambda v: [m.apply(v, IMAGES) for m in (CNN(), Reference())])(variables)
    np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-5)


def test_convnet_is_that_of_flax_layers():
    class Reference(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            for i, (width, padding) in enumerate([(4, "VALID"), (6, "SAME")]):
                x = nn.Conv(width, (3, 3), padding=padding, name=f"conv_{i}")(x)
                x = nn.max_pool(x, (2, 2), (2, 2))
                norm = nn.BatchNorm(not train, momentum=0.9, name=f"norm_{i}")
                x = nn.relu(norm(x))
            return nn.Dense(10, name="logits")(x.reshape(len(x), -1))

    model = ConvNet((4, 6))
    variables = start(model)
    variables["params"] = jax.tree.map(lambda p: p + 0.1, variables["params"])

    @jax.jit
    def run(variables):
        return [
            (
                model.apply(variables, IMAGES, train=train, mutable="batch_stats"),
                Reference().apply(variables, IMAGES, train, mutable="batch_stats"),
            )
            for train in (False, True)
        ]

    for ours, flax in run(variables):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), ours, flax
        )


@pytest.mark.parametrize(
    "initializer, kernel_bound, bias_bound",
    [
        ("keras", {"hidden": (6 / (800 + 128)) ** 0.5, "conv": (6 / (9 + 9 * 32)) ** 0.5}, None),
        ("torch", {"hidden": 800**-0.5, "conv": 1 / 3}, {"hidden": 800**-0.5, "conv": 1 / 3}),
    ],
)
def test_uniform_initializers(initializer, kernel_bound, bias_bound):
    params = jax.jit(CNN(initializer=initializer).init)(KEY, IMAGES)["params"]
    for layer, bound in kernel_bound.items():
        kernel = np.asarray(params[layer]["kernel"])
        assert 0.95 * bound < np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.1)
        bias = np.abs(params[layer]["bias"]).max()
        assert 0.8 * bias_bound[layer] < bias <= bias_bound[layer] if bias_bound else bias == 0


def test_lecun_normal_is_the_default():
    kernel = np.asarray(
        jax.jit(MLP().init)(KEY, jnp.ones(DIGITS.shape))["params"]["hidden_0"]["kernel"]
    )
    np.testing.assert_allclose(kernel.std(), 784**-0.5, rtol=0.01)
    with pytest.raises(
        ValueError, match="initializer must be one of lecun_normal, keras, torch, got 'he'"
    ):
        start(MLP(initializer="he"))


@pytest.mark.parametrize("model", [MLP((8,), dropout=0.5), CNN(features=2, dropout=0.5)])
def test_dropout_draws_only_while_training(model):
    variables = start(model)

    @jax.jit
    def run(key):
        drawn = model.apply(variables, IMAGES, train=True, rngs={"dropout": key})
        plain = model.clone(dropout=0.0).apply(variables, IMAGES)
        return drawn, model.apply(variables, IMAGES), plain

    one, evaluated, plain = run(KEY)
    assert not np.allclose(one, run(jax.random.key(1))[0])
    np.testing.assert_allclose(evaluated, plain, rtol=1e-6)


def test_convnet_drops_only_while_training():
    model = ConvNet((2, 2), dropout=0.999)
    variables = start(model)

    @jax.jit
    def run(key):
        how = {"rngs": {"dropout": key}, "mutable": "batch_stats"}
        drawn = model.apply(variables, IMAGES, train=True, **how)[0]
        return drawn, model.apply(variables, IMAGES)

    drawn, plain = map(np.asarray, run(KEY))
    bias = variables["params"]["logits"]["bias"][None]
    assert (drawn == bias).mean() > 0.5  # nothing else is left of most rows
    assert (plain != bias).all()


@pytest.mark.parametrize("model", [MLP((16,), batch_norm=True), ConvNet((4, 8))])
def test_padding_rows_do_not_touch_batch_statistics(model):
    variables = start(model)
    padded = jnp.concatenate([IMAGES, jnp.full((3, 12, 12, 1), 1e6)])
    mask = jnp.arange(9) < 6

    @jax.jit
    def run(x, mask):
        return model.apply(variables, x, train=True, mask=mask, mutable=["batch_stats"])

    (want, want_new), (got, new) = run(IMAGES, None), run(padded, mask)
    np.testing.assert_allclose(got[:6], want, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), new, want_new)
    if isinstance(model, MLP):
        layer = variables["params"]["hidden_0"]
        hidden = np.asarray(IMAGES).reshape(6, -1) @ layer["kernel"] + layer["bias"][None]
        before, after = (v["batch_stats"]["norm_0"]["mean"] for v in (variables, new))
        np.testing.assert_allclose(after, 0.9 * before + 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-5)
