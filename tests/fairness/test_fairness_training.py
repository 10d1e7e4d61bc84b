"""Group DRO and the adversary: updates by hand, one device and eight, and what they bring about."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxops as jo
from jaxops import fairness, privacy, tabular
from jaxops.state import TrainState

TASK = tabular.classifier(tabular.MLP((6,)), features=3)
SHARES = (0.5, 0.25, 0.25)


def rows(count=32):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 3)).astype(np.float32)
    group = rng.integers(0, 3, count).astype(np.int32)
    return {"features": x, "label": (x[:, 0] > 0).astype(np.int32), "group": group}


def started(task, batch, plan=None):
    return jo.init_state(task, optax.sgd(0.1), seed=0, batch=batch, plan=plan)


def losses_of(state, batch):
    logits = TASK.predict(state.params, {}, batch)
    p = np.asarray(logits, np.float64)
    return -np.log(np.where(batch["label"] == 1, p, 1 - p))


def test_a_step_of_group_dro_by_hand():
    mask = np.random.default_rng(1).choice([0.0, 1.0, 2.0], 32)
    batch = rows() | {"mask": mask.astype(np.float32)}
    task = fairness.group_dro(TASK, SHARES, rate=0.5)
    state = started(task, batch)
    new, metrics = jax.jit(lambda s, b: jo.train_step(task, optax.sgd(0.1), s, b))(state, batch)
    each, w, g = losses_of(state, batch), batch["mask"], batch["group"]
    means = np.array([(w * each)[g == k].sum() / w[g == k].sum() for k in range(3)])
    q = np.exp(0.5 * means) / np.exp(0.5 * means).sum()
    np.testing.assert_allclose(np.exp(new.extra["group_dro"]["log_weights"]), q, rtol=1e-5)
    total = (w * each * (q / SHARES)[g]).sum() / w.sum()
    np.testing.assert_allclose(metrics["loss"].compute(), total, rtol=1e-5)
    np.testing.assert_allclose(metrics["worst_group_loss"].compute(), means.max(), rtol=1e-5)

    def weighted(params):  # the plain loss with these row weights has the same gradient
        mask = jnp.asarray(w * (q / SHARES)[g], jnp.float32)
        return TASK.loss(params, {}, {**batch, "mask": mask}, state.key, True)[0] / w.sum()

    grads = jax.jit(jax.grad(weighted))(state.params)
    wanted = jax.tree.map(lambda p, d: p - 0.1 * d, state.params, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), new.params, wanted)


@pytest.mark.slow
def test_padding_and_eight_devices_change_nothing():
    batch = rows(40)
    task = fairness.group_dro(TASK, SHARES, rate=0.5)
    padded = {k: np.concatenate([v, np.full_like(v[:8], np.nan if v.dtype.kind == "f" else 0)])
              for k, v in batch.items()}  # fmt: skip
    padded["mask"] = np.r_[np.ones(40), np.zeros(8)].astype(np.float32)
    one = jax.jit(lambda s, b: jo.train_step(task, optax.sgd(0.1), s, b))
    plan = jo.devices.data_parallel()
    split = {k: jax.device_put(v, plan.batch_sharding()) for k, v in batch.items()}
    states = [
        one(started(task, batch), batch)[0],
        one(started(task, batch), padded)[0],
        one(started(task, batch, plan), split)[0],
    ]
    for other in states[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=1e-6),
            (states[0].params, states[0].extra), (other.params, other.extra),
        )  # fmt: skip


def test_evaluation_has_the_loss_of_the_task():
    batch = rows()
    task = fairness.group_dro(TASK, SHARES)
    state = started(task, batch)
    found = jo.evaluate(task, state, batch)
    plain = jo.evaluate(TASK, fairness.inner_state(state), batch)
    np.testing.assert_allclose([found["loss"], found["accuracy"]],
                               [plain["loss"], plain["accuracy"]], rtol=1e-6)  # fmt: skip
    each = losses_of(state, batch)
    worst = max(each[batch["group"] == k].mean() for k in range(3))
    np.testing.assert_allclose(found["worst_group_loss"], worst, rtol=1e-5)


@pytest.mark.slow
def test_group_dro_helps_a_rare_group():
    """A linear model cannot fit both groups: the mean prefers the common one, DRO the worse."""
    count = 1000
    group = (np.arange(count) % 10 == 0).astype(np.int32)
    x = np.random.default_rng(0).normal(size=(count, 2)).astype(np.float32)
    label = (x[np.arange(count), group] > 0).astype(np.int32)
    data = {"features": x, "label": label, "group": group}
    task = tabular.classifier(tabular.MLP(()), features=2)
    options = {"optimizer": optax.adam(0.05), "batch_size": 250, "epochs": 40, "progress": False}
    plain = jo.fit(task, {k: v for k, v in data.items() if k != "group"}, **options)
    robust = fairness.group_dro(task, (0.9, 0.1), rate=0.1)
    state = fairness.inner_state(jo.fit(robust, data, **options))
    of_group = [
        [float(((jo.predict(task, s, {"features": x}) > 0.5) == label)[group == g].mean())
         for g in (0, 1)] for s in (plain, state)
    ]  # fmt: skip
    assert min(of_group[1]) > min(of_group[0]) + 0.1
    assert abs(of_group[1][0] - of_group[1][1]) < 0.1  # both axes count alike


def test_the_adversarys_gradient_is_reversed():
    batch = rows()
    task = fairness.adversarial(TASK, 3, strength=0.7, constraint="equalised odds")
    state = started(task, batch)
    total = lambda p: task.loss(p, {}, batch, state.key, True)[0]  # noqa: E731
    found = jax.jit(jax.grad(total))(state.params)
    plain = lambda p: TASK.loss(p, {}, batch, state.key, True)[0]  # noqa: E731
    own = jax.jit(jax.grad(plain))(state.params["task"])

    def guess(params):
        p = TASK.predict(params["task"], {}, batch)
        z, y = jnp.log(p / (1 - p)), jax.nn.one_hot(batch["label"], 2)
        x = jnp.concatenate([y, z[:, None] * y], 1)
        hidden, last = params["adversary"]["hidden"], params["adversary"]["logits"]
        hidden = jax.nn.relu(jnp.dot(x, hidden["kernel"]) + hidden["bias"][None])
        logits = jnp.dot(hidden, last["kernel"]) + last["bias"][None]
        labels = jnp.asarray(batch["group"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum()

    other = jax.jit(jax.grad(guess))(state.params)
    wanted = jax.tree.map(lambda a, b: a - 0.7 * b, own, other["task"])
    close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4)  # noqa: E731
    jax.tree.map(close, found["task"], wanted)
    jax.tree.map(close, found["adversary"], other["adversary"])


@pytest.mark.slow
def test_the_adversary_hides_the_group():
    count = 2000
    rng = np.random.default_rng(0)
    group = rng.integers(0, 2, count).astype(np.int32)
    x = np.stack([rng.normal(size=count), rng.normal(2.0 * group)], 1).astype(np.float32)
    label = (x.sum(1) + rng.normal(size=count) > 1).astype(np.int32)
    data = {"features": x, "label": label, "group": group}
    task = tabular.classifier(tabular.MLP((8,)), features=2)
    options = {"optimizer": optax.adam(0.01), "batch_size": 250, "epochs": 20, "progress": False}
    apart = []
    for strength in (0.0, 5.0):
        learned = fairness.adversarial(task, 2, strength=strength)
        state = jo.fit(learned, data, **options)
        p = np.asarray(jo.predict(task, fairness.inner_state(state), {"features": x}))
        apart.append(abs((p > 0.5)[group == 1].mean() - (p > 0.5)[group == 0].mean()))
        accuracy = ((p > 0.5) == label).mean()
    assert apart[0] > 0.3 and apart[1] < 0.5 * apart[0] and accuracy > 0.6


def test_more_classes_have_their_log_probabilities():
    task = tabular.classifier(tabular.MLP((4,), outputs=3), 3, ("a", "b", "c"))
    for constraint, width in (("demographic parity", 3), ("equalised odds", 12)):
        learned = fairness.adversarial(task, 2, constraint=constraint)
        params, _ = jax.eval_shape(learned.init, jax.random.key(0), rows())
        assert params["adversary"]["hidden"]["kernel"].shape == (width, 16)


def test_errors_before_anything_compiles():
    number = tabular.regressor(tabular.MLP((4,)), features=3)
    noise = {"clip": 1.0, "noise_multiplier": 1.0, "batch_size": 8}
    hidden = privacy.private(TASK, **noise)
    cases = [
        (lambda: fairness.group_dro(TASK, (0.5, 0.6)), "shares must be 2 or more above 0 with sum"),
        (lambda: fairness.group_dro(TASK, (1.0,)), "shares must be 2 or more"),
        (lambda: fairness.group_dro(TASK, SHARES, 0), "rate must be above 0, got 0"),
        (lambda: fairness.group_dro(TASK._replace(coupled=True), SHARES), "must not couple"),
        (lambda: fairness.group_dro(hidden, SHARES), "task must not be private already, got one"),
        (lambda: fairness.adversarial(hidden, 3), "task must not be private already, got one"),
        (lambda: privacy.private(fairness.group_dro(TASK, SHARES), **noise), "got coupled=True"),
        (lambda: jo.fit(fairness.group_dro(TASK, SHARES), rows(), optimizer=optax.sgd(1),
                        batch_size=8, epochs=1, accumulate=2), "accumulate must be 1 for a task"),
        (lambda: fairness.adversarial(number, 2), "task must have classes"),
        (lambda: fairness.adversarial(TASK, 1), "groups must be at least 2"),
        (lambda: fairness.adversarial(TASK, 2, constraint="x"), "constraint must be demographic"),
        (lambda: fairness.inner_state(started(TASK, rows())), "must be of a task of group_dro"),
        (lambda: jo.fit(fairness.group_dro(TASK, SHARES), {k: v for k, v in rows().items()
                        if k != "group"}, optimizer=optax.sgd(1), batch_size=8, epochs=1), "group"),
        (lambda: jo.fit(fairness.group_dro(TASK, SHARES), rows() | {"group": np.full(32, 3)},
                        optimizer=optax.sgd(1), batch_size=8, epochs=1), r"group must be .*got 3"),
    ]  # fmt: skip
    for call, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            call()


def test_the_state_of_groups_merges():
    a = fairness.WorstGroup(np.array([1.0, 2.0, 0.0]), np.array([4.0, 2.0, 0.0]))
    stacked = fairness.WorstGroup(*(np.stack([part, part]) for part in a))
    assert a.merge(a).compute() == stacked.fold().compute() == a.compute() == 1.0
    assert isinstance(started(TASK, rows()), TrainState)
