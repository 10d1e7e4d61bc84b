"""Norms of the rows' gradients in closed form, against the rows' gradients themselves."""

import functools
from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

import jaxops as jo
from jaxops import language, privacy, recommend, tabular, text, vision
from jaxops import nn as layers
from jaxops.privacy import norms, rowwise

ROWS, STEPS, WIDTH, WORDS = 3, 5, 4, 11
RNG = np.random.default_rng(0)
TOKENS = {"tokens": RNG.integers(0, WORDS, (ROWS, STEPS)).astype(np.int32)}
VECTORS = {"x": RNG.normal(size=(ROWS, STEPS, WIDTH)).astype(np.float32)}
IMAGES = {"x": RNG.normal(size=(ROWS, 6, 6, WIDTH)).astype(np.float32)}


def private(task, **settings):
    return privacy.private(task, clip=1.0, noise_multiplier=1.0, batch_size=8, **settings)


def task_of(module):
    """A task of one column, with a loss that gives each output a gradient of its own."""

    def loss(outputs, batch, train):
        target = jnp.sin(jnp.arange(outputs[0].size, dtype=jnp.float32)).reshape(outputs[:1].shape)
        return jnp.square(outputs - target).reshape(len(outputs), -1).sum(1)

    return jo.supervised(
        module,
        lambda batch, key: batch["tokens" if "tokens" in batch else "x"],
        loss,
        lambda outputs, b, w: {},
        lambda outputs: outputs,
        (),
    )


@functools.cache
def squares(task):
    """A function of `(params, extra, batch, key)`: squared norms (B, leaves) in three ways."""

    @jax.jit
    def all_ways(params, extra, batch, key):
        rows = rowwise.split(batch, key)
        one = rowwise.traced(task.loss, params, extra, rows)

        def by(name):
            forced = [replace(r, name=name) if r.factors else r for r in one.rules]
            return rowwise.squared(one._replace(rules=forced), params, extra, rows)

        grads = privacy.row_gradients(task, params, extra, batch, key)
        by_row = [jnp.square(g.reshape(len(g), -1)).sum(1) for g in jax.tree.leaves(grads)]
        return by(norms.GRAM), by(norms.PRODUCT), jnp.stack(by_row, 1)

    return all_ways


def check(task, batch, factored=()):
    """Compare the ways for each parameter; those named must be known as products."""
    params, extra = filled(task.init, batch)
    *found, expected = squares(task)(params, extra, batch, jax.random.key(3))
    assert (np.asarray(expected).sum(0) > 0).all(), "a parameter without a gradient shows nothing"
    least = 1e-7 * float(expected.max())
    for way in found:
        np.testing.assert_allclose(way, expected, rtol=1e-5, atol=least)
    rules = privacy.how(private(task, method="ghost"), batch)
    others = {name for name, rule in rules.items() if rule == norms.REPLAY}
    assert others.isdisjoint(factored), rules


class Sequence(nn.Module):
    """The layers of language models; the table and one dense layer are each used twice."""

    @nn.compact
    def __call__(self, tokens):
        embed = layers.Embed(WORDS, WIDTH, name="embed")
        x = nn.LayerNorm(name="layer_norm")(embed(tokens))
        y = nn.MultiHeadDotProductAttention(2, name="attention")(x)
        shared = layers.Dense(WIDTH, name="shared")
        x = nn.RMSNorm(name="rms_norm")(x + shared(nn.tanh(shared(y))))
        position = jnp.arange(x.shape[1])[None]
        x = x + layers.Attention(WIDTH, 2, 1, 4, qk_norm=True, name="grouped")(x, position)[0]
        x = nn.DenseGeneral((2, WIDTH // 2), name="general")(x).reshape(x.shape)
        return embed.attend(x) + nn.Embed(WORDS, WORDS, name="flax_embed")(tokens)


def test_layers_of_language_models():
    check(
        task_of(Sequence()),
        TOKENS,
        ("attention/query/kernel", "flax_embed/embedding", "grouped/qkv/kernel"),
    )


class Image(nn.Module):
    """Convolutions of both kinds, grouped ones, and group norm."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(layers.Conv(4, strides=2, name="conv")(x))
        x = nn.GroupNorm(2, name="group_norm")(x)
        x = nn.Conv(6, (3, 3), padding="VALID", name="flax_conv")(x)
        x = nn.Conv(6, (1, 1), feature_group_count=2, name="groups")(nn.tanh(x))
        x = layers.Conv(6, (1, 1), feature_group_count=3, name="own_groups")(x)
        return nn.Dense(3, name="dense")(x.reshape(len(x), -1))


@pytest.mark.slow
def test_layers_of_images():
    check(task_of(Image()), IMAGES, ("dense/kernel",))


class Recurrent(nn.Module):
    """LSTM and GRU, in both directions, and Flax's own, whose cell every step shares."""

    @nn.compact
    def __call__(self, x):
        a, _ = layers.LSTM(3, bidirectional=True, name="lstm")(x)
        b, _ = layers.GRU(3, name="gru")(x)
        return jnp.concatenate([a, b, nn.RNN(nn.LSTMCell(2), name="flax")(x)], -1)


@pytest.mark.slow
def test_recurrent_layers():
    check(task_of(Recurrent()), VECTORS, ("lstm/forward_0_kernel", "gru/forward_0_kernel"))


class Odd(nn.Module):
    """What has no closed form: parameters that are changed before a row sees them."""

    @nn.compact
    def __call__(self, x):
        first = self.param("first", nn.initializers.normal(1.0), (WIDTH, WIDTH))
        second = self.param("second", nn.initializers.normal(1.0), (WIDTH, 2 * WIDTH))
        start = self.param("start", nn.initializers.normal(1.0), (WIDTH,))
        x = x @ (first / jnp.sqrt(jnp.square(first).sum(0, keepdims=True)))  # weight norm
        x = jnp.concatenate([jnp.broadcast_to(start, (len(x), 1, WIDTH)), x], 1)
        a, b = jnp.split(second, 2, axis=1)
        scale = jnp.exp(self.param("scale", nn.initializers.zeros, (1, 1, 1)))
        both = self.param("both", nn.initializers.normal(1.0), (WIDTH, WIDTH))
        block = nn.remat(nn.Dense)(WIDTH, name="remat")
        return block(nn.tanh(x @ a) * scale + jnp.sin(x @ b) @ both) @ both.T @ both


def test_parameters_that_are_changed_before_a_row_sees_them():
    check(task_of(Odd()), VECTORS)


def test_a_table_with_itself_in_closed_form_is_counted_once():
    """|dL/dE|^2 of L = sum_t <E[a_t], E[b_t]> by NumPy: the sum over both uses, then the norm."""

    class Pairs(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            table = self.param("table", nn.initializers.normal(1.0), (500, 2))
            return (table[tokens[:, 0]] * table[tokens[:, 1]]).sum(-1)

    task = jo.supervised(
        Pairs(),
        lambda batch, key: batch["tokens"],
        lambda y, b, train: y.sum(1),
        lambda y, b, w: {},
        lambda y: y,
        (),
    )
    tokens = np.array([[[3, 7, 3], [7, 3, 499]]], np.int32)
    table = RNG.normal(size=(500, 2)).astype(np.float32)
    assert privacy.how(task, {"tokens": tokens}) == {"table": "closed form"}
    gradient = np.zeros((500, 2))
    for a, b in tokens[0].T:
        gradient[a] += table[b]
        gradient[b] += table[a]
    find = jax.jit(functools.partial(privacy.row_norms, task))
    found = find({"table": table}, {}, {"tokens": tokens}, jax.random.key(0))
    np.testing.assert_allclose(found, [np.sqrt(np.square(gradient).sum())], rtol=1e-6)


def test_lines_that_cancel_leave_no_row_unclipped():
    """Each row's gradient is a difference of two that are 100,000 times as large."""
    task = jo.supervised(
        nn.Dense(64, use_bias=False),
        lambda batch, key: batch["x"],
        lambda y, b, train: 1e5 * (y[:, 0] - y[:, 1]).sum(-1),
        lambda y, b, w: {},
        lambda y: y,
        (),
    )
    first = RNG.normal(size=(16, 1, 64))
    x = np.concatenate([first, first + 1e-5 * RNG.normal(size=(16, 1, 64))], 1).astype(np.float32)
    assert privacy.how(task, {"x": x}) == {"kernel": "closed form"}
    params, hidden = {"kernel": jnp.zeros((64, 64))}, private(task, method="ghost")

    @jax.jit
    def clipped(x, mask):
        batch, key = {"x": x, "mask": mask}, jax.random.key(0)
        return jax.grad(lambda p: hidden.loss(p, {}, batch, key, True)[0])(params)["kernel"]

    for row in range(16):
        norm = float(jnp.linalg.norm(clipped(x, np.eye(16, dtype=np.float32)[row])))
        assert 0 < norm <= 1.001


CONFIG = layers.TransformerConfig(vocabulary=WORDS, context=6, depth=2, heads=2, width=8)
GPT = language.next_token(layers.Transformer(CONFIG), packed=False)
TEXTS = {
    "tokens": RNG.integers(1, WORDS, (ROWS, 7)).astype(np.int32),
    "segments": np.ones((ROWS, 7), np.int32),
}
TEXTS["segments"][1, 4:] = 0
MEMBERS = {"features": RNG.normal(size=(ROWS, 4)).astype(np.float32), "label": np.arange(ROWS) % 2}
PICTURES = {
    "image": RNG.integers(0, 256, (ROWS, 28, 28, 1)).astype(np.uint8),
    "label": np.arange(ROWS).astype(np.int32),
}
HISTORIES = {"items": TEXTS["tokens"] - 1, "segments": TEXTS["segments"]}
BAG = {"tokens": RNG.integers(0, 50, (ROWS, 12)).astype(np.int32), "label": np.arange(ROWS) % 3}
"""room's model -> task, batch, parameters that must have a closed form"""
ROOMS = {
    "MLP": (
        tabular.classifier(tabular.MLP((6,), dropout=0.5), features=4),
        MEMBERS,
        ("hidden_0/kernel", "logits/kernel"),
    ),
    "CNN": (vision.classifier(vision.CNN(features=3, hidden=5)), PICTURES, ("hidden/kernel",)),
    "GPT": (GPT, TEXTS, ()),
    "n-gram bag": (
        text.classifier(text.NGramBag(50, 3, width=8), context=12, classes=3),
        BAG,
        ("embedding", "logits/kernel"),
    ),
}


@pytest.mark.parametrize(
    "name", [n if n == "MLP" else pytest.param(n, marks=pytest.mark.slow) for n in ROOMS]
)
def test_models_of_the_rooms(name):
    check(*ROOMS[name])


def test_how_the_norms_of_models_are_computed():
    row = "gradient of the row"
    cnn = privacy.how(vision.classifier(vision.CNN()), PICTURES)
    assert (cnn["conv/kernel"], cnn["hidden/kernel"]) == (norms.REPLAY, norms.GRAM)
    config = replace(CONFIG, width=64, vocabulary=5000, context=32)
    tokens = {name: np.zeros((1, 33), np.int32) for name in TEXTS}
    task = language.next_token(layers.Transformer(config))
    assert set(privacy.how(task, tokens).values()) == {row}  # 32 tokens use each kernel
    gpt = privacy.how(private(task, method="ghost"), tokens)
    kernels = [name for name in gpt if name.endswith("kernel")]
    assert {gpt[name] for name in (*kernels, "embedding/tokens")} == {norms.GRAM}
    scanned = language.next_token(layers.Transformer(replace(config, scan=True, vocabulary=50)))
    assert set(privacy.how(scanned, tokens).values()) == {row}
    sasrec = recommend.sasrec(items=1000, context=6, width=8, depth=1)  # its loss is fused
    assert set(privacy.how(recommend.next_item(sasrec), HISTORIES).values()) == {row}
    forced = private(vision.classifier(vision.CNN()), method="vmap")
    assert set(privacy.how(forced, PICTURES).values()) == {row}
