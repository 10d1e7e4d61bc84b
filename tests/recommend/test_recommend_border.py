"""What is wrong is refused, what can never be shown is a miss, and one odd row costs little."""

from dataclasses import dataclass, replace
from typing import ClassVar
from uuid import UUID

import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import recommend as r
from jaxops.recommend import batching, metrics, ranking, tasks


@dataclass(frozen=True)
class Sum:
    """The sum of the table's rows of a user's items is the query."""

    context: int | None = None
    answers_empty: ClassVar[bool] = True

    def queries(self, params, history):
        return params.at[history].get(mode="fill", fill_value=0).sum(1)

    def table(self, params):
        return params


@pytest.fixture(scope="module")
def groceries():
    """Items of which a user takes some again; scores without ties."""
    rng = np.random.default_rng(0)
    user, item = np.repeat(np.arange(60), 9), rng.integers(0, 20, 540)
    log = r.events({"user": user, "item": item}, time=None)
    table = rng.normal(size=(20, 4)).astype(np.float32)
    return r.Recommender(Sum(), table, log.items, np.ones(20)), r.leave_one_out(log)


def test_a_target_that_is_never_shown_is_a_miss_by_hand():
    """Everybody takes milk and eggs again and again: without the seen items no list is left."""
    items = ["milk", "eggs", "milk", "milk", "eggs", "milk", "eggs", "eggs"]
    split = r.leave_one_out(r.events({"user": list("aaaabbbb"), "item": items}, time=None))
    model = r.fitted(r.Popularity(), split.train)
    parts = split.before_test().histories(), split.test.histories()
    with pytest.warns(UserWarning, match="2 of 2 targets are items of their user's history"):
        hidden = r.evaluated(model, *parts, k=1)
    assert [hidden.values[f"{n}@1"].tolist() for n in metrics.METRICS] == [[0.0, 0.0]] * 5
    assert hidden.parts["never_shown"].tolist() == [1, 1]
    assert r.recommend(model, parts[0], k=1).ids() == [[], []]
    shown = r.evaluated(model, *parts, k=1, exclude_seen=False)
    assert shown.values["hr@1"].tolist() == [0.5, 0.5]  # both score the same
    assert shown.parts["never_shown"].tolist() == [0, 0]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_figures_are_those_of_the_lists_that_are_served(groceries, exclude_seen, recwarn):
    model, split = groceries
    histories, targets = split.before_test().histories(), split.test.histories()
    found = r.evaluated(model, histories, targets, 3, exclude_seen)
    served = r.recommend(model, histories, 3, exclude_seen=exclude_seen)
    np.testing.assert_array_equal(found.parts["lists"], served.places)
    hits = (served.places == targets.items[:, None]).any(1)
    np.testing.assert_array_equal(found.values["hr@3"], hits)
    again = [t in histories.items[a : a + 8] for a, t in zip(range(0, 480, 8), targets.items)]
    assert 10 < sum(again) < 40
    assert found.parts["never_shown"].sum() == (sum(again) if exclude_seen else 0)
    assert len(recwarn) == exclude_seen


def test_a_sample_cannot_show_what_no_list_shows():
    exact = r.Ranks(np.arange(2), np.array([[2.0], [9.0]]), np.ones((2, 1)), np.array([8, 3]))
    with pytest.warns(UserWarning, match="sampled metrics"):
        found = r.sampled_metrics(exact, 8, negatives=7)
    assert found["sampled_hr@8"].tolist() == [1.0, 0.0]
    assert found["sampled_mrr@8"].tolist() == [0.5, 0.0]


def test_validation_in_training_has_the_same_places_and_ties():
    above, alike = jnp.array([0, 9, 8, 2**30]), jnp.array([1, 4, 4, 1])
    ranks, ties = np.array([[1], [11.5], [10.5], [30]]), np.array([[1], [4], [4], [1]])
    found = tasks._expected(jnp.ones(10), above, alike)
    np.testing.assert_allclose(found, metrics.hr(ranks, 10, ties), rtol=1e-6)
    found = tasks._expected(1 / jnp.log2(jnp.arange(2.0, 12.0)), above, alike)
    np.testing.assert_allclose(found, metrics.ndcg(ranks, 10, ties), rtol=1e-6)


def test_one_long_history_makes_small_batches(monkeypatch):
    """601 users, one of whom has 20,000 events: a batch holds 2**18 places at most."""
    rng = np.random.default_rng(0)
    lengths = np.full(601, 4)
    lengths[300] = 20_000
    starts = np.concatenate([[0], np.cumsum(lengths)])
    histories = r.Histories(rng.integers(0, 30, starts[-1]).astype(np.int32), starts)
    targets = r.Histories(rng.integers(0, 30, 601).astype(np.int32), np.arange(602))
    names = np.arange(30)
    model = r.Recommender(Sum(), rng.normal(size=(30, 4)).astype(np.float32), names, np.ones(30))
    shapes, score = [], ranking._score
    monkeypatch.setattr(ranking, "_score", lambda *a: shapes.append(a[5].shape) or score(*a))
    found = r.ranks(model, histories, targets, exclude_seen=False)
    assert max(rows * length for rows, length in shapes) <= 2**18
    assert len(set(shapes)) == 2 and len(shapes) == 2
    short = np.delete(np.arange(601), 300)
    alone = r.ranks(model, histories.part(short), targets.part(short), exclude_seen=False)
    np.testing.assert_array_equal(found.ranks[short], alone.ranks)


def test_what_a_batch_holds_is_known_for_every_model():
    """Also for one of the user's own, here with an array of (B, L, L), and in a blend."""

    @dataclass(frozen=True)
    class Pairs(Sum):
        def queries(self, params, history):
            rows = params.at[history].get(mode="fill", fill_value=0)
            return (rows @ rows.mT).sum(2)[:, :4]

    small, size = np.zeros((30, 4), np.float32), 256
    bpr = {"items": np.zeros((30, 32), np.float32), "bias": np.zeros(30, np.float32)}
    ials = {"items": np.zeros((30, 128), np.float32), "spectrum": np.ones(128, np.float32)}
    models = {"pairs": (Pairs(), small), "bpr": (r.BPR(factors=32), bpr)}
    models |= {"ials": (r.IALS(factors=128), ials), "sum": (Sum(), small)}
    every = {n: r.Recommender(m, p, np.arange(30), np.ones(30)) for n, (m, p) in models.items()}
    every["blend"] = r.blend([every["sum"], every["ials"]])
    found = {name: batching.cells(one, size, None, most=64) for name, one in every.items()}
    assert found["pairs"] == size * size and found["sum"] == size * batching.PLACE
    assert found["bpr"] == size * 128 and found["ials"] == found["blend"] == size * 128


def test_few_programs_for_any_number_of_users(groceries):
    model, split = groceries
    histories, targets = split.before_test().histories(), split.test.histories()
    before = ranking._score._cache_size()
    for count in (17, 20, 25, 31, 32):
        some = np.arange(count)
        r.ranks(model, histories.part(some), targets.part(some))
    assert ranking._score._cache_size() <= before + 1


LOG = {
    "user": [10, 10, 20, 20, 30],
    "item": [1001, 1002, 1001, 1002, 1003],
    "time": [1, 2, 3, 4, 5],
}


@pytest.fixture(scope="module")
def shop():
    return r.fit(LOG, r.ItemKNN(), progress=False)


def test_integer_ids_come_back_as_integers(shop, tmp_path):
    assert shop.predict([[1001]], k=1).ids() == shop.predict([["1001"]], k=1).ids() == [[1002]]
    assert shop.predict([np.array([1001])], k=2, deny=[1002]).ids() == [[1003]]
    assert shop.predict([[]], k=1, allow=["1003"]).ids() == [[1003]]
    frame = shop.predict(LOG, k=1).frame()
    assert (frame["user"].tolist(), frame["item"].tolist()) == ([10, 20, 30], [1003, 1003, 1001])
    jo.save(tmp_path / "shop.safetensors", shop)
    assert jo.load(tmp_path / "shop.safetensors").predict([[1001]], k=1).ids() == [[1002]]


def test_identifiers_and_bytes_are_text():
    ids = [UUID(int=n) for n in (1, 2, 1, 2, 3)]
    shop = r.fit({**LOG, "item": ids}, r.ItemKNN(), progress=False)
    assert shop.predict([[ids[0]]], k=1).ids() == [[str(ids[1])]]
    log = r.events({**LOG, "item": np.array([b"x", b"y", b"x", b"y", "\u00e9".encode()])})
    assert log.items.tolist() == ["x", "y", "\u00e9"]
    for items, message in (
        ([b"\xff"] * 5, r"column 'item' must be text or integers, got object \(b'\\xff'\)"),
        ([b"x", "x", "x", "x", "x"], "column 'item' must hold ids of one type, got bytes, str"),
    ):
        with pytest.raises(ValueError, match=message):
            r.events({**LOG, "item": items})


def test_histories_of_an_array_or_a_series(shop):
    import pandas as pd

    wanted = shop.predict([[1001], [1002]], k=2).ids()
    for given in (np.array([[1001], [1002]]), pd.Series([[1001], [1002]], index=["a", "b"])):
        assert shop.predict(given, k=2).ids() == wanted


def test_a_catalogue_of_one_item():
    """Nobody can be shown what all have had: figures without a value are NaN, not a warning."""
    log = {"user": [1, 2, 1], "item": [7, 7, 7], "time": [1, 2, 3]}
    with pytest.warns(UserWarning, match="1 of 1 targets are items of their user's history"):
        shop = r.fit(log, r.Popularity(), progress=False)
    assert np.isnan(shop.about["validation"]["novelty@1"])
    assert shop.predict([[], [7]], k=1).ids() == [[7], []]


def test_a_catalogue_of_integers_meets_text(shop):
    more = r.update(shop, {"user": ["q", "q"], "item": ["1001", "5"], "time": [6, 7]})
    assert more.task.items.tolist() == [1001, 1002, 1003, 5]
    mixed = r.update(shop, {"user": ["q", "q"], "item": ["1001", "x"], "time": [6, 7]})
    assert mixed.task.items.tolist() == ["1001", "1002", "1003", "x"]
    zeros = r.update(shop, {"user": ["q"], "item": ["01001"], "time": [6]})
    assert zeros.task.items.tolist() == ["1001", "1002", "1003", "01001"]  # another id
    found = shop.predict({"user": ["10", "z"], "item": ["1001", "what"], "time": [1, 2]}, k=1)
    assert found.users.tolist() == ["10", "z"] and (found.unknown, found.empty) == (1, 1)
    assert found.ids()[0] == [1002]
    huge = r.events({"user": np.array([2**64 - 1, 1], np.uint64), "item": [1, 2]}, time=None)
    assert huge.users.tolist() == [str(2**64 - 1), "1"]


def test_similar_items_are_those_of_a_sort(shop, groceries):
    model, _ = groceries
    unit = model.params / np.linalg.norm(model.params, axis=1, keepdims=True)
    cosine = unit @ unit.T - 2 * np.eye(20)
    asked = model.items[[4, 0, 11]]
    found = r.similar_items(model, asked, k=20)
    np.testing.assert_array_equal(found.users, asked)
    for row, item in enumerate([4, 0, 11]):
        assert found.places[row].tolist() == [*np.argsort(-cosine[item])[:19], 20]
        np.testing.assert_allclose(found.scores[row][:19], -np.sort(-cosine[item])[:19], atol=1e-6)
    similar = r.similar_items(shop, [1001], k=2)  # a model without vectors
    assert similar.ids() == [[1002, 1003]] and similar.users.tolist() == [1001]
    with pytest.raises(ValueError, match="items must hold ids of the catalogue, got '7'"):
        r.similar_items(shop, [7], k=1)


@pytest.mark.parametrize("answers_empty", [True, False])
def test_each_user_has_lists_of_items(groceries, answers_empty, monkeypatch):
    monkeypatch.setattr(Sum, "answers_empty", answers_empty)
    model, split = groceries
    rng, histories = np.random.default_rng(1), split.before_test().histories()
    histories = histories._replace(
        starts=np.append(histories.starts[:-6], [histories.starts[-7]] * 6)
    )
    allow = [list(rng.choice(model.items, rng.integers(1, 18))) for _ in range(60)]
    deny = [list(rng.choice(model.items, rng.integers(0, 9))) for _ in range(60)]
    model = replace(model, counts=rng.permutation(np.arange(20.0)))
    for limits in ({"allow": allow}, {"deny": deny}, {"allow": allow, "deny": [*model.items[:5]]}):
        found = r.recommend(model, histories, 4, **limits)
        for user in range(60):
            seen = histories.items[histories.starts[user] : histories.starts[user + 1]]
            scores = model.params @ model.params[seen].sum(0)
            if len(seen) == 0:
                scores = 0 * scores if answers_empty else model.counts
            out = {*seen.tolist()}
            for name, given in limits.items():
                ids = given[user] if isinstance(given[0], list) else given
                named = [model.place_of[str(item)] for item in ids]
                out |= {*named} if name == "deny" else {*range(20)} - {*named}
            want = [i for i in np.argsort(-scores, kind="stable") if i not in out][:4]
            assert found.places[user].tolist() == [*want, *[20] * 4][:4]


def test_recommend_takes_a_log_and_some_of_its_users(shop):
    other = r.events({"user": ["b", "a", "b"], "item": [1003, 1002, 7], "time": [1, 2, 3]})
    found = r.recommend(shop, other, k=1)
    assert found.frame()["user"].tolist() == ["b", "a"] and found.unknown == 1
    assert found.ids() == r.recommend(shop, [[1003], [1002]], k=1).ids()
    some = r.recommend(shop, other, k=1, users=["a"])
    assert some.users.tolist() == ["a"] and some.unknown == 0 and some.ids() == found.ids()[1:]
    assert shop.predict(LOG, k=1, users=["30", 10]).frame()["user"].tolist() == [30, 10]


@pytest.mark.parametrize(
    ("histories", "options", "words"),
    [
        ([[1001, None]], {}, "histories must hold ids, text or integers, got None in row 0"),
        ([[None, 5]], {}, "histories must hold ids, text or integers, got None in row 0"),
        ([[5, None]], {}, "histories must hold ids, text or integers, got None in row 0"),
        ([[5], [1.5]], {}, "histories must hold ids, text or integers, got 1.5 in row 1"),
        ([[True]], {}, "histories must hold ids, text or integers, got True in row 0"),
        ([1001], {}, "histories must be a list of ids, got 1001 in row 0"),
        (["1001"], {}, "histories must be a list of ids, got '1001' in row 0"),
        ("log.csv", {}, "histories must be a log .* or lists of ids, got str; model.predict reads"),
        (LOG, {}, "histories must be a log of recommend.events or lists of ids, got dict"),
        ([[5]], {"allow": "1001"}, "allow must be a list of ids, got '1001'"),
        ([[5]], {"allow": [7]}, "allow must hold ids of the catalogue, got '7'"),
        ([[5]], {"allow": 5}, "allow must be a list of ids, got 5"),
        ([[5]], {"deny": [None]}, "deny must hold ids, text or integers, got None"),
        ([[5]], {"allow": [[5], [6]]}, "allow must be one list, or one for each of 1 users, got 2"),
        ([[5]], {"deny": [[7]]}, "deny must hold ids of the catalogue, got '7'"),
        ([[5]], {"deny": [1001, [1]]}, r"deny must hold ids, text or integers, got \[1\]"),
        ([[5]], {"users": ["10"]}, "users must be None for histories without ids of users"),
        ([[5]], {"k": 2.0}, r"k must be 1 to 3 \(the number of items\), got 2.0"),
        ([[5]], {"k": [1, 2]}, r"k must be 1 to 3 \(the number of items\), got \[1, 2\]"),
    ],
)
def test_unclear_input_of_recommend(shop, histories, options, words):
    with pytest.raises(ValueError, match=words):
        r.recommend(shop, histories, **{"k": 1, **options})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.predict(LOG, k=1, users=[99]), "users must be users of the log, got '99'"),
        (lambda m: m.predict(LOG, k=1, users=[10, 10]), "users must be distinct, got .10. twice"),
        (lambda m: m.predict(LOG, k=1, users=30), "users must be a list of ids, got 30"),
        (lambda m: r.evaluate(m, LOG, k=[1, 2]), r"k must be 1 to 3 .* got \[1, 2\]"),
        (lambda m: r.hr(np.ones((1, 1)), [1]), "k must be a whole number of at least 1, got"),
        (
            lambda m: r.events({"user": ["a", ""], "item": ["x", "y"]}, time=None),
            "arrays: column 'user' must have an id for every row, got '' in row 1",
        ),
    ],
)
def test_unclear_input_of_others(shop, call, words):
    with pytest.raises(ValueError, match=words):
        call(shop)


def test_a_half_life_of_days_where_times_are_seconds():
    dates = [f"2024-01-{day:02}" for day in range(1, 29)]
    log = r.events({"user": ["a"] * 28, "item": dates, "time": dates})
    with pytest.warns(UserWarning, match="half_life=7 is in seconds, .* a day has 86,400"):
        r.fitted(r.Popularity(half_life=7), log)
    found = r.fitted(r.Popularity(half_life=7 * 86_400), log).params["score"]
    np.testing.assert_allclose(found[[-1, -8, -15]], [1, 1 / 2, 1 / 4])
    r.fitted(r.Popularity(half_life=7), replace(log, time=np.arange(28)))  # days, no warning
