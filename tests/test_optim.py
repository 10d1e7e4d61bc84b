"""Optimizers, schedules, penalties and averages: by formula, and for their effect."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import assert_close, assert_equal, images, regression

import jaxops as jo
from jaxops import optim, vision
from jaxops.vision import MLP

PARAMS = {
    "kernel": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32),
    "bias": jnp.asarray([0.5, -1.0, 2.0]),
}


def updated(tx, grads, params=PARAMS, steps=1):
    """The parameters after each of some updates; `grads` may be a function of them."""
    state, seen = tx.init(params), []

    @jax.jit
    def step(params, state):
        g = grads(params) if callable(grads) else grads
        updates, state = optax.with_extra_args_support(tx).update(g, state, params, value=1.0)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
        seen.append(params)
    return seen


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("sgd", 0.1),
        ("adam", 0.05),
        ("adamw", 0.05),
        ("nadam", 0.05),
        ("rmsprop", 0.02),
        ("adagrad", 0.5),
        ("adadelta", 10.0),
        ("lion", 0.02),
        ("lamb", 0.02),
        ("adafactor", 0.05),
    ],
)
def test_every_optimizer_decreases_a_quadratic(name, rate):
    tx = getattr(optim, name)(rate)
    assert tx is getattr(optim, name)(rate)

    def value(params):
        return sum(jnp.square(leaf - 1).sum() for leaf in jax.tree.leaves(params))

    last = updated(tx, jax.grad(value), steps=200)[-1]
    assert value(last) < 0.1 * value(PARAMS)


def test_adam_is_optax_s_and_nearer_to_float64():
    """The first steps, where 1 - 0.999**t has lost digits; later they agree."""
    rng = np.random.default_rng(0)
    grads = rng.normal(size=(20, 50)).astype(np.float32)
    m = v = np.zeros(50)
    ours, theirs = optim.adam(1.0), optax.adam(1.0)
    states = [tx.init(jnp.zeros(50)) for tx in (ours, theirs)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])
    worst = [0.0, 0.0]
    for t, g in enumerate(grads, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * np.square(g, dtype=np.float64)
        want = -(m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        for i, tx in enumerate((ours, theirs)):
            found, states[i] = tx.update(jnp.asarray(g), states[i])
            worst[i] = max(worst[i], np.abs(found - want).max())
            np.testing.assert_allclose(found, want, rtol=2e-5, atol=2e-5)
    assert worst[0] < 1e-6 < worst[1]


def test_adam_is_its_formula():
    rate, b1, b2, eps = 0.1, 0.9, 0.999, 1e-8
    found = updated(optim.adam(rate), lambda p: jax.tree.map(jnp.cos, p), steps=3)
    p = np.float64(PARAMS["kernel"])
    m = v = 0.0
    for t in range(1, 4):
        g = np.cos(p)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        np.testing.assert_allclose(found[t - 1]["kernel"], p, atol=1e-5)


# Schedules


def test_schedules_are_their_formulas():
    steps = np.arange(0, 41)

    def values(schedule):
        return [float(schedule(int(s))) for s in steps]

    np.testing.assert_allclose(values(optim.constant(0.3)), [0.3] * 41, rtol=1e-6)
    want = 0.1 * 0.5 ** (steps // 7)
    np.testing.assert_allclose(values(optim.step_decay(0.1, 7, 0.5)), want, rtol=1e-5)
    want = 0.1 * 0.5 ** (steps / 7)
    np.testing.assert_allclose(values(optim.exponential(0.1, 7, 0.5)), want, rtol=1e-5)
    ramp, fall = 0.2 * steps / 10, 0.01 + 0.19 * (1 + np.cos(np.pi * (steps - 10) / 25)) / 2
    want = np.where(steps < 10, ramp, np.where(steps < 35, fall, 0.01))
    np.testing.assert_allclose(values(optim.cosine(0.2, 35, 10, 0.01)), want, atol=1e-6)
    fall = 0.2 * (1 + np.cos(np.pi * np.minimum(steps, 35) / 35)) / 2
    np.testing.assert_allclose(values(optim.cosine(0.2, 35)), fall, atol=1e-6)
    want = np.where(steps < 5, 1.0, np.where(steps < 8, 0.5, 0.25))
    phases = optim.phases((5, 1.0), (3, 0.5), (9, 0.25))
    np.testing.assert_allclose(values(phases), want)
    np.testing.assert_allclose(values(optim.phases((5, 0.7))), [0.7] * 41, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(phases)(jnp.int32(6)), 0.5)


def test_phases_keep_the_moments():
    def run(tx):
        state, params, seen = tx.init(PARAMS), PARAMS, []
        for _ in range(8):
            grads = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), PARAMS)
            updates, state = tx.update(grads, state, params)
            seen.append((updates, state[0]))
            params = optax.apply_updates(params, updates)
        return seen

    switched = run(optim.adam(optim.phases((5, 1e-3), (9, 1e-4))))
    never = run(optim.adam(1e-3))
    for i, ((a, moments_a), (b, moments_b)) in enumerate(zip(switched, never, strict=True)):
        assert_equal(moments_a, moments_b)
        assert_close(a, jax.tree.map(lambda u: u * (0.1 if i >= 5 else 1.0), b), rtol=1e-5)


def test_phases_switch_weight_decay_on():
    decay = optim.phases((3, 0.0), (3, 0.5))
    tx = optim.adamw(0.1, weight_decay=decay, mask=optim.decay_mask)
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    seen = updated(tx, zero, steps=6)
    for n, params in enumerate(seen, 1):
        want = PARAMS["kernel"] * (1 - 0.1 * 0.5) ** max(0, n - 3)
        np.testing.assert_allclose(params["kernel"], want, rtol=1e-5)


def test_plateau_reduces_the_rate_when_the_loss_stalls():
    tx = optax.chain(optax.sgd(1.0), optim.plateau(0.5, patience=2, every=3))
    state, scales, update = tx.init(PARAMS), [], jax.jit(tx.update)
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    losses = [3.0, 2.9, 2.8, 2.0, 2.0, 2.0] + [2.0] * 18  # falls twice, then stalls
    for loss in losses:
        updates, state = update(grads, state, PARAMS, value=loss)
        scales.append(-float(updates["bias"][0]))
    # after the mean of steps 6-8, 9-11, 12-14 (more than patience) it is halved
    halved = next(i for i, s in enumerate(scales) if s < 1)
    assert scales[:halved] == [1.0] * halved and 11 <= halved <= 15
    assert scales[halved] == 0.5 and scales[-1] <= 0.5
    falling, state = [], tx.init(PARAMS)
    for i in range(24):
        updates, state = update(grads, state, PARAMS, value=10.0 / (i + 1))
        falling.append(-float(updates["bias"][0]))
    assert falling == [1.0] * 24


# Penalties


def through(tx, params=PARAMS):
    grads = jax.tree.map(jnp.zeros_like, params)
    return tx.update(grads, tx.init(params), params)[0]


def test_penalties_are_gradients_of_their_formulas():
    want = jax.grad(lambda p: 0.3 * jnp.abs(p["kernel"]).sum())(PARAMS)
    assert_close(through(optim.l1(0.3)), want, rtol=1e-6)
    want = jax.grad(lambda p: 0.3 / 2 * jnp.square(p["kernel"]).sum())(PARAMS)
    assert_close(through(optim.l2(0.3)), want, rtol=1e-6)
    assert not np.asarray(want["bias"]).any()


def test_decoupled_decay_shrinks_kernels_by_the_power_and_leaves_biases():
    rate, decay, steps = 0.1, 0.2, 7
    tx = optim.adamw(rate, weight_decay=decay, mask=optim.decay_mask)
    last = updated(tx, jax.tree.map(jnp.zeros_like, PARAMS), steps=steps)[-1]
    np.testing.assert_allclose(last["kernel"], PARAMS["kernel"] * (1 - 0.02) ** 7, rtol=1e-5)
    np.testing.assert_array_equal(last["bias"], PARAMS["bias"])


def sparse_problem():
    """200 rows of 20 features, of which 3 matter."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 20)).astype(np.float32)
    y = x[:, :3] @ [[2.0], [-3.0], [1.5]] + rng.normal(size=(200, 1))
    return {"x": x, "y": y.astype(np.float32)}


def fitted(*penalty):
    task = regression(nn.Dense(1), 20)
    tx = optim.chain(*penalty, optim.sgd(optim.cosine(0.1, 300)))
    data = sparse_problem()
    state = jo.fit(task, data, optimizer=tx, batch_size=200, steps=300, progress=False)
    return np.asarray(state.params["kernel"])[:, 0]


@pytest.mark.slow  # the gradients of both are shown above
def test_l1_makes_weights_sparse_and_l2_makes_them_small():
    plain, lasso, ridge = fitted(), fitted(optim.l1(0.3)), fitted(optim.l2(0.3))
    assert (np.abs(lasso[3:]) < 5e-3).mean() > 0.9 > 0.2 > (np.abs(plain[3:]) < 5e-3).mean()
    assert (np.abs(lasso[:3]) > 0.5).all()
    assert np.linalg.norm(ridge) < 0.9 * np.linalg.norm(plain)
    data = sparse_problem()
    x, y = (np.float64(data[k]) for k in "xy")
    x1 = np.hstack([x, np.ones((200, 1))])
    penalty = np.diag([0.3 * 200] * 20 + [0.0])  # the bias is not penalised
    want = np.linalg.solve(x1.T @ x1 + penalty, x1.T @ y)[:20, 0]
    np.testing.assert_allclose(ridge, want, atol=5e-3)


# Averages


def test_ema_is_its_recursion():
    tx = optim.ema(0.7)
    state, params, average = tx.init(PARAMS), PARAMS, np.float64(PARAMS["kernel"])
    for n in range(12):
        updates = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1 * (n - 4)), PARAMS)
        same, state = tx.update(updates, state, params)
        assert same is updates
        params = optax.apply_updates(params, updates)
        d = min(0.7, (1 + n) / (10 + n))
        average = d * average + (1 - d) * np.asarray(params["kernel"])
        np.testing.assert_allclose(state.params["kernel"], average, rtol=1e-5)


def test_an_average_wanders_less_at_a_high_rate():
    task = regression(nn.Dense(1), 20)
    tx = optim.chain(optim.sgd(0.05), optim.ema(0.98))
    data, last, mean = sparse_problem(), [], []
    state = jo.init_state(task, tx, 0, data)
    step = jax.jit(lambda s, b: jo.train_step(task, tx, s, b))
    rng = np.random.default_rng(0)
    for i in range(400):
        rows = rng.integers(0, 200, 4)
        state, _ = step(state, {k: v[rows] for k, v in data.items()})
        if i >= 200:
            last.append(np.asarray(state.params["kernel"]))
            mean.append(np.asarray(optim.averaged(state).params["kernel"]))
    assert np.var(mean, axis=0).sum() < 0.4 * np.var(last, axis=0).sum()


def test_averaged_is_what_is_validated():
    task = vision.classifier(MLP((8,), classes=3), image_shape=(4, 4, 1), classes=3)
    tx, records = optim.chain(optim.sgd(0.5), optim.ema(0.99)), []
    data, other = images(40), images(30, seed=1)
    state = jo.fit(
        task,
        data,
        optimizer=tx,
        batch_size=10,
        epochs=2,
        validation=other,
        reports=records.append,
        progress=False,
    )
    average, last = optim.averaged(state), state._replace(opt_state=())
    want = jo.evaluate(task, average._replace(opt_state=()), other)["loss"]
    assert records[-1]["loss"] == want != jo.evaluate(task, last, other)["loss"]
    assert jo.evaluate(task, state, other)["loss"] == want
    p = jo.predict(task, average._replace(opt_state=()), other)
    image = {"image": other["image"]}
    for same in (
        jo.predict(task, state, other),
        jo.Model(task, state).predict(image),
        jo.predict(jo.ensemble(task, 1), jo.stack([state]), image),
    ):
        np.testing.assert_array_equal(same, p)
    np.testing.assert_allclose(jo.predictor(task, state, image)(image), p, rtol=1e-5)
    assert (jo.predict(task, last, other) != p).any()
    plain = jo.init_state(task, optim.sgd(0.5), 0, data)
    assert optim.averaged(plain) is plain
