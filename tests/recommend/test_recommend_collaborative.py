"""EASE, iALS, BPR, item-kNN and popularity, against NumPy, SciPy and scikit-learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxops.recommend import BPR, EASE, IALS, Events, ItemKNN, Popularity
from jaxops.recommend.data.counts import interactions, recency, together
from jaxops.recommend.models.ials import Blocks, by_length, conjugate_gradients, solve

MODELS = [
    EASE(l2=5.0),
    IALS(factors=4, sweeps=3),
    BPR(factors=4, epochs=2, batch_size=64),
    ItemKNN(neighbours=5),
    Popularity(),
]


def named(model):
    return type(model).__name__


def log(user, item, time=None, weight=None, users=None, items=None):
    user, item = np.asarray(user, np.int32), np.asarray(item, np.int32)
    return Events(
        user,
        item,
        np.arange(len(user)) if time is None else np.asarray(time),
        np.ones(len(user), np.float32) if weight is None else np.asarray(weight, np.float32),
        np.arange(users or user.max() + 1).astype(str),
        np.arange(items or item.max() + 1).astype(str),
    )


def generated(users=60, items=30, seed=0, weights=False):
    """Popular and rare items, short and long histories, each item once a user."""
    rng = np.random.default_rng(seed)
    share = 1 / np.arange(1, items + 1) ** 0.7
    chance = np.clip(share * rng.uniform(0.2, 1.2, (users, 1)), 0, 0.95)
    user, item = np.nonzero(rng.random((users, items)) < chance)
    weight = rng.uniform(0.5, 2, len(user)) if weights else None
    return log(user, item, weight=weight, users=users, items=items)


def of_users(events, chosen, items=None):
    """The events of some users, who are numbered anew."""
    kept = np.isin(events.user, chosen)
    number = np.searchsorted(chosen, events.user[kept])
    size = items or len(events.items)
    return log(number, events.item[kept], events.time[kept], users=len(chosen), items=size)


@functools.cache
def fitted(model):
    """What most tests look at: one fit of each model."""
    return model.fit(generated())


@functools.partial(jax.jit, static_argnums=0)
def queries(model, params, history):
    return model.queries(params, history)


@functools.partial(jax.jit, static_argnums=0)
def jitted_scores(model, params, history):
    query, table = model.queries(params, history), model.table(params)
    return query if table is None else query @ table.T


def scores(model, params, history):
    return np.asarray(jitted_scores(model, params, np.asarray(history, np.int32)))


def all_histories(events, width=30):
    histories = events.histories()
    assert histories.lengths.max() <= width
    return histories.rows(np.arange(len(events.users)), width, len(events.items))


# --- EASE


def ease_in_float64(x, l2):
    inverse = np.linalg.inv(x.T @ x + l2 * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)[None]
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("weights", [False, True])
def test_ease_is_the_closed_form(weights):
    events = generated(users=400, items=120, weights=weights)
    x = interactions(events).toarray().astype(np.float64)
    params = EASE(l2=20.0).fit(events)
    np.testing.assert_allclose(params["weights"], ease_in_float64(x, 20.0), atol=1e-5)
    np.testing.assert_allclose(params["gram"], x.T @ x, rtol=1e-5)


def test_ease_solves_by_halves_where_items_are_many_and_unevenly_popular(monkeypatch):
    monkeypatch.setattr("jaxops.recommend.models.ease.SOLVED_AT_ONCE", 100)
    monkeypatch.setattr("jaxops.recommend.models.ease.ITEMS_AT_ONCE", 128)
    events = generated(users=1200, items=602)  # three levels, odd halves
    x = interactions(events).toarray().astype(np.float64)
    assert np.linalg.cond(x.T @ x + 0.02 * np.eye(602)) > 2000
    params = EASE(l2=0.02).fit(events)
    np.testing.assert_allclose(params["weights"], ease_in_float64(x, 0.02), atol=1e-5)


def test_ease_scores_are_x_times_b():
    events = generated()
    x = interactions(events).toarray().astype(np.float64)
    model = EASE(l2=5.0)
    found = scores(model, fitted(model), all_histories(events))
    np.testing.assert_allclose(found, x @ ease_in_float64(x, 5.0), atol=1e-5)


def test_ease_without_rare_items_is_ease_of_a_log_without_them():
    events = generated(items=40)  # of at most 30 items each
    count = np.bincount(events.item, minlength=40)
    kept = count >= 10
    assert 0 < kept.sum() < 40
    model = EASE(l2=5.0, min_count=10)
    params = model.fit(events)
    assert params["weights"].shape == (kept.sum(), kept.sum())
    x = interactions(events).toarray().astype(np.float64)[:, kept]
    wanted = np.zeros((60, 40))
    wanted[:, kept] = x @ ease_in_float64(x, 5.0)
    np.testing.assert_allclose(scores(model, params, all_histories(events)), wanted, atol=1e-5)


# --- updates


@pytest.mark.parametrize(
    "model",
    [
        EASE(l2=5.0),
        ItemKNN(neighbours=6),
        ItemKNN(neighbours=6, backward=0.25),
        Popularity(),
        Popularity(9.0),
    ],
)
def test_an_update_with_new_users_and_items_equals_a_fit_to_all(model):
    everything = generated(users=60, items=30)
    first, second = of_users(everything, np.arange(40)), of_users(everything, np.arange(40, 60))
    early = first.item < 24  # the last six items come with the update
    first = log(first.user[early], first.item[early], first.time[early], users=40, items=24)
    both = log(
        np.concatenate([first.user, second.user + 40]),
        np.concatenate([first.item, second.item]),
        np.concatenate([first.time, second.time]),
        items=30,
    )
    updated, whole = model.fit(second, model.fit(first)), model.fit(both)
    for history in (np.arange(30)[:, None], all_histories(both)):
        found, wanted = scores(model, updated, history), scores(model, whole, history)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_ease_update_lets_items_in_that_have_become_frequent():
    first = log([0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    model = EASE(l2=1.0, min_count=2)
    params = model.fit(first)
    assert params["place"].tolist() == [0, 1, 2]  # item 2 is left out
    second = log([0, 0, 0, 1, 1, 1, 2], [0, 2, 3, 2, 3, 0, 4])
    params = model.fit(second, params)
    assert params["place"].tolist() == [0, 1, 2, 3, 4]  # item 4 is left out
    wanted = [[4, 2, 2, 2], [2, 2, 0, 0], [2, 0, 2, 2], [2, 0, 2, 2]]
    np.testing.assert_array_equal(params["gram"], wanted)


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_an_update_wants_the_known_items_first(model):
    params = fitted(model)
    with pytest.raises(ValueError, match="items must begin with the 30 known items, got 20"):
        model.fit(generated(items=20), params)


# --- iALS


def normal_equations(table, gram, weight, l2, right=None):
    """One row, densely, in float64."""
    a = gram + (table.T * weight) @ table + l2 * np.eye(table.shape[1])
    return np.linalg.solve(a, table.T @ weight + (0 if right is None else right))


@functools.cache
def ials_of_100_items():
    model = IALS(factors=12, sweeps=2, frequency=0.5)
    return model, model.fit(generated(items=100))


@pytest.mark.parametrize("items", [4, 40])  # fewer and more than factors: both ways to solve
def test_ials_folds_in_by_the_normal_equations(items):
    model, params = ials_of_100_items()
    table = np.asarray(params["items"], np.float64)
    rng = np.random.default_rng(1)
    history = np.full((5, items), 100)
    for user, length in enumerate([0, 1, 2, items - 1, items]):
        history[user, :length] = rng.choice(100, length, replace=False)
    found = queries(model, params, history)
    for user in range(5):
        weight = np.bincount(history[user], minlength=101)[:100].astype(float)
        l2 = model.l2 * (weight.sum() + model.unobserved * 100) ** 0.5
        wanted = normal_equations(table, model.unobserved * table.T @ table, weight, l2)
        np.testing.assert_allclose(found[user], wanted, atol=2e-5)


@pytest.mark.parametrize("steps", [None, pytest.param(60, marks=pytest.mark.slow)])
def test_a_sweep_of_ials_solves_for_every_user_and_item(steps):
    events = generated(users=50, items=90, weights=True)
    log_, _ = by_length(interactions(events))
    x = log_.toarray().astype(np.float64)
    model = IALS(factors=12, l2=0.02, steps=steps)
    start = jax.random.normal(jax.random.key(0), (90, 12))
    blocks = Blocks.of(log_), Blocks.of(log_.T.tocsr())
    users, items = model.sweep(jnp.zeros((len(x), 12)), start, *blocks, model.nothing())
    for found, table, rows, others in ((users, start, x, 90), (items, users, x.T, len(x))):
        table = np.asarray(table, np.float64)
        gram = model.unobserved * table.T @ table
        for row, solved in zip(rows, found, strict=True):
            l2 = model.l2 * (row.sum() + model.unobserved * others)
            wanted = normal_equations(table, gram, row, l2)
            np.testing.assert_allclose(solved, wanted, atol=1e-4)


def ials_loss(model, x, users, items):
    """Over all pairs, as in the class's docstring."""
    product = np.asarray(users, np.float64) @ np.asarray(items, np.float64).T
    total = (x * (1 - product) ** 2).sum() + model.unobserved * (product**2).sum()
    for table, count, others in ((users, x.sum(1), len(items)), (items, x.sum(0), len(users))):
        scale = model.l2 * (count + model.unobserved * others) ** model.frequency
        total += (scale * (np.asarray(table) ** 2).sum(1)).sum()
    return total


@pytest.mark.parametrize("steps", [pytest.param(None, marks=pytest.mark.slow), 2])
def test_the_loss_of_ials_falls_with_each_sweep(steps):
    log_, _ = by_length(interactions(generated(users=80, items=50)))
    x = log_.toarray().astype(np.float64)
    model = IALS(factors=8, steps=steps)
    items = 0.1 * jax.random.normal(jax.random.key(0), (50, 8))
    users = jnp.zeros((len(x), 8))
    blocks = Blocks.of(log_), Blocks.of(log_.T.tocsr())
    losses = [ials_loss(model, x, users, items)]
    for _ in range(6):
        users, items = model.sweep(users, items, *blocks, model.nothing())
        losses.append(ials_loss(model, x, users, items))
    assert (np.diff(losses) < 1e-6 * losses[0]).all()
    assert losses[-1] < 0.9 * losses[1]


def test_blocks_hold_each_event_once(monkeypatch):
    monkeypatch.setattr("jaxops.recommend.models.ials.EVENTS_AT_ONCE", 4096)
    matrix = interactions(generated(users=300, items=200, weights=True))
    log_, order = by_length(matrix)
    lengths = np.diff(matrix.indptr)
    kept = np.argsort(lengths, kind="stable")[(lengths == 0).sum() :]
    np.testing.assert_array_equal(log_.toarray(), matrix.toarray()[kept][:, order])
    for sparse in (log_, log_.T.tocsr()):
        blocks = Blocks.of(sparse)
        rebuilt = np.zeros(sparse.shape)
        flat = [block for stack in blocks.blocks for block in zip(*stack, strict=True)]
        for start, column, weight in flat:
            part = np.zeros((len(column), sparse.shape[1]))
            np.add.at(part, (np.arange(len(column))[:, None], np.asarray(column)), weight)
            rebuilt[int(start) : int(start) + len(column)] = part
        np.testing.assert_array_equal(rebuilt, sparse.toarray())
        assert len({block[1].shape for block in blocks.blocks}) > 1


def test_blocks_of_many_rows_are_of_one_height(monkeypatch):
    monkeypatch.setattr("jaxops.recommend.models.ials.EVENTS_AT_ONCE", 128)
    log_, _ = by_length(interactions(generated(users=300, items=20)))
    blocks = Blocks.of(log_).blocks
    assert len(blocks) <= 8
    assert sum(len(start) for start, _, _ in blocks) > 10
    covered = {
        int(first) + i
        for start, column, _ in blocks
        for first in start
        for i in range(column.shape[1])
    }
    assert covered == set(range(log_.shape[0]))


def test_conjugate_gradients_reach_the_exact_solution():
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.normal(size=(7, 20, 6)), jnp.float32)
    weight = jnp.asarray(rng.integers(0, 3, (7, 20)), jnp.float32)
    diagonal = jnp.asarray(rng.uniform(1, 9, (7, 6)), jnp.float32)
    right = jnp.asarray(rng.normal(size=(7, 6)), jnp.float32)
    exact = jax.jit(solve)(rows, weight, diagonal, right)
    cg = jax.jit(conjugate_gradients, static_argnums=5)
    found = cg(rows, weight, diagonal, right, jnp.zeros((7, 6)), 6)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    # of 5 unknowns, not 6
    short = jax.jit(solve)(rows[:, :5], weight[:, :5], diagonal, right)
    padded = jax.jit(solve)(rows, weight * (jnp.arange(20) < 5)[None], diagonal, right)
    np.testing.assert_allclose(short, padded, atol=1e-5)


def test_an_update_of_ials_solves_the_new_events_around_the_old_factors():
    model = IALS(factors=6, l2=0.05, steps=None, sweeps=1)
    old, new = generated(users=70, items=40), generated(users=9, items=44, seed=2)
    params = model.fit(old)
    updated = model.fit(new, params)
    # the users of the update, in the old basis
    before = np.vstack([params["items"], np.zeros((4, 6))]).astype(np.float64)
    count = np.append(params["counts"], np.zeros(4))
    gram = np.asarray(params["users_gram"], np.float64)
    x = interactions(new).toarray().astype(np.float64)
    seen = np.diff(interactions(new).indptr) > 0
    x = x[seen]
    users = np.stack(
        [
            normal_equations(before, 0.1 * before.T @ before, row, model.l2 * (row.sum() + 4.4))
            for row in x
        ]
    )
    known = float(params["users"])  # those with events
    spread = np.trace(gram) / (known * 6)
    items = []
    for i in range(44):
        l2 = model.l2 * (count[i] + x[:, i].sum() + 0.1 * (known + len(x))) + count[i] * spread
        pull = count[i] * spread + model.l2 * (count[i] + 0.1 * known)
        right = 0.1 * gram @ before[i] + pull * before[i]
        items.append(normal_equations(users, 0.1 * (gram + users.T @ users), x[:, i], l2, right))
    items = np.stack(items)
    found = np.asarray(updated["items"])  # turned: compare what does not depend on the basis
    np.testing.assert_allclose(found @ found.T, items @ items.T, atol=1e-4)
    # one event hardly moves the items that it does not touch
    little = model.fit(log([0], [3], items=40), params)
    moved = np.asarray(little["items"]) @ np.asarray(little["items"]).T
    kept = np.asarray(params["items"]) @ np.asarray(params["items"]).T
    assert np.abs(moved - kept)[4:, 4:].max() < 0.05 * np.abs(kept).max()


# --- item-kNN


@pytest.mark.parametrize(("weights", "neighbours"), [(False, 29), (True, 7)])  # ties, or none
def test_item_knn_is_the_cosine_of_scikit_learn(weights, neighbours):
    from sklearn.metrics.pairwise import cosine_similarity

    events = generated(weights=weights)
    x = interactions(events).toarray()
    wanted = cosine_similarity(x.T)
    np.fill_diagonal(wanted, 0)
    wanted *= wanted >= np.sort(wanted, axis=1)[:, [-neighbours]]
    model = ItemKNN(neighbours, shrink=0.0)
    params = model.fit(events)
    dense = np.zeros((30, 31))
    np.put_along_axis(dense, params["neighbours"], params["similarity"], axis=1)
    np.testing.assert_allclose(dense[:, :30], wanted, atol=1e-6)
    found = scores(model, params, all_histories(events))
    np.testing.assert_allclose(found, (x > 0) @ wanted, atol=1e-5)


def test_shrinkage_by_hand():
    events = log([0, 0, 1, 1, 2, 2, 2], [0, 1, 0, 1, 0, 2, 1])
    params = ItemKNN(shrink=2.0).fit(events)
    assert params["neighbours"].tolist() == [[1, 2], [0, 2], [0, 1]]
    near = [3 / (3 + 2), 1 / (np.sqrt(3) + 2)]
    np.testing.assert_allclose(params["similarity"], [near, near, near[1:] * 2], rtol=1e-6)


# --- the order of events


@pytest.mark.parametrize("backward", [0.0, 0.5, 1.0])
def test_pairs_of_items_are_counted_by_their_order(backward):
    """Beside two loops over all pairs of events; users repeat items, and one has a single event."""
    rng = np.random.default_rng(1)
    user, item = np.append(rng.integers(0, 4, 90), 4), np.append(rng.integers(0, 6, 90), 0)
    events = log(user, item, weight=rng.integers(1, 4, 91), items=8)
    wanted = np.zeros((8, 8))
    for a in range(91):
        for b in range(91):
            if user[a] == user[b] and item[a] != item[b]:
                share = 1 if a < b else backward
                wanted[item[a], item[b]] += share * events.weight[a] * events.weight[b]
    x = interactions(events).toarray()
    np.fill_diagonal(wanted, (x * x).sum(0))
    np.testing.assert_array_equal(together(events, backward).toarray(), wanted)


@pytest.mark.parametrize(
    "model", [EASE(l2=5.0, decay=0.5), ItemKNN(neighbours=6, decay=0.5, backward=0.5)], ids=named
)
def test_an_event_weighs_by_the_number_of_later_ones(model):
    params = model.fit(generated())
    alone = scores(model, params, np.arange(30)[:, None])
    history = [[4, 9, 4, 30], [7, 30, 30, 30], [1, 2, 3, 5]]
    wanted = [0.25 * alone[4] + 0.5 * alone[9] + alone[4], alone[7]]
    wanted.append(0.125 * alone[1] + 0.25 * alone[2] + 0.5 * alone[3] + alone[5])
    np.testing.assert_allclose(scores(model, params, history), wanted, rtol=1e-4, atol=1e-6)
    padded = recency(jnp.full((1, 5000), 30), 30, 0.2)  # a power that overflows is not seen
    assert not np.asarray(padded).any()


# --- popularity


def test_popularity_by_hand():
    events = log([0, 1, 1, 2], [0, 0, 1, 2], time=[0, 10, 20, 20], weight=[1, 1, 1, 3], items=4)
    assert Popularity().fit(events)["score"].tolist() == [2, 1, 3, 0]
    params = Popularity(half_life=10).fit(events)
    assert params["score"].tolist() == [0.75, 1, 3, 0]
    late = Popularity(half_life=10).fit(log([0], [3], time=[40], items=4), params)
    assert late["score"].tolist() == [0.1875, 0.25, 0.75, 1]
    early = Popularity(half_life=10).fit(log([0], [3], time=[10], items=4), params)
    assert early["score"].tolist() == [0.75, 1, 3, 0.5]
    found = scores(Popularity(), params, [[4], [2]])
    np.testing.assert_array_equal(found, [[0.75, 1, 3, 0]] * 2)


# --- BPR


def planted(users=200, items=60, groups=4, taken=8, seed=0):
    """Each user takes items of one group only."""
    rng = np.random.default_rng(seed)
    size = items // groups
    item = [rng.choice(size, taken, replace=False) + size * (u % groups) for u in range(users)]
    return log(np.repeat(np.arange(users), taken), np.concatenate(item), items=items)


@functools.cache
def bpr_of_planted():
    model = BPR(factors=8, epochs=15, batch_size=128)
    return model, model.fit(planted())


@pytest.mark.slow
def test_bpr_learns_a_planted_structure():
    model, params = bpr_of_planted()
    fresh = planted(users=40, taken=3, seed=9)  # none of them was in the log
    found = scores(model, params, all_histories(fresh))
    group = np.arange(60) // 15 == (np.arange(40) % 4)[:, None]
    lowest = np.where(group, found, np.inf).min(1)
    highest = np.where(group, -np.inf, found).max(1)
    assert (lowest > highest).mean() > 0.95


@pytest.mark.slow
def test_bpr_folds_in_at_the_least_of_its_loss():
    from scipy.optimize import minimize

    model = BPR(factors=5, epochs=10, batch_size=64, l2=0.05)
    params = model.fit(planted(items=40))
    table = np.asarray(model.table(params), np.float64)
    history = np.array([[3, 8, 11, 40], [20, 21, 0, 39]])
    found = np.asarray(queries(model, params, history))
    drawn = np.asarray(jax.random.randint(jax.random.key(0), (128,), 0, 40))
    for row, query in zip(history, found, strict=True):
        row = row[row < 40]
        negative = table[drawn[~np.isin(drawn, row)]]

        def loss(p, row=row, negative=negative):
            query = np.append(p, 1)
            gap = (negative @ query)[None] - (table[row] @ query)[:, None]
            return np.logaddexp(0, gap).mean(1).sum() + 0.05 / 2 * len(row) * (p**2).sum()

        best = minimize(loss, np.zeros(5), tol=1e-10)
        assert loss(query[:-1]) - best.fun < 1e-3 * best.fun
        assert query[-1] == 1


def test_bpr_knows_what_a_user_took():
    from jaxops.recommend.models.bpr import _log, took

    events = generated(users=20, items=15)
    user, item = (grid.ravel() for grid in np.meshgrid(np.arange(20), np.arange(15)))
    found = jax.jit(took)(_log(events), user, item)
    taken = interactions(events).toarray() > 0
    np.testing.assert_array_equal(found, taken[user, item])


@pytest.mark.slow
def test_a_warm_start_of_bpr_ranks_new_items_and_the_old():
    model, params = bpr_of_planted()
    rng = np.random.default_rng(3)
    user = np.repeat(np.arange(120), 6)  # item 60 goes with the first group
    item = np.stack([rng.choice(15, 6, replace=False) + 15 * (u % 4) for u in range(120)])
    item[::4, -1] = 60
    params = model.fit(log(user, item.ravel(), items=61), params)
    found = scores(model, params, [[0, 1, 2], [15, 16, 17]])
    assert found[0, 60] > np.median(found[0])
    assert found[1, 60] < found[1, 15:30].min()


# --- all of them


@pytest.mark.parametrize("model", MODELS, ids=named)
def test_a_user_is_scored_by_history_alone(model):
    """Known or not; however far the history is padded, and in whatever batch."""
    params, histories = fitted(model), all_histories(generated())
    known = scores(model, params, histories)
    assert known.dtype == np.float32
    assert known.shape == (60, 30)
    wide = np.pad(histories, ((0, 0), (0, 9)), constant_values=30)
    np.testing.assert_allclose(scores(model, params, wide), known, atol=1e-4)
    np.testing.assert_allclose(scores(model, params, histories[7:9]), known[7:9], atol=1e-4)
    nothing = scores(model, params, np.full((2, 30), 30))
    assert np.isfinite(nothing).all()
    hash(model)  # a static argument of jit


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(model, marks=pytest.mark.slow) if isinstance(model, BPR) else model
        for model in MODELS
    ],
    ids=named,
)
def test_a_log_of_one_user_and_none(model):
    params = model.fit(log([0, 0], [0, 1], items=3))
    assert np.isfinite(scores(model, params, [[0, 3]])).all()
    with pytest.raises(ValueError, match="events must hold at least 1 event, got none"):
        model.fit(log(np.zeros(0), np.zeros(0), users=1, items=2))
    with pytest.raises(
        ValueError, match=r"weight must be finite and at least 0, got -1\.0 in row 0"
    ):
        model.fit(log([0], [0], weight=[-1]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EASE(l2=0), "l2 must be above 0, got 0"),
        (lambda: EASE(min_count=9).fit(log([0], [0])), r"min_count must be at most 1 \(.*got 9"),
        (lambda: IALS(factors=0), "factors must be at least 1, got 0"),
        (lambda: IALS(unobserved=0), "unobserved must be above 0, got 0"),
        (lambda: BPR(epochs=0), "epochs must be at least 1, got 0"),
        (lambda: BPR(learning_rate=-1), "learning_rate must be above 0, got -1"),
        (lambda: ItemKNN(neighbours=0), "neighbours must be at least 1, got 0"),
        (lambda: ItemKNN(shrink=-1), "shrink must be at least 0, got -1"),
        (lambda: ItemKNN(neighbours=2.5), "neighbours must be a whole number, got 2.5"),
        (lambda: ItemKNN(context=0), "context must be at least 1, got 0"),
        (lambda: EASE(context=-1), "context must be at least 1, got -1"),
        (lambda: BPR(context=0), "context must be at least 1, got 0"),
        (lambda: IALS(context=1.5), "context must be a whole number, got 1.5"),
        (lambda: EASE().fit(log([0], [0], weight=[0])), "weight must be above 0 for an event"),
        (lambda: ItemKNN(backward=1.5), r"backward must be in \[0, 1\], got 1.5"),
        (lambda: ItemKNN(decay=0), r"decay must be in \(0, 1\], got 0"),
        (lambda: EASE(decay=1.5), r"decay must be in \(0, 1\], got 1.5"),
        (lambda: Popularity(half_life=0), "half_life must be above 0 or None, got 0"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()
