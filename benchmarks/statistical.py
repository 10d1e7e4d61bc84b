"""Seconds and errors of exponential smoothing and Theta beside statsforecast's, on M4 hourly.

    python -m benchmarks.statistical [--series 414] [--rounds 3] [--no-statsforecast]

414 series of 700 or 960 hours, 48 ahead (JAXOPS_DATA_DIR/m4). statsforecast (2.1.1 is what was
measured; not a dependency of jaxops) gets its frame ready and one process a core: the seconds are
those of `forecast`, which fits and forecasts; it goes first, for its processes are forked, which
JAX, once started, forbids. Its AutoETS chooses among the same kinds of forms,
straight trends too, AutoTheta among four variants of the method. jaxops gets the padded array; its
first call, with compilation, is reported separately. Each line has the median of the rounds.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from jaxops import forecast
from jaxops.forecast.classical.recursions import FORMS
from jaxops.trust import report

SEASON, HORIZON = 24, 48
PUBLISHED = {  # M4's own, sMAPE and MASE
    "seasonal naive": "13.912 1.193",
    "naive 2": "18.383 2.395",
    "Theta": "18.138 2.455",
    "ETS": "17.307 1.824",
}


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    series: int = 414
    """the first so many"""
    rounds: int = 1
    statsforecast: bool = True
    processes: int = 2
    """of statsforecast"""


def hourly(name: str) -> list[np.ndarray]:
    """The series of M4 hourly's train or test file, float32."""
    import pandas as pd

    file = Path(os.environ["JAXOPS_DATA_DIR"], "m4", f"Hourly-{name}.csv.gz")
    table = pd.read_csv(file, index_col=0).to_numpy(np.float32)
    return [row[~np.isnan(row)] for row in table]


def ours(values: np.ndarray, lengths: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Forecasts (B, H) by name."""
    rest = (HORIZON, SEASON, lengths)
    return {
        "seasonal naive": lambda: forecast.seasonal_naive(values, *rest),
        "naive 2": lambda: forecast.naive2(values, *rest),
        "Theta": lambda: forecast.theta_method(values, *rest),
        "ETS": lambda: forecast.exponential_smoothing(values, *rest),
        "ETS, straight trends too": lambda: forecast.exponential_smoothing(
            values, *rest, forms=FORMS
        ),
    }


def theirs(series: list[np.ndarray], processes: int) -> dict[str, Callable[[], Any]]:
    """The same of statsforecast."""
    import pandas as pd
    from statsforecast import StatsForecast
    from statsforecast.models import AutoETS, AutoTheta

    names = np.repeat(np.arange(len(series)), [len(x) for x in series])
    hours = np.concatenate([np.arange(len(x)) for x in series])
    frame = pd.DataFrame({"unique_id": names, "ds": hours, "y": np.concatenate(series)})

    def form(model: Any) -> Callable[[], np.ndarray]:
        def run() -> np.ndarray:
            whole = StatsForecast(models=[model], freq=1, n_jobs=processes)
            column = whole.forecast(df=frame, h=HORIZON)[repr(model)]
            return column.to_numpy().reshape(len(series), HORIZON)

        return run

    models = AutoETS(season_length=SEASON), AutoTheta(season_length=SEASON)
    return {f"statsforecast's {model!r}": form(model) for model in models}


def timed(
    forms: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """What each form gave, and the median of its seconds."""
    results, seconds = {}, {}
    for name, form in forms.items():
        taken = []
        for _ in range(rounds):
            start = time.perf_counter()
            results[name] = np.asarray(form())
            taken.append(time.perf_counter() - start)
        seconds[name] = median(taken)
    return results, seconds


def main(settings: Settings) -> None:
    """Print one line a method."""
    series = hourly("train")[: settings.series]
    target = np.stack(hourly("test")[: settings.series])[..., None]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in series])])
    values, lengths = forecast.right_aligned(np.concatenate(series), offsets)
    scale = forecast.seasonal_scale(values, SEASON, lengths)
    forms = theirs(series, settings.processes) if settings.statsforecast else {}
    results, seconds = timed(forms, settings.rounds)
    own = ours(values, lengths)
    _, first = timed(own, 1)
    more, shorter = timed(own, settings.rounds)
    results, seconds = results | more, seconds | shorter
    rows = []
    for name, result in results.items():
        figures = forecast.score(result[..., None], target, scale).figures()
        row = {"method": name, "sMAPE": f"{figures['smape']:.3f}"}
        known = PUBLISHED.get(name, "") if len(series) == 414 else ""
        row |= {"MASE": f"{figures['mase']:.3f}", "published": known}
        row["seconds"] = f"{seconds[name]:.2f}"
        row["first call"] = f"{first[name]:.1f}" if name in first else ""
        rows.append(row)
    print(f"{len(series)} series, {HORIZON} hours ahead")
    print(report.table(rows))


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
