"""The simulator step by step against plain Python; policies that learn; what hindsight costs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import jaxops as jo
from jaxops.decide import (
    Costs,
    LevelNetwork,
    base_stock,
    hindsight,
    newsvendor_poisson,
    order_up_to,
    ordering,
    quantile_rule,
    reorder,
    reorder_each,
    s_s_poisson,
    simulate,
)
from jaxops.decide.inference import ordered

COSTS = Costs(holding=1.0, shortage=5.0, fixed=3.0, price=2.0)


FAST = ((0, 3.0, False), (1, 0.0, True), (1, 3.0, False))  # lead time, fixed cost, back-orders


def given_orders(params, seen):
    """The orders themselves are the first feature."""
    return seen.features[:, 0]


def by_hand(order_of, demand, costs, lead_time, back_orders, stock):
    """One item, one period at a time, with every unit of money written out."""
    queue, waiting, rows = [0.0] * lead_time, 0.0, []
    for t, wanted in enumerate(demand):
        if lead_time:
            stock += queue.pop(0)
        served = min(stock, waiting)
        stock, waiting = stock - served, waiting - served
        order = max(order_of(t, stock - waiting + sum(queue)), 0)
        queue.append(order)
        if not lead_time:
            stock += queue.pop(0)
            more = min(stock, waiting)
            stock, waiting, served = stock - more, waiting - more, served + more
        sold = min(stock, wanted)
        stock, unmet = stock - sold, waiting + wanted - sold
        if back_orders:
            waiting = unmet
        rows.append(
            (
                stock - waiting,
                order,
                sold + served,
                unmet,
                costs.holding * stock,
                costs.shortage * unmet,
                costs.fixed * (order > 0),
                costs.price * (sold + served),
            )
        )
    return np.array(rows).T


@pytest.mark.parametrize("back_orders", [False, True])
@pytest.mark.parametrize("lead_time", [0, 1, 3])
def test_step_by_step(lead_time, back_orders):
    rng = np.random.default_rng(0)
    demand, level = rng.poisson(3, (3, 25)), rng.integers(2, 14, (3, 25))
    costs = Costs(rng.uniform(1, 2, 3), rng.uniform(3, 9, 3), 4.0, rng.uniform(0, 5, 3))
    out = simulate(
        order_up_to,
        None,
        demand,
        level[..., None],
        costs=costs,
        lead_time=lead_time,
        back_orders=back_orders,
        stock=[0, 4, 9],
    )
    for i in range(3):
        own = Costs(*(np.broadcast_to(c, 3)[i] for c in costs))

        def rule(t, position, i=i):
            return level[i, t] - position

        wanted = by_hand(rule, demand[i], own, lead_time, back_orders, [0, 4, 9][i])
        found = np.array([field[i] for field in out])
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(out.cost[i], wanted[4:7].sum(0) - wanted[7], rtol=1e-5)


def test_no_unit_is_made_or_lost():
    demand = np.random.default_rng(1).poisson(4, (50, 40)).astype(np.float32)
    kept = {"costs": COSTS, "lead_time": 2, "stock": 3.0}
    for back_orders in (False, True):
        out = simulate(base_stock, 15.0, demand, back_orders=back_orders, **kept)
        arrived = out.orders[:, :-2].sum(1)
        on_hand = jnp.maximum(out.stock[:, -1], 0)
        np.testing.assert_allclose(3 + arrived, out.sales.sum(1) + on_hand, rtol=1e-6)
        left = out.unmet[:, -1] if back_orders else out.unmet.sum(1)
        np.testing.assert_allclose(out.sales.sum(1) + left, demand.sum(1), rtol=1e-6)


def test_what_a_policy_sees():
    seen = []

    def policy(params, observation):
        seen.append(tuple(np.shape(x) for x in observation))
        return jnp.ones_like(observation.stock) * params

    with jax.disable_jit():
        simulate(policy, 2.0, np.ones((4, 3)), np.zeros((4, 3, 5)), costs=COSTS, lead_time=3)
    assert seen == [((4,), (4, 2), (4,), (4, 5))] * 3


@pytest.mark.parametrize("back_orders", [False, True])
def test_gradient_is_that_of_differences(back_orders):
    """Of continuous demand, so that a small step seldom crosses a kink."""
    rng = np.random.default_rng(2)
    demand = rng.gamma(3, 2, (400, 30)).astype(np.float32)
    features = rng.random((400, 30, 1)).astype(np.float32)
    costs = Costs(holding=1.0, shortage=4.0, price=3.0)

    def policy(p, seen):
        level = p[0] + p[1] * seen.features[:, 0]
        return level - p[2] * seen.pipeline[:, 0] - seen.position

    def cost(params):
        return simulate(
            policy, params, demand, features, costs=costs, lead_time=2, back_orders=back_orders
        ).cost.mean()

    params, step = jnp.array([14.0, 3.0, 0.2]), 0.02
    value = jax.jit(cost)
    slopes = [(value(params + e) - value(params - e)) / (2 * step) for e in step * jnp.eye(3)]
    slope = jax.jit(jax.grad(cost))(params)
    np.testing.assert_allclose(slope, slopes, rtol=0.02, atol=0.01)


def test_fixed_cost_is_exact_and_its_gradient_soft():
    orders = jnp.array([0.0, 0.5, 4.0])
    np.testing.assert_allclose(ordered(orders, 2.0), [0, 1, 1], atol=1e-6)
    slopes = jax.vmap(jax.grad(lambda q: ordered(q, 2.0)))(orders)
    np.testing.assert_allclose(slopes, np.exp(-orders / 2) / 2, rtol=1e-5)


def test_gradient_finds_the_base_stock():
    """With back-orders the newsvendor of lead_time + 1 periods is optimal."""
    demand = np.random.default_rng(3).poisson(5, (300, 60)) + 0.0
    costs, best = Costs(1.0, 9.0), newsvendor_poisson(5, 1, 9, lead_time=2)

    def cost(level):
        return (
            simulate(
                base_stock, level, demand, costs=costs, lead_time=2, back_orders=True, stock=15
            )
            .cost[:, 10:]
            .mean()
        )

    optimizer = optax.adam(optax.cosine_decay_schedule(0.5, 100))

    def step(state, _):
        level, moments = state
        updates, moments = optimizer.update(jax.grad(cost)(level), moments)
        return (level + updates, moments), None

    start = jnp.array(12.0)
    run = jax.jit(lambda s: jax.lax.scan(step, s, None, length=100)[0])
    level, _ = run((start, optimizer.init(start)))
    assert abs(level - best.quantity) <= 1 and abs(cost(level) / best.cost - 1) < 0.02


def test_reorder_costs_what_theory_says():
    """Zheng and Federgruen's exact cost against a long simulation, and worse levels cost more."""
    best = s_s_poisson(6.0, 1, 4, 5, lead_time=1)
    demand = np.random.default_rng(4).poisson(6, (200, 420))

    def mean(low, high):
        return (
            simulate(
                reorder,
                (low, high),
                demand,
                costs=Costs(1, 4, 5),
                lead_time=1,
                back_orders=True,
                stock=12,
            )
            .cost[:, 20:]
            .mean()
        )

    low, high = float(best.reorder[0]), float(best.up_to[0])
    assert abs(mean(low, high) / best.cost[0] - 1) < 0.01
    assert mean(low, high) < min(mean(low - 3, high), mean(low + 3, high), mean(low, high + 4))


def test_reorder_learns_when():
    """The straight-through gradient points back to the best reorder level from either side."""
    demand = np.random.default_rng(5).poisson(6, (200, 100))

    def cost(low):
        return simulate(
            reorder, (low, 10.0, 2.0), demand, costs=Costs(1, 4, 5), back_orders=True, stock=10
        ).cost.mean()

    slope = jax.jit(jax.grad(cost))
    assert slope(-3.0) < 0 < slope(9.5)
    exact = simulate(reorder, (4.0, 10.0), demand, costs=Costs(1, 4, 5), back_orders=True, stock=10)
    assert np.isclose(cost(4.0), exact.cost.mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("lead_time", "fixed", "back_orders"),
    [
        *FAST,
        pytest.param(0, 0.0, False, marks=pytest.mark.slow),  # so every two of three have met
        pytest.param(0, 3.0, True, marks=pytest.mark.slow),
    ],
)
def test_hindsight_by_trying_all_orders(lead_time, fixed, back_orders):
    rng = np.random.default_rng(6)
    all_orders = np.array(list(itertools.product(range(8), repeat=4)), np.float32)
    for _ in range(3):
        demand = rng.integers(0, 4, 4)
        costs = Costs(1.0, float(rng.integers(1, 5)), fixed, float(rng.integers(0, 2)))
        kept = {"lead_time": lead_time, "back_orders": back_orders, "stock": rng.integers(0, 4)}
        rows = np.broadcast_to(demand, all_orders.shape)
        tried = simulate(given_orders, None, rows, all_orders[..., None], costs=costs, **kept)
        least = hindsight(demand[None], costs=costs, **kept)[0]
        assert np.isclose(least, tried.cost.sum(1).min(), atol=1e-4)


def test_hindsight_is_free_without_fixed_costs():
    demand = np.random.default_rng(7).poisson(4, (20, 30))
    free = hindsight(demand, costs=Costs(1, 9), lead_time=2, stock=0)
    np.testing.assert_allclose(free, 9 * demand[:, :2].sum(1), rtol=1e-6)


def test_quantile_rule_is_the_newsvendor_of_the_sum():
    levels = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
    q = np.random.default_rng(8).gamma(3, 2, (2, 7, 3, 5)).cumsum(-1)
    found = quantile_rule(levels, q, 1.0, 3.0, correlation=1)
    np.testing.assert_allclose(found, q.sum(2)[..., 3], rtol=1e-5)  # periods rise together


def items(count, periods, seed):
    """Demand whose mean a feature tells: twice as much where there is a promotion."""
    rng = np.random.default_rng(seed)
    usual, promotion = rng.uniform(4, 12, count), rng.random((count, periods)) < 0.3
    demand = rng.poisson(usual[:, None] * np.where(promotion, 2, 1))
    return {
        "demand": demand.astype(np.float32),
        "features": promotion[..., None].astype(np.float32),
        "scale": usual.astype(np.float32),
        "stock": usual.astype(np.float32),
        **Costs(1, 9).columns(count),
    }, newsvendor_poisson(usual[:, None] * np.where(promotion, 2, 1), 1, 9).cost.mean()


def test_learned_policy_is_nearly_optimal():
    """Without a lead time and with back-orders, the newsvendor who knows the mean is the best."""
    task = ordering(LevelNetwork((16,)), back_orders=True)
    train, _ = items(400, 40, 0)
    state = jo.fit(
        task, train, optimizer=optax.adam(0.01), batch_size=100, epochs=60, progress=False
    )
    test, best = items(400, 40, 1)
    cost = jo.evaluate(task, state, test)["loss"]
    assert best * 0.97 < cost < best * 1.05
    levels = jax.jit(task.predict)(state.params, {}, test)
    assert levels.shape == (400, 40) and (levels > 0).all()


def steady(count, seed, size=1.0, fixed=60.0):
    """Items of Poisson demand, for whom one order in four periods is right; in units of `size`."""
    rng = np.random.default_rng(seed)
    usual = rng.uniform(4, 12, count)
    log = np.broadcast_to(np.log(usual)[:, None, None], (count, 60, 1))
    return {
        "demand": size * rng.poisson(usual[:, None], (count, 60)).astype(np.float32),
        "features": log.astype(np.float32),
        "scale": size * usual.astype(np.float32),
        "stock": 2 * size * usual.astype(np.float32),
        **Costs(1, 9, fixed * size).columns(count),
    }, usual


@pytest.mark.slow
@pytest.mark.optimized
def test_learned_reorder_level_is_nearly_that_of_theory():
    """Of two seeds the one with the smaller training loss: one may end in a local minimum."""
    task = ordering(LevelNetwork((16,), reorder=True), back_orders=True)
    train, _ = steady(300, 0)
    rate = optax.cosine_decay_schedule(5e-3, 750)
    optimizer = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(rate))
    settings = {"optimizer": optimizer, "batch_size": 100, "epochs": 250, "progress": False}
    states = [jo.fit(task, train, seed=seed, **settings) for seed in (0, 1)]
    state = min(states, key=lambda state: jo.evaluate(task, state, train)["loss"])
    test, usual = steady(300, 1)

    def cost(policy, params):
        kept = {"costs": Costs(1, 9, 60.0), "back_orders": True, "stock": test["stock"]}
        return simulate(policy, params, test["demand"], **kept).cost.mean()

    best = s_s_poisson(usual, 1, 9, 60.0)
    exact = cost(reorder, (best.reorder, best.up_to))
    every = cost(base_stock, newsvendor_poisson(usual, 1, 9).quantity)
    found = jo.evaluate(task, state, test)["loss"]
    assert 0.98 * exact < found < 1.06 * exact and found < 0.5 * every
    levels = jax.jit(task.predict)(state.params, {}, test)
    played = simulate(
        reorder_each,
        1.0,
        test["demand"],
        levels,
        costs=Costs(1, 9, 60.0),
        back_orders=True,
        stock=test["stock"],
    )
    assert np.isclose(played.cost.mean(), found, rtol=1e-4)


@pytest.mark.parametrize(
    ("reorder", "back_orders"),
    [
        (False, False),
        pytest.param(False, True, marks=pytest.mark.slow),
        pytest.param(True, False, marks=pytest.mark.slow),
        (True, True),
    ],
)
def test_units_do_not_matter(reorder, back_orders):
    """Of items that sell thousands the fixed cost pulls as much: softness is in their units."""
    task = ordering(LevelNetwork((), reorder), lead_time=1, back_orders=back_orders)
    (rows, _), (large, _) = steady(5, 0), steady(5, 0, size=1024.0)
    (free, _), key = steady(5, 0, fixed=0.0), jax.random.key(0)
    params, extra = jax.jit(task.init)(key, rows)
    slope = jax.jit(jax.grad(lambda p, b: task.loss(p, extra, b, key, True)[0]))
    one, thousand, without = (ravel_pytree(slope(params, b))[0] for b in (rows, large, free))
    np.testing.assert_allclose(thousand, 1024 * one, rtol=1e-3, atol=1)
    assert np.abs(one - without).max() > 0.1


@pytest.mark.parametrize("reorder", [False, True])
def test_padding_changes_nothing(reorder):
    task, (rows, _) = ordering(LevelNetwork((4,), reorder), lead_time=1), items(6, 5, 0)
    params, extra = jax.jit(task.init)(jax.random.key(0), rows)
    key = jax.random.key(1)
    cost = jax.jit(jax.value_and_grad(lambda p, b: task.loss(p, extra, b, key, True), has_aux=True))
    (loss, out), slopes = cost(params, rows)
    for size in (3, 0):
        padded = {name: np.concatenate([rows[name], rows[name][:2] * size]) for name in rows}
        padded["mask"] = np.array([1.0] * 6 + [0.0] * 2, np.float32)
        (again, more), others = cost(params, padded)
        assert np.isclose(loss, again) and out.weight == more.weight == 6
        flat = (ravel_pytree(x)[0] for x in (slopes, others))
        np.testing.assert_allclose(*flat, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"demand": np.ones(3)}, r"demand must have shape \(items, periods\), got \(3,\)"),
        (
            {"demand": -np.ones((2, 3))},
            r"demand must be at least 0, got -1 at \(0, 0\) \(6 such values\)",
        ),
        ({"demand": np.full((2, 3), np.nan)}, "demand must be at least 0, got nan"),
        (
            {"features": np.ones((2, 4, 1))},
            r"features must have shape \(2, 3, F\), as demand, got \(2, 4, 1\)",
        ),
        (
            {"features": np.full((2, 3, 1), np.nan)},
            r"features must be finite, got nan at \(0, 0, 0\)",
        ),
        ({"costs": Costs(0, 1)}, "holding must be above 0, got 0"),
        ({"costs": Costs(1, 1, -2)}, "fixed must be at least 0, got -2"),
        ({"costs": Costs(1, np.ones(3))}, r"shortage must have shape \(\) or \(2,\), got \(3,\)"),
        ({"lead_time": -1}, "lead_time must be a whole number of periods, at least 0, got -1"),
        ({"stock": -1.0}, "stock must be at least 0, got -1"),
        ({"softness": 0}, "softness must be above 0, got 0"),
    ],
)
def test_errors(change, message):
    given = {"demand": np.ones((2, 3)), "costs": COSTS} | change
    with pytest.raises(ValueError, match=message):
        simulate(base_stock, 4.0, given.pop("demand"), **given)


def test_a_policy_of_another_shape():
    with pytest.raises(ValueError, match=r"policy must return shape \(2,\), .*, got \(3,\)"):
        simulate(lambda *_: np.zeros(3), None, np.ones((2, 3)), costs=COSTS)


def test_thousands_of_items_in_one_program():
    demand = np.ones((20_000, 5), np.float32)
    out = jax.jit(lambda d: simulate(base_stock, 2.0, d, costs=COSTS, stock=2).cost)(demand)
    np.testing.assert_allclose(out, [[-1, 2, 2, 2, 2]] * 20_000)


def test_a_system_in_progress_goes_on():
    """The second half of a simulation, from the stock and the orders on the way at its start."""
    demand = np.random.default_rng(0).poisson(5, (3, 12)).astype(np.float32)
    settings = {"costs": Costs(holding=1, shortage=4), "lead_time": 2, "back_orders": True}
    whole = simulate(base_stock, 14.0, demand, **settings, stock=4.0)
    middle = {"stock": whole.stock[:, 5], "pipeline": whole.orders[:, 4:6].tolist()}
    assert (np.asarray(middle["stock"]) < 0).any()  # customers wait
    rest = simulate(base_stock, 14.0, demand[:, 6:], **settings, **middle)
    for name in ("stock", "orders", "sales", "unmet", "cost"):
        np.testing.assert_allclose(getattr(rest, name), getattr(whole, name)[:, 6:], rtol=1e-5)
    with pytest.raises(ValueError, match=r"pipeline must have shape \(3, 2\), .*, got \(3, 1\)"):
        simulate(base_stock, 14.0, demand, **settings, pipeline=np.zeros((3, 1)))
    with pytest.raises(ValueError, match="stock must be at least 0, got -1"):
        simulate(base_stock, 14.0, demand, costs=settings["costs"], stock=-1)
