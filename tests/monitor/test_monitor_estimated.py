"""Performance without labels against the true one, under a shift of the inputs; late labels."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from jaxops import monitor
from jaxops.monitor import estimated


def drawn(rng, rows, middle):
    """Inputs, labels, and the overconfident probabilities of a model that knows half the inputs."""
    x = rng.normal(middle, 1, (rows, 2))
    label = (rng.random(rows) < 1 / (1 + np.exp(-1.5 * x[:, 0] - 0.3 * x[:, 1]))).astype(int)
    p = 1 / (1 + np.exp(-3 * x[:, 0]))
    return np.stack([1 - p, p], 1), label


@pytest.mark.parametrize("middle", [0.0, 1.0])
def test_a_classifier_s_figures_under_a_shift(middle):
    """The inputs move to where the model is surer, or do not: the truth is within the bounds."""
    rng = np.random.default_rng(0)
    known, labels = drawn(rng, 4000, 0.0)
    now, truth = drawn(rng, 2000, middle * np.array([1, 0]))
    told = monitor.confidence_based(known, labels, now, draws=100)
    right = {
        "accuracy": (now.argmax(1) == truth).mean(),
        "f1": f1_score(truth, now.argmax(1)),
        "auc": roc_auc_score(truth, now[:, 1]),
    }
    for name, value in right.items():
        one = getattr(told, name)
        assert one.low < value < one.high and one.high - one.low < 0.1, name
        assert one.low < one.mean < one.high
    if middle:  # what the reference has is no estimate
        before = (known.argmax(1) == labels).mean()
        assert not told.accuracy.low < before < told.accuracy.high
    # without calibration the probabilities promise more
    assert now.max(1).mean() > told.accuracy.high
    np.testing.assert_allclose(told.confusion, confusion_matrix(truth, now.argmax(1)), atol=60)


@pytest.mark.slow
def test_bounds_hold_the_truth_as_often_as_they_say():
    inside = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        known, labels = drawn(rng, 600, 0.0)
        now, truth = drawn(rng, 300, np.array([0.7, 0]))
        told = monitor.confidence_based(known, labels, now, coverage=0.8, draws=60, seed=seed)
        inside += told.accuracy.low <= (now.argmax(1) == truth).mean() <= told.accuracy.high
    assert 24 <= inside <= 38  # 32 expected, 3 standard deviations of 2.5


def test_expected_counts_by_hand():
    """Isotonic curves of scikit-learn, for three classes."""
    rng = np.random.default_rng(0)
    known = rng.dirichlet([1, 1, 1], 500)
    labels = (rng.random((500, 1)) > known.cumsum(1)).sum(1)
    now = rng.dirichlet([2, 1, 1], 80)
    told = monitor.confidence_based(known, labels, now, draws=2)
    curves = [
        IsotonicRegression(out_of_bounds="clip").fit(known[:, k], labels == k).predict(now[:, k])
        for k in range(3)
    ]
    p = np.stack(curves, 1)
    p /= p.sum(1, keepdims=True)
    counts = np.stack([p[now.argmax(1) == k].sum(0) for k in range(3)], 1)
    np.testing.assert_allclose(told.confusion, counts, atol=1e-9)
    assert told.accuracy.mean == pytest.approx(counts.diagonal().sum() / 80, abs=1e-12)
    f1 = 2 * counts.diagonal() / (counts.sum(0) + counts.sum(1))
    assert told.f1.mean == pytest.approx(f1.mean(), abs=1e-12)


def test_area_with_weights_is_scikit_learn_s():
    rng = np.random.default_rng(0)
    score, p = rng.random(50).round(1), rng.random(50)
    want = roc_auc_score(
        np.repeat([1, 0], 50), np.tile(score, 2), sample_weight=np.concatenate([p, 1 - p])
    )
    assert estimated._area(score, p) == pytest.approx(want, abs=1e-9)


def noisy(rng, rows, low):
    """A regression whose errors grow with the second input."""
    x = rng.random((rows, 2)) * (1 - low) + low
    target = 2 * x[:, 0] + rng.normal(0, 0.1 + x[:, 1])
    return x, 2 * x[:, 0], target


@pytest.mark.parametrize("loss", ["absolute", "squared"])
def test_a_regression_s_loss_under_a_shift(loss):
    rng = np.random.default_rng(0)
    known = noisy(rng, 3000, 0.0)
    direct = monitor.DirectLoss(loss).fit(*known)
    x, predictions, target = noisy(rng, 2000, 0.6)
    told = direct.estimate(x, predictions)
    measure = estimated.LOSSES[loss]
    true = measure(target - predictions).mean()
    before = measure(known[2] - known[1]).mean()
    assert told.low < true < told.high
    assert told.high - told.low < 0.25 * true
    assert not told.low < before < told.high


@pytest.mark.slow
def test_bounds_of_a_loss_hold_it_as_often_as_they_say():
    direct = monitor.DirectLoss().fit(*noisy(np.random.default_rng(0), 4000, 0.0))
    inside = 0
    for seed in range(1, 61):
        x, predictions, target = noisy(np.random.default_rng(seed), 150, 0.3)
        told = direct.estimate(x, predictions, coverage=0.8)
        inside += told.low <= np.abs(target - predictions).mean() <= told.high
    assert 38 <= inside <= 58  # 48 expected, 3 standard deviations of 3.1


def test_late_labels_are_joined_in_any_order():
    rng = np.random.default_rng(0)
    kept = {"id": np.array([f"r{i}" for i in range(100)]), "p": rng.random((100, 2))}
    come = rng.permutation(100)[:30]
    labels = {
        "id": np.append(kept["id"][come], ["gone"]),
        "label": np.append(come, [7]),  # the label says which row it belongs to
    }
    joined = monitor.with_labels(kept, labels)
    assert joined.share == 0.3 and joined.unknown == 1
    np.testing.assert_array_equal(joined.rows["label"], np.sort(come))
    np.testing.assert_array_equal(joined.rows["p"], kept["p"][np.sort(come)])
    nothing = monitor.with_labels(kept, {"id": np.array(["x"]), "label": np.array([1])})
    assert nothing.share == 0 and len(nothing.rows["p"]) == 0


def test_what_is_wrong_is_refused():
    p = np.array([[0.5, 0.5], [0.1, 0.9]])
    with pytest.raises(ValueError, match=r"labels must be \(2,\) whole numbers, each of 0 to 1"):
        monitor.confidence_based(p, [1, 1], p)
    with pytest.raises(ValueError, match=r"probabilities that sum to 1, got .* in row 1"):
        monitor.confidence_based(p, [0, 1], np.array([[0.5, 0.5], [0.5, 0.9]]))
    with pytest.raises(ValueError, match=r"probabilities must be \(N, 2\), got shape \(1, 3\)"):
        monitor.confidence_based(p, [0, 1], np.full((1, 3), 1 / 3))
    with pytest.raises(ValueError, match="coverage must be between 0 and 1"):
        monitor.confidence_based(p, [0, 1], p, coverage=95)
    with pytest.raises(ValueError, match="loss must be one of absolute, squared, got 'other'"):
        monitor.DirectLoss("other").fit(np.eye(3), np.ones(3), np.ones(3))
    with pytest.raises(ValueError, match="trees must be trained by fit"):
        monitor.DirectLoss().estimate(np.eye(3), np.ones(3))
    with pytest.raises(ValueError, match="50 rows or more"):
        monitor.DirectLoss().fit(np.eye(3), np.ones(3), np.ones(3))
    kept = {"id": np.array([1, 2]), "p": np.array([0.5, 0.5])}
    with pytest.raises(ValueError, match=r"labels must have each id once, got .*5.* in row 1"):
        monitor.with_labels(kept, {"id": np.array([5, 5]), "label": np.array([0, 1])})
    with pytest.raises(ValueError, match=r"labels must have the columns .* got no \['label'\]"):
        monitor.with_labels(kept, {"id": np.array([5])})
    with pytest.raises(ValueError, match="columns of one length"):
        monitor.with_labels(kept, {"id": np.array([5]), "label": np.array([0, 1])})
    with pytest.raises(ValueError, match="no column 'label'"):
        monitor.with_labels(kept | {"label": np.zeros(2)}, {"id": [5], "label": [0]})
