"""The best items for any histories, against a sort of all scores."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

import jaxops as jo
from jaxops import recommend as r
from jaxops.model.topk import top_k
from jaxops.recommend.batching import batches, padded

ITEMS = 37


@pytest.fixture(scope="module")
def recommender():
    """An untrained SASRec: its lists are as good as any."""
    module = r.sasrec(ITEMS, 6, 16, 1, 2, 0.0)
    params = initial(module)
    names = np.array([f"item {i}" for i in range(ITEMS)])
    return r.Recommender(r.SequenceModel(module), params, names, np.arange(ITEMS, dtype=float))


def initial(module):
    ones = np.ones((1, 6), np.int32)
    return filled(functools.partial(module.init, method="hidden"), ones, ones, ones)["params"]


queries = jax.jit(r.SequenceModel.queries, static_argnums=0)


def some_histories(users=50, seed=0):
    draw = np.random.default_rng(seed)
    lengths = draw.integers(0, 20, users)
    items = draw.integers(0, ITEMS, lengths.sum()).astype(np.int32)
    return r.Histories(items, np.concatenate([[0], np.cumsum(lengths)]))


@pytest.fixture(scope="module")
def by_hand(recommender):
    """One user at a time, a stable sort of all scores."""
    params = jax.device_put(recommender.params)
    table = np.asarray(jax.jit(recommender.model.table)(params))

    def best(history, k, exclude_seen=True, allowed=None):
        if len(history) == 0:
            scores = recommender.counts / recommender.counts.sum()
        else:
            last = np.pad(history[-6:], (0, max(0, 6 - len(history))), constant_values=ITEMS)
            scores = table @ np.asarray(queries(recommender.model, params, last[None]))[0]
        left = np.ones(ITEMS, bool) if allowed is None else allowed.copy()
        if exclude_seen:
            left[history] = False
        order = np.argsort(-np.where(left, scores, -np.inf), kind="stable")[: min(k, left.sum())]
        return order, scores[order]

    return best


def split(histories):
    return [histories.items[a:b] for a, b in zip(*(histories.starts[:-1], histories.starts[1:]))]


@pytest.mark.parametrize(
    ("devices", "exclude_seen"),
    [(None, True), (None, False), (8, True), pytest.param(8, False, marks=pytest.mark.slow)],
)
def test_lists_are_those_of_a_sort(recommender, by_hand, exclude_seen, devices):
    histories = some_histories()
    found = r.recommend(
        recommender,
        histories,
        5,
        exclude_seen=exclude_seen,
        devices=None if devices is None else jax.devices()[:devices],
    )
    for user, history in enumerate(split(histories)):
        order, scores = by_hand(history, 5, exclude_seen)
        assert found.places[user].tolist() == order.tolist()
        np.testing.assert_allclose(found.scores[user], scores, atol=1e-5)
    assert found.empty == (histories.lengths == 0).sum() > 0


def test_ids_in_ids_out(recommender):
    histories = [["item 3", "no such item", "item 5"], ["item 3", "item 5"], ["what"], []]
    found = r.recommend(recommender, histories, 4)
    assert found.unknown == 2 and found.empty == 2
    lists = found.ids()
    assert lists[0] == lists[1] and "item 3" not in lists[0]
    assert lists[2] == lists[3] == ["item 36", "item 35", "item 34", "item 33"]


def test_allow_and_deny(recommender, by_hand):
    histories = some_histories()
    allow, deny = [f"item {i}" for i in range(0, 20)], ["item 4", "item 11"]
    found = r.recommend(recommender, histories, 18, allow=allow, deny=deny)
    allowed = np.arange(ITEMS) < 20
    allowed[[4, 11]] = False
    for user, history in enumerate(split(histories)):
        order, _ = by_hand(history, 18, allowed=allowed)
        assert found.places[user][: len(order)].tolist() == order.tolist()
        assert (found.places[user][len(order) :] == ITEMS).all()
        assert (found.scores[user][len(order) :] == -np.inf).all()
    assert len(found.ids()[0]) <= 18
    alone = r.recommend(recommender, histories, 3, deny=deny)
    assert not np.isin(alone.places, [4, 11]).any()


def test_a_user_who_has_seen_everything(recommender):
    everything = [[f"item {i}" for i in range(ITEMS)]]
    found = r.recommend(recommender, everything, 3)
    assert found.ids() == [[]] and (found.places == ITEMS).all()
    assert len(r.recommend(recommender, everything, 3, exclude_seen=False).ids()[0]) == 3


def test_no_users(recommender):
    found = r.recommend(recommender, [], 3)
    assert found.places.shape == (0, 3) and found.ids() == []


def test_what_is_seen_reaches_beyond_the_context(recommender):
    """Ten items seen, six of them read: all ten are left out."""
    history = [f"item {i}" for i in range(10)]
    found = r.recommend(recommender, [history], ITEMS - 10)
    assert sorted(found.places[0]) == list(range(10, ITEMS))
    # and the earlier four change nothing else
    late = r.recommend(recommender, [history[4:]], ITEMS, deny=history[:4])
    assert late.places[0][: ITEMS - 10].tolist() == found.places[0].tolist()


def test_many_users_in_batches_are_as_alone(recommender):
    histories = some_histories(1200, seed=3)
    together = r.recommend(recommender, histories, 5)
    for user in (0, 511, 512, 700, 1199):
        row = histories.items[histories.starts[user] : histories.starts[user + 1]]
        alone = r.recommend(recommender, r.Histories(row, np.array([0, len(row)])), 5)
        assert together.places[user].tolist() == alone.places[0].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 38}, r"k must be 1 to 37 \(.*got 38"),
        ({"k": 0}, r"k must be 1 to 37 \(.*got 0"),
        ({"allow": ["item 3", "thing"]}, "allow must hold ids of the catalogue, got 'thing'"),
        ({"deny": ["thing"]}, "deny must hold ids of the catalogue, got 'thing'"),
    ],
)
def test_bad_arguments(recommender, arguments, message):
    with pytest.raises(ValueError, match=message):
        r.recommend(recommender, [["item 1"]], **{"k": 3, **arguments})


def test_bad_histories(recommender):
    with pytest.raises(ValueError, match="histories must be a list of ids, got 'item 1' in row 1"):
        r.recommend(recommender, [["item 1"], "item 1"])
    with pytest.raises(ValueError, match="user_features must be None for SequenceModel"):
        r.recommend(recommender, [["item 1"]], user_features={"age": np.zeros(1)})
    outside = r.Histories(np.array([ITEMS], np.int32), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"histories must hold items in \[0, 37\), got 37"):
        r.recommend(recommender, outside)


def test_a_file_gives_the_same_lists(recommender, tmp_path):
    histories = some_histories()
    jo.save(tmp_path / "model.safetensors", jo.Model(recommender))
    back = jo.load(tmp_path / "model.safetensors").task
    assert back.model == recommender.model
    assert back.items.tolist() == recommender.items.tolist()
    one, other = (r.recommend(x, histories, 5) for x in (recommender, back))
    np.testing.assert_array_equal(one.places, other.places)
    np.testing.assert_array_equal(one.scores, other.scores)


def test_another_model_is_refused():
    with pytest.raises(ValueError, match="model must be of the recommend room, got Blend"):
        r.recommend(jo.Model(r.Blend((), (), ())), [["x"]])


def test_a_blend_is_the_weighted_sum(recommender):
    backwards = jax.tree.map(lambda x: np.ascontiguousarray(x[::-1]), recommender.params)
    other = dataclasses.replace(recommender, params=backwards)
    both = r.blend([recommender, other], [0.25, 0.75], [1.0, 2.0])
    history = np.array([[1, 2, 3, 4, 5, 6, 7, 8, ITEMS, ITEMS]], np.int32)
    last = np.array([[3, 4, 5, 6, 7, 8]])

    def scores(x):
        return queries(x.model, x.params, last) @ x.model.table(x.params).T

    wanted = 0.25 * jax.nn.log_softmax(scores(recommender)) + 0.75 * jax.nn.log_softmax(
        scores(other) / 2
    )
    found = jax.jit(both.model.queries)(both.params, history)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert r.blend([recommender]).model.context == 6
    with pytest.raises(ValueError, match="must have the same length, at least 1, got 1, 2 and 1"):
        r.blend([recommender], [1.0, 2.0])
    for given, message in (
        ({"temperatures": [0.0]}, "temperatures must be finite and above 0, got 0.0"),
        ({"temperatures": [np.nan]}, "temperatures must be finite and above 0, got nan"),
        ({"weights": [-1.0]}, "weights must be finite and at least 0, got -1.0"),
        ({"weights": ["a"]}, "weights must be finite and at least 0, got 'a'"),
        ({"weights": [0.0]}, "weights must hold one above 0, got zeros"),
    ):
        with pytest.raises(ValueError, match=message):
            r.blend([recommender], **given)
    with pytest.raises(ValueError, match="recommenders must be a list of models, got one model"):
        r.blend(recommender)


@pytest.mark.parametrize(
    ("mesh", "direct", "block"),
    [
        (None, False, 3),
        (None, False, 7),
        (None, False, 100),
        (None, True, 7),
        (8, False, 7),
        (8, True, 7),
        pytest.param(8, False, 100, marks=pytest.mark.slow),
        pytest.param(8, True, 3, marks=pytest.mark.slow),
    ],
)
def test_top_k_with_masks_is_a_stable_sort(block, direct, mesh):
    """Scores of few values, so that most of them tie."""
    keys = jax.random.split(jax.random.key(1), 4)
    queries = jax.random.randint(keys[0], (6, 2), 0, 2).astype(jnp.float32)
    items = jax.random.randint(keys[1], (23, 2), -1, 2).astype(jnp.float32)
    seen = jax.random.randint(keys[2], (6, 5), -3, 30)
    allowed = jax.random.uniform(keys[3], (23,)) < 0.7
    scores = np.array(queries @ items.T)
    scores[:, ~np.asarray(allowed)] = -np.inf
    for row, own in enumerate(np.asarray(seen)):
        scores[row, own[(own >= 0) & (own < 23)]] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :9]
    given = (jnp.asarray(queries @ items.T), None) if direct else (queries, items)
    mesh = None if mesh is None else jax.sharding.Mesh(np.array(jax.devices()[:mesh]), ("items",))
    found, index = top_k(*given, 9, block, seen=seen, allowed=allowed, mesh=mesh)
    np.testing.assert_array_equal(found, np.take_along_axis(scores, order, 1))
    there = np.isfinite(found)
    np.testing.assert_array_equal(np.asarray(index)[there], order[there])


def test_not_a_number_is_no_list(recommender):
    params = jax.tree.map(np.array, recommender.params)
    for leaf in jax.tree.leaves(params):
        leaf[0] = np.nan
    broken = dataclasses.replace(recommender, params=params)
    with pytest.raises(FloatingPointError, match="scores must not be NaN, got NaN for user 0"):
        r.recommend(broken, [["item 1"]])


def test_figures_are_of_the_lists_that_are_served(recommender):
    """Also for users without history; the targets are new to them."""
    histories = some_histories(80, seed=5)
    draw = np.random.default_rng(6)
    seen = [set(row.tolist()) for row in split(histories)]
    new = [draw.choice(sorted(set(range(ITEMS)) - own)) for own in seen]
    targets = r.Histories(np.array(new, np.int32), np.arange(81))
    found = r.evaluated(recommender, histories, targets, k=5)
    served = r.recommend(recommender, histories, 5)
    np.testing.assert_array_equal(found.parts["lists"], served.places)
    hits = (served.places == np.array(new)[:, None]).any(1)
    np.testing.assert_array_equal(found.values["hr@5"], hits)
    assert (histories.lengths == 0).any()


def test_a_second_call_compiles_nothing_and_moves_no_parameters(recommender, monkeypatch):
    from jaxops.recommend.inference import _best

    histories = some_histories()
    first = r.recommend(recommender, histories, 5)
    moved = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, *a, **k: moved.append(x) or put(x, *a, **k))
    before = _best._cache_size()
    second = r.recommend(recommender, histories, 5)
    assert _best._cache_size() == before
    assert not moved
    np.testing.assert_array_equal(first.places, second.places)


def test_one_very_long_history_does_not_make_the_others_long():
    """600 users of a model that reads all: what is held is bounded, not by the longest of them."""
    lengths = np.full(600, 4)
    lengths[17] = 200_000
    room = padded(lengths)
    found = list(batches(np.arange(600), room[None], lambda length: 64 * length, 512))
    assert sorted(set(np.concatenate([some for some, _ in found]))) == list(range(600))
    for some, (longest,) in found:
        assert longest == room[some].max() and len(some) * longest <= 2**18
    assert [len(some) for some, _ in found] == [1, 512, 512]
