"""The clock counts what it should, on a time that the test makes."""

import jax
import jax.numpy as jnp
import pytest
from small import TASK, images

import jaxops as jo
from jaxops import optim
from jaxops.train import clock
from jaxops.train.evaluation import Evaluation
from jaxops.train.run import Run


@pytest.fixture
def now(monkeypatch):
    class Now:
        time = 100.0

    monkeypatch.setattr(clock.time, "perf_counter", lambda: Now.time)
    return Now


def test_the_first_call_and_pauses_are_not_counted(now):
    watch = jo.Clock()
    assert watch.examples_per_second is None and watch.first_step_seconds is None
    now.time += 30  # compilation
    assert watch.tick(64) is None
    assert watch.first_step_seconds == 30 and watch.examples_per_second is None
    now.time += 2
    assert watch.tick(100) == 2
    with watch.paused():
        now.time += 1000  # validation
    now.time += 3
    assert watch.tick(200) == 3
    assert watch.examples_per_second == 300 / 5
    assert watch.first_step_seconds == 30


def test_a_pause_before_the_first_call(now):
    watch = jo.Clock()
    with watch.paused():
        now.time += 5
    now.time += 1
    watch.tick(1)
    assert watch.first_step_seconds == 1


def test_fit_reports_training_alone(monkeypatch, now):
    """Each call takes 1 s, the first one 50 s, a validation 500 s."""
    real, calls, records = Run._await, [], []

    def wait(self, call, bar):
        now.time += 1 if calls else 50
        calls.append(call.steps)
        return real(self, call, bar)

    monkeypatch.setattr(Run, "_await", wait)
    evaluate = Evaluation.__call__

    def validate(*args):
        now.time += 500
        return evaluate(*args)

    monkeypatch.setattr(Evaluation, "__call__", validate)
    jo.fit(
        TASK,
        images(100),
        optimizer=optim.sgd(0.1),
        batch_size=10,
        epochs=3,
        validation=images(20),
        reports=records.append,
        progress=False,
    )
    speed = records[-2]["examples_per_second"]
    assert speed == pytest.approx(10 * sum(calls[1:]) / (len(calls) - 1))


def test_flops_are_those_of_the_formula():
    a, b = jnp.ones((32, 64)), jnp.ones((64, 16))
    assert clock.flops(jnp.dot, a, b) == 2 * 32 * 64 * 16
    both = clock.flops(lambda a, b: jax.nn.relu(a @ b), a, b)
    assert 2 * 32 * 64 * 16 < both <= 2 * 32 * 64 * 16 + 2 * 32 * 16


def test_peaks_are_positive_and_plausible():
    assert 1e8 < clock.peak_flops(size=128) < 1e16
    before = clock.peak_memory()
    assert before > 50e6  # this process holds Python, jax and their libraries
    assert clock.peak_memory() >= before
