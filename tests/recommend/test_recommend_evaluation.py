"""Lists, evaluations and their comparison against loops over users and items."""

import contextlib
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from scipy import stats

from jaxops import recommend
from jaxops.recommend import Histories, Recommender, batching


@dataclass(frozen=True)
class Sum:
    """The sum of the rows of a user's items is the query."""

    context: int | None = None

    def queries(self, params, history):
        return params.at[history].get(mode="fill", fill_value=0).sum(1)

    def table(self, params):
        return params


def lists(rows):
    return Histories(
        np.array([item for row in rows for item in row], np.int32),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
    )


def some(users=120, items=48, longest=40, seed=0, again=False):
    """Scores without ties; histories with repeats; 0 to 3 targets, some seen before if `again`."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(items, 8)).astype(np.float32)
    histories = [list(rng.integers(0, items, 1 + rng.integers(longest))) for _ in range(users)]
    targets = [list(rng.integers(0, items, rng.integers(4))) for _ in range(users)]
    if not again:
        pairs = zip(targets, histories, strict=True)
        targets = [[i for i in row if i not in before] for row, before in pairs]
    names, counts = np.arange(items).astype(str), np.ones(items)
    return Recommender(Sum(), table, names, counts), histories, targets


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_evaluation_is_a_brute_forces(exclude_seen, monkeypatch):
    monkeypatch.setattr(batching, "CELLS_AT_ONCE", 2**16)
    recommender, histories, targets = some(again=True)
    again = [len(set(t) & set(h)) for h, t in zip(histories, targets, strict=True)]
    warns = pytest.warns(UserWarning, match=f"{sum(again)} of .* targets are items of their user's")
    with warns if exclude_seen else contextlib.nullcontext():
        got = recommend.evaluated(recommender, lists(histories), lists(targets), 10, exclude_seen)
    never = [again[u] if exclude_seen else 0 for u in got.parts["users"]]
    assert got.parts["never_shown"].tolist() == never
    counts = np.bincount(np.concatenate(histories), minlength=48)
    percentile = (stats.rankdata(counts) - 0.5) / 48
    taken = np.mean([percentile[i] for row in histories for i in row])
    for place, user in enumerate(got.parts["users"]):
        scores = recommender.params @ recommender.params[histories[user]].sum(0)
        left_out = set(histories[user]) if exclude_seen else set()
        want = [i for i in np.argsort(-scores) if i not in left_out]
        assert got.parts["lists"][place].tolist() == [*want, *[48] * 10][:10]
        shown = want[:10]
        assert got.values["recall@10"][place] == np.mean([i in shown for i in set(targets[user])])
        bits = np.mean([-np.log2(max(counts[i], 1) / counts.sum()) for i in shown])
        assert got.values["novelty@10"][place] == pytest.approx(bits)
        bias = np.mean([percentile[i] for i in shown]) - taken
        assert got.values["popularity_bias@10"][place] == pytest.approx(bias)
    figures = got.figures()
    shown = np.bincount(got.parts["lists"].ravel(), minlength=49)[:48]
    assert figures["coverage@10"] == len(set(got.parts["lists"].ravel()) - {48}) / 48
    apart = np.abs(shown[:, None] - shown[None]).mean() / (2 * shown.mean())
    assert figures["gini@10"] == pytest.approx(apart)
    ranks = recommend.ranks(recommender, lists(histories), lists(targets), exclude_seen)
    assert figures["mrr@10"] == recommend.mrr(ranks.ranks, 10).mean()


def test_items_on_eight_devices_give_the_same():
    recommender, histories, targets = some()
    mesh = jax.make_mesh((8,), ("items",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(recommender.params, NamedSharding(mesh, PartitionSpec("items")))
    one = recommend.evaluated(recommender, lists(histories), lists(targets))
    split = replace(recommender, params=spread)
    eight = recommend.evaluated(split, lists(histories), lists(targets))
    np.testing.assert_array_equal(one.parts["ranks"], eight.parts["ranks"])
    np.testing.assert_array_equal(one.parts["lists"], eight.parts["lists"])


def test_a_short_list_and_no_events():
    """Who has seen all but the target is shown the target; of nobody's events nothing is known."""
    recommender, _, _ = some(items=4)
    seen = recommend.evaluated(recommender, lists([[0, 1, 3]]), lists([[2]]), k=3)
    assert seen.parts["lists"].tolist() == [[2, 4, 4]]
    assert seen.figures()["hr@3"] == 1
    new = recommend.evaluated(recommender, lists([[]]), lists([[2]]), k=3)
    assert new.parts["lists"].tolist() == [[0, 1, 2]]  # all score 0
    assert new.values["popularity_bias@3"].tolist() == [0.0]
    known = recommend.evaluated(
        recommender, lists([[]]), lists([[2]]), 3, counts=np.array([5, 1, 1, 1])
    )
    assert known.values["novelty@3"] == pytest.approx(-np.log2([5 / 8, 1 / 8, 1 / 8]).mean())
    assert np.isnan(recommend.novelty(np.array([[4, 4]]), np.ones(4))).all()


@pytest.mark.parametrize("k", [0, 49])
def test_k_outside_the_catalogue_is_named(k):
    recommender, histories, targets = some()
    with pytest.raises(ValueError, match=rf"k must be 1 to 48 \(.*got {k}"):
        recommend.evaluated(recommender, lists(histories), lists(targets), k)


def test_wrong_counts_are_named():
    recommender, histories, targets = some()
    with pytest.raises(ValueError, match=r"counts must have shape \(48,\), got \(3,\)"):
        recommend.evaluated(recommender, lists(histories), lists(targets), counts=np.ones(3))


def test_segments_make_the_whole():
    recommender, histories, targets = some()
    whole = recommend.evaluated(recommender, lists(histories), lists(targets))
    labels = np.where([len(row) < 20 for row in histories], "short", "long")
    parts = recommend.segments(whole, labels)
    assert list(parts) == ["long", "short"]
    short = parts["short"].ids
    assert [labels[u] for u in short] == ["short"] * len(short)
    alone = recommend.evaluated(
        recommender,
        lists(histories),
        lists([t if label == "short" else [] for t, label in zip(targets, labels, strict=True)]),
    )
    assert alone.figures() == parts["short"].figures()
    assert sum(len(part) for part in parts.values()) == len(whole)
    with pytest.raises(
        ValueError, match=r"labels must be one for each user, \(U,\) with U at least \d+, got shape"
    ):
        recommend.segments(whole, labels[:-2])


def test_coverage_has_no_interval_and_only_ranks_are_marked():
    recommender, histories, targets = some()
    mirrored = replace(recommender, params=-recommender.params)
    one, other = (
        recommend.evaluated(model, lists(histories), lists(targets))
        for model in (recommender, mirrored)
    )
    assert np.isnan(one.interval("coverage@10").low) and one.interval("hr@10").low >= 0
    rows = recommend.compare({"one": one, "other": other})
    assert not any("**" in row[f"{n}@10"] for row in rows for n in ("novelty", "coverage", "gini"))
    assert rows[0]["coverage@10"].endswith(" [-]")


def test_sampled_metrics_warn_and_are_those_of_a_draw():
    recommender, histories, targets = some(users=60, items=300)
    targets = [row[:1] for row in targets]
    ranks = recommend.ranks(recommender, lists(histories), lists(targets))
    left_out = [len(set(histories[u])) for u in ranks.users]
    assert ranks.candidates.tolist() == [300 - n for n in left_out]
    draws = 400
    got = []
    for seed in range(draws):
        with pytest.warns(UserWarning, match="Krichene and Rendle 2020"):
            values = recommend.sampled_metrics(ranks, 10, negatives=50, seed=seed)
        got.append([values["sampled_hr@10"], values["sampled_ndcg@10"]])
    rng = np.random.default_rng(0)
    want = []
    for rank, count in zip(ranks.ranks[:, 0], ranks.candidates, strict=True):
        # the others in the order of their scores: the first rank - 1 stand above the target
        drawn = rng.permuted(np.tile(np.arange(count - 1), (draws, 1)), axis=1)[:, :50]
        place = 1 + (drawn < rank - 1).sum(1)
        want.append([place <= 10, np.where(place <= 10, 1 / np.log2(1 + place), 0)])
    error = np.sqrt(0.25 / draws)
    np.testing.assert_allclose(np.mean(got, 0).T, np.mean(want, 2), atol=6 * error)
    np.testing.assert_allclose(np.mean(got, (0, 2)), np.mean(want, (0, 2)), atol=6 * error / 7)
    with (
        pytest.warns(UserWarning),
        pytest.raises(ValueError, match=r"negatives must be 1 to \d+ \(.*got 300"),
    ):
        recommend.sampled_metrics(ranks, 10, negatives=300)
