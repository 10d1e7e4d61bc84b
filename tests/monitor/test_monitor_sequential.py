"""Sequential tests: e-processes by brute force, false alarms over 1,000 streams, and power."""

import itertools

import numpy as np
import pytest
from scipy import integrate, special, stats

from jaxops import monitor
from jaxops.monitor import sequential

STREAMS, LOOKS, BATCH = 1000, 30, 100
MOST = stats.binom.ppf(0.99, STREAMS, 0.05)  # alarms of 1,000 at the level 0.05: 66


def looks(rng, shares, batches=LOOKS, streams=STREAMS):
    """(streams, batches, K), the counts of all rows up to each look."""
    return rng.multinomial(BATCH, shares, (streams, batches)).cumsum(1)


@pytest.fixture(scope="module")
def null():
    """1,000 references of 1,000 rows, and as many streams of the same eight shares."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.full(8, 5.0))
    return shares, rng.multinomial(1000, shares, STREAMS), looks(rng, shares)


def test_dirichlet_mixture_is_an_integral():
    def under(p):
        return p**3 * (1 - p) ** 2 * stats.beta.pdf(p, 0.5, 0.5)

    want = integrate.quad(under, 0, 1)[0]
    assert np.exp(
        sequential._dirichlet(np.array([3.0, 2.0]), np.array([0.5, 0.5]))
    ) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_both_have_a_mean_of_at_most_one(share):
    """Over every reference of 6 rows and every stream of 6, exactly."""
    total = {"categories": 0.0, "mean": 0.0}
    values = np.array([0.0, 1.0])
    for before, now in itertools.product(range(7), repeat=2):
        chance = stats.binom.pmf(before, 6, share) * stats.binom.pmf(now, 6, share)
        r, c = np.array([6 - before, before]), np.array([[6 - now, now]])
        total["categories"] += chance * np.exp(monitor.categories_changed(r, c)[0])
        total["mean"] += chance * np.exp(monitor.mean_changed(r, c, values)[0])
    assert max(total.values()) <= 1, total


def test_categories_by_the_formula():
    """Every probability of the sequence as the product of its rows' predictions."""

    def sequence(counts, prior):
        seen, chance = np.array(prior), 1.0
        for k, count in enumerate(counts):
            for _ in range(count):
                chance *= seen[k] / seen.sum()
                seen[k] += 1
        return chance

    r, c, half = np.array([50, 30, 20]), np.array([10, 15, 30]), np.full(3, 0.5)
    near = (r + 0.5) / 101.5
    now = np.mean([sequence(c, half), *(sequence(c, n * near) for n in (10, 100, 1000))])
    each = []
    for w in (1, 1 / 4, 1 / 16, 1 / 64, 1 / 256, 1 / 1024):
        theta = (c + w * r) / (c + w * r).sum()
        each.append(now * sequence(r, half) ** w / np.prod(theta ** (c + w * r)))
    got = monitor.categories_changed(r, c[None])
    assert got == pytest.approx(np.log(np.mean(each)), abs=1e-9)


def test_mean_is_below_the_capital_at_every_mean():
    """By betting row for row, at 2,000 means; and near the smallest of them."""
    rng = np.random.default_rng(0)
    before, now = rng.beta(2, 5, 300).round(2), rng.beta(3, 5, 150).round(2)
    values, r, c = monitor.pooled(before, now)
    got = monitor.mean_changed(r, c[None], values)[0]

    def capital(x, m):
        bets = 0.5 * 0.25 ** np.arange(7)[:, None]
        up = np.log(1 - bets + bets * x / m).sum(1)
        down = np.log(1 - bets + bets * (1 - x) / (1 - m)).sum(1)
        return special.logsumexp(np.concatenate([up, down])) - np.log(14)

    means = np.linspace(0.001, 0.999, 2000)
    smallest = min(capital(before, m) + capital(now, m) for m in means)
    assert smallest - 0.5 < got <= smallest + 1e-9
    assert got > np.log(20)  # and it is drift


def test_false_alarms_of_a_look_a_batch(null):
    """At most 5 % of 1,000 streams ever, within the binomial interval."""
    _, reference, counts = null
    values = np.linspace(0, 1, 8)
    p = {
        "categories": monitor.anytime_p(monitor.categories_changed(reference, counts)),
        "mean": monitor.anytime_p(monitor.mean_changed(reference, counts, values)),
    }
    for name, each in p.items():
        assert each.shape == (STREAMS, LOOKS)
        assert (each[:, -1] <= 0.05).sum() <= MOST, name
        assert (np.diff(each) <= 0).all()  # evidence is not lost


def test_ks_at_every_look_alarms_too_often():
    """On 1,000 such streams of 100 bins: each day's rows, and all rows so far."""
    rng = np.random.default_rng(0)
    shares = np.full(100, 0.01)
    reference, counts = rng.multinomial(1000, shares, (STREAMS, 1)), looks(rng, shares)
    daily = np.diff(counts, axis=1, prepend=0)
    alarms = []
    for rows in (daily, counts):
        sizes = rows[0].sum(-1)
        limits = stats.kstwo.isf(0.05, np.round(1000 * sizes / (1000 + sizes)))  # where p is 0.05
        gap = reference.cumsum(-1) / 1000 - rows.cumsum(-1) / sizes[:, None]
        alarms.append(np.abs(gap).max(-1) >= limits)
        some = monitor.ks(reference[:9], rows[:9, -1:])
        np.testing.assert_array_equal(some.p <= 0.05, alarms[-1][:9, -1:])
    assert alarms[0][:, 0].sum() <= MOST  # one look is right
    assert alarms[0].any(1).sum() > 5 * MOST
    assert alarms[1].any(1).sum() > MOST


def test_drift_is_seen_soon(null):
    """Shares of which a tenth moves, in 3,000 rows; a mean that moves by 0.04, too."""
    shares, _, _ = null
    rng = np.random.default_rng(1)
    reference = rng.multinomial(10_000, shares, 100)
    counts = looks(rng, 0.9 * shares + 0.1 * np.eye(8)[0], streams=100)
    log_e = {
        "categories": monitor.categories_changed(reference, counts),
        "mean": monitor.mean_changed(reference, counts, np.linspace(0, 1, 8)),
    }
    for name, each in log_e.items():
        alarms = monitor.anytime_p(each) <= 0.05
        assert alarms.any(1).mean() >= 0.9, name
        assert alarms[alarms.any(1)].argmax(1).mean() < 20, name


def test_a_larger_reference_helps():
    counts = np.cumsum([[50, 50], [50, 50], [50, 50]], 0)
    small, large = (
        monitor.categories_changed(np.array([70, 30]) * size, counts)[-1] for size in (2, 2000)
    )
    values = np.array([0.0, 1.0])
    assert large > small + 1
    small, large = (
        monitor.mean_changed(np.array([70, 30]) * size, counts, values)[-1] for size in (2, 2000)
    )
    assert large > small + 1


def test_what_is_wrong_is_refused():
    fine = np.array([[1, 2], [3, 4]])
    with pytest.raises(ValueError, match=r"got shapes \(3,\) and \(2, 2\)"):
        monitor.categories_changed([1, 2, 3], fine)
    with pytest.raises(ValueError, match="counts must be whole numbers"):
        monitor.categories_changed([1, 2], fine + 0.5)
    with pytest.raises(ValueError, match="got counts that fall"):
        monitor.categories_changed([1, 2], fine[::-1])
    with pytest.raises(ValueError, match="reference must have rows"):
        monitor.categories_changed([0, 0], fine)
    with pytest.raises(ValueError, match=r"different numbers in \[0, 1\], got \[0.0, 2.0\]"):
        monitor.mean_changed([1, 2], fine, [0, 2])
    with pytest.raises(ValueError, match="log_e must be without NaN"):
        monitor.anytime_p(np.array([np.nan]))
