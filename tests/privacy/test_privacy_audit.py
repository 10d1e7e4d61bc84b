"""The audit's bounds against independent sums; its verdicts on a right step and planted bugs."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from statsmodels.stats.proportion import proportion_confint

import jaxops as jo
from jaxops import privacy

CANARIES, GUESSES, NOISE, DELTA, DEVICES = 4000, 1000, 1.0, 1e-5, 8
CLAIM = 4.3773  # of Gaussian noise of multiplier 1 once, at delta 1e-5 (Balle and Wang 2018)


@pytest.mark.parametrize("counts", [(90, 100, 1000), (100, 100, 1000), (60, 100, 100)])
@pytest.mark.parametrize("delta", [0.0, 1e-5])
def test_one_run_bound_solves_the_equation(counts, delta):
    right, guesses, canaries = counts
    bound = privacy.one_run_bound(right, guesses, canaries, delta, confidence=0.9)
    q = math.exp(bound) / (1 + math.exp(bound))
    w = [math.comb(guesses, n) * q**n * (1 - q) ** (guesses - n) for n in range(guesses + 1)]
    more = max(sum(w[right - i : right]) / i for i in range(1, right + 1))
    assert sum(w[right:]) + 2 * canaries * delta * more == pytest.approx(0.1, rel=1e-2)


def test_bounds_without_evidence_are_0():
    assert privacy.one_run_bound(50, 100, 100, 1e-5) == 0
    assert privacy.many_runs_bound(50, 100, 50, 100, 1e-5) == 0
    assert privacy.many_runs_bound(0, 10, 0, 10, 1e-5) == 0


def test_many_runs_bound():
    hit = proportion_confint(480, 500, alpha=0.05, method="beta")[0]
    reject = proportion_confint(450, 500, alpha=0.05, method="beta")[0]
    want = math.log(max((hit - DELTA) / (1 - reject), (reject - DELTA) / (1 - hit)))
    assert privacy.many_runs_bound(480, 500, 450, 500, DELTA) == pytest.approx(want)


def right(task):
    return task


def noise_of_every_device(task):
    """Each device adds its share of the noise's standard deviation, not of its variance."""
    share = privacy.Gaussian(1.0, NOISE / DEVICES, CANARIES)

    def release(total, key):
        parts = [total, *[jax.tree.map(jnp.zeros_like, total)] * (DEVICES - 1)]
        keys = jax.random.split(key, DEVICES)
        noisy = [share(part, key) for part, key in zip(parts, keys, strict=True)]
        return jax.tree.map(lambda *of_devices: sum(of_devices), *noisy)

    return task._replace(release=release)


def clips_the_mean(task):
    mechanism = privacy.Gaussian(1.0, NOISE, CANARIES)

    def release(total, key):
        norm = optax.tree.norm(total) / CANARIES
        return mechanism(jax.tree.map(lambda x: x / jnp.maximum(norm, 1.0), total), key)

    return privacy.canary_task(CANARIES)._replace(release=release)


def one_update(change, method, included):
    """The parameters after one update on all canaries that are included."""
    private = privacy.private(
        privacy.canary_task(CANARIES),
        clip=1.0,
        noise_multiplier=NOISE,
        batch_size=CANARIES,
        method=method,
    )
    task, tx = change(private), jo.optim.sgd(1.0)
    batch = {
        "canary": np.arange(CANARIES, dtype=np.int32),
        "scale": np.full(CANARIES, 10.0, np.float32),
        "mask": included.astype(np.float32),
    }
    state = jo.init_state(task, tx, seed=0, batch=batch)
    state, _ = jax.jit(functools.partial(jo.train_step, task, tx))(state, batch)
    return state.params["embedding"][:, 0]


@pytest.mark.parametrize(
    ("change", "refuted"),
    [(right, False), (noise_of_every_device, True), (clips_the_mean, True)],
)
def test_verdicts(change, refuted):
    run = functools.partial(one_update, change, "auto")
    told = privacy.audit(
        run, canaries=CANARIES, epsilon=CLAIM, delta=DELTA, guesses=GUESSES, seed=1
    )
    assert told.refuted == refuted and told.guesses == GUESSES
    if refuted:
        assert told.epsilon > CLAIM + 0.4
    else:  # it finds something, as canaries are the worst rows there are
        assert 1.0 < told.epsilon < CLAIM - 1


def test_a_step_without_noise_is_refuted_whatever_is_claimed():
    told = privacy.audit(lambda included: included, canaries=CANARIES, epsilon=5.5, delta=DELTA,
                         guesses=3000)  # fmt: skip
    assert told.right == told.guesses == 3000 and told.refuted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"guesses": 11}, r"guesses must be in \[2, 10\] \(the number of canaries\), got 11"),
        ({"epsilon": 0.0}, "epsilon must be above 0, got 0.0"),
        ({"delta": 1.0}, r"delta must be in \[0, 1\), got 1.0"),
        ({"confidence": 1.0}, r"confidence must be in \(0, 1\), got 1.0"),
        ({"run": lambda i: i[:5]}, r"finite scores of shape \(10,\), got shape \(5,\)"),
        ({"run": lambda i: i * np.nan}, r"finite scores of shape \(10,\)"),
    ],
)
def test_wrong_settings_of_audits(change, message):
    settings = {"run": lambda included: included, "canaries": 10, "epsilon": 1.0, "delta": 0.0,
                "guesses": 4}  # fmt: skip
    with pytest.raises(ValueError, match=message):
        privacy.audit(**settings | change)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: privacy.one_run_bound(5, 4, 10, 0.0), "right, guesses and canaries must not fall"),
        (lambda: privacy.many_runs_bound(5, 4, 1, 1, 0.0), "right guesses must be at most the run"),
        (lambda: privacy.many_runs_bound(0, 0, 1, 1, 0.0), "at least 1 of each kind, got 0 of 0"),
        (lambda: privacy.canary_task(0), "canaries must be at least 1, got 0"),
    ],
)
def test_wrong_counts(call, message):
    with pytest.raises(ValueError, match=message):
        call()
