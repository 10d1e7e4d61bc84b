"""Order, deciles and profit, held to scikit-learn, SciPy, loops and quadrature."""

import numpy as np
import pytest
from scipy.stats import beta, bootstrap, spearmanr

from jaxops import customers

RNG = np.random.default_rng(0)
N = 300
VALUE = np.where(RNG.uniform(size=N) < 0.4, RNG.gamma(1, 50, N), 0)
TOLD = np.round(VALUE * RNG.uniform(0.2, 2, N) + RNG.gamma(1, 10, N), -1)  # with ties
CHURNED = (RNG.uniform(size=N) < 0.3).astype(float)
SCORE = np.round(CHURNED * 0.5 + RNG.normal(0, 0.6, N), 1)


def test_gini():
    def area(order, value):
        """Of the Lorenz curve, less that of a random order."""
        share = np.concatenate([[0], np.cumsum(value[order]) / value.sum()])
        return ((share[1:] + share[:-1]) / 2).mean() - 0.5

    rng = np.random.default_rng(1)
    got = customers.normalized_gini(TOLD, VALUE)
    orders = [np.lexsort((rng.uniform(size=N), -TOLD)) for _ in range(400)]  # ties at random
    wanted = np.mean([area(order, VALUE) for order in orders]) / area(np.argsort(-VALUE), VALUE)
    assert got == pytest.approx(wanted, abs=2e-3)
    assert customers.normalized_gini(VALUE, VALUE) == pytest.approx(1)
    assert customers.normalized_gini(-VALUE, VALUE) == pytest.approx(-1)
    metrics = pytest.importorskip("sklearn.metrics")
    auc = metrics.roc_auc_score(CHURNED, SCORE)
    assert customers.normalized_gini(SCORE, CHURNED) == pytest.approx(2 * auc - 1)
    assert np.isnan(customers.normalized_gini(TOLD, np.ones(N)))


def test_spearman():
    assert customers.spearman(TOLD, VALUE) == pytest.approx(spearmanr(TOLD, VALUE).statistic)
    assert np.isnan(customers.spearman(np.ones(N), VALUE))


def tied(score, value):
    """Each value, or the mean of those with the same score."""
    return np.array([value[score == one].mean() for one in score])


def test_the_order_of_equal_scores_is_no_matter():
    outcome = np.repeat([1.0, 0.0], 50)
    for came in (outcome, outcome[::-1]):
        got = customers.profit_curve(np.full(100, 0.5), came, benefit=10, cost=6)
        assert (got.best, got.best_profit) == (0, 0) and got.profit[10] == pytest.approx(-50)
        groups = customers.deciles(np.full(100, 0.5), came)
        np.testing.assert_allclose(groups.actual, 0.5)
    order = RNG.permutation(N)
    for function in (customers.deciles, lambda a, b: customers.profit_curve(a, b, 9.0, 3.0)):
        one, other = function(SCORE, CHURNED), function(SCORE[order], CHURNED[order])
        for name in ("expected", "actual", "profit", "best", "best_profit"):
            if hasattr(one, name):
                np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-9)


def test_intervals_are_those_of_the_bootstrap_of_scipy():
    value, told = RNG.gamma(2, 10, 400), np.arange(400.0)
    got = customers.deciles(told, value, groups=2)
    wanted = bootstrap((value[200:],), np.mean, method="percentile", rng=np.random.default_rng(0))
    low, high = wanted.confidence_interval
    assert (got.low[0], got.high[0]) == pytest.approx((low, high), rel=0.03)
    curve = customers.profit_curve(told, np.ones(400), value, 0.0)
    wanted = bootstrap((value,), np.sum, method="percentile", rng=np.random.default_rng(0))
    low, high = wanted.confidence_interval
    assert (curve.low[-1], curve.high[-1]) == pytest.approx((low, high), rel=0.03)
    assert (curve.best_low, curve.best_high) == (curve.low[-1], curve.high[-1])  # all are worth it


def test_a_group_of_which_nothing_came():
    assert np.isnan(customers.deciles([3.0, 2.0, 1.0], [1.0, 1.0, 0.0], 3).mape())


def test_deciles(tmp_path):
    got = customers.deciles(TOLD, VALUE)
    order = np.argsort(-TOLD, kind="stable")
    shared = tied(TOLD, VALUE)
    for i, part in enumerate(np.split(order, 10)):
        assert got.expected[i] == pytest.approx(TOLD[part].mean())
        assert got.actual[i] == pytest.approx(shared[part].mean())
        assert got.share[i] == pytest.approx(shared[part].sum() / VALUE.sum())
        assert got.low[i] <= got.actual[i] <= got.high[i]
    assert got.rows.tolist() == [30] * 10 and got.share.sum() == pytest.approx(1)
    assert got.frame().columns.tolist()[:2] == ["decile", "rows"]
    assert customers.deciles(2 * VALUE + 1, VALUE + 0.5, 3).mape() == pytest.approx(1)
    path = tmp_path / "deciles.png"
    assert len(customers.plot_deciles({"one": got, "two": got}, path, "pounds").axes) == 2
    assert path.stat().st_size > 5000


def test_profit(tmp_path):
    benefit = RNG.uniform(5, 50, N)
    got = customers.profit_curve(SCORE, CHURNED, benefit, 4.0)
    order = np.argsort(-SCORE, kind="stable")
    gain = tied(SCORE, CHURNED * benefit - 4)[order]
    for place, profit in zip(got.contacted, got.profit, strict=True):
        assert profit == pytest.approx(gain[:place].sum(), abs=1e-9)
    every = [gain[:n].sum() for n in range(N + 1)]
    assert got.best == np.argmax(np.round(every, 9)) and got.best_profit == pytest.approx(
        max(every)
    )
    assert got.best_low < got.best_profit < got.best_high
    assert (
        got.contacted[-1] == N and (got.low <= got.profit).all() and (got.profit <= got.high).all()
    )
    path = tmp_path / "profit.png"
    customers.plot_profit({"one": got}, path)
    assert path.stat().st_size > 5000
    worth = customers.worth_contacting(np.array([0.1, 0.5]), np.array([10.0, 10.0]), 2.0)
    assert worth.tolist() == [False, True]


def test_expected_maximum_profit_against_quadrature():
    options = {"value": 180.0, "offer": 12.0, "contact": 2.0, "accepts": (5.0, 9.0)}
    got = customers.expected_maximum_profit(SCORE, CHURNED, **options)
    cuts = np.unique(SCORE)
    hit = np.array([0, *((CHURNED * (cut <= SCORE)).sum() / N for cut in cuts)])
    missed = np.array([0, *(((1 - CHURNED) * (cut <= SCORE)).sum() / N for cut in cuts)])
    gamma = (np.arange(20_000) + 0.5) / 20_000
    profit = (180 - 12) * gamma[:, None] * hit - 2 * hit - 14 * missed
    weight = beta.pdf(gamma, 5, 9) / 20_000
    assert got.profit == pytest.approx(profit.max(1) @ weight, rel=1e-4)
    assert got.contacted == pytest.approx((hit + missed)[profit.argmax(1)] @ weight, abs=2e-3)

    def best(score, churned):
        """Of a sample that SciPy draws."""
        gone = [((cut <= score) * churned).sum() / N for cut in [*cuts, 9.0]]
        every = [(cut <= score).sum() / N for cut in [*cuts, 9.0]]
        profit = np.outer(gamma[::100], 168 * np.array(gone)) - 14 * np.array(every)
        return (profit + 12 * np.array(gone)).max(1) @ weight[::100] * 100

    sampled = bootstrap(
        (SCORE, CHURNED), best, n_resamples=300, paired=True, vectorized=False, rng=1,
        method="percentile",
    ).confidence_interval  # fmt: skip
    width = sampled.high - sampled.low
    assert got.low == pytest.approx(sampled.low, abs=0.2 * width)
    assert got.high == pytest.approx(sampled.high, abs=0.2 * width)
    random = customers.expected_maximum_profit(np.zeros(N), CHURNED)
    assert customers.expected_maximum_profit(CHURNED, CHURNED).profit > random.profit


def test_a_campaign_that_costs_nothing_contacts_all():
    got = customers.expected_maximum_profit([3, 2, 1, 0], [1, 0, 0, 0], offer=0.0, contact=0.0)
    assert got.profit == pytest.approx(200 * 0.3 / 4) and got.contacted == pytest.approx(1)
    assert 0 <= got.low < got.profit < got.high


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: customers.normalized_gini([1, 2], [1]),
            r"expected and actual must have shape \(N,\)",
        ),
        (
            lambda: customers.spearman([1, np.nan], [1, 2]),
            "expected must be finite, got nan in row 1",
        ),
        (lambda: customers.deciles([1.0, 2.0], [1.0, 2.0]), "groups must be 1 to 2"),
        (
            lambda: customers.profit_curve([1, 2], [0, 3], 1, 1),
            r"outcome must be in \[0, 1\], got 3.0 in row 1",
        ),
        (
            lambda: customers.profit_curve([1, 2], [0, 1], [1, 2, 3], 1),
            "benefit must be one number",
        ),
        (lambda: customers.profit_curve([1, 2], [0, 1], 1, -1), "cost must be at least 0, got -1"),
        (
            lambda: customers.worth_contacting([1.5], 1, 1),
            r"probability must be in \[0, 1\], got 1.5 in row 0",
        ),
        (
            lambda: customers.expected_maximum_profit([1, 2], [1, 1]),
            "churned must be 0 and 1, both",
        ),
        (
            lambda: customers.expected_maximum_profit([1, 2], [0, 1], offer=300.0),
            "value must be above",
        ),
    ],
)
def test_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()
