"""Modules of the user's own: their flags reach them, and no padding does."""

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from small import Batches

import jaxops as jo
from jaxops._modules import FLAGS

RNG = np.random.default_rng(0)
X = RNG.normal((5, 2, 9), size=(50, 3)).astype(np.float32)
ROWS = {"x": X, "label": X.sum(1).astype(np.float32)}
EXAMPLE = {name: value[:1] for name, value in ROWS.items()}
KEY = jax.random.key(0)


def supervised(module):
    return jo.supervised(
        module,
        lambda batch, key: batch["x"],
        lambda out, batch, train: jnp.square(out[:, 0] - batch["label"]),
        lambda out, batch, weights: {},
        lambda out: out[:, 0],
        (jo.Column("x", (3,)), jo.Column("label", target=True)),
    )


def fit(module, data=ROWS, **changes):
    settings = {"optimizer": jo.optim.sgd(1e-3), "batch_size": 16, "progress": False}
    return jo.fit(supervised(module), data, **settings | changes)


def layers(x, train, rate=0.5, norm=True):
    if norm:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x)
    x = nn.Dropout(rate, deterministic=not train, name="drop")(x)
    return nn.Dense(1, name="out")(x)


class Train(nn.Module):
    norm: bool = True
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool = False):
        return layers(x, train, self.rate, self.norm)


class Training(nn.Module):
    @nn.compact
    def __call__(self, x, training: bool = False):
        return layers(x, training)


class IsTraining(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_training: bool):
        return layers(x, is_training)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic: bool = True):
        return layers(x, not deterministic)


class Running(nn.Module):
    @nn.compact
    def __call__(self, x, use_running_average: bool = True):
        return layers(x, not use_running_average)


class Anything(nn.Module):
    @nn.compact
    def __call__(self, x, **kwargs):
        return layers(x, kwargs.get("train", False))


class Attends(nn.Module):
    @nn.compact
    def __call__(self, x, **kwargs):
        attend = nn.MultiHeadDotProductAttention(1, dropout_rate=0.1, deterministic=True)
        return attend(x[:, None])[:, 0]


class Deaf(nn.Module):
    """Takes the flag and the mask, and does not hand them on."""

    @nn.compact
    def __call__(self, x, train: bool, mask):
        x = nn.BatchNorm(use_running_average=not train, name="unmasked")(x)
        return layers(x, False)


class Sows(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(1)(x)
        self.sow("losses", "size", jnp.square(x).mean())
        return x


class InNnx(nnx.Module):
    def __init__(self):
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=nnx.Rngs(0))
        self.out = nnx.Linear(3, 1, rngs=nnx.Rngs(0))

    def __call__(self, x, deterministic=True):
        return self.out(self.norm(x)) * (1.0 if deterministic else 2.0)


def loss_of(task, key=KEY, rows=ROWS, train=True):
    params, extra = task.init(KEY, EXAMPLE)
    return task.loss(params, extra, rows, key, train)


@pytest.mark.parametrize("module", [Train, Training, IsTraining, Deterministic, Running])
def test_a_flag_of_any_name_turns_dropout_and_statistics_on(module):
    task = supervised(module())
    with jax.disable_jit():
        total, out = loss_of(task)
        other, _ = loss_of(task, jax.random.key(1))
        still, left = loss_of(task, train=False)
        again, _ = loss_of(task, jax.random.key(1), train=False)
    assert total != other and still == again
    np.testing.assert_allclose(out.extra["batch_stats"]["norm"]["mean"], 0.1 * X.mean(0), rtol=1e-5)
    assert (left.extra["batch_stats"]["norm"]["mean"] == 0).all()
    assert task.sample is not None


@pytest.mark.parametrize(
    ("module", "layer", "signature"),
    [
        (Anything(), "drop", r"Anything\(x, \*\*kwargs\)"),
        (nn.Sequential([Train()]), "layers_0/drop", r"Sequential\(\*args, \*\*kwargs\)"),
        (nn.Sequential([nn.Dropout(0.1, deterministic=True)]), "layers_0", "Sequential"),
        (nn.Sequential([nn.BatchNorm(True)]), "layers_0", "Sequential"),
        (Attends(), "MultiHeadDotProductAttention_0", r"Attends\(x, \*\*kwargs\)"),
    ],
)
def test_a_module_that_cannot_be_told_is_refused(module, layer, signature):
    words = f"must name one of {', '.join(FLAGS)} in its __call__, to turn on {layer} .*{signature}"
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda: supervised(module).init(KEY, EXAMPLE))


def test_a_sequence_without_such_layers_is_taken():
    task = supervised(nn.Sequential([nn.Dense(1), nn.Dropout(0.0, deterministic=True)]))
    assert jax.eval_shape(lambda: loss_of(task))[0].shape == ()


class Frozen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(x)
        return nn.Dense(1)(nn.Dropout(0.5)(x, deterministic=True))


class Block(nn.Module):
    dropout: float = 0.5

    @nn.compact
    def __call__(self, x, train):
        return nn.Dropout(self.dropout, deterministic=not train)(x)


class ByPlace(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(1)(Block()(x, train))


@pytest.mark.parametrize("module", [Frozen(), ByPlace()])
def test_what_is_meant_is_taken_without_a_word(module):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit(module, steps=1).step == 1


@pytest.mark.parametrize("lifted", [nn.remat, nn.jit])
def test_lifted_modules_get_the_flag_by_its_place(lifted):
    module = lifted(Train, static_argnums=(2,))
    task, plain = supervised(module(rate=0.0)), supervised(Train(rate=0.0))  # its keys differ
    params, extra = plain.init(KEY, EXAMPLE)
    got, want = (jax.jit(t.loss, static_argnums=4)(params, extra, ROWS, KEY, True)[0]
                 for t in (task, plain))  # fmt: skip
    assert float(got) == pytest.approx(float(want), rel=1e-5)
    with pytest.raises(ValueError, match=r"train must stay a Python bool .*static_argnums=\(2,\)"):
        jax.eval_shape(lambda: supervised(lifted(Train)()).init(KEY, EXAMPLE))


def test_what_does_not_reach_a_layer_is_said_once():
    task = supervised(Deaf())
    words = (
        r"train=True\) batch statistics of norm do not change; dropout drop is off; "
        "unmasked is not given `mask`"
    )
    with pytest.warns(UserWarning, match=words):
        jax.eval_shape(lambda: loss_of(task))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda: loss_of(task))


def test_variables_that_grow_are_refused_by_name():
    with pytest.raises(ValueError, match=r"variables 'losses' must have the same structure"):
        fit(Sows(), steps=2)


def flax_loop(module, batches, rate=1e-3):
    """The same training by Flax and optax alone."""
    variables = module.init(jax.random.split(jax.random.key(0))[0], X[:1])
    params, stats = variables["params"], variables["batch_stats"]

    @jax.jit
    def step(params, stats, x, y):
        def loss(params):
            out, new = module.apply(
                {"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"]
            )
            return jnp.square(out[:, 0] - y).mean(), new["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(params)
        return optax.apply_updates(params, jax.tree.map(lambda g: -rate * g, grads)), stats

    for rows in batches:
        params, stats = step(params, stats, X[rows], ROWS["label"][rows])
    return params, stats


def assert_like(state, want):
    for got, wanted in zip(jax.tree.leaves((state.params, state.extra["batch_stats"])),
                           jax.tree.leaves(want), strict=True):  # fmt: skip
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=1e-6)


def test_batch_statistics_without_a_mask_see_whole_batches_alone():
    """50 rows in batches of 16: three steps an epoch, and two other rows are left out each time."""
    module = Train(rate=0.0)
    orders = [np.random.default_rng((0, epoch)).permutation(50)[:48] for epoch in range(2)]
    assert set(orders[0]) != set(orders[1])
    batches = [rows for order in orders for rows in order.reshape(3, 16)]
    state = fit(module, epochs=2)
    assert state.step == 6
    assert_like(state, flax_loop(module, batches))


@pytest.mark.slow
def test_rows_of_weight_zero_and_short_batches_of_a_stream_are_left_out(tmp_path):
    module = Train(rate=0.0)
    kept = np.flatnonzero(np.arange(50) % 5)
    order = [kept[np.random.default_rng((0, e)).permutation(40)[:32]] for e in range(2)]
    state = fit(module, {**ROWS, "mask": (np.arange(50) % 5 > 0).astype(np.float32)}, epochs=2)
    assert_like(state, flax_loop(module, [rows for e in order for rows in e.reshape(2, 16)]))

    state = fit(module, Batches(ROWS, 16), steps=5, checkpoints=jo.Checkpoints(tmp_path, every=2))
    straight = [np.arange(16) + 16 * (i % 3) for i in range(5)]
    assert_like(state, flax_loop(module, straight))
    last = fit(module, Batches(ROWS, 16), steps=7, checkpoints=tmp_path)
    assert_like(last, flax_loop(module, [*straight, straight[2], straight[0]]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"accumulate": 3}, r"batch_size must be a multiple of 3 \(devices x accumulate\)"),
        ({"batch_size": 1}, "batch_size must be at least 2 .* for norm"),
        ({"accumulate": 16}, "batch_size must be at least 2 .* for norm"),
        ({"data": Batches(ROWS, 15)}, "data must have a batch of 16 rows"),
        ({"data": {**ROWS, "mask": np.arange(50) < 15}}, r"at most 15 \(the number of rows whose"),
        (
            {"data": Batches({**ROWS, "mask": np.arange(50) != 3}, 16)},
            "mask must be above 0 .*got 0 in row 3",
        ),
    ],
)
def test_whole_batches_that_cannot_be(changes, words):
    with pytest.raises(ValueError, match=words):
        fit(Train(), steps=2, **changes)


def test_an_nnx_module_with_statistics_sees_whole_batches_alone_and_its_flag():
    adapted = jo.from_nnx(InNnx())
    state = fit(adapted, epochs=1)
    assert state.step == 3
    rows = np.random.default_rng((0, 0)).permutation(50)[:48].reshape(3, 16)
    mean = np.zeros(3)
    for batch in rows:
        mean = 0.9 * mean + 0.1 * X[batch].mean(0)
    np.testing.assert_allclose(state.extra["state"]["norm"]["mean"], mean, rtol=1e-5)
    variables = adapted.init(None)
    off = adapted.apply(variables, X, train=False)
    on, _ = adapted.apply(variables, X, train=True, mutable=["state"])
    centred = (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5)
    kernel = np.asarray(variables["params"]["out"]["kernel"])
    np.testing.assert_allclose(on, 2 * centred @ kernel, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(off, X / np.sqrt(1 + 1e-5) @ kernel, rtol=1e-4)
