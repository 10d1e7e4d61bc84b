"""Calibrators and measures of calibration beside scikit-learn, and by hand."""

import numpy as np
import pytest
from scipy.special import logit, softmax
from scipy.stats import binom
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV, calibration_curve
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss

from jaxops.trust import calibration
from jaxops.trust.calibrators import CALIBRATORS, Beta, Isotonic, Platt, Temperature, Vector


def drawn(rows, classes, seed=0, slope=2.0):
    """Probabilities of who is too sure of itself by `slope`, and labels."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, classes))
    true = softmax(z + 0.3 * np.arange(classes), axis=1)
    label = (true.cumsum(1) < rng.random((rows, 1))).sum(1)
    return softmax(slope * z, axis=1), label


class Told(ClassifierMixin, BaseEstimator):
    """A classifier whose inputs are its scores."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def decision_function(self, X):
        return X[:, 0] if X.shape[1] == 1 else X

    def predict(self, X):
        scores = self.decision_function(X)
        return self.classes_[scores.argmax(1) if scores.ndim == 2 else (scores > 0).astype(int)]


def by_sklearn(method, scores, label, new):
    told = FrozenEstimator(Told().fit(scores, label))
    return CalibratedClassifierCV(told, method=method).fit(scores, label).predict_proba(new)


@pytest.mark.parametrize("classes", [2, 4])
def test_platt_and_isotonic_are_scikit_learn_s(classes):
    p, label = drawn(600, classes)
    new = drawn(200, classes, seed=1)[0]
    some = slice(1, None) if classes == 2 else slice(None)
    odds, odds_new = (logit(x[:, some]) for x in (p, new))
    np.testing.assert_allclose(
        Platt.fit(p, label)(new), by_sklearn("sigmoid", odds, label, odds_new), atol=1e-5
    )
    np.testing.assert_allclose(
        Isotonic.fit(p, label)(new), by_sklearn("isotonic", p[:, some], label, new[:, some]),
        atol=1e-12,
    )  # fmt: skip
    curve = IsotonicRegression(out_of_bounds="clip").fit(p[:, 1], label == 1)
    got = Isotonic.fit(p, label)
    place = 0 if classes == 2 else 1
    line = np.interp(new[:, 1], got.points[place], got.values[place])
    np.testing.assert_allclose(line, curve.predict(new[:, 1]), atol=1e-12)


def test_beta_is_a_logistic_regression_without_penalty():
    p, label = drawn(800, 2)
    features = np.stack([np.log(p[:, 1]), -np.log(p[:, 0])], 1)
    other = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(features, label)
    got = Beta.fit(p, label)
    assert (other.coef_ > 0).all()  # so that the bounds at 0 do not count
    np.testing.assert_allclose(
        [got.a[0], got.b[0], got.c[0]], [*other.coef_[0], *other.intercept_], atol=2e-4
    )
    np.testing.assert_allclose(got(p), other.predict_proba(features), atol=1e-5)
    # a slope that would be negative is 0, and the others are the best without it
    bent = np.stack([1 - p[:, 1] ** 0.2, p[:, 1] ** 0.2], 1)
    label = (np.random.default_rng(2).random(800) < 0.5 - 0.3 * (bent[:, 1] - 0.5)).astype(int)
    none = Beta.fit(bent, label)
    assert none.a[0] == 0 and none.b[0] == 0
    np.testing.assert_allclose(none(bent)[:, 1], label.mean(), atol=1e-6)


def test_vector_is_the_best_and_finds_what_was_done():
    """Probabilities with known slopes and offsets; without noise, by the true distribution."""
    p, _ = drawn(4000, 3, slope=1.0)
    slope, offset = np.array([0.5, 1.5, 1.0]), np.array([0.4, -0.2, -0.2])
    true = softmax(slope * np.log(p) + offset, axis=1)
    label = (true.cumsum(1) < np.random.default_rng(5).random((4000, 1))).sum(1)
    got = Vector.fit(p, label)
    np.testing.assert_allclose(got.offset, offset, atol=0.2)
    np.testing.assert_allclose(got.slope, slope, atol=0.25)
    best = log_loss(label, got(p))
    for part in ("slope", "offset"):
        for place in range(3):
            for step in (-0.01, 0.01):
                values = {"slope": got.slope.copy(), "offset": got.offset.copy()}
                values[part][place] += step
                assert best < log_loss(label, Vector(**values)(p))
    # one slope for all classes and no offset is the temperature, which cannot be better
    assert best < log_loss(label, Temperature.fit(p, label)(p))


@pytest.mark.parametrize("method", CALIBRATORS)
@pytest.mark.parametrize("classes", [2, 5])
def test_all_of_them_calibrate_rows_that_they_have_not_seen(method, classes):
    p, label = drawn(2000, classes, slope=3.0)
    new, truth = drawn(2000, classes, seed=7, slope=3.0)
    told = CALIBRATORS[method].fit(p, label)(new)
    np.testing.assert_allclose(told.sum(1), 1)
    before, after = (calibration.ece(x, truth) for x in (new, told))
    assert after < 0.05 and before > 3 * after
    np.testing.assert_allclose(told, CALIBRATORS[method].fit(p, label)(new))


def test_rows_that_all_are_right_stay_finite():
    p, label = np.array([[0.9, 0.1], [0.2, 0.8]] * 5), np.array([0, 1] * 5)
    told = Platt.fit(p, label)(p)
    np.testing.assert_allclose(told[0, 0], 6 / 7, atol=1e-6)  # Platt's target of 5 rows
    assert np.isfinite(Vector.fit(p, label)(p)).all() and np.isfinite(Beta.fit(p, label)(p)).all()


def test_labels_without_a_class():
    p = np.full((4, 3), 1 / 3)
    for method in ("vector", "platt", "beta", "isotonic"):
        with pytest.raises(ValueError, match=r"each of the 3 classes .* got no row of \[2\]"):
            CALIBRATORS[method].fit(p, np.array([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"probabilities must have shape \(N, 2\), got \(4, 3\)"):
        Platt.fit(p[:, :2], np.array([0, 1, 0, 1]))(p)


def test_class_wise_error_is_that_of_the_curve_of_scikit_learn():
    p, label = drawn(500, 3)
    got = calibration.classwise_ece(p, label, bins=10)
    for one in range(3):
        place = np.minimum(np.ceil(p[:, one] * 10) - 1, 9).astype(int)
        share, mean = calibration_curve(label == one, p[:, one], n_bins=10)
        rows = np.bincount(place, minlength=10)
        assert got[one] == pytest.approx((rows[rows > 0] * abs(share - mean)).sum() / 500)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_parts_of_the_brier_score_add_up(bins):
    p, label = drawn(700, 3)
    told = calibration.brier(p, label, bins)
    assert told.score == pytest.approx(brier_score_loss(label, p, scale_by_half=False))
    parts = told.reliability - told.resolution + told.uncertainty + told.within
    assert told.score == pytest.approx(parts, abs=1e-12)
    share = np.bincount(label) / 700
    assert told.uncertainty == pytest.approx((share * (1 - share)).sum())
    # Murphy's: one probability in each bin
    coarse = np.round(p[:, :2] * 4 + 0.5) / 4 - 0.125
    coarse = np.stack([coarse[:, 0], 1 - coarse[:, 0]], 1)
    whole = calibration.brier(coarse, np.minimum(label, 1), 4)
    assert abs(whole.within) < 1e-15
    assert whole.score == pytest.approx(whole.reliability - whole.resolution + whole.uncertainty)


def test_debiased_error_is_right_on_average():
    """200 calibrated samples of 150 rows: the squared error is 0, and looks larger by chance."""
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(200):
        sure = rng.uniform(0.5, 1, 150)
        label = (rng.random(150) >= sure).astype(int)  # 0 with the probability of class 0
        made = calibration.reliability(np.stack([sure, 1 - sure], 1), label)
        plain.append(made.squared(debiased=False))
        debiased.append(made.squared())
    error = np.std(debiased) / np.sqrt(200)
    assert abs(np.mean(debiased)) < 4 * error and np.mean(plain) > 10 * error
    # by hand: two bins of 3 and 1 rows
    one = calibration.Reliability(
        np.array([0.6, 0.9]), np.array([2 / 3, 0.0]), np.array([3.0, 1.0])
    )
    assert one.squared(debiased=False) == pytest.approx((3 * (1 / 15) ** 2 + 0.81) / 4)
    assert one.squared() == pytest.approx(3 * ((1 / 15) ** 2 - (2 / 9) / 2) / 4)


def test_interval_of_the_error_holds_the_true_one():
    """Confidence 0.8 and accuracy 0.7 in all rows: the error is 0.1."""
    rng, inside = np.random.default_rng(0), 0
    p = np.tile([0.8, 0.2], (400, 1))
    for seed in range(60):
        label = (rng.random(400) >= 0.7).astype(int)
        told = calibration.ece_interval(p, label, resamples=200, coverage=0.9, seed=seed)
        assert told.mean == pytest.approx(calibration.ece(p, label))
        inside += told.low <= 0.1 <= told.high
    assert 45 <= inside <= 60  # 54 expected, 4 standard deviations of 2.3
    # where the probabilities are right, the error is 0, which the interval holds as often
    inside = 0
    for seed in range(60):
        sure = rng.uniform(0.55, 1, 200)
        p, label = np.stack([sure, 1 - sure], 1), (rng.random(200) >= sure).astype(int)
        told = calibration.ece_interval(p, label, resamples=100, coverage=0.9, seed=seed)
        inside += told.low == 0
        assert told.low <= told.mean <= told.high
    assert 45 <= inside <= 60
    with pytest.raises(ValueError, match="coverage must be between 0 and 1"):
        calibration.ece_interval(p, label, coverage=1.0)


def test_band_is_binomial():
    made = calibration.Reliability(
        np.array([0.55, np.nan, 0.95]), np.array([0.5, np.nan, 0.5]), np.array([40.0, 0, 10])
    )
    low, high = made.band(0.9)
    for place in (0, 2):
        rows, p = made.rows[place], made.confidence[place]
        assert low[place] * rows == pytest.approx(binom.ppf(0.05, rows, p))
        assert high[place] * rows == pytest.approx(binom.ppf(0.95, rows, p))
    assert np.isnan([low[1], high[1]]).all()
    assert low[0] < 0.5 < high[0] and made.accuracy[2] < low[2]
