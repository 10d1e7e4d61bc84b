"""What is used against over-fitting, tested for its effect."""

from functools import partial

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from small import SETTINGS, assert_equal, digits, images, regression

import jaxops as jo
from jaxops import metrics, optim, vision
from jaxops.data.dataset import k_fold
from jaxops.nn import BatchNorm

NOISY, TEST = images(200, noise=0.4), images(1000, seed=1)


def fit(task, data=NOISY, **changes):
    settings = {"optimizer": optim.adam(3e-3), "batch_size": 50, "epochs": 60, "progress": False}
    return jo.fit(task, data, **{**settings, **changes})


def gap(**model):
    task = vision.classifier(vision.MLP((128,), classes=3, **model), **SETTINGS)
    state = fit(task)
    return jo.evaluate(task, state, TEST)["loss"] - jo.evaluate(task, state, NOISY)["loss"]


@pytest.mark.slow
def test_dropout_narrows_the_gap():
    assert gap(dropout=0.6) < 0.75 * gap()


def test_dropout_drops_its_share_and_only_in_training():
    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dropout(0.3, deterministic=not train)(x)

    def kept(out, batch, weights):
        return {
            "kept": metrics.mean(out != 0, weights),
            "value": metrics.mean(out.max(-1), weights),
        }

    task = jo.supervised(
        Drop(),
        lambda batch, key: batch["x"],
        lambda out, batch, train: out.sum(-1),
        kept,
        lambda out: out,
        (jo.Column("x", (100,)),),
    )
    batch, loss = {"x": np.ones((200, 100), np.float32)}, jax.jit(task.loss, static_argnums=4)
    for train, share, value in ((True, 0.7, 1 / 0.7), (False, 1.0, 1.0)):
        _, out = loss({}, {}, batch, jax.random.key(0), train)
        found = metrics.summarize(metrics.to_host(out.metrics))
        assert found["kept"] == pytest.approx(share, abs=0.01)
        assert found["value"] == pytest.approx(value, rel=1e-6)


class Norm(nn.Module):
    """Batch norm alone."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        return BatchNorm(name="n")(x, train=train, mask=mask)


def test_batch_norm_learns_the_datas_statistics_and_evaluates_by_them():
    task = regression(Norm())
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(203, 3)) * [1.0, 3.0, 0.5] + [5.0, -2.0, 0.0]).astype(np.float32)
    data = {"x": x, "y": np.zeros_like(x)}
    tx = optim.sgd(0.0)
    state = fit(task, data, optimizer=tx, batch_size=203, epochs=100)
    stats = state.extra["batch_stats"]["n"]
    np.testing.assert_allclose(stats["mean"], x.mean(0), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stats["var"], x.var(0), rtol=1e-3)
    found = jo.predict(task, state, {"x": x[:1]})  # a batch of one has no statistics of its own
    np.testing.assert_allclose(found, (x[:1] - x.mean(0)) / x.std(0), rtol=1e-2, atol=1e-3)
    before = jax.device_get(state.extra)
    jo.evaluate(task, state, data)
    assert_equal(state.extra, before)
    # a last batch of 3 rows and 47 of padding: its statistics are those of the 3 rows
    mixed = fit(task, data, optimizer=tx, batch_size=50, epochs=60)
    mean = mixed.extra["batch_stats"]["n"]["mean"]
    np.testing.assert_allclose(mean, x.mean(0), atol=0.6)


def test_label_smoothing_moves_the_optimum():
    """One picture, always class 1: the best probability of it is 1 - a + a / C."""
    task = vision.classifier(vision.MLP((), classes=3), **SETTINGS, label_smoothing=0.3)
    data = {"image": np.full((4, 4, 4, 1), 255, np.uint8), "label": np.ones(4, np.int32)}
    state = fit(task, data, optimizer=optim.sgd(0.1), batch_size=4, epochs=400)
    found = jo.predict(task, state, data)[0]
    np.testing.assert_allclose(found, [0.1, 0.8, 0.1], atol=1e-3)
    loss = jo.evaluate(task, state, data)["loss"]
    assert loss == pytest.approx(-np.log(0.8), abs=1e-3)  # without smoothing


@pytest.mark.slow
def test_early_stopping_beats_the_end():
    task = vision.classifier(vision.MLP((128,), classes=3), **SETTINGS)
    last = fit(task, epochs=200)
    best = fit(task, epochs=200, validation=TEST, early_stopping=jo.EarlyStopping(patience=5))
    assert best.step < 480
    losses = [jo.evaluate(task, s, TEST)["loss"] for s in (best, last)]
    assert losses[0] < 0.8 * losses[1]


def test_augmentation_differs_by_step_repeats_by_seed_and_is_for_training_only():
    def noise(key, x):
        return x + jax.random.normal(key, x.shape)

    task = vision.classifier(vision.MLP((), classes=3), **SETTINGS, augment=noise)
    plain = vision.classifier(vision.MLP((), classes=3), **SETTINGS)
    batch = images(20)
    tx = optax.sgd(0.0)
    steps = {made: jax.jit(partial(jo.train_step, made, tx)) for made in (task, plain)}

    def losses(task, seed):
        state, found = jo.init_state(task, tx, seed, batch), []
        for _ in range(3):
            state, out = steps[task](state, batch)
            found.append(float(out["loss"].total))
        return found

    first = losses(task, 0)
    assert len(set(first)) == 3 and first == losses(task, 0) and first != losses(task, 1)
    assert len(set(losses(plain, 0))) == 1
    state = jo.init_state(task, tx, 0, batch)
    assert jo.evaluate(task, state, batch) == jo.evaluate(plain, state, batch)
    assert_equal(jo.predict(task, state, batch), jo.predict(plain, state, batch))


@pytest.mark.parametrize("labels", [53, np.arange(53) % 3], ids=["count", "labels"])
def test_k_fold_covers_each_row_once(labels):
    folds = k_fold(labels, folds=5, seed=3)
    assert len(folds) == 5
    held_out = np.concatenate([validation for _, validation in folds])
    np.testing.assert_array_equal(np.sort(held_out), np.arange(53))
    for train, validation in folds:
        assert sorted([*train, *validation]) == list(range(53))


@pytest.mark.slow
def test_an_ensemble_of_digits_is_better_than_its_members():
    image, label = digits()
    order = np.random.default_rng(0).permutation(5000)
    rows = {"image": image[order].reshape(-1, 28, 28, 1), "label": label[order]}
    train, test = (
        {k: v[part] for k, v in rows.items()} for part in (slice(1000), slice(1000, None))
    )
    task = vision.classifier(vision.MLP((32,)))
    states = [fit(task, train, epochs=8, seed=seed) for seed in range(4)]
    each = [jo.evaluate(task, state, test)["accuracy"] for state in states]
    several, together = jo.ensemble(task, 4), jo.stack(states)

    def accuracy(p, batch):
        return p.argmax(-1) == batch["label"]

    found = jo.evaluate(several, together, test, metrics={"accuracy": accuracy})["accuracy"]
    mean = np.mean([jo.predict(task, state, test) for state in states], 0)
    assert found == pytest.approx((mean.argmax(1) == test["label"]).mean())
    assert min(each) > 0.8 and found > np.mean(each)
