"""Columns that do not fit on the device are streamed, batch for batch as if they did."""

from typing import ClassVar

import flax.linen as nn
import numpy as np
import optax
import pytest
from small import assert_close, assert_equal

import jaxops as jo
from jaxops.task import Column
from jaxops.train import feed


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1, name="out")(x)[:, 0]


TASK = jo.supervised(
    Linear(),
    lambda batch, key: batch["x"],
    lambda out, batch, train: optax.squared_error(out, batch["y"]),
    lambda out, batch, weights: {},
    lambda out: out,
    (Column("x", (3,)), Column("y", (), target=True)),
)


def test_too_large_for_the_device_is_the_same_run(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(50, 3)).astype(np.float32)}
    data["y"] = data["x"].sum(1)
    tx = jo.optim.adam(1e-2)
    settings = {"optimizer": tx, "batch_size": 8, "progress": False, "seed": 3}
    resident = jo.fit(TASK, data, epochs=4, **settings)
    kept = {"checkpoints": jo.Checkpoints(tmp_path / "resident", every=5)}
    jo.fit(TASK, data, steps=10, **settings, **kept)
    monkeypatch.setattr(feed, "fits", lambda columns, plan: False)
    streamed = jo.fit(TASK, data, epochs=4, **settings)
    moved = jo.fit(TASK, data, epochs=4, **settings, **kept)  # to a smaller device
    kept = {"checkpoints": jo.Checkpoints(tmp_path / "streamed", every=5)}
    jo.fit(TASK, data, steps=10, **settings, **kept)  # in the middle of the second epoch
    resumed = jo.fit(TASK, data, epochs=4, **settings, **kept)
    with pytest.raises(ValueError, match=r"seed must be 3, as in the run .*, got 4"):
        jo.fit(TASK, data, epochs=4, **{**settings, "seed": 4}, **kept)
    for other in (streamed, resumed, moved):
        assert_close(resident.params, other.params, rtol=1e-6)
    assert_equal(streamed.params, resumed.params)


class Device:
    def __init__(self, stats):
        self.stats = stats

    def memory_stats(self):
        return self.stats


def test_half_of_the_free_memory_is_for_the_data():
    class Mesh:
        local_devices: ClassVar = [None]

    plan = jo.devices.Plan(Mesh(), ())
    columns = {"x": np.zeros(100, np.uint8)}
    for stats, expected in (
        (None, True),
        ({"bytes_limit": 199}, False),
        ({"bytes_limit": 200}, True),
        ({"bytes_limit": 250, "bytes_in_use": 51}, False),
    ):
        Mesh.local_devices[0] = Device(stats)
        assert feed.fits(columns, plan) is expected
