"""Exports of survival, customers, folds, trees and ensembles answer as jaxops does."""

import csv
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exports import assert_close, exported, forecaster, in_a_clean_process
from small import filled

import jaxops as jo
from jaxops import customers, forecast, survival, tabular
from jaxops.customers.inference import CustomerBase
from jaxops.model.exported import run
from jaxops.model.exported.tables import read_table
from jaxops.model.selection import Blend
from jaxops.survival.models import Regression
from jaxops.tabular.boosters import Boosted
from jaxops.tabular.ensembles import Member
from jaxops.tabular.hist_trees import HistTrees
from jaxops.tabular.trees import TreeModel, matrix
from jaxops.task import example

pytest.importorskip("flatbuffers")

ENCODER = tabular.fit_encoder({"age": [20.0, 40.0, np.nan, 30.0], "plan": ["a", "b", "a", "c"]})
ROWS = {
    "id": ["r1", "r2", "r3", "r4", "r5"],
    "age": [25, None, "38.5", 61, 20],
    "plan": ["a", "c", "new", None, "b"],
    "site": [1, 2.0, "1", 2, " 1"],
}


def state_of(task):
    params, extra = filled(task.init, example(task.columns))
    return jo.TrainState(jnp.int32(0), params, (), extra, jax.random.key(0))


# -- survival

BASELINE = survival.Baseline(
    ["site=1", "site=2"],
    [np.array([1.0, 2.5, 4.0]), np.array([0.5, 3.0, 6.0])],
    [np.array([0.2, 0.7, 1.1]), np.array([0.1, 0.5, 2.0])],
)
CUTS = (1.0, 2.5, 4.0, 8.0)


def reader_of(family, strata=(), causes=1):
    times = np.array([0.5, 1.0, 3.7, 6.0])
    return survival.SurvivalReader(
        *(ENCODER, "months", "died", None, "id", (), strata, family, times, 6.0, causes)
    )


def regression(family):
    """A regression on three of the five features, the age in years."""
    places, names = np.array([0, 1, 4]), ["age", "age missing", "plan=c"]
    slopes, spread = np.array([0.04, -0.7, 0.3]), np.eye(3)
    scale, centre = np.array([ENCODER.std["age"], 1, 1]), np.array([ENCODER.mean["age"], 0, 0])
    if isinstance(family, survival.Baseline):
        mean = np.array([31.0, 0.2, 0.1])
        fit = survival.CoxFit(names, slopes, spread, mean, 0.0, 0.0, 9, 9, None)
    else:
        fit = survival.AFTFit(
            ["intercept", *names, "log(scale)"], np.array([2.5, *-slopes, -0.3]), np.eye(5), 0.0,
            family, 9, 9,
        )  # fmt: skip
    strata = ("site",) if isinstance(family, survival.Baseline) else ()
    return jo.Model(Regression(fit, places, scale, centre), None, reader_of(family, strata))


def survival_models():
    width = len(ENCODER.names)
    one = survival.Baseline([""], BASELINE.times[:1], BASELINE.hazards[:1])
    laws = [survival.Law(name, 0.8) for name in ("weibull", "log-normal", "log-logistic")]
    grid = survival.Grid(np.array(CUTS))
    networks = {
        "deep_surv": (survival.deep_surv(survival.MLP((4,)), width), reader_of(one)),
        "logistic_hazard": (
            survival.logistic_hazard(survival.MLP((4,), outputs=4), width, CUTS), reader_of(grid)
        ),
        "deep_hit": (
            survival.deep_hit(survival.MLP((4,), outputs=8), width, CUTS, 2),
            reader_of(grid, causes=2),
        ),
    }  # fmt: skip
    made = {n: jo.Model(task, state_of(task), reader) for n, (task, reader) in networks.items()}
    made["cox"] = regression(BASELINE)
    return made | {law.name: regression(law) for law in laws}


def test_a_regression_is_its_formula(tmp_path):
    model = regression(survival.Law("weibull", 0.8))
    found = exported(model, tmp_path / "out").predict({**ROWS, "age": [25, 30, 38.5, 61, 20]})
    age, plan = np.array([25, 30, 38.5, 61, 20]), np.array([0, 1, 0, 0, 0])
    location = 2.5 - 0.04 * age - 0.3 * plan
    np.testing.assert_allclose(found["risk"], -location, rtol=1e-6)
    np.testing.assert_allclose(found["median"], np.exp(location) * np.log(2) ** 0.8, rtol=1e-6)
    at = (np.array(found["times"])[None] / np.exp(location)[:, None]) ** (1 / 0.8)
    np.testing.assert_allclose(found["survival"], np.exp(-at), rtol=1e-6)


def test_strata_that_are_not_known(tmp_path):
    found = exported(regression(BASELINE), tmp_path / "out")
    with pytest.raises(ValueError, match="strata must be one of site=1, site=2, got site=3 in row"):
        found.predict({**ROWS, "site": [1, 1, 1, 3, 1]})
    with pytest.raises(ValueError, match="raw must have a column 'site', got id, age, plan"):
        found.predict({name: ROWS[name] for name in ("id", "age", "plan")})


# -- customers


def base(method=None, params=(0.243, 4.414, 0.793, 2.426), spend=True, **settings):
    """The BG/NBD model of Fader, Hardie and Lee 2005, and the amounts of the note of 2013."""
    amounts = (customers.GammaGamma(), np.array([6.25, 3.74, 15.45]), np.eye(3)) if spend else ()
    closed = CustomerBase(
        method or customers.BGNBD(), np.array(params), np.eye(len(params)), *amounts, **settings
    )
    return jo.Model(closed, None, customers.LogReader(horizon=39.0))


def summary(count=40):
    rng = np.random.default_rng(4)
    x = rng.geometric(0.2, count) - 1.0
    age = rng.uniform(5, 80, count)
    recency = np.where(x > 0, age * rng.uniform(0.2, 1, count), 0)
    amounts = np.where(x > 0, rng.gamma(5, 8, count), 0)
    return customers.Summary(np.arange(count) + 7, x, recency, age, amounts)


def columns_of(known):
    named = known._asdict()
    return {"id": named.pop("ids"), **named}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """The export of a customer base, with a horizon of 39 weeks."""
    return exported(base(), tmp_path_factory.mktemp("export") / "out")


def test_a_customer_of_the_paper(shop):
    one = {"frequency": 2, "recency": 30.43, "T": 38.86, "monetary_value": 50.0}
    answer = shop.predict([one, one | {"horizon": 78.0}])  # where it is missing it is 39
    assert answer["alive"][0].round(3) == 0.727 and answer["purchases"][0].round(3) == 1.226
    mean = 6.25 * (15.45 + 2 * 50) / (6.25 * 2 + 3.74 - 1)
    np.testing.assert_allclose(answer["value"], answer["purchases"] * mean, rtol=1e-6)
    known = customers.Summary(np.arange(1), *np.array([[2.0], [30.43], [38.86], [50.0]]))
    longer = base().predict(known, horizon=78.0)
    np.testing.assert_allclose(answer["purchases"][1], longer.purchases[0], rtol=1e-6)
    with pytest.raises(ValueError, match=r"frequency must be in 0 to 2047, got 5000 in row 0"):
        shop.predict([one | {"frequency": 5000}])


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (customers.BGNBD(), (0.9986, 15.399, 0.5321, 2.1924)),
        (customers.MBGNBD(), (0.525, 6.183, 0.891, 1.614)),
        (customers.ParetoNBD(), (0.553, 10.578, 0.606, 11.669)),
    ],
)
def test_other_methods_and_covariates(tmp_path, method, params):
    # a year is far from 0, so that alpha and the clocks are out of the range of float32
    own = [x * 0.95**1980 if n in method.scaled else x for n, x in zip(method.names, params)]
    model = base(method, (*own, 1.3, 0.95), spend=False, covariates=("shop", "born"))
    known, rng = summary()._replace(monetary_value=None), np.random.default_rng(1)
    more = {"shop": rng.integers(0, 2, 40) * 1.0, "born": rng.uniform(1965, 1995, 40)}
    wanted = model.predict(known, covariates={"customer": known.ids, **more})
    raw = {name: x for name, x in columns_of(known).items() if x is not None}
    found = exported(model, tmp_path / "out")
    answer = found.predict(raw | more)
    assert answer.keys() == {"ids", "alive", "returns", "purchases"}
    assert_close(answer, wanted)
    with pytest.raises(ValueError, match="born must be finite, got nan in row 3"):
        found.predict(raw | more | {"born": [*more["born"][:3], None, *more["born"][4:]]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frequency": [1.5]}, "frequency must be whole numbers of at least 0, got 1.5 in row 0"),
        ({"T": [None]}, "T must be at least 0, got nan in row 0"),
        ({"recency": [9.0]}, r"recency must be in \[0, T\], got 9.0 in row 0"),
        ({"frequency": [0]}, "recency must be 0 where frequency is 0, got 3.0 in row 0"),
        ({"monetary_value": [None]}, "monetary_value must be at least 0, got nan in row 0"),
        ({"horizon": [0]}, "horizon must be finite and above 0, got 0.0 in row 0"),
        ({"T": ["old"]}, "column 'T' must be numbers, .* got 'old' in row 0"),
    ],
)
def test_customers_that_cannot_be(shop, changes, message):
    good = {"frequency": [2], "recency": [3.0], "T": [4.0], "monetary_value": [5.0]}
    with pytest.raises(ValueError, match=message):
        shop.predict(good | changes)


# -- tables: folds, trees, values that are often 0


CLASSES = ("hi", "lo", "mid")


def table(count=30, seed=5):
    rng = np.random.default_rng(seed)
    age = np.where(rng.uniform(size=count) < 0.1, np.nan, rng.normal(40, 12, count).round(1))
    seen = 1.7e9 + rng.integers(0, 10**6, count)  # in float32 few of these are different
    return {"age": age, "plan": rng.choice(["a", "b", "c"], count).astype(object), "seen": seen}


def trees(kind="classes", present=(0, 1, 2)):
    """Trees of depth 2 as if of scikit-learn, with numbers, missing ones, texts and new texts."""
    outputs = len(present) if kind == "classes" and len(present) > 2 else 1
    count, rng = 2 * outputs, np.random.default_rng(7)
    here, leaf = np.arange(7), np.arange(7) > 2
    first = 7 * np.arange(count)[:, None]

    def each(*nodes, dtype=np.int32):
        return np.tile(np.array(nodes, dtype), count)

    made = HistTrees(
        feature=each(1, 0, 2, 0, 0, 0, 0),
        threshold=each(40, 0, 5e5, 0, 0, 0, 0, dtype=np.float32),
        left=(np.where(leaf, here, [1, 3, 5, 0, 0, 0, 0]) + first).ravel().astype(np.int32),
        right=(np.where(leaf, here, [2, 4, 6, 0, 0, 0, 0]) + first).ravel().astype(np.int32),
        missing_left=each(True, False, False, False, False, False, False, dtype=bool),
        bitset=np.where(each(*here) == 1, np.repeat(np.arange(count), 7), -1).astype(np.int32),
        bits=np.pad(rng.integers(1, 7, (count + 1, 1)), ((0, 0), (0, 7))).astype(np.uint32),
        value=rng.normal(size=7 * count).astype(np.float32),
        roots=first[:, 0].astype(np.int32),
        baseline=rng.normal(size=outputs).astype(np.float32),
        ranks=np.array([[np.nan, 0, 1, 2]], np.float32),
        depth=2,
    )
    texts, numbers = {"plan": ["a", "b", "c"]}, {"age": 0.0, "seen": 1.7e9}
    classes = CLASSES[: max(present) + 1] if kind == "classes" else ()
    task = TreeModel(made, texts, numbers, kind, classes, present, 3.0, 2.0)
    encoder = tabular.fit_encoder(table(60, 3))._replace(label="y", classes=[*classes])
    return jo.Model(task, None, tabular.TableReader(encoder, None, (), "number"))


def folds():
    """Two networks, each with the encoder of its own rows, and trees."""
    members = []
    for seed, bins in ((1, 0), (2, 4)):
        encoder = tabular.fit_encoder(table(60, seed), bins=bins)
        task = tabular.classifier(tabular.MLP((4,), outputs=3), len(encoder.names), CLASSES)
        state = state_of(task)
        members.append(jo.Model(Member(encoder, task, state.params, state.extra)))
    blend = Blend.of([*members, jo.Model(trees().task)], (0.3, 0.3, 0.4), 1.4)
    return jo.Model(blend, None, trees().reader)


def spenders():
    task = tabular.zero_inflated(tabular.MLP((4,), outputs=3), len(ENCODER.names), 2.0, 0.5)
    return jo.Model(task, state_of(task), tabular.TableReader(ENCODER, "id", (), "zero_inflated"))


def new_rows():
    rows = {name: column.tolist() for name, column in table().items()}
    return rows | {"plan": ["new", None, *rows["plan"][2:]]}


def test_trees_read_the_same_numbers():
    model = trees()
    reader = model.reader.exported(model) | model.task.exported().reader
    _, columns = read_table(reader, new_rows())
    wanted = matrix(model.task.texts, model.task.numbers, model.reader.table(new_rows())[1])
    cells = np.where(columns["missing"], np.nan, columns["cells"])
    np.testing.assert_array_equal(cells, wanted)


@pytest.mark.parametrize(
    ("kind", "present"), [("number", ()), ("counts", ()), ("classes", (0, 1)), ("classes", (0, 2))]
)
def test_other_targets_of_trees(tmp_path, kind, present):
    model = trees(kind, present or (0,))
    answer = exported(model, tmp_path / "out").predict(new_rows())
    assert len(np.unique(answer["probabilities" if present else "values"], axis=0)) > 3
    assert_close(answer, model.predict(new_rows()))


# -- ensembles of forecasts

LENGTHS = {"a": 12, "new": 20}


def ensemble():
    """Of a network with quantiles and of one that sees logarithms, by other scales."""
    _, one = forecaster(forecast.Quantiles((0.1, 0.5, 0.9)), "series")
    _, two = forecaster(forecast.Quantiles((0.1, 0.5, 0.9)), "global")
    return forecast.Ensemble((one, forecast.LogScale(two)), (0.3, 0.7))


def series_with_covariates():
    rng = np.random.default_rng(2)
    values = [rng.gamma(2.0, size=(n, 2)) for n in LENGTHS.values()]
    known = [rng.normal(size=(n + 4, 2)).astype(np.float32) for n in LENGTHS.values()]
    past = [rng.normal(size=n) for n in LENGTHS.values()]
    raw = {"id": [*LENGTHS], "values": values, "known": known, "past": past}
    names = {n: [x[:-4, i] for x in known] for i, n in enumerate(("price", "sale"))}
    history = forecast.from_arrays(
        [*LENGTHS], values, channels=("x", "y"), known=names, past={"rain": past},
        static={"size": [3.0, 1.0]},
    )  # fmt: skip
    return raw | {"static": [[3.0], [1.0]]}, history, np.stack([x[-4:] for x in known])


def test_quantiles_around_an_ensemble(tmp_path):
    few = [forecaster(forecast.Point(), kind, covariates=False)[1] for kind in ("series", "global")]
    # members of no weight are not asked
    both = forecast.Ensemble((*few, forecast.Baseline("drift")), (0.25, 0.75, 0.0))
    offsets = np.random.default_rng(1).normal(size=(4, 2, 3))
    method = forecast.Conformal(both, (0.1, 0.5, 0.9), offsets, 10, 3)
    values = [np.random.default_rng(2).gamma(2.0, size=(n, 2)) for n in LENGTHS.values()]
    history, levels = forecast.from_arrays([*LENGTHS], values, channels=("x", "y")), (0.1, 0.9)
    found = exported(jo.Model(method), tmp_path / "out", levels=levels)
    answer = found.predict({"id": [*LENGTHS], "values": values})
    assert_close(answer, forecast.forecast(method, history, levels=levels))


# -- all in one clean process


def test_a_process_without_jaxops_answers_the_same(tmp_path):
    raw, history, future = series_with_covariates()
    cases = {name: (model, ROWS) for name, model in survival_models().items()}
    cases |= {
        "customers": (base(), columns_of(summary())),
        "spenders": (spenders(), ROWS),
        "trees": (trees(), new_rows()),
        "folds": (folds(), new_rows()),
        "series": (jo.Model(ensemble()), raw),
    }
    for name, (model, _) in cases.items():
        jo.export(model, tmp_path / name)
    found = in_a_clean_process(tmp_path, {name: given for name, (_, given) in cases.items()})
    assert_close(found.pop("series"), forecast.forecast(ensemble(), history, future=future))
    assert_close(found.pop("customers"), base().predict(summary()))
    assert found["deep_hit"]["incidence"].shape == (5, 2, 4)
    for name, answer in found.items():
        assert_close(answer, cases[name][0].predict(cases[name][1]))


def test_a_csv_file_of_curves(tmp_path, capsys, monkeypatch):
    model = survival_models()["deep_hit"]
    folder = jo.export(model, tmp_path / "out")
    (tmp_path / "rows.csv").write_text("id,age,plan\nr1,25,a\nr2,,c\n")
    monkeypatch.setattr(run, "__file__", f"{folder}/run.py")
    run.main(f"{tmp_path}/rows.csv")
    names, *rows = csv.reader(io.StringIO(capsys.readouterr().out))
    ends = (0.5, 1.0, 3.7, 6.0)
    assert names == [
        *("ids", *(f"survival {end}" for end in ends), "risk", "median", "mean"),
        *(f"incidence {cause} {end}" for cause in (1, 2) for end in ends),
    ]
    wanted = model.predict({"id": ["r1", "r2"], "age": [25, None], "plan": ["a", "c"]})
    assert [row[0] for row in rows] == ["r1", "r2"]
    found = np.array([row[-8:] for row in rows], float).reshape(2, 2, 4)
    np.testing.assert_allclose(found, wanted.incidence, rtol=1e-6)


# -- what is refused


def test_what_cannot_be_exported_says_so(tmp_path):
    _, one = forecaster(forecast.Point(), covariates=False)
    _, other = forecaster(forecast.Point(), covariates=True)
    boosted = TreeModel(Boosted("lightgbm", np.zeros(1, np.uint8), 0), {}, {"age": 0.0}, "number")
    unknown = SimpleNamespace(outputs=None, classes=(), reads_table=True)
    mixed = forecast.Ensemble((one, forecast.Baseline("drift")))
    bgbb = base(customers.BGBB(), (1.204, 0.750, 0.657, 2.783))
    for task, message in (
        (bgbb.task, "must be of BGNBD, MBGNBD or ParetoNBD to be exported, got BGBB; predict with"),
        (boosted, "trees must be of HistGradientBoosting .* got lightgbm, .*; fit without it"),
        (
            Blend.of([trees(), jo.Model(boosted)], (0.5, 0.5)),
            "trees must be of Hist.* got lightgbm",
        ),
        (
            Blend.of([trees(), jo.Model(unknown)], (0.5, 0.5)),
            "got a member SimpleNamespace; fit with",
        ),
        (
            mixed,
            r"model must be a network \(Forecaster\), .* got Baseline; forecast it with jaxops",
        ),
        (forecast.Ensemble((one, other)), r"members must have the same known, got \[\[\], \['pri"),
        (forecast.LogScale(mixed), r"model must be a network \(Forecaster\), .* got Baseline"),
        (forecast.LogScale(forecast.Ensemble((one,))), "got Ensemble; put LogScale within it"),
    ):
        with pytest.raises(ValueError, match=message):
            jo.export(jo.Model(task), tmp_path / "out")
    assert not any(tmp_path.iterdir())
