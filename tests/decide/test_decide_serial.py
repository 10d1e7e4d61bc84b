"""A chain of stocks against goods that are moved one by one, and against quadrature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats
from small import compilations

from jaxops.decide import fit_serial, newsvendor_normal, optimal_serial, simulate_serial

THREE = {"holding": [4, 3, 1], "lead_times": [1, 1, 2], "penalty": 40}


def moved(levels, demand, holding, lead_times, penalty):
    """Cost of each period, of stocks on hand, shipments on their way and orders not yet filled."""
    n = len(levels)
    local = np.cumsum(holding[::-1])[::-1]  # of a unit on hand in, or on its way out of, stage i
    hand = np.diff([0, *levels]).astype(float)
    ship = [[0.0] * lead for lead in lead_times]  # on the way to stage i
    owed = np.zeros(n)  # stage i owes to the stage below, or the customers
    costs = []
    for d in demand:
        order = d  # what each stage orders is what was ordered from it
        sent = np.zeros(n)
        arrived = [pipe.pop(0) for pipe in ship]
        hand += arrived
        for i in range(n):
            owed[i] += order
            sent[i] = min(hand[i], owed[i])
            hand[i] -= sent[i]
            owed[i] -= sent[i]
        for i in range(n):
            ship[i].append(sent[i + 1] if i + 1 < n else order)
        way = [sum(ship[i - 1]) if i else 0 for i in range(n)]
        costs.append(sum(local * (hand + way)) + penalty * owed[0])
    return np.array(costs)


@pytest.mark.parametrize("levels", [[12.8, 23.5, 46.3], [11, 21, 41], [15, 23, 40], [9, 22, 50]])
def test_against_goods_that_move(levels):
    demand = np.random.default_rng(0).normal(10, 2, (2, 80))
    out = simulate_serial(levels, demand, **THREE)
    for path, cost in zip(demand, out.cost, strict=True):
        wanted = moved(levels, path, **THREE)
        np.testing.assert_allclose(cost, wanted[4:], rtol=1e-4)


def test_gradient_is_that_of_differences():
    demand = np.random.default_rng(1).normal(10, 2, (50, 104))
    cost = jax.jit(lambda s: simulate_serial(s, demand, **THREE).cost.mean())
    levels, step = jnp.array([12.5, 23.0, 46.0]), 0.02
    slopes = [(cost(levels + e) - cost(levels - e)) / (2 * step) for e in step * jnp.eye(3)]
    np.testing.assert_allclose(jax.jit(jax.grad(cost))(levels), slopes, atol=0.05)


def test_one_stage_is_a_newsvendor():
    """Echelon costs of one stage are local; demand of 3 periods is that of a lead time of 2."""
    best = optimal_serial(10, 2, holding=[2], lead_times=[3], penalty=18)
    order = newsvendor_normal(10, 2, 2, 18, lead_time=2)
    assert np.isclose(best.levels[0], order.quantity, atol=1e-3)
    assert np.isclose(best.cost, order.cost, rtol=1e-5)


def test_two_stages_by_quadrature():
    h, leads, p, mean, sd = [3, 1], [2, 3], 30, 8, 3
    best = optimal_serial(mean, sd, holding=h, lead_times=leads, penalty=p)

    def below(y):
        demand = stats.norm(2 * mean, sd * np.sqrt(2))
        short = demand.std() * demand.pdf(y) * demand.std() - (y - demand.mean()) * demand.sf(y)
        return h[0] * (y - demand.mean()) + (p + sum(h)) * short

    first = optimize.minimize_scalar(below, (10, 20), tol=1e-10).x
    demand = stats.norm(3 * mean, sd * np.sqrt(3))

    def whole(y):
        def part(d):
            return (h[1] * (y - d) + below(min(first, y - d))) * demand.pdf(d)

        edges = demand.mean() + demand.std() * np.array([-8, -2, 0, 2, 8])
        edges = np.sort([*edges, np.clip(y - first, edges[0], edges[-1])])
        return sum(integrate.quad(part, a, b)[0] for a, b in itertools.pairwise(edges))

    second = optimize.minimize_scalar(whole, (35, 45), tol=1e-6)
    np.testing.assert_allclose(best.levels, [first, second.x], atol=0.01)
    assert np.isclose(best.cost, second.fun, rtol=1e-5)


def test_published_optimum():
    """Snyder and Shen, example 6.1: levels 6.49, 12.02, 22.71 (local 6.49, 5.53, 10.69)."""
    best = optimal_serial(5, 1, holding=[3, 2, 2], lead_times=[1, 1, 2], penalty=37.12)
    np.testing.assert_allclose(best.levels, [6.49, 12.02, 22.71], atol=0.01)
    assert abs(best.cost - 47.65) < 0.02


def test_three_stages_by_gradient():
    """86.0253 is of a coarser grid: stockpyl 1.0.2 gives 86.042 of 600 points, 86.0161 of 1,000."""
    best = optimal_serial(10, 2, **THREE)
    assert abs(best.cost / 86.0253 - 1) < 2e-4
    rng = np.random.default_rng(0)
    levels = fit_serial(rng.normal(10, 2, (16, 1004)), **THREE, steps=300)
    np.testing.assert_allclose(levels, best.levels, atol=0.5)
    other = rng.normal(10, 2, (256, 1004))
    cost = simulate_serial(levels, other, **THREE).cost.mean()
    assert abs(cost / 86.0253 - 1) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"holding": [4, 0, 1]}, r"holding must be above 0, got 0 at \(1,\)"),
        ({"penalty": -1}, "penalty must be above 0, got -1"),
        ({"lead_times": [1, 2]}, "holding and lead_times must have one number for each stage"),
        ({"lead_times": [1, 0, 2]}, r"lead_times must be whole .*, got \(1, 0, 2\)"),
        ({"lead_times": [1, 1.5, 2]}, "lead_times must be whole"),
        ({"levels": [1, 2]}, r"levels must have shape \(3,\), as holding, got \(2,\)"),
        (
            {"demand": np.ones((2, 4))},
            r"demand must have shape \(paths, periods\), more than 4 .*, got \(2, 4\)",
        ),
        ({"demand": np.full((2, 9), np.nan)}, "demand must be finite, got nan"),
    ],
)
def test_errors(change, message):
    given = {"levels": [1, 2, 3], "demand": np.ones((2, 9))} | THREE | change
    with pytest.raises(ValueError, match=message):
        simulate_serial(given.pop("levels"), given.pop("demand"), **given)


def test_other_demand_and_costs_share_a_program():
    def fit(seed, penalty):
        demand = np.random.default_rng(seed).normal(10, 2, (4, 60))
        return fit_serial(demand, **THREE | {"penalty": penalty}, steps=3)

    fit(0, 40.0)
    with compilations() as names:
        fit(1, 30.0)
    assert names == []
