"""The recurrent classifier of texts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxops as jo
from jaxops.nn import GRU, LSTM
from jaxops.text import Recurrent
from jaxops.transforms import monte_carlo

KEY = jax.random.key(0)
LENGTHS = np.array([6, 1, 4])
TOKENS = np.random.default_rng(0).integers(1, 9, (3, 6)) * (np.arange(6) < LENGTHS[:, None])


@pytest.mark.parametrize(
    ("cell", "depth", "both", "pooling"),
    [
        ("lstm", 2, True, "last"),
        pytest.param("gru", 2, False, "last", marks=pytest.mark.slow),
        ("gru", 1, True, "mean"),
        ("lstm", 1, True, "max"),
    ],
)
def test_each_text_alone_gives_the_same(cell, depth, both, pooling):
    model = Recurrent(9, 4, 5, depth, cell, both, pooling)
    shapes = jax.eval_shape(model.init, KEY, TOKENS)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    found = jax.jit(model.apply)(variables, TOKENS)
    params = variables["params"]
    read = jax.jit({"lstm": LSTM, "gru": GRU}[cell](5, depth, both).apply)
    for logits, tokens, length in zip(found, TOKENS, LENGTHS, strict=True):
        x = params["embedding"]["embedding"][tokens[:length]][None]
        outputs, _ = read({"params": params["recurrence"]}, x)
        outputs = np.asarray(outputs[0])
        last = np.concatenate([outputs[-1, :5], outputs[0, 5:]])
        pooled = {"last": last, "mean": outputs.mean(0), "max": outputs.max(0)}[pooling]
        want = pooled @ params["logits"]["kernel"] + params["logits"]["bias"]
        np.testing.assert_allclose(logits, want, atol=1e-5)


@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
def test_a_row_of_padding_is_finite(pooling):
    model = Recurrent(9, 4, 5, pooling=pooling)
    nothing = np.zeros((1, 6), np.int32)
    shapes = jax.eval_shape(model.init, KEY, nothing)
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.1, np.float32), shapes)
    grads = jax.jit(jax.grad(lambda v: model.apply(v, nothing).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert not grads["params"]["embedding"]["embedding"].any()


@pytest.mark.slow
def test_it_learns_order_and_says_how_sure_it_is():
    """Whether 1 comes before 2: a bag of words could not tell."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(3, 9, (400, 8)).astype(np.int32)
    places = np.sort(rng.permuted(np.tile(np.arange(8), (400, 1)), axis=1)[:, :2], axis=1)
    label = rng.integers(0, 2, 400).astype(np.int32)
    tokens[np.arange(400), places[:, 0]] = 1 + label
    tokens[np.arange(400), places[:, 1]] = 2 - label
    data = {"tokens": tokens, "label": label}
    model = Recurrent(9, 2, 16, dropout=0.1, recurrent_dropout=0.1)
    task = jo.supervised(
        model,
        lambda batch, key: batch["tokens"],
        lambda z, b, train: optax.softmax_cross_entropy_with_integer_labels(z, b["label"]),
        lambda z, b, w: {"accuracy": jo.metrics.accuracy(z, b["label"], w)},
        jax.nn.softmax,
        (jo.Column("tokens", (8,), "int"), jo.Column("label", (), "int", target=True)),
    )
    train, test = ({k: v[part] for k, v in data.items()} for part in (slice(300), slice(300, 400)))
    adam = jo.optim.adam(1e-2)
    state = jo.fit(task, train, optimizer=adam, batch_size=50, epochs=20, progress=False)
    assert jo.evaluate(task, state, test)["accuracy"] > 0.95

    found = jo.predict(monte_carlo(task, samples=20), state, test)
    assert (found["mean"].argmax(-1) == test["label"]).mean() > 0.95
    unsure = jo.predict(monte_carlo(task, samples=20), state, {"tokens": test["tokens"] * 0 + 5})
    assert unsure["std"].mean() > 2 * found["std"].mean()  # a text as none that it has seen


def test_another_pooling():
    with pytest.raises(ValueError, match=r"pooling must be one of .*, got 'first'"):
        jax.eval_shape(lambda: Recurrent(9, 4, pooling="first").init(KEY, jnp.asarray(TOKENS)))
