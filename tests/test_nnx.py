"""A user's NNX module in a task, against its linen twin with the same parameters."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import ADAM, SETTINGS, assert_close, assert_equal, images

import jaxops as jo
from jaxops import optim, vision


class Twin(nn.Module):
    """Dense, batch norm, dropout, dense, in linen."""

    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(8, name="hidden")(x.reshape(len(x), -1))
        x = nn.BatchNorm(not train, momentum=0.9, name="norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="output")(x)


class Ours(nnx.Module):
    """The same in NNX, with layers in a list."""

    def __init__(self, dropout=0.0, seed=0):
        rngs = nnx.Rngs(seed)
        self.hidden = nnx.List([nnx.Linear(16, 8, rngs=rngs)])
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropouts = nnx.List([nnx.Dropout(dropout, rngs=rngs) for _ in range(2)])
        self.output = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.hidden[0](x.reshape(len(x), -1))))
        return self.output(self.dropouts[0](x))


class Masks(nnx.Module):
    """What two dropout layers let through of ones."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x, train):
        return self.first(x), self.second(x), train


def as_linen(tree):
    """Parameters or statistics of `Ours` as `Twin` names them."""
    return {name: leaves["0"] if name == "hidden" else leaves for name, leaves in tree.items()}


OURS = vision.classifier(jo.from_nnx(Ours()), **SETTINGS)
TWIN = vision.classifier(Twin(), **SETTINGS)
RUN = {"optimizer": ADAM, "batch_size": 10, "epochs": 2, "progress": False}


def started(batch):
    """A new state of each task, with the same parameters."""
    ours, twin = (jo.init_state(task, ADAM, seed=0, batch=batch) for task in (OURS, TWIN))
    params = jax.tree.map(jnp.array, as_linen(ours.params))  # a run donates its state
    return ours, twin._replace(params=params)


def test_the_same_gradients_and_statistics_as_linen():
    batch, key = images(10), jax.random.key(1)

    def loss(task, params, extra):
        return task.loss(params, extra, batch, key, True)

    both = jax.jit(jax.value_and_grad(loss, 1, has_aux=True), static_argnums=0)
    ours, twin = started(batch)
    (value, out), grads = both(OURS, ours.params, ours.extra)
    (same, other), wanted = both(TWIN, twin.params, twin.extra)
    assert_close(value, same, rtol=1e-6)
    assert_close(as_linen(grads), wanted, rtol=1e-5, atol=1e-6)
    assert_close(out.extra["state"]["norm"], other.extra["batch_stats"]["norm"], rtol=1e-5)


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_same_training_and_predictions_as_linen(accumulate):
    """Two epochs of two batches; four rows are left out, as padding would enter the statistics."""
    data, run = images(24), {**RUN, "accumulate": accumulate}
    ours, twin = (
        jo.fit(task, data, state=state, **run)
        for task, state in zip((OURS, TWIN), started(data), strict=True)
    )
    assert int(ours.step) == int(twin.step) == 4
    assert_close(as_linen(ours.params), twin.params, rtol=1e-4, atol=1e-5)
    assert_close(ours.extra["state"]["norm"], twin.extra["batch_stats"]["norm"], rtol=1e-4)
    one, two = (jo.predict(t, s, images(7)) for t, s in ((OURS, ours), (TWIN, twin)))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_the_module_given_stays_as_it_is():
    module = Ours(dropout=0.5)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    adapted = jo.from_nnx(module)
    module.output.kernel[...] += 1.0  # and the adapter keeps the values it was given
    variables = jax.jit(adapted.init)(jax.random.key(0), np.zeros((1, 4, 4, 1), np.float32))
    assert_equal(variables["params"]["output"], before["output"])
    x = np.ones((2, 4, 4, 1), np.float32)
    assert_equal(adapted(x), adapted.apply(variables, x, train=False))
    assert not module.norm.use_running_average and not module.dropouts[0].deterministic


def test_dropout_draws_from_the_stream_of_the_step_and_each_layer_by_itself():
    masks, x = jo.from_nnx(Masks()), np.ones((4, 50), np.float32)

    def draw(seed, train=True):
        (first, second, told), new = masks.apply(
            {}, x, train=train, rngs={"dropout": jax.random.key(seed)}, mutable=[]
        )
        assert new == {} and told is train
        return np.asarray(first), np.asarray(second)

    first, second = draw(0)
    assert 0.3 < (first == 0).mean() < 0.7 and (first != second).any()
    assert_equal(draw(0), (first, second))
    assert (draw(1)[0] != first).any()
    assert_equal(draw(1, train=False), (x, x))


def test_it_trains_and_is_saved(tmp_path):
    task = vision.classifier(jo.from_nnx(Ours(dropout=0.2)), **SETTINGS)
    data = images(40)
    run = {"optimizer": optim.adam(0.05), "batch_size": 20, "epochs": 10, "progress": False}
    state = jo.fit(task, data, **run)
    assert_equal(state, jo.fit(task, data, **run))
    assert jo.evaluate(task, state, data)["accuracy"] > 0.8

    with pytest.raises(ValueError, match=r"got <jaxops.nnx._Adapter .*recipe=None"):
        jo.save(tmp_path / "nnx.model", jo.Model(task, state))
    jo.save(tmp_path / "nnx.model", jo.Model(task._replace(recipe=None), state))
    model = jo.load(tmp_path / "nnx.model", task=task)
    np.testing.assert_array_equal(model.predict(data["image"]), jo.predict(task, state, data))
    with pytest.raises(ValueError, match=r"load\(path, task=\.\.\.\)"):
        jo.load(tmp_path / "nnx.model")


@pytest.mark.slow
def test_on_two_devices():
    """By SGD: batch norm takes the hidden bias out again, so its gradient is rounding alone."""
    data, run = images(40), {**RUN, "optimizer": optim.sgd(0.1)}
    whole, split = (
        jo.fit(OURS, data, **run, plan=plan)
        for plan in (None, jo.devices.data_parallel(jax.devices()[:2]))
    )
    assert_close(split, whole, rtol=1e-4, atol=1e-5)


def test_what_is_no_nnx_module():
    with pytest.raises(TypeError, match=r"module must be a flax\.nnx\.Module, got Twin"):
        jo.from_nnx(Twin())
