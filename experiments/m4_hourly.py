"""M4 hourly: 414 series of 700 or 960 hours, the next 48 of each.

Every method forecasts the last 48 hours of the training part from what is before them, and then
the 48 hours of the test from all of it; the one with the least OWA on the former (relative to
`naive 2`, as M4 has it) gives the figures, the others are the rows beside it. MASE is scaled by
the training part's error of the hour a day before. Intervals, over series, are printed.

Published (Makridakis, Spiliotis and Assimakopoulos 2020), sMAPE / MASE: naive 43.003 / 11.608,
seasonal naive 13.912 / 1.193, naive 2 18.383 / 2.395, Theta 18.138 / 2.455, ETS 17.307 / 1.824,
the winner (Smyl) 9.328 / .893, ProLogistica 9.611 / .873. The first
four come out exactly; ours of ETS has damped trends only, 17.09 / 1.66. Seconds of statsforecast's
AutoETS and AutoTheta are in `benchmarks.statistical`.

    python -m experiments.m4_hourly [--seeds 3]
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments import common
from jaxops import forecast

PUBLISHED = {"smape": "9.328 (Smyl, the winner)", "mase": "0.893 (Smyl, the winner)"}
SEASON, HORIZON = 24, 48


@dataclass(frozen=True)
class Settings(common.Settings):
    """Nothing of its own so far: baselines have no settings."""


class Hourly(NamedTuple):
    """Series of different lengths, and what came next: (S, 48)."""

    history: list[np.ndarray]
    target: np.ndarray

    def earlier(self) -> "Hourly":
        """The same a horizon before, for validation."""
        return Hourly(
            [x[:-HORIZON] for x in self.history], np.stack([x[-HORIZON:] for x in self.history])
        )


def read(smoke: bool) -> Hourly:
    """M4's files in JAXOPS_DATA_DIR/m4; for a smoke test twelve series, made up without them."""
    folder = Path(os.environ.get("JAXOPS_DATA_DIR", "/nowhere"), "m4")
    if not folder.exists():
        if not smoke:
            raise FileNotFoundError(
                f"{folder} is not there; get Hourly-train.csv and Hourly-test.csv from "
                "github.com/Mcompetitions/M4-methods, gzip them, and set JAXOPS_DATA_DIR"
            )
        print("data: made up, for M4 hourly is not there")
        rng, hours = np.random.default_rng(0), np.arange(300 + HORIZON)
        waves = 10 + 3 * np.sin(2 * np.pi * hours / SEASON)[None] + rng.normal(size=(12, 348))
        waves = waves.astype(np.float32)
        return Hourly([x[: 250 + 4 * i] for i, x in enumerate(waves[:, :300])], waves[:, 300:])
    train, test = (rows(folder / f"Hourly-{name}.csv.gz") for name in ("train", "test"))
    some = slice(0, None, 35 if smoke else 1)
    return Hourly(train[some], np.stack(test[some]))


def rows(file: Path) -> list[np.ndarray]:
    """One float32 series a row, without the blanks at its end."""
    import pandas as pd

    table = pd.read_csv(file, index_col=0).to_numpy(np.float32)
    return [row[~np.isnan(row)] for row in table]


Method = Callable[[Hourly], np.ndarray]  # gives (S, 48); does not look at the target


def baselines(settings: Settings) -> dict[str, Method]:
    """Methods without training."""
    forms = {"forms": ("ANN",)} if settings.smoke else {}

    def of(baseline: Callable[..., Any], *rest: Any, **more: Any) -> Method:
        def method(data: Hourly) -> np.ndarray:
            offsets = np.cumsum([0] + [len(x) for x in data.history])
            values, lengths = forecast.padded(np.concatenate(data.history), offsets)
            return np.asarray(baseline(values, HORIZON, *rest, lengths=lengths, **more))

        return method

    return {
        "naive": of(forecast.repeat_last),
        "seasonal naive": of(forecast.seasonal_naive, SEASON),
        "drift": of(forecast.drift),
        "naive 2": of(forecast.naive2, SEASON),
        "Theta": of(forecast.theta_method, SEASON),
        "ETS": of(forecast.exponential_smoothing, SEASON, **forms),
    }


def scored(data: Hourly, found: np.ndarray) -> forecast.Scores:
    """All metrics, one window a series."""
    scale = np.concatenate([forecast.seasonal_scale(x[None], SEASON) for x in data.history])
    return forecast.score(found[..., None], data.target[..., None], scale)


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Score every method on validation and test; validation chooses."""
    data = read(settings.smoke)
    methods = baselines(settings)  # | learned methods of this seed
    validation, test, found, seconds = {}, {}, {}, {}
    for name, method in methods.items():
        validation[name] = scored(data.earlier(), method(data.earlier()))
        start = time.perf_counter()
        found[name] = method(data)
        seconds[name] = time.perf_counter() - start
        test[name] = scored(data, found[name])
    print(forecast.table(test, ["smape", "mase"]))
    owa = relative(validation)
    best = min(owa, key=lambda name: owa[name])
    common.say(f"validation chooses {best}, with an OWA of {owa[best]:.3f}")
    overall = relative(test)
    figures = {
        name: {key: one.figures()[key] for key in ("smape", "mase")}
        | {"owa": overall[name], "validation_owa": owa[name], "seconds": seconds[name]}
        for name, one in test.items()
    }
    chosen = {key: figures[best][key] for key in ("smape", "mase", "owa")}
    draw(data, best, found[best], folder / "forecasts.png")
    return chosen | {"models": figures}


def relative(scores: dict[str, forecast.Scores]) -> dict[str, float]:
    """OWA of each."""
    figures = {name: one.figures() for name, one in scores.items()}
    base = figures["naive 2"]
    return {
        name: forecast.owa(one["smape"], one["mase"], base["smape"], base["mase"])
        for name, one in figures.items()
    }


def draw(data: Hourly, name: str, found: np.ndarray, file: Path) -> None:
    """Six series' last three days, what came, and what was forecast."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(3, 2).flat
    for axes, s in zip(panels, np.linspace(0, len(found) - 1, 6).astype(int), strict=True):
        past, ahead = np.arange(-72, 0), np.arange(HORIZON)
        axes.plot(past, data.history[s][-72:], color="#767676")
        axes.plot(ahead, data.target[s], color="#767676", label="came")
        axes.plot(ahead, found[s], color="#D55E00", label=name)
        axes.set_title(f"series {s}", fontsize=9)
    figure.axes[0].legend()
    figure.supxlabel("hours ahead")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    common.experiment("m4_hourly", Settings, run, PUBLISHED)
