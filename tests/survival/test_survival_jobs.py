"""One call a job: what is read, what is learned, what comes back from the file."""

import dataclasses
import functools
import subprocess
import sys

import numpy as np
import pytest

import jaxops as jo
from jaxops import survival, tabular

RNG = np.random.default_rng(0)
N = 300
AGE = RNG.uniform(20, 60, N).round()
PLAN = RNG.choice(["a", "b", "c"], N).astype(object)
UNTIL = RNG.exponential(np.exp(3 - 0.04 * (AGE - 40) - 0.5 * (PLAN == "c")))
STOP = RNG.uniform(2, 40, N)
TABLE = {
    "customer": np.array([f"c{i}" for i in range(N)], object),
    "age": np.where(np.arange(N) % 50 == 3, np.nan, AGE),
    "plan": PLAN,
    "months": np.minimum(UNTIL, STOP).round(2) + 0.01,
    "left": UNTIL < STOP,
}
ROLES = {"time": "months", "event": "left", "progress": False}
NETWORK = survival.MLP((16,), dropout=0.0)
QUICK = {"epochs": 100, "batch_size": 255, "optimizer": jo.optim.adam(2e-2)}
NEW = {"age": [25.0, 55.0], "plan": ["a", "c"], "customer": ["x", "y"]}


@pytest.fixture(scope="module")
def model():
    return survival.fit(TABLE, id="customer", **ROLES)


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    path = tmp_path_factory.mktemp("survival") / "customers.csv"
    pytest.importorskip("pandas").DataFrame(TABLE).to_csv(path, index=False)
    return path


@pytest.mark.filterwarnings("ignore:::(lifelines|autograd|pandas|formulaic)")
def test_the_default_is_cox_in_the_units_of_the_table(model):
    """By lifelines' regression on the same indicators, the missing ages being the mean."""
    pd, lifelines = pytest.importorskip("pandas"), pytest.importorskip("lifelines")
    frame = pd.DataFrame({"age": TABLE["age"], "months": TABLE["months"], "left": TABLE["left"]})
    frame["age missing"] = frame["age"].isna()
    frame["age"] = frame["age"].fillna(frame["age"].mean())
    frame["plan=b"], frame["plan=c"] = PLAN == "b", PLAN == "c"
    theirs = lifelines.CoxPHFitter().fit(frame.astype(float), "months", "left")
    own = survival.coefficients(model).set_index("name")
    assert own.index.tolist() == ["age", "age missing", "plan=b", "plan=c"]
    np.testing.assert_allclose(own["coefficient"], theirs.summary.loc[own.index, "coef"], rtol=1e-4)
    np.testing.assert_allclose(own["error"], theirs.summary.loc[own.index, "se(coef)"], rtol=1e-4)
    answer = model.predict(TABLE)
    curves = theirs.predict_survival_function(frame.astype(float), times=answer.times)
    np.testing.assert_allclose(answer.survival.T, curves, atol=1e-5)
    medians = theirs.predict_median(frame.astype(float))
    np.testing.assert_allclose(answer.median, medians, rtol=1e-6)
    whole = theirs.predict_survival_function(frame.astype(float)[:3])
    knots = np.unique([0.0, *whole.index[whole.index < answer.horizon], answer.horizon])
    place = np.searchsorted(whole.index, knots[:-1], side="right")
    steps = np.concatenate([np.ones((1, 3)), whole.to_numpy()])[place]
    np.testing.assert_allclose(answer.mean[:3], np.diff(knots) @ steps, rtol=1e-5)
    assert survival.evaluate(model, TABLE).figures()["concordance"] == pytest.approx(
        theirs.concordance_index_, abs=1e-4
    )


def test_every_source_gives_the_same_answer(model, csv, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    frame = pd.DataFrame(TABLE)
    frame.to_parquet(tmp_path / "t.parquet")
    wanted = model.predict(TABLE)
    assert wanted.ids.tolist() == TABLE["customer"].tolist()
    for source in (csv, tmp_path / "t.parquet", frame, pl.from_pandas(frame)):
        answer = model.predict(source)
        assert answer.ids.tolist() == wanted.ids.tolist()
        np.testing.assert_allclose(answer.survival, wanted.survival, atol=1e-6)
    other = survival.fit(csv, id="customer", **ROLES)
    np.testing.assert_allclose(other.predict(TABLE).risk, wanted.risk, atol=1e-5)
    head = wanted.frame()
    assert head.columns[:4].tolist() == ["id", "risk", "median", "mean"]
    assert head.shape == (N, 4 + len(wanted.times)) and len(wanted.times) == 50


CHILD = """
import sys, numpy as np, jaxops as jo
for kind in sys.argv[2:]:
    answer = jo.load(f"{sys.argv[1]}/{kind}.safetensors").predict(f"{sys.argv[1]}/t.parquet")
    np.save(f"{sys.argv[1]}/{kind}.npy", np.concatenate([answer.survival, answer.mean[:, None]], 1))
"""


@functools.cache
def network(name):
    return survival.fit(TABLE, getattr(survival, name)(NETWORK), **ROLES, **QUICK)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("DeepSurv", "DeepHit")]


@pytest.mark.parametrize(
    "others", [(), pytest.param(("DeepSurv", "DeepHit"), marks=pytest.mark.slow)]
)
def test_files_answer_the_same_in_a_new_process(model, others, tmp_path):
    pytest.importorskip("pandas").DataFrame(TABLE).to_parquet(tmp_path / "t.parquet")
    models = {name: network(name) for name in others} or {
        "Cox": model,
        "WeibullAFT": survival.fit(TABLE, survival.WeibullAFT(), drop=["customer"], **ROLES),
        "LogisticHazard": network("LogisticHazard"),
    }
    for name, one in models.items():
        jo.save(tmp_path / f"{name}.safetensors", one)
    command = [sys.executable, "-c", CHILD, str(tmp_path), *models]
    subprocess.run(command, check=True, timeout=120)
    for name, one in models.items():
        answer = one.predict(TABLE)
        wanted = np.concatenate([answer.survival, answer.mean[:, None]], 1)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), wanted, atol=1e-5)


@pytest.mark.parametrize("name", ["LogisticHazard", *SLOW])
def test_networks_learn(name):
    made = network(name)
    figures = survival.evaluate(made, TABLE).figures()
    assert figures["concordance_td"] > 0.6 and figures["integrated_brier"] < 0.22
    assert made.about["validation"].keys() == figures.keys()
    answer = made.predict(NEW)
    assert (np.diff(answer.survival, axis=1) <= 1e-6).all()
    assert (answer.mean[0] > answer.mean[1]) and (answer.risk[0] < answer.risk[1])
    p = survival.probability_before(made, NEW, [5.0, 10.0])
    np.testing.assert_allclose(p, 1 - made.predict(NEW, times=[5.0, 10.0]).survival, atol=1e-6)


@pytest.mark.slow
def test_the_baseline_of_deep_surv_is_breslows():
    """The mean of the curves is near the Kaplan-Meier curve."""
    answer = network("DeepSurv").predict(TABLE)
    curve = survival.kaplan_meier(TABLE["months"], TABLE["left"])
    np.testing.assert_allclose(answer.survival.mean(0), curve.at(answer.times), atol=0.05)


@pytest.mark.slow
def test_a_module_of_another_room_is_the_trunk():
    made = survival.fit(
        TABLE, survival.LogisticHazard(tabular.TabM((8,), members=2), intervals=4), id="customer",
        **ROLES, epochs=2, batch_size=255,
    )  # fmt: skip
    assert made.predict(NEW).survival.shape == (2, 50)


@pytest.mark.slow
def test_several_causes():
    cause = np.where(TABLE["left"], 1 + (AGE > 40), 0)
    table = {**TABLE, "left": cause}
    made = survival.fit(table, survival.DeepHit(NETWORK), id="customer", **ROLES, **QUICK)
    answer = made.predict(NEW)
    assert answer.incidence.shape == (2, 2, 50)
    np.testing.assert_allclose(answer.survival, 1 - answer.incidence.sum(1), atol=1e-6)
    assert answer.incidence[0, 0, -1] > answer.incidence[0, 1, -1]
    assert answer.frame().shape == (2, 4 + 3 * 50)
    first = survival.probability_before(made, NEW, [9.0], cause=1)
    assert first[0, 0] > survival.probability_before(made, NEW, [9.0], cause=2)[0, 0]
    assert set(survival.evaluate(made, table).figures()) == {
        "concordance_td_1", "concordance_td_2", "integrated_brier"
    }  # fmt: skip
    with pytest.raises(ValueError, match="cause must be None or 1 to 2, got 3"):
        survival.probability_before(made, NEW, [9.0], cause=3)
    swapped = {**table, "left": np.where(cause > 0, 3 - cause, 0)}
    turned = survival.update(made, swapped, progress=False, **FAST)
    first = survival.probability_before(turned, NEW, [9.0], cause=1)
    assert first[0, 0] < survival.probability_before(turned, NEW, [9.0], cause=2)[0, 0]
    with pytest.raises(ValueError, match=r"left must be .*, got 3 in row 0"):
        survival.update(made, {**table, "left": np.full(N, 3)})


@pytest.mark.slow
def test_the_best_of_a_list(capsys):
    made = survival.fit(
        TABLE, [survival.Cox(), survival.LogNormalAFT()], id="customer", time="months", event="left"
    )
    printed = capsys.readouterr().out
    assert "1: Cox" in printed and "2: LogNormalAFT" in printed
    losses = made.about["methods"]
    assert made.about["validation"]["integrated_brier"] == min(losses.values())


def test_strata_and_robust_errors(model):
    method = survival.Cox(strata=("plan",), robust=True)
    made = survival.fit(TABLE, method, id="customer", **ROLES)
    assert survival.coefficients(made)["name"].tolist() == ["age", "age missing"]
    answer = made.predict({**NEW, "age": [40.0, 40.0]})
    assert (answer.survival[0] != answer.survival[1]).any()
    with pytest.raises(ValueError, match=r"strata must be one of plan=a, .* got plan=d in row 1"):
        made.predict({**NEW, "plan": ["a", "d"]})
    whole = made.predict(TABLE)
    assert (whole.risk == -whole.mean).all()  # comparable between strata
    assert survival.evaluate(made, TABLE).figures()["concordance"] == pytest.approx(
        survival.concordance(TABLE["months"], TABLE["left"], -whole.mean), abs=1e-6
    )


@pytest.mark.filterwarnings("ignore:::(lifelines|autograd|pandas|formulaic)")
def test_rows_of_one_id_that_change_over_time():
    lifelines = pytest.importorskip("lifelines")
    table = pytest.importorskip("lifelines.datasets").load_stanford_heart_transplants()
    made = survival.fit(table, time="stop", event="event", entry="start", id="id", progress=False)
    roles = {"id_col": "id", "event_col": "event", "start_col": "start", "stop_col": "stop"}
    theirs = lifelines.CoxTimeVaryingFitter().fit(table, **roles)
    own = survival.coefficients(made).set_index("name")
    np.testing.assert_allclose(own["coefficient"], theirs.summary.loc[own.index, "coef"], rtol=1e-4)
    with pytest.raises(ValueError, match="model must have no entry times to be scored"):
        survival.evaluate(made, table)
    wrong = table.copy()
    row = int(wrong.index[wrong["id"].duplicated()][0])
    wrong.loc[row, "start"] = 0.0
    with pytest.raises(ValueError, match="rows of one id must follow each other"):
        survival.fit(wrong, time="stop", event="event", entry="start", id="id", progress=False)
    with pytest.raises(ValueError, match="id must be different in every row, but for Cox"):
        survival.fit(table, time="stop", event="event", id="id", drop=["start"], progress=False)


FIRST = {name: column[: N // 2] for name, column in TABLE.items()}
TURNED = {**FIRST, "age": 80 - FIRST["age"], "plan": np.where(FIRST["plan"] == "c", "a", "c")}
FAST = {"epochs": 60, "optimizer": jo.optim.adam(2e-2)}


@pytest.mark.parametrize(
    "method",
    [
        survival.Cox(strata=("plan",), cluster="shop"),
        pytest.param(survival.Cox(l1=5.0, l2=5.0, ties="breslow"), marks=pytest.mark.slow),
        pytest.param(survival.LogNormalAFT(), marks=pytest.mark.slow),
    ],
)
def test_an_updated_regression_is_that_of_all_rows(method, tmp_path):
    shop = np.array([f"s{i % 40}" for i in range(N)], object)
    whole = {**TABLE, "age": AGE, "shop": shop}
    half = {name: column[: N // 2] for name, column in whole.items()}  # and seen for less long
    half |= {"left": half["left"] & (half["months"] < 20), "months": np.minimum(half["months"], 20)}
    given = {**ROLES, "id": "customer", "drop": [] if getattr(method, "cluster", 0) else ["shop"]}
    before = survival.fit(half, method, **given)
    jo.save(tmp_path / "m.safetensors", before)
    after = survival.update(jo.load(tmp_path / "m.safetensors"), whole)
    wanted = survival.fit(whole, method, **given)
    for name in ("coefficient", "error"):
        own, theirs = (survival.coefficients(one)[name] for one in (after, wanted))
        np.testing.assert_allclose(own, theirs, rtol=1e-5)
    one, two = after.predict(NEW), wanted.predict(NEW)
    np.testing.assert_allclose(one.survival, two.survival, atol=1e-6)
    assert one.horizon == two.horizon > before.reader.horizon
    assert one.times.tolist() == two.times.tolist()
    assert (after.about["rows"], after.about["events"]) == (N, int(TABLE["left"].sum()))
    assert after.reader.encoder.mean == before.reader.encoder.mean


def test_an_updated_model_has_no_figures_of_the_one_before(model):
    old = dataclasses.replace(model, about={**model.about, "validation": {}, "methods": {}})
    assert survival.update(old, TABLE).about.keys() == {*model.about, "updated with"}


@pytest.mark.slow
def test_an_updated_network_begins_where_it_is():
    for name in ("LogisticHazard", "DeepSurv"):
        made = network(name)
        same = survival.update(made, FIRST, epochs=1, optimizer=jo.optim.sgd(1e-9), progress=False)
        risk = made.predict(NEW).risk
        further = survival.update(made, TURNED, progress=False, **FAST)
        if name == "LogisticHazard":
            np.testing.assert_allclose(same.predict(NEW).risk, risk, atol=1e-4)
            assert further.reader is made.reader
        else:  # the baseline is that of the rows given
            rows = survival.outcome(FIRST["months"], FIRST["left"])
            base = survival.breslow(rows, made.predict(FIRST).risk)
            np.testing.assert_allclose(same.reader.family.hazards[0], base.hazards[0], rtol=1e-4)
        before, after = (
            survival.evaluate(one, TURNED).figures()["concordance_td"] for one in (made, further)
        )
        assert before < 0.45 and after > 0.55


def test_what_cannot_be_updated(model):
    with pytest.raises(
        ValueError, match="epochs must be left out for Cox, which has no training, got 3"
    ):
        survival.update(model, TABLE, epochs=3)
    with pytest.raises(ValueError, match="customer must be different in every row"):
        survival.update(model, {name: np.append(x, x[:1]) for name, x in TABLE.items()})
    with pytest.raises(ValueError, match="left must be an event in some row, got 300 censored"):
        survival.update(model, {**TABLE, "left": np.zeros(N)})
    old = model.task._replace(method=None)
    with pytest.raises(ValueError, match="model must tell its method, got one of an older jaxops"):
        survival.update(jo.Model(old, None, model.reader), TABLE)


@pytest.mark.slow
def test_deep_surv_learns_from_rows_that_enter_late():
    """Rows that were there before they were watched: without their entry the curve is too high."""
    rng = np.random.default_rng(1)
    count = 3000
    x = rng.normal(size=count)
    until = rng.exponential(np.exp(2 - x))
    entry = rng.uniform(0, 10, count)
    seen = until > entry
    table = {"x": x[seen], "from": entry[seen], "months": np.minimum(until, entry + 8)[seen]}
    table["left"] = (until < entry + 8)[seen]
    made = survival.fit(
        table, survival.DeepSurv(NETWORK), entry="from", **ROLES, **{**QUICK, "epochs": 20}
    )
    assert "validation" not in made.about
    told = made.predict({"x": [-1.0, 0.0, 1.0]}, times=[4.0]).survival[:, 0]
    wanted = np.exp(-4 / np.exp([3.0, 2.0, 1.0]))
    np.testing.assert_allclose(told, wanted, atol=0.06)
    turned = survival.update(made, {**table, "x": -table["x"]}, progress=False, **FAST)
    told = turned.predict({"x": [1.0, 0.0, -1.0]}, times=[4.0]).survival[:, 0]
    np.testing.assert_allclose(told, wanted, atol=0.06)


def changed(name, row, value):
    column = TABLE[name].astype(object).copy()
    column[row] = value
    return {**TABLE, name: column}


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (changed("months", 7, -1.0), {}, "months must be finite and at least 0, got -1 in row 7"),
        (
            changed("months", 7, np.nan),
            {},
            "months must be finite and at least 0, got nan in row 7",
        ),
        (
            changed("months", 7, "soon"),
            {},
            "time must be a column of numbers or durations, got text",
        ),
        (changed("left", 7, "maybe"), {}, "left must be 0 or 1, True or False.* 'maybe' in row 7"),
        (changed("left", 7, 2), {}, "left must be 0 or 1 for Cox, got 2 in row 7; DeepHit takes"),
        ({**TABLE, "left": np.zeros(N)}, {}, "left must be an event in some row, got 300 censored"),
        (TABLE, {"time": "weeks"}, "time must be one of customer, .*, got 'weeks'"),
        (TABLE, {"entry": "months"}, "time, event, entry and id must be different"),
        (TABLE, {"epochs": 3}, "epochs must be left out for Cox, which has no training, got 3"),
        (TABLE, {"method": NETWORK}, "method must be one of Cox, WeibullAFT"),
        (TABLE, {"method": survival.DeepHit(), "entry": "age"}, "entry must be None for DeepHit"),
        (TABLE, {"method": survival.Cox(strata=("shop",))}, "method must be one of .*, got 'shop'"),
        (
            changed("months", 7, 0.0),
            {"method": [survival.DeepSurv(), survival.WeibullAFT()]},
            r"months must be above 0 for WeibullAFT, got 0 in row 7 \(1 such row\)",
        ),
        (
            TABLE,
            {"method": [survival.Cox(strata=("plan",)), survival.Cox()]},
            "drop must have 'plan', which is a feature of Cox but strata or cluster of another",
        ),
        (
            {**TABLE, "from": np.zeros(N)},
            {"method": [survival.Cox(), survival.WeibullAFT()], "entry": "from"},
            "method must be one with entry times, .* got a list of 2",
        ),
        (
            {**TABLE, "from": np.zeros(N)},
            {"validation": 0.2, "entry": "from"},
            "validation must be None with entry times, .* got 0.2",
        ),
        (TABLE, {"validation": 1}, r"validation must be a share in \(0, 1\) or a table, got 1"),
        (TABLE, {"drop": ["age", "plan"]}, "data must have a column to learn from"),
    ],
)
def test_wrong_tables_and_settings(table, options, message):
    with pytest.raises(ValueError, match=message):
        survival.fit(table, **{**ROLES, "id": "customer", **options})


def test_wrong_questions(model):
    with pytest.raises(ValueError, match="times must be sorted numbers of at least 0"):
        model.predict(NEW, times=[3.0, 1.0])
    with pytest.raises(ValueError, match="cause must be None for a model of one cause, got 1"):
        survival.probability_before(model, NEW, [1.0], cause=1)
    with pytest.raises(ValueError, match="must have a column 'plan'"):
        model.predict({"age": [1.0], "customer": ["x"]})
    with pytest.raises(ValueError, match="data must have events at 2 times"):
        survival.evaluate(model, {name: column[:1] for name, column in TABLE.items()})
    other = tabular.fit(
        {"age": AGE, "left": TABLE["left"]}, tabular.MLP((2,)), label="left", epochs=1,
        progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="model must be of the survival room, got a model of the"):
        survival.evaluate(other, TABLE)


def test_the_command_line(csv, tmp_path, capsys):
    from jaxops import cli

    model, out = tmp_path / "m.safetensors", tmp_path / "answers.csv"
    words = ["--time", "months", "--event", "left", "--id", "customer", "--out", str(model)]
    assert cli.main(["fit", "survival", str(csv), "--method", "Cox(l2=1.0)", *words]) == 0
    assert cli.main(["predict", str(model), str(csv), "--out", str(out)]) == 0
    assert cli.main(["evaluate", str(model), str(csv)]) == 0
    assert "concordance_ipcw" in capsys.readouterr().out
    read = pytest.importorskip("pandas").read_csv(out)
    assert read["id"].tolist() == TABLE["customer"].tolist() and (read["mean"] > 0).all()


def test_columns_of_a_frame_tell_every_time(model):
    answer = model.predict(NEW, times=[0.1, 6.0, 1_000_000.0, 1_000_001.0])
    names = answer.frame().columns[4:].tolist()
    assert names == ["S(0.1)", "S(6)", "S(1000000)", "S(1000001)"]
