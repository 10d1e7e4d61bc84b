"""Several members as one model."""

import jax
import numpy as np
import pytest
from small import ADAM, SETTINGS, assert_equal, images

import jaxops as jo
from jaxops import vision

TASK = vision.classifier(vision.MLP((8,), classes=3, batch_norm=True), **SETTINGS)
DATA = images(50, noise=0.2)


@pytest.fixture(scope="module")
def members():
    def member(seed):
        settings = {"optimizer": ADAM, "batch_size": 10, "epochs": 2, "progress": False}
        return jo.fit(TASK, DATA, seed=seed, **settings)

    return [member(seed) for seed in range(3)]


def test_it_predicts_the_mean(members):
    several, state = jo.ensemble(TASK, 3), jo.stack(members)
    want = np.mean([jo.predict(TASK, s, DATA) for s in members], 0)
    np.testing.assert_allclose(jo.predict(several, state, DATA), want, atol=1e-6)
    losses = [jo.evaluate(TASK, s, DATA)["loss"] for s in members]
    assert jo.evaluate(several, state, DATA)["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    own = want[np.arange(50), DATA["label"]]
    assert -np.log(own).mean() < np.mean(losses)
    for i, member in enumerate(members):
        back = jax.tree.map(lambda leaf: leaf[i], state.params)
        assert_equal(back, member.params)


def test_it_is_not_trained(members):
    several = jo.ensemble(TASK, 3)
    with pytest.raises(ValueError, match="must not be trained itself; train its members"):
        jo.fit(several, DATA, optimizer=ADAM, batch_size=10, steps=1, progress=False)


def test_equal_ensembles_are_one_task():
    assert jo.ensemble(TASK, 3) is jo.ensemble(TASK, members=3)
