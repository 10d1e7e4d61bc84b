"""The coverage that was wanted and the one that came, on six data sets.

A model learns from the train rows. The rows held out are divided by the seed: one half calibrates,
the other is counted. `coverage` is the share of rows whose truth is in the set or the interval,
`size` the mean number of classes of a set (its share of empty ones is `empty`) or the mean width of
an interval in the unit of the target, `worst` the coverage of the group that has the lowest one.
0.9 is wanted. `own` are the intervals that the model gives by itself: its quantiles 0.05 and 0.95.

- california: boosted trees for the value of houses, and a perceptron for its quantiles; CV+ learns
  from five folds of the train rows and needs no calibration rows.
- adult, churn: boosted trees of two classes. `by group` has a margin for each sex, and for each
  country (Mondrian).
- banking77: an n-gram bag of 77 intents.
- etth1: NLinear, 24 hours ahead, all seven channels; the margins are of the validation windows
  (split), of the windows before (rolling), and adaptive. The test windows are later than those of
  validation, and so not exchangeable with them; `worst` is the worst channel.

    JAXOPS_DATA_DIR=DATA python -m experiments.coverage [--seeds 5]
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jaxops as jo
from experiments import common, intents
from experiments.defaults import adult_frames, california_frames, churn_frames
from jaxops import forecast as f
from jaxops import tabular, text, uncertainty
from jaxops.forecast.inference import forecaster

PUBLISHED = {"california_cqr": "no publication; 0.9 is wanted"}
WANTED, GROUPS = 0.9, {"adult": "sex", "churn": "Geography"}
LEVELS = (0.05, 0.5, 0.95)
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    only: tuple[str, ...] = ()
    """data sets; all by default"""
    epochs: int = 10
    """of the perceptron and of the bag"""
    folds: int = 5
    """of CV+"""


def halves(table: pd.DataFrame, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two halves of the rows held out, drawn by the seed."""
    order = np.random.default_rng(seed).permutation(len(table))
    middle = len(table) // 2
    return table.iloc[order[:middle]], table.iloc[order[middle:]]


def of_intervals(low: np.ndarray, high: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Coverage and width."""
    inside = (low <= truth) & (truth <= high)
    return {"coverage": float(inside.mean()), "size": float((high - low).mean())}


def of_sets(
    sets: np.ndarray, truth: np.ndarray, groups: np.ndarray | None = None
) -> dict[str, float]:
    """Coverage, sizes, and the coverage of the worst group."""
    inside = np.array([name in one for name, one in zip(truth, sets, strict=True)])
    size = np.array([len(one) for one in sets])
    told = {"coverage": float(inside.mean()), "size": float(size.mean())}
    told["empty"] = float((size == 0).mean())
    if groups is not None:
        told["worst"] = float(min(inside[groups == name].mean() for name in np.unique(groups)))
    return told


def houses(smoke: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Train rows, and rows held out."""
    if smoke:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(600, 2))
        value = x[:, 0] + np.exp(x[:, 1] / 2) * rng.normal(size=600)
        table = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "value": value})
        return table[:300], table[300:]
    train, validation, test = california_frames()
    return train, pd.concat([validation, test])


def california(settings: Settings, seed: int) -> Rows:
    """Intervals of the value of houses, in 100,000 dollars."""
    train, held = houses(settings.smoke)
    calibration, test = halves(held, seed)
    truth = test["value"].to_numpy()
    trees = tabular.HistGradientBoosting()
    options: dict[str, Any] = {"label": "value", "seed": seed, "progress": False}
    point = tabular.fit(train, trees, **options)
    network = tabular.MLP((16,) if settings.smoke else (128, 128))
    quantile = tabular.fit(
        train, network, target="quantiles", levels=LEVELS, epochs=settings.epochs, **options
    )
    rows = {}
    for name, model, how in (
        ("split", point, None),
        ("split, scaled", quantile, "scaled"),
        ("CQR", quantile, "cqr"),
    ):
        sure = uncertainty.conformal(model, calibration, calibration["value"], WANTED, how)
        answer = sure.predict(test)
        rows[name] = of_intervals(answer.low, answer.high, truth)
    own = quantile.predict(test).values
    rows["own"] = of_intervals(own[:, 0], own[:, -1], truth)
    folds = np.random.default_rng(seed).permutation(len(train)) % settings.folds
    held_out, new = np.zeros(len(train)), []
    for fold in range(settings.folds):
        model = tabular.fit(train[folds != fold], trees, **options)
        held_out[folds == fold] = model.predict(train[folds == fold]).values
        new.append(model.predict(test).values)
    known = train["value"].to_numpy()
    bounds = uncertainty.cv_plus(np.stack(new), held_out, known, folds, WANTED)
    rows["CV+"] = of_intervals(bounds.low, bounds.high, truth)
    return rows


def people(name: str, smoke: bool) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Train rows, rows held out, and the label."""
    if smoke:
        rng = np.random.default_rng(0)
        age, group = rng.normal(size=600), rng.choice(["one", "two"], 600)
        noise = rng.normal(size=600) * np.where(group == "two", 2.0, 0.3)
        label = np.where(age + noise > 0, "yes", "no")
        table = pd.DataFrame({"age": age, GROUPS[name]: group, "label": label})
        return table[:300], table[300:], "label"
    if name == "adult":
        train, test = adult_frames()
        return train, test, "income"
    train, validation, test = churn_frames()
    return train, pd.concat([validation, test]), "Exited"


def two_classes(settings: Settings, seed: int, name: str) -> Rows:
    """Sets of two classes."""
    train, held, label = people(name, settings.smoke)
    calibration, test = halves(held, seed)
    trees = tabular.HistGradientBoosting()
    model = tabular.fit(train, trees, label=label, seed=seed, progress=False)
    group = GROUPS[name]
    groups = test[group].to_numpy()
    truth = test[label].astype(str).to_numpy()
    choices: dict[str, dict[str, Any]] = {
        "LAC": {},
        "APS": {"method": "aps"},
        "LAC by group": {"group": group},
        "LAC by class": {"by_class": True},
    }
    rows = {}
    for how, options in choices.items():
        sure = uncertainty.conformal(model, calibration, calibration[label], WANTED, **options)
        rows[how] = of_sets(sure.predict(test).sets, truth, groups)
        if how == "LAC by class":
            rows[how]["worst_class"] = of_sets(sure.predict(test).sets, truth, truth)["worst"]
    rows["LAC"]["worst_class"] = worst_class(model, calibration, test, label)
    return rows


def worst_class(model: Any, calibration: pd.DataFrame, test: pd.DataFrame, label: str) -> float:
    """The coverage of the class that has the lowest, with one margin for all."""
    sure = uncertainty.conformal(model, calibration, calibration[label], WANTED)
    truth = test[label].astype(str).to_numpy()
    return of_sets(sure.predict(test).sets, truth, truth)["worst"]


def banking77(settings: Settings, seed: int) -> Rows:
    """Sets of 77 intents."""
    # of the longest questions some n-grams are left out
    warnings.filterwarnings("ignore", message="texts must ")
    data = intents.load("banking77", settings.smoke)
    names = np.array(data.classes, object)
    train, held = (
        pd.DataFrame({"text": part["text"], "label": names[part["label"]]})
        for part in (data.train, data.test)
    )
    calibration, test = halves(held, seed)
    bag = text.NGramBag(1024 if settings.smoke else 2**17, len(names), dropout=0.1)
    model = text.fit(train, bag, epochs=settings.epochs, seed=seed, progress=False)
    rows = {}
    for how, options in (
        ("LAC", {}),
        ("APS", {"method": "aps"}),
        ("RAPS", {"method": "aps", "penalty": 0.01, "free": 5}),
    ):
        sure = uncertainty.conformal(model, calibration, calibration["label"], WANTED, **options)
        rows[how] = of_sets(sure.predict(test).sets, test["label"].to_numpy())
    # randomised, with numbers that are drawn here
    p = [model.predict(part).probabilities for part in (calibration, test)]
    u = [np.random.default_rng([seed, i]).random(len(x)) for i, x in enumerate(p)]
    number = {name: i for i, name in enumerate(model.task.classes)}
    label = [np.array([number[n] for n in part["label"]]) for part in (calibration, test)]
    scores = [uncertainty.aps_scores(x, y) for x, y in zip(p, u, strict=True)]
    size = uncertainty.margin(uncertainty.own_scores(scores[0], label[0]), WANTED)
    inside = scores[1] <= size
    rows["APS, randomised"] = {
        "coverage": float((uncertainty.own_scores(scores[1], label[1]) <= size).mean()),
        "size": float(inside.sum(1).mean()),
        "empty": float((~inside.any(1)).mean()),
    }
    return rows


def etth1(settings: Settings, seed: int) -> Rows:
    """Intervals of seven channels, 24 hours ahead, over the windows of the test months."""
    from experiments.etth import Settings as Ett
    from experiments.etth import read

    series = read(Ett(smoke=settings.smoke), "ETTh1")
    sizes = (1440, 480, 480) if settings.smoke else (8640, 2880, 2880)
    split, horizon = f.split(series, *sizes), 24
    scaling = f.scaling(series, rows=split.train)
    network = f.NLinear(336, horizon)
    task = f.direct(network, series, scaling)
    windows = f.origins(series, network.context, horizon, split.train)
    state = jo.fit(
        task,
        windows,
        optimizer=jo.optim.adam(5e-3),
        batch_size=32,
        epochs=1 if settings.smoke else 5,
        seed=seed,
        progress=False,
    )
    model = forecaster(network, state, series, scaling)
    # the targets of calibration end where those of the test windows begin
    before = f.origins(series, 720, horizon, split.validation)
    after = f.origins(series, 720, horizon, split.test)
    parts = [f.historical_forecasts(model, series, w, horizon, ()) for w in (before, after)]
    bounds = uncertainty.split_conformal(parts[1].mean, parts[0].mean, parts[0].target, WANTED)
    rows = {"split": of_channels(bounds, parts[1].target)}
    for name, rate in (("rolling", 0.0), ("adaptive", 0.02)):
        found = f.adaptive_backtest(model, series, before, after, horizon, WANTED, rate)
        rows[name] = of_channels(found.bounds, found.target)
    return rows


def of_channels(bounds: uncertainty.Bounds, target: np.ndarray) -> dict[str, float]:
    """Coverage, the median width (some are infinite) and the coverage of the worst channel."""
    inside = (bounds.low <= target) & (target <= bounds.high)
    width = np.asarray(bounds.high) - np.asarray(bounds.low)
    return {
        "coverage": float(inside.mean()),
        "size": float(np.median(width)),
        "worst": float(inside.mean((0, 1)).min()),
    }


SETS: dict[str, Callable[[Settings, int], Rows]] = {
    "california": california,
    "adult": lambda settings, seed: two_classes(settings, seed, "adult"),
    "churn": lambda settings, seed: two_classes(settings, seed, "churn"),
    "banking77": banking77,
    "etth1": etth1,
}


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Every data set; what is done is kept, so that `--resume` goes on."""
    if settings.smoke:
        settings = replace(settings, epochs=2, folds=2)
    rows: Rows = {}
    for name, found in common.each_set(SETS, settings, seed, folder):
        common.say(f"seed {seed}: {name}: {found}")
        rows |= {f"{name}: {how}": row for how, row in found.items()}
    metrics = {}
    if "california: CQR" in rows:
        metrics["california_cqr"] = rows["california: CQR"]["coverage"]
    plot(rows, folder / "coverage.png")
    return metrics | {"models": rows}


def plot(rows: Rows, file: Path) -> None:
    """The coverage of each row beside the wanted one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.axvline(WANTED, color="grey", linestyle="--")
    axes.plot([row["coverage"] for row in rows.values()], places, "o", label="all rows")
    some = [i for i, row in enumerate(rows.values()) if "worst" in row]
    worst = [row["worst"] for row in rows.values() if "worst" in row]
    axes.plot(worst, some, "x", label="worst group")
    axes.set_yticks(places, rows)
    axes.invert_yaxis()
    axes.set(xlabel="share that is covered")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(file, dpi=150)


if __name__ == "__main__":
    common.experiment("coverage", Settings, run, PUBLISHED)
