"""Predictions with dropout on: mean and spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import ADAM, SETTINGS, assert_equal, images

import jaxops as jo
from jaxops import vision
from jaxops.transforms import monte_carlo

TASK = vision.classifier(vision.MLP((8,), classes=3, dropout=0.5), **SETTINGS)
DATA = images(50, noise=0.2)
FIT = {"optimizer": ADAM, "batch_size": 10, "epochs": 2, "progress": False}


@pytest.fixture(scope="module")
def state():
    return jo.fit(TASK, DATA, **FIT)


def test_it_is_the_mean_and_spread_of_a_loop(state):
    key = jax.random.key(7)
    batch = {"image": jnp.asarray(DATA["image"])}
    sample = jax.jit(TASK.sample)
    outputs = [
        np.asarray(sample(state.params, state.extra, batch, jax.random.fold_in(key, i)))
        for i in range(6)
    ]
    assert np.ptp(outputs, 0).max() > 0.05  # dropout is on
    task = monte_carlo(TASK, samples=6, seed=7)
    found = jax.jit(task.predict)(state.params, state.extra, batch)
    np.testing.assert_allclose(found["mean"], np.mean(outputs, 0), atol=1e-6)
    np.testing.assert_allclose(found["std"], np.std(outputs, 0, ddof=1), atol=1e-6)


def test_the_seed_decides(state):
    few, again, other = (
        jo.predict(monte_carlo(TASK, samples=3, seed=seed), state, DATA) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(few["mean"], again["mean"])
    assert np.abs(few["mean"] - other["mean"]).max() > 0.01
    assert few["mean"].shape == few["std"].shape == (50, 3)


def test_many_samples_come_near_the_weights_as_they_are(state):
    many = jo.predict(monte_carlo(TASK, samples=400), state, DATA)
    plain = jo.predict(TASK, state, DATA)
    assert (many["mean"].argmax(-1) == plain.argmax(-1)).mean() > 0.9
    assert np.abs(many["mean"] - plain).mean() < many["std"].mean()


def test_loss_and_own_metrics(state):
    def nll(predictions, batch):
        own = jnp.take_along_axis(predictions["mean"], batch["label"][:, None], 1)[:, 0]
        return jo.metrics.mean(-jnp.log(own), jo.row_weights(batch))

    task = monte_carlo(TASK, samples=4)
    values = jo.evaluate(task, state, DATA, metrics={"nll": nll}, batch_size=50)
    plain = jo.evaluate(TASK, state, DATA)
    assert values["loss"] == pytest.approx(plain["loss"]) and "accuracy" in values
    mean = jo.predict(task, state, DATA, batch_size=50)["mean"]
    want = -np.log(mean[np.arange(50), DATA["label"]]).mean()
    assert values["nll"] == pytest.approx(want, rel=1e-5)


def test_it_is_saved_and_loaded(state, tmp_path):
    task = monte_carlo(TASK, samples=3)
    assert task is monte_carlo(TASK, 3, seed=0)
    jo.save(tmp_path / "model.safetensors", jo.Model(task, state))
    found = jo.load(tmp_path / "model.safetensors").predict(DATA["image"])
    assert_equal(found, jo.predict(task, state, DATA))


def test_what_cannot_be_sampled(state):
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        monte_carlo(TASK, samples=1)
    with pytest.raises(ValueError, match="must not be trained itself; train the task"):
        jo.fit(monte_carlo(TASK, samples=3), DATA, **FIT)
    with pytest.raises(ValueError, match="task must have `sample`, got None"):
        monte_carlo(jo.ensemble(TASK, 2))
    normed = vision.classifier(
        vision.MLP((8,), classes=3, batch_norm=True, dropout=0.5), **SETTINGS
    )
    state = jo.init_state(normed, ADAM, 0, DATA)
    with pytest.raises(ValueError, match=r"extra must be empty .*, got \['batch_stats'\]"):
        jo.predict(monte_carlo(normed, samples=3), state, DATA)
