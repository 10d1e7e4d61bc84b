"""One call a job, without a method: what `ROOM.fit(data)` reaches on data sets with known rivals.

Each data set is given as a user has it: a frame, arrays, series or a folder of images. The default
validates by a part of the train rows, or by the validation rows of a data set that has some; the
test rows are scored once. `seconds` are those of `fit`. Rivals see the train rows: gradient-boosted
trees and logistic regression of scikit-learn, a linear SVM on tf-idf, the CNN of article 002, the
seasonal naive forecast.

- telco: five folds (stratified, drawn anew for each seed); mean AUC over the folds.
- adult: official split; AUC.
- churn, california: the split of TabM; accuracy, and RMSE in 100,000 dollars.
- banking77, clinc150: official split; accuracy in scope. The validation rows of CLINC150 are given
  as such.
- mnist, cifar10_jpg: official split; accuracy. CIFAR-10 are JPEG files, a folder for each class.
- beauty: the last item of each user is test; NDCG@10 among all items that the user has not seen.
- etth1, etth2: 12 months and 4 for training and validation, 4 for test; channels standardised by
  the rows of the 12 months; MSE of all 2,785 windows of 96 steps.
- m4_hourly: the official 48 hours, with the season given as 24; sMAPE and MASE.

    JAXOPS_DATA_DIR=DATA python -m experiments.defaults [--only banking77 clinc150] [--seeds 3]
"""

import gzip
import json
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import jaxops as jo
from experiments import common
from jaxops import forecast, recommend, tabular, text, vision
from jaxops.trust import report

PUBLISHED = {
    "telco_auc": "0.8354 (gradient-boosted trees, measured on these files)",
    "adult_auc": "0.9272 (gradient-boosted trees, measured on these files)",
    "churn_accuracy": "0.8605 (TabM, Gorishniy et al. 2024)",
    "california_rmse": "0.4293 (TabM, piecewise linear, Gorishniy et al. 2024)",
    "banking77_accuracy": "0.9136 (linear SVM on tf-idf, measured on these files)",
    "clinc150_accuracy": "0.9271 (linear SVM on tf-idf, measured on these files)",
    "mnist_accuracy": "0.9917 (the MNIST example of Flax, 10 epochs)",
    "beauty_ndcg": "0.0327 (SASRec by cross-entropy, Klenitskiy and Vasilev 2023)",
    "etth1_mse": "0.370 (PatchTST/64, Nie et al. 2023)",
    "etth2_mse": "0.270 (TiDE, Das et al. 2023)",
    "m4_hourly_smape": "9.328 (Smyl, the winner of M4)",
}
ADULT = [
    *("age", "workclass", "weight", "education", "years", "marital", "occupation"),
    *("relationship", "race", "sex", "gain", "loss", "hours", "country", "income"),
]
Rows = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    only: tuple[str, ...] = ()
    """data sets; all by default"""
    rivals: bool = True
    """train the rivals as well, with the first seed"""


def folder_of(name: str) -> Path:
    return Path(os.environ.get("JAXOPS_DATA_DIR", ".")) / name


def timed(fit: Callable[..., jo.Model], *args: Any, **options: Any) -> tuple[jo.Model, float]:
    """A model, and the seconds that it took."""
    start = time.perf_counter()
    model = fit(*args, **options)
    return model, time.perf_counter() - start


def trees(train: pd.DataFrame, test: pd.DataFrame, label: str) -> dict[str, float]:
    """AUC and accuracy of scikit-learn's gradient-boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score

    both = pd.concat([train, test]).drop(columns=label)
    names = both.select_dtypes(exclude="number").columns
    both[names] = both[names].astype("category")
    start = time.perf_counter()
    target = train[label].to_numpy()
    model = HistGradientBoostingClassifier(categorical_features="from_dtype", random_state=0)
    model.fit(both[: len(train)], target)
    seconds = time.perf_counter() - start
    p = model.predict_proba(both[len(train) :])[:, 1]
    right = model.classes_[(p > 0.5).astype(int)] == test[label].to_numpy()
    auc = roc_auc_score(test[label] == model.classes_[1], p)
    return {"auc": float(auc), "accuracy": float(right.mean()), "seconds": seconds}


def linear(train: pd.DataFrame, test: pd.DataFrame, label: str) -> dict[str, float]:
    """AUC and accuracy of scikit-learn's logistic regression."""
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_column_selector(dtype_include="number")
    others = make_column_selector(dtype_exclude="number")
    encoder = OneHotEncoder(handle_unknown="ignore")
    columns = make_column_transformer((StandardScaler(), numbers), (encoder, others))
    model = make_pipeline(columns, LogisticRegression(max_iter=2000))
    start = time.perf_counter()
    model.fit(train.drop(columns=label), train[label])
    seconds = time.perf_counter() - start
    p = model.predict_proba(test.drop(columns=label))[:, 1]
    right = model.predict(test.drop(columns=label)) == test[label]
    auc = roc_auc_score(test[label] == model.classes_[1], p)
    return {"auc": float(auc), "accuracy": float(right.mean()), "seconds": seconds}


def telco_folds(seed: int, smoke: bool) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """Customers who left: train and test rows of five folds, drawn anew for each seed."""
    from sklearn.model_selection import StratifiedKFold

    if smoke:
        rng = np.random.default_rng(0)
        table = pd.DataFrame({"tenure": rng.integers(0, 72, 400), "Contract": ["a", "b"] * 200})
        table["Churn"] = np.where(table["tenure"] < 36, "Yes", "No")
    else:
        (file,) = folder_of("telco_churn").glob("*.csv")
        table = pd.read_csv(file).drop(columns="customerID")
        table["TotalCharges"] = pd.to_numeric(table["TotalCharges"], errors="coerce").fillna(0)
    folds = StratifiedKFold(2 if smoke else 5, shuffle=True, random_state=seed)
    rows = folds.split(table, table["Churn"])
    return [(table.iloc[train], table.iloc[test]) for train, test in rows]


def telco(settings: Settings, seed: int, folder: Path) -> Rows:
    """Customers who left, in five folds."""
    found: dict[str, list[dict[str, float]]] = {}
    options = {"budget": "2s", "method": tabular.TabM()} if settings.smoke else {}
    for both in telco_folds(seed, settings.smoke):
        for name, row in two_classes(settings, seed, *both, "Churn", **options).items():
            found.setdefault(name, []).append(row)
    return {name: {k: float(np.mean([x[k] for x in v])) for k in v[0]} for name, v in found.items()}


def two_classes(
    settings: Settings,
    seed: int,
    train: pd.DataFrame,
    test: pd.DataFrame,
    label: str,
    **options: Any,
) -> Rows:
    """The default of the tabular room and its rivals."""
    model, seconds = timed(tabular.fit, train, label=label, seed=seed, **options)
    figures = tabular.evaluate(model, test).figures()
    rows = {"default": {k: figures[k] for k in ("auc", "accuracy")} | {"seconds": seconds}}
    if settings.rivals and seed == 0:
        rows["trees"] = trees(train, test, label)
        rows["logistic"] = linear(train, test, label)
    return rows


def adult_frames() -> tuple[pd.DataFrame, pd.DataFrame]:
    """Incomes of the census: train and test rows."""
    train, test = (
        pd.read_csv(
            folder_of("adult") / f"adult-{split}.csv.gz",
            names=ADULT,
            skipinitialspace=True,
            comment="|",
        )
        for split in ("train", "test")
    )
    for part in (train, test):
        part["income"] = part["income"].str.rstrip(".")
    return train, test


def adult(settings: Settings, seed: int, folder: Path) -> Rows:
    """Incomes of the census."""
    train, test = adult_frames()
    return two_classes(settings, seed, train, test, "income")


def churn_frames() -> list[pd.DataFrame]:
    """Customers of a bank who left: train, validation and test rows."""
    table = pd.read_csv(folder_of("churn") / "Churn_Modelling.csv.gz")
    return parts(table.drop(columns=["RowNumber", "CustomerId", "Surname"]), "churn")


def churn(settings: Settings, seed: int, folder: Path) -> Rows:
    """Customers of a bank who left."""
    train, validation, test = churn_frames()
    return two_classes(settings, seed, train, test, "Exited", validation=validation)


def california_frames() -> list[pd.DataFrame]:
    """Values of houses in 100,000 dollars: train, validation and test rows."""
    names = ["longitude", "latitude", "age", "rooms", "bedrooms", "people", "homes", "income"]
    file = folder_of("california") / "cal_housing.data.gz"
    table = pd.read_csv(file, names=[*names, "value"])
    table["value"] /= 100_000
    for name in ("rooms", "bedrooms"):
        table[name] /= table["homes"]
    table["homes"] = table["people"] / table["homes"]
    return parts(table, "california")


def california(settings: Settings, seed: int, folder: Path) -> Rows:
    """Values of houses."""
    train, validation, test = california_frames()
    options = {"label": "value", "validation": validation, "seed": seed}
    model, seconds = timed(tabular.fit, train, **options)
    rmse = tabular.evaluate(model, test).figures()["rmse"]
    rows = {"default": {"rmse": rmse, "seconds": seconds}}
    if settings.rivals and seed == 0:
        from sklearn.ensemble import HistGradientBoostingRegressor

        start = time.perf_counter()
        model = HistGradientBoostingRegressor(random_state=0)
        model.fit(train.drop(columns="value"), train["value"])
        seconds = time.perf_counter() - start
        error = model.predict(test.drop(columns="value")) - test["value"]
        rows["trees"] = {"rmse": float((error**2).mean() ** 0.5), "seconds": seconds}
    return rows


def parts(table: pd.DataFrame, name: str) -> list[pd.DataFrame]:
    """The train, validation and test rows of a data set that has its split beside it."""
    split = np.load(folder_of(name) / "split.npz")
    return [table.iloc[split[part]] for part in ("train", "val", "test")]


def support_vectors(train: dict[str, Any], test: dict[str, Any]) -> dict[str, float]:
    """Accuracy of scikit-learn's linear SVM on the tf-idf of words and characters."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline, make_union
    from sklearn.svm import LinearSVC

    features = make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
    )
    start = time.perf_counter()
    model = make_pipeline(features, LinearSVC()).fit(train["text"], train["label"])
    seconds = time.perf_counter() - start
    return {"accuracy": float(model.score(test["text"], test["label"])), "seconds": seconds}


def texts(settings: Settings, seed: int, train: Any, test: Any, rival: Any, **options: Any) -> Rows:
    """The default of the text room, and the linear SVM on the rows of `rival`."""
    model, seconds = timed(text.fit, train, seed=seed, **options)
    accuracy = text.evaluate(model, test).figures()["accuracy"]
    rows = {"default": {"accuracy": accuracy, "seconds": seconds}}
    if settings.rivals and seed == 0:
        rows["svm"] = support_vectors(rival, test)
    return rows


def banking77(settings: Settings, seed: int, folder: Path) -> Rows:
    """77 intents of banking questions."""
    train, test = (
        pd.read_csv(folder_of("banking77") / f"{split}.csv").rename(columns={"category": "label"})
        for split in ("train", "test")
    )
    return texts(settings, seed, train, test, train)


def clinc150(settings: Settings, seed: int, folder: Path) -> Rows:
    """150 intents, without the questions out of scope."""
    with gzip.open(folder_of("clinc150") / "data_full.json.gz", "rt") as file:
        data = json.load(file)
    train, validation, test = (
        pd.DataFrame(data[split], columns=["text", "label"]) for split in ("train", "val", "test")
    )
    return texts(settings, seed, train, test, train, validation=validation)


def mnist(settings: Settings, seed: int, folder: Path) -> Rows:
    """Handwritten digits, as arrays."""
    digits = jo.data.load("mnist")
    model, seconds = timed(vision.fit, digits.train, seed=seed)
    accuracy = vision.evaluate(model, digits.test).figures()["accuracy"]
    return {"default": {"accuracy": accuracy, "seconds": seconds}}


def cifar10_jpg(settings: Settings, seed: int, folder: Path) -> Rows:
    """Photographs of 10 classes, JPEG files in a folder for each class."""
    for split in ("train", "test"):
        if not (folder.parent / split).exists():
            with tarfile.open(folder_of("cifar10_jpg") / f"{split}.tar.gz") as archive:
                archive.extractall(folder.parent, filter="data")
    train, test = folder.parent / "train", folder.parent / "test"
    methods = {"default": None} | ({"cnn": vision.CNN()} if settings.rivals and seed == 0 else {})
    rows = {}
    for name, method in methods.items():
        model, seconds = timed(vision.fit, train, method, seed=seed)
        accuracy = vision.evaluate(model, test).figures()["accuracy"]
        rows[name] = {"accuracy": accuracy, "seconds": seconds}
    return rows


def beauty(settings: Settings, seed: int, folder: Path) -> Rows:
    """What 40,226 users buy next, of 54,542 items."""
    log = pd.read_csv(folder_of("beauty") / "beauty.txt", sep=" ", names=["user", "item"])
    log["time"] = np.arange(len(log))
    last = ~log.duplicated("user", keep="last")
    models = {}
    model, seconds = timed(recommend.fit, log[~last], seed=seed)
    models["default"] = model, seconds
    if settings.rivals and seed == 0:
        rivals = {
            "item-kNN": recommend.ItemKNN(),
            "item-kNN by order": recommend.ItemKNN(shrink=30.0, decay=0.8, backward=0.5),
            "popularity": recommend.Popularity(),
        }
        for rival, method in rivals.items():
            models[rival] = timed(recommend.fit, log[~last], method)
    rows = {}
    for name, (model, seconds) in models.items():
        figures = recommend.evaluate(model, log[last], log[~last]).figures()
        rows[name] = {"ndcg": figures["ndcg@10"], "hr": figures["hr@10"], "seconds": seconds}
    return rows


def ett(settings: Settings, seed: int, folder: Path, name: str) -> Rows:
    """Load and oil temperature of a transformer, 96 hours ahead."""
    table = pd.read_csv(folder_of("ett") / f"{name}.csv")[:14_400]
    channels = [column for column in table if column != "date"]
    train = table.loc[: 8640 - 1, channels]
    table[channels] = (table[channels] - train.mean()) / train.std(ddof=0)
    options = {"layout": "channels", "time": "date", "horizon": 96}
    # as many rows for validation as the protocol has
    learned, held = table[: 8640 + 2880], {"validation": 2880}
    methods: dict[str, Any] = {"default": None}
    if settings.rivals and seed == 0:
        methods["seasonal naive"] = forecast.Baseline("seasonal_naive", 24)
        methods["repeat last"] = forecast.Baseline("repeat_last")
        methods["nlinear"] = forecast.NLinear(336, 96)
    rows = {}
    for key, method in methods.items():
        model, seconds = timed(forecast.fit, learned, method, seed=seed, **options, **held)
        figures = forecast.evaluate(model, table, rows=2880, stride=1).figures()
        rows[key] = {"mse": figures["mse"], "mae": figures["mae"], "seconds": seconds}
    return rows


def etth1(settings: Settings, seed: int, folder: Path) -> Rows:
    return ett(settings, seed, folder, "ETTh1")


def etth2(settings: Settings, seed: int, folder: Path) -> Rows:
    return ett(settings, seed, folder, "ETTh2")


def m4_hourly(settings: Settings, seed: int, folder: Path) -> Rows:
    """414 series of M4's competition, 48 hours ahead."""
    train, test = (
        {
            str(row.iloc[0]): row.iloc[1:].dropna().to_numpy(float)
            for _, row in pd.read_csv(folder_of("m4") / f"Hourly-{split}.csv.gz").iterrows()
        }
        for split in ("train", "test")
    )
    learned = forecast.from_arrays(list(train), list(train.values()))
    whole = forecast.from_arrays(
        list(train), [np.concatenate([train[name], test[name]]) for name in train]
    )
    methods: dict[str, Any] = {"default": None}
    if settings.rivals and seed == 0:
        methods["seasonal naive"] = forecast.Baseline("seasonal_naive", 24)
    rows = {}
    for key, method in methods.items():
        model, seconds = timed(forecast.fit, learned, method, seed=seed, horizon=48, season=24)
        figures = forecast.evaluate(model, whole).figures()
        rows[key] = {name: figures[name] for name in ("smape", "mase")} | {"seconds": seconds}
        if "coverage" in figures:
            rows[key]["coverage"] = figures["coverage"]
    return rows


JOBS = {
    job.__name__: job
    for job in (
        telco,
        adult,
        churn,
        california,
        banking77,
        clinc150,
        mnist,
        cifar10_jpg,
        beauty,
        etth1,
        etth2,
    )
} | {"m4_hourly": m4_hourly}


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """Each data set in turn."""
    names = settings.only or (("telco",) if settings.smoke else tuple(JOBS))
    unknown = [name for name in names if name not in JOBS]
    if unknown:
        raise ValueError(f"only must name some of {', '.join(JOBS)}, got {unknown[0]!r}")
    metrics: dict[str, float] = {}
    models: Rows = {}
    for name in names:
        common.say(f"seed {seed}: {name}")
        rows = JOBS[name](settings, seed, folder)
        common.say(report.table([{"model": key} | row for key, row in rows.items()]))
        models |= {f"{name}: {key}": row for key, row in rows.items()}
        metrics |= {f"{name}_{key}": value for key, value in rows["default"].items()}
    return metrics | {"models": models}


if __name__ == "__main__":
    common.experiment("defaults", Settings, run, PUBLISHED)
