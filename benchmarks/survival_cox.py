"""Seconds of Cox's regression beside lifelines' and scikit-survival's, and of the concordance.

    python -m benchmarks.survival_cox [--rows 1000000] [--others 100000] [--rounds 3]

Made-up rows: standard normal features, an exponential hazard, half of the rows censored, times
rounded so that there are ties. All sides use Efron's method and get arrays (lifelines a frame)
ready; lifelines' concordance, which its `fit` computes only when asked, is not part of its time.
The others see `--others` rows, as they take too long for all of them; jaxops is timed on both
numbers. Its first call, with compilation, is reported separately. The sides take turns; each line
has the median of the rounds, and the largest difference of a coefficient from jaxops' in standard
errors.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from jaxops import survival
from jaxops.trust import report


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    rows: int = 1_000_000
    """of jaxops"""
    others: int = 100_000
    """rows of the others, and of jaxops once more"""
    features: int = 20
    rounds: int = 3
    lifelines: bool = True
    sksurv: bool = True


def made_up(rows: int, features: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, times and events."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, features))
    until = rng.exponential(np.exp(-x @ rng.normal(0, 0.3, features)))
    stop = rng.exponential(1.0, rows)
    return x, np.minimum(until, stop).round(4) + 1e-4, until <= stop


def ours(x: np.ndarray, t: np.ndarray, event: np.ndarray) -> Callable[[], Any]:
    def run() -> np.ndarray:
        return survival.cox_regression(x, t, event).coefficients

    return run


def of_lifelines(x: np.ndarray, t: np.ndarray, event: np.ndarray) -> Callable[[], Any]:
    import pandas as pd
    from lifelines import CoxPHFitter

    frame = pd.DataFrame(x, columns=[f"x{i}" for i in range(x.shape[1])])
    frame["time"], frame["event"] = t, event

    def run() -> np.ndarray:
        return CoxPHFitter().fit(frame, "time", "event").params_.to_numpy()

    return run


def of_sksurv(x: np.ndarray, t: np.ndarray, event: np.ndarray) -> Callable[[], Any]:
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    y = Surv.from_arrays(event, t)

    def run() -> np.ndarray:
        return CoxPHSurvivalAnalysis(ties="efron").fit(x, y).coef_

    return run


def concordances(x: np.ndarray, t: np.ndarray, event: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Harrell's concordance of the first feature."""
    from lifelines.utils import concordance_index
    from sksurv.metrics import concordance_index_censored

    risk = x[:, 0]
    few = slice(min(len(x), 20_000))
    return {
        "jaxops": lambda: survival.concordance(t, event, risk),
        "lifelines": lambda: concordance_index(t, -risk, event),
        "scikit-survival, 20,000 rows": lambda: concordance_index_censored(
            event[few], t[few], risk[few]
        )[0],
    }


def timed(forms: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, Any], Any]:
    """What each form gave, and its seconds, in turns."""
    results: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, form in forms.items():
            start = time.perf_counter()
            results[name] = form()
            seconds[name].append(time.perf_counter() - start)
    return results, seconds


def main(settings: Settings) -> None:
    """Print the tables."""
    x, t, event = made_up(settings.rows, settings.features)
    few = slice(settings.others)
    part = x[few], t[few], event[few]
    forms = {"jaxops": ours(*part)}
    if settings.lifelines:
        forms["lifelines"] = of_lifelines(*part)
    if settings.sksurv:
        forms["scikit-survival"] = of_sksurv(*part)
    first = {}
    for name, form in {f"jaxops, {settings.rows:,} rows": ours(x, t, event), **forms}.items():
        if name.startswith("jaxops"):
            start = time.perf_counter()
            form()
            first[name] = time.perf_counter() - start
    results, seconds = timed(forms, settings.rounds)
    large = {f"jaxops, {settings.rows:,} rows": ours(x, t, event)}
    more, longer = timed(large, settings.rounds)
    results, seconds = results | more, seconds | longer
    error = survival.cox_regression(*part).frame()["error"].to_numpy()
    rows = []
    for name, values in seconds.items():
        apart = np.abs(results[name] - results["jaxops"]) / error
        rows.append(
            {
                "Cox": name,
                "rows": f"{settings.rows if name in large else settings.others:,}",
                "seconds": f"{median(values):.2f}",
                "range": f"{min(values):.2f} to {max(values):.2f}",
                "first call": f"{first[name]:.1f}" if name in first else "",
                "apart": "" if name in large else f"{apart.max():.1e}",
            }
        )
    print(report.table(rows))
    results, seconds = timed(concordances(*part), settings.rounds)
    print(
        report.table(
            [
                {
                    "concordance": name,
                    "value": f"{float(results[name]):.6f}",
                    "seconds": f"{median(values):.3f}",
                }
                for name, values in seconds.items()
            ]
        )
    )


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Settings))
