"""One call a job on event logs: what is read, what is learned, what comes back from the file."""

import subprocess
import sys
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxops as jo
from jaxops import recommend
from jaxops.recommend import trials
from jaxops.recommend.data.features import Catalogue
from jaxops.recommend.jobs import _held_out, _named

USERS, ITEMS, EACH = 30, 12, 6
USER = np.repeat(np.arange(USERS), EACH)
STEP = np.tile(np.arange(EACH), USERS)
RNG = np.random.default_rng(0)
ITEM = np.array([RNG.permutation(ITEMS)[:EACH] for _ in range(USERS)]).ravel()
LOG = {
    "customer": np.array([f"c{u}" for u in USER], object),
    "sku": np.array([f"{i:03}" for i in ITEM], object),
    "date": np.array([f"2024-01-{1 + s:02}" for s in STEP], object),
}
NAMES = {"user": "customer", "item": "sku", "time": "date"}
PRICES = {"sku": [f"{i:03}" for i in range(ITEMS + 1)], "price": np.arange(ITEMS + 1.0)}
AGES = {"customer": [f"c{u}" for u in range(USERS)], "age": np.arange(USERS) + 20.0}
SMALL = recommend.sasrec(context=5, width=8, depth=1, dropout=0.0)


def fit(method, log=LOG, **options):
    return recommend.fit(log, method, **{**NAMES, "progress": False, **options})


def finished(method, params):
    """A finished model of untrained parameters, which are drawn without compiling anything."""
    rng = np.random.default_rng(1)
    drawn = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
    ids = np.array([f"{i:03}" for i in range(ITEMS)])
    recommender = recommend.Recommender(method, drawn, ids, np.arange(ITEMS, dtype=float))
    return jo.Model(recommender, None, recommend.LogReader(**NAMES))


def sequence_model(make):
    module = make(ITEMS, context=5, width=8, depth=1)
    ones = jnp.ones((1, 5), jnp.int32)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: module.init(key, ones, ones, ones, method="hidden"))
    return finished(recommend.SequenceModel(module), shapes["params"])


@pytest.fixture(scope="module")
def model():
    return fit(recommend.EASE(l2=5.0))


@pytest.fixture(scope="module")
def towers():
    """Untrained."""
    log = recommend.events(LOG, **NAMES, user_features=AGES, item_features=PRICES)
    method = recommend.TwoTower.fitted(log, width=4, widths=(4,), context=3)
    shapes, _ = jax.eval_shape(recommend.retrieval(method, log).init, jax.random.key(0), {})
    made = finished(method, {"network": shapes})
    made.task.params["items"] = Catalogue.of(log, method.item_features, method.known).items
    recommender = replace(made.task, items=log.items, counts=recommend.fitted(
        recommend.Popularity(), log).counts)  # fmt: skip
    return replace(made, task=recommender)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("logs") / "log.csv"
    __import__("pandas").DataFrame(LOG).to_csv(path, index=False)
    return path


def test_every_kind_of_source_gives_the_same_answer(model, csv, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pd.DataFrame(LOG)
    frame.to_parquet(tmp_path / "log.parquet")
    wanted = model.predict(LOG, k=3)
    assert wanted.users.tolist() == [f"c{u}" for u in range(USERS)] and wanted.unknown == 0
    sources = [csv, str(csv), tmp_path / "log.parquet", frame, pl.from_pandas(frame)]
    sources += [pl.from_pandas(frame).to_arrow(), recommend.events(csv, **NAMES)]
    for source in sources:
        answer = model.predict(source, k=3)
        assert answer.users.tolist() == wanted.users.tolist()
        np.testing.assert_array_equal(answer.places, wanted.places)
    lists = [[f"{i:03}" for i in row] for row in ITEM.reshape(USERS, EACH)]
    assert (
        model.predict(lists, k=3).ids()
        == wanted.ids()
        == recommend.recommend(model, lists, k=3).ids()
    )
    rows = wanted.frame()
    assert rows.columns.tolist() == ["user", "rank", "item", "score"] and len(rows) == 3 * USERS
    assert rows["item"].tolist()[:3] == wanted.ids()[0] and rows["rank"].tolist()[:3] == [1, 2, 3]
    again = fit(recommend.EASE(l2=5.0), csv)
    assert again.about == model.about


def test_a_log_of_other_items_and_another_order_of_them(model):
    """Of `Events` the indices are those of their own catalogue; unknown items are counted."""
    columns = {"customer": ["x", "x", "y"], "sku": ["new", "003", "new"], "date": [1, 2, 3]}
    answer = model.predict(columns, k=2)
    assert answer.users.tolist() == ["x", "y"] and answer.unknown == 2 and answer.empty == 1
    assert answer.ids()[0] == model.predict([["003"]], k=2).ids()[0]
    again = model.predict(recommend.events(columns, **NAMES), k=2)
    assert again.ids() == answer.ids() and again.unknown == 2


def by_hand(model, histories, target):
    """The rank of a target by the weights of EASE alone."""
    recommender = model.task
    place = {name: i for i, name in enumerate(recommender.items.tolist())}
    weights = np.asarray(recommender.params["weights"], np.float64)
    seen = [place[i] for i in histories]
    scores = weights[recommender.params["place"][seen]].sum(0)
    scores = scores[recommender.params["place"]]
    scores[seen] = -np.inf
    return 1 + (scores > scores[place[target]]).sum()


def test_scores_are_those_of_a_loop(model):
    scored = recommend.evaluate(model, LOG, k=4)
    ids = [f"{i:03}" for i in ITEM]
    ranks = np.array([
        by_hand(model, ids[u * EACH : u * EACH + EACH - 1], ids[u * EACH + EACH - 1])
        for u in range(USERS)
    ])  # fmt: skip
    assert scored.unit == "user" and scored.ids.tolist() == [f"c{u}" for u in range(USERS)]
    assert scored.parts["ranks"][:, 0].tolist() == ranks.tolist()
    figures = scored.figures()
    assert figures["hr@4"] == (ranks <= 4).mean()
    assert figures["ndcg@4"] == pytest.approx(
        np.where(ranks <= 4, 1 / np.log2(ranks + 1), 0).mean()
    )
    low, high = scored.interval("hr@4")[1:]
    assert low < figures["hr@4"] < high and np.isnan(scored.interval("coverage@4").low)
    assert "| coverage@4" in str(scored)


def test_the_history_may_be_a_log_of_its_own_and_a_new_item_is_missed(model):
    """Two targets of c0, of which one is unknown; a new user; and one whose target is unknown."""
    later = {
        "customer": ["c0", "c0", "new", "c1"],
        "sku": [f"{ITEM[EACH - 1]:03}", "unknown", "004", "unknown"],
        "date": ["2024-02-01"] * 4,
    }
    keep = STEP < EACH - 1
    known = {name: column[keep] for name, column in LOG.items()}
    scored = recommend.evaluate(model, later, known, k=4)
    assert scored.ids.tolist() == ["c0", "c1", "new"]
    first = by_hand(model, [f"{i:03}" for i in ITEM[: EACH - 1]], f"{ITEM[EACH - 1]:03}")
    popular = model.task.counts
    place = model.task.items.tolist().index("004")
    third = 1 + (popular > popular[place]).sum() + ((popular == popular[place]).sum() - 1) / 2
    assert scored.parts["ranks"].tolist() == [
        [first, ITEMS + 1],
        [ITEMS + 1, np.inf],
        [third, np.inf],
    ]
    assert scored.values["recall@4"].tolist() == [0.5 * (first <= 4), 0, third <= 4]
    assert (scored.parts["lists"][1] < ITEMS).all()


def test_what_is_held_out(model):
    """The last item of each user, by which the figures are; the closed form then has all events."""
    earlier = STEP < EACH - 1
    rest = {name: column[earlier] for name, column in LOG.items()}
    log = recommend.events(LOG, **NAMES)
    recommender = recommend.fitted(recommend.EASE(l2=5.0), log.part(log.time < log.time.max()))
    wanted = recommend.evaluate(jo.Model(recommender, None, model.reader), LOG)
    assert model.about["validation"] == wanted.figures()
    assert model.task.counts.sum() == len(ITEM) > len(rest["sku"])
    by_time = fit(recommend.Popularity(), validation=0.2)
    targets = {name: column[STEP >= EACH - 2] for name, column in LOG.items()}
    given = fit(
        recommend.Popularity(),
        {name: column[STEP < EACH - 2] for name, column in LOG.items()},
        validation=targets,
    )
    for name in ("hr@10", "recall@10", "ndcg@10"):
        assert given.about["validation"][name] == by_time.about["validation"][name]


def test_several_methods_and_the_best_is_kept(capsys):
    """Round and round: what comes next depends on the last item alone, and on no popularity."""
    start = RNG.integers(0, 9, 60)[:, None]
    columns = {"user": np.repeat(np.arange(60), 6), "item": ((start + np.arange(6)) % 9).ravel()}
    methods = [recommend.Popularity(), recommend.ItemKNN(context=1, shrink=0.0)]
    best = recommend.fit(columns, methods, time=None)
    assert best.about["method"] == "ItemKNN"
    printed = capsys.readouterr().out
    assert "validation, 60 users" in printed and "| Popularity |" in printed
    hurried = recommend.fit(columns, methods, time=None, budget=1e-9)
    assert hurried.about["method"] == "Popularity"
    assert "not tried, because no time was left: ItemKNN" in capsys.readouterr().out
    log = recommend.events(columns, time=None)
    assert [*_named(None, log)] == ["EASE", "ItemKNN", "SASRec"]
    assert [*_named([SMALL, SMALL], log)] == ["Transformer 1", "Transformer 2"]


def test_the_default_chooses_the_decay_by_validation(monkeypatch):
    """After the even items of a history comes the odd one beside the last, as two events show."""
    even = np.array([2 * RNG.permutation(9)[:5] for _ in range(40)])
    long, pairs = np.c_[even, even[:, -1] + 1], 2 * np.repeat(np.arange(9), 3)
    columns = {
        "user": np.r_[np.repeat(np.arange(40), 6), np.repeat(np.arange(40, 67), 2)],
        "item": np.r_[long.ravel(), np.c_[pairs, pairs + 1].ravel()],
    }
    forms = {"ItemKNN": recommend.ItemKNN(shrink=0.0, neighbours=17)}
    monkeypatch.setattr("jaxops.recommend.jobs._named", lambda method, log: forms)
    monkeypatch.setattr(trials, "DECAYS", (1.0, 0.2))
    found = recommend.fit(columns, time=None, progress=False)
    assert found.task.model.decay == 0.2
    given = recommend.fit(columns, forms["ItemKNN"], time=None, progress=False)
    assert given.task.model == forms["ItemKNN"]
    name = "ndcg@10"
    assert found.about["validation"][name] > given.about["validation"][name]


def finished_models(model, towers):
    """One of every kind."""
    wide, size = np.zeros((ITEMS, 2)), np.zeros(2)
    gram = {"users_gram": np.zeros((2, 2)), "users": np.zeros(()), "counts": np.zeros(ITEMS)}
    every = {
        "EASE": model,
        "ItemKNN": fit(recommend.ItemKNN(decay=0.5, backward=0.5)),
        "Popularity": fit(recommend.Popularity(half_life=2.0 * 86_400)),
        "TwoTower": towers,
        "IALS": finished(recommend.IALS(factors=2), {"items": wide, "spectrum": size, **gram}),
        "BPR": finished(recommend.BPR(factors=2), {"items": wide, "bias": wide[:, 0]}),
    }
    every["blend"] = recommend.blend([model, every["ItemKNN"]], [0.3, 0.7], [1.0, 0.5])
    r = recommend
    for make in (r.sasrec, r.esasrec, r.hstu, r.gru4rec, r.bert4rec):
        every[make.__name__] = sequence_model(make)
    return every


CHILD = """
import sys, numpy as np, jax, jaxops as jo
found = {}
for name, compared in [name.split(":") for name in sys.argv[3:]]:
    model = jo.load(f"{sys.argv[1]}/{name}.safetensors")
    found |= {f"{name} {i}": x for i, x in enumerate(jax.tree.leaves(model.task.params))}
    if compared:
        answer = model.predict(sys.argv[2], k=4)
        found |= {f"{name} ids": np.array(answer.ids()), f"{name} scores": answer.scores}
np.savez(f"{sys.argv[1]}/answers.npz", **found)
"""
CHEAP = ("EASE", "ItemKNN", "Popularity", "blend")


def test_files_of_every_kind_answer_the_same_in_a_new_process(model, towers, csv, tmp_path):
    """The arrays of all, and the answers of those that compile little."""
    every = finished_models(model, towers)
    for name, one in every.items():
        jo.save(tmp_path / f"{name}.safetensors", one)
    compared = [f"{name}:{'yes' * (name in CHEAP)}" for name in every]
    arguments = [sys.executable, "-c", CHILD, str(tmp_path), str(csv), *compared]
    subprocess.run(arguments, check=True, timeout=120)
    found = np.load(tmp_path / "answers.npz")
    for name, one in every.items():
        for i, leaf in enumerate(jax.tree.leaves(one.task.params)):
            np.testing.assert_array_equal(found[f"{name} {i}"], leaf)
        back = jo.load(tmp_path / f"{name}.safetensors")
        assert back.reader == one.reader and back.about == one.about
        assert back.task.model == one.task.model and back.room == "recommend"
        assert back.task.items.tolist() == one.task.items.tolist()
    for name in CHEAP:
        wanted = every[name].predict(csv, k=4)
        assert found[f"{name} ids"].tolist() == wanted.ids(), name
        np.testing.assert_allclose(found[f"{name} scores"], wanted.scores, atol=1e-5, err_msg=name)


NEW = {
    "customer": ["n"] * 3 + ["m"] * 2,
    "sku": ["new", "003", "005", "003", "005"],
    "date": [f"2024-03-0{1 + i}" for i in range(5)],
}


def test_new_events(model, towers, tmp_path):
    jo.save(tmp_path / "ease.safetensors", model)
    larger = recommend.update(jo.load(tmp_path / "ease.safetensors"), NEW)
    known = model.task.items.tolist()
    assert larger.task.items.tolist() == [*known, "new"] and larger.about["items"] == ITEMS + 1
    both = {name: [*column, *NEW[name]] for name, column in LOG.items()}
    whole = recommend.fitted(recommend.EASE(l2=5.0), recommend.events(both, **NAMES))
    np.testing.assert_allclose(larger.task.params["gram"], whole.params["gram"], atol=1e-5)

    columns = {"sku": ["new"], "price": [3.0]}
    assert towers.task.items.tolist() == [*known, "012"]  # the catalogue has an item without events
    more = recommend.update(towers, NEW, item_features=columns)
    assert more.task.items.tolist() == [*known, "012", "new"] and more.task.counts[-1] == 1
    for one, options, message in (
        (model, {"epochs": 1}, "options must be none for EASE, which is not trained further"),
        (model, {"item_features": columns}, "item_features must be None for EASE, got a table"),
        (towers, {}, "columns must include 'price', got none|price"),
        (recommend.blend([model, model]), {"steps": 1}, "options must be none for EASE, EASE"),
    ):
        with pytest.raises(ValueError, match=message):
            recommend.update(one, NEW, **options)


def test_of_a_blend_each_model_is_updated(model, tmp_path):
    other = fit(recommend.ItemKNN())
    jo.save(tmp_path / "both.safetensors", recommend.blend([model, other], [0.3, 0.7], [1.0, 0.5]))
    larger = recommend.update(jo.load(tmp_path / "both.safetensors"), NEW)
    apart = [recommend.update(one, NEW) for one in (model, other)]
    wanted = recommend.blend(apart, [0.3, 0.7], [1.0, 0.5])
    assert larger.task.items.tolist()[-1] == "new" and larger.task.model == wanted.task.model
    given, told = (one.predict(LOG, k=4) for one in (larger, wanted))
    assert given.ids() == told.ids()
    np.testing.assert_allclose(given.scores, told.scores, rtol=1e-6)


def test_the_weight_of_a_blend_is_the_best_by_validation(model):
    other = fit(recommend.Popularity())
    log = recommend.events(LOG, **NAMES)
    _, held = _held_out(model.reader, log, None, None, 0)
    # as if the first were a network
    share = trials.weight_of([other.task, model.task], held)
    ndcg = [
        trials.scored(trials.blended([other.task, model.task], w), held, 10).figures()["ndcg@10"]
        for w in trials.WEIGHTS
    ]
    assert ndcg[trials.WEIGHTS.index(share)] == max(ndcg) > min(ndcg)
    methods = {"EASE": recommend.EASE(), "ItemKNN": recommend.ItemKNN(), "SASRec": SMALL}
    one = trials.scored(model.task, held, 10)
    weak = replace(one, values={**one.values, "ndcg@10": 0 * one.values["ndcg@10"]})
    scores = {"EASE": weak, "ItemKNN": one, "SASRec": one}
    assert trials.pair_of(methods, scores, 10) == ("SASRec", "ItemKNN")
    del scores["SASRec"]
    assert trials.pair_of(methods, scores, 10) == () and trials.best_of(scores, 10) == "ItemKNN"


def test_features_of_users(towers, model):
    some = towers.predict(LOG, k=3, user_features=AGES)
    lists = [[f"{i:03}" for i in row] for row in ITEM.reshape(USERS, EACH)]
    same = towers.predict(lists, k=3, user_features={"age": AGES["age"]})
    np.testing.assert_array_equal(some.places, same.places)
    assert not np.array_equal(some.scores, towers.predict(LOG, k=3).scores)
    with_ages = recommend.evaluate(towers, LOG, k=3, user_features=AGES)
    assert len(with_ages) == USERS
    fewer = {name: column[:5] for name, column in AGES.items()}
    with pytest.raises(ValueError, match="must have a row for every id, got none for 'c5'"):
        towers.predict(LOG, k=3, user_features=fewer)
    with pytest.raises(ValueError, match="user_features must be None for EASE"):
        model.predict(LOG, k=3, user_features=AGES)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("ease", {"user": "nobody"}, "must have a column 'nobody', got customer, sku, date"),
        ("ease", {"budget": "soon"}, "budget must be a time such as"),
        ("ease", {"epochs": 3}, "options must be none for EASE, which jaxops.fit does not train"),
        ("ease", {"user_features": AGES}, "user_features must be None for EASE, got a table"),
        ("ease", {"validation": 1.5}, r"validation must be a share in \(0, 1\), got 1.5"),
        ("ease", {"validation": 0.99}, "validation must leave events to train on, got 0.99 of 180"),
        ("other", {}, "method must have 12 items, as the log, or 0 for automatic, got 7"),
        ("text", {}, r"method must be a closed form such as EASE\(\), .*, got 'EASE'"),
        ("none", {}, "method must be at least 1, got an empty list"),
        ("class", {}, r"method must be a closed form such as .*, got the class EASE"),
        ("second", {}, r"method must be a closed form such as .*, got None"),
        ("ease", {"validation": 1}, r"validation must be a share in \(0, 1\), got 1"),
        ("ease", {"seed": "x"}, "seed must be a whole number, got 'x'"),
    ],
)
def test_arguments_that_cannot_be(method, change, message):
    methods = {"ease": recommend.EASE(), "other": recommend.sasrec(7), "text": "EASE", "none": []}
    methods |= {"class": recommend.EASE, "second": [recommend.Popularity(), None]}
    with pytest.raises(ValueError, match=message):
        fit(methods[method], **change)


def test_logs_that_cannot_be(model):
    once = {name: column[::EACH] for name, column in LOG.items()}
    with pytest.raises(ValueError, match="data must hold a user with at least 2 events to valid"):
        fit(recommend.EASE(), once)
    with pytest.raises(ValueError, match="targets must hold at least 1 item, got none"):
        recommend.evaluate(model, once)
    with pytest.raises(ValueError, match="model must be of the recommend room, got"):
        recommend.evaluate(jo.Model(None, None, model.reader), LOG)
    with pytest.raises(ValueError, match=r"model must be of recommend\.fit, with a reader, got"):
        recommend.evaluate(jo.Model(model.task), LOG)
    log = recommend.events(LOG, **NAMES)
    with pytest.raises(ValueError, match="item_features must be None for Events"):
        fit(recommend.EASE(), log, item_features=PRICES)


@pytest.mark.slow
def test_networks_that_are_trained():
    """Two towers by one call; a sequence model that goes on with new events and a new item."""
    method = recommend.TwoTower(width=4, widths=(4,), context=3)
    features = {"user_features": AGES, "item_features": PRICES}
    towers = fit(method, **features, epochs=3)
    assert towers.task.model.known == len(set(ITEM)) and towers.about["method"] == "TwoTower"
    assert towers.task.model.user_features.names == ("age",)
    assert len(towers.predict(LOG, k=3, user_features=AGES).ids()) == USERS
    both = fit([recommend.bert4rec(context=5, width=8, depth=1), method], **features, epochs=1)
    assert both.about["method"] in ("Transformer", "TwoTower")
    both = fit([SMALL, recommend.EASE()], epochs=1)
    assert both.about["method"] in ("Transformer", "EASE", "Transformer and EASE")

    sequence = fit(SMALL, epochs=1)
    table = np.array(sequence.task.params["embedding"]["tokens"])
    trained = recommend.update(sequence, NEW, epochs=1, progress=False)
    assert trained.predict([["new"]], k=ITEMS).places.max() < ITEMS
    assert trained.task.counts[-1] == 1
    after = trained.task.params["embedding"]["tokens"][:ITEMS]
    assert not np.array_equal(after, table[:ITEMS])
    np.testing.assert_array_equal(sequence.task.params["embedding"]["tokens"], table)


@pytest.mark.slow
def test_the_default_learns():
    """Round and round, by one or by two: a network sees which, and the neighbours do not."""
    rng = np.random.default_rng(0)
    start, step = rng.integers(0, 20, (150, 1)), rng.integers(1, 3, (150, 1))
    item = (start + step * np.arange(8)) % 20
    columns = {"user": np.repeat(np.arange(150), 8), "item": item.ravel()}
    model = recommend.fit(columns, time=None, progress=False)
    assert model.about["method"].startswith("SASRec") and model.about["validation"]["hr@10"] > 0.99
    assert model.predict([[3, 4, 5], [3, 5, 7]], k=1).ids() == [[6], [9]]
