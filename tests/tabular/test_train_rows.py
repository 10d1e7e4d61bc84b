"""Training that has the train rows in its state."""

from dataclasses import replace

import flax.linen as nn
import jax
import numpy as np
import pytest
from small import compilations

import jaxops as jo
from jaxops import tabular
from jaxops.optim import sgd
from jaxops.tabular.train_rows import own_batches, represented, start_own
from jaxops.task import Out

RNG = np.random.default_rng(0)
ROWS, MEMBERS = 12, 3
TRAIN = {
    "features": RNG.normal(size=(ROWS, 2)).astype(np.float32),
    "label": RNG.normal(size=ROWS).astype(np.float32),
}


class Slopes(nn.Module):
    """A linear function for each member."""

    @nn.compact
    def __call__(self, x):
        """(B, 2) or (B, members, 2) to (B, members, 1)."""
        slopes = self.param("slopes", nn.initializers.normal(1.0), (MEMBERS, 2))
        x = x if x.ndim == 3 else x[:, None]
        return (x * slopes[None]).sum(-1, keepdims=True)


TASK = tabular.regressor(Slopes(), features=2)


def run(weights=None):
    """Loss and gradient of a batch of rows 1, 7, 11 and padding, and the same by loops."""
    train = TRAIN if weights is None else {**TRAIN, "mask": weights}
    task = own_batches(TASK, MEMBERS, ROWS, weights is not None)
    state, columns = start_own(task, sgd(0.1), train, seed=0)
    batch = {name: value[[1, 7, 11, 0]] for name, value in columns.items()}
    batch["mask"] = np.array([1, 1, 1, 0], np.float32)

    def mean(params):
        total, out = task.loss(params, state.extra, batch, jax.random.key(0), True)
        return total / out.weight

    found = jax.jit(jax.value_and_grad(mean))(state.params)
    slopes = np.asarray(state.params["slopes"], np.float64)
    total, weight, grads = 0.0, 0.0, np.zeros_like(slopes)
    for m in range(MEMBERS):
        for row in (1, 7, 11):
            place = (row + m * ROWS // MEMBERS) % ROWS
            x, y = TRAIN["features"][place].astype(float), TRAIN["label"][place]
            w = 1.0 if weights is None else weights[place]
            error = x @ slopes[m] - y
            total, weight = total + w * error**2, weight + w
            grads[m] += 2 * w * error * x
    return found, (total / weight, grads / weight), (task, state, columns)


@pytest.mark.parametrize("weighted", [False, True])
def test_each_member_sees_rows_of_its_own(weighted):
    weights = RNG.uniform(0, 2, ROWS).astype(np.float32) if weighted else None
    if weighted:
        weights[[1, 5]] = 0
    (loss, grads), wanted, (task, state, columns) = run(weights)
    assert float(loss) == pytest.approx(wanted[0], rel=1e-5)
    np.testing.assert_allclose(grads["slopes"], wanted[1], rtol=1e-5, atol=1e-6)

    # evaluation and prediction are the task's own
    def evaluated(task, extra, rows):
        total, out = task.loss(state.params, extra, rows, jax.random.key(0), False)
        return total, out.metrics, task.predict(state.params, extra, rows)

    run_both = jax.jit(lambda: (evaluated(TASK, {}, TRAIN), evaluated(task, state.extra, columns)))
    for plain, outer in zip(*map(jax.tree.leaves, run_both()), strict=True):
        np.testing.assert_array_equal(plain, outer)


def test_each_member_sees_each_row_once_an_epoch():
    seen = []

    def loss(params, extra, batch, key, train):
        seen.append(np.asarray(batch["label"]))
        return 0.0, Out(1.0, {}, {})

    task = own_batches(TASK._replace(loss=loss), MEMBERS, ROWS)
    extra = {"module": {}, "rows": TRAIN}
    for rows in RNG.permutation(ROWS).reshape(3, 4):
        batch = {"row": rows, "label": TRAIN["label"][rows]}
        task.loss({}, extra, batch, None, True)
        assert len(np.unique(seen[-1])) > len(rows)  # the members see different ones
    for own in np.concatenate(seen).T:
        np.testing.assert_array_equal(np.sort(own), np.sort(TRAIN["label"]))


@pytest.fixture(scope="module")
def table():
    x = RNG.normal(size=(150, 2))
    return {"a": x[:, 0], "b": x[:, 1], "y": x[:, 0] ** 2 + x[:, 1]}


OPTIONS = {"label": "y", "progress": False, "batch_size": 16, "optimizer": jo.optim.adam(1e-2)}


def test_own_batches_learn_as_well_and_leave_a_plain_model(table, tmp_path):
    module = tabular.TabM((16,), members=4, own_batches=True)
    with compilations() as first:
        model = tabular.fit(table, module, epochs=40, **OPTIONS)
    assert model.about["validation"]["r2"] > 0.9
    assert model.state.extra == {} and not dict(model.task.recipe[1])["module"].own_batches
    jo.save(tmp_path / "m.model", model)
    again = jo.load(tmp_path / "m.model").predict(table)
    np.testing.assert_allclose(again.values, model.predict(table).values, rtol=1e-5)
    with compilations() as second:  # the same set-up: nothing is compiled again
        tabular.fit(table, module, epochs=40, **OPTIONS)
    assert any("step" in name for name in first)
    assert not [name for name in second if "step" in name], second
    with pytest.raises(ValueError, match="state must be None for TabM with the train rows in"):
        tabular.fit(table, module, epochs=1, state=model.state, **OPTIONS)


@pytest.mark.parametrize("label", ["y", pytest.param("kind", marks=pytest.mark.slow)])
def test_candidates_are_in_the_file(table, label, tmp_path):
    table = {k: v for k, v in table.items() if k != "y" or label == "y"}
    if label != "y":
        place = np.digitize(table["a"], [-0.5, 0.5])
        table[label] = np.array(["low", "middle", "high"], object)[place]
    module = tabular.ModernNCA(8, embedding=tabular.Periodic(4, 4, 0.1, lite=True))
    model = tabular.fit(table, module, epochs=30, **{**OPTIONS, "label": label})
    figures = tabular.evaluate(model, table).figures()
    assert figures["r2" if label == "y" else "accuracy"] > 0.8
    known = model.state.extra["candidates"]
    assert known["features"].shape == (127, 2) and known["targets"].shape[0] == 127
    assert (np.asarray(known["weights"]) == 1).all()
    features = {"features": model.reader.columns(table)[1]["features"]}
    once = represented(model)  # for a whole prediction; a task alone does it for each batch
    of_once, of_each = (one.outputs(features, 4096) for one in (once, model))
    np.testing.assert_allclose(of_once, of_each, rtol=1e-6, atol=1e-6)
    far = {**once.state.extra["candidates"]}
    far["features"] = np.full_like(far["features"], np.nan)  # is not looked at any more
    far = once.state._replace(extra={**once.state.extra, "candidates": far})
    np.testing.assert_array_equal(replace(once, state=far).outputs(features, 4096), of_once)
    jo.save(tmp_path / "m.model", model)
    told = jo.load(tmp_path / "m.model").predict(table)
    told = told.values if label == "y" else told.probabilities
    np.testing.assert_allclose(told[:, 1] if label == "two" else told, of_each, atol=1e-5)
    if label == "two":
        further = tabular.update(model, table, epochs=1, progress=False).state
        np.testing.assert_array_equal(further.extra["candidates"]["targets"], known["targets"])
        kernels = (state.params["first"]["kernel"] for state in (further, model.state))
        assert not np.array_equal(*kernels)
