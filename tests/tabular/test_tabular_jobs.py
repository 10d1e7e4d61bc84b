"""One call a job on tables: what is read, what is learned, what comes back from the file."""

import numpy as np
import pytest

import jaxops as jo
from jaxops import tabular
from jaxops.tabular import data

pytestmark = pytest.mark.usefixtures("one_thread")
RNG = np.random.default_rng(0)
N = 300
AGE = RNG.uniform(20, 60, N).round()
PLAN = RNG.choice(["a", "b", "c"], N).astype(object)
TABLE = {
    "customer": np.array([f"c{i}" for i in range(N)], object),
    "age": np.where(np.arange(N) % 50 == 3, np.nan, AGE),
    "plan": PLAN,
    "left": np.where((AGE < 40) ^ (PLAN == "c"), "yes", "no").astype(object),
}
SMALL = tabular.MLP((16,))


@pytest.fixture
def quick():
    """Trees, as nothing is compiled for them."""
    pytest.importorskip("lightgbm")
    return tabular.LightGBM(n_estimators=3, n_jobs=1)


@pytest.fixture(scope="module")
def model():
    return tabular.fit(TABLE, SMALL, label="left", id="customer", progress=False, epochs=30)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "customers.csv"
    frame = __import__("pandas").DataFrame(TABLE)
    frame.to_csv(path, index=False)
    return path


def test_every_kind_of_source_gives_the_same_answer(model, csv, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pd.DataFrame(TABLE)
    frame.to_parquet(tmp_path / "t.parquet")
    wanted = model.predict(TABLE)
    assert wanted.ids.tolist() == TABLE["customer"].tolist()
    sources = [csv, str(csv), tmp_path / "t.parquet", frame, pl.from_pandas(frame)]
    sources.append(pl.from_pandas(frame).to_arrow())
    for source in sources:
        answer = model.predict(source)
        assert answer.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(answer.probabilities, wanted.probabilities, atol=1e-6)
    columns = wanted.frame()
    assert columns.columns.tolist() == ["id", "label", "p(no)", "p(yes)"] and len(columns) == N


def test_what_it_learns_and_its_scores(model, monkeypatch):
    scored = tabular.evaluate(model, TABLE)
    p, target = model.predict(TABLE).probabilities, TABLE["left"] == "yes"
    metrics = pytest.importorskip("sklearn.metrics")
    figures = scored.figures()
    assert figures["auc"] == pytest.approx(metrics.roc_auc_score(target, p[:, 1]))
    assert figures["log_loss"] == pytest.approx(metrics.log_loss(target, p), rel=1e-6)
    assert figures["accuracy"] == ((p[:, 1] > 0.5) == target).mean() > 0.85
    low, high = scored.interval("auc")[1:]
    assert low < figures["auc"] < high
    assert model.about["validation"]["auc"] > 0.85
    encoded, rows = data.Encoding.__call__, []
    monkeypatch.setattr(data, "ENCODED", 256)  # so few features are in memory at once
    monkeypatch.setattr(
        data.Encoding, "__call__", lambda by, table: rows.append(table) or encoded(by, table)
    )
    assert tabular.evaluate(model, TABLE).figures() == pytest.approx(figures)
    assert [len(part["age"]) for part in rows if "age" in part] == [256, 44]


@pytest.mark.slow
def test_numbers():
    table = {"age": AGE, "spent": 1000 + 10 * AGE + RNG.normal(size=N)}
    model = tabular.fit(
        table, tabular.TabM((16,), members=4), label="spent", progress=False, epochs=80
    )
    answer = model.predict({"age": [30, 50]})
    np.testing.assert_allclose(answer.values, [1300, 1500], atol=10)
    figures = tabular.evaluate(model, table).figures()
    assert figures["rmse"] == pytest.approx(figures["mse"] ** 0.5) and figures["r2"] > 0.99


@pytest.mark.slow
def test_several_methods(model, tmp_path, capsys):
    methods = [SMALL, tabular.TabM((8,), members=2)]
    best = tabular.fit(TABLE, methods, label="left", id="customer", epochs=6)
    assert "2: TabM" in capsys.readouterr().out
    losses = best.about["methods"]
    assert [name.split()[1] for name in losses] == ["MLP", "TabM"]
    assert best.about["validation"]["log_loss"] <= min(losses.values())
    jo.save(tmp_path / "best.model", best)
    again = jo.load(tmp_path / "best.model").predict(TABLE)
    np.testing.assert_allclose(again.probabilities, best.predict(TABLE).probabilities, atol=1e-6)
    one = tabular.fit(TABLE, methods, label="left", budget=1e-9, epochs=1, progress=False)
    assert len(one.about["methods"]) == 1


def test_new_rows(model):
    rows = np.arange(60)
    new = {name: column[rows] for name, column in TABLE.items()}
    new["left"] = np.where(new["left"] == "yes", "no", "yes").astype(object)
    turned = tabular.update(model, new, epochs=60, progress=False)
    before, after = tabular.evaluate(model, new), tabular.evaluate(turned, new)
    assert after.paired(before, "accuracy").low > 0
    assert turned.reader is model.reader


def test_trees_alone_are_not_trained_further(quick):
    trees = tabular.fit(TABLE, quick, label="left", drop=["customer"], progress=False)
    with pytest.raises(ValueError, match=r"model must be of networks alone .* got TreeModel; fit"):
        tabular.update(trees, TABLE, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "nothing"}, "label must be one of customer, age, plan, left, got 'nothing'"),
        ({"id": "nothing"}, "id must be one of"),
        ({"drop": ("nothing",)}, "drop must be one of"),
        ({"budget": "soon"}, "budget must be a time such as"),
        ({"validation": 1.5}, r"validation must be a share in \(0, 1\), got 1.5"),
        ({"validation": 50}, r"validation must be a share in \(0, 1\) or a table, got 50"),
        ({"text": ["nothing"]}, "text must be one of"),
        (
            {"drop": ["customer", "age", "plan"]},
            "data must have a column to learn from beside 'left'",
        ),
        ({"method": tabular.MLP}, "method must be a Flax module, .* got the class MLP; call it"),
        ({"method": "MLP"}, "method must be a Flax module, .* got 'MLP'"),
        (
            {"label": "customer"},
            "data must have at least 2 rows .* got 0 and 300 that are alone in their class",
        ),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        (
            {"method": None, "budget": "1min", "checkpoints": "runs"},
            r"checkpoints must be None where a budget tries .* method=TabM\(\)",
        ),
        (
            {"method": None, "budget": "1min", "state": 3},
            "state must be None where a budget tries every method of .*, got 3; give one",
        ),
    ],
)
def test_arguments_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        tabular.fit(TABLE, **{"method": SMALL, "label": "left", "progress": False, **change})


def test_labels_that_cannot_be(model):
    one = {**TABLE, "left": np.full(N, "no", object)}
    with pytest.raises(ValueError, match="left must have at least 2 classes, got 'no' alone"):
        tabular.fit(one, SMALL, label="left", progress=False)
    gap = {**TABLE, "left": np.where(np.arange(N) == 7, "", TABLE["left"]).astype(object)}
    with pytest.raises(ValueError, match="left must have a value in every row, got none in row 7"):
        tabular.fit(gap, SMALL, label="left", progress=False)
    with pytest.raises(ValueError, match="column 'age' must be numbers, as in the train rows"):
        model.predict({**TABLE, "age": np.full(N, "old", object)})
    with pytest.raises(ValueError, match="must have a column 'plan'"):
        model.predict({name: TABLE[name] for name in ("customer", "age")})


def test_columns_that_say_something_else_than_in_training(model):
    with pytest.warns(UserWarning, match="plan should have values of .* 'a', got none in 300 rows"):
        model.predict({**TABLE, "plan": np.full(N, "A", object)})
    with pytest.raises(
        ValueError, match=r"column 'plan' must be numbers, dates or text, got \[1, 2\]"
    ):
        model.predict(
            {"age": [1.0], "customer": ["a"], "plan": __import__("pandas").Series([[1, 2]])}
        )


def test_numbers_beside_a_few_texts_are_warned_of(quick):
    power = np.where(np.arange(N) % 50 == 3, "?", np.arange(N).astype(str)).astype(object)
    options = {"label": "left", "drop": ["customer"], "progress": False}
    with pytest.warns(UserWarning, match=r"power should be numbers, .*'\?' in row 3; leave such"):
        tabular.fit({**TABLE, "power": power}, quick, **options)
    codes = np.array([f"{i % 30:02d}" for i in range(N)], object)  # text, but for leading zeros
    tabular.fit({**TABLE, "power": power, "code": codes}, quick, text=["power"], **options)


def test_whole_numbers_as_ids_stay_such_and_dropped_columns_are_not_read(quick):
    table = {**TABLE, "customer": np.arange(N) + 7, "odd": np.full(N, np.inf)}
    options = {"label": "left", "id": "customer", "drop": ["odd"], "progress": False}
    answer = tabular.fit(table, quick, **options).predict(table)
    assert answer.ids.dtype == np.int64 and answer.ids[:2].tolist() == [7, 8]


def test_identifiers_are_left_out_and_groups_kept_together(capsys, quick):
    model = tabular.fit(TABLE, quick, label="left")
    assert [*model.about["left out"]] == ["customer"]
    told = "left out: customer (255 texts in 255 rows: an identifier, or text for jaxops.text; "
    assert told in capsys.readouterr().out
    groups = (np.arange(N) // 10).astype(float)
    grouped = tabular.fit(
        {**TABLE, "group": groups}, quick, label="left", groups="group", progress=False
    )
    assert "group" not in grouped.reader.encoder.mean


def test_names_of_classes_and_columns_are_kept_as_they_are(quick):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({0: AGE, 1: PLAN, 2: np.where(AGE < 40, "01", "None")})
    model = tabular.fit(frame, quick, label="2", progress=False)
    assert model.task.classes == ("01", "None")
    assert tabular.evaluate(model, frame).figures()["accuracy"] > 0.5
    table = {"age": AGE, "left": (AGE < 40) * 1.0}
    whole = tabular.fit(table, quick, label="left", progress=False)
    assert whole.task.classes == ("0", "1")


@pytest.mark.slow
def test_a_class_that_is_held_out_alone_and_scores_of_one_class(model):
    kind = np.where(np.arange(N) < 2, "rare", TABLE["left"]).astype(object)
    groups = np.where(np.arange(N) < 2, 0, 1 + np.arange(N) % 3).astype(float)
    table = {"age": AGE, "kind": kind, "group": groups}
    for seed in range(3):  # for one of them the rare class is in the validation rows alone
        fitted = tabular.fit(
            table, SMALL, label="kind", groups="group", seed=seed, validation=0.25, epochs=1,
            progress=False,
        )  # fmt: skip
        assert fitted.task.classes == ("no", "rare", "yes")
    one = {name: column[TABLE["left"] == "no"] for name, column in TABLE.items()}
    scored = tabular.evaluate(model, one)
    assert np.isnan(scored.interval("auc")).all() and "auc" in str(scored)


def test_one_directory_of_checkpoints_is_of_one_training(tmp_path):
    with pytest.raises(ValueError, match="checkpoints must be None where 2 trainings follow"):
        tabular.fit(TABLE, [SMALL, SMALL], label="left", checkpoints=tmp_path)
