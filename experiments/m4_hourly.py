"""M4's 414 hourly series, the next 48 hours of each: global models beside classical ones.

The global models see logarithms: their absolute error is close to the percentage error that sMAPE
measures, and series of all sizes become alike. Three N-HiTS with contexts of one, two and three
weeks are averaged. Their settings were chosen by the last 48 hours of the training rows
(validation, a row's `validation_smape`); then all are trained again, for as many epochs, on all
training rows. The ensemble has conformal intervals, with margins from validation: `coverage_80` is
the share of test values between the quantiles 0.1 and 0.9.

Published sMAPE / MASE (M4, Makridakis et al. 2020): naive 43.003 / 11.608, seasonal naive 13.912 /
1.193, naive 2 18.383 / 2.395, Theta 18.138 / 2.455, ETS 17.307 / 1.824, the winner (Smyl) 9.328 /
0.893, ProLogistica 9.611 / 0.873. `owa` is the mean of both relative to naive 2. The ETS here has
damped trends only.

Expected over three seeds: sMAPE 8.28 +- 0.06, MASE 0.774 +- 0.005, `coverage_80` 0.813; single
models 8.6 to 8.8. Five and a half minutes on two cores.

    JAXOPS_DATA_DIR=DATA python -m experiments.m4_hourly [--seeds 3]
"""

import csv
import functools
import gzip
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optax

import jaxops as jo
from experiments import common
from jaxops import forecast as f
from jaxops.trust import report

PUBLISHED = {"smape": "9.328 (Smyl, the winner)", "mase": "0.873 (ProLogistica)"}
SEASON, HORIZON = 24, 48
LEVELS = (0.1, 0.5, 0.9)
BASELINES = {
    "naive": f.Baseline("repeat_last"),
    "seasonal_naive": f.Baseline("seasonal_naive", SEASON),
    "naive_2": f.Baseline("naive2", SEASON),
    "theta": f.Baseline("theta", SEASON),
    "ets": f.Baseline("ets", SEASON),
}


@dataclass(frozen=True)
class Settings(common.Settings):
    """The networks."""

    weeks: tuple[int, ...] = (1, 2, 3)
    """that each member of the ensemble looks back"""
    width: int = 256
    epochs: int = 5
    batch_size: int = 256
    learning_rate: float = 1e-3


def read(smoke: bool) -> f.Series:
    """All rows, the 48 of test at the end of each series; made-up ones for a smoke test."""
    if smoke:
        draw, hours = np.random.default_rng(0), np.arange(340)
        made = [
            size * np.exp(0.3 * np.sin(hours / 24 * 2 * np.pi) + draw.normal(0, 0.05, 340))
            for size in np.geomspace(10, 1000, 9)
        ]
        return f.from_arrays([f"H{i}" for i in range(9)], made)
    folder = Path(os.environ.get("JAXOPS_DATA_DIR", ".")) / "m4"
    parts = []
    for name in ("train", "test"):
        with gzip.open(folder / f"Hourly-{name}.csv.gz", "rt") as file:
            rows = list(csv.reader(file))[1:]
        parts.append({row[0]: [float(x) for x in row[1:] if x] for row in rows})
    train, test = parts
    return f.from_arrays(list(train), [train[name] + test[name] for name in train])


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Baselines, networks and their ensemble."""
    series = read(settings.smoke)
    logs = replace(series, values=np.log(series.values))
    scaling = f.scaling(logs, "none")
    parts = f.split(series, None, HORIZON, HORIZON)
    validation, test = (
        f.origins(series, 0, HORIZON, rows) for rows in (parts.validation, parts.test)
    )
    target = {
        name: series.values[w["origin"][:, None] + np.arange(HORIZON)]
        for name, w in (("validation", validation), ("test", test))
    }
    before = f.history(series, test)
    values, lengths = f.right_aligned(before.values[:, 0], before.offsets)
    scale = f.seasonal_scale(values, SEASON, lengths)
    forecasts, rows = {}, {}
    for name, model in BASELINES.items():
        begin = time.perf_counter()
        forecasts[name] = f.forecast(model, before, HORIZON, levels=()).mean
        rows[name] = {"seconds": time.perf_counter() - begin}
    chosen: list[f.Forecaster] = []
    final: list[f.Forecaster] = []
    until_test = np.stack([parts.train[:, 0], parts.validation[:, 1]], 1)
    for weeks in (1,) if settings.smoke else settings.weeks:
        name = f"nhits_{weeks}_weeks"
        begin = time.perf_counter()
        common.say(f"seed {seed}: {name}, without and with the validation rows")
        small: dict[str, Any] = {}
        if settings.smoke:
            small = {"pool": (2,), "downsample": (4,), "depth": 1}
        network = f.NHiTS(
            7 * SEASON * weeks, HORIZON, f.Point("mae"), "mean_std", width=settings.width, **small
        )
        task = f.direct(network, logs, scaling)  # one, so that it compiles once
        for models, learned, kind in (
            (chosen, parts.train, "chosen"),
            (final, until_test, "final"),
        ):
            state = train(settings, network, task, logs, learned, seed, folder / name / kind)
            models.append(f.forecaster(network, state, logs, scaling))
        rows[name] = {"seconds": time.perf_counter() - begin}
        forecasts[name] = np.exp(f.forecast(final[-1], f.history(logs, test), levels=()).mean)
        rows[name] |= validated(chosen[-1], logs, validation, target["validation"])
    one, all_rows = (f.Ensemble(tuple(members)) for members in (chosen, final))
    rows["ensemble"] = validated(one, logs, validation, target["validation"])
    margins = f.calibrated(one, logs, validation, HORIZON, LEVELS, 10 * SEASON, SEASON)
    answer = f.forecast(replace(margins, model=all_rows), f.history(logs, test), levels=LEVELS)
    forecasts["ensemble"] = np.exp(answer.mean)
    bounds = np.exp(answer.quantiles[..., 0]), np.exp(answer.quantiles[..., -1])
    scores = {
        name: f.score(x, target["test"], scale, bounds=bounds if name == "ensemble" else None)
        for name, x in forecasts.items()
    }
    table = f.table(scores, ["smape", "mase"])
    (folder / "table.md").write_text(table + "\n")
    common.say(table)
    plot(series, test, forecasts["ensemble"], bounds, folder / "series.png")
    for name, one_score in scores.items():
        figures = one_score.figures()
        rows[name] |= {"smape": figures["smape"], "mase": figures["mase"]}
    naive = rows["naive_2"]
    for row in rows.values():
        row["owa"] = f.owa(row["smape"], row["mase"], naive["smape"], naive["mase"])
    rows["ensemble"]["coverage_80"] = float(f.coverage(*bounds, target["test"]).mean())
    best = {name: rows["ensemble"][name] for name in ("smape", "mase", "owa", "coverage_80")}
    return best | {"models": rows}


@functools.cache
def optimizer(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam under half a cosine; one for equal arguments, so that it compiles once."""
    return jo.optim.adam(optax.cosine_decay_schedule(rate, steps))


def train(
    settings: Settings,
    network: f.NHiTS,
    task: jo.Task,
    logs: f.Series,
    rows: np.ndarray,
    seed: int,
    folder: Path,
) -> jo.TrainState:
    """The network after all windows whose targets lie in `rows`."""
    windows = f.origins(logs, network.context, HORIZON, rows)
    if settings.smoke:  # as many without the validation rows as with them: one compilation
        windows = {name: column[:256] for name, column in windows.items()}
    epochs = 1 if settings.smoke else settings.epochs
    steps = epochs * -(-len(windows["origin"]) // settings.batch_size)
    log = common.Log(folder, settings.resume)
    state = jo.fit(
        task,
        windows,
        optimizer=optimizer(settings.learning_rate, steps),
        batch_size=settings.batch_size,
        epochs=epochs,
        seed=seed,
        checkpoints=jo.Checkpoints(folder / "checkpoints", resume=settings.resume),
        reports=log,
    )
    report.plot_curves(log.records, folder / "curves.png")
    return state


def validated(
    model: Any, logs: f.Series, windows: f.Windows, target: np.ndarray
) -> dict[str, float]:
    """The sMAPE of the validation hours."""
    mean = np.exp(f.forecast(model, f.history(logs, windows), levels=()).mean)
    return {"validation_smape": float(f.smape(mean, target).mean())}


def plot(
    series: f.Series,
    test: f.Windows,
    mean: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    file: Path,
) -> None:
    """Six series: the last week, what was forecast, and what came."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    chosen = np.linspace(0, len(series) - 1, 6).astype(int)
    for axes, s in zip(figure.subplots(2, 3).flat, chosen, strict=True):
        origin = test["origin"][s]
        ahead = np.arange(HORIZON)
        past = np.arange(-7 * SEASON, HORIZON)
        axes.plot(past, series.values[origin + past, 0], color="black", lw=0.8, label="what came")
        axes.plot(ahead, mean[s, :, 0], color="tab:blue", lw=1.2, label="forecast")
        axes.fill_between(ahead, *(b[s, :, 0] for b in bounds), alpha=0.25, label="80 %")
        axes.set(title=str(series.ids[s]), xlabel="hours")
    figure.axes[0].legend(fontsize="small")
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    common.experiment("m4_hourly", Settings, run, PUBLISHED)
