"""The methods of the tabular room on four tables, beside published figures.

Each module is trained by `tabular.fit`. Widths, rates and so on of MLP, MLP-PLR and TabM are those
that its authors tuned on these very splits (Gorishniy et al. 2024, yandex-research/tabm @ 28e47ae,
folders paper/exp/MODEL/SET/0-evaluation); for telco those of churn. The others have their authors'
defaults. Training ends when the validation score (accuracy, RMSE; for telco the log loss) has not
improved for 16 epochs, as there. The test rows are scored once. The metric of a set is the test
figure of the single network with the best validation figure; trees and ensembles are rows beside
it. An ensemble's row has the figures of the member that has the smallest test loss (log loss, mean
squared error), and how far the ensemble's loss is below it, with the paired 95 % interval.

- adult: official test rows, validation rows of TabM (`split.npz`); accuracy.
- churn, california: the split of TabM; accuracy, and RMSE in 100,000 dollars.
- telco: five folds (stratified, drawn anew for each seed), of which the default share of the train
  rows validates; mean AUC over the folds.

Rows are written to `seed-N/rows.json` after each model, and `--resume` goes on from there.

    JAXOPS_DATA_DIR=DATA python -m experiments.tables [--only churn] [--models mlp] [--seeds 15]
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from experiments import common
from experiments.defaults import (
    adult_frames,
    california_frames,
    churn_frames,
    folder_of,
    linear,
    telco_folds,
    trees,
)
from jaxops import tabular
from jaxops.model.finished import Model
from jaxops.model.selection import Blend
from jaxops.tabular.recipes import clipped, decayed
from jaxops.train.settings import EarlyStopping
from jaxops.trust import report
from jaxops.trust.evaluation import Evaluation
from jaxops.trust.intervals import paired

PUBLISHED = {
    "adult_accuracy": "0.8700 (TabM-mini with piecewise linear embeddings), 0.8727 (CatBoost)",
    "churn_accuracy": "0.8633 (TabM-mini)",
    "california_rmse": "0.4275 (TabM-mini with piecewise linear embeddings), 0.4294 (CatBoost)",
    "telco_auc": "0.8454 (logistic regression, measured on these files)",
}
KEPT = ("accuracy", "auc", "log_loss", "rmse")
LOSSES = ("log_loss", "mse")  # that have a value for each row
TREES = ("trees", "lightgbm", "xgboost", "catboost")
ENSEMBLES = ("ensemble", "ensemble without trees")
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    only: tuple[str, ...] = ()
    """data sets; all by default"""
    models: tuple[str, ...] = ()
    """models; all by default"""
    compute: str = "float32"
    """of the products in training: float32, bfloat16 or float16"""


class Split(NamedTuple):
    """Train, validation and test rows; without validation rows a share of the train rows is it."""

    train: pd.DataFrame
    validation: pd.DataFrame | None
    test: pd.DataFrame


class Table(NamedTuple):
    """A data set: its splits, of which the figures are averaged, and what is scored."""

    splits: list[Split]
    label: str
    metric: str


class Member(NamedTuple):
    """A member of a blend: its test figures; the losses (2, N) of it and of the blend by row."""

    figures: dict[str, float]
    losses: np.ndarray


class Tuned(NamedTuple):
    """The settings that were tuned on a data set: of a perceptron, its embedding, its training."""

    widths: tuple[int, ...]
    dropout: float
    rate: float
    decay: float = 0.0
    embedding: Any = None


QUANTILE = tabular.Reads("quantile")
Linear = tabular.PiecewiseLinear
MLP = {
    "adult": Tuned((400,) * 4, 0.23115, 1.0632e-4, 0.079511),
    "churn": Tuned((752,) * 6, 0.0, 5.0682e-4),
    "california": Tuned((208,) * 2, 0.17187, 5.6356e-4, 0.028759),
}
MLP_PLR = {
    "adult": Tuned((112,) * 3, 0.19897, 3.2227e-5, 0.0, tabular.Periodic(16, 64, 7.9533)),
    "churn": Tuned((1024,) * 2, 0.42422, 3.4898e-4, 0.0, tabular.Periodic(20, 68, 0.12706)),
    "california": Tuned((832,), 0.46608, 6.8324e-4, 0.0, tabular.Periodic(28, 60, 0.47067)),
}
TABM = {  # TabM-mini
    "adult": Tuned((320,) * 3, 0.48883, 8.7482e-4, 0.029863),
    "churn": Tuned((576,) * 4, 0.035518, 2.0761e-3),
    "california": Tuned((304,) * 3, 0.086105, 5.7924e-4),
}
TABM_PLE = {  # TabM-mini
    "adult": Tuned((864,) * 3, 0.20836, 1.2154e-3, 0.072886, Linear(20, 117)),
    "churn": Tuned((576,) * 3, 0.23805, 1.4325e-3, 0.0, Linear(32, 122)),
    "california": Tuned((576,) * 3, 0.24050, 2.9926e-4, 0.0, Linear(16, 30)),
}


def perceptron(one: Tuned) -> Any:
    """A perceptron that reads numbers by their quantiles."""
    return tabular.MLP(one.widths, dropout=one.dropout, embedding=one.embedding, reads=QUANTILE)


def tabm(one: Tuned) -> Any:
    """TabM-mini with 32 members, each of which sees other rows in a step."""
    return tabular.TabM(
        one.widths,
        members=32,
        dropout=one.dropout,
        embedding=one.embedding,
        own_batches=True,
        reads=QUANTILE,
    )


def stopping(table: Table) -> EarlyStopping:
    """By what is scored: accuracy, RMSE; AUC by the log loss."""
    if table.metric == "accuracy":
        return EarlyStopping("accuracy", patience=16, mode="max")
    return EarlyStopping("loss", patience=16)


def tuned(make: Callable[[Tuned], Any], found: dict[str, Tuned]) -> Callable[[str, Table], Any]:
    """A method with the settings that were tuned on a data set, and the options of its training."""

    def method(name: str, table: Table) -> tuple[Any, dict[str, Any]]:
        one = found.get(name, found["churn"])
        options = {
            "optimizer": clipped(decayed(one.rate, one.decay)),
            "batch_size": 256,
            "epochs": 2000,
            "early_stopping": stopping(table),
        }
        return make(one), options

    return method


def default(module: Callable[[Table], Any]) -> Callable[[str, Table], Any]:
    """A method with the room's recipe, but for what ends the training."""

    def method(name: str, table: Table) -> tuple[Any, dict[str, Any]]:
        made, rule = module(table), stopping(table)
        if isinstance(made, tabular.RealMLP):
            rule = rule._replace(patience=256)
        return made, {"early_stopping": rule}

    return method


def alone(make: Callable[[], Any]) -> Callable[[str, Table], Any]:
    """A method, or several, with the room's recipe; an ensemble has an hour."""

    def method(name: str, table: Table) -> tuple[Any, dict[str, Any]]:
        made = make()
        return made, {"budget": "1h"} if isinstance(made, list) else {}

    return method


METHODS: dict[str, Callable[[str, Table], Any]] = {
    "default": alone(tabular.TabM),
    "linear": default(lambda table: tabular.MLP(())),
    "mlp": tuned(perceptron, MLP),
    "mlp-plr": tuned(perceptron, MLP_PLR),
    "resnet": default(lambda table: tabular.ResNet()),
    "ft-transformer": default(lambda table: tabular.FTTransformer()),
    "real-mlp": default(lambda table: tabular.RealMLP()),
    "tabm-mini": tuned(tabm, TABM),
    "tabm-mini-ple": tuned(tabm, TABM_PLE),
    "tabm-periodic": alone(lambda: tabular.TabM(embedding=tabular.Periodic())),
    "tabm-piecewise": alone(lambda: tabular.TabM(embedding=Linear())),
    "modern-nca": default(lambda table: tabular.ModernNCA()),
    "trees": alone(tabular.HistGradientBoosting),
    "lightgbm": alone(tabular.LightGBM),
    "xgboost": alone(tabular.XGBoost),
    "catboost": alone(tabular.CatBoost),
    "ensemble": alone(tabular.short_list),
    "ensemble without trees": alone(lambda: tabular.short_list(trees=False)),
}
RIVALS = ("logistic", "boosting")  # of scikit-learn, without the room; of the first seed
SMOKE: dict[str, Any] = {
    "default": tabular.TabM(),
    "linear": tabular.MLP(()),
    "mlp": tabular.MLP((8,), reads=QUANTILE),
    "mlp-plr": tabular.MLP((8,), embedding=tabular.Periodic(4, 4, 0.1)),
    "resnet": tabular.ResNet(8, 8, 1),
    "ft-transformer": tabular.FTTransformer(8, 1, 2),
    "real-mlp": tabular.RealMLP((8,)),
    "tabm-mini": tabular.TabM((8,), members=2, own_batches=True),
    "tabm-mini-ple": tabular.TabM((8,), members=2, embedding=Linear(4, 4), own_batches=True),
    "tabm-periodic": tabular.TabM((8,), embedding=tabular.Periodic(4, 4, 0.1)),
    "tabm-piecewise": tabular.TabM((8,), embedding=Linear(4, 4)),
    "modern-nca": tabular.ModernNCA(8, embedding=tabular.Periodic(4, 4, 0.1, lite=True)),
    "trees": tabular.HistGradientBoosting(max_iter=5),
    "lightgbm": tabular.LightGBM(n_estimators=5),
    "xgboost": tabular.XGBoost(n_estimators=5),
    "catboost": tabular.CatBoost(iterations=5),
    "ensemble": [tabular.HistGradientBoosting(max_iter=5), tabular.MLP((8,))],
    "ensemble without trees": [tabular.MLP((8,)), tabular.RealMLP((8,))],
}


def adult(seed: int, smoke: bool) -> Table:
    """Incomes of the census."""
    train, test = adult_frames()
    split = np.load(folder_of("adult") / "split.npz")
    rest, held = (train.iloc[split[part]] for part in ("train", "val"))
    return Table([Split(rest, held, test)], "income", "accuracy")


def churn(seed: int, smoke: bool) -> Table:
    """Customers of a bank who left."""
    return Table([Split(*churn_frames())], "Exited", "accuracy")


def california(seed: int, smoke: bool) -> Table:
    """Values of houses."""
    return Table([Split(*california_frames())], "value", "rmse")


def telco(seed: int, smoke: bool) -> Table:
    """Customers who left, in five folds."""
    splits = [Split(train, None, test) for train, test in telco_folds(seed, smoke)]
    return Table(splits, "Churn", "auc")


TABLES = {job.__name__: job for job in (adult, churn, california, telco)}


def trained(settings: Settings, seed: int, name: str, model: str, table: Table) -> dict[str, float]:
    """A module's figures, mean over the splits."""
    method, options = METHODS[model](name, table)
    grown = model in TREES
    if settings.smoke:
        method, options = SMOKE[model], {} if grown else {"epochs": 2}
    if settings.compute != "float32" and not grown:
        options["compute"] = settings.compute
    options = {"budget": "24h", "seed": seed, "progress": False, **options}
    rows, pairs = [], []
    for split in table.splits:
        if split.validation is not None:
            options["validation"] = split.validation
        start = time.perf_counter()
        made = tabular.fit(split.train, method, label=table.label, **options)
        row = {"seconds": time.perf_counter() - start}
        scored = tabular.evaluate(made, split.test)
        figures = scored.figures()
        if isinstance(made.task, Blend):
            found = beside_best(made, scored, split.test)
            row |= found.figures
            pairs.append(found.losses)
        row |= {key: figures[key] for key in KEPT if key in figures}
        if table.metric in made.about["validation"]:  # a blend has the figure that made it alone
            row["validation"] = made.about["validation"][table.metric]
        if made.state is not None:
            row["steps"] = float(made.state.step)
        rows.append(row)
    return mean(rows) | gain(pairs)


def beside_best(made: Model, scored: Evaluation, test: pd.DataFrame) -> Member:
    """The member of a blend with the smallest loss on the test rows."""
    members = [replace(made, task=one.task, state=one.state) for one in made.task.models()]
    loss = next(name for name in LOSSES if name in scored.values)
    others = [tabular.evaluate(one, test) for one in members]
    other = min(others, key=lambda one: one.figures()[loss])
    figures = {f"member {key}": value for key, value in other.figures().items() if key in KEPT}
    losses = np.stack([other.values[loss], scored.values[loss]])
    return Member({"members": float(len(members))} | figures, losses)


def gain(pairs: list[np.ndarray]) -> dict[str, float]:
    """How far a blend's loss is below that of its best member, with the paired 95 % interval."""
    if not pairs:
        return {}
    return dict(zip(("gain", "gain low", "gain high"), paired(*np.hstack(pairs)), strict=False))


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """The means of what all rows have."""
    keys = [key for key in rows[0] if all(key in row for row in rows)]
    return {key: float(np.mean([row[key] for row in rows])) for key in keys}


def rival(model: str, table: Table) -> dict[str, float]:
    """The figures of trees or a linear model of scikit-learn on the same rows."""
    rows = []
    for split in table.splits:
        if table.metric != "rmse":
            fit = trees if model == "boosting" else linear
            rows.append(fit(split.train, split.test, table.label))
            continue
        from sklearn.ensemble import HistGradientBoostingRegressor
        from sklearn.linear_model import LinearRegression

        start = time.perf_counter()
        made = (
            HistGradientBoostingRegressor(random_state=0)
            if model == "boosting"
            else LinearRegression()
        )
        made.fit(split.train.drop(columns=table.label), split.train[table.label])
        seconds = time.perf_counter() - start
        error = made.predict(split.test.drop(columns=table.label)) - split.test[table.label]
        rows.append({"rmse": float((error**2).mean() ** 0.5), "seconds": seconds})
    return mean(rows)


def jobs(settings: Settings, seed: int) -> Iterator[tuple[str, str]]:
    """(data set, model), each in turn."""
    known = {"only": tuple(TABLES), "models": (*METHODS, *RIVALS)}
    for field, names in known.items():
        unknown = [name for name in getattr(settings, field) if name not in names]
        if unknown:
            raise ValueError(f"{field} must name some of {', '.join(names)}, got {unknown[0]!r}")
    for name in settings.only or (("telco",) if settings.smoke else known["only"]):
        for model in settings.models or known["models"]:
            if model not in RIVALS or seed == 0:
                yield name, model


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Each model on each data set in turn."""
    file = folder / "rows.json"
    rows: Rows = json.loads(file.read_text()) if settings.resume and file.exists() else {}
    tables: dict[str, Table] = {}
    for name, model in jobs(settings, seed):
        if f"{name}: {model}" in rows:
            continue
        tables[name] = tables.get(name) or TABLES[name](seed, settings.smoke)
        if model in RIVALS:
            row = rival(model, tables[name])
        else:
            row = trained(settings, seed, name, model, tables[name])
        rows[f"{name}: {model}"] = row
        file.write_text(json.dumps(rows, indent=1))
        common.say(report.table([{"seed": str(seed), "model": f"{name}: {model}"} | told(row)]))
    return best(rows) | {"models": rows}


def told(row: dict[str, float]) -> dict[str, str]:
    return {key: f"{value:.4f}" for key, value in row.items()}


def best(rows: Rows) -> dict[str, float]:
    """For each data set the test figure of the one network with the best validation figure."""
    metrics = {"adult": "accuracy", "churn": "accuracy", "california": "rmse", "telco": "auc"}
    networks = [model for model in METHODS if model not in (*TREES, *ENSEMBLES)]
    found = {}
    for name, metric in metrics.items():
        of = [rows[f"{name}: {model}"] for model in networks if f"{name}: {model}" in rows]
        if of:
            sign = -1 if metric == "rmse" else 1
            found[f"{name}_{metric}"] = max(of, key=lambda row: sign * row["validation"])[metric]
    return found


if __name__ == "__main__":
    common.experiment("tables", Settings, run, PUBLISHED)
