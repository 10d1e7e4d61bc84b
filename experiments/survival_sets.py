"""METABRIC, GBSG and WHAS, by the two protocols under which they are published.

- DeepSurv's split: its train and test rows; Harrell's concordance (`metabric_c` and so on).
- Five folds: both joined and divided anew for each seed; Antolini's time-dependent concordance
  (`metabric_ctd` and so on), the mean over the folds. Figures of the two are not comparable.

The headline of each is that of the method whose validation rows have the best concordance of that
kind: 15 % of the train rows (drawn anew with each seed), which also stop the training of networks.
All methods are in the table of models. Regressions are then fitted to all train rows. The test rows
are scored once. Data: JAXOPS_DATA_DIR/survival. Accelerated failure times take a time of 0, of
which METABRIC has one, as half of the shortest other.

    JAXOPS_DATA_DIR=DATA python -m experiments.survival_sets [--only metabric] [--seeds 3]
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from jaxops import survival
from jaxops.trust import report
from jaxops.trust.evaluation import Evaluation

PUBLISHED = {
    "metabric_c": "0.643 (DeepSurv), Cox 0.631, forest 0.624 (Katzman et al. 2018)",
    "gbsg_c": "0.668 (DeepSurv), Cox 0.658, forest 0.651 (Katzman et al. 2018)",
    "whas_c": "0.862 (DeepSurv), Cox 0.818, forest 0.895 (Katzman et al. 2018)",
    "metabric_ctd": "0.675 (DeepHit), DeepSurv 0.636, Cox 0.628 (Kvamme et al. 2019)",
    "gbsg_ctd": "0.677 (Cox-Time), DeepSurv 0.674, Cox 0.666 (Kvamme et al. 2019)",
}
SETS = ("metabric", "gbsg", "whas")
METHODS = {
    "Cox": survival.Cox(),
    "Weibull AFT": survival.WeibullAFT(),
    "DeepSurv": survival.DeepSurv(),
    "logistic hazard": survival.LogisticHazard(),
    "DeepHit": survival.DeepHit(),
}
CLOSED = ("Cox", "Weibull AFT")
ROLES: dict[str, Any] = {"time": "duration", "event": "event", "progress": False}
FIGURES = ("concordance", "concordance_td", "concordance_ipcw", "integrated_brier")
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    only: tuple[str, ...] = ()
    """data sets; all by default"""
    folds: int = 5
    """of the second protocol; 0 leaves it out"""
    fold_seeds: int = 1
    """the seeds with which the second protocol is run"""


def read(name: str) -> pd.DataFrame:
    """A set with its column `split`."""
    file = Path(os.environ.get("JAXOPS_DATA_DIR", "."), "survival", f"{name}.csv.gz")
    return pd.read_csv(file)


def made_up() -> pd.DataFrame:
    """Rows for a smoke test."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3))
    until, stop = rng.exponential(np.exp(-x[:, 0])), rng.exponential(2.0, 200)
    table = pd.DataFrame(x, columns=["x0", "x1", "x2"])
    table["duration"], table["event"] = np.minimum(until, stop), (until < stop).astype(int)
    table["split"] = np.where(np.arange(200) % 2, "train", "test")  # as many as of two folds
    return table


def scored(
    train: pd.DataFrame, test: pd.DataFrame, seed: int, figure: str, options: dict[str, Any]
) -> tuple[Rows, str]:
    """The figures of each method on test rows, and the method that validation prefers by one.

    Of Harrell's concordance also the bounds of its interval, and the difference from Cox with its.
    """
    rows: Rows = {}
    evaluated: dict[str, Evaluation] = {}
    preferred: dict[str, float] = {}
    for name, method in METHODS.items():
        network = name not in CLOSED
        learned = train
        if name == "Weibull AFT":
            shortest = train["duration"][train["duration"] > 0].min()
            learned = train.assign(duration=train["duration"].clip(lower=shortest / 2))
        given = {**ROLES, "seed": seed, **(options if network else {})}
        start = time.perf_counter()
        model = survival.fit(learned, method, **given)
        seconds = time.perf_counter() - start
        judged = model if network else survival.fit(learned, method, validation=0.15, **given)
        preferred[name] = judged.about["validation"][figure]
        evaluated[name] = one = survival.evaluate(model, test)
        figures = one.figures()
        rows[name] = {key: figures[key] for key in FIGURES} | {"seconds": seconds}
        if figure == "concordance":
            within, less = one.interval(figure), one.paired(evaluated["Cox"], figure)
            rows[name] |= {"concordance_low": within.low, "concordance_high": within.high}
            rows[name] |= {"less_cox": less.difference, "less_cox_low": less.low}
            rows[name] |= {"less_cox_high": less.high}
    return rows, max(preferred, key=lambda name: preferred[name])


def by_risk(table: pd.DataFrame, seed: int, path: Path) -> None:
    """Draw the curves of the test rows by thirds of the risk that Cox's regression gives them."""
    train, test = (
        table[table["split"] == part].drop(columns="split") for part in ("train", "test")
    )
    risk = survival.fit(train, **ROLES).predict(test).risk
    thirds = np.searchsorted(np.quantile(risk, [1 / 3, 2 / 3]), risk)
    curves = {
        f"{name} risk": survival.kaplan_meier(
            test["duration"][thirds == part], test["event"][thirds == part]
        )
        for part, name in enumerate(("low", "middle", "high"))
    }
    survival.plot_curves(curves, path)


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Each data set in turn."""
    from sklearn.model_selection import KFold

    names = settings.only or (("smoke",) if settings.smoke else SETS)
    options = {"epochs": 2} if settings.smoke else {}
    metrics: dict[str, float] = {}
    models: Rows = {}
    for name in names:
        table = made_up() if settings.smoke else read(name)
        by_risk(table, seed, folder / f"{name}.png")
        parts = [table[table["split"] == part].drop(columns="split") for part in ("train", "test")]
        rows, best = scored(parts[0], parts[1], seed, "concordance", options)
        metrics[f"{name}_c"] = rows[best]["concordance"]
        models |= {f"{name}, split: {method}": row for method, row in rows.items()}
        common.say(f"seed {seed}: {name}, DeepSurv's split; validation prefers {best}")
        common.say(report.table([{"model": method} | row for method, row in rows.items()]))
        if not settings.folds or seed >= settings.fold_seeds:
            continue
        whole, found, chosen = table.drop(columns="split"), [], []
        for train, test in KFold(settings.folds, shuffle=True, random_state=seed).split(whole):
            split = whole.iloc[train], whole.iloc[test]
            rows, best = scored(*split, seed, "concordance_td", options)
            found.append(rows)
            chosen.append(rows[best]["concordance_td"])
        means = {
            method: {key: float(np.mean([one[method][key] for one in found])) for key in row}
            for method, row in found[0].items()
        }
        metrics[f"{name}_ctd"] = float(np.mean(chosen))
        models |= {f"{name}, folds: {method}": row for method, row in means.items()}
        common.say(f"seed {seed}: {name}, {settings.folds} folds")
        common.say(report.table([{"model": method} | row for method, row in means.items()]))
    return metrics | {"models": models}


if __name__ == "__main__":
    common.experiment("survival_sets", Settings, run, PUBLISHED)
