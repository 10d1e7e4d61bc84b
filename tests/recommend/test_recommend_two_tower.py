"""Two towers: the loss, what is learned, new items, and files."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

import jaxops as jo
from jaxops import recommend
from jaxops.model.topk import top_k
from jaxops.recommend import Events, Features, TwoTower, in_batch_softmax
from jaxops.recommend.models import two_tower

COLOURS = np.array(["red", "green", "blue", "black"])


def log(users=120, items=60, length=8, seed=0):
    """A user wants one colour, and of it the larger or the smaller ones: text and a number."""
    rng = np.random.default_rng(seed)
    colour, size = rng.integers(0, 4, items), rng.choice([-1.0, 1.0], items)
    taste, large = np.arange(users) % 4, np.where(np.arange(users) % 8 < 4, -1.0, 1.0)
    user = np.repeat(np.arange(users), length)
    wanted = (taste[:, None] == colour) & (large[:, None] == size)
    item = np.concatenate([rng.choice(np.flatnonzero(row), length) for row in wanted])
    order = rng.permutation(len(user))
    return Events(
        user=user[order].astype(np.int32),
        item=item[order].astype(np.int32),
        time=np.arange(len(user)),
        weight=np.ones(len(user), np.float32),
        users=np.arange(users).astype(str),
        items=np.char.add("item ", np.arange(items).astype(str)),
        user_features={"wants": COLOURS[taste]},
        item_features={"colour": COLOURS[colour], "size": 3 + 2 * size},
    )


STEPS, ADAM = 150, jo.optim.adam(1e-2)
SETTINGS = {"width": 16, "widths": (16,), "context": 6}


@pytest.fixture(scope="module")
def trained():
    events = log()
    model = TwoTower.fitted(events, **SETTINGS)
    task, columns = recommend.retrieval(model, events), model.rows(events)
    state = jo.fit(task, columns, optimizer=ADAM, batch_size=64, steps=STEPS, progress=False)
    return events, task, state, recommend.two_tower_recommender(model, state, events)


def test_in_batch_softmax_is_the_formula():
    rng = np.random.default_rng(0)
    count, catalogue = 7, 4
    scores = rng.normal(size=(count, count))
    q = rng.dirichlet(np.ones(catalogue))
    item, weights = rng.integers(0, catalogue, count), np.array([1, 1, 0, 2, 1, 0, 0.5])
    found = np.asarray(jax.jit(in_batch_softmax)(scores, item, np.log(q[item]), weights))
    real = [j for j in range(count) if weights[j] > 0]
    for i in real:
        drawn = [np.exp(scores[i, j]) / q[item[j]] for j in real if item[j] != item[i]]
        total = np.exp(scores[i, i]) + sum(drawn) / (len(real) - 1)
        assert found[i] == pytest.approx(np.log(total) - scores[i, i], rel=1e-5)


def test_log_q_correction_is_unbiased():
    """What stands for the sum over all items has that mean; without the correction it has not."""
    rng = np.random.default_rng(1)
    catalogue, batch, draws = 12, 16, 20_000
    q = rng.dirichlet(np.full(catalogue, 0.5)) * 0.9 + 0.1 / catalogue
    logits, own = rng.normal(size=catalogue), 3
    item = rng.choice(catalogue, (draws, batch), p=q)
    item[:, 0] = own

    def total(log_q):  # exp(loss + own score) is the estimate
        def one(item):
            scores = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[item][None], (batch, batch))
            return in_batch_softmax(scores, item, log_q[item], jnp.ones(batch))[0]

        losses = jax.jit(jax.vmap(one))(jnp.asarray(item))
        return np.exp(np.asarray(losses, np.float64) + logits[own])

    corrected = total(jnp.log(jnp.asarray(q, jnp.float32)))
    error = corrected.std() / np.sqrt(draws)
    whole = np.exp(logits).sum()
    assert error < 0.01 * whole
    assert abs(corrected.mean() - whole) < 4 * error
    plain = total(jnp.full(catalogue, -np.log(catalogue)))
    assert abs(plain.mean() - whole) > 20 * plain.std() / np.sqrt(draws)


def test_loss_and_gradient_without_others_are_zero():
    scores, item, log_q = jnp.ones((3, 3)), jnp.zeros(3, jnp.int32), jnp.zeros(3)

    @jax.jit
    @jax.value_and_grad
    def loss(scores, weights):
        return in_batch_softmax(scores, item, log_q, weights).sum()

    for weights in (jnp.ones(3), jnp.array([1.0, 0, 0]), jnp.zeros(3)):
        value, grad = loss(scores, weights)
        assert value == 0 and not np.asarray(grad).any()


def test_rows_are_what_was_taken_before():
    events = Events(
        user=np.array([1, 0, 1, 1], np.int32),
        item=np.array([4, 2, 0, 3], np.int32),
        time=np.arange(4),
        weight=np.array([1, 2, 3, 4], np.float32),
        users=np.array(["a", "b"]),
        items=np.array(list("pqrst")),
        user_features={"age": np.array([30.0, 50.0])},
    )
    rows = TwoTower.fitted(events, context=2).rows(events)
    assert rows["item"].tolist() == [2, 4, 0, 3]
    assert rows["history"].tolist() == [[5, 5], [5, 5], [4, 5], [4, 0]]
    assert rows["mask"].tolist() == [2, 1, 3, 4]
    assert rows["numbers"].tolist() == [[-1], [1], [1], [1]]
    assert rows["categories"].shape == (4, 0)


def test_features_are_read_as_in_training():
    train = {"brand": np.array(["b", "a", "b"]), "price": np.array([1.0, np.nan, 3.0])}
    features = Features.fitted(train)
    assert features.names == ("brand", "price") and hash(features) == hash(Features.fitted(train))
    assert features.read(train, 3)["categories"].tolist() == [[2], [1], [2]]
    new = {"price": np.array([5.0, np.nan]), "brand": np.array(["a", "zz"]), "more": [1, 2]}
    read = features.read(new, 2)
    assert read["categories"].tolist() == [[1], [0]]
    assert read["numbers"].tolist() == [[3.0, 0.0], [0.0, 1.0]]  # standardised; is it missing?
    nothing = Features.fitted({}).read({}, 4)
    assert nothing["categories"].shape == nothing["numbers"].shape == (4, 0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"brand": np.array(["a"])}, "columns must include 'price', got brand"),
        ({"price": np.array([1.0])}, "columns must include 'brand', got price"),
        (
            {"price": np.array([1.0]), "brand": np.array([1])},
            "brand must be text, as in training, got int64",
        ),
        (
            {"price": np.array([1.0]), "brand": np.array(["a", "b"])},
            "brand must have 1 rows, got 2",
        ),
        (
            {"price": np.array(["x"]), "brand": np.array(["a"])},
            "price must be numbers, as in the train rows, got text",
        ),
    ],
)
def test_other_columns_are_refused(columns, message):
    features = Features.fitted({"brand": np.array(["a", "a"]), "price": np.array([1.0, 2.0])})
    with pytest.raises(ValueError, match=message):
        features.read(columns, 1)


def test_queries_do_not_see_padding_and_see_no_more_than_there_is(trained):
    events, task, state, recommender = trained
    model, params = recommender.model, recommender.params
    count = len(events.items)
    history = np.array([[3, 5, count, count], [7, 1, 2, 9], [count] * 4], np.int32)
    ask = jax.jit(model.queries)
    queries = np.asarray(ask(params, history))
    longer = np.pad(history, ((0, 0), (0, 5)), constant_values=count)
    np.testing.assert_allclose(ask(params, longer), queries, atol=1e-5)
    np.testing.assert_allclose(ask(params, history[:1, :2]), queries[:1], atol=1e-5)
    assert queries.shape == (3, 16) and np.isfinite(queries).all()  # also of an empty one
    np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1 / model.temperature, rtol=1e-5)
    backwards = ask(params, np.stack([history[0], history[1, ::-1], history[2]]))
    assert abs(backwards - queries)[1].max() > 1e-4  # the last one counts for another
    users = model.user_features.read({"wants": np.array(["red"] * 3)}, 3)
    assert abs(ask(params, history, users) - queries).max() > 0.1
    row = {name: values[:3] for name, values in model.rows(events).items()}
    users = {name: row[name] for name in ("categories", "numbers")}
    np.testing.assert_allclose(
        jo.predict(task, state, row), ask(params, row["history"], users), atol=1e-5
    )


def test_table_is_the_items_vectors(trained, monkeypatch):
    events, _, _, recommender = trained
    model, params, items = recommender.model, recommender.params, recommender.items
    table = jax.jit(model.table)(params)
    assert table.shape == (60, 16) and table.dtype == jnp.float32 and items is events.items
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    monkeypatch.setattr(two_tower, "ITEMS_AT_ONCE", 7)
    in_blocks = jax.jit(lambda params: model.table(params))(params)  # not the program from before
    np.testing.assert_allclose(in_blocks, table, atol=1e-6)


def test_an_item_is_scored_by_its_features_alone(trained):
    events, _, _, recommender = trained
    colour, size = np.meshgrid(COLOURS, [1.0, 5.0])
    columns = {"colour": colour.ravel(), "size": size.ravel(), "of no use": np.zeros(8)}
    names = np.char.add("new ", np.arange(8).astype(str))
    more = recommend.two_tower_with_items(recommender, names, columns)
    assert more.items.tolist() == [*events.items.tolist(), *names.tolist()]
    read, ask = jax.jit(more.model.table), jax.jit(more.model.queries)
    before, table = read(recommender.params), read(more.params)
    np.testing.assert_array_equal(table[:60], before)

    # users who were not in training: three things taken, of one kind
    kind = 4 * (np.asarray(events.item_features["size"]) > 3)
    kind += [COLOURS.tolist().index(c) for c in events.item_features["colour"]]
    history = np.stack([np.flatnonzero(kind == k)[[0, -1, 1]] for k in range(8)])
    queries = ask(more.params, history)
    _, best = top_k(queries, table[60:], k=1)
    assert best[:, 0].tolist() == list(range(8))
    # and a new item among a user's things is understood
    again = ask(more.params, 60 + np.arange(8)[:, None])
    assert top_k(again, table[:60], k=1)[1].shape == (8, 1)
    assert (kind[np.asarray(top_k(again, table[:60], k=1)[1])[:, 0]] == np.arange(8)).all()


def test_features_alone_tell_a_user_without_history(trained):
    events, _, _, recommender = trained
    model, params = recommender.model, recommender.params
    users = model.user_features.read({"wants": COLOURS}, 4)
    queries = jax.jit(model.queries)(params, np.full((4, 6), 60), users)
    best = np.asarray(top_k(queries, jax.jit(model.table)(params), k=3)[1])
    assert (events.item_features["colour"][best] == COLOURS[:, None]).all()


def test_equal_calls_give_one_task(trained):
    events, task, _, recommender = trained
    towers = recommender.model
    assert recommend.retrieval(TwoTower.fitted(log(), **SETTINGS), log()) is task
    other = dataclasses.replace(events, item=np.roll(events.item, 1).copy())
    other.item[0] = other.item[1]  # the same items, of which one is taken once more
    assert recommend.retrieval(towers, other) is not task
    sizes = {**events.item_features, "size": events.item_features["size"] + 1}
    other = dataclasses.replace(events, item_features=sizes)
    assert recommend.retrieval(towers, other) is not task


def test_a_file_holds_the_task_and_its_catalogue(trained, tmp_path):
    events, task, state, recommender = trained
    towers = recommender.model
    jo.save(tmp_path / "towers.safetensors", jo.Model(task, state))
    model = jo.load(tmp_path / "towers.safetensors")
    rows = towers.rows(events)
    some = {name: values[:64] for name, values in rows.items()}
    np.testing.assert_array_equal(model.predict(some), jo.predict(task, state, some))
    chex.assert_trees_all_equal(model.state.extra, state.extra)
    # the task from the file is not taken for one that has a catalogue
    assert recommend.retrieval(towers, events) is task

    train = functools.partial(
        jo.fit, data=rows, optimizer=ADAM, batch_size=64, steps=STEPS, progress=False
    )
    one = train(task, state=jo.load(tmp_path / "towers.safetensors").state)
    other = train(model.task, state=model.state)
    chex.assert_trees_all_equal(one.params, other.params)
    with pytest.raises(ValueError, match="state must be given for a task"):
        train(model.task)


def test_items_without_own_embeddings():
    events = log()
    model = TwoTower.fitted(events, **SETTINGS, ids=False)
    task = recommend.retrieval(model, events)
    params, _ = filled(task.init, model.rows(events))
    extra = jax.jit(lambda key: task.init(key, None)[1])(jax.random.key(0))  # the features
    state = jo.TrainState(np.int32(0), params, (), extra, jax.random.key(0))
    recommender = recommend.two_tower_recommender(model, state, events)
    params = recommender.params
    assert model.known == 0 and params["network"]["own"].shape == (1, 16)
    same = {}
    for i, key in enumerate(zip(*events.item_features.values(), strict=True)):
        same.setdefault(key, []).append(i)
    table = np.asarray(jax.jit(model.table)(params))
    for group in same.values():  # the features are all that there is
        np.testing.assert_allclose(table[group], table[group[:1]].repeat(len(group), 0), atol=1e-6)
    assert task.coupled


def test_padding_changes_neither_loss_nor_gradient(trained):
    events, task, state, recommender = trained
    rows = {n: v[:6] for n, v in recommender.model.rows(events).items()}
    padded = {
        name: np.concatenate([v, np.full((2, *v.shape[1:]), 9999).astype(v.dtype)])
        for name, v in rows.items()
    }
    padded["mask"][6:] = 0

    def loss(params, batch):
        return task.loss(params, state.extra, batch, jax.random.key(0), False)[0]

    both = jax.jit(jax.value_and_grad(loss))
    (a, grad), (b, same) = (both(state.params, x) for x in (rows, padded))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-4), grad, same)


def test_bad_input_is_named(trained):
    events, _, _, recommender = trained
    columns = {"colour": COLOURS[:2], "size": np.zeros(2)}
    with pytest.raises(ValueError, match="items must be new and distinct, got 'item 3' in row 1"):
        recommend.two_tower_with_items(recommender, ["new", "item 3"], columns)
    with pytest.raises(ValueError, match="items must be new and distinct, got 'new' in row 1"):
        recommend.two_tower_with_items(recommender, ["new", "new"], columns)
    with pytest.raises(ValueError, match="colour must have 1 rows, got 2"):
        recommend.two_tower_with_items(recommender, ["new"], columns)
    none = Events(*(x[:0] for x in (events.user, events.item, events.time, events.weight)),
                  events.users, events.items)  # fmt: skip
    with pytest.raises(ValueError, match="events must hold at least 1 event, got none"):
        recommend.retrieval(recommender.model, none)
    fewer = Events(*(x[:5] for x in (events.user, events.item, events.time, events.weight)),
                   events.users, events.items, {}, events.item_features)  # fmt: skip
    with pytest.raises(ValueError, match=r"events must hold 60 items with events, got \d"):
        recommend.retrieval(recommender.model, fewer)


def test_as_any_recommender_from_a_file_with_new_items(trained, tmp_path):
    events, _, _, recommender = trained
    columns = {"colour": np.array(["blue", "unseen"]), "size": np.array([1.0, np.nan])}
    more = recommend.two_tower_with_items(recommender, ["new", "odd"], columns)
    assert more.counts.tolist() == [*np.bincount(events.item, minlength=60), 0, 0]
    colours, sizes = events.item_features.values()
    small = events.items[(colours == "blue") & (sizes < 3)]
    histories = [small[:2], ["item 0", "nowhere", "new"], []]
    found = recommend.recommend(more, histories, k=4)
    assert "new" in found.ids()[0] and "new" not in found.ids()[1]
    assert found.unknown == found.empty == 1
    ask = jax.jit(lambda params, x: more.model.queries(params, x) @ more.model.table(params).T)
    scores = np.array(ask(more.params, np.array([[more.place_of[i] for i in small[:2]]])))[0]
    scores[[more.place_of[i] for i in small[:2]]] = -np.inf
    assert found.places[0].tolist() == np.argsort(-scores)[:4].tolist()

    jo.save(tmp_path / "towers.model", jo.Model(more))
    again = jo.load(tmp_path / "towers.model").task
    assert again.model == more.model
    np.testing.assert_array_equal(recommend.recommend(again, histories, k=4).places, found.places)
    later = recommend.two_tower_with_items(
        again, ["newest"], {n: v[:1] for n, v in columns.items()}
    )
    assert recommend.recommend(later, [["newest"]], k=3).ids()[0][0] in [*small, "new"]


def test_features_of_users_reach_lists_and_figures(trained):
    """Nothing is known of them but what they want, and that is what they get."""
    events, _, _, model = trained
    users, nobody = {"wants": COLOURS}, recommend.Histories(np.zeros(0, np.int32), np.zeros(5, int))
    found = recommend.recommend(model, [[]] * 4, k=5, user_features=users)
    assert found.empty == 4
    colour = np.asarray(events.item_features["colour"])
    assert (colour[found.places] == COLOURS[:, None]).mean() > 0.9
    alike = recommend.recommend(model, [[]] * 4, k=5)
    assert (alike.places == alike.places[:1]).all()
    targets = recommend.Histories(np.arange(4, dtype=np.int32), np.arange(5))
    figures = recommend.evaluated(model, nobody, targets, k=5, user_features=users)
    np.testing.assert_array_equal(figures.parts["lists"], found.places)
    with pytest.raises(ValueError, match="wants must have 1 rows, got 4"):
        recommend.recommend(model, [["item 1"]], user_features=users)
