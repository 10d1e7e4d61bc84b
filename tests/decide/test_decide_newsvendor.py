"""Orders against SciPy, brute force and a textbook's figures."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from small import compilations

from jaxops.decide import (
    newsvendor_normal,
    newsvendor_poisson,
    newsvendor_quantiles,
    newsvendor_samples,
    s_s_discrete,
    s_s_poisson,
    total_quantiles,
)


def test_normal_reference():
    order = newsvendor_normal(120, 10, holding=2, shortage=18)
    assert abs(order.quantity - 132.8155) < 1e-4 and abs(order.cost - 35.0997) < 1e-4


@pytest.mark.parametrize("lead_time", [0, 4])
def test_normal_batch(lead_time):
    rng = np.random.default_rng(0)
    mean, sd, h, p = rng.uniform([[50], [1], [0.01], [0.01]], [[500], [50], [5], [900]], (4, 3000))
    order = newsvendor_normal(mean, sd, h, p, lead_time)
    total, spread = mean * (lead_time + 1), sd * np.sqrt(lead_time + 1)
    z = stats.norm.ppf(p / (h + p))
    np.testing.assert_allclose(order.quantity, total + spread * z, rtol=2e-5, atol=1e-3)
    np.testing.assert_allclose(order.cost, (h + p) * spread * stats.norm.pdf(z), rtol=2e-5)


def test_normal_gradient():
    def cost(sd):
        return newsvendor_normal(100.0, sd, 1.0, 9.0).cost

    assert np.isclose(jax.jit(jax.grad(cost))(7.0), 10 * stats.norm.pdf(stats.norm.ppf(0.9)))


@pytest.mark.parametrize("top", [30, 5000])
def test_poisson(top):
    rng = np.random.default_rng(top)
    mean, h, p = rng.uniform(0, top, 400), rng.uniform(0.1, 2, 400), rng.uniform(0.1, 200, 400)
    order = newsvendor_poisson(mean, h, p)
    wanted = stats.poisson.ppf(p / (h + p), mean)
    np.testing.assert_array_equal(order.quantity, wanted)
    d = np.arange(2 * top + 200)
    pmf = stats.poisson.pmf(d, mean[:, None])
    short = d - wanted[:, None]
    cost = (pmf * np.where(short > 0, p[:, None] * short, -h[:, None] * short)).sum(1)
    np.testing.assert_allclose(order.cost, cost, rtol=3e-4)


def test_poisson_without_demand():
    order = newsvendor_poisson([0.0, 3.0], 1, 4, lead_time=1)
    np.testing.assert_array_equal(order.quantity, [0, stats.poisson.ppf(0.8, 6)])
    assert order.cost[0] == 0


def test_samples_by_brute_force():
    rng = np.random.default_rng(0)
    samples, h, p = rng.poisson(4, (50, 12)), rng.uniform(0.5, 2, 50), rng.uniform(0.2, 9, 50)
    order = newsvendor_samples(samples, h, p)
    levels = np.arange(20)[:, None, None]
    short = samples - levels
    cost = np.where(short > 0, p[:, None] * short, -h[:, None] * short).mean(-1)
    np.testing.assert_allclose(order.cost, cost.min(0), rtol=1e-5)
    np.testing.assert_array_equal(order.quantity, cost.argmin(0))


def quantile_function(u, t, q):
    """The documented one, one value at a time."""
    q = np.maximum(q, 0)
    if u < t[0]:
        return max(q[0] + (q[1] - q[0]) / np.log(t[1] / t[0]) * np.log(u / t[0]), 0)
    if u > t[-1]:
        scale = (q[-1] - q[-2]) / np.log((1 - t[-2]) / (1 - t[-1]))
        return q[-1] + scale * np.log((1 - t[-1]) / (1 - u))
    return np.interp(u, t, q)


@pytest.mark.parametrize("shortage", [0.05, 0.2, 1, 5.5, 60])
@pytest.mark.parametrize("q", [[90, 120, 140, 160], [0, 0, 2, 9], [1, 3, 3, 3], [-2, 1, 4, 6]])
def test_quantiles_by_quadrature(shortage, q):
    t = np.array([0.1, 0.4, 0.8, 0.95])
    order = newsvendor_quantiles(t, [q], 1, shortage)
    best = shortage / (1 + shortage)
    assert np.isclose(order.quantity[0], quantile_function(best, t, q), rtol=1e-4, atol=1e-4)

    def loss(u):
        return np.where(u < best, -1, shortage) * (
            quantile_function(u, t, q) - quantile_function(best, t, q)
        )

    edges = np.unique([1e-12, 1e-6, 1e-3, *t, best, 0.999, 1 - 1e-6, 1 - 1e-12])
    parts = [integrate.quad(loss, a, b)[0] for a, b in itertools.pairwise(edges)]
    assert np.isclose(order.cost[0], sum(parts), rtol=1e-3, atol=2e-3)


def test_quantiles_of_a_normal():
    t = np.arange(1, 100) / 100
    q = stats.norm.ppf(t, 120, 10)[None].repeat(3, 0)
    order = newsvendor_quantiles(t, q, 2, [18, 2, 100])
    exact = newsvendor_normal(120, 10, 2, [18, 2, 100])
    np.testing.assert_allclose(order.quantity, exact.quantity, atol=0.03)
    np.testing.assert_allclose(order.cost, exact.cost, rtol=0.015)  # the tail is heavier


def test_total_quantiles():
    t, rng = np.array([0.05, 0.5, 0.7, 0.9]), np.random.default_rng(0)
    sd = rng.uniform(1, 3, (6, 4))
    q = 20 + sd[..., None] * stats.norm.ppf(t)
    for c in (0, 0.3, 1):
        spread = np.sqrt((1 - c) * (sd**2).sum(1) + c * sd.sum(1) ** 2)
        wanted = 80 + spread[:, None] * stats.norm.ppf(t)
        np.testing.assert_allclose(total_quantiles(t, q, c), wanted, rtol=1e-5)


def test_s_s_textbook():
    """Snyder and Shen, example 4.7 and problem 4.31; figures by stockpyl 1.0.2."""
    best = s_s_poisson([6.0, 4.0], [1, 40], [4, 125], [5, 150])
    np.testing.assert_array_equal(best.reorder, [4, 2])
    np.testing.assert_array_equal(best.up_to, [10, 7])
    np.testing.assert_allclose(best.cost, [8.034111561471642, 223.57564], rtol=1e-5)


def chain_cost(s, top, p, total, h, b, k):
    """Cost a period of (s, S), from the stationary law of the position after ordering."""
    states = np.arange(s + 1, top + 1)
    move = np.zeros((len(states), len(states)))
    again = np.zeros(len(states))
    for i, y in enumerate(states):
        for d, chance in enumerate(p):
            left = y - d
            again[i] += chance * (left <= s)
            move[i, -1 if left <= s else left - s - 1] += chance
    law = np.linalg.matrix_power(move, 4096)[0]
    short = np.arange(len(total)) - states[:, None]
    g = (total * np.where(short > 0, b * short, -h * short)).sum(1)
    return law @ (g + k * again)


@pytest.mark.parametrize("lead_time", [0, 2])
def test_s_s_by_brute_force(lead_time):
    rng = np.random.default_rng(lead_time)
    p = rng.dirichlet(np.full(5, 0.7), 3)
    h, b, k = [1, 2, 1], [9, 5, 3], [10, 0, 4]
    best = s_s_discrete(p, h, b, k, lead_time)
    for i in range(3):
        total = p[i]
        for _ in range(lead_time):
            total = np.convolve(total, p[i])
        args = p[i], total, h[i], b[i], k[i]
        costs = {(s, t): chain_cost(s, t, *args) for s in range(-3, 13) for t in range(s + 1, 18)}
        assert np.isclose(best.cost[i], min(costs.values()), rtol=1e-5)
        found = costs[int(best.reorder[i]), int(best.up_to[i])]
        assert np.isclose(found, min(costs.values()), rtol=1e-6)


def test_s_s_grows_its_window():
    """The best levels lie far outside of the first window where shortage is cheap."""
    best = s_s_poisson(5.0, 1.0, 0.02, 3.0)
    p = stats.poisson.pmf(np.arange(40), 5)
    args = p, p, 1.0, 0.02, 3.0
    around = [
        chain_cost(int(best.reorder[0]) + i, int(best.up_to[0]) + j, *args)
        for i in (-1, 0, 1)
        for j in (-1, 0, 1)
    ]
    assert around[4] == min(around) and np.isclose(around[4], best.cost[0], rtol=1e-4)


@pytest.mark.parametrize("mean", [1500.0, pytest.param(6000.0, marks=pytest.mark.slow)])
def test_s_s_of_large_means(mean):
    """The cost of the levels found, by the renewal equation in float64."""
    h, b, k, lead_time = 1.0, 9.0, 60.0, 1
    best = s_s_poisson([mean], h, b, k, lead_time)
    low, high = int(best.reorder[0]), int(best.up_to[0])
    p = stats.poisson.pmf(np.arange(high - low), mean)
    m = np.zeros(high - low)
    for d in range(high - low):
        m[d] = (1.0 if d == 0 else (p[1 : d + 1] * m[d - 1 :: -1]).sum()) / (1 - p[0])
    total = stats.poisson(mean * (lead_time + 1))
    y = high - np.arange(high - low)
    demand = np.arange(int(4 * mean))
    short = demand - y[:, None]
    g = (total.pmf(demand) * np.where(short > 0, b * short, -h * short)).sum(1)
    assert np.isclose(best.cost[0], (k + m @ g) / m.sum(), rtol=1e-4)
    # nothing is left over from order to order where S - s is less than demand: a newsvendor
    level = total.ppf(b / (h + b))
    assert abs(high - level) <= 1 and high - low < mean


def test_problems_of_like_size_share_programs():
    def solve(top):
        newsvendor_poisson([3.0, top], 1, 4)
        s_s_poisson([3.0, top], 1, 4, 5)

    solve(50.0)
    with compilations() as names:
        solve(51.0)
        solve(55.5)
    assert names == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: newsvendor_normal(5, 1, -1, 2), "^holding must be above 0, got -1$"),
        (
            lambda: newsvendor_normal(5, [1, -1], 1, 2),
            r"sd must be at least 0, got -1 at \(1,\) \(1 such values\)",
        ),
        (lambda: newsvendor_poisson([3, -2.0], 1, 2), "mean must be at least 0, got -2"),
        (lambda: newsvendor_poisson(3, 1, np.nan), "shortage must be above 0, got nan"),
        (
            lambda: newsvendor_poisson(3, 1, 2, 1.5),
            "lead_time must be a whole number of periods, at least 0, got 1.5",
        ),
        (
            lambda: jax.jit(lambda m: newsvendor_poisson(m, 1, 2))(3.0),
            "mean must be known, got a traced value",
        ),
        (lambda: newsvendor_samples([3, -1], 1, 2), "samples must be at least 0, got -1"),
        (
            lambda: newsvendor_samples(np.zeros((2, 0)), 1, 2),
            r"samples must have shape .*, got \(2, 0\)",
        ),
        (
            lambda: newsvendor_quantiles([0.5, 0.1], [1, 2], 1, 2),
            r"levels must be two or more that rise in \(0, 1\), got \[0.5, 0.1\]",
        ),
        (
            lambda: newsvendor_quantiles([0.1, 0.5], [1, 2, 3], 1, 2),
            r"quantiles must have shape \(..., 2\), one for each level, got \(3,\)",
        ),
        (lambda: newsvendor_quantiles([0.1, 0.5], [[1, 2], [3, 2]], 1, 2), r"after \(1, 0\)"),
        (
            lambda: newsvendor_quantiles([0.1, 0.5], [1, np.inf], 1, 2),
            "quantiles must be finite, got inf",
        ),
        (lambda: total_quantiles([0.1, 0.2], [[1, 2]]), "levels must lie around 0.5"),
        (
            lambda: total_quantiles([0.1, 0.7], [[1, 2]], 2),
            r"^correlation must be in \[0, 1\], got 2",
        ),
        (lambda: s_s_poisson(-1, 1, 2, 3), "mean must be at least 0, got -1"),
        (
            lambda: s_s_poisson([3, 5], 1, [2, 1e-7], 3),
            r"levels to compare, got .* for item 1 \(1 such items\)",
        ),
        (
            lambda: jax.jit(lambda k: s_s_poisson([3], 1, 2, k))(3.0),
            "fixed must be known, got a traced value",
        ),
        (
            lambda: jax.jit(lambda p: s_s_discrete(p, 1, 2, 3))(np.ones((1, 1))),
            "probabilities must be known",
        ),
        (
            lambda: jax.jit(lambda h: newsvendor_poisson(3, h, 2))(1.0),
            "holding must be known, got a traced value",
        ),
        (
            lambda: s_s_poisson([3], 1, 2, [3, 4]),
            r"fixed must have shape \(\) or \(1,\), got \(2,\)",
        ),
        (lambda: s_s_discrete([[0.5, 0.2]], 1, 2, 3), "a sum of 1 in each row"),
        (
            lambda: newsvendor_normal([1, 2, 3], [1, 2], 1, 9),
            r"shapes must be equal, or \(\), got those of mean \(3,\), sd \(2,\), holding",
        ),
        (
            lambda: s_s_discrete([[1.5, -0.5]], 1, 2, 3),
            "probabilities must be at least 0, got -0.5",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_thousands_in_one_program():
    order = newsvendor_quantiles([0.1, 0.5, 0.9], jnp.ones((10_000, 3)), 1, 3)
    assert order.quantity.shape == (10_000,) and (order.quantity == 1).all()


def test_an_item_without_demand_does_not_stop_the_others():
    certain = newsvendor_normal([10.0, 5.0, 0.0], [2.0, 0.0, 0.0], 1.0, 9.0, lead_time=1)
    one = newsvendor_normal(10.0, 2.0, 1.0, 9.0, lead_time=1)
    np.testing.assert_allclose(certain.quantity, [one.quantity, 10, 0])
    np.testing.assert_allclose(certain.cost, [one.cost, 0, 0])
    for both, alone in (
        (s_s_poisson([0.0, 5.0], 1.0, 9.0, 10.0), s_s_poisson(5.0, 1.0, 9.0, 10.0)),
        (
            s_s_discrete([[1.0, 0.0], [0.5, 0.5]], 1.0, 9.0, 10.0, 1),
            s_s_discrete([[0.5, 0.5]], 1.0, 9.0, 10.0, 1),
        ),
    ):
        for found, wanted, none in zip(both, alone, (-1, 0, 0), strict=True):
            assert found.tolist() == [none, wanted[0]]
