"""The methods of `fit`: trained in turn, weighted by validation, and trained again on all rows."""

import time as clock
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np

from jaxops.forecast.backtests import historical_forecasts
from jaxops.forecast.data.scales import scaling
from jaxops.forecast.data.series import Series
from jaxops.forecast.data.windows import Rows, Windows, origins
from jaxops.forecast.ensembles import Ensemble, LogScale, logarithms
from jaxops.forecast.inference import answering, forecaster
from jaxops.forecast.recipes import name_of, recipe, seasonal_errors
from jaxops.forecast.tasks import direct
from jaxops.model.selection import greedy
from jaxops.train.loop import fit as train

WINDOWS = 500  # about the largest number of validation windows; each series has at least one


def windows_of(series: Series, context: int, horizon: int, rows: Rows) -> Windows:
    """Validation windows, with a stride so that there are not many more than needed."""
    dense = int(np.maximum(rows[:, 1] - rows[:, 0] - horizon + 1, 0).sum())
    stride = min(horizon, max(1, dense // WINDOWS))
    return origins(series, context, horizon, rows, stride=stride, short="skip")


def unwrapped(method: Any) -> Any:
    """The method that a `LogScale` wraps, or the method itself."""
    return unwrapped(method.model) if isinstance(method, LogScale) else method


class Learned(NamedTuple):
    """A method after training.

    Attributes:
        model: the trained model.
        again: settings to train it again; empty for methods without training.
        seconds: time that the training took.
    """

    model: Any
    again: dict[str, Any]
    seconds: float = 0.0


def try_all(
    several: list[Any], series: Series, rows: Rows, held: Rows, run: dict[str, Any], end: float
) -> list[Learned]:
    """`trained` for each method, with an equal share of the time until `end` for each network."""
    learned = []
    for place, one in enumerate(several):
        if run["progress"]:
            print(f"method {place + 1} of {len(several)}: {name_of(one)}")
        to_come = sum(isinstance(unwrapped(x), nn.Module) for x in several[place:])
        begin = clock.monotonic()
        left = (end - begin) / (2 * max(1, to_come))  # each network is trained twice
        done = trained(one, series, rows, held, run, left)
        learned.append(done._replace(seconds=clock.monotonic() - begin))
    return learned


def retrained(
    several: list[Any],
    weights: tuple[float, ...],
    learned: list[Learned],
    series: Series,
    run: dict[str, Any],
    end: float,
) -> list[Any]:
    """The methods with a weight, trained again on all rows as far as the time allows."""
    rows = np.stack([series.offsets[:-1], series.offsets[1:]], 1)
    models = []
    for one, weight, done in zip(several, weights, learned, strict=True):
        models.append(done.model)
        if not done.again or not weight:
            continue
        if clock.monotonic() + done.seconds < end:
            models[-1] = trained(one, series, rows, None, run | done.again).model
        elif run["progress"]:
            print(f"{name_of(one)}: not trained again on all rows, because no time was left")
    return models


def trained(
    method: Any,
    series: Series,
    rows: Rows,
    held: Rows | None,
    run: dict[str, Any],
    left: float = np.inf,
) -> Learned:
    """The method after training on the windows in `rows`, and the settings to train it again.

    Methods without training are returned unchanged. With `held`, training ends at the best epoch;
    without it, after the share of all updates that `run` gives.
    """
    if isinstance(method, LogScale):
        inner = trained(method.model, logarithms(series), rows, held, run, left)
        return inner._replace(model=LogScale(inner.model))
    if not isinstance(method, nn.Module):
        return Learned(answering(method), {})
    module: Any = method
    kind = "none" if module.output.scale_only else "series"
    scales = scaling(series, kind, rows)
    task = direct(module, series, scales, partial=True)
    form = module.context, module.horizon
    windows = origins(series, *form, rows, short="skip", partial=True)
    count = len(windows["origin"])
    run = {**run}
    share = run.pop("share", 1.0)
    settings = recipe(count, left, *(run.get(x) for x in ("batch_size", "epochs", "steps"))) | run
    again = {name: settings[name] for name in ("batch_size", "epochs", "steps")}
    updates = settings["steps"] or settings["epochs"] * -(-count // settings["batch_size"])
    if held is None:
        settings |= {"early_stopping": None, "metrics": None, "epochs": None}
        settings["steps"] = round(share * updates)
    else:
        whole = windows_of(series, *form, held)
        steps = np.full_like(whole["origin"], module.horizon)
        settings["validation"] = {**whole, "steps": steps}
    state = train(task, windows, **settings)
    again["share"] = int(state.step) / max(1, updates)
    model = forecaster(module, state, series, scales)
    return Learned(replace(model, lengthens=True), again)


def weighed(
    models: list[Any], series: Series, windows: Windows, horizon: int, season: int
) -> tuple[tuple[float, ...], list[float]]:
    """The weight of each model, and its mean absolute scaled error, on validation windows."""
    unit = seasonal_errors(series, windows, season)
    used = (unit > 0).all(1)
    if not used.any():
        unit, used = np.ones_like(unit), np.ones_like(used)
    unit = unit[:, None]
    forecasts = []
    for model in models:
        test = historical_forecasts(model, series, windows, horizon)
        if lost := int((~np.isfinite(test.mean)).any((1, 2)).sum()):
            raise ValueError(
                f"method must forecast finite numbers, got NaN or infinity of {name_of(model)} in "
                f"{lost:,} of {len(test.mean):,} validation windows"
            )
        forecasts.append(test.mean[used] / unit[used])
    target = test.target[used] / unit[used]
    errors = [float(np.abs(one - target).mean()) for one in forecasts]
    weights = greedy(forecasts, lambda mean: float(np.abs(mean - target).mean()))
    return tuple(weights.tolist()), errors


def joined(models: Sequence[Any], weights: tuple[float, ...]) -> Any:
    """The models that have a weight, as one model."""
    pairs = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight > 0]
    if len(pairs) == 1:
        return pairs[0][0]
    return Ensemble(tuple(model for model, _ in pairs), tuple(weight for _, weight in pairs))
