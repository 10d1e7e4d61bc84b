"""The outputs against scipy's distributions and the pinball formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxops.forecast import (
    Gaussian,
    NegativeBinomial,
    Point,
    Quantiles,
    StudentT,
    ZeroInflated,
)

LEVELS = (0.02, 0.1, 0.5, 0.77, 0.95, 0.99)
MEAN, SHAPE = np.array([0.7, 4.0, 90.0]), np.array([0.05, 1.0, 0.3])
CASES = {
    "gaussian": (
        Gaussian(),
        [[-1.0, 0.0, 50.0], [0.1, 1.0, 7.0]],
        stats.norm([-1.0, 0, 50], [0.1, 1, 7]),
    ),
    "student": (
        StudentT(),
        [[-1.0, 0.0, 50.0], [0.1, 1.0, 7.0], [2.5, 5.0, 80.0]],
        stats.t([2.5, 5, 80], [-1.0, 0, 50], [0.1, 1, 7]),
    ),
    "counts": (NegativeBinomial(), [MEAN, SHAPE], stats.nbinom(1 / SHAPE, 1 / (1 + SHAPE * MEAN))),
}


def case(name):
    output, columns, reference = CASES[name]
    return output, jnp.asarray(np.stack(columns, -1), jnp.float32), reference


def run(output, name, *args):
    """A method, compiled as one program rather than operation by operation."""
    static = {"quantiles": 1, "sample": 2}.get(name)
    return jax.jit(getattr(output, name), static_argnums=static)(*args)


@pytest.mark.parametrize("name", CASES)
def test_distributions_are_those_of_scipy(name):
    output, parameters, reference = case(name)
    x = reference.ppf(np.full(3, 0.8)) if output.discrete else np.array([-0.9, 3.0, 41.0])
    log_prob = reference.logpmf(x) if output.discrete else reference.logpdf(x)
    near = {"rtol": 2e-5, "atol": 2e-5}  # float32
    np.testing.assert_allclose(run(output, "loss", parameters, x), -log_prob, **near)
    np.testing.assert_allclose(run(output, "cdf", parameters, x), reference.cdf(x), atol=3e-5)
    np.testing.assert_allclose(output.mean(parameters), reference.mean(), rtol=1e-6)
    wanted = np.stack([reference.ppf(level) for level in LEVELS], -1)
    found = run(output, "quantiles", parameters, LEVELS)
    np.testing.assert_allclose(
        found, wanted, **({"atol": 0} if output.discrete else {"rtol": 2e-4, "atol": 2e-4})
    )
    draws = np.asarray(run(output, "sample", parameters, jax.random.key(0), 4000))
    for i in range(3):  # five sigma of the binomial
        share = (draws[:, i] <= wanted[i, 3]).mean()
        own = reference.cdf(wanted[:, 3])[i]
        assert abs(share - own) < 5 * (own * (1 - own) / 4000) ** 0.5


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_a_loss_is_its_finite_difference(name):
    output, parameters, reference = case(name)
    x = reference.ppf(np.full(3, 0.7))

    def log_prob(p):
        if name == "gaussian":
            return stats.norm.logpdf(x, p[:, 0], p[:, 1])
        if name == "student":
            return stats.t.logpdf(x, p[:, 2], p[:, 0], p[:, 1])
        return stats.nbinom.logpmf(x, 1 / p[:, 1], 1 / (1 + p[:, 0] * p[:, 1]))

    slope = jax.grad(lambda p: output.loss(p, jnp.asarray(x, jnp.float32)).sum())
    found = jax.jit(slope)(parameters)
    p = np.asarray(parameters, float)
    for i in range(p.shape[1]):
        step = np.zeros_like(p)
        step[:, i] = 1e-5 * p[:, i] + 1e-6
        slope = -(log_prob(p + step) - log_prob(p - step)) / (2 * step[:, i])
        np.testing.assert_allclose(found[:, i], slope, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", CASES)
def test_many_zeros_beside_scipy(name):
    of, parameters, reference = case(name)
    output, zero = ZeroInflated(of), np.array([0.3, 0.6, 0.2])
    parameters = jnp.concatenate([jnp.asarray(zero, jnp.float32)[:, None], parameters], -1)

    def cdf(x):
        return (1 - zero) * reference.cdf(x) + zero * (x >= 0)

    x = reference.ppf(np.full(3, 0.8))
    np.testing.assert_allclose(run(output, "cdf", parameters, x), cdf(x), atol=3e-5)
    np.testing.assert_allclose(output.mean(parameters), (1 - zero) * reference.mean(), rtol=1e-6)
    at_zero = np.log(zero)
    if of.discrete:
        at_zero = np.log(zero + (1 - zero) * reference.pmf(0))
        other = np.log(1 - zero) + reference.logpmf(x)
    else:
        other = np.log(1 - zero) + reference.logpdf(x)
    np.testing.assert_allclose(run(output, "loss", parameters, jnp.zeros(3)), -at_zero, rtol=1e-4)
    np.testing.assert_allclose(run(output, "loss", parameters, x), -other, rtol=1e-4)
    quantiles = np.asarray(run(output, "quantiles", parameters, LEVELS), float)
    for level, found in zip(LEVELS, quantiles.T, strict=True):  # the least x that has it
        slack = 1e-4 * (1 + abs(found))
        assert (cdf(found + (0 if of.discrete else slack)) >= level - 1e-5).all()
        assert (cdf(found - (1 if of.discrete else slack)) < level).all()
    draws = np.asarray(run(output, "sample", parameters, jax.random.key(1), 4000))
    share = np.exp(at_zero)
    assert (abs((draws == 0).mean(0) - share) < 5 * (share * (1 - share) / 4000) ** 0.5).all()


def test_quantiles_do_not_cross_and_are_scored_by_the_pinball_formula():
    output = Quantiles((0.1, 0.25, 0.5, 0.9))
    raw = 30 * jax.random.normal(jax.random.key(0), (500, 4))
    q = output.scaled(output.parameters(raw), jnp.full((1,), 1e4), jnp.full((1,), 1e-3))
    assert (np.diff(q, axis=-1) >= 0).all()
    q, y = output.parameters(raw), raw[:, 0]
    wanted = sum(
        np.where(y >= q[:, i], level * (y - q[:, i]), (1 - level) * (q[:, i] - y))
        for i, level in enumerate(output.levels)
    )
    np.testing.assert_allclose(output.loss(q, y), wanted, rtol=1e-5, atol=1e-5)


def test_quantiles_between_and_their_mean():
    output, q = Quantiles((0.1, 0.5, 0.9)), jnp.array([[1.0, 3.0, 9.0]])
    assert output.quantiles(q, (0.1, 0.3, 0.5, 0.7, 0.9))[0].tolist() == [1, 2, 3, 6, 9]
    # .1 of 1, .4 between 1 and 3, .4 between 3 and 9, .1 of 9
    assert output.mean(q)[0] == pytest.approx(0.1 + 0.4 * 2 + 0.4 * 6 + 0.9)
    draws = output.sample(q, jax.random.key(0), 20000)
    np.testing.assert_allclose(np.quantile(draws, [0.05, 0.3, 0.7, 0.95]), [1, 2, 6, 9], atol=0.15)
    assert float(draws.mean()) == pytest.approx(float(output.mean(q)[0]), abs=0.1)
    assert Quantiles((0.5,)).quantiles(q[:, :1], (0.5,)).tolist() == [[1]]
    with pytest.raises(ValueError, match=r"levels must be from 0.1 to 0.9, got \(0.95,\)"):
        output.quantiles(q, (0.95,))


@pytest.mark.parametrize(
    "output", [Point(), Quantiles(), Gaussian(), StudentT(), NegativeBinomial(), ZeroInflated()]
)
def test_scaled_is_the_distribution_in_other_units(output):
    raw = jax.random.normal(jax.random.key(0), (2, 5, 3, output.size))
    parameters = output.parameters(raw)
    scale = jnp.full((2, 1, 3), 50.0)
    loc = None if output.scale_only else jnp.full((2, 1, 3), -7.0)
    found = output.scaled(parameters, loc, scale)
    assert found.shape == parameters.shape
    shift = 0 if loc is None else -7
    np.testing.assert_allclose(
        output.mean(found), 50 * output.mean(parameters) + shift, rtol=1e-4, atol=1e-4
    )
    if not output.scale_only and not isinstance(output, Point):
        q, wanted = (run(output, "quantiles", p, (0.2, 0.8)) for p in (found, parameters))
        np.testing.assert_allclose(q, 50 * wanted + shift, rtol=1e-4, atol=1e-3)
    if output.scale_only:
        with pytest.raises(ValueError, match="loc must be None for"):
            output.scaled(parameters, scale, scale)


def test_points_are_scored():
    y, target = jnp.array([[3.0], [-0.5]]), jnp.zeros(2)
    assert Point().loss(y, target).tolist() == [9, 0.25]
    assert Point("mae").loss(y, target).tolist() == [3, 0.5]
    assert Point("huber").loss(y, target).tolist() == [2.5, 0.125]


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"error must be one of .*, got 'rmse'"):
        Point("rmse")
    for levels in ((), (0.5, 0.1), (0.0, 0.5), (0.5, 0.5)):
        with pytest.raises(ValueError, match="levels must be rising numbers between 0 and 1, got"):
            Quantiles(levels)
    with pytest.raises(ValueError, match="output must be Quantiles or a distribution, got Point"):
        Point().quantiles(jnp.zeros((1, 1)), (0.5,))
    with pytest.raises(ValueError, match="levels must be numbers between 0 and 1, got"):
        Gaussian().quantiles(jnp.zeros((1, 2)), (1.0,))
