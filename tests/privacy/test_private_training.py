"""The update of a private task: clipped, summed, hidden once; and the rows that a step draws."""

import functools
import itertools
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats
from small import SETTINGS, assert_close, assert_equal, images, regression

import jaxops as jo
from jaxops import devices, fairness, federation, language, optim, privacy, survival, vision
from jaxops.nn import BatchNorm
from jaxops.state import state_shapes
from jaxops.step import RELEASE
from jaxops.train.resident import Drawn, pad

LINEAR = vision.classifier(vision.MLP((), classes=3), **SETTINGS)
NOISE = {"clip": 0.7, "noise_multiplier": 0.5, "batch_size": 8}
METHODS = pytest.mark.parametrize("method", ["ghost", "vmap"])


def private(task=LINEAR, **changes):
    return privacy.private(task, **{**NOISE, **changes})


@functools.cache
def stepper(task, tx=optax.sgd(1.0), accumulate=1):
    return jax.jit(partial(jo.train_step, task, tx, accumulate=accumulate))


def by_hand(state, batch, weights, clip):
    """The clipped sum of softmax regression's gradients, in NumPy."""
    w, b = (np.float64(state.params["logits"][k]) for k in ("kernel", "bias"))
    x, target = batch["image"].reshape(len(weights), -1) / 255, np.eye(3)[batch["label"]]
    e = np.exp(x @ w + b - (x @ w + b).max(1, keepdims=True))
    d = (e / e.sum(1, keepdims=True) - target) * weights[:, None]
    rows = np.concatenate([(x[:, :, None] * d[:, None]).reshape(len(x), -1), d], 1)
    norms = np.linalg.norm(rows, axis=1)
    assert (norms[weights > 0] > clip).any() and (norms[weights > 0] < clip).any()
    total = (rows * np.minimum(1, clip / np.maximum(norms, 1e-9))[:, None]).sum(0)
    return total[:-3].reshape(w.shape), total[-3:]


@METHODS
def test_an_update_is_the_clipped_sum_by_hand_with_the_noise_of_its_key(method):
    batch, task = images(10), private(method=method)
    weights = np.array([1, 1, 0, 1, 0.2, 1, 1, 3, 1, 1], np.float32)
    state = jo.init_state(task, optax.sgd(1.0), 0, batch)
    given = {name: column.copy() for name, column in batch.items()} | {"mask": weights}
    given["image"][2], given["label"][2] = 255, 77  # a row of weight 0 may hold anything
    new, told = stepper(task)(state, given)
    found = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, new.params)["logits"]
    key = jax.random.fold_in(jax.random.fold_in(state.key, 0), RELEASE)
    noise = jax.tree.map(
        lambda leaf: np.asarray(leaf) * NOISE["batch_size"],
        task.release(jax.tree.map(jnp.zeros_like, state.params), key),
    )["logits"]
    for name, total in zip(("kernel", "bias"), by_hand(state, batch, weights, 0.7), strict=True):
        np.testing.assert_allclose(found[name] * 8, total + noise[name], atol=2e-5)
    assert float(told["loss"].weight) == pytest.approx(weights.sum())  # of what was drawn


def test_noise_is_normal_of_the_right_size_and_independent_of_the_sum():
    mechanism = privacy.Gaussian(clip=2.0, noise_multiplier=1.5, batch_size=10)
    zeros = {"a": jnp.zeros((300, 100)), "b": jnp.zeros(30_000)}
    found = mechanism(zeros, jax.random.key(1))
    a, b = np.asarray(found["a"]).ravel(), np.asarray(found["b"])
    assert stats.kstest(np.concatenate([a, b]), "norm", args=(0, 0.3)).pvalue > 0.01
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    moved = mechanism(jax.tree.map(lambda leaf: leaf + 5, zeros), jax.random.key(1))
    assert_close(moved, jax.tree.map(lambda leaf: leaf + 0.5, found), rtol=0, atol=1e-6)


def test_parts_devices_and_pmap_make_the_same_update_with_the_same_noise():
    """A second noise would move each parameter by 0.04."""
    batch, task, tx = pad(images(13), 16), private(), optax.sgd(1.0)
    one = jo.init_state(task, tx, 0, batch)
    expected, _ = stepper(task)(one, batch)
    assert_close(stepper(task, accumulate=4)(one, batch)[0].params, expected.params, atol=1e-6)
    plan = devices.data_parallel()
    many = jo.init_state(task, tx, 0, batch, plan)
    split = jax.device_put(batch, plan.batch_sharding())
    assert_close(stepper(task)(many, split)[0].params, expected.params, atol=1e-6)
    by_pmap, _ = jo.pmap_train_step(task, tx)(many, batch)
    assert_close(by_pmap.params, expected.params, atol=1e-6)
    plan = devices.fsdp(min_size=1)
    split = jax.device_put(batch, plan.batch_sharding())
    one = jo.init_state(task, tx, 0, batch, plan)
    assert not one.params["logits"]["kernel"].sharding.is_fully_replicated
    assert_close(stepper(jo.gathered(task, plan))(one, split)[0].params, expected.params, atol=1e-6)


def test_a_vector_that_is_not_finite_counts_as_zero():
    vectors = np.array([[3.0, 4.0], [np.nan, 0.1], [0.3, 0.4], [np.inf, 0.0]], np.float32)
    given = {"a": jnp.asarray(vectors[:, :1]), "b": jnp.asarray(vectors[:, 1])}
    total = privacy.clipped_sum(given, clip=1.0)
    np.testing.assert_allclose([*total["a"], total["b"]], [0.6 + 0.3, 0.8 + 0.4], rtol=1e-6)
    total = privacy.clipped_sum(given, clip=1.0, weights=np.array([0, 1, 1, 1]))
    np.testing.assert_allclose([*total["a"], total["b"]], [0.3, 0.4], rtol=1e-6)


def test_wrappers_that_would_change_clipped_gradients_are_refused():
    task, sgd = private(), optim.sgd(0.1)
    for wrap in (
        lambda: language.lora(task, rank=1),
        lambda: fairness.group_dro(task, shares=(0.5, 0.5)),
        lambda: fairness.adversarial(task, groups=2),
        lambda: federation.fit(task, None, rounds=1, clients_per_round=1, client_optimizer=sgd),
    ):
        with pytest.raises(ValueError, match="task must not be"):
            wrap()


def test_parameters_of_16_bits_are_refused():
    task = private(regression(nn.Dense(1, param_dtype=jnp.bfloat16)))
    batch = {"x": np.ones((8, 3), np.float32), "y": np.ones((8, 1), np.float32)}
    with pytest.raises(ValueError, match="parameters in float32, got bfloat16"):
        state_shapes(task, optax.sgd(0.1), batch)


def refused(task, tx, batch, message):
    """A step that is refused while it is traced."""
    state = state_shapes(task, tx, batch)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(partial(jo.train_step, task, tx), state, batch)


def test_an_optimizer_that_needs_the_loss_is_refused():
    tx = optim.chain(optim.sgd(0.1), optim.plateau(0.5, patience=1, every=1))
    refused(private(), tx, images(8), r"only the gradient \(the loss is private\) to update")


def test_each_row_is_drawn_on_its_own_with_the_same_probability():
    drawn = Drawn(rows=500, batch_size=20, seed=3)
    steps = [drawn.rows_of(i) for i in range(2000)]
    counts = np.array([len(rows) for rows in steps])
    # binomial(500, 0.04), by its distribution
    edges = [0, 15, 18, 20, 22, 25, 501]
    cells = [stats.binom.cdf(b - 1, 500, 0.04) - stats.binom.cdf(a - 1, 500, 0.04)
             for a, b in itertools.pairwise(edges)]  # fmt: skip
    found = np.histogram(counts, edges)[0]
    assert stats.chisquare(found, np.array(cells) * 2000).pvalue > 0.01
    each = np.bincount(np.concatenate(steps), minlength=500)
    assert stats.chisquare(each).pvalue > 0.01
    assert all(len(set(rows)) == len(rows) for rows in steps[:50])
    again = Drawn(rows=500, batch_size=20, seed=3)
    np.testing.assert_array_equal(again.rows_of(1234), steps[1234])  # a function of the step
    assert stats.binom.sf(drawn.capacity, 500, 0.04) < 1e-15
    assert stats.binom.sf(drawn.capacity - 1, 500, 0.04) >= 1e-15
    assert Drawn(rows=5, batch_size=5, seed=0).rows_of(7).tolist() == [0, 1, 2, 3, 4]


def test_fit_trains_on_the_drawn_rows_and_resumes_exactly(tmp_path):
    columns, drawn = images(32), Drawn(32, 8, seed=5)
    plain = vision.classifier(vision.MLP((6,), classes=3, dropout=0.5), **SETTINGS)
    task, tx = private(plain), optim.chain(optim.adam(0.01), optim.ema(0.5))
    run = partial(jo.fit, data=columns, optimizer=tx, batch_size=8, steps=8, seed=5, progress=False)
    whole = run(task)

    def stop(record):
        raise RuntimeError(f"after step {record['step']}")

    with pytest.raises(RuntimeError, match="after step 4"):
        run(task, checkpoints=tmp_path, reports=stop)
    assert_equal(run(task, checkpoints=tmp_path), whole)
    state, step = jo.init_state(task, tx, 5, columns), stepper(task, tx)
    for i in range(8):
        rows = {name: value[drawn.rows_of(i)] for name, value in columns.items()}
        state, _ = step(state, pad(rows, drawn.capacity))
    assert_close(whole.params, state.params, rtol=1e-4, atol=1e-6)
    averages = optim.averaged(whole).params
    assert_close(averages, optim.averaged(state).params, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"release.*must be Gaussian.*got nothing"):
        run(plain, checkpoints=tmp_path)


class Normed(nn.Module):
    """A batch norm that takes the mask."""

    @nn.compact
    def __call__(self, x, *, train=False, mask=None):
        return nn.Dense(3)(BatchNorm()(x.reshape(len(x), -1), train=train, mask=mask))


def test_what_cannot_be_private_is_refused_before_anything_compiles():
    cox = survival.deep_surv(survival.MLP((4,)), features=3)
    with pytest.raises(ValueError, match="each row alone, got coupled=True"):
        private(cox)
    with pytest.raises(ValueError, match="private already"):
        private(private())
    for name, value in (("clip", 0.0), ("noise_multiplier", -1.0), ("clip", float("nan"))):
        with pytest.raises(ValueError, match=f"{name} must be above 0 and finite, got"):
            private(**{name: value})
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        private(batch_size=0)
    with pytest.raises(ValueError, match="method must be one of auto, ghost, vmap, got 'fast'"):
        private(method="fast")
    with pytest.raises(ValueError, match="microbatch must be at least 1, and only for"):
        private(microbatch=4)
    fit = partial(jo.fit, optimizer=optax.sgd(0.1), progress=False, steps=1)
    for module in (vision.MLP((4,), classes=3, batch_norm=True), Normed()):
        with pytest.raises(ValueError, match="use group norm or layer norm"):
            fit(private(vision.classifier(module, **SETTINGS)), images(16), batch_size=8)
    with pytest.raises(ValueError, match="batch_size must be 8, the expected number"):
        fit(private(), images(16), batch_size=4)
    with pytest.raises(ValueError, match="must be columns in memory for a private task"):
        fit(private(), [images(8)], batch_size=8)


def test_variables_that_training_changes_are_refused():
    class Counts(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            count = self.variable("seen", "count", lambda: jnp.zeros(()))
            if train:
                count.value += 1
            return nn.Dense(1)(x)

    batch = {"x": np.ones((8, 3), np.float32), "y": np.ones((8, 1), np.float32)}
    message = r"as batch norm does, got a change in \['seen'\]"
    refused(private(regression(Counts())), optax.sgd(0.1), batch, message)
