"""Two-sample tests: SciPy's and scikit-learn's values, the textbook's, and their false alarms."""

import numpy as np
import pytest
from scipy import spatial, stats
from sklearn.metrics.pairwise import rbf_kernel

from jaxops import monitor
from jaxops.monitor import embeddings, statistics


@pytest.fixture(scope="module")
def rows():
    """Three columns, rounded so that values are tied, and moved a little."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(400, 3)).round(1), rng.normal([0, 0.3, 0], [1, 1, 1.4], (250, 3)).round(
        1
    )


@pytest.fixture(scope="module")
def counts():
    """Five columns of eight bins, and counts that are large enough for asymptotics."""
    rng = np.random.default_rng(1)
    shares = rng.dirichlet(np.full(8, 20.0), (2, 5))
    return rng.multinomial(3000, shares[0]), rng.multinomial(2000, shares[1])


def test_rows_are_compared_as_scipy_does(rows):
    for before, now in zip(rows[0].T, rows[1].T, strict=True):
        values, a, b = monitor.pooled(before, now)
        want = stats.ks_2samp(before, now, method="asymp")
        got = monitor.ks(a, b)
        assert got.statistic == pytest.approx(want.statistic, abs=1e-12)
        assert got.p == pytest.approx(want.pvalue, abs=1e-9)
        distance = monitor.wasserstein(a, b, values, permutations=0).statistic
        assert distance == pytest.approx(stats.wasserstein_distance(before, now), abs=1e-12)


def test_counts_are_compared_as_scipy_does(counts):
    reference, current = counts
    middles = np.sort(np.random.default_rng(2).normal(size=8))
    told = monitor.wasserstein(reference, current, middles, permutations=0).statistic
    chi, js = monitor.chi_squared(reference, current), monitor.jensen_shannon(reference, current)
    ks = monitor.ks(reference, current)
    for i, (a, b) in enumerate(zip(reference, current, strict=True)):
        want = stats.chi2_contingency([a, b], correction=False)
        assert chi.statistic[i] == pytest.approx(want.statistic, rel=1e-9)
        assert chi.p[i] == pytest.approx(want.pvalue, rel=1e-6)
        distance = spatial.distance.jensenshannon(a, b, base=2)
        assert js.statistic[i] == pytest.approx(distance, abs=1e-9)
        assert told[i] == pytest.approx(
            stats.wasserstein_distance(middles, middles, a, b), abs=1e-9
        )
        places = np.repeat(middles, a), np.repeat(middles, b)
        same = stats.ks_2samp(*places, method="asymp")
        assert ks.statistic[i] == pytest.approx(same.statistic, abs=1e-9)
        assert ks.p[i] == pytest.approx(same.pvalue, abs=1e-9)


def test_psi_is_the_textbook_s(counts):
    """Its sum by hand, and a worked example: 0.5 and 0.5 against 0.4 and 0.6 is 0.0405."""
    p, q = (x / x.sum(1, keepdims=True) for x in counts)
    got = monitor.psi(*counts)
    np.testing.assert_allclose(got.statistic, ((q - p) * np.log(q / p)).sum(1), atol=1e-12)
    assert monitor.psi([1, 1], [4, 6]).statistic == pytest.approx(0.1 * np.log(1.5), abs=1e-12)


def test_bins_that_a_sample_lacks():
    """In both samples: as if it were not there. In one: half a row for PSI."""
    a, b = np.array([30, 0, 70, 0]), np.array([20, 0, 75, 5])
    for test in (monitor.chi_squared, monitor.psi, monitor.jensen_shannon):
        whole, without = test(a, b), test(a[[0, 2, 3]], b[[0, 2, 3]])
        assert whole.statistic == pytest.approx(without.statistic, abs=1e-12)
        assert whole.p == pytest.approx(without.p, abs=1e-12)
    p, q = np.array([30, 70, 0.5]) / 100.5, np.array([0.2, 0.75, 0.05])
    by_hand = ((q - p) * np.log(q / p)).sum()
    assert monitor.psi(a, b).statistic == pytest.approx(by_hand, abs=1e-12)
    alone = monitor.chi_squared([5, 0], [9, 0])
    assert alone.statistic == 0 and alone.p == 1


def test_false_alarms_are_at_the_level():
    """Counts of 1,000 pairs of samples without drift."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(10, 10.0))
    a, b = rng.multinomial(2000, shares, 1000), rng.multinomial(1000, shares, 1000)
    most = stats.binom.ppf(0.999, 1000, 0.05)  # 72
    for test in (monitor.chi_squared, monitor.psi, monitor.jensen_shannon):
        alarms = (test(a, b).p < 0.05).sum()
        assert 1000 * 0.05 - (most - 50) <= alarms <= most, test.__name__
    assert (monitor.ks(a, b).p < 0.05).sum() <= most  # conservative, for bins are ties
    few = monitor.wasserstein(a[:300], b[:300], np.arange(10), permutations=99, seed=1)
    assert (few.p <= 0.05).sum() <= stats.binom.ppf(0.999, 300, 0.05)


def test_wasserstein_by_permutation_sees_drift_and_nothing_else(monkeypatch):
    before, now = np.array([50, 30, 20, 0]), np.array([20, 30, 30, 20])
    assert monitor.wasserstein(before, now, np.arange(4)).p == 0.005
    assert monitor.wasserstein(before, before, np.arange(4)).p == 1
    many = monitor.wasserstein(np.stack([before, before]), np.stack([now, before]), np.arange(4))
    assert many.p.tolist() == [0.005, 1]
    near = np.array([40, 30, 30, 5])
    p = monitor.wasserstein(before, near, np.arange(4)).p
    monkeypatch.setattr(statistics, "AT_ONCE", 30)  # a few permutations at a time
    assert monitor.wasserstein(before, near, np.arange(4)).p == p and 0.01 < p < 0.9


def test_rates_are_fisher_s():
    got = monitor.rate_changed([3, 0], 200, [9, 0], [150, 150])
    want = [stats.fisher_exact([[3, 197], [9, 141]]).pvalue, 1]
    np.testing.assert_allclose(got.p, want, atol=1e-12)
    np.testing.assert_allclose(got.statistic, [9 / 150 - 3 / 200, 0], atol=1e-12)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return rng.normal(size=(70, 5)), rng.normal(0.1, 1, (41, 5))


def test_mmd_is_that_of_whole_kernels_in_blocks_too(vectors, monkeypatch):
    x, y = vectors
    n, m = len(x), len(y)
    gamma = 1 / (2 * 1.7**2)
    kxx, kyy = rbf_kernel(x, gamma=gamma), rbf_kernel(y, gamma=gamma)
    want = (kxx.sum() - n) / (n * (n - 1)) + (kyy.sum() - m) / (m * (m - 1))
    want -= 2 * rbf_kernel(x, y, gamma=gamma).mean()
    whole = monitor.mmd(x, y, bandwidth=1.7, permutations=19)
    assert whole.statistic == pytest.approx(want, abs=1e-6)
    monkeypatch.setattr(embeddings, "BLOCK", 16)  # 7 blocks, the last of them filled
    parts = monitor.mmd(x, y, bandwidth=1.7, permutations=19)
    assert parts.statistic == pytest.approx(want, abs=1e-6) and parts.p == whole.p


def test_mmd_takes_the_median_distance(vectors):
    x, y = vectors
    median = np.median(spatial.distance.pdist(np.concatenate(vectors)))
    by_hand = monitor.mmd(x, y, bandwidth=median, permutations=1).statistic
    assert monitor.mmd(x, y, permutations=1).statistic == pytest.approx(by_hand, abs=1e-6)


def test_lsdd_is_the_paper_s(vectors):
    """Its formulas with inverses, for the centres and the permutations that were drawn."""
    x, y = vectors
    rows = np.concatenate(vectors)
    rows = (rows - rows.mean(0)) / rows.std(0) / 1.5
    rng = np.random.default_rng(3)
    chosen = rng.permutation(len(x))[:6]
    labels = embeddings._labels(len(x) - 6, len(y), 19, rng) > 0
    rest, centers = np.delete(rows, chosen, 0), rows[chosen]
    near = rbf_kernel(rest, centers, gamma=0.5)
    H = rbf_kernel(centers, gamma=0.25)
    h = np.stack([near[of].mean(0) - near[~of].mean(0) for of in labels.T])
    for penalty in (1, 1 / 4, 1 / 16, 1 / 64, 1 / 256):
        inverse = np.linalg.inv(H + penalty * np.eye(6))
        omega = h @ inverse
        bias = 1 - np.einsum("pi,ij,pj->p", omega, H, omega) / (h * omega).sum(1)
        if bias[1:].mean() < 0.2:
            break
    want = np.einsum("pi,ij,pj->p", h, 2 * inverse - inverse @ H @ inverse, h)
    got = monitor.lsdd(x, y, bandwidth=1.5, centers=6, permutations=19, seed=3)
    assert penalty < 1  # or nothing was chosen
    assert got.statistic == pytest.approx(want[0], abs=1e-6)
    assert got.p == pytest.approx((want >= want[0]).mean(), abs=1e-9)


@pytest.mark.parametrize("test", [monitor.mmd, monitor.lsdd])
def test_embeddings_that_turn_are_seen_and_others_are_not(test):
    """A rotation leaves each column as it was, so no test of columns can see it."""
    rng = np.random.default_rng(1)
    stretched = np.array([3.0, 1.0])
    turned = rng.normal(size=(120, 2)) * stretched
    angle = np.array([[1, 1], [-1, 1]]) / np.sqrt(2)
    before = rng.normal(size=(120, 2)) * stretched @ angle
    assert test(before, turned @ angle.T, permutations=99).p == 0.01
    alarms = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        both = rng.standard_t(4, (2, 120, 2))
        alarms += test(both[0], both[1], permutations=99, seed=seed).p <= 0.05
    assert alarms <= stats.binom.ppf(0.999, 60, 0.05)


def test_what_is_wrong_is_refused():
    with pytest.raises(ValueError, match=r"of the same bins, got shapes \(2,\) and \(3,\)"):
        monitor.psi([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="reference must be finite counts of at least 0, got -1"):
        monitor.ks([1, -1], [1, 2])
    with pytest.raises(ValueError, match="current must have rows in each column"):
        monitor.chi_squared([1, 1], [0, 0])
    with pytest.raises(ValueError, match=r"current must be without NaN.* got row 1"):
        monitor.pooled(np.array([1.0]), np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="values must be 2 increasing numbers"):
        monitor.wasserstein([1, 1], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="whole numbers of rows, got fractions"):
        monitor.wasserstein([1, 0.5], [1, 1], [0, 1])
    with pytest.raises(ValueError, match="from 0 to their number of rows, got 3 of 2"):
        monitor.rate_changed(3, 2, 1, 1)
    with pytest.raises(ValueError, match=r"got shapes \(3, 2\) and \(3, 1\)"):
        monitor.mmd(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="current must be finite, got row 2"):
        monitor.mmd(np.eye(3), np.array([[0, 0, 0], [1, 1, 1], [0, np.inf, 0]]))
    with pytest.raises(ValueError, match="bandwidth must be given where most vectors are equal"):
        monitor.mmd(np.zeros((9, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="centers must be in 1 to 7"):
        monitor.lsdd(np.eye(9), np.eye(9), centers=8)
    with pytest.raises(ValueError, match="permutations must be at least 1, got 0"):
        monitor.mmd(np.eye(3), np.eye(3), permutations=0)
