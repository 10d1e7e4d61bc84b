"""One call a job on series: what is read, what is tried, what comes back from the file."""

import subprocess
import sys
from dataclasses import replace

import flax.linen as nn
import numpy as np
import pytest

import jaxops as jo
from jaxops import forecast as f
from jaxops.forecast import recipes
from jaxops.forecast.ensembles import logarithms

RNG = np.random.default_rng(0)
S, N, H = 3, 98, 3
DAYS = np.arange("2024-01-01", "2024-04-08", dtype="datetime64[D]")
SOLD = 20 + 10.0 * np.arange(S)[:, None] + 5 * np.sin(np.arange(N) / 7 * 2 * np.pi)
SOLD = (SOLD + RNG.normal(0, 0.5, (S, N))).round(2)
PRICE = RNG.uniform(1, 2, (S, N)).round(2)
TABLE = {
    "shop": np.repeat([f"s{i}" for i in range(S)], N).astype(object),
    "day": np.tile(DAYS, S),
    "sold": SOLD.ravel(),
    "price": PRICE.ravel(),
}
NAMES = {"id": "shop", "time": "day", "value": "sold"}
SMALL = f.NLinear(14, H)
QUIET = {**NAMES, "horizon": H, "progress": False, "epochs": 2, "batch_size": 64}


class Priced(nn.Module):
    """A module of one's own: the last value, moved by the covariates to come."""

    context: int = 2
    horizon: int = H
    output: f.Output = f.Point()

    @nn.compact
    def __call__(self, inputs, train=False):
        weights = self.param("weights", nn.initializers.ones, inputs.known.shape[-1:])
        ahead = inputs.known[:, self.context :] @ weights
        return (inputs.values[:, -1:] + ahead[..., None])[..., None]


def until(day):
    """The table without its last days."""
    keep = TABLE["day"] < DAYS[day]
    return {name: column[keep] for name, column in TABLE.items()}


@pytest.fixture(scope="module")
def model():
    both, more = [f.Baseline("seasonal_naive", 7), SMALL], {"optimizer": jo.optim.adam(1e-2)}
    return f.fit(TABLE, both, **{**QUIET, **more, "epochs": 40})


@pytest.fixture(scope="module")
def csv(tmp_path_factory):
    pd = pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("series") / "sales.csv"
    pd.DataFrame(TABLE).to_csv(path, index=False)
    return path


def test_every_kind_of_source_gives_the_same_answer(model, csv, tmp_path):
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    table = pd.DataFrame(TABLE)
    table.to_parquet(tmp_path / "t.parquet")
    wanted = model.predict(TABLE)
    assert wanted.ids.tolist() == ["s0", "s1", "s2"] and wanted.levels == (0.1, 0.5, 0.9)
    assert str(wanted.times[0, 0]) == "2024-04-08T00:00:00"
    sources = [csv, str(csv), tmp_path / "t.parquet", table, pl.from_pandas(table)]
    sources += [pl.from_pandas(table).to_arrow(), model.reader.series(TABLE)]
    shuffled = table.sample(frac=1, random_state=0).sort_values("shop", kind="stable")
    for source in [*sources, shuffled]:
        answer = model.predict(source)
        np.testing.assert_array_equal(answer.times, wanted.times)
        np.testing.assert_allclose(answer.quantiles, wanted.quantiles, rtol=1e-6)
    rows = wanted.frame()
    assert rows.columns.tolist() == ["id", "time", "channel", "mean", "q0.1", "q0.5", "q0.9"]
    assert model.reader.describe()["columns"] == "shop, day, sold"
    assert rows["id"].tolist() == np.repeat(wanted.ids, H).tolist()
    np.testing.assert_array_equal(rows["q0.9"], wanted.quantiles[..., 2].ravel())
    np.testing.assert_array_equal(f.forecast(model, model.reader.series(TABLE)).mean, wanted.mean)


def test_what_it_learns_and_its_scores(model):
    told = model.about["methods"]
    assert sum(one["weight"] for one in told.values()) == pytest.approx(1)
    assert model.about["validation"]["mase"] <= min(one["mase"] for one in told.values()) + 1e-6
    assert told["NLinear, context 14"]["weight"] >= 0.5  # the naive one repeats the noise
    scored = f.evaluate(model, TABLE, rows=2 * H)
    assert len(scored) == 2 * S and scored.ids[0] == "s0 2024-04-02T00:00:00"
    early, late = (model.predict(until(N - k * H), levels=(0.1, 0.5, 0.9)) for k in (2, 1))
    first, last = SOLD[:, -2 * H : -H], SOLD[:, -H:]
    errors = np.stack([early.mean[..., 0] - first, late.mean[..., 0] - last], 1).reshape(-1, H)
    figures = scored.figures()
    np.testing.assert_allclose(scored.values["mae"], np.abs(errors), rtol=1e-4, atol=1e-5)
    assert figures["rmse"] == pytest.approx((errors**2).mean() ** 0.5, rel=1e-5)
    inside = [
        (one.quantiles[:, :, 0, 0] <= y) & (y <= one.quantiles[:, :, 0, 2])
        for one, y in ((early, first), (late, last))
    ]
    assert figures["coverage"] == pytest.approx(np.mean(inside))
    naive = [np.abs(x[7:-H] - x[:-7][: N - 7 - H]).mean() for x in SOLD]  # of the last windows
    np.testing.assert_allclose(
        scored.values["mase"][1::2], np.abs(errors)[1::2] / np.array(naive)[:, None], rtol=1e-4
    )
    assert f.evaluate(model, TABLE, rows=30, stride=1).block == H
    assert np.isfinite(f.evaluate(model, TABLE, rows=90, stride=1).interval("mae")).all()


def test_margins_are_those_before_the_last_training(model):
    assert isinstance(model.task, f.Conformal)
    own = {name: column[TABLE["shop"] == "s1"] for name, column in TABLE.items()}
    assert f.evaluate(model, own, rows=30, stride=1).figures()["coverage"] > 0.6


CHILD = """
import pathlib, sys, numpy as np, jaxops as jo
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors")):
    model = jo.load(path)
    answer = model.predict(sys.argv[2], future=sys.argv[3] if model.reader.known else None)
    np.savez(path.with_suffix(".npz"), mean=answer.mean, quantiles=answer.quantiles,
             times=answer.times, ids=answer.ids.astype("U"))
"""


def test_every_kind_comes_back_from_its_file(model, csv, tmp_path):
    """All in one process that has imported nothing but jaxops."""
    reader, series = model.reader, model.reader.series(TABLE)
    trained = model.task.model
    network = trained.members[-1] if isinstance(trained, f.Ensemble) else trained
    priced = replace(reader, known=("price", "day_of_week"))
    recurrent = f.Recurrent(4, H, f.Quantiles(), width=2)
    gaussian = untrained(f.NLinear(14, H, f.Gaussian()), series, "global")
    kinds = {
        "baseline": f.Baseline("drift"),
        "forecaster": network,
        "gaussian": gaussian,
        "ensemble": f.Ensemble((gaussian, f.Baseline("repeat_last")), (0.25, 0.75)),
        "log": f.LogScale(f.Ensemble((f.Baseline("drift"), gaussian))),
        "calibrated": f.calibrated(f.Baseline("naive2", 7), series, f.origins(series, 30, H), H),
    }
    models = {name: jo.Model(kind, None, reader) for name, kind in kinds.items()}
    covariates = f.LogScale(untrained(recurrent, priced.series(TABLE), "series"))
    models |= {"fitted": model, "covariates": jo.Model(covariates, None, priced)}
    later = np.arange("2024-04-08", "2024-04-11", dtype="datetime64[D]")
    future = {"shop": np.repeat(["s0", "s1", "s2"], H), "day": np.tile(later, S)}
    future["price"] = np.linspace(1, 2, S * H)
    prices = tmp_path / "prices.csv"
    pytest.importorskip("pandas").DataFrame(future).to_csv(prices, index=False)
    for name, one in models.items():
        jo.save(tmp_path / f"{name}.safetensors", one)
    command = [sys.executable, "-c", CHILD, tmp_path, csv, prices]
    subprocess.run([*map(str, command)], check=True, timeout=120)
    for name, one in models.items():
        wanted = one.predict(TABLE, future=future if one.reader.known else None)
        found = np.load(tmp_path / f"{name}.npz")
        assert found["ids"].tolist() == wanted.ids.tolist()
        for part in ("mean", "quantiles", "times"):
            given, other = getattr(wanted, part), found[part]
            assert given.shape == other.shape, name
            if part == "times":
                np.testing.assert_array_equal(given, other)
            else:
                np.testing.assert_allclose(given, other, rtol=1e-5, atol=1e-5, err_msg=name)
    assert np.load(tmp_path / "covariates.npz")["quantiles"].shape == (S, H, 1, 3)


def untrained(module, series, kind):
    whole = np.stack([series.offsets[:-1], series.offsets[1:]], 1)
    scaling = f.scaling(series, kind, whole)
    task, first = f.direct(module, series, scaling), {"series": [0], "origin": [20]}
    state = jo.init_state(task, jo.optim.sgd(0.1), 0, {k: np.int32(v) for k, v in first.items()})
    return f.forecaster(module, state, series, scaling)


def test_covariates_to_come_are_asked_for(model):
    priced = f.fit(TABLE, Priced(), **QUIET, known=["price", "day_of_week"], levels=())
    with pytest.raises(ValueError, match="source must be a table with columns price, got None"):
        priced.predict(TABLE)
    dear, cheap = (priced.predict(TABLE, future=np.full((S, H, 2), x)).mean for x in (1.0, 2.0))
    weights, scaling = priced.task.variables["params"]["weights"], priced.task.scaling
    assert scaling.known[1, 0] == pytest.approx(PRICE.std(), rel=1e-5)  # of the price
    assert scaling.known[1, 1] == 1  # a feature of the calendar
    moved = (weights / scaling.known[1]).sum()
    wanted = np.broadcast_to(moved * scaling.scale[:, None], dear.shape)
    np.testing.assert_allclose(cheap - dear, wanted, rtol=1e-4)
    days = f.fit(TABLE, Priced(), **QUIET, known=["day_of_week"], levels=())
    assert days.predict(TABLE).mean.shape == (S, H, 1)  # computed
    with pytest.raises(ValueError, match="future must be None for a model without known cov"):
        model.predict(TABLE, future=TABLE)


def test_new_series_and_short_ones(model):
    new = {"shop": ["west"] * 4, "day": DAYS[:4], "sold": [100.0, 101.0, 103.0, 102.0]}
    answer = model.predict(new)
    assert answer.ids.tolist() == ["west"] and 90 < answer.mean.mean() < 115
    assert np.isnan(answer.quantiles).all()  # the unit of a week's difference is not known
    point = model.predict(new, horizon=2, levels=())
    assert point.mean.shape == (1, 2, 1)
    assert point.frame().columns.tolist() == ["id", "time", "channel", "mean"]


def test_a_target_that_is_known_in_part_is_learned_from():
    """Of 18 rows 3 are held out; 15 have no window of 14 and 3, but one of 14 and 1."""
    few = {name: x.reshape(S, N)[:, :18].ravel() for name, x in TABLE.items()}
    model = f.fit(few, SMALL, **{**QUIET, "batch_size": 3}, levels=(), validation=3)
    assert isinstance(model.task, f.Forecaster) and np.isfinite(model.predict(few).mean).all()
    with pytest.raises(ValueError, match="series must have at least 15 rows up to the end of the"):
        f.fit(few, SMALL, **QUIET, levels=(), validation=4)


def test_new_rows():
    shifted = {**TABLE, "sold": np.repeat(SOLD[:, ::2], 2, 1).ravel(), "shop": TABLE["shop"] + "x"}
    reader = f.SeriesReader(H, "D", **NAMES, season=7)
    logs = f.LogScale(untrained(SMALL, logarithms(reader.series(TABLE)), "series"))
    model = jo.Model(logs, None, reader)
    later = f.update(model, shifted, epochs=30, batch_size=64, progress=False)
    before, after = (f.evaluate(x, shifted, rows=60, stride=1) for x in (model, later))
    assert after.paired(before, "mae").high < 0
    assert later.reader is model.reader and "updated with" in later.about
    known = later.task.model.scaling
    assert known.ids.tolist() == ["s0", "s1", "s2", "s0x", "s1x", "s2x"]
    np.testing.assert_array_equal(known.loc[:S], model.task.model.scaling.loc)


def test_what_is_tried_by_default():
    hours = f.from_arrays(["a"], [np.arange(3000) - 5.0], start="2024-01-01", frequency="h")
    found = recipes.methods(hours, 96, 24, 600, 500)
    assert [type(one).__name__ for one in found] == ["Baseline", "NLinear", *["NHiTS"] * 3]
    assert [one.context for one in found[1:]] == [336, 336, 672, 1008]
    priced = f.from_arrays(["a"], [range(300)], known={"price": [range(300)]})
    names = [type(one).__name__ for one in recipes.methods(priced, 14, 7, 60, 20)]
    assert names == ["Baseline", "Baseline", "TiDE"]
    short = recipes.methods(f.from_arrays(["a"], [range(30)]), 7, 7, 15, 9)
    assert [getattr(one, "context", 0) for one in short] == [0, 0, 8] or len(short) == 4


def test_when_the_time_is_over_networks_stay_as_they_are(capsys):
    model = f.fit(TABLE, SMALL, **{**QUIET, "progress": True, "budget": 1e-6})
    assert (
        "context 14: not trained again on all rows, because no time was left"
        in capsys.readouterr().out
    )
    own = model.task.model.scaling.loc  # of the rows before those held out, a fifth
    seen = SOLD[:, : N - recipes.held_rows(np.full(S, N), H)]
    np.testing.assert_allclose(own.ravel(), seen.mean(1), rtol=1e-5)


@pytest.mark.slow
def test_the_default_is_no_worse_than_its_members(capsys):
    """On 30 test windows, as many as for validation: each method compiles once."""
    model = f.fit(until(N - 16), horizon=7, **NAMES, epochs=3)
    told = model.about["methods"]
    assert {"seasonal_naive, season 7", "ets, season 7"} < set(told)
    assert model.about["validation"]["mase"] <= min(one["mase"] for one in told.values()) + 1e-6
    assert "weight" in capsys.readouterr().out
    assert f.evaluate(model, TABLE, rows=16, stride=1).figures()["mase"] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": "nothing"}, "must have a column 'nothing'"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"horizon": 4}, "horizon must be 3 for NLinear, context 14, got 4"),
        ({"budget": "soon"}, "budget must be a time such as"),
        ({"validation": 0}, "validation must be at least 3, got 0"),
        ({"validation": 95}, "series must have at least"),
        ({"method": []}, "method must be at least 1, got none"),
        ({"method": "best"}, "method must be a module or a model that forecasts, got 'best'"),
        ({"method": SMALL.__class__}, "method must be a module or a model that forecasts"),
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"horizon": 3.0}, "horizon must be a whole number, got 3.0"),
        ({"season": 0}, "season must be at least 1, got 0"),
        ({"season": 2.5}, "season must be a whole number, got 2.5"),
        ({"season": 99}, "at least 103 rows .* season of 99 and a horizon of 3.*, got at most 98"),
        ({"method": f.Baseline("drift", 99)}, "at least 103 rows"),
        ({"validation": 2}, "validation must be at least 3, got 2"),
        ({"levels": "0.5"}, "levels must be rising numbers between 0 and 1, got '0.5'"),
        ({"levels": 0.5}, "levels must be rising numbers between 0 and 1, got 0.5"),
        ({"levels": [0.9, 0.1]}, "levels must be rising numbers"),
        ({"levels": [0.001]}, "windows must be at least 999 .*, for level 0.001, got"),
        ({"method": f.Baseline("drift")}, "options must be none .*, got epochs, batch_size"),
    ],
)
def test_arguments_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        f.fit(TABLE, change.pop("method", SMALL), **{**QUIET, **change})


def test_what_cannot_be_calibrated_is_refused_before_training():
    """Series that never vary have no unit of errors."""
    flat = {**TABLE, "sold": np.full(S * N, 5.0)}
    with pytest.raises(
        ValueError, match=r"histories vary, .* for level 0.1, got 0 of .*; levels=\(\)"
    ):
        f.fit(flat, Untrainable(), **QUIET)


class Untrainable(nn.Module):
    """A module that cannot be called."""

    context: int = 2
    horizon: int = H
    output: f.Output = f.Point()


def test_covariates_that_no_method_uses():
    rest = {**NAMES, "horizon": H, "progress": False, "known": ["price"]}
    with pytest.raises(ValueError, match=r"must be \(\) for baselines, .*, got \('price',\)"):
        f.fit(TABLE, [f.Baseline("drift"), f.LogScale(f.Baseline("theta"))], **rest)
    with pytest.raises(ValueError, match=r"got \('price',\)"):
        f.fit(TABLE, f.Baseline("drift"), **{**rest, "known": "price"})


def test_series_with_covariates_are_for_baselines_too():
    """They were not asked for: other methods to compare with use them."""
    priced = f.series(TABLE, **NAMES, known=["price"])
    rest = {"horizon": H, "levels": (), "progress": False}
    model = f.fit(priced, f.Baseline("seasonal_naive", 7), **rest)
    scored = f.evaluate(model, priced).parts["forecast"]
    np.testing.assert_allclose(scored[:, :, 0], SOLD[:, N - 10 : N - 7], rtol=1e-6)


def test_series_too_short_for_a_network_have_the_default_baselines(monkeypatch):
    monkeypatch.setattr(recipes, "ETS_VALUES", 0)  # which takes seconds to compile
    short = f.from_arrays(["a", "b"], SOLD[:2, :7], static={"size": [1, 2]})
    rest = {"horizon": H, "levels": (), "progress": False}
    told = f.fit(short, **rest).about["methods"]
    assert list(told) == ["seasonal_naive, season 1"]
    with pytest.raises(ValueError, match="none for series too short for a network, got epochs"):
        f.fit(short, **rest, epochs=2)


def test_windows_that_a_method_has_no_history_for():
    weekly, some = f.Baseline("seasonal_naive", 7), {n: c[:13] for n, c in TABLE.items()}
    rest = {**NAMES, "horizon": H, "progress": False, "levels": ()}
    model = f.fit(some, weekly, **rest)  # fewer than three seasons: compared from 8 rows on
    np.testing.assert_allclose(model.predict(some).mean[0, :, 0], SOLD[0, 6:9], rtol=1e-6)
    with pytest.raises(ValueError, match=r"before 's0 2024-01-02.* \(7 of 10 windows"):
        f.evaluate(model, some, rows=12, stride=1)
    with pytest.raises(ValueError, match="rows must be at least 3, got 2"):
        f.evaluate(model, some, rows=2)
    with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
        f.evaluate(model, some, stride=0)


def test_calibration_without_quantiles_of_the_shortest_histories():
    """Theta has no errors of two values; such a window would make all margins NaN."""
    walk, origin = f.from_arrays(["a"], [SOLD[0, :40]]), np.r_[2, 16:38].astype(np.int32)
    both = {"series": np.zeros(23, np.int32), "origin": origin}
    later = {name: column[1:] for name, column in both.items()}
    wanted, given = (f.calibrated(f.Baseline("theta"), walk, x, 2) for x in (later, both))
    np.testing.assert_allclose(given.offsets, wanted.offsets, rtol=1e-4)
    assert given.left_out == pytest.approx(1 / 23)


def test_a_short_series_is_scored_without_its_windows_without_quantiles():
    years = f.from_arrays(["short", *"ab"], [SOLD[2, : H + 2], *SOLD[:2, :40]])
    rest = {"horizon": H, "validation": 20, "progress": False}
    theta = f.Baseline("theta")
    more, fewer = (f.fit(x, theta, **rest) for x in (years, years.part([1, 2])))
    assert 0 < more.task.left_out < 0.1
    assert more.about["validation"] == pytest.approx(fewer.about["validation"], rel=1e-5)
    with pytest.raises(ValueError, match=r"before 'short 2' \(1 of 3 windows"):
        f.evaluate(more, years)


def test_metrics_of_ones_own_of_validation():
    """Training again on all rows has no validation."""

    def error(predictions, batch):
        return np.zeros(len(batch["origin"]))

    model = f.fit(TABLE, SMALL, **QUIET, levels=(), metrics={"error": error})
    assert np.isfinite(model.predict(TABLE).mean).all()


def test_models_and_series_that_cannot_be(model):
    with pytest.raises(ValueError, match="model must be of the forecasting room, got str"):
        f.evaluate(jo.Model("a text"), TABLE)
    with pytest.raises(ValueError, match="must have no gaps, got 1 missing rows"):
        keep = np.arange(S * N) != 40
        model.predict({name: column[keep] for name, column in TABLE.items()})
    with pytest.raises(ValueError, match="series must have at least"):
        f.evaluate(model, {name: column[:H] for name, column in TABLE.items()})
    with pytest.raises(ValueError, match=r"levels must be among \(0.1, 0.5, 0.9\)"):
        model.predict(TABLE, levels=(0.2,))
    with pytest.raises(ValueError, match="values must be at least 0 for LogScale, got -1"):
        one = f.from_arrays(["a"], [[3, -1]])
        f.forecast(f.LogScale(f.Baseline("drift")), one, 1, levels=())
