"""One function for each job on series: `fit` a finished model, `evaluate` it, `update` it."""

import time as clock
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.tables import Source
from jaxops.forecast.backtests import Backtest, historical_forecasts, history
from jaxops.forecast.classical.baseline import Baseline
from jaxops.forecast.conformal import Conformal, calibrated, check_enough, units
from jaxops.forecast.data import grid, reading
from jaxops.forecast.data.regular import Duplicates, Fill
from jaxops.forecast.data.scales import Scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Rows, Windows, origins
from jaxops.forecast.ensembles import Ensemble, LogScale, logarithms
from jaxops.forecast.evaluation import score
from jaxops.forecast.inference import Forecaster, answering, forecaster, levels_of, rising
from jaxops.forecast.reader import SeriesReader, reader_of
from jaxops.forecast.recipes import (
    held_rows,
    methods,
    name_of,
    names_of,
    recipe,
    season_of,
    seasonal_errors,
)
from jaxops.forecast.tasks import direct
from jaxops.forecast.trials import joined, retrained, try_all, unwrapped, weighed, windows_of
from jaxops.model.finished import Model, fingerprint, seconds
from jaxops.state import init_state
from jaxops.train.loop import fit as train
from jaxops.train.settings import check_one_directory, chosen, whole
from jaxops.trust.evaluation import Evaluation


def fit(
    data: Source,
    method: Any = None,
    *,
    horizon: int,
    id: str = "id",
    time: str = "time",
    value: str | Sequence[str] | None = None,
    known: Sequence[str] = (),
    past: Sequence[str] = (),
    static: Sequence[str] = (),
    layout: reading.Layout = "long",
    frequency: Any = None,
    zone: str = "",
    fill: Fill | Mapping[str, Fill] | None = None,
    duplicates: Duplicates = "error",
    end: str | int | None = None,
    season: int | None = None,
    levels: Sequence[float] = (0.1, 0.5, 0.9),
    validation: int | None = None,
    budget: str | float = "10min",
    seed: int = 0,
    progress: bool = True,
    **options: Any,
) -> Model:
    """Train a model that forecasts series.

    The last rows of each series are held out, and no method is trained on them. The methods get
    weights by their absolute errors on these rows, in units of the seasonal naive error (as in
    MASE); methods that do not help get none. Conformal quantiles around the weighted mean get their
    margins from the same rows. Then the networks are trained again on all rows, with equally many
    updates for each window, if the budget allows. If the target of a window is known only in part,
    that part counts.

    So the validation figures, which are printed and in `about`, are from rows that also stopped
    training, chose the weights and set the margins. They are optimistic, more so with few windows
    and many methods. For a figure to report, fit without the last rows, and `evaluate` on all rows.

    By default these methods are tried: the seasonal naive forecast; exponential smoothing, if it is
    not too slow; `NLinear`; and three `NHiTS` with contexts of about 3.5, 7 and 10.5 horizons, in
    whole seasons, which see log(1 + y) if no value is negative. If there are covariates, one `TiDE`
    replaces these networks. If series are too short for a network, only the first two are tried.

    Args:
        data: a table of any layout, see `jaxops.forecast.series`: a CSV or Parquet file, a frame of
            pandas, polars or PyArrow, or arrays by name. Or `Series`, such as `from_arrays` makes.
        method: a Flax module with that horizon, such as `PatchTST(336, 96)`, or `LogScale` of one;
            a `Baseline`, or any other object that can forecast; or a list of several.
        horizon: H, number of steps to forecast.
        id: the column of the series' id; for this up to `duplicates` see `jaxops.forecast.series`.
        time: the column of times.
        value: the columns of values.
        known: covariates whose future is known. Features of the calendar (see `calendar`), such as
            "day_of_week", are computed if the table does not have them.
        past: covariates that are known only up to now.
        static: covariates with one number for each series.
        layout: "long", "series" or "channels".
        frequency: the frequency of the times; inferred by default.
        zone: the time zone of dates and clock; by default that of the column of times.
        fill: how gaps are filled; an error by default.
        duplicates: what is done with duplicates; an error by default.
        end: "latest" fills all series up to the last row, for example items without a recent sale.
        season: steps of one season; by default a day for hours, a week for days, and a year for
            weeks, months or quarters; 1 if times are counts or series have less than 3 seasons.
        levels: levels of the quantiles; () for none.
        validation: number of rows at the end of each series to hold out; by default one horizon if
            there are many series, and a fifth if there are few.
        budget: time for all training, such as "10min", or seconds. If no time is left to train a
            network again, it stays as it was.
        seed: the seed of training.
        progress: print progress bars, what was tried and the validation figures.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Returns:
        A model; `model.predict(table)` gives a `Forecast`. Series shorter than a network's context
        are lengthened as `padded` does.

    Raises:
        ValueError: a table that cannot be read, see `jaxops.forecast.series`; series that are too
            short for a validation window; too few of these, or too few that vary, for the levels;
            training options for methods that are not trained; see also `jaxops.fit`.

    >>> from jaxops import forecast
    >>> days = np.arange("2024-01-01", "2024-04-01", dtype="datetime64[D]")
    >>> sales = {"id": ["north"] * 91, "day": days, "sold": 50 + np.arange(91) % 7}
    >>> model = forecast.fit(sales, forecast.Baseline("seasonal_naive", 7), horizon=3, time="day",
    ...                      value="sold", levels=(), progress=False)
    >>> model.predict(sales).mean.ravel().tolist()
    [50.0, 51.0, 52.0]
    """
    deadline = clock.monotonic() + seconds(budget)
    horizon, levels = whole("horizon", horizon, 1), rising(levels)
    columns = (id, time, value, known, past, static, layout, fill, duplicates)
    reader = SeriesReader(horizon, frequency, *columns, zone=zone, end=end)
    series = reader.series(data)
    reader = _settled(reader, data, series, season)
    season = reader.season
    held = _held(series, horizon, validation)
    rows, held_out = _parts(series, held)
    windows = _to_compare(series, method, season, horizon, held_out)
    context = max(100, 10 * season)
    _check_levels(series, windows, levels, context, season)
    if method is None:
        several = methods(series, horizon, season, held, len(windows["origin"]))
        _check_trained(several, options, "series too short for a network")
    else:
        several = _checked(method, horizon, options, (known, past, static))
    run = {"seed": seed, "progress": progress, **options}
    learned = try_all(several, series, rows, held_out, run, deadline)
    weights, errors = weighed([x.model for x in learned], series, windows, horizon, season)
    first = joined([one.model for one in learned], weights)
    final = joined(retrained(several, weights, learned, series, run, deadline), weights)
    if levels:
        first = calibrated(first, series, windows, horizon, levels, context, season)
        final = replace(first, model=final)
    scored = _scored(first, series, windows, reader)
    told = {
        name: {"weight": w, "mase": e}
        for name, w, e in zip(names_of(several), weights, errors, strict=True)
    }
    if progress:
        _print(told, scored)
    about = {"data": fingerprint({"values": series.values}), "series": len(series)}
    about |= {"rows": len(series.values), "methods": told, "validation": scored.figures()}
    return Model(final, None, reader, about)


def _print(told: dict[str, dict[str, float]], scored: Evaluation) -> None:
    """Print what was tried, and the figures of the resulting model."""
    for name, one in told.items():
        print(f"{name}: validation mase {one['mase']:.3f}, weight {one['weight']:.1f}")
    print(f"validation, {len(scored):,} windows; optimistic, as they chose the model too\n{scored}")


def evaluate(
    model: Model, data: Source, rows: int | None = None, stride: int | None = None
) -> Evaluation:
    """Score a model on the last rows of each series, which it forecasts from the rows before.

    Args:
        model: a model from `fit`.
        data: series that end with the rows to be forecast, and have enough rows before; see `fit`.
        rows: number of rows at the end of each series to be forecast; one horizon by default.
        stride: number of rows between two windows of a series, counted from its end; by default the
            horizon, so that windows do not overlap.

    Returns:
        The units are the windows, named after the series and the time of the first step. Each
        window and step ahead has "mse", "mae", "smape", "mase" (in units of the seasonal naive
        error before the window; NaN if that is 0), and with quantiles "pinball", "crps", and the
        "coverage" and "width" of the interval between the outermost quantiles. "rmse" is that of
        all windows.

    Raises:
        ValueError: series that the model cannot read, or that are too short, see `origins`.

    >>> from jaxops import forecast
    >>> model = forecast.fit(forecast.from_arrays(["a"], [range(60)]), forecast.Baseline("drift"),
    ...                      horizon=2, levels=(), progress=False)
    >>> forecast.evaluate(model, forecast.from_arrays(["a"], [range(80)]), rows=10).figures()["mae"]
    0.0
    """
    reader = reader_of(model)
    series = reader.series(data)
    horizon = reader.horizon
    _, test = _parts(series, horizon if rows is None else whole("rows", rows, horizon))
    stride = horizon if stride is None else whole("stride", stride, 1)
    windows = origins(series, 1, horizon, test, stride=stride)
    return _scored(model, series, windows, reader, stride)


def update(model: Model, new: Source, epochs: int = 1, **options: Any) -> Model:
    """Train the networks of a model further on new rows, from their present parameters.

    Methods without training need no update, because they read each history whole. The weights and
    the conformal margins do not change.

    Args:
        model: a model from `fit`.
        new: the series to train on, see `fit`. All their windows are used, so give only the new
            rows and one context before them. The series may be new ones.
        epochs: passes over the windows.
        **options: arguments of `jaxops.fit`, which replace the defaults of `recipe`.

    Raises:
        ValueError: series that the model cannot read, or that are all too short for a window.

    >>> from jaxops import forecast
    >>> from jaxops.optim import adam
    >>> tide = forecast.from_arrays(["a"], [np.arange(80) % 4])
    >>> model = forecast.fit(tide, forecast.NLinear(8, 2), horizon=2, levels=(), epochs=1,
    ...                      progress=False)
    >>> newer = forecast.update(model, tide, epochs=50, optimizer=adam(0.02), progress=False)
    >>> before, after = (forecast.evaluate(x, tide, rows=20).figures() for x in (model, newer))
    >>> after["mae"] < 0.5 * before["mae"]
    True
    """
    series = reader_of(model).series(new)
    method = _continued(answering(model), series, chosen({"epochs": epochs}, options))
    about = {**model.about, "updated with": fingerprint({"values": series.values})}
    return replace(model, task=method, about=about)


def _settled(reader: SeriesReader, data: Any, series: Series, season: int | None) -> SeriesReader:
    """The reader with the settings of the training series; for a `Series`, its columns as well."""
    typical = int(np.median(series.lengths))
    found: dict[str, Any] = {
        "frequency": series.frequency,
        "zone": reader.zone or series.zone,
        "season": season_of(series.frequency, typical)
        if season is None
        else whole("season", season, 1),
    }
    if isinstance(data, Series):
        found |= {"value": data.channels, "known": data.known_names}
        found |= {"past": data.past_names, "static": data.static_names}
    return replace(reader, **found)


def _held(series: Series, horizon: int, validation: int | None) -> int:
    """Number of rows at the end of each series for validation."""
    if validation is None:
        return held_rows(series.lengths, horizon)
    return whole("validation", validation, horizon)


def _check_levels(
    series: Series, windows: Windows, levels: tuple[float, ...], context: int, season: int
) -> None:
    """Before any training, raise the `ValueError` that `calibrated` would raise."""
    if levels:
        unit = units(history(series, windows, context), context, season)
        check_enough(np.asarray((unit > 0).all(1)), levels)


def _listed(method: Any) -> list[Any]:
    return list(method) if isinstance(method, list | tuple) else [method]


def _to_compare(series: Series, method: Any, season: int, horizon: int, held: Rows) -> Windows:
    """Validation windows whose history is longer than a season of the series or of a method."""
    longest = max([season, *(getattr(unwrapped(x), "season", 1) for x in _listed(method))])
    least = longest + 1 + horizon
    if (series.lengths < least).all():
        s = int(series.lengths.argmax())
        raise ValueError(
            f"series must have at least {least} rows (more than a season of {longest} and a "
            f"horizon of {horizon}), got at most {series.lengths[s]}, in {str(series.ids[s])!r}"
        )
    return windows_of(series, longest + 1, horizon, held)


def _checked(
    method: Any, horizon: int, options: dict[str, Any], covariates: Sequence[Sequence[str]]
) -> list[Any]:
    """The methods as a list, checked; `covariates` are those that the user gave."""
    several = _listed(method)
    if not several:
        raise ValueError("method must be at least 1, got none")
    for one in several:
        forecasts = hasattr(one, "answer") or isinstance(one, nn.Module | Model)
        if isinstance(one, type) or not forecasts:
            raise ValueError(f"method must be a module or a model that forecasts, got {one!r:.80}")
        own = getattr(unwrapped(one), "horizon", horizon)
        if own != horizon:
            raise ValueError(f"horizon must be {own} for {name_of(one)}, got {horizon}")
    _check_trained(several, options, "methods without training")
    given = tuple(name for names in covariates for name in reading.names(names))
    if given and all(isinstance(unwrapped(one), Baseline) for one in several):
        raise ValueError(
            f"known, past and static must be () for baselines, which use none, got {given}"
        )
    return several


def _check_trained(several: list[Any], options: dict[str, Any], why: str) -> None:
    """Raise `ValueError` for training options without effect, or one directory for several runs."""
    networks = sum(isinstance(unwrapped(one), nn.Module) for one in several)
    if options and not networks:
        raise ValueError(f"options must be none for {why}, got {', '.join(options)}")
    check_one_directory(options, 2 * networks)


def _parts(series: Series, held: int) -> tuple[Rows, Rows]:
    """The rows of each series without its last `held` (at least one row), and these last rows."""
    begin, end = series.offsets[:-1], series.offsets[1:]
    middle = np.minimum(np.maximum(end - held, begin + 1), end)
    return np.stack([begin, middle], 1), np.stack([middle, end], 1)


def _scored(
    model: Any, series: Series, windows: Windows, reader: SeriesReader, stride: int | None = None
) -> Evaluation:
    horizon, levels = reader.horizon, levels_of(answering(model))
    test = historical_forecasts(model, series, windows, horizon, levels)
    finite = np.isfinite(test.mean).all((1, 2)) & np.isfinite(test.quantiles).all((1, 2, 3))
    if stride is None:  # called by `fit`, whose windows need no quantiles to be compared
        windows = {name: column[finite] for name, column in windows.items()}
        test, finite = Backtest(*(part[finite] for part in test)), finite[finite]
        again = np.diff(windows["series"]) == 0
        steps = np.diff(windows["origin"])[again]
        stride = int(steps.min()) if len(steps) else horizon
    scale = seasonal_errors(series, windows, reader.season)
    defined: np.ndarray = np.all(scale > 0, 1)
    start = windows["origin"] - series.offsets[windows["series"]]
    times = grid.moved(series.start[windows["series"]], start, series.frequency)
    names = zip(series.ids[windows["series"]], times.astype(str), strict=True)
    ids = np.array([f"{name} {when}" for name, when in names], object)
    if not finite.all():
        raise ValueError(
            "rows must leave each window a history that is long enough for the model, got too few "
            f"before {ids[finite.argmin()]!r} ({(~finite).sum():,} of {len(finite):,} windows)"
        )
    scored = score(
        test.mean,
        test.target,
        np.where(defined[:, None], scale, 1.0) if defined.any() else None,
        test.quantiles if levels else None,
        levels,
        (test.quantiles[..., 0], test.quantiles[..., -1]) if len(levels) > 1 else None,
        block=-(-horizon // stride),
        ids=ids,
    )
    if defined.any():
        scored.values["mase"][~defined] = np.nan
    return replace(scored, parts={"forecast": test.mean, "target": test.target})


def _continued(method: Any, series: Series, options: dict[str, Any]) -> Any:
    """A finished method after further training of the networks in it."""
    if isinstance(method, LogScale):
        return LogScale(_continued(method.model, logarithms(series), options))
    if isinstance(method, Conformal):
        return replace(method, model=_continued(method.model, series, options))
    if isinstance(method, Ensemble):
        members = tuple(_continued(one, series, options) for one in method.members)
        return replace(method, members=members)
    if not isinstance(method, Forecaster):
        return method
    method.check(series)
    module, scales = method.module, _widened(method.scaling, series)
    task = direct(module, series, scales, partial=True)
    windows = origins(series, module.context, module.horizon, short="skip", partial=True)
    names = ("batch_size", "epochs", "steps")
    settings = recipe(len(windows["origin"]), np.inf, *(options.get(name) for name in names))
    settings = chosen(settings | {"early_stopping": None}, options)
    first = {name: column[:1] for name, column in windows.items()}
    variables = {**jax.tree.map(jnp.asarray, method.variables)}
    state = init_state(task, settings["optimizer"], settings.get("seed", 0), first)
    state = state._replace(
        params=variables.pop("params", {}), extra={**state.extra, "network": variables}
    )
    state = train(task, windows, state=state, **settings)
    return replace(forecaster(module, state, series, scales), lengthens=method.lengthens)


def _widened(scales: Scaling, series: Series) -> Scaling:
    """A scaling with new series added, each scaled by its own rows."""
    new = ~np.isin(series.ids.astype(str), scales.ids.astype(str))
    if scales.kind != "series" or not new.any():
        return scales
    loc, scale = scales.of(some := series.part(new))
    return scales._replace(
        loc=np.concatenate([scales.loc, loc]),
        scale=np.concatenate([scales.scale, scale]),
        ids=np.concatenate([scales.ids.astype(object), some.ids.astype(object)]),
    )
