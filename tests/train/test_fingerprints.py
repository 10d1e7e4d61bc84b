"""What a resumed run is compared by, where a task was made by hand."""

import dataclasses
import functools
import os
import subprocess
import sys
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxops as jo
from jaxops.train.fingerprints import functions, start

ROWS = {"x": np.arange(24, dtype=np.float32).reshape(8, 3)}
SGD = jo.optim.sgd(0.1)
SCALE = 2.0


class Net(nn.Module):
    rate: float = 0.1

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(1)(nn.Dropout(self.rate, deterministic=not train)(x))[:, 0]


def scaled(x, power):
    return SCALE * x**power


def task(module=Net(), power=2, shift=0.0, loss=None, predict=lambda out: out):
    weights = np.full(8, shift, np.float32)
    return jo.supervised(
        module,
        lambda batch, key: batch["x"],
        loss or (lambda out, batch, train: scaled(out, power) + weights[: len(out)]),
        lambda out, batch, w: {"m": jo.metrics.mean(out, w)},
        predict,
        (jo.Column("x", (3,)),),
    )


def differing(a, b):
    a, b = functions(a), functions(b)
    assert a.keys() == b.keys()
    return {name for name in a if a[name] != b[name]}


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, set()),
        ({"module": Net()}, set()),
        ({"module": Net(0.5)}, {"module"}),
        ({"power": 1}, {"loss"}),
        ({"shift": 1.0}, {"loss"}),
        ({"loss": lambda out, batch, train: jnp.abs(out)}, {"loss"}),
        ({"loss": functools.partial(lambda k, out, batch, train: k * out, 2)}, {"loss"}),
        ({"predict": jax.nn.sigmoid}, {"predict"}),
    ],
)
def test_what_differs_is_named(changes, names):
    assert differing(task(), task(**changes)) == names


def test_of_other_tasks(monkeypatch):
    assert differing(jo.remat(task()), jo.remat(task())) == set()
    assert "loss" in differing(jo.remat(task()), jo.remat(task(power=1)))
    plain, before = task(), functions(task())
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert functions(plain)["loss"] != before["loss"]
    one, two = (functools.partial(optax.huber_loss, delta=d) for d in (1.0, 2.0))
    made = [jo.Task(lambda k, b: ({}, {}), loss, lambda *_: 0.0) for loss in (one, two)]
    assert differing(*made) == {"loss"}


@dataclasses.dataclass(slots=True)
class Config:
    power: int


log = []  # which jnp.log is not


def test_values_that_a_function_names():
    def made(power):
        config = Config(power)
        return task(loss=lambda out, batch, train: jnp.log(out) ** config.power)

    assert differing(made(1), made(1)) == set()
    assert differing(made(1), made(2)) == {"loss"}
    before = functions(made(1))
    log.append("a record")
    assert functions(made(1)) == before


CODE = """
import numpy as np
from jaxops.train.fingerprints import functions
import jaxops as jo
NAMES, CLASSES = frozenset(["a", "b", "c"]), np.array(["a", "b"], object)
loss = lambda *_: 1.0 if "x" in {"x", "y", "z"} else len(NAMES) + len(CLASSES)
print(functions(jo.Task(loss, loss, loss)))
"""


@pytest.mark.slow  # two processes that import JAX
def test_processes_agree():
    command = [sys.executable, "-c", CODE]
    running = [
        subprocess.Popen(
            command, env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE, text=True
        )
        for seed in "12"
    ]
    first, second = (process.communicate(timeout=120)[0] for process in running)
    assert first == second and "loss" in first


def test_a_run_that_goes_on_warns_of_what_is_other(tmp_path):
    def fit(made, steps, **changes):
        settings = {"optimizer": SGD, "batch_size": 8, "progress": False, "checkpoints": tmp_path}
        return jo.fit(made, ROWS, steps=steps, **settings | changes)

    first = jo.init_state(task(), SGD, seed=5, batch=ROWS)
    other = first._replace(params=jax.tree.map(lambda leaf: leaf + 1, first.params))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(task(), 1, state=first)
        fit(task(), 2, state=first)
        fit(task(), 3)  # the checkpoint is there, and the state need not be
        fit(task(), 4, state=first)
    with pytest.warns(UserWarning, match=rf"`loss` and `module` should be .* in {tmp_path}"):
        fit(task(Net(0.5), power=1), 4)
    with pytest.warns(UserWarning, match="the state to start from should be as in the run"):
        fit(task(), 4, state=other)
    assert start(first) != start(other)
