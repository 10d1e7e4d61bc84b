"""Metrics of the user's own see the real rows alone, however they are batched and placed."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from small import TASK, Batches, compilations, images

import jaxops as jo
from jaxops.train import own_metrics

ROWS = images(53)


class Limits:
    limit = 0.0


@pytest.fixture(scope="module")
def state():
    return jo.init_state(TASK, jo.optim.sgd(0.1), 0, images(1))


@pytest.fixture(scope="module")
def brier(state):
    """The Brier score of each row, by NumPy."""
    return ((jo.predict(TASK, state, ROWS) - np.eye(3)[ROWS["label"]]) ** 2).sum(1)


def squares(p, batch):
    return ((p - jax.nn.one_hot(batch["label"], 3)) ** 2).sum(1)


def forgets(p, batch):
    """Counts every row that it gets."""
    return jo.metrics.mean(squares(p, batch), jnp.ones(len(p)))


@pytest.mark.parametrize("function", [squares, forgets])
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("data", [ROWS, Batches(ROWS, 16)], ids=["columns", "stream"])
def test_padding_is_taken_out(state, brier, function, devices, data):
    plan = jo.devices.data_parallel(jax.devices()[:devices])
    found = jo.evaluate(TASK, state, data, batch_size=16, plan=plan, metrics={"brier": function})
    assert found["brier"] == pytest.approx(brier.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(
        (jo.predict(TASK, state, ROWS).argmax(1) == ROWS["label"]).mean()
    )


def test_weights_of_the_user_stay_and_no_other_mask_is_there(state, brier):
    weights = np.random.default_rng(0).uniform(size=53) * (np.arange(53) % 3 > 0)
    seen = []

    def look(p, batch):
        seen.append((len(p), sorted(batch)))
        return squares(p, batch)

    found = jo.evaluate(TASK, state, {**ROWS, "mask": weights}, metrics={"brier": look})
    assert found["brier"] == pytest.approx(np.average(brier, weights=weights), rel=1e-5)
    jo.evaluate(TASK, state, ROWS, metrics={"brier": look})
    assert seen == [(53, ["image", "label", "mask"]), (53, ["image", "label"])]


def test_a_lambda_in_a_loop_compiles_once_and_another_value_anew(state):
    own_metrics._program.cache_clear()

    def evaluated(power):
        own = {"b": lambda p, batch: jnp.abs(p[:, 0] - 0.5) ** power}
        return jo.evaluate(TASK, state, ROWS, metrics=own)["b"]

    first = evaluated(2)
    with compilations() as names:
        assert evaluated(2) == first
    assert not names
    p = jo.predict(TASK, state, ROWS)[:, 0]
    assert evaluated(3) == pytest.approx((np.abs(p - 0.5) ** 3).mean(), rel=1e-5)


SCALE = 1.0


@pytest.mark.parametrize("kind", ["closure", "default", "helper", "class", "module"])
def test_an_object_that_changed_is_seen(state, monkeypatch, kind):
    changed = types.SimpleNamespace(limit=0.0)

    def helper(p):
        return p.max(1) > changed.limit

    shares = []
    for limit in (0.0, 2.0):
        changed.limit = Limits.limit = limit
        monkeypatch.setattr(small, "limit", limit, raising=False)
        own = {
            "closure": lambda p, b: p.max(1) > changed.limit,
            "default": lambda p, b, c=changed: p.max(1) > c.limit,
            "helper": lambda p, b: helper(p),
            "class": lambda p, b: p.max(1) > Limits.limit,
            "module": lambda p, b: p.max(1) > small.limit,
        }[kind]
        shares.append(jo.evaluate(TASK, state, ROWS, metrics={"above": own})["above"])
    assert shares == [1.0, 0.0]


def test_a_global_that_changed_is_seen(state, monkeypatch):
    def evaluated():
        return jo.evaluate(TASK, state, ROWS, metrics={"b": lambda p, batch: p[:, 0] * SCALE})["b"]

    first = evaluated()
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    assert evaluated() == pytest.approx(3 * first, rel=1e-6)


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"loss": squares}, 'other names than "loss"'),
        ({"accuracy": squares}, r"other names than the task's own, got \['accuracy'\]"),
        ({"a": lambda p, batch: p.mean()}, r"metrics\['a'\] must return one value a row, \(53,\)"),
        ({"a": lambda p, batch: p}, r"got shape \(53, 3\)"),
        ({"a": 0.5}, r"metrics\['a'\] must be a function of \(predictions, batch\), got 0.5"),
        ({"a": lambda p: p}, r"metrics\['a'\] must be a function .*, got one of \(p\)"),
        (
            {"a": lambda p, batch: np.abs(p)},
            r"metrics\['a'\] must compute with jax.numpy, .*jo.predict",
        ),
        ({"a": lambda p, batch: 1.0 if p.sum() > 0 else 0.0}, "must compute with jax.numpy"),
        ([squares], "functions by name, got list"),
    ],
)
def test_what_is_no_metric(state, metrics, words):
    with pytest.raises(ValueError, match=words):
        jo.evaluate(TASK, state, ROWS, metrics=metrics)
