import numpy as np
import pytest
from sklearn.metrics import log_loss

from jaxops.text import ece, plot_reliability, refusal, reliability, scaled, temperature


def drawn(rows, classes, true_temperature, seed=0):
    """Labels drawn from softmax(z / T), and the probabilities softmax(z) of who does not know T."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(rows, classes)) * 4
    cool = np.exp(z / true_temperature)
    cool /= cool.sum(1, keepdims=True)
    labels = (cool.cumsum(1) > rng.uniform(size=(rows, 1))).argmax(1)
    p = np.exp(z)
    return p / p.sum(1, keepdims=True), labels, cool


@pytest.mark.parametrize("true", [0.5, 1.0, 3.0])
def test_temperature_is_recovered_and_is_the_best(true):
    p, labels, cool = drawn(20_000, 5, true)
    found = temperature(p, labels)
    assert found == pytest.approx(true, rel=0.03)
    np.testing.assert_allclose(scaled(p, true), cool, rtol=1e-6, atol=1e-12)
    classes = range(5)
    best = log_loss(labels, scaled(p, found), labels=classes)
    for other in (found * 0.99, found * 1.01):
        assert best < log_loss(labels, scaled(p, other), labels=classes)
    assert ece(scaled(p, found), labels) < 0.01


def test_many_classes_are_taken_in_parts(monkeypatch):
    p, labels, *_ = drawn(60, 10, 1.7)
    whole = temperature(p, labels)
    monkeypatch.setattr("jaxops.trust.calibration.PART", 70)  # 7 rows
    assert temperature(p.astype(np.float32), labels) == pytest.approx(whole, rel=1e-5)


def test_temperature_of_a_classifier_that_is_always_right_is_low():
    p, labels = np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1])
    assert scaled(p, temperature(p, labels)).max(1).min() > 1 - 1e-9  # nothing left to gain


def test_ece_by_hand():
    # two bins of .5: (.5, 1] holds all of two classes but a tie
    p = np.array([[0.6, 0.4], [0.7, 0.3], [0.1, 0.9], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 0])  # right, wrong, right, right
    assert ece(p, labels, bins=2) == pytest.approx(abs(0.75 - 0.8))
    # four bins: (.5, .75] holds .6 right and .7 wrong, (.75, 1] holds .9 and 1., both right
    found = reliability(p, labels, bins=4)
    np.testing.assert_allclose(found.confidence, [np.nan, np.nan, 0.65, 0.95])
    np.testing.assert_allclose(found.accuracy, [np.nan, np.nan, 0.5, 1.0])
    assert found.rows.tolist() == [0, 0, 2, 2]
    assert ece(p, labels, bins=4) == pytest.approx(0.5 * 0.15 + 0.5 * 0.05)


def test_reliability_against_a_loop():
    p, labels, _ = drawn(500, 4, 2.0)
    found, total = reliability(p, labels, bins=10), 0.0
    for i in range(10):
        rows = [r for r in range(500) if i / 10 < p[r].max() <= (i + 1) / 10]
        assert found.rows[i] == len(rows)
        if rows:
            right = np.mean([p[r].argmax() == labels[r] for r in rows])
            sure = np.mean([p[r].max() for r in rows])
            assert found.accuracy[i] == pytest.approx(right)
            total += abs(right - sure) * len(rows) / 500
    assert found.ece() == pytest.approx(total)


@pytest.mark.parametrize("accuracy", [0.5, 0.7, 0.75])
def test_refusal_against_brute_force(accuracy):
    rng = np.random.default_rng(3)
    inside, outside = rng.uniform(0.2, 1, 200).round(2), rng.uniform(0, 0.8, 150).round(2)
    right = rng.uniform(size=200) < 0.8
    recalls = [
        (float((outside < t).mean()), t)
        for t in np.unique(inside)
        if (right & (inside >= t)).mean() >= accuracy
    ]
    assert refusal(inside, right, outside, accuracy) == max(recalls)


def test_refusal_where_too_little_is_right():
    assert refusal(np.ones(4), np.array([1, 1, 0, 0]), np.zeros(3)) == (0.0, -np.inf)


def test_shapes():
    with pytest.raises(ValueError, match=r"shapes \(N, C\) and \(N,\), got \(3, 2\) and \(2,\)"):
        ece(np.ones((3, 2)), np.zeros(2, int))
    for labels in (["lost", "found"], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match=r"labels must be whole numbers in \[0, 2\), the"):
            ece(np.ones((2, 2)), np.array(labels))
    for wrong in (np.nan, -1.0, 7.0):  # such as logits
        with pytest.raises(ValueError, match=r"probabilities must be numbers in \[0, 1\], got"):
            temperature(np.array([[0.5, wrong]]), np.array([0]))


def test_picture(tmp_path):
    p, labels, _ = drawn(300, 4, 2.0)
    figure = plot_reliability(p, labels, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5000
    assert f"{ece(p, labels):.2%}" in figure.axes[0].get_title()
