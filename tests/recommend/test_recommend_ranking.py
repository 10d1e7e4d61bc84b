"""Ranks and metrics against a NumPy brute force, scikit-learn and values worked by hand."""

import itertools
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import numpy as np
import pytest
from sklearn import metrics as sklearn

from jaxops import recommend
from jaxops.recommend import Histories, Recommender, batching, metrics, ranking


@dataclass(frozen=True)
class Given:
    """The table's rows as queries: of a user's last item, or the sum; or whole rows of scores."""

    context: int | None = None
    scores: bool = False
    answers_empty: ClassVar[bool] = True

    def queries(self, params, history):
        return params.at[history].get(mode="fill", fill_value=0).sum(1)

    def table(self, params):
        return None if self.scores else params


def lists(rows):
    return Histories(
        np.array([item for row in rows for item in row], np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
    )


def brute(scores, seen, targets, exclude_seen=True):
    """The ranks and the ties of a user's targets, one after the other, those never shown last."""
    found, ties = [], []
    left_out = set(seen) if exclude_seen else set()
    for target in dict.fromkeys(targets):
        if target in left_out:
            continue
        others = np.array([s for i, s in enumerate(scores) if i not in left_out and i != target])
        found.append(1 + (others > scores[target]).sum() + (others == scores[target]).sum() / 2)
        ties.append(1 + (others == scores[target]).sum())
    lost = len(set(targets)) - len(found)
    return found + [len(scores) + 1 + i for i in range(lost)], ties + [1] * lost


def some(users, items, longest, seed, values=7):
    """Scores of few values, so that there are ties; histories with repeats; 0 to 3 targets."""
    rng = np.random.default_rng(seed)
    table = rng.integers(-values, values, (items, items)).astype(np.float32)
    histories = [list(rng.integers(0, items, rng.integers(longest))) for _ in range(users)]
    targets = [list(rng.integers(0, items, rng.integers(4))) for _ in range(users)]
    return table, histories, targets


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("context", [None, 5])
@pytest.mark.parametrize("table", [True, False])
def test_ranks_are_a_brute_forces(exclude_seen, context, table, monkeypatch):
    monkeypatch.setattr(batching, "CELLS_AT_ONCE", 2**17)  # several batches, the last not full
    params, histories, targets = some(users=150, items=40, longest=70, seed=0)
    params = params if not table else params[:, :6]
    model = Given(context, scores=not table)
    recommender = Recommender(model, params, np.arange(40).astype(str), np.ones(40))
    got = recommend.ranks(recommender, lists(histories), lists(targets), exclude_seen)
    assert got.users.tolist() == [u for u in range(150) if targets[u]]
    for user, row, ties in zip(got.users, got.ranks, got.ties, strict=True):
        recent = histories[user] if context is None else histories[user][-context:]
        query = params[recent].sum(0)
        scores = params @ query if table else query
        want = brute(scores, histories[user], targets[user], exclude_seen)
        assert (row[np.isfinite(row)].tolist(), ties[np.isfinite(row)].tolist()) == want
        assert len(row) == 3


def test_all_scores_alike_stand_in_the_middle():
    """Not at the top: a model that knows nothing gets what chance gets."""
    recommender = Recommender(
        Given(), np.zeros((9, 2), np.float32), np.arange(9).astype(str), np.ones(9)
    )
    got = recommend.ranks(recommender, lists([[0, 1], []]), lists([[4], [4]]))
    assert got.ranks.tolist() == [[4.0], [5.0]] and got.ties.tolist() == [[7], [9]]
    assert recommend.hr(got.ranks, 3, got.ties).tolist() == pytest.approx([3 / 7, 3 / 9])


def test_targets_seen_before_are_after_the_catalogue():
    table = np.array([[1.0], [2.0], [3.0], [4.0]], np.float32)
    recommender = Recommender(Given(), table, np.arange(4).astype(str), np.ones(4))
    got = recommend.ranks(recommender, lists([[0, 1, 2, 3]] * 2), lists([[0], [1, 3, 1]]))
    assert got.ranks.tolist() == [[5.0, np.inf], [5.0, 6.0]]
    assert got.candidates.tolist() == [0, 0]
    got = recommend.ranks(recommender, lists([[0, 2]]), lists([[2, 1]]))
    assert got.ranks.tolist() == [[2.0, 5.0]]  # item 3 is above item 1, and item 2 is not shown


def test_minus_infinity_is_never_shown_and_nan_is_no_score():
    scores = np.array([[0, -np.inf, -np.inf, -np.inf]] * 4, np.float32)
    recommender = Recommender(
        Given(context=1, scores=True), scores, np.arange(4).astype(str), np.ones(4)
    )
    assert recommend.ranks(recommender, lists([[3]]), lists([[1]])).ranks.tolist() == [[5.0]]
    scores[0, 2] = np.nan
    with pytest.raises(FloatingPointError, match="scores must not be NaN, got NaN for user 1"):
        recommend.ranks(replace(recommender, params=scores), lists([[3], [0]]), lists([[1], [1]]))


def test_one_program_for_users_of_any_length(monkeypatch):
    monkeypatch.setattr(batching, "CELLS_AT_ONCE", 16 * batching.PLACE * 8)
    params, histories, targets = some(users=64, items=31, longest=16, seed=1)
    recommender = Recommender(Given(context=4), params, np.arange(31).astype(str), np.ones(31))
    before = ranking._score._cache_size()
    targets = [row[:1] for row in targets]
    for _ in range(2):
        recommend.ranks(recommender, lists(histories), lists(targets))
    assert ranking._score._cache_size() == before + 1


@pytest.mark.parametrize(
    ("histories", "targets", "message"),
    [
        ([[0]], [[1], [1]], "targets must be of 1 users, as histories are, got 2"),
        ([[0]], [[]], "targets must hold at least 1 item, got none"),
        ([[0]], [[4]], r"targets must hold items in \[0, 4\), got 4"),
        ([[-1]], [[3]], r"histories must hold items in \[0, 4\), got -1"),
    ],
)
def test_bad_input_is_named(histories, targets, message):
    recommender = Recommender(
        Given(), np.ones((4, 1), np.float32), np.arange(4).astype(str), np.ones(4)
    )
    with pytest.raises(ValueError, match=message):
        recommend.ranks(recommender, lists(histories), lists(targets))


def random_ranks(users=200, items=60, seed=0):
    """Scores without ties, relevance of one to five items each, and the ranks of these."""
    rng = np.random.default_rng(seed)
    scores = rng.permuted(np.tile(np.arange(float(items)), (users, 1)), axis=1)
    relevant = rng.permuted(np.tile(np.arange(items) < 5, (users, 1)), axis=1)
    relevant &= rng.random((users, items)) < 0.7
    relevant[np.arange(users), rng.integers(0, items, users)] = True
    order = np.argsort(np.argsort(-scores, axis=1), axis=1) + 1.0
    return scores, relevant, np.sort(np.where(relevant, order, np.inf), axis=1)[:, ::-1][:, -6:]


@pytest.mark.parametrize("k", [1, 3, 10, 60, 1000])
def test_metrics_are_a_brute_forces(k):
    scores, relevant, ranks = random_ranks()
    order = np.argsort(-scores, axis=1)[:, :k]
    for user in range(len(scores)):
        hits = relevant[user][order[user]]
        total = relevant[user].sum()
        at = np.flatnonzero(hits)
        dcg = sum(1 / np.log2(2 + i) for i in at)
        ideal = sum(1 / np.log2(2 + i) for i in range(min(total, k)))
        precisions = [hits[: i + 1].mean() for i in at]
        want = {
            "hr": float(hits.any()),
            "recall": hits.sum() / total,
            "ndcg": dcg / ideal,
            "mrr": 1 / (at[0] + 1) if len(at) else 0,
            "map": sum(precisions) / min(total, k),
        }
        got = {n: f(ranks[user : user + 1], k)[0] for n, f in metrics.METRICS.items()}
        assert got == pytest.approx(want, abs=1e-12)


def test_metrics_are_scikit_learns():
    scores, relevant, ranks = random_ranks(seed=1)
    for k in (1, 5, 10):
        want = [
            sklearn.ndcg_score(r[None], s[None], k=k) for r, s in zip(relevant, scores, strict=True)
        ]
        np.testing.assert_allclose(recommend.ndcg(ranks, k), want, atol=1e-12)
    want = sklearn.label_ranking_average_precision_score(relevant, scores)
    assert recommend.average_precision(ranks, 60).mean() == pytest.approx(want, abs=1e-12)
    alone = np.argmax(relevant, axis=1)
    first = np.array([[1 + (s > s[a]).sum()] for s, a in zip(scores, alone, strict=True)])
    want = sklearn.top_k_accuracy_score(alone, scores, k=10, labels=np.arange(60))
    assert recommend.hr(first, 10).mean() == want


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
def test_a_metric_of_ties_is_its_mean_over_all_orders(k):
    """Six items in groups of equal scores; every relevance; all 720 orders, one after the other."""
    orders = np.array(list(itertools.permutations(range(6))))
    for groups in ([0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 1]):
        group = np.array(groups)
        fits = orders[(group[orders] == group).all(1)]  # the items at ranks 1 to 6
        place = np.argsort(fits, axis=1) + 1.0  # the ranks of items 0 to 5
        mean, ties = place.mean(0), np.bincount(group)[group]
        for count in (1, 2, 3):
            for chosen in itertools.combinations(range(6), count):
                some = list(chosen)
                for name, metric in metrics.METRICS.items():
                    want = metric(place[:, some], k).mean()
                    got = metric(mean[None, some], k, ties[None, some])
                    assert got == pytest.approx(want, abs=1e-12), (name, groups, chosen)


def test_ties_by_hand():
    """One of ten items that are all alike is among the first five in half of all orders."""
    rank, ties = np.array([[5.5]]), np.array([[10]])
    some = [recommend.hr(rank, k, ties)[0] for k in (1, 5, 6)]
    assert some == pytest.approx([0.1, 0.5, 0.6])
    assert recommend.mrr(rank, 2, ties) == pytest.approx((1 + 1 / 2) / 10)
    assert recommend.ndcg(rank, 2, ties) == pytest.approx((1 + 1 / np.log2(3)) / 10)
    assert recommend.average_precision(np.array([[1.5, 1.5]]), 2).tolist() == [1.0]
    with pytest.raises(
        ValueError, match=r"ties must be \(1, 1\), at least 1, as ranks, got \(1,\)"
    ):
        recommend.hr(rank, 1, np.array([3]))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_metrics_refuse(name):
    metric = metrics.METRICS[name]
    for wrong in (np.ones(3), np.full((2, 2), np.inf), np.zeros((2, 1)), np.array([[np.nan]])):
        with pytest.raises(ValueError, match=r"ranks must be \(U, M\), .*got shape"):
            metric(wrong, 10)
    with pytest.raises(ValueError, match="k must be a whole number of at least 1, got 0"):
        metric(np.ones((1, 1)), 0)
    on_device = metric(jax.numpy.array([[2.0, np.inf]]), 3)
    assert on_device == metric(np.array([[2.0, np.inf]]), 3)
