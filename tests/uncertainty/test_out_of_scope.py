"""Scores of rows out of scope beside scikit-learn."""

import numpy as np
import pytest
from sklearn.covariance import EmpiricalCovariance
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.neighbors import NearestNeighbors

from jaxops.trust.calibration import refusal
from jaxops.uncertainty.out_of_scope import Mahalanobis, Neighbours, detection, energy


def clusters(rows, seed=0, middle=2.0):
    rng = np.random.default_rng(seed)
    label = np.arange(rows) % 3
    x = rng.normal(size=(rows, 5)) @ np.diag([1, 2, 0.5, 1, 3]) + middle * np.eye(3, 5)[label]
    return x, label


def test_area_and_rate_are_scikit_learn_s():
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(1, 1, 301).round(1), rng.normal(0, 1, 155).round(1)
    told = detection(inside, outside)
    kind, both = np.repeat([1, 0], [301, 155]), np.concatenate([inside, outside])
    false, true, _ = roc_curve(kind, both)
    assert told.auroc == pytest.approx(roc_auc_score(kind, both))
    assert told.fpr95 == pytest.approx(false[np.argmax(true >= 0.95)])
    with pytest.raises(ValueError, match=r"out_of_scope must be \(N,\) numbers"):
        detection(inside, np.zeros(0))


def test_threshold_of_validation_rows_keeps_its_rate():
    rng = np.random.default_rng(0)
    recall, threshold = refusal(rng.normal(size=5000), accuracy=0.95)
    assert np.isnan(recall)
    assert (rng.normal(size=50_000) < threshold).mean() == pytest.approx(0.05, abs=0.01)
    for bad, match in (
        ((np.array([1.0, np.nan]),), "in_scope must have 1 score or more and no NaN"),
        ((np.ones(2), None, np.array([np.nan])), "out_of_scope must have 1 score or more"),
        ((np.ones(2), None, None, 90), r"accuracy must be in \(0, 1\], got 90"),
    ):
        with pytest.raises(ValueError, match=match):
            refusal(*bad)


def test_distance_to_the_nearest_mean():
    x, label = clusters(300)
    new = clusters(40, seed=1)[0]
    mean = np.stack([x[label == k].mean(0) for k in range(3)])
    tied = EmpiricalCovariance(assume_centered=True).fit(x - mean[label])
    wanted = -np.min([tied.mahalanobis(new - one) for one in mean], axis=0)
    found = Mahalanobis.fit(x, label)
    np.testing.assert_allclose(found.score(new), wanted, rtol=1e-9)
    every = EmpiricalCovariance().fit(x).mahalanobis(new)
    relative = Mahalanobis.fit(x, label, relative=True).score(new)
    np.testing.assert_allclose(relative, wanted + every, rtol=1e-9, atol=1e-9)
    far = Mahalanobis.fit(x + 1e6, label, relative=True)
    np.testing.assert_allclose(far.score(new + 1e6), wanted + every, rtol=1e-6, atol=1e-6)
    # features that never vary, as of units that are never on, count nothing
    padded = Mahalanobis.fit(np.c_[x, np.zeros(300)], label)
    np.testing.assert_allclose(padded.score(np.c_[new, np.zeros(40)]), wanted, rtol=1e-6)
    # nor does a direction in which no train row varies, where features depend on each other
    basis = np.random.default_rng(2).normal(size=(5, 60))
    wide, across = Mahalanobis.fit(x @ basis, label), np.linalg.svd(basis)[2][-1]
    np.testing.assert_allclose(wide.score(new @ basis), wanted, rtol=1e-6)
    np.testing.assert_allclose(wide.score(new @ basis + 3 * across), wanted, rtol=1e-6)
    with pytest.raises(ValueError, match=r"labels must be \(300,\) whole numbers from 0, each"):
        Mahalanobis.fit(x, label + 1)
    with pytest.raises(ValueError, match=r"features must be \(N, 5\) finite numbers"):
        found.score(new[:, :2])


def test_distance_to_the_neighbours(monkeypatch):
    x, new = clusters(200)[0], clusters(30, seed=1)[0]
    unit, unit_new = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, new))
    wanted = -NearestNeighbors(n_neighbors=7).fit(unit).kneighbors(unit_new)[0][:, -1]
    monkeypatch.setattr("jaxops.uncertainty.out_of_scope.AT_ONCE", 1000)  # five rows at a time
    np.testing.assert_allclose(Neighbours.fit(x, 7).score(new), wanted, atol=1e-3)
    with pytest.raises(ValueError, match=r"k must be in \[1, 200\]"):
        Neighbours.fit(x, 201)


def test_energy():
    z = np.random.default_rng(0).normal(size=(20, 4))
    np.testing.assert_allclose(energy(z), np.log(np.exp(z).sum(1)))
    np.testing.assert_allclose(energy(z, 2.0), 2 * np.log(np.exp(z / 2).sum(1)))
    with pytest.raises(ValueError, match="of 2 classes or more"):
        energy(z[:, :1])
