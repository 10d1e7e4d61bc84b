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
    return output, np.stack(columns, -1).astype(np.float32), reference


def at_once(function, *args):
    """Everything that a test asks for, compiled as one program."""
    return jax.device_get(jax.jit(function)(*args))


@pytest.mark.parametrize("name", CASES)
def test_distributions_are_those_of_scipy(name):
    output, parameters, reference = case(name)
    x = reference.ppf(np.full(3, 0.8)) if output.discrete else np.array([-0.9, 3.0, 41.0])
    log_prob = reference.logpmf(x) if output.discrete else reference.logpdf(x)
    near = {"rtol": 2e-5, "atol": 2e-5}  # float32

    def asked(p):
        return (
            output.loss(p, x),
            output.cdf(p, x),
            output.mean(p),
            output.quantiles(p, LEVELS),
            output.sample(p, jax.random.key(0), 4000),
        )

    loss, cdf, mean, found, draws = at_once(asked, parameters)
    np.testing.assert_allclose(loss, -log_prob, **near)
    np.testing.assert_allclose(cdf, reference.cdf(x), atol=3e-5)
    np.testing.assert_allclose(mean, reference.mean(), rtol=1e-6)
    wanted = np.stack([reference.ppf(level) for level in LEVELS], -1)
    np.testing.assert_allclose(
        found, wanted, **({"atol": 0} if output.discrete else {"rtol": 2e-4, "atol": 2e-4})
    )
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

    found = at_once(jax.grad(lambda p: output.loss(p, x.astype(np.float32)).sum()), parameters)
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
    parameters = np.concatenate([zero.astype(np.float32)[:, None], parameters], -1)

    def cdf(x):
        return (1 - zero) * reference.cdf(x) + zero * (x >= 0)

    x = reference.ppf(np.full(3, 0.8))

    def asked(p):
        return (
            output.cdf(p, x),
            output.mean(p),
            [output.loss(p, at) for at in (np.zeros(3, np.float32), x)],
            output.quantiles(p, LEVELS),
            output.sample(p, jax.random.key(1), 4000),
        )

    share, mean, losses, quantiles, draws = at_once(asked, parameters)
    np.testing.assert_allclose(share, cdf(x), atol=3e-5)
    np.testing.assert_allclose(mean, (1 - zero) * reference.mean(), rtol=1e-6)
    at_zero = np.log(zero)
    if of.discrete:
        at_zero = np.log(zero + (1 - zero) * reference.pmf(0))
        other = np.log(1 - zero) + reference.logpmf(x)
    else:
        other = np.log(1 - zero) + reference.logpdf(x)
    np.testing.assert_allclose(losses[0], -at_zero, rtol=1e-4)
    np.testing.assert_allclose(losses[1], -other, rtol=1e-4)
    for level, found in zip(
        LEVELS, quantiles.astype(float).T, strict=True
    ):  # the least x that has it
        slack = 1e-4 * (1 + abs(found))
        assert (cdf(found + (0 if of.discrete else slack)) >= level - 1e-5).all()
        assert (cdf(found - (1 if of.discrete else slack)) < level).all()
    share = np.exp(at_zero)
    assert (abs((draws == 0).mean(0) - share) < 5 * (share * (1 - share) / 4000) ** 0.5).all()


def test_quantiles_do_not_cross_and_are_scored_by_the_pinball_formula():
    output = Quantiles((0.1, 0.25, 0.5, 0.9))
    raw = 30 * np.random.default_rng(0).normal(size=(500, 4)).astype(np.float32)
    y, loc, scale = raw[:, 0], np.full(1, 1e4, np.float32), np.full(1, 1e-3, np.float32)

    def asked(raw):
        q = output.parameters(raw)
        return output.scaled(q, loc, scale), q, output.loss(q, y)

    scaled, q, loss = at_once(asked, raw)
    assert (np.diff(scaled, axis=-1) >= 0).all()
    wanted = sum(
        np.where(y >= q[:, i], level * (y - q[:, i]), (1 - level) * (q[:, i] - y))
        for i, level in enumerate(output.levels)
    )
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-5)


def test_quantiles_between_and_their_mean():
    output, q = Quantiles((0.1, 0.5, 0.9)), np.array([[1.0, 3.0, 9.0]], np.float32)

    def asked(q):
        between = output.quantiles(q, (0.1, 0.3, 0.5, 0.7, 0.9))
        return between, output.mean(q), output.sample(q, jax.random.key(0), 20000)

    between, mean, draws = at_once(asked, q)
    assert between[0].tolist() == [1, 2, 3, 6, 9]
    # .1 of 1, .4 between 1 and 3, .4 between 3 and 9, .1 of 9
    assert mean[0] == pytest.approx(0.1 + 0.4 * 2 + 0.4 * 6 + 0.9)
    np.testing.assert_allclose(np.quantile(draws, [0.05, 0.3, 0.7, 0.95]), [1, 2, 6, 9], atol=0.15)
    assert float(draws.mean()) == pytest.approx(float(mean[0]), abs=0.1)
    assert Quantiles((0.5,)).quantiles(q[:, :1], (0.5,)).tolist() == [[1]]
    with pytest.raises(ValueError, match=r"levels must be from 0.1 to 0.9, got \(0.95,\)"):
        output.quantiles(q, (0.95,))


@pytest.mark.parametrize(
    "output", [Point(), Quantiles(), Gaussian(), StudentT(), NegativeBinomial(), ZeroInflated()]
)
def test_scaled_is_the_distribution_in_other_units(output):
    raw = np.random.default_rng(0).normal(size=(2, 5, 3, output.size)).astype(np.float32)
    scale = np.full((2, 1, 3), 50, np.float32)
    loc = None if output.scale_only else np.full((2, 1, 3), -7, np.float32)
    with_quantiles = not output.scale_only and not isinstance(output, Point)

    def asked(raw):
        parameters = output.parameters(raw)
        both = output.scaled(parameters, loc, scale), parameters
        quantiles = [output.quantiles(p, (0.2, 0.8)) for p in both if with_quantiles]
        return both, [output.mean(p) for p in both], quantiles

    both, means, quantiles = at_once(asked, raw)
    assert both[0].shape == both[1].shape
    shift = 0 if loc is None else -7
    np.testing.assert_allclose(means[0], 50 * means[1] + shift, rtol=1e-4, atol=1e-4)
    if with_quantiles:
        np.testing.assert_allclose(quantiles[0], 50 * quantiles[1] + shift, rtol=1e-4, atol=1e-3)
    if output.scale_only:
        with pytest.raises(ValueError, match="loc must be None for"):
            output.scaled(both[1], scale, scale)


def test_points_are_scored():
    y, target = np.array([[3.0], [-0.5]], np.float32), np.zeros(2, np.float32)
    points = (Point(), Point("mae"), Point("huber"))
    mse, mae, huber = at_once(lambda y: [point.loss(y, target) for point in points], y)
    assert mse.tolist() == [9, 0.25]
    assert mae.tolist() == [3, 0.5]
    assert huber.tolist() == [2.5, 0.125]


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
