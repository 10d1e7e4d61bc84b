"""A whole private training to a target epsilon, for rows and for users."""

import math
from functools import partial

import jax
import numpy as np
import pytest
from scipy import stats

import jaxops as jo
from jaxops import privacy, tabular
from jaxops.privacy import training

pytest.importorskip("dp_accounting")
TASK = tabular.classifier(tabular.MLP(()), features=3)
FIT = {"delta": 1e-5, "clip": 1.0, "progress": False, "seed": 11}


def data(rows):
    x = np.random.default_rng(0).normal(size=(rows, 3)).astype(np.float32)
    return {"features": x, "label": (x @ [1.0, -2.0, 0.5] > 0).astype(np.int32)}


def test_fit_spends_at_most_epsilon_and_learns():
    rows, sgd = data(2000), jo.optim.sgd(2.0)
    run = partial(privacy.fit, TASK, rows, **FIT)
    state, promise = run(epsilon=1.0, batch_size=200, epochs=3, optimizer=sgd)
    assert (promise.rate, promise.steps, int(state.step)) == (0.1, 30, 30)
    assert 0.99 < promise.epsilon <= 1.0 and promise.rows_per_user is None
    again = privacy.epsilon(
        noise_multiplier=promise.noise_multiplier, delta=1e-5, rate=0.1, steps=30
    )
    assert promise.epsilon == pytest.approx(again)
    assert jo.evaluate(TASK, state, rows)["accuracy"] > 0.9
    good = {"epsilon": 1.0, "batch_size": 200, "optimizer": sgd, "steps": 1}
    users = np.arange(2000) // 4
    for wrong, message in (
        ({"epsilon": 0.0}, "epsilon must be"),
        ({"checkpoints": "runs", "seed": None}, "seed must be given for checkpoints"),
        ({"batch_size": 2001}, r"at most 2000 \(the number of rows\), got 2001"),
        ({"epochs": 1}, "one of epochs and steps"),
        ({"users": users}, "given together, got rows_per_user=None"),
        ({"rows_per_user": 2}, "given together, got users=None"),
        ({"users": users, "rows_per_user": 0}, "rows_per_user must be at least 1, got 0"),
        ({"users": users[1:], "rows_per_user": 2}, "one user for each of 2000 rows, got 1999"),
        (
            {"users": np.where(users == 2, np.nan, users), "rows_per_user": 2},
            r"users must have a user in every row, got none in row 8 \(counted from 0\)",
        ),
        (
            {"users": users, "rows_per_user": 2, "batch_size": 1001},
            r"at most 1000 \(the number of rows that are kept\), got 1001",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            run(**good | wrong)


def test_one_user_more_moves_a_step_by_what_the_noise_for_users_hides(monkeypatch):
    """Two logs of which one has 30 equal events of a user more: without the bound, 30 clips."""
    monkeypatch.setattr(training, "needed", lambda **plan: 4.0)  # its search takes seconds
    rows, users = data(120), np.arange(90) // 3
    rows["features"][90:], rows["label"][90:] = [40.0, 0.0, 0.0], 0
    users = np.concatenate([users, np.full(30, 77)])
    rows = {name: column[np.argsort(np.arange(120) % 7)] for name, column in rows.items()}
    users = users[np.argsort(np.arange(120) % 7)]

    def step(kept, size):  # all rows: the sum of clipped gradients, and the noise
        return privacy.fit(
            TASK, {name: column[kept] for name, column in rows.items()}, epsilon=2.0, steps=1,
            batch_size=size, optimizer=jo.optim.sgd(float(size)), users=users[kept],
            rows_per_user=2, **FIT,
        )  # fmt: skip

    (with_user, promise), (without, other) = step(users >= 0, 62), step(users != 77, 60)
    assert promise == other and (promise.rate, promise.rows_per_user) == (1.0, 2)
    moved = jax.tree.map(lambda a, b: np.ravel(a - b), with_user.params, without.params)
    distance = np.linalg.norm(np.concatenate(jax.tree.leaves(moved)))
    assert distance == pytest.approx(2.0, rel=1e-4)  # two events, of the norm `clip` each
    mu, eps = distance / promise.noise_multiplier, promise.epsilon
    # Balle and Wang 2018, theorem 8: the exact delta of Gaussian noise at this epsilon
    delta = stats.norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * stats.norm.cdf(-mu / 2 - eps / mu)
    assert 0.9e-5 < delta <= 1e-5


def test_users_whose_rows_are_drawn_by_chance(monkeypatch):
    """The accounts are asked for users: a step is a mixture, which takes seconds to compose."""
    asked = []

    def account(**plan):
        asked.append(plan)
        return 3.0

    for name in ("needed", "spent"):
        monkeypatch.setattr(training, name, account)
    _, promise = privacy.fit(
        TASK, data(200), epsilon=9.0, batch_size=50, steps=2, optimizer=jo.optim.sgd(1.0),
        users=[f"user {i % 50}" for i in range(200)], rows_per_user=2, **FIT,
    )  # fmt: skip
    plan = {"rate": 0.5, "steps": 2, "rows_per_user": 2, "delta": 1e-5}
    assert asked == [{"epsilon": 9.0} | plan, {"noise_multiplier": 3.0} | plan]
    assert promise == privacy.Guarantee(3.0, 1e-5, 3.0, 0.5, 2, 2)
