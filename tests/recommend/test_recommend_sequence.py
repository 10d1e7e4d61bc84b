"""Sequence models: against PyTorch, by what they may see, and by what they learn."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import filled

import jaxops as jo
from jaxops import recommend as r

ITEMS = 20
MODULES = {
    "sasrec": r.sasrec(ITEMS, 8, 16, 2, 2, 0.0),
    "esasrec": r.esasrec(ITEMS, 8, 16, 2, 2, 0.0),
    "hstu": r.hstu(ITEMS, 8, 16, 2, 2, 0.0),
    "gru4rec": r.gru4rec(ITEMS, 8, 16, 1, 0.0),
    "bert4rec": r.bert4rec(ITEMS, 9, 16, 2, 2, 0.0),
}
CAUSAL = [name for name in MODULES if name != "bert4rec"]
ONE_BLOCK = r.sasrec(ITEMS, 8, 16, 1, 2, 0.0)


def cases(names, slow):
    """The cases of a test: `names`, of which those in `slow` are left to the slow tests."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in slow else n for n in names]


@functools.cache
def params_of(name):
    """Larger than initial parameters, so that what a position sees shows in its vector."""
    module = MODULES[name]
    ones = np.ones((1, 8), np.int32)
    init = functools.partial(module.init, method="hidden")
    return module, filled(init, ones, ones)["params"]


@functools.partial(jax.jit, static_argnums=0)
def hidden(module, params, *arguments):
    return module.apply({"params": params}, *arguments, method="hidden")


queries = jax.jit(r.SequenceModel.queries, static_argnums=0)


def test_sasrec_is_that_of_pytorch():
    """Copied weights: post-norm layers of torch.nn.TransformerEncoder with a ReLU network."""
    torch = pytest.importorskip("torch")
    module, params = params_of("sasrec")
    items = np.random.default_rng(0).integers(0, ITEMS, (3, 8))
    layer = torch.nn.TransformerEncoderLayer(
        16, 2, 16, dropout=0.0, activation="relu", batch_first=True
    )
    norm = torch.nn.LayerNorm(16)
    encoder = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def copy(to, value, transpose=True):
        value = np.asarray(value)
        to.data = torch.tensor(value.T if transpose and value.ndim == 2 else value)

    def copy_norm(to, own):
        copy(to.weight, own["scale"])
        copy(to.bias, own["bias"])

    stack = params["stack"]
    for i, to in enumerate(encoder.layers):
        own = stack[f"block_{i}"]
        copy_norm(to.norm1, own["attention_norm"])
        copy_norm(to.norm2, own["feed_forward_norm"])
        copy(to.self_attn.in_proj_weight, own["attention"]["qkv"]["kernel"])
        copy(to.self_attn.in_proj_bias, own["attention"]["qkv"]["bias"])
        copy(to.self_attn.out_proj.weight, own["attention"]["out"]["kernel"])
        copy(to.self_attn.out_proj.bias, own["attention"]["out"]["bias"])
        copy(to.linear1.weight, own["feed_forward"]["up"]["kernel"])
        copy(to.linear1.bias, own["feed_forward"]["up"]["bias"])
        copy(to.linear2.weight, own["feed_forward"]["down"]["kernel"])
        copy(to.linear2.bias, own["feed_forward"]["down"]["bias"])
    tables = params["embedding"]
    copy_norm(norm, tables["norm"])
    x = 4 * np.asarray(tables["tokens"])[items] + np.asarray(tables["positions"])[None]
    mask = torch.nn.Transformer.generate_square_subsequent_mask(8)
    with torch.no_grad():
        wanted = encoder.eval()(norm(torch.tensor(x)), mask=mask, is_causal=True).numpy()
    found = hidden(module, params, jnp.asarray(items, jnp.int32))
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    query = queries(r.SequenceModel(module), params, jnp.asarray(items, jnp.int32))
    np.testing.assert_allclose(query, wanted[:, -1], atol=1e-4)


@pytest.mark.parametrize("name", cases(CAUSAL, slow=["esasrec"]))
def test_nothing_to_come_is_seen(name):
    module, params = params_of(name)
    items = np.arange(8, dtype=np.int32)[None]
    changed = np.where(items == 5, np.int32(19), items)
    before, after = (np.asarray(hidden(module, params, x)) for x in (items, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert (before[:, 5:] != after[:, 5:]).any(-1).all()


@pytest.mark.parametrize("name", cases(MODULES, slow=["esasrec", "bert4rec"]))
def test_packed_histories_are_as_alone(name):
    module, params = params_of(name)
    items = np.array([[3, 1, 4, 1, 5, 9, 2, 6]], np.int32)
    segments = np.array([[1, 1, 1, 2, 2, 2, 0, 0]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 0, 0]], np.int32)
    both = np.asarray(hidden(module, params, items, segments, positions))[0, :6]
    alone = hidden(module, params, items[0, :6].reshape(2, 3))
    np.testing.assert_allclose(both.reshape(alone.shape), alone, atol=2e-5)
    for length in (1, 4):  # of other lengths, with padding after them
        segments = (np.arange(8) < length).astype(np.int32) + 2 * (np.arange(8) >= length)
        positions = np.where(np.arange(8) < length, np.arange(8), np.arange(8) - length)
        packed = hidden(module, params, items, segments[None], positions[None].astype(np.int32))
        first = (np.arange(8) < length).astype(np.int32)[None]
        place = np.arange(8, dtype=np.int32)[None]
        padded = hidden(module, params, items, first, place)
        np.testing.assert_allclose(packed[:, :length], padded[:, :length], atol=2e-5)


@pytest.mark.parametrize("name", cases(MODULES, slow=["esasrec", "hstu", "gru4rec"]))
def test_the_query_is_of_the_last_place_whatever_the_padding(name):
    module, params = params_of(name)
    model = r.SequenceModel(module)
    assert model.context == 8
    short = np.array([[3, 1, 4], [7, 7, 2]], np.int32)
    long = np.pad(short, ((0, 0), (0, 5)), constant_values=ITEMS)
    query = queries(model, params, short)
    np.testing.assert_allclose(query, queries(model, params, long), atol=2e-5)
    row = short if name != "bert4rec" else np.pad(short, ((0, 0), (0, 1)), constant_values=ITEMS)
    np.testing.assert_allclose(query, hidden(module, params, row)[:, -1], atol=2e-5)
    assert model.table(params).shape == (ITEMS, 16)


def test_hstu_by_hand():
    """One layer and head of the formula in the docstring."""
    module = r.hstu(ITEMS, 8, 4, 1, 1, 0.0)
    items = np.array([[2, 7, 5]])
    start = items.astype(np.int32)
    params = filled(functools.partial(module.init, method="hidden"), start, size=0.5)["params"]
    own = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x, p):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        return x * p["scale"] + p["bias"]

    def silu(x):
        return x / (1 + np.exp(-x))

    x, block = own["embedding"]["tokens"][items[0]], own["block_0"]
    y = silu(norm(x, block["norm"]) @ block["uvqk"]["kernel"] + block["uvqk"]["bias"])
    u, v, q, k = np.split(y, 4, axis=-1)
    attended = np.zeros((3, 4))
    for t in range(3):
        for s in range(t + 1):
            a = silu(q[t] @ k[s] + block["relative"]["embedding"][t - s, 0]) / (t + 1)
            attended[t] += a * v[s]
    y = norm(attended, block["attended_norm"]) * u
    x = x + y @ block["out"]["kernel"] + block["out"]["bias"]
    np.testing.assert_allclose(hidden(module, params, start)[0], norm(x, own["norm"]), atol=1e-4)


def cycles(users=200, length=9, seed=0):
    """Each user goes around the catalogue by steps of 1 or 2."""
    draw = np.random.default_rng(seed)
    first, step = draw.integers(0, ITEMS, (users, 1)), draw.integers(1, 3, (users, 1))
    items = ((first + step * np.arange(length)) % ITEMS).astype(np.int32)
    return r.Histories(items.ravel(), np.arange(users + 1) * length)


def parted(histories):
    """All but the last item of each, and the last."""
    items = histories.items.reshape(len(histories.lengths), -1)
    users, length = items.shape
    before = r.Histories(items[:, :-1].ravel(), np.arange(users + 1) * (length - 1))
    return before, r.Histories(items[:, -1].copy(), np.arange(users + 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODULES if name != "sasrec"])  # it learns below
def test_it_learns_where_histories_go(name):
    module, masked = MODULES[name], name == "bert4rec"
    make = r.masked_item if masked else r.next_item
    task = make(module, r.SampledSoftmax(64))
    train = r.rows(cycles(), 9, overlap=0 if masked else 1)
    test = r.held_out(*parted(cycles(50, seed=1)), 9)
    state = jo.fit(
        task,
        train,
        optimizer=jo.optim.adam(5e-3),
        batch_size=20,
        epochs=120 if masked else 40,
        progress=False,
    )
    found = jo.evaluate(task, state, test)
    # the items of the history are left out, and so nearly all are hit; the first is another matter
    assert found["ndcg@10"] > 0.9
    # of a row that is wider than the context, the last items are read
    model = r.SequenceModel(module)
    wanted = queries(model, state.params, jnp.asarray(test["items"][:, -8:]))
    np.testing.assert_allclose(jo.predict(task, state, test), wanted, atol=1e-4)


def trained(plan):
    """SASRec after a few steps, and how it is evaluated."""
    task, test = r.next_item(ONE_BLOCK), r.held_out(*parted(cycles(50, seed=1)), 9)
    state = jo.fit(
        task,
        r.rows(cycles(64), 9),
        optimizer=jo.optim.sgd(0.1),
        batch_size=16,
        steps=6,
        validation=test,
        plan=plan,
        progress=False,
    )
    return state, jo.evaluate(task, state, test, plan=plan)


@pytest.fixture(scope="module")
def on_one_device():
    return trained(jo.devices.single())


def test_the_metrics_are_those_of_ranks(on_one_device):
    state, found = on_one_device
    names = np.array([f"item {i}" for i in range(ITEMS)])
    model = r.SequenceModel(ONE_BLOCK)
    recommender = r.Recommender(model, state.params, names, np.ones(ITEMS))
    rank = r.ranks(recommender, *parted(cycles(50, seed=1))).ranks
    np.testing.assert_allclose(found["ndcg@10"], r.ndcg(rank, 10).mean(), atol=1e-6)
    np.testing.assert_allclose(found["hr@10"], r.hr(rank, 10).mean(), atol=1e-6)


def test_rows_foretell_each_item_once():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, 30)
    items = np.arange(lengths.sum()).astype(np.int32)
    histories = r.Histories(items, np.concatenate([[0], np.cumsum(lengths)]))
    packed = r.rows(histories, length=9)
    own, following = packed["segments"][:, :-1], packed["segments"][:, 1:]
    targets = packed["items"][:, 1:][(own == following) & (following > 0)]
    first = histories.starts[:-1]
    assert sorted(targets) == sorted(np.setdiff1d(items, first))
    # and none crosses from one history to another
    before = packed["items"][:, :-1][(own == following) & (following > 0)]
    np.testing.assert_array_equal(targets, before + 1)
    masked = r.rows(histories, length=9, overlap=0)
    seen = masked["items"][masked["segments"] > 0]
    assert len(seen) == len(np.unique(seen))


def test_bad_input():
    with pytest.raises(
        ValueError, match="histories must hold a user with at least 2 items, got at most 1"
    ):
        r.rows(r.Histories(np.array([1, 2], np.int32), np.array([0, 1, 2])), 5)
    with pytest.raises(ValueError, match="module must be causal, got"):
        r.next_item(MODULES["bert4rec"])
    with pytest.raises(
        ValueError, match="module must attend to items on both sides, got a causal one"
    ):
        r.masked_item(MODULES["sasrec"])
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\), got 1.0"):
        r.masked_item(MODULES["bert4rec"], share=1.0)
    task = r.next_item(MODULES["sasrec"])
    long = r.rows(cycles(), 12)
    with pytest.raises(ValueError, match="with at most 9 items per row, got"):
        jo.fit(task, long, optimizer=jo.optim.adam(1e-3), batch_size=4, epochs=1, progress=False)


@pytest.mark.slow
def test_eight_devices_equal_one(on_one_device):
    one, found_one = on_one_device
    many, found_many = trained(jo.devices.data_parallel())
    chex.assert_trees_all_close(one.params, many.params, atol=2e-5)
    np.testing.assert_allclose(found_one["ndcg@10"], found_many["ndcg@10"], atol=1e-5)


@pytest.mark.parametrize("name", cases(["sasrec", "bert4rec"], slow=["sasrec"]))
def test_new_items_leave_the_known_where_they_are(name):
    module, params = params_of(name)
    names = np.array([f"item {i}" for i in range(ITEMS)])
    before = r.Recommender(r.SequenceModel(module), params, names, np.ones(ITEMS))
    larger, state = r.sequence_with_items(before, ITEMS + 3)
    log = r.events({"user": ["a"], "item": ["item 3"]}, time=None, items=[*names, "x", "y", "z"])
    assert (
        r.sequence_recommender(larger, state, log, before).counts.tolist()
        == [1 + (i == 3) for i in range(ITEMS)] + [0] * 3
    )
    after = r.SequenceModel(larger)
    history = np.array([[3, 1, 4], [2, 7, 1]], np.int32)
    np.testing.assert_allclose(
        queries(after, state.params, history), queries(before.model, params, history), atol=1e-5
    )
    table = after.table(state.params)
    np.testing.assert_array_equal(table[:ITEMS], before.model.table(params))
    assert table.shape == (ITEMS + 3, 16)
    with pytest.raises(ValueError, match=r"items must be at least 20 \(the known items\), got 5"):
        r.sequence_with_items(before, 5)
    with pytest.raises(
        ValueError, match=r"must be of a model with a fit method, .*got SequenceModel"
    ):
        r.updated(before, None)


@pytest.mark.slow
def test_new_events_are_learned_from_a_warm_start():
    """Users who go around 20 items; then some who go around 24: the new ones are recommended."""

    def log(items, seed, known=()):
        first = np.random.default_rng(seed).integers(0, items, (200, 1))
        walk = (first + np.arange(9)) % items
        columns = {"user": np.repeat(np.arange(200), 9), "item": [f"{i:02}" for i in walk.ravel()]}
        return r.events(columns, time=None, items=known or [f"{i:02}" for i in range(ITEMS)])

    def learn(module, events, state, epochs):
        return jo.fit(
            r.next_item(module),
            r.rows(events.histories(), 9),
            optimizer=jo.optim.adam(5e-3),
            batch_size=20,
            epochs=epochs,
            state=state,
            progress=False,
        )

    old, new = log(ITEMS, 0), log(ITEMS + 4, 1)
    assert new.items[:ITEMS].tolist() == old.items.tolist()
    model = r.sequence_recommender(MODULES["sasrec"], learn(MODULES["sasrec"], old, None, 20), old)
    assert r.recommend(model, [["17", "18", "19"]], 1).ids() == [["00"]]
    module, state = r.sequence_with_items(model, len(new.items))
    model = r.sequence_recommender(module, learn(module, new, state, 20), new)
    lists = r.recommend(model, [["17", "18", "19"], ["18", "19", "20"], ["01", "02"]], 1).ids()
    assert lists == [["20"], ["21"], ["03"]]


def test_a_log_of_one_user():
    log = r.events({"user": ["a"] * 8, "item": list("xyzxyzxy")}, time=None)
    module = r.sasrec(3, 8, 16, 1, 1, 0.0)
    state = jo.fit(
        r.next_item(module),
        r.rows(log.histories(), 9),
        optimizer=jo.optim.adam(1e-2),
        batch_size=1,
        epochs=40,
        progress=False,
    )
    model = r.sequence_recommender(module, state, log)
    assert r.recommend(model, [["x"], ["x", "y"]], 1).ids() == [["y"], ["z"]]
    for kind in (r.EASE(l2=1.0), r.ItemKNN(), r.Popularity(), r.IALS(factors=2)):
        assert len(r.recommend(r.fitted(kind, log), [["x"]], 2).ids()[0]) == 2
