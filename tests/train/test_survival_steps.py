"""Steps that must not spoil a run: skipped, clipped, with a scaled loss; what is counted."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import LINEAR, SETTINGS, assert_equal, images

import jaxops as jo
from jaxops import metrics, optim, vision

NORMED = vision.classifier(vision.MLP((8,), classes=3, batch_norm=True), **SETTINGS)


@cache
def spoiled(task, kind):
    """The task, whose loss, or only its gradient, is not finite in batches that are bad."""

    def loss(params, extra, batch, key, train):
        total, out = task.loss(params, extra, batch, key, train)
        bad = batch["bad"].max() > 0
        if kind == "loss":
            total = jnp.where(bad, jnp.nan, total)
        else:  # the root of zero: a finite value without a finite slope
            total = total + jnp.sqrt(jnp.where(bad, 0.0, 1.0) * optax.tree.norm(params)) * bad
        extra = jax.tree.map(lambda x: jnp.where(bad, jnp.nan, x), out.extra)
        return total, out._replace(extra=extra)

    return task._replace(loss=loss)


def batches(count, at=()):
    for i in range(count):
        yield {**images(6, seed=i), "bad": np.full(6, float(i in at), np.float32)}


@cache
def step_of(task, tx):
    return jax.jit(partial(jo.train_step, task, tx))


def run(task, tx, given, state=None):
    step, seen = step_of(task, tx), []
    for batch in given:
        state = jo.init_state(task, tx, 0, batch) if state is None else state
        state, out = step(state, batch)
        seen.append(metrics.summarize(metrics.to_host(out)))
    return state, seen


@pytest.mark.parametrize("kind", ["gradient", pytest.param("loss", marks=pytest.mark.slow)])
def test_a_skipped_step_leaves_all_but_the_step_as_it_was(kind):
    tx = optim.skip_not_finite(optim.chain(optim.adam(1e-2), optim.ema(0.9)))
    task = spoiled(NORMED, kind)
    given = list(batches(5, at=(2,)))
    state, seen = run(task, tx, given)
    # the same run without the bad batch, its randomness (none here) aside
    want, rest = run(task, tx, given[:2] + given[3:])
    for name in ("params", "extra"):
        assert_equal(getattr(state, name), getattr(want, name))
    assert_equal(state.opt_state.inner_state, want.opt_state.inner_state)
    assert state.step == 5 and want.step == 4
    assert [s["skipped"] for s in seen] == [0, 0, 1, 0, 0]
    assert [s["skipped"] for s in rest] == [0] * 4
    assert np.isnan(seen[2]["loss"]) == (kind == "loss")  # nothing counted, or the loss as it was
    assert seen[3] == rest[2]


def test_metrics_of_a_skipped_step_spoil_no_mean():
    tx = optim.skip_not_finite(optim.sgd(0.1))
    task = spoiled(LINEAR, "loss")
    given = list(batches(4, at=(1,)))
    step = step_of(task, tx)
    state, states = jo.init_state(task, tx, 0, given[0]), []
    for batch in given:
        state, out = step(state, batch)
        states.append(metrics.to_host(out))
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    summary = metrics.summarize(metrics.fold(stacked))
    good = [states[i]["loss"] for i in (0, 2, 3)]
    assert summary["loss"] == pytest.approx(sum(s.total for s in good) / 18)
    assert summary["skipped"] == 1


def test_clipping_is_optax_and_is_counted():
    limit = 1.2
    mine, theirs = (
        optim.chain(clip, optim.sgd(0.5))
        for clip in (optim.clip_by_global_norm(limit), optax.clip_by_global_norm(limit))
    )
    given = list(batches(8))
    state, seen = run(LINEAR, mine, given)
    want, plain = run(LINEAR, theirs, given)
    assert_equal(state.params, want.params)
    assert "clipped" not in plain[0]
    norms, fresh = [], jo.init_state(LINEAR, theirs, 0, given[0])
    gradient = jax.jit(jax.grad(lambda p, b: LINEAR.loss(p, {}, b, fresh.key, True)[0] / 6))
    for batch in given:
        grads = jax.device_get(gradient(fresh.params, batch))
        norms.append(np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(grads))))
        fresh, _ = step_of(LINEAR, theirs)(fresh, batch)
    assert [s["clipped"] for s in seen] == [int(n > limit) for n in norms]
    assert 0 < sum(s["clipped"] for s in seen) < 8


def test_what_is_not_finite_is_skipped_not_clipped():
    tx = optim.skip_not_finite(optim.chain(optim.clip_by_global_norm(1e-6), optim.sgd(0.1)))
    _, seen = run(spoiled(LINEAR, "loss"), tx, batches(3, at=(1,)))
    assert [s["clipped"] for s in seen] == [1, 0, 1]
    assert [s["skipped"] for s in seen] == [0, 1, 0]


def test_the_loss_scale_is_halved_and_doubled():
    tx = optim.loss_scale(optim.sgd(0.1), initial=16.0, every=2)
    state, seen = run(spoiled(LINEAR, "loss"), tx, batches(7, at=(1, 4)))
    assert [s["loss_scale"] for s in seen] == [16, 16, 8, 8, 16, 8, 8]
    assert state.opt_state.scale == 16 and sum(s["skipped"] for s in seen) == 2


def test_the_loss_scale_stays_within_its_bounds():
    tx = optim.loss_scale(optim.sgd(0.1), initial=2.0, every=1)
    state = tx.init(jnp.zeros(2))
    update = jax.jit(lambda gradient, state: tx.update(gradient, state)[1])
    for _ in range(3):
        state = update(jnp.full(2, jnp.inf), state)
    assert state.scale == 1
    for _ in range(30):
        state = update(jnp.zeros(2), state)
    assert state.scale == optim.MAX_LOSS_SCALE


def test_equal_arguments_give_one_optimizer():
    tx = optim.sgd(0.1)
    assert optim.skip_not_finite(tx) is optim.skip_not_finite(tx=tx)
    assert optim.loss_scale(tx) is optim.loss_scale(tx, every=2000)
    assert optim.clip_by_global_norm(1.0) is optim.clip_by_global_norm(max_norm=1.0)
