"""One step, many steps and one evaluation, against NumPy and against each other."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import ADAM, LINEAR, SETTINGS, TASK, assert_close, assert_equal, images, regression

import jaxops as jo
from jaxops import metrics, vision
from jaxops.train.resident import pad

BATCH_NORM = vision.classifier(
    vision.MLP((8,), classes=3, batch_norm=True), **SETTINGS, label_smoothing=0.1
)

BOTH = pytest.mark.parametrize(
    "task",
    [
        pytest.param(BATCH_NORM, id="batch_norm"),
        pytest.param(TASK, id="plain", marks=pytest.mark.slow),
    ],
)


@functools.cache
def stepper(task, tx=ADAM):
    return jax.jit(partial(jo.train_step, task, tx))


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_three_steps_are_those_of_a_hand_written_gradient():
    batch, rate, momentum = images(12), 0.3, 0.9
    weights = np.array([1, 1, 1, 0, 1, 2, 1, 1, 0.5, 1, 1, 1], np.float32)
    tx = optax.sgd(rate, momentum)
    state = jo.init_state(LINEAR, tx, 0, batch)
    w, b = (np.float64(state.params["logits"][k]) for k in ("kernel", "bias"))
    x, target = batch["image"].reshape(12, -1) / 255, np.eye(3)[batch["label"]]
    vw, vb = np.zeros_like(w), np.zeros_like(b)
    step = stepper(LINEAR, tx)
    for i in range(3):
        p = softmax(x @ w + b)
        loss = -(np.log(p) * target).sum(1)
        d = (p - target) * weights[:, None] / weights.sum()
        vw, vb = momentum * vw + x.T @ d, momentum * vb + d.sum(0)
        w, b = w - rate * vw, b - rate * vb
        state, out = step(state, {**batch, "mask": weights})
        summary = metrics.summarize(metrics.to_host(out))
        assert summary["loss"] == pytest.approx((loss * weights).sum() / weights.sum(), rel=1e-5)
        right = (p.argmax(1) == batch["label"]) * weights
        assert summary["accuracy"] == pytest.approx(right.sum() / weights.sum(), rel=1e-6)
        assert state.step == i + 1
    np.testing.assert_allclose(state.params["logits"]["kernel"], w, atol=2e-6)
    np.testing.assert_allclose(state.params["logits"]["bias"], b, atol=2e-6)


@BOTH
def test_padding_does_not_change_the_update(task):
    batch = images(5)
    tx = optax.sgd(0.1, momentum=0.9)  # not Adam: it makes large steps of a zero's rounding
    state = jo.init_state(task, tx, 0, batch)
    padded = pad(batch, 8)
    padded["image"][5:], padded["label"][5:] = 255, 77  # a padding row may hold anything
    step = stepper(task, tx)
    want, want_metrics = step(state, batch)
    found, found_metrics = step(state, padded)
    assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert_close(found_metrics, want_metrics, rtol=1e-5)


def test_nan_in_a_padding_row_is_harmless():
    task = regression(nn.Dense(2))
    rng = np.random.default_rng(0)
    batch = {k: rng.normal(size=(6, n)).astype(np.float32) for k, n in (("x", 3), ("y", 2))}
    state = jo.init_state(task, ADAM, 0, batch)
    want, want_metrics = stepper(task)(state, {k: v[:4] for k, v in batch.items()})
    batch["x"][4], batch["y"][5] = np.nan, np.inf
    batch["mask"] = np.array([1, 1, 1, 1, 0, 0], np.float32)
    found, found_metrics = stepper(task)(state, batch)
    assert_close(found, want, rtol=1e-5)
    assert_close(found_metrics, want_metrics, rtol=1e-5)
    evaluated = jax.jit(partial(jo.eval_step, task, ()))(state, batch)
    assert_close(evaluated["loss"], want_metrics["loss"], rtol=1e-5)


def test_a_batch_of_padding_alone_moves_nothing():
    batch = {**images(4), "mask": np.zeros(4, np.float32)}
    tx = optax.sgd(0.1)
    state = jo.init_state(TASK, tx, 0, batch)
    new, out = stepper(TASK, tx)(state, batch)
    assert_equal(new.params, state.params)
    assert out["loss"].weight == 0 and np.isnan(metrics.to_host(out["loss"]).compute())


@BOTH
def test_many_steps_are_single_steps_bit_for_bit(task):
    batches = [images(8, seed) for seed in range(6)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)
    state = jo.init_state(task, ADAM, 0, batches[0])
    step = partial(jo.train_step, task, ADAM)
    many = jax.jit(jo.many_steps(step))
    single, losses = state, []
    for batch in batches[:4]:
        single, out = jax.jit(step)(single, batch)
        losses.append(out["loss"].total)
    found, out = many(state, stacked, jnp.int32(4))
    assert_equal(found, single)
    np.testing.assert_array_equal(out["loss"].total, [*losses, 0, 0])
    np.testing.assert_array_equal(out["loss"].weight, [8, 8, 8, 8, 0, 0])
    one_by_one = state
    for i in range(4):  # a call for each, of length 1
        one = jax.tree.map(lambda leaf: leaf[i : i + 1], stacked)
        one_by_one, _ = many(one_by_one, one, jnp.int32(1))
    assert_equal(one_by_one, single)


def test_randomness_is_the_step_number_alone():
    task = vision.classifier(vision.MLP((16,), classes=3, dropout=0.5), **SETTINGS)
    batch = images(8)
    state = jo.init_state(task, optax.sgd(0.0), 0, batch)
    step = stepper(task, optax.sgd(0.0))
    first, a = step(state, batch)
    _, again = step(state, batch)
    _, b = step(first, batch)
    assert_equal(a, again)
    assert a["loss"].total != b["loss"].total  # other units dropped
    assert_equal(first.key, state.key)


def test_eval_step_has_no_effect_and_adds_metrics():
    batch = {**images(6), "mask": np.array([1, 1, 1, 1, 1, 0], np.float32)}
    state = jo.init_state(BATCH_NORM, ADAM, 0, batch)

    def confidence(probabilities, batch):
        return metrics.mean(probabilities.max(-1), batch["mask"])

    out = jax.jit(partial(jo.eval_step, BATCH_NORM, (("confidence", confidence),)))(state, batch)
    p = np.asarray(jax.jit(BATCH_NORM.predict)(state.params, state.extra, batch))[:5]
    found = metrics.summarize(metrics.to_host(out))
    assert found["confidence"] == pytest.approx(p.max(1).mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((p.argmax(1) == batch["label"][:5]).mean())
    want = -np.log(p[np.arange(5), batch["label"][:5]]).mean()  # without label smoothing
    assert found["loss"] == pytest.approx(want, rel=1e-5)


def test_a_state_depends_on_the_seed_alone():
    batch = images(4)
    a, b = (jo.init_state(TASK, ADAM, 3, {k: v[:n] for k, v in batch.items()}) for n in (1, 4))
    assert_equal(a, b)
    other = jo.init_state(TASK, ADAM, 4, batch)
    assert not np.array_equal(*(s.params["logits"]["kernel"] for s in (a, other)))
