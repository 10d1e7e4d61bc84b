"""Bandits against NumPy in float64, step by step; their propensities; and their regret."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops import decide
from jaxops.decide import bandits

ARMS, FEATURES = 4, 5


def rows(rng, count, arms=ARMS, features=FEATURES):
    context = rng.normal(size=(count, features)).astype(np.float32)
    return context, rng.integers(0, arms, count), rng.normal(size=count).astype(np.float32)


class Reference:
    """The textbook's: an inverse for each arm, by Sherman and Morrison's formula, in float64."""

    def __init__(self, ridge):
        self.inverse = np.stack([np.eye(FEATURES) / ridge] * ARMS)
        self.moment, self.squares, self.count = np.zeros((ARMS, FEATURES)), 0.0, 0

    @property
    def mean(self):
        return np.einsum("ade,ae->ad", self.inverse, self.moment)

    def spread(self, x):
        return np.sqrt(np.einsum("d,ade,e->a", x, self.inverse, x))

    def update(self, x, arm, reward):
        x = x.astype(np.float64)
        p = self.inverse[arm]
        # a sum of squares grows by the error made beforehand, over its variance
        self.squares += (reward - self.mean[arm] @ x) ** 2 / (1 + x @ p @ x)
        self.inverse[arm] = p - np.outer(p @ x, x @ p) / (1 + x @ p @ x)
        self.moment[arm] += reward * x
        self.count += 1


def test_linear_state_is_the_textbooks_step_by_step():
    rng, reference, state = np.random.default_rng(0), Reference(2.0), None
    bandit = decide.linucb(ARMS, FEATURES, alpha=0.7, ridge=2.0)
    state, update = bandit.init(), jax.jit(bandit.update)
    posterior, values = jax.jit(bandits.posterior), jax.jit(bandits.values)
    for x, arm, reward in zip(*rows(rng, 300), strict=True):
        p = np.asarray(bandit.probabilities(state, x[None]))[0]
        upper = reference.mean @ x + 0.7 * reference.spread(x)
        if np.ptp(np.sort(upper)[-2:]) > 1e-5:
            assert p[upper.argmax()] == 1
        state = update(state, x[None], arm[None], reward[None])
        reference.update(x, arm, reward)
        mean, _ = posterior(state)
        np.testing.assert_allclose(mean, reference.mean, atol=1e-5)
        found = values(state, x[None])[1][0]
        np.testing.assert_allclose(found, reference.spread(x), atol=1e-5)
    assert float(state.squares) == pytest.approx(reference.squares, rel=1e-5)
    assert float(state.rows) == reference.count == 300
    residual = (1 + reference.squares) / 301
    assert float(bandits.noise_of(state, None)) == pytest.approx(np.sqrt(residual), rel=1e-5)


def test_late_feedback_in_any_batches_is_the_same_posterior():
    context, arm, reward = rows(np.random.default_rng(1), 500)
    bandit = decide.thompson(ARMS, FEATURES)
    at_once = bandit.update(bandit.init(), context, arm, reward)
    state, order = bandit.init(), np.random.default_rng(2).permutation(500)
    for part in np.split(order, [7, 8, 300]):
        state = bandit.update(state, context[part], arm[part], reward[part])
    for found, wanted in zip(state, at_once, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)

    mask, unknown = np.arange(500) < 200, np.where(np.arange(500) < 200, reward, np.nan)
    masked = bandit.update(bandit.init(), context, arm, unknown, mask)
    few = bandit.update(bandit.init(), context[:200], arm[:200], reward[:200])
    for found, wanted in zip(masked, few, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_float32_stays_right_after_many_rows():
    """Rewards of 1,000 +- 1, features that are nearly one another, 200 batches of 500 rows."""
    rng = np.random.default_rng(0)
    bandit = decide.thompson(1, 2)
    x = np.ones((100_000, 2), np.float32)
    x[:, 1] += 0.1 * rng.normal(size=len(x))
    reward = (900 * x[:, 0] + 100 * x[:, 1] + rng.normal(size=len(x))).astype(np.float32)
    batches = (x.reshape(200, 500, 2), jnp.zeros((200, 500), int), reward.reshape(200, 500))
    state = jax.lax.scan(lambda s, b: (bandit.update(s, *b), None), bandit.init(), batches)[0]
    x, reward = x.astype(np.float64), reward.astype(np.float64)
    exact = np.linalg.solve(np.eye(2) + x.T @ x, x.T @ reward)
    np.testing.assert_allclose(bandits.posterior(state)[0][0], exact, rtol=1e-3)
    squares = ((reward - x @ exact) ** 2).sum() + exact @ exact
    assert float(state.squares) == pytest.approx(squares, rel=0.01)
    assert (reward**2).sum() > 1e5 * squares  # of which float32 keeps seven digits


@pytest.mark.parametrize("noise", [0.5, None])
def test_thompson_takes_an_arm_as_often_as_posterior_draws_do(noise):
    rng = np.random.default_rng(3)
    context, arm, reward = rows(rng, 60)
    bandit = decide.thompson(ARMS, FEATURES, noise=noise, ridge=1.0)
    state, reference = bandit.update(bandit.init(), context, arm, reward), Reference(1.0)
    for row in zip(context, arm, reward, strict=True):
        reference.update(*row)
    sd = noise or np.sqrt((1 + reference.squares) / 61)
    chol = np.linalg.cholesky(reference.inverse)
    z = rng.normal(size=(50_000, ARMS, FEATURES))
    weights = reference.mean[None] + sd * np.einsum("ade,nae->nad", chol, z)
    p = np.asarray(bandit.probabilities(state, context[:3]))
    for x, found in zip(context[:3], p, strict=True):
        drawn = np.bincount((weights @ x).argmax(1), minlength=ARMS) / len(z)
        np.testing.assert_allclose(found, drawn, atol=0.01)

    same = np.repeat(context[:1], 10_000, 0)
    choice = jax.jit(bandit.choose)(state, same, jax.random.key(0))
    shares = np.bincount(choice.arm, minlength=ARMS) / len(same)
    np.testing.assert_allclose(shares, p[0], atol=0.02)  # four standard deviations
    np.testing.assert_allclose(choice.propensity, p[0][np.asarray(choice.arm)], rtol=1e-5)


@pytest.mark.parametrize(
    "successes, trials", [([0, 0, 0], [0, 0, 0]), ([3, 5, 1], [9, 9, 9]), ([60, 900], [400, 9000])]
)
def test_beta_thompson_is_the_chance_to_be_best(successes, trials):
    bandit = decide.beta_thompson(len(trials))
    arm = np.repeat(np.arange(len(trials)), trials)
    reward = np.concatenate([np.arange(n) < s for s, n in zip(successes, trials, strict=True)])
    state = bandit.update(bandit.init(), np.zeros((len(arm), 0)), arm, reward)
    np.testing.assert_array_equal(state.successes, 1 + np.array(successes))
    np.testing.assert_array_equal(state.failures, 1 + np.array(trials) - successes)
    p = np.asarray(bandit.probabilities(state, np.zeros((2, 0))))
    draws = np.random.default_rng(0).beta(
        *(np.asarray(x)[None] for x in state), (200_000, len(trials))
    )
    drawn = np.bincount(draws.argmax(1), minlength=len(trials)) / len(draws)
    np.testing.assert_allclose(p, np.stack([drawn, drawn]), atol=0.005)


def test_demand_curve_prices_by_the_posterior():
    """Against draws of (a, b) from the same regression in float64."""
    rng, cost = np.random.default_rng(0), 1.0
    prices = np.array([1.5, 2.0, 2.5, 3.0, 4.0])
    bandit = decide.demand_curve(prices, cost, features=1, noise=2.0, ridge=0.5)
    arm, context = rng.integers(0, 5, 30), rng.normal(size=(30, 1)).astype(np.float32)
    units = 12 + 2 * context[:, 0] - 3 * prices[arm] + 2 * rng.normal(size=30)
    state = bandit.update(bandit.init(), context, arm, (prices[arm] - cost) * units)

    q = prices / prices.mean()
    x = np.column_stack([np.ones(30), context[:, 0], -q[arm]])
    precision = 0.5 * np.eye(3) + x.T @ x
    mean, covariance = np.linalg.solve(precision, x.T @ units), 4 * np.linalg.inv(precision)
    np.testing.assert_allclose(bandits.posterior(state)[0][0], mean, rtol=1e-4)
    theta = rng.multivariate_normal(mean, covariance, 100_000)
    for c in (-3.0, 0.0, 3.0):
        a, b = theta[:, 0] + c * theta[:, 1], np.maximum(theta[:, 2], 0)
        margin = (prices - cost)[None] * np.maximum(a[:, None] - b[:, None] * q[None], 0)
        drawn = np.bincount(margin.argmax(1), minlength=5) / len(theta)
        found = bandit.probabilities(state, np.array([[c]], np.float32))[0]
        np.testing.assert_allclose(found, drawn, atol=0.01)


def linear_world(key):
    weights = jax.random.normal(key, (ARMS, FEATURES))

    def step(bandit, state, key):
        seen, drawn, noisy = jax.random.split(key, 3)
        context = jax.random.normal(seen, (10, FEATURES))
        value = context @ weights.T
        arm = bandit.choose(state, context, drawn).arm
        got = jnp.take_along_axis(value, arm[:, None], 1)[:, 0]
        reward = got + jax.random.normal(noisy, got.shape)
        return bandit.update(state, context, arm, reward), jnp.stack(
            [(value.max(1) - got).sum(), (value.max(1) - value.mean(1)).sum()]
        )

    return step


def click_world(key):
    rates = jnp.array([0.1, 0.2, 0.3])

    def step(bandit, state, key):
        drawn, noisy = jax.random.split(key)
        arm = bandit.choose(state, jnp.zeros((10, 0)), drawn).arm
        reward = jax.random.bernoulli(noisy, rates[arm]).astype(jnp.float32)
        return bandit.update(state, jnp.zeros((10, 0)), arm, reward), jnp.stack(
            [(0.3 - rates[arm]).sum(), jnp.float32(1.0)]
        )

    return step


PRICES = (2.0, 2.5, 3.0, 3.5, 4.0)


def price_world(key):
    prices = jnp.array(PRICES)
    mean = (prices - 1) * (10 - 2 * prices)  # the best is 3: 8 a decision

    def step(bandit, state, key):
        drawn, noisy = jax.random.split(key)
        arm = bandit.choose(state, jnp.zeros((10, 0)), drawn).arm
        units = 10 - 2 * prices[arm] + jax.random.normal(noisy, arm.shape)
        return bandit.update(state, jnp.zeros((10, 0)), arm, (prices[arm] - 1) * units), (
            jnp.stack([(8 - mean[arm]).sum(), 10 * (8 - mean).mean()])
        )

    return step


def regret(world, bandit, steps=200, runs=8):
    """Summed after each step of ten decisions, the mean over runs: the bandit's, and chance's."""

    def run(key):
        step = partial(world(jax.random.fold_in(key, 1)), bandit)
        keys = jax.random.split(jax.random.fold_in(key, 2), steps)
        return jnp.cumsum(jax.lax.scan(step, bandit.init(), keys)[1], axis=0)

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), runs)).mean(0)).T


@pytest.mark.parametrize(
    "world, bandit",
    [
        (linear_world, decide.linucb(ARMS, FEATURES)),
        pytest.param(
            linear_world, decide.thompson(ARMS, FEATURES, noise=1.0), marks=pytest.mark.slow
        ),
        pytest.param(linear_world, decide.thompson(ARMS, FEATURES), marks=pytest.mark.slow),
        pytest.param(click_world, decide.beta_thompson(3), marks=pytest.mark.slow),
        pytest.param(price_world, decide.demand_curve(PRICES, 1.0), marks=pytest.mark.slow),
    ],
    ids=["linucb", "thompson", "thompson_noise_learned", "beta", "demand_curve"],
)
def test_regret_grows_less_than_linearly(world, bandit):
    """Four times as many decisions, less than 2.6 times the regret: a square root has 2."""
    found, chance = regret(world, bandit)
    assert chance[-1] / chance[49] == pytest.approx(4, rel=0.1)
    assert found[-1] / found[49] < 2.6
    assert found[-1] < chance[-1] / 3


@pytest.mark.slow
def test_epsilon_greedy_keeps_exploring_and_its_regret_is_linear():
    greedy = decide.explore(decide.linucb(ARMS, FEATURES, alpha=0), 0.1)
    found, chance = regret(linear_world, greedy)
    assert (found[-1] - found[99]) / (chance[-1] - chance[99]) == pytest.approx(0.1, rel=0.4)


def test_ties_are_broken_by_chance():
    bandit = decide.linucb(3, 2)
    p = bandit.probabilities(bandit.init(), np.ones((1, 2), np.float32))
    np.testing.assert_allclose(p, np.full((1, 3), 1 / 3), rtol=1e-6)


def test_equal_bandits_compile_once():
    assert decide.linucb(3, 2) is decide.linucb(3, 2)
    assert decide.demand_curve([2, 3], 1) is decide.demand_curve((2.0, 3.0), 1.0)
    assert decide.explore(decide.linucb(3, 2), 0.1) == decide.explore(decide.linucb(3, 2), 0.1)


X, ONE, HALF = np.ones((2, 2), np.float32), np.array([1, 0]), np.array([0.5, 0.5])


@pytest.mark.parametrize(
    "row, message",
    [
        ((X[:, :1], ONE, HALF), r"context must have shape \(B, 2\), got \(2, 1\)"),
        ((X, ONE[:1], HALF), r"arm must have shape \(2,\), as context has rows, got \(1,\)"),
        ((X, ONE + 2, HALF), r"arm must be integers in \[0, 3\), got 2 to 3"),
        ((X, ONE - 1, HALF), r"arm must be integers in \[0, 3\), got -1 to 0"),
        ((X, HALF, HALF), "arm must be integers, .*, got float.*, such as 0.5"),
        ((X, np.array(["1", "1"]), HALF), "arm must be integers, .*, got <U1, such as '1'"),
        ((X, ONE, HALF * np.nan), "reward must be finite where mask is not 0, got NaN"),
        (
            (X * np.inf, ONE, HALF),
            "context must be finite where mask is not 0, got NaN or infinity",
        ),
        ((X, ONE, HALF, np.ones(3)), r"mask must have shape \(2,\), .*, got \(3,\)"),
    ],
)
def test_bad_rows(row, message):
    bandit = decide.linucb(3, 2)
    with pytest.raises(ValueError, match=message):
        bandit.update(bandit.init(), *row)


def test_other_errors():
    clicks = decide.beta_thompson(2)
    with pytest.raises(ValueError, match=r"reward must be in \[0, 1\], got 0\.0 to 2\.0"):
        clicks.update(clicks.init(), X, ONE, np.array([0.0, 2.0]))
    for prices in ([3, 2], [2.0], [0.5, 2], [[2, 3]]):
        with pytest.raises(ValueError, match="prices must be two or more, rising, above 1"):
            decide.demand_curve(prices, 1.0)
    with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\], got 2"):
        decide.explore(clicks, 2)
    for make, message in (
        (lambda: decide.linucb(0, 2), "arms must be a whole number of at least 1, got 0"),
        (lambda: decide.beta_thompson(2.5), "arms must be a whole number of at least 1, got 2.5"),
        (lambda: decide.linucb(2, 2, alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: decide.linucb(2, 2, ridge=0), "ridge must be above 0, got 0"),
        (lambda: decide.thompson(2, 2, noise=0), "noise must be above 0, got 0"),
        (lambda: decide.demand_curve([1, 2], np.nan), "cost must be finite, got nan"),
        (lambda: decide.demand_curve([1, 2], 0.5, noise=-1), "noise must be above 0, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize("kind", ["linucb", "thompson", "beta_thompson", "explore"])
def test_offers_that_come_and_go(kind):
    """With some arms on offer a bandit is the bandit that has only these."""

    def made(arms):
        return {
            "linucb": lambda: decide.linucb(arms, FEATURES, alpha=0.7),
            "thompson": lambda: decide.thompson(arms, FEATURES, noise=1.0),
            "beta_thompson": lambda: decide.beta_thompson(arms),
            "explore": lambda: decide.explore(decide.linucb(arms, FEATURES, alpha=0.7), 0.2),
        }[kind]()

    context, arm, reward = rows(np.random.default_rng(5), 60)
    reward = (reward > 0).astype(np.float32)
    allowed, few = np.array([False, True, False, True]), np.isin(arm, [1, 3])
    whole, part = made(ARMS), made(2)
    state = whole.update(whole.init(), context, arm, reward)
    alone = part.update(part.init(), context[few], arm[few] // 2, reward[few])
    wanted = np.zeros((3, ARMS), np.float32)
    wanted[:, allowed] = part.probabilities(alone, context[:3])
    found = whole.probabilities(state, context[:3], allowed)
    np.testing.assert_allclose(found, wanted, atol=0.002)  # the nodes of the integral differ
    one = np.eye(ARMS, dtype=bool)[[2, 0, 1]]
    choice = whole.choose(state, context[:3], jax.random.key(0), one)
    assert choice.arm.tolist() == [2, 0, 1]
    np.testing.assert_allclose(choice.propensity, 1, rtol=1e-5)
    with pytest.raises(ValueError, match=r"context must be finite, got nan at \(0, 0\)"):
        whole.choose(state, context[:3] * np.nan, jax.random.key(0))
    for wrong in (np.zeros(ARMS, bool), np.ones(ARMS)):
        with pytest.raises(ValueError, match="allowed must be bool with at least 1 arm in each"):
            whole.choose(state, context[:3], jax.random.key(0), wrong)


def test_prices_that_are_not_on_offer_are_not_taken():
    bandit = decide.demand_curve([1.0, 2.0, 3.0], cost=0.5)
    nothing, allowed = np.zeros((4, 0), np.float32), np.array([True, False, True])
    p = np.asarray(bandit.probabilities(bandit.init(), nothing, allowed))
    assert (p[:, 1] == 0).all() and (p[:, [0, 2]] > 0).all()
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
