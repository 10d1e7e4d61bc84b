"""`direct`, `forecast` and what can answer it, against arrays cut by hand."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from small import compilations

import jaxops as jo
from jaxops import devices
from jaxops import forecast as f

L, H = 12, 4


def tide_of(**settings):
    """A small module that takes all covariates."""
    return f.TiDE(L, H, width=16, encoder=1, decoder=1, temporal=8, **settings)


def patch_of():
    return f.PatchTST(L, H, patch=4, stride=2, depth=1, hidden=16)


@pytest.fixture(scope="module")
def series():
    """Three series of two channels and all kinds of covariates."""
    rng = np.random.default_rng(0)
    lengths = [40, 30, 55]
    time = np.concatenate([np.arange(n) for n in lengths])
    level = np.repeat([10.0, 200.0, -3.0], lengths)[:, None]
    wave = np.sin(2 * np.pi * time / 6)[:, None] * np.array([[2.0, 5.0]])
    values = level + wave + rng.normal(0, 0.3, (len(time), 2))
    return f.Series(
        ids=np.array(["a", "b", "c"]),
        start=np.array(["2024-01-01T00", "2024-01-02T05", "2024-03-01T00"], "datetime64[s]"),
        frequency="h",
        offsets=np.append(0, np.cumsum(lengths)),
        values=values.astype(np.float32),
        channels=("x", "y"),
        known=rng.normal(size=(len(time), 3)).astype(np.float32),
        past=rng.normal(size=(len(time), 1)).astype(np.float32),
        static=rng.normal(size=(3, 2)).astype(np.float32),
        known_names=("k1", "k2", "k3"),
        past_names=("p",),
        static_names=("s1", "s2"),
    )


def plain(series):
    """The same without covariates."""
    rows, count = len(series.values), len(series)
    return f.Series(
        series.ids,
        series.start,
        series.frequency,
        series.offsets,
        series.values,
        series.channels,
        np.zeros((rows, 0), np.float32),
        np.zeros((rows, 0), np.float32),
        np.zeros((count, 0), np.float32),
    )


def whole(series):
    """All rows of each series."""
    return np.stack([series.offsets[:-1], series.offsets[1:]], axis=1)


def trained(module, series, scaling, steps=3, optimizer=None, **more):
    task = f.direct(module, series, scaling)
    windows = f.origins(series, module.context, module.horizon)
    optimizer = optimizer or jo.optim.sgd(1e-2)  # half of what Adam takes to compile
    state = jo.fit(
        task, windows, optimizer=optimizer, batch_size=16, steps=steps, progress=False, **more
    )
    return task, state


def fresh(module, series, scaling):
    """Task and first state, where what is asked holds before any step as well."""
    task = f.direct(module, series, scaling)
    first = {name: column[:1] for name, column in f.origins(series, L, H).items()}
    return task, jo.init_state(task, jo.optim.sgd(1e-2), 0, first)


@pytest.fixture(scope="module")
def tide(series):
    """A module that takes all covariates: task, state and forecaster."""
    module, scaling = tide_of(), f.scaling(series, rows=whole(series))
    task, state = fresh(module, series, scaling)
    return task, state, f.forecaster(module, state, series, scaling)


def test_scaling_by_training_rows(series):
    rows = series.offsets[:-1, None] + np.array([[0, 20], [3, 10], [0, 30]])
    found = f.scaling(series, "series", rows)
    for s, (first, last) in enumerate(rows):
        part = series.values[first:last]
        np.testing.assert_allclose(found.loc[s], part.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.scale[s], part.std(0), rtol=1e-5)
    total = f.scaling(series, "global", whole(series))
    np.testing.assert_allclose(total.scale[0], series.values.std(0), rtol=1e-5)
    for given, message in [
        (None, "rows must be the training rows, .*, got None"),
        (20, "rows must be a range within each of these 3 series, .*, got"),
        (
            [[0, 41], [40, 70], [70, 80]],
            "rows must be a range within each of these 3 series, .*, got",
        ),
        (
            [[0, 40], [40, 40], [70, 80]],
            "rows must have at least 1 row of each series, got none of series 'b'",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            f.scaling(series, rows=given)


def test_a_scaling_finds_its_series_by_id(series):
    found = f.scaling(series, rows=whole(series))
    turned = series.part([2, 0])
    renamed = replace(turned, ids=np.array(["c", "new"]))  # which is scaled by itself
    for other in (turned, renamed):
        loc, scale = found.of(other)
        np.testing.assert_allclose(loc, found.loc[[2, 0]])
        np.testing.assert_allclose(scale, found.scale[[2, 0]])


def test_loss_and_metrics_are_those_of_windows_cut_by_hand(series):
    series = plain(series)
    scaling = f.scaling(series, rows=whole(series))
    module = f.NLinear(L, H, f.Point("mae"))
    task, state = trained(module, series, scaling)
    windows = f.origins(series, L, H)
    ids, origins = windows["series"], windows["origin"]
    loc, scale = scaling.loc[ids][:, None], scaling.scale[ids][:, None]
    target = series.values[origins[:, None] + np.arange(H)]
    before = series.values[origins[:, None] + np.arange(-L, 0)]
    kernel, bias = np.asarray(state.params["kernel"]), np.asarray(state.params["bias"])
    scaled = (before - loc) / scale
    last = scaled[:, -1:]
    wanted = np.einsum("blc,lh->bhc", scaled - last, kernel) + bias[None, :, None] + last
    np.testing.assert_allclose(
        jo.predict(task, state, windows)[..., 0], wanted * scale + loc, rtol=1e-4, atol=1e-4
    )
    error = wanted - (target - loc) / scale
    found = jo.evaluate(task, state, windows, batch_size=7)
    assert found["mse"] == pytest.approx((error**2).mean(), rel=1e-4)
    assert found["mae"] == found["loss"] == pytest.approx(np.abs(error).mean(), rel=1e-4)


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(tide_of(output=f.Quantiles((0.1, 0.5, 0.9))), marks=pytest.mark.slow),
        f.Recurrent(L, H, f.Gaussian(), width=8),
    ],
    ids=lambda module: type(module).__name__,
)
def test_any_history_is_forecast_as_by_the_task(series, module, tmp_path):
    scaling = f.scaling(series, rows=whole(series))
    task, state = fresh(module, series, scaling)
    windows = {"series": np.array([0, 1, 2], np.int32), "origin": series.offsets[1:] - H}
    windows["origin"] = windows["origin"].astype(np.int32)
    parameters = jo.predict(task, state, windows)
    wanted = module.output.mean(parameters)
    model = f.forecaster(module, state, series, scaling)
    past = f.history(series, windows)
    future = series.known[windows["origin"][:, None] + np.arange(H)]
    found = f.forecast(model, past, future=future)
    np.testing.assert_allclose(found.mean, wanted, rtol=1e-4, atol=1e-4)
    assert found.quantiles.shape == (3, H, 2, 3) and (np.diff(found.quantiles) >= 0).all()
    assert found.times[0, 0] == np.datetime64("2024-01-02T12") and found.times.shape == (3, H)
    # fewer steps and rows, in another order, from a file
    jo.save(tmp_path / "model", jo.Model(model))
    again = f.forecast(jo.load(tmp_path / "model"), past.part([2, 0]), 2, future[[2, 0]])
    np.testing.assert_allclose(again.mean, found.mean[[2, 0], :2], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(again.quantiles, found.quantiles[[2, 0], :2], rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_from_its_checkpoint(series, tmp_path):
    series, module = plain(series), f.NLinear(L, H)
    scaling = f.scaling(series, rows=whole(series))
    adam = jo.optim.adam(1e-2)
    straight = trained(module, series, scaling, 6, adam)[1]
    trained(module, series, scaling, 3, adam, checkpoints=tmp_path)
    again = trained(module, series, scaling, 6, adam, checkpoints=tmp_path)[1]
    jax.tree.map(np.testing.assert_array_equal, straight.params, again.params)


def test_a_series_not_seen_in_training_is_scaled_by_itself(series):
    series = plain(series)
    scaling = f.scaling(series, rows=whole(series))
    module = f.NLinear(L, H)
    _, state = fresh(module, series, scaling)
    model = f.forecaster(module, state, series, scaling)
    one = series.part([1])
    large = f.from_arrays(
        ["new"], [one.values * 1000], start=one.start[0], frequency="h", channels=("x", "y")
    )
    found = f.forecast(model, large, levels=()).mean
    np.testing.assert_allclose(found, f.forecast(model, one, levels=()).mean * 1000, rtol=1e-3)


def test_nothing_behind_the_origin_reaches_a_forecast(tide):
    task, state, _ = tide
    origin = 20
    window = {"series": np.array([0], np.int32), "origin": np.array([origin], np.int32)}

    def total(fixed):
        extra = {**state.extra, "series": {**state.extra["series"], **fixed}}
        return task.predict(state.params, extra, window).sum()

    fixed = {name: state.extra["series"][name] for name in ("values", "past", "known")}
    slopes = jax.jit(jax.grad(total))(fixed)
    for name, last in {"values": origin, "past": origin, "known": origin + H}.items():
        slope = np.abs(np.asarray(slopes[name])).sum(1)
        assert (slope[last:] == 0).all() and (slope[: origin - L] == 0).all()
        assert (slope[origin - L : last] > 0).all(), name


@pytest.mark.parametrize(
    "module", [f.DLinear(L, H), pytest.param(patch_of(), marks=pytest.mark.slow)]
)
def test_eight_devices_learn_as_one(series, module):
    series = plain(series)
    scaling = f.scaling(series, rows=whole(series))
    # Adam would take the rounding of a gradient that is 0, as those of keys' biases are, for one
    states = [
        trained(module, series, scaling, optimizer=jo.optim.sgd(0.05), plan=plan)[1]
        for plan in (devices.single(), devices.data_parallel())
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), *(s.params for s in states)
    )


def test_baselines_answer_from_whole_histories(series):
    series = plain(series)
    found = f.forecast(f.Baseline("seasonal_naive", 6), series, 8, levels=(0.5,))
    for s in range(3):
        own = series.values[series.offsets[s] : series.offsets[s + 1]]
        wanted = np.concatenate([own[-6:], own[-6:-4]])
        np.testing.assert_allclose(found.mean[s], wanted)
        np.testing.assert_allclose(found.quantiles[s, ..., 0], wanted, rtol=1e-5)
    windows = f.origins(series, L, H, stride=5)
    test = f.historical_forecasts(f.Baseline("repeat_last"), series, windows, H)
    np.testing.assert_array_equal(
        test.mean, np.repeat(series.values[windows["origin"] - 1][:, None], H, 1)
    )
    np.testing.assert_array_equal(test.target[:, 0], series.values[windows["origin"]])


def test_conformal_quantiles_cover_their_share():
    """A random walk of steps that are not normal, on series of sizes 1 to 1,000."""
    rng = np.random.default_rng(1)
    steps = rng.exponential(1.0, (400, 60)) - 1
    values = np.cumsum(steps, 1) * np.geomspace(1, 1000, 400)[:, None]
    series = f.from_arrays([str(i) for i in range(400)], list(values))
    order = rng.permutation(400)
    first, second = series.part(order[:200]), series.part(order[200:])
    model = f.Baseline("repeat_last")
    levels = (0.1, 0.5, 0.9)
    windows = f.origins(first, 40, 3, stride=1000)
    fitted = f.calibrated(model, first, windows, 3, levels, context=40)
    test = f.historical_forecasts(fitted, second, f.origins(second, 40, 3, stride=1000), 3, levels)
    below = (test.target[..., None] <= test.quantiles).mean((0, 2))  # (H, Q)
    # two samples of 200: the calibration's and the test's
    error = 4 * np.sqrt(2 * np.array(levels) * (1 - np.array(levels)) / 200)
    assert (np.abs(below - levels) < error[None]).all()
    with pytest.raises(
        ValueError, match=r"levels must be among \(0.1, 0.5, 0.9\), .*, got \[0.2\]"
    ):
        f.forecast(fitted, second, 3, levels=(0.2,))
    with pytest.raises(
        ValueError, match=r"windows must be at least 9 whose histories vary, .*, got 5 of 5"
    ):
        f.calibrated(model, first, {n: c[:5] for n, c in windows.items()}, 3, context=40)


@pytest.mark.parametrize("ask", [f.historical_forecasts, f.calibrated])
def test_windows_that_reach_beyond_their_series(series, ask):
    model, one = f.Baseline("repeat_last"), plain(series)
    at = f.origins(one, L, H)
    with pytest.raises(
        ValueError, match=r"origin must be in \[1, 36\) in series 'a' \(rows 0 to 39\) .*, got 36"
    ):
        ask(model, one, at, H + 1)
    with pytest.raises(ValueError, match=r"origin must be in \[41, 67\) in series 'b' .*, got 40"):
        ask(model, one, {"series": np.array([1]), "origin": np.array([40])}, H)
    with pytest.raises(ValueError, match=r"series must be in \[0, 3\), got 3 in window 0"):
        ask(model, one, {"series": np.array([3]), "origin": np.array([40])}, H)
    with pytest.raises(ValueError, match="windows must be at least 1, got none"):
        ask(model, one, {name: column[:0] for name, column in at.items()}, H)


class Last:
    """Repeats the last value, and has a horizon; in NumPy."""

    has_quantiles = False

    def __init__(self, horizon=H):
        self.horizon = horizon

    def answer(self, history, horizon, future, levels):
        last = history.values[history.offsets[1:] - 1][:, None]
        mean = np.repeat(last, self.horizon if horizon is None else horizon, 1)
        return mean, np.zeros((*mean.shape, 0))


class Sum:
    """Says the sum of all known covariates given, and of a module's horizon at least."""

    module = f.TiDE(L, H)
    has_quantiles = False

    def answer(self, history, horizon, future, levels):
        assert future.shape[1] >= H
        mean = future[:, :H].sum((1, 2))[:, None, None]
        return np.broadcast_to(mean, (len(mean), horizon, 2)), np.zeros((len(mean), horizon, 2, 0))


def test_a_smaller_horizon_gets_the_covariates_of_the_whole(series):
    windows = f.origins(series, L, H)
    for model in (Sum(), f.Ensemble((f.Baseline("drift"), Sum()), (0.0, 1.0))):
        found = f.historical_forecasts(model, series, windows, 2)
        known = series.known[windows["origin"][:, None] + np.arange(H)]
        np.testing.assert_allclose(found.mean[:, 1, 0], known.sum((1, 2)), rtol=1e-5)
        assert f.calibrated(model, series, windows, 2, (0.5,), L).offsets.shape == (2, 2, 1)
        with pytest.raises(ValueError, match=r"windows must be of horizon 4, .*, got horizon 2"):
            f.historical_forecasts(model, series, f.origins(series, L, 2), 2)


def test_windows_in_parts_say_the_same(series, monkeypatch):
    series, model = plain(series), Last()
    windows = f.origins(series, L, H)
    levels = (0.25, 0.75)

    def both():
        fitted = f.calibrated(model, series, windows, H, levels, L)
        return fitted.offsets, f.historical_forecasts(fitted, series, windows, H, levels).quantiles

    one = both()
    monkeypatch.setattr("jaxops.forecast.backtests.AT_ONCE", 2**10)
    for whole, parts in zip(one, both(), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-5)


def test_conformal_counts_and_histories_that_do_not_vary():
    rng = np.random.default_rng(0)
    sold = rng.poisson(1, (40, 30))
    sold[:10] = 3
    counts = f.from_arrays([str(i) for i in range(40)], list(sold))
    windows, model = f.origins(counts, 20, 2, stride=50), Last()
    fitted = f.calibrated(model, counts, windows, 2, (0.1, 0.9), 20)
    assert fitted.left_out == 0.25 and fitted.counts
    found = f.forecast(fitted, counts, 2, levels=(0.1, 0.9)).quantiles
    assert found.min() == 0 and (found[:10] == 3).all()
    halves = replace(counts, values=counts.values - np.float32(0.5))
    assert f.calibrated(model, halves, windows, 2, (0.1, 0.9), 20).counts is False


def test_an_ensemble_is_the_weighted_mean(series):
    series = plain(series)
    members = (f.Baseline("repeat_last"), f.Baseline("drift"))
    both = f.forecast(f.Ensemble(members, (0.25, 0.75)), series, 5)
    parts = [f.forecast(member, series, 5) for member in members]
    for name in ("mean", "quantiles"):
        a, b = (getattr(part, name) for part in parts)
        np.testing.assert_allclose(getattr(both, name), 0.25 * a + 0.75 * b, rtol=1e-5)
    with pytest.raises(ValueError, match="weights must be 2 numbers of at least 0 with sum 1"):
        f.Ensemble(members, (0.5, 0.6))
    with pytest.raises(ValueError, match="weights must be 2 numbers of at least 0 with sum 1"):
        f.Ensemble(members, (0.5, float("nan")))
    with pytest.raises(
        ValueError, match=r"horizon must be a number of at most 1, .* \[1, 2\], got None"
    ):
        f.forecast(f.Ensemble((Last(2), Last(1))), series, levels=())


def test_stacking_is_the_least_squares_of_the_simplex():
    rng = np.random.default_rng(2)
    target = rng.normal(size=(50, 4))
    forecasts = (
        target[None] + rng.normal(size=(3, 50, 4)) * np.array([1.0, 0.5, 3.0])[:, None, None]
    )
    found = np.array(f.stacking(forecasts, target))

    def error(weights):
        return ((np.tensordot(weights, forecasts, 1) - target) ** 2).mean()

    grid = [
        np.array([a, b, 1 - a - b]) for a in np.linspace(0, 1, 41) for b in np.linspace(0, 1, 41)
    ]
    best = min(error(w) for w in grid if w.min() >= 0)
    assert found.min() >= 0 and found.sum() == pytest.approx(1) and error(found) <= best + 1e-9


def test_a_target_of_stacking_that_is_not_finite():
    with pytest.raises(ValueError, match="target must be finite, got 1 numbers that are not"):
        f.stacking(np.zeros((2, 3)), np.array([1, np.nan, 2]))


def test_counts_are_not_scaled(series):
    rng = np.random.default_rng(3)
    counts = f.from_arrays(["a", "b"], [rng.poisson(3, 40), rng.poisson(50, 40)])
    module = f.NLinear(L, H, f.NegativeBinomial(), instance_norm="mean")
    scaling = f.scaling(counts, "none")
    _task, state = trained(module, counts, scaling)
    found = f.forecast(f.forecaster(module, state, counts, scaling), counts)
    assert (found.mean > 0).all() and (found.quantiles == np.round(found.quantiles)).all()
    with pytest.raises(ValueError, match=r"scaling must be of kind 'none' .*, got 'series'"):
        f.direct(module, counts, f.scaling(counts, rows=whole(counts)))
    with pytest.raises(
        ValueError, match=r"values must be whole numbers from 0 up .*, got 0.5 in series 'a'"
    ):
        half = f.from_arrays(["a"], [np.full(L, 0.5)])
        f.forecast(f.forecaster(module, state, counts, scaling), half)
    negative = f.from_arrays(["a", "b"], [[1, 2], [3, -1]])
    with pytest.raises(
        ValueError, match=r"values must be whole numbers from 0 up .*, got -1 in series 'b'"
    ):
        f.direct(module, negative, scaling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 5}, "horizon must be at most 4, got 5"),
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"future": None}, r"future must have \('k1', 'k2', 'k3'\) of the future steps, got None"),
        ({"future": np.zeros((3, 3, 3))}, "future must have 4 steps of .*, got 3"),
        ({"future": np.zeros((3, 4, 2))}, r"future must have shape \(3, 4, 3\), got \(3, 4, 2\)"),
        (
            {"future": np.full((3, 4, 3), np.nan)},
            "future must be finite, got 36 values that are not",
        ),
        ({"levels": (0.5, 0.1)}, "rising numbers between 0 and 1"),
        ({"levels": (0.5, 1.0)}, "rising numbers between 0 and 1"),
        (
            {"levels": (0.5,)},
            r"levels must be \(\) .*, a point without quantiles, got \(0.5,\); use `calibrated`",
        ),
    ],
)
def test_what_cannot_be_forecast(series, tide, change, message):
    given = {"horizon": H, "future": np.zeros((3, H, 3)), "levels": ()} | change
    with pytest.raises(ValueError, match=message):
        f.forecast(tide[2], series, **given)


def test_another_kind_of_history(series, tide):
    model = tide[2]
    with pytest.raises(ValueError, match=r"known_names must be \('k1', 'k2', 'k3'\).*, got \(\)"):
        f.forecast(model, plain(series), levels=())
    short = f.history(series, {"series": np.array([1]), "origin": series.offsets[1:2] + 11})
    with pytest.raises(
        ValueError, match=r"at least 12 rows of each series .*, got 11 of series 'b'"
    ):
        f.forecast(model, short, future=np.zeros((1, H, 3)), levels=())


def test_a_short_history_is_lengthened_where_the_forecaster_says_so(series):
    series, module = plain(series), f.NLinear(L, H)
    scaling = f.scaling(series, rows=whole(series))
    _, state = fresh(module, series, scaling)
    model = f.forecaster(module, state, series, scaling)
    short = f.cut(series, series.offsets[:-1, None] + np.array([[0, 5]]))
    wanted = f.forecast(model, f.padded(short, L), levels=())
    found = f.forecast(replace(model, lengthens=True), short, levels=())
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.times, wanted.times)


def test_a_model_of_another_room_does_not_forecast(series):
    with pytest.raises(ValueError, match="model must be a model that forecasts, got str"):
        f.forecast(jo.Model("a text"), series)


def test_equal_calls_share_a_task_and_files_hold_it(series, tmp_path):
    series, module = plain(series), f.NLinear(L, H)
    scaling = f.scaling(series, "global", whole(series))
    task, state = trained(module, series, scaling)
    windows = f.origins(series, L, H)
    again = replace(series, values=series.values.copy())
    equal = f.direct(f.NLinear(L, H), again, f.scaling(again, "global", whole(again)))
    assert equal is task
    with compilations() as names:
        trained(f.NLinear(L, H), again, scaling)
    assert names == []
    other = replace(series, values=series.values + np.float32(1))
    assert f.direct(module, other, scaling) is not task
    assert f.direct(module, series, f.scaling(series, "none")) is not task

    jo.save(tmp_path / "task", jo.Model(task, state))
    model = jo.load(tmp_path / "task")
    np.testing.assert_array_equal(model.predict(windows), jo.predict(task, state, windows))
    assert jo.evaluate(model.task, model.state, windows) == jo.evaluate(task, state, windows)
    with pytest.raises(ValueError, match=r"in series 'a' .*, got 37"):
        model.predict({"series": np.array([0], np.int32), "origin": np.array([37], np.int32)})
    # its arrays are in the file's state alone
    with pytest.raises(ValueError, match="state must be given for a task"):
        jo.fit(
            model.task, windows, optimizer=jo.optim.sgd(0.1), batch_size=16, steps=1, progress=False
        )


def test_monte_carlo_dropout_spreads_what_a_forecast_says(series):
    module = f.Recurrent(L, H, dropout=0.3, width=8)
    task, state = trained(module, series, f.scaling(series, rows=whole(series)))
    windows = f.origins(series, L, H, stride=10)
    found = jo.predict(jo.monte_carlo(task, samples=20), state, windows)
    assert found["mean"].shape == (len(windows["origin"]), H, 2, 1) and (found["std"] > 0).all()


def test_windows_and_scalings_of_others_are_refused(series, tide):
    task, state, _ = tide
    windows = f.origins(series, L - 3, H)
    with pytest.raises(ValueError, match=r"origin must be in \[12, 37\) in series 'a' .*, got 9"):
        jo.evaluate(task, state, windows)
    beyond = {"series": np.array([0], np.int32), "origin": np.array([37], np.int32)}
    with pytest.raises(ValueError, match=r"in series 'a' .*, got 37"):
        jo.predict(task, state, beyond)
    part = series.part([0, 1])
    with pytest.raises(
        ValueError, match="scaling must have every series of the task, got none of series 'c'"
    ):
        f.direct(tide_of(), series, f.scaling(part, rows=whole(part)))
    turned = series.part([2, 0, 1])
    again = f.direct(tide_of(), series, f.scaling(turned, rows=whole(turned)))
    first = {name: column[:5] for name, column in f.origins(series, L, H).items()}
    new = jo.init_state(again, jo.optim.sgd(1e-2), 0, first)
    for name in ("values", "loc", "scale"):  # whatever the order of the scaling's series
        np.testing.assert_array_equal(new.extra["series"][name], state.extra["series"][name])


@pytest.mark.parametrize(
    "module",
    [
        f.NLinear(L, H, instance_norm="mean_std"),
        pytest.param(patch_of(), marks=pytest.mark.slow),
    ],
)
def test_a_constant_series_is_forecast_constant(module):
    flat = f.from_arrays(["a"], [np.full(40, 7.0)])
    scaling = f.scaling(flat, rows=whole(flat))
    _, state = trained(module, flat, scaling)
    found = f.forecast(f.forecaster(module, state, flat, scaling), flat, levels=()).mean
    assert np.isfinite(found).all() and np.abs(found - 7).max() < 1


def test_partial_targets_count_as_far_as_they_are_known(series):
    """Each known value once, up to the last row of all; what comes later tells nothing."""
    bare, module = plain(series), f.NLinear(L, H)
    scaling = f.scaling(bare, "none")
    rows = whole(bare) - np.array([[0, 2], [0, 0], [0, 0]])
    windows = f.origins(bare, L, H, rows, partial=True)
    task = f.direct(module, bare, scaling, partial=True)
    state = jo.init_state(task, jo.optim.sgd(1e-2), 0, {k: x[:1] for k, x in windows.items()})
    means = jo.predict(task, state, windows)[..., 0]
    squares = []
    for mean, s, origin in zip(means, windows["series"], windows["origin"], strict=True):
        known = bare.values[origin : min(origin + H, rows[s, 1])]
        squares.append(np.square(mean[: len(known)] - known).ravel())
    wanted = np.concatenate(squares).mean()
    found = jo.evaluate(task, state, windows, batch_size=32)  # its last batch is padded
    assert found["mse"] == pytest.approx(wanted, rel=1e-5)
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)
    odd = bare.values.copy()
    odd[38:40] = 1e6  # after the range of the first series
    other = f.direct(module, replace(bare, values=odd), scaling, partial=True)
    first = {name: x[windows["series"] == 0][-H:] for name, x in windows.items()}
    extra = other.init(jax.random.key(0), first)[1]
    moved = state._replace(extra={**state.extra, "series": extra["series"]})
    kept = jo.evaluate(task, state, first)["loss"]
    assert first["steps"].tolist() == [4, 3, 2, 1]
    assert jo.evaluate(other, moved, first)["loss"] == pytest.approx(kept, rel=1e-6)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0 in window 1"):
        jo.evaluate(task, state, {**first, "steps": np.array([4, 0, 2, 1])})
    beyond = {**first, "steps": np.full(4, 4)}
    with pytest.raises(ValueError, match="for context=12 and horizon=4, got 37 in window 3"):
        jo.evaluate(task, state, beyond)
