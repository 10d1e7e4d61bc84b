"""Randomised smoothing of a line, whose exact radius is the distance to it."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, norm

import jaxops as jo
from jaxops import robustness, tabular

W = np.array([0.6, -0.8], np.float32)
TASK = tabular.classifier(tabular.MLP(()), features=2, classes=("left", "right"))
FAR = np.array([0.0, 0.2, 0.5, 1.0, -0.3, -0.8, -1.2], np.float32)  # distances from the line


@pytest.fixture(scope="module")
def smooth():
    x = FAR[:, None] * W + np.array([0.8, 0.6], np.float32)  # moved along the line
    state = jo.init_state(TASK, jo.optim.sgd(0.1), seed=0, batch={"features": x})
    state = state._replace(
        params={"logits": {"kernel": jnp.asarray(3 * W[:, None]), "bias": jnp.zeros(1)}}
    )
    return robustness.smoothed(TASK, state, sigma=0.5), {"features": x}


def test_radius_is_below_the_distance_and_near_it(smooth):
    found = smooth[0].certify(smooth[1], draws=8000)
    wanted = np.where(FAR > 0, "right", "left")[1:]
    np.testing.assert_array_equal(found.labels[1:], wanted)
    assert found.labels[0] == "" and found.radius[0] == 0  # on the line it abstains
    exact = np.abs(FAR[1:])
    assert (found.radius[1:] < exact).all()
    np.testing.assert_allclose(found.radius[1:], exact, rtol=0.2)
    assert found.accuracy(["right", *wanted]) == pytest.approx(6 / 7)
    assert found.accuracy(["right", *wanted], radius=0.6) == pytest.approx(3 / 7)


def test_bounds_are_clopper_and_pearson_s(smooth):
    found = smooth[0].certify(smooth[1], draws=500, alpha=0.01)
    counts = smooth[0].counts(smooth[1], 500, other=1)
    assert (counts.sum(1) == 500).all()
    hits = np.where(FAR > 0, counts[:, 1], counts[:, 0])[1:]
    for share, count in zip(found.share[1:], hits, strict=True):
        test = binomtest(int(count), 500, alternative="greater").proportion_ci(0.99, "exact")
        assert share == pytest.approx(test.low)
    np.testing.assert_allclose(found.radius[1:], 0.5 * norm.ppf(found.share[1:]))
    rate = counts[:, 1] / 500  # of one draw it is Phi(distance / sigma)
    np.testing.assert_allclose(rate, norm.cdf(FAR / 0.5), atol=0.09)


def test_prediction_abstains_by_a_binomial_test(smooth):
    found = smooth[0].predict(smooth[1], draws=100, alpha=0.05)
    counts = smooth[0].counts(smooth[1], 100)
    for label, pair in zip(found.labels, counts.tolist(), strict=True):
        sure = binomtest(max(pair), 100).pvalue <= 0.05
        assert label == (("left", "right")[int(np.argmax(pair))] if sure else "")
    assert found.labels[0] == "" and np.isnan(found.radius).all()
    with pytest.raises(ValueError, match="radius must be 0 for rows that are not certified"):
        found.accuracy(["left"] * 7, radius=0.5)


def test_wrong_settings(smooth):
    one, rows = smooth
    with pytest.raises(ValueError, match="alpha must be between 0 and 1, got 0"):
        one.certify(rows, alpha=0)
    with pytest.raises(ValueError, match="draws must be at least 1, got 0"):
        one.predict(rows, draws=0)
    with pytest.raises(ValueError, match="sigma must be a number above 0, got 0"):
        robustness.smoothed(TASK, one.state, 0)
    with pytest.raises(ValueError, match="task must have classes"):
        robustness.smoothed(tabular.regressor(tabular.MLP(()), features=2), one.state, 1.0)
    with pytest.raises(ValueError, match=r"labels must have shape \(7,\), got \(2,\)"):
        one.certify(rows, draws=10).accuracy(["left", "left"])
