"""A batch in parts, a loss that is computed again, and one in 16 bits."""

import functools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from plans import CNN, trained
from small import (
    ADAM,
    LINEAR,
    TASK,
    assert_close,
    compilations,
    host,
    images,
    regression,
)

import jaxops as jo
from jaxops import metrics, optim
from jaxops.nn import Dense, computing, matmul
from jaxops.step import gradients

SGD = optim.sgd(0.1, 0.9)
QUIET = {"batch_size": 32, "progress": False}


@functools.cache
def step(task, tx, **settings):
    return jax.jit(partial(jo.train_step, task, tx, **settings))


def test_parts_are_every_kth_row_and_are_divided_once():
    """Weights that differ between parts: a mean of the parts' means would be another number."""
    mask = np.array([1, 0, 1, 0, 2, 0, 1, 0.5, 1, 0, 1, 0], np.float32)
    batch = {**images(12), "mask": mask}
    state = jo.init_state(TASK, SGD, 0, batch)
    whole, want = step(TASK, SGD)(state, batch)
    found, seen = step(TASK, SGD, accumulate=2)(state, batch)
    assert_close(found, whole, atol=1e-6)
    assert_close(seen, want, rtol=1e-6)
    parts = [{k: v[j::2] for k, v in batch.items()} for j in range(2)]
    losses = [host(step(TASK, SGD)(state, part)[1]["loss"]) for part in parts]
    seen = host(seen["loss"])
    np.testing.assert_allclose(seen.total, sum(loss.total for loss in losses), rtol=1e-6)
    means = [loss.compute() for loss in losses]
    assert abs(np.mean(means) - seen.compute()) > 1e-3


def test_batch_norm_goes_from_part_to_part():
    """The running statistics move once for each part that has rows."""
    batch = images(12)
    state = jo.init_state(CNN, SGD, 0, batch)
    found, _ = step(CNN, SGD, accumulate=3)(state, batch)
    by_hand, loss = state, jax.jit(CNN.loss, static_argnums=4)
    for j in range(3):
        part = {k: v[j::3] for k, v in batch.items()}
        _, out = loss(state.params, by_hand.extra, part, state.key, True)
        by_hand = by_hand._replace(extra=out.extra)
    assert_close(found.extra, by_hand.extra, rtol=1e-5)


def test_every_part_has_noise_of_its_own():
    class Noise(nn.Module):
        @nn.compact
        def __call__(self, x, *, train=False):
            self.param("w", nn.initializers.zeros, (1,))
            return nn.Dropout(0.5, deterministic=not train)(x)

    task = regression(Noise(), 8)
    row = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    batch = {"x": np.repeat(row, 4, axis=0), "y": np.zeros((4, 8), np.float32)}
    state = jo.init_state(task, SGD, 0, batch)
    two = step(task, SGD, accumulate=2)(state, batch)[1]["loss"].total
    first, _ = task.loss(
        state.params, {}, {k: v[::2] for k, v in batch.items()},
        jax.random.fold_in(jax.random.fold_in(state.key, 0), 0), True,
    )  # fmt: skip
    assert first > 0 and abs(two - 2 * first) > 1e-3  # were the other part's noise the same


def test_any_metric_is_put_together():
    rng = np.random.default_rng(0)
    score, label = rng.normal(size=12).astype(np.float32), rng.integers(0, 2, 12)
    task = LINEAR._replace(
        loss=lambda params, extra, batch, key, train: (
            0.0 * params["logits"]["bias"].sum(),
            jo.Out(
                jnp.float32(len(batch["s"])),
                {"auc": metrics.scores(batch["s"], batch["t"], jnp.ones(len(batch["s"])))},
                extra,
            ),
        )
    )
    state = jo.init_state(LINEAR, SGD, 0, images(1))
    _, out = step(task, SGD, accumulate=4)(state, {"s": score, "t": label})
    from sklearn.metrics import roc_auc_score

    assert metrics.to_host(out)["auc"].compute() == pytest.approx(roc_auc_score(label, score))


def test_what_cannot_be_taken_in_parts_is_refused():
    coupled = TASK._replace(coupled=True)
    batch = images(12)
    with (
        compilations() as names,
        pytest.raises(ValueError, match=r"accumulate must be 1 .* couples .* got 2"),
    ):
        jo.fit(coupled, batch, optimizer=SGD, steps=1, accumulate=2, **{**QUIET, "batch_size": 4})
    assert not [name for name in names if "init" in name]
    state = jo.init_state(TASK, SGD, 0, batch)
    with pytest.raises(ValueError, match="couples the rows"):
        step(coupled, SGD, accumulate=3)(state, batch)
    step(coupled, SGD)(state, batch)  # the whole batch: as ever
    with pytest.raises(ValueError, match="accumulate must divide the 12 rows of a batch, got 5"):
        step(TASK, SGD, accumulate=5)(state, batch)
    with pytest.raises(ValueError, match="accumulate must be at least 1, got 0"):
        jo.fit(TASK, batch, optimizer=SGD, steps=1, accumulate=0, **{**QUIET, "batch_size": 4})


def test_fit_pads_to_the_parts_and_its_checkpoint_knows_them(tmp_path):
    settings = {"optimizer": SGD, "batch_size": 10, "steps": 6, "progress": False}
    want = jo.fit(TASK, images(25), **settings)
    found = jo.fit(TASK, images(25), **settings, accumulate=4, checkpoints=tmp_path)
    assert_close(found.params, want.params, atol=1e-5)
    again = {**settings, "steps": 8, "checkpoints": tmp_path}
    with pytest.raises(ValueError, match=r"accumulate must be 4, as in .*, got 1"):
        jo.fit(TASK, images(25), **again)
    assert jo.fit(TASK, images(25), **again, accumulate=4).step == 8


# Rematerialisation


class Deep(nn.Module):
    @nn.compact
    def __call__(self, x, *, train=False):
        for _ in range(8):
            x = nn.Dropout(0.1, deterministic=not train)(nn.gelu(nn.Dense(64)(x)))
        return nn.Dense(4)(x)


@pytest.mark.slow
def test_remat_gives_the_same_gradients_for_less_memory():
    task = regression(Deep(), 64)
    data = {k: np.zeros((4096, n), np.float32) for k, n in (("x", 64), ("y", 4))}
    data["x"] += np.random.default_rng(0).normal(size=(1, 64)).astype(np.float32)
    state = jo.init_state(task, SGD, 0, data)
    results, memory = [], []
    for kind in (task, jo.remat(task)):
        # as an accelerator's XLA orders its work; a CPU's prefers speed
        options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
        program = step(kind, SGD).lower(state, data).compile(compiler_options=options)
        results.append(program(state, data))
        memory.append(program.memory_analysis().temp_size_in_bytes)
    assert_close(*results, atol=1e-6)
    assert memory[1] < 0.6 * memory[0], memory


def test_remat_is_one_task_and_trains_as_the_other():
    assert jo.remat(TASK) is jo.remat(TASK, "dots") is not TASK
    everything = jax.checkpoint_policies.everything_saveable
    assert jo.remat(TASK, everything) is jo.remat(TASK, everything)
    with pytest.raises(ValueError, match="policy must be \"dots\" or a function, got 'dot'"):
        jo.remat(TASK, "dot")
    runs = [
        jo.fit(task, images(107), optimizer=SGD, steps=20, **QUIET)
        for task in (TASK, jo.remat(TASK))
    ]
    assert_close(runs[0].params, runs[1].params, atol=1e-6)


def test_remat_keeps_what_save_writes(tmp_path):
    state, _ = trained("MLP", "one device")
    jo.save(tmp_path / "m", jo.Model(jo.remat(TASK), state))
    data = images(9)
    want = jo.predict(TASK, state, data)
    np.testing.assert_allclose(jo.load(tmp_path / "m").predict(data["image"]), want, atol=1e-6)


# 16 bits


def test_float16_rounds_the_factors_and_the_gradients():
    rng = np.random.default_rng(0)
    x, y, g = (rng.normal(size=s).astype(np.float32) for s in ((3, 5), (5, 2), (3, 2)))
    found, pull = jax.vjp(partial(matmul, compute="float16"), x, y)
    low = [np.float64(v.astype(np.float16)) for v in (x, y, g)]
    np.testing.assert_allclose(found, low[0] @ low[1], atol=1e-6)
    for a, b in zip(pull(g), (low[2] @ low[1].T, low[0].T @ low[2]), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=1e-6)
    with computing("float16"):
        assert float(matmul(jnp.ones((1, 1)), jnp.full((1, 1), 1 + 2**-12))[0, 0]) == 1
        tiny = jax.grad(lambda w: 1e-8 * matmul(jnp.ones((1, 1)), w)[0, 0])
        assert tiny(jnp.ones((1, 1))) == 0  # below what float16 has: what the scale is for


class Faint(nn.Module):
    """A loss whose gradients are near 1e-9: of float16's smallest number a tenth."""

    @nn.compact
    def __call__(self, x):
        return 1e-9 * Dense(2)(x)


def test_a_scaled_loss_learns_what_float16_would_lose():
    task = regression(Faint(), 3)
    rng = np.random.default_rng(0)
    batch = {k: rng.normal(size=(8, n)).astype(np.float32) for k, n in (("x", 3), ("y", 2))}
    plain = optim.sgd(1.0)
    state = jo.init_state(task, plain, 0, batch)

    def kernel(state, compute, accumulate=1):
        def grads(state):
            with computing(compute):
                return gradients(task, state, batch, state.key, accumulate)[2]

        return np.asarray(jax.jit(grads)(state)["Dense_0"]["kernel"])

    exact = kernel(state, "float32")
    assert 0 < np.abs(exact).max() < 6e-8
    for scale in (1.0, 2.0**15):
        scaled = jo.init_state(task, optim.loss_scale(plain, initial=scale), 0, batch)
        for accumulate in (1, 4):
            found = kernel(scaled, "float16", accumulate)
            if scale == 1:
                assert not found.any()
            else:
                np.testing.assert_allclose(found, exact, rtol=0.02, atol=1e-10)


def test_fit_in_float16_wants_a_scale():
    with pytest.raises(ValueError, match=r"optimizer must be in optim\.loss_scale"):
        jo.fit(TASK, images(40), optimizer=ADAM, compute="float16", steps=1, **QUIET)


@pytest.mark.slow  # that float16 with a scale has the gradients of float32 is shown above
def test_fit_in_float16_learns_as_well():
    data = images(300)
    settings = {"steps": 200, **QUIET}
    scaled = optim.loss_scale(ADAM)
    full = jo.fit(TASK, data, optimizer=ADAM, **settings)
    records = []
    low = jo.fit(
        TASK, data, optimizer=scaled, compute="float16", reports=records.append, **settings
    )
    accuracy = [jo.evaluate(TASK, state, data)["accuracy"] for state in (full, low)]
    assert accuracy[1] > accuracy[0] - 0.02 and accuracy[0] > 0.9, accuracy
    assert records[0]["loss_scale"] == 2.0**15 and records[0]["skipped"] == 0
    assert not np.array_equal(full.params["logits"]["kernel"], low.params["logits"]["kernel"])
    # a scale of a power of two changes no digit, but for what XLA fuses in another way
    again = jo.fit(TASK, data, optimizer=scaled, **settings)
    assert_close(again.params, full.params, atol=1e-5)


@pytest.mark.slow
def test_a_scaled_loss_in_parts_on_eight_devices():
    tx = optim.loss_scale(optim.sgd(0.1, 0.9))
    settings = {"optimizer": tx, "steps": 20, "compute": "float16", **QUIET}
    plan = jo.devices.plan(data=4, fsdp=2, min_size=8)
    one = jo.fit(TASK, images(107), **settings)
    eight = jo.fit(TASK, images(107), plan=plan, accumulate=4, **settings)
    assert optax.tree.norm(one.params) > 1
    # float16 rounds what the parts add up to at other places: 11 bits of each gradient
    assert_close(one.params, eight.params, atol=2e-3)
