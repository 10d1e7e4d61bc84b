"""A whole private training to a target epsilon."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import privacy, tabular


def test_fit_spends_at_most_epsilon_and_learns():
    pytest.importorskip("dp_accounting")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3)).astype(np.float32)
    data = {"features": x, "label": (x @ [1.0, -2.0, 0.5] > 0).astype(np.int32)}
    task = tabular.classifier(tabular.MLP(()), features=3)
    settings = {
        "epsilon": 1.0, "delta": 1e-5, "clip": 1.0, "batch_size": 200,
        "optimizer": jo.optim.sgd(2.0), "progress": False,
    }  # fmt: skip
    state, promise = privacy.fit(task, data, epochs=3, seed=11, **settings)
    assert (promise.rate, promise.steps, int(state.step)) == (0.1, 30, 30)
    assert 0.99 < promise.epsilon <= 1.0
    again = privacy.epsilon(
        noise_multiplier=promise.noise_multiplier, delta=1e-5, rate=0.1, steps=30
    )
    assert promise.epsilon == pytest.approx(again)
    assert jo.evaluate(task, state, data)["accuracy"] > 0.9
    for wrong, message in (
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"checkpoints": "runs"}, "seed must be given for checkpoints"),
        ({"batch_size": 2001}, r"at most 2000 \(the number of rows\), got 2001"),
        ({"epochs": 1}, "one of epochs and steps"),
    ):
        with pytest.raises(ValueError, match=message):
            privacy.fit(task, data, steps=1, **{**settings, **wrong})
