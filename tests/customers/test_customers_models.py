"""Closed forms held to independent likelihoods, mpmath, published parameters and simulations."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.special import betaln, digamma, gammaln, hyp2f1

from jaxops import customers
from jaxops.customers.inference import CustomerBase
from jaxops.customers.models import numeric
from jaxops.customers.models.pareto_nbd import _log_odds

BG = {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426}
PARETO = {"r": 0.553, "alpha": 10.578, "s": 0.606, "beta": 11.669}


# --- special functions


def test_log_rising_and_its_derivatives():
    rng = np.random.default_rng(0)
    u = np.exp(rng.uniform(np.log(1e-3), np.log(1e4), 500))
    n = rng.choice([0, 1, 2, 5, 40, 700], 500)
    wanted = gammaln(u + n) - gammaln(u)
    got = jax.jit(numeric.log_rising)(jnp.asarray(u, jnp.float32), jnp.asarray(n, jnp.float32))
    np.testing.assert_allclose(got, wanted, rtol=3e-6, atol=3e-6)
    slope = jax.jit(jax.vmap(jax.grad(numeric.log_rising)))
    got = slope(jnp.asarray(u, jnp.float32), jnp.asarray(n, jnp.float32))
    np.testing.assert_allclose(got, digamma(u + n) - digamma(u), rtol=3e-6, atol=1e-9)


def test_distinct_rows_and_how_often_they_are_there():
    rng = np.random.default_rng(1)
    x, T = rng.integers(0, 4, 400).astype(float), np.ceil(7 * rng.uniform(1, 5, 400)) / 7
    wanted, number = np.unique(np.stack([x, T]), axis=1, return_counts=True)
    (one, two), counts = numeric.tally(x, T)
    np.testing.assert_allclose(np.stack([one, two]), wanted, rtol=1e-12)
    assert counts.tolist() == number.tolist() and len(counts) < 120
    rows, kind = numeric.distinct(x, T, np.broadcast_to(np.inf, 400))
    assert len(rows) == len(number)
    assert (x[rows][kind] == x).all() and (T[rows][kind] == T).all()
    for column in (rng.uniform(size=400), np.append(0.0, rng.uniform(1e6, 2e6, 399))):  # no grid
        rows, kind = numeric.distinct(x, column)
        assert (column[rows][kind] == column).all()
        kept, counts = numeric.tally(x, column)
        assert kept[1] is column and counts.tolist() == [1] * 400


def test_means_over_beta_distributions():
    for a in (0.07, 0.793, 30.0, 7e4, 1e6):
        b = np.array([0.3, 2.426, 900.0, 3.6e5, 1e7])
        p, weight = numeric.beta_nodes(a, b, 1e-12)
        np.testing.assert_allclose(weight.sum(1), 1, rtol=2e-5)
        np.testing.assert_allclose((weight * p).sum(1), a / (a + b), rtol=2e-5)
        square = a * (a + 1) / ((a + b) * (a + b + 1))
        np.testing.assert_allclose((weight * p**2).sum(1), square, rtol=1e-4)


def test_decayed():
    rate = np.array([-0.5, -1e-4, 0, 1e-5, 2e-3, 3])
    got = jax.jit(numeric.decayed)(jnp.asarray(rate), jnp.full(6, 2.0))
    wanted = [2.0 if r == 0 else -np.expm1(-2 * r) / r for r in rate]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)


def alive_purchases(r, alpha, a, b, k, x, T, t):
    """Expected purchases of an alive customer, by the formula with 2F1, in 60 digits."""
    mp = mpmath.mp
    with mp.workdps(60):
        r, alpha, a, b, T, t = (mp.mpf(float(v)) for v in (r, alpha, a, b, T, t))
        size, rest = r + int(x), b + int(k)
        z = t / (alpha + T + t)
        hyper = mp.hyp2f1(size, rest, a + rest - 1, z) * (1 - z) ** size
        return float((a + rest - 1) / (a - 1) * (1 - hyper))


def test_expected_purchases_against_mpmath_over_the_range_that_occurs():
    """To 3e-6, also where 1 - F has no digit left in float32."""
    worst = 0.0
    for a in (0.07, 0.793, 1.0001, 5.0, 30.0):
        for b in (0.3, 2.426, 40.0):
            params = BG | {"a": a, "b": b}
            x = np.array([0, 1, 3, 20, 150, 800.0])
            T = np.array([1.0, 38.86, 38.86, 38.86, 200, 365])
            for t in (0.05, 39.0, 2000.0):
                alive, _, got = customers.BGNBD().outlook(params, x, 0.999 * T * (x > 0), T, t)
                wanted = [alive_purchases(*params.values(), *row, t) for row in zip(x, x, T)]
                worst = max(worst, np.abs(got / alive / wanted - 1).max())
    assert worst < 3e-6, worst


def test_the_odds_of_pareto_nbd_against_adaptive_quadrature():
    log_odds = jax.jit(_log_odds)
    with mpmath.mp.workdps(17):
        for r, alpha, s, beta in (
            (0.553, 10.578, 0.606, 11.669),
            (2.0, 0.3, 0.2, 90),
            (0.3, 80, 3, 0.5),
        ):
            x, T = np.array([0, 1, 7, 400.0]), np.array([30, 38, 200, 365.0])
            recency = np.array([0, 0.3, 0.5, 300])
            got = log_odds(
                r, alpha, s, beta, *(jnp.asarray(v, jnp.float32) for v in (x, recency, T))
            )
            for i in range(4):

                def inside(t, i=i):
                    chance = ((alpha + T[i]) / (alpha + t)) ** (r + x[i])
                    return chance * ((beta + T[i]) / (beta + t)) ** s / (beta + t)

                edges = recency[i] + (T[i] - recency[i]) * np.array(
                    [0, 1e-4, 1e-3, 1e-2, 0.1, 0.3, 1]
                )
                wanted = float(mpmath.log(s * mpmath.quad(inside, edges)))
                assert got[i] == pytest.approx(wanted, rel=3e-6, abs=2e-5), (i, r)


# --- likelihoods, written anew in float64


def bg_nbd(log_params, x, recency, T, early=0):
    r, alpha, a, b = np.exp(log_params)
    k = x + early
    stay = betaln(a, b + k) - betaln(a, b) - (r + x) * np.log(alpha + T)
    left = (
        betaln(a + 1, b + np.maximum(k, 1) - 1) - betaln(a, b) - (r + x) * np.log(alpha + recency)
    )
    both = np.where(k > 0, np.logaddexp(stay, left), stay)
    return (gammaln(r + x) - gammaln(r) + r * np.log(alpha) + both).sum()


def mbg_nbd(log_params, x, recency, T):
    return bg_nbd(log_params, x, recency, T, early=1)


def pareto_nbd(log_params, x, recency, T):
    r, alpha, s, beta = np.exp(log_params)
    size = r + s + x
    large, small, power = (alpha, beta, s + 1) if alpha >= beta else (beta, alpha, r + x)

    def term(t):
        z = (large - small) / (large + t)
        return hyp2f1(size, power, size + 1, z) / (large + t) ** size

    left = s / size * (term(recency) - term(T))
    stay = (alpha + T) ** -(r + x) * (beta + T) ** -s
    front = gammaln(r + x) - gammaln(r) + r * np.log(alpha) + s * np.log(beta)
    return (front + np.log(stay + left)).sum()


def gamma_gamma(log_params, x, mean):
    p, q, v = np.exp(log_params)
    value = gammaln(p * x + q) - gammaln(p * x) - gammaln(q) + q * np.log(v)
    value = value + (p * x - 1) * np.log(mean) + p * x * np.log(x)
    return (value - (p * x + q) * np.log(x * mean + v)).sum()


def bg_bb(log_params, x, recency, n, weights):
    alpha, beta, gamma, delta = np.exp(log_params)
    total = 0.0
    for xi, ti, ni, w in zip(x, recency, n, weights, strict=True):
        terms = [betaln(alpha + xi, beta + ni - xi) + betaln(gamma, delta + ni)]
        for i in range(int(ni - ti)):
            m = ti + i
            terms.append(betaln(alpha + xi, beta + m - xi) + betaln(gamma + 1, delta + m))
        front = betaln(alpha, beta) + betaln(gamma, delta)
        total += w * (np.logaddexp.reduce(terms) - front)
    return total


def assert_held_to(found, likelihood, rows, error=2e-3):
    """Value, parameters and standard errors are those of the independent likelihood.

    Its highest point is a step of Newton's method from the answer, by differences in float64.
    """
    theta, h = np.log(found.values), 1e-3
    unit = h * np.eye(len(theta))

    def at(*steps):
        return likelihood(theta + sum(steps), *rows)

    slope = np.array([at(u) - at(-u) for u in unit]) / (2 * h)
    curved = [[at(u, v) - at(u, -v) - at(-u, v) + at(-u, -v) for v in unit] for u in unit]
    covariance = np.linalg.inv(-np.array(curved) / (4 * h * h))
    np.testing.assert_allclose(covariance @ slope, 0, atol=error)
    assert found.log_likelihood == pytest.approx(at(), rel=1e-6)
    np.testing.assert_allclose(np.diag(found.covariance), np.diag(covariance), rtol=5e-3)
    np.testing.assert_allclose(found.errors, found.values * np.sqrt(np.diag(covariance)), rtol=5e-3)


@pytest.fixture(scope="module")
def cdnow():
    folder = Path(os.environ["JAXOPS_DATA_DIR"], "cdnow")
    names = ["master", "customer", "time", "discs", "amount"]
    table = pd.read_csv(folder / "CDNOW_sample.txt", sep=r"\s+", names=names)
    table["time"] = pd.to_datetime(table["time"], format="%Y%m%d")
    return customers.purchases(table, amount="amount")


@pytest.fixture(scope="module")
def known(cdnow):
    return customers.summary(cdnow, "1997-09-30", "week")


@pytest.mark.data("cdnow")
def test_bg_nbd_on_cdnow(known):
    found = customers.estimate(customers.BGNBD(), known.frequency, known.recency, known.T)
    # Fader, Hardie and Lee 2005, table 2
    np.testing.assert_allclose(found.values, [0.243, 4.414, 0.793, 2.426], atol=1e-3)
    assert found.log_likelihood == pytest.approx(-9582.4, abs=0.05)
    assert_held_to(found, bg_nbd, (known.frequency, known.recency, known.T), 2e-4)
    assert found.frame()["name"].tolist() == ["r", "alpha", "a", "b"]


@pytest.mark.data("cdnow")
def test_gamma_gamma_on_cdnow(known):
    some = (known.frequency > 0) & (known.monetary_value > 0)
    rows = known.frequency[some], known.monetary_value[some]
    found = customers.estimate(customers.GammaGamma(), *rows)
    assert some.sum() == 946
    # Fader and Hardie 2013
    np.testing.assert_allclose(found.values, [6.25, 3.74, 15.45], atol=0.01)
    assert_held_to(found, gamma_gamma, rows, 1e-3)


@pytest.mark.data("cdnow")
def test_pareto_nbd_on_cdnow(known):
    found = customers.estimate(customers.ParetoNBD(), known.frequency, known.recency, known.T)
    # Fader, Hardie and Lee 2005, table 2
    np.testing.assert_allclose(found.values, [0.553, 10.578, 0.606, 11.669], atol=1e-3)
    assert found.log_likelihood == pytest.approx(-9595.0, abs=0.05)
    assert_held_to(found, pareto_nbd, (known.frequency, known.recency, known.T))


@pytest.mark.slow
@pytest.mark.data("cdnow")
def test_mbg_nbd_on_cdnow(known):
    rows = known.frequency, known.recency, known.T
    assert_held_to(customers.estimate(customers.MBGNBD(), *rows), mbg_nbd, rows, 5e-4)


def test_frequencies_are_whole():
    with pytest.raises(ValueError, match=r"frequency must be whole numbers .* got 0\.5 in row 1"):
        customers.estimate(customers.BGNBD(), np.array([1, 0.5]), np.ones(2), 2 * np.ones(2))


# Fader, Hardie and Shang 2010, table 1: gifts in 1996 to 2001, the last of them, and donors
DONORS = np.array(
    [
        [0, 0, 3464],
        [1, 1, 1091],
        [1, 2, 277],
        [1, 3, 129],
        [1, 4, 78],
        [1, 5, 119],
        [1, 6, 129],
        [2, 2, 613],
        [2, 3, 255],
        [2, 4, 155],
        [2, 5, 173],
        [2, 6, 234],
        [3, 3, 322],
        [3, 4, 181],
        [3, 5, 225],
        [3, 6, 357],
        [4, 4, 240],
        [4, 5, 284],
        [4, 6, 512],
        [5, 5, 335],
        [5, 6, 728],
        [6, 6, 1203],
    ]
)


def test_bg_bb_on_donors():
    x, recency, weights = DONORS.T
    rows = (np.repeat(column, weights).astype(float) for column in (x, recency, np.full(22, 6)))
    found = customers.estimate(customers.BGBB(), *rows)
    np.testing.assert_allclose(found.values, [1.204, 0.750, 0.657, 2.783], atol=1e-3)
    assert found.log_likelihood == pytest.approx(-33225.6, abs=0.05)
    assert_held_to(found, bg_bb, (x, recency, np.full(22, 6), weights), 5e-4)
    params = dict(zip(found.names, found.values, strict=True))
    every = (np.array([v], float) for v in (6, 6, 6))
    *_, bought = customers.BGBB().outlook(params, *every, 5)
    assert bought[0] == pytest.approx(3.75, abs=0.01)  # their table of expected gifts, 2002 to 2006


# --- what follows from the parameters


def test_conditional_expectations_published():
    """Fader, Hardie and Lee 2005: 1.226 purchases in 39 weeks after x 2, t_x 30.43, T 38.86."""
    row = np.array([[2.0], [30.43], [38.86]])
    *_, bought = customers.BGNBD().outlook(BG, *row, 39.0)
    assert bought[0] == pytest.approx(1.226, abs=5e-4)


MODELS = {
    "BG/NBD": (customers.BGNBD(), BG),
    "MBG/NBD": (customers.MBGNBD(), {"r": 0.525, "alpha": 6.183, "a": 0.891, "b": 1.614}),
    "Pareto/NBD": (customers.ParetoNBD(), PARETO),
}


def simulated(method, params, rng, count, horizon):
    """Times of the purchases after the first, (count, 200), infinite where there is none."""
    values = list(params.values())
    rate = rng.gamma(values[0], 1 / values[1], count)
    times = np.cumsum(rng.exponential(1 / rate[:, None], (count, 200)), 1)
    if isinstance(method, customers.ParetoNBD):
        end = rng.exponential(1 / rng.gamma(values[2], 1 / values[3], count))[:, None]
        return np.where(times <= np.minimum(end, horizon), times, np.inf)
    leave = rng.uniform(size=(count, 201)) < rng.beta(values[2], values[3], count)[:, None]
    leave = leave[:, :200] if method.early else np.pad(leave[:, :199], ((0, 0), (1, 0)))
    gone = np.cumsum(leave, 1) > 0  # before this purchase
    return np.where(~gone & (times <= horizon), times, np.inf)


@pytest.mark.parametrize("name", MODELS)
def test_customers_to_come_and_an_outlook_against_simulation(name):
    """The purchases of new customers, and those after T = 39 by frequency."""
    method, params = MODELS[name]
    base = CustomerBase(method, np.array(list(params.values())), np.eye(4))
    times = simulated(method, params, np.random.default_rng(1), 30_000, 78.0)
    for t in (10.0, 78.0):
        count = (times <= t).sum(1)
        mean, error = count.mean(), count.std() / np.sqrt(len(count))
        assert customers.expected_purchases(base, [t])[0] == pytest.approx(mean, abs=4 * error)
        shares = (count[:, None] == np.arange(6)).mean(0)
        every = np.arange(4000)
        p = customers.purchase_probability(base, every, t)
        np.testing.assert_allclose(p[:6], shares, atol=0.012)
        # exact: the sum over all numbers, and the mean
        assert p.sum() == pytest.approx(1, abs=1e-4)
        assert p @ every == pytest.approx(customers.expected_purchases(base, [t])[0], rel=2e-3)
    before = times <= 39
    x = before.sum(1).astype(float)
    recency = np.where(before, times, 0).max(1)
    after = (np.isfinite(times) & ~before).sum(1)
    alive, again, bought = method.outlook(params, x, recency, np.full(len(x), 39.0), 39.0)
    for low, high in ((0, 0), (1, 1), (2, 3), (4, 200)):
        part = (x >= low) & (x <= high)
        error = after[part].std() / np.sqrt(part.sum())
        assert bought[part].mean() == pytest.approx(after[part].mean(), abs=4 * error), low
        back = after[part] > 0
        error = back.std() / np.sqrt(part.sum())
        assert again[part].mean() == pytest.approx(back.mean(), abs=4 * error), low
    assert ((again >= 0) & (again <= alive) & (alive <= 1)).all()
    *_, whole = method.outlook(params, x[:50], recency[:50], np.full(50, 39.0), np.inf, 0.01)
    assert np.isfinite(whole).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_discounting(name):
    """A discounted outlook is the integral of e^(-d t) over the undiscounted, and has a limit."""
    method, params = MODELS[name]
    row = np.array([[0.0, 2, 40], [0, 30.43, 38], [38.86, 38.86, 38.86]])
    d = 0.02

    def bought(t, discount=0.0):
        return method.outlook(params, *row, t, discount)[-1].astype(float)

    edges = np.linspace(0, 100, 401)[1:]
    steps = np.diff(np.stack([np.zeros(3), *(bought(t) for t in edges)]), axis=0)
    wanted = (np.exp(-d * (edges - 0.125))[:, None] * steps).sum(0)
    np.testing.assert_allclose(bought(100.0, d), wanted, rtol=2e-4)
    np.testing.assert_allclose(bought(50.0, 1e-6), bought(50.0), rtol=1e-4)
    endless = bought(np.inf, d)
    assert (endless > bought(100.0, d)).all()
    np.testing.assert_allclose(endless, bought(1500.0, d), rtol=1e-4)


def test_lifetime_value_of_pareto_nbd_against_quadrature():
    r, alpha, s, beta = PARETO.values()
    alive, _, got = customers.ParetoNBD().outlook(
        PARETO, *np.array([[2.0], [30.43], [38.86]]), np.inf, 0.003
    )

    def rate(u):
        return np.exp(-0.003 * u) * ((beta + 38.86) / (beta + 38.86 + u)) ** s

    wanted = (r + 2) / (alpha + 38.86) * (quad(rate, 0, 500)[0] + quad(rate, 500, np.inf)[0])
    assert got[0] / alive[0] == pytest.approx(wanted, rel=1e-4)


def test_bg_bb_against_simulation():
    params = {"alpha": 1.2, "beta": 0.75, "gamma": 0.66, "delta": 2.8}
    rng, count = np.random.default_rng(3), 40_000
    p = rng.beta(1.2, 0.75, count)[:, None]
    gone = np.cumsum(rng.uniform(size=(count, 12)) < rng.beta(0.66, 2.8, count)[:, None], 1) > 0
    bought = ~gone & (rng.uniform(size=(count, 12)) < p)
    x, n = bought[:, :6].sum(1).astype(float), np.full(count, 6.0)
    recency = np.where(bought[:, :6], np.arange(1, 7), 0).max(1).astype(float)
    alive, again, told = customers.BGBB().outlook(params, x, recency, n, 6)
    after = bought[:, 6:].sum(1)
    for value in range(7):
        part = x == value
        assert told[part].mean() == pytest.approx(after[part].mean(), abs=0.06)
        back = (after[part] > 0).mean()
        assert again[part].mean() == pytest.approx(back, abs=0.03)
        assert alive[part].mean() == pytest.approx((~gone[part, 5]).mean(), abs=0.03)
    base = CustomerBase(customers.BGBB(), np.array(list(params.values())), np.eye(4))
    shares = [(x == value).mean() for value in range(7)]
    np.testing.assert_allclose(
        customers.purchase_probability(base, np.arange(7), 6), shares, atol=0.01
    )
    assert customers.expected_purchases(base, [6])[0] == pytest.approx(x.mean(), rel=0.02)
    for call in (
        customers.expected_purchases,
        lambda *a: customers.purchase_probability(a[0], 1, 2.7),
    ):
        with pytest.raises(ValueError, match=r"must be a whole number for BGBB, got 2\.7"):
            call(base, [2.7])
    *_, less = customers.BGBB().outlook(params, x[:3], recency[:3], n[:3], 6, 0.1)
    assert (less < told[:3]).all()


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    x = rng.integers(0, 9, 700).astype(float)
    T = rng.uniform(5, 40, 700)
    recency = np.where(x > 0, T * rng.uniform(size=700), 0)
    whole = customers.ParetoNBD().outlook(PARETO, x, recency, T, 10.0)
    monkeypatch.setattr(numeric, "ROWS", 256)
    parts = customers.ParetoNBD().outlook(PARETO, x, recency, T, 10.0)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_likelihood_without_maximum_warns():
    x = np.full(400, 3.0)  # all alike: no spread of rates
    with pytest.warns(UserWarning, match="should have a highest likelihood at finite parameters"):
        customers.estimate(customers.BGNBD(), x, np.full(400, 9.0), np.full(400, 10.0))


def test_a_warm_start_gives_the_same(monkeypatch):
    from jaxops.customers import tasks

    rng = np.random.default_rng(6)
    rows = rng.integers(1, 9, 3000).astype(float), rng.gamma(3, 9, 3000)
    cold = customers.estimate(customers.GammaGamma(), *rows)
    monkeypatch.setattr(tasks, "SAMPLE", 600)
    warm = customers.estimate(customers.GammaGamma(), *rows)
    np.testing.assert_allclose(warm.values, cold.values, rtol=1e-3)
    assert warm.steps < cold.steps


@pytest.mark.slow
def test_covariates():
    """Factors of the pace, held to SciPy on likelihoods with a rate of each customer's own."""
    rng, count = np.random.default_rng(4), 2400
    z = {"old": rng.integers(0, 2, count).astype(float), "income": rng.normal(size=count)}
    pounds = z | {"income": 50_000 + 15_000 * z["income"]}
    pace = 3 ** z["old"] * 0.7 ** z["income"]
    T, params = rng.uniform(10, 60, count), {"r": 0.8, "alpha": 12.0, "a": 0.8, "b": 2.5}
    # a clock that is faster by the pace
    times = simulated(customers.BGNBD(), params, rng, count, np.inf)
    seen = times <= (T * pace)[:, None]
    x = seen.sum(1).astype(float)
    recency = np.where(seen, times, 0).max(1) / pace
    found = customers.estimate(customers.BGNBD(), x, recency, T, covariates=z)
    assert found.names == ("r", "alpha", "a", "b", "old", "income")
    assert (
        np.abs(np.log(found.values[4:] / [3, 0.7])) < 4 * found.errors[4:] / found.values[4:]
    ).all()

    def likelihood(theta, x, recency, T):
        r, alpha, a, b, old, income = np.exp(theta)
        own = alpha * old ** -z["old"] * income ** -z["income"]
        stay = betaln(a, b + x) - (r + x) * np.log(own + T)
        left = betaln(a + 1, b + np.maximum(x, 1) - 1) - (r + x) * np.log(own + recency)
        both = np.where(x > 0, np.logaddexp(stay, left), stay) - betaln(a, b)
        return (gammaln(r + x) - gammaln(r) + r * np.log(own) + both).sum()

    assert_held_to(found, likelihood, (x, recency, T), 2e-3)
    base = CustomerBase(
        customers.BGNBD(), found.values, found.covariance, covariates=("old", "income")
    )
    known = customers.Summary(np.arange(count), x, recency, T, None)
    told = customers.outlook(base, known, 20.0, covariates=z)
    # the same with income in pounds
    other = customers.estimate(customers.BGNBD(), x, recency, T, covariates=pounds)
    assert other.log_likelihood == pytest.approx(found.log_likelihood, abs=0.01)
    np.testing.assert_allclose(15_000 * np.log(other.values[5]), np.log(found.values[5]), rtol=1e-3)
    np.testing.assert_allclose(other.values[[0, 2, 3, 4]], found.values[[0, 2, 3, 4]], rtol=5e-3)
    level = other.values[1] * other.values[5] ** -50_000.0
    assert level == pytest.approx(found.values[1], rel=5e-3)
    error = 15_000 * np.sqrt(other.covariance[5, 5])
    assert error == pytest.approx(np.sqrt(found.covariance[5, 5]), rel=1e-2)
    of_pounds = replace(base, params=other.values, covariance=other.covariance)
    again = customers.outlook(of_pounds, known, 20.0, covariates=pounds)
    np.testing.assert_allclose(again.purchases, told.purchases, rtol=1e-2)
    with pytest.raises(ValueError, match="covariates must vary, got 1 in all rows of 'same'"):
        customers.estimate(customers.BGNBD(), x, recency, T, covariates={"same": np.ones(count)})
    for row in (0, 1, 2):  # as a customer of another rate
        own = dict(zip(found.names[:4], found.values[:4], strict=True))
        own["alpha"] *= found.values[4] ** -z["old"][row] * found.values[5] ** -z["income"][row]
        one = (np.array([column[row]]) for column in (x, recency, T))
        *_, bought = customers.BGNBD().outlook(own, *one, 20.0)
        assert told.purchases[row] == pytest.approx(bought[0], rel=1e-4)
    with pytest.raises(
        ValueError, match="covariates must be old, income, as in training, got None"
    ):
        customers.outlook(base, known, 20.0)


def test_gamma_gamma_mean():
    params = {"p": 6.25, "q": 3.74, "v": 15.45}
    x, mean = np.array([0, 1, 30.0]), np.array([0, 20, 50.0])
    weight = 6.25 * x / (6.25 * x + 2.74)  # Fader and Hardie 2013, equation 5
    wanted = (1 - weight) * 15.45 * 6.25 / 2.74 + weight * mean
    np.testing.assert_allclose(customers.GammaGamma().mean(params, x, mean), wanted)
