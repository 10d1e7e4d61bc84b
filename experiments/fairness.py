"""What each way to treat groups more equally costs: accuracy against two measures of fairness.

- adult: whether somebody earns more than 50,000 dollars, of women and men (official test rows).
- compas: whether a defendant is charged again within two years, of those whom the file names
  African-American and Caucasian (of the 6,172 rows of the published analysis; 60 % train, 20 %
  validation, 20 % test rows, drawn anew for each seed).

The protected column is no feature. One network, MLP((64, 64)), is trained by every method with the
same settings, at several strengths:

- none
- reweighing (Kamiran and Calders 2012): weights 1 + s (w - 1)
- thresholds by group on validation rows (Hardt et al. 2016), for both measures, by tolerance
- exponentiated gradient (Agarwal et al. 2018), for both measures, by bound
- group DRO over label and group (Sagawa et al. 2020), by rate
- adversarial (Zhang et al. 2018), for both measures, by strength

On the test rows: accuracy, AUC where there is a score, `dp` (the difference of selection rates) and
`odds` (the larger of the differences of true and false positive rates). `frontier.png` shows means
and standard deviations over the seeds. The score of COMPAS itself is held against the published
false positive rates.

    JAXOPS_DATA_DIR=DATA python -m experiments.fairness --seeds 3
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxops as jo
from experiments import common
from experiments.defaults import adult_frames, folder_of
from jaxops import fairness, tabular
from jaxops.data.splits import held_out
from jaxops.trust._figures import new_figure, open_frame, save_figure
from jaxops.trust.evaluation import auc_of

PUBLISHED = {
    "adult_accuracy": "0.853 (logistic regression, measured on these files)",
    "compas_score_fpr": "0.2140 = 0.4485 - 0.2345 (ProPublica's analysis)",
}
DP, ODDS = "demographic parity", "equalised odds"
COLORS = {
    "none": "#000000",
    "reweighing": "#0072B2",
    "thresholds": "#D55E00",
    "gradient": "#009E73",
    "dro": "#CC79A7",
    "adversarial": "#E69F00",
}
COMPAS = ("age", "sex", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count",
          "c_charge_degree")  # fmt: skip


@dataclass(frozen=True)
class Settings(common.Settings):
    """How long is trained, and what is tried."""

    epochs: int = 10
    """passes over the train rows"""
    iterations: int = 4
    """of the exponentiated gradient, each of which trains up to three networks"""
    only: tuple[str, ...] = ()
    """data sets; all by default"""


class Part(NamedTuple):
    """Rows of a data set."""

    features: np.ndarray
    label: np.ndarray
    group: np.ndarray  # 0 or 1


class Data(NamedTuple):
    """Train, validation and test rows."""

    train: Part
    validation: Part
    test: Part


def parted(parts: list[pd.DataFrame], label: np.ndarray, group: np.ndarray) -> Data:
    """Three tables of features, encoded as the first one says."""
    tables = [tabular.read(part) for part in parts]
    encoder = tabular.fit_encoder(tables[0])
    features = [tabular.encode(encoder, table)["features"] for table in tables]
    ends = np.cumsum([len(part) for part in parts])[:-1]
    columns = zip(features, np.split(label, ends), np.split(group, ends), strict=True)
    return Data(*(Part(x, y.astype(np.int32), g.astype(np.int32)) for x, y, g in columns))


def adult(seed: int) -> Data:
    """Incomes of the census."""
    train, test = adult_frames()
    own, held = held_out(len(train), 0.2, train["income"], seed=seed)
    parts = [train.iloc[own], train.iloc[held], test]
    every = pd.concat(parts)
    x = [part.drop(columns=["income", "sex"]).reset_index(drop=True) for part in parts]
    return parted(x, (every["income"] == ">50K").to_numpy(), (every["sex"] == "Male").to_numpy())


def compas_frame() -> pd.DataFrame:
    """The rows of two groups of the published analysis."""
    table = pd.read_csv(folder_of("compas") / "compas-two-years.csv.gz", keep_default_na=False,
                        na_values={"days_b_screening_arrest": [""]})  # fmt: skip
    kept = table["days_b_screening_arrest"].between(-30, 30) & (table["is_recid"] != -1)
    kept &= (table["c_charge_degree"] != "O") & (table["score_text"] != "N/A")
    kept &= table["race"].isin(["African-American", "Caucasian"])
    return table[kept].reset_index(drop=True)


def compas(seed: int) -> Data:
    """Defendants who are charged again within two years."""
    table = compas_frame()
    label, group = table["two_year_recid"].to_numpy(), (table["race"] == "Caucasian").to_numpy()
    both = label * 2 + group
    rest, test = held_out(len(table), 0.2, both, seed=seed)
    own, held = held_out(len(rest), 0.25, both[rest], seed=seed)
    rows = [rest[own], rest[held], test]
    every = np.concatenate(rows)
    x = [table.iloc[part][[*COMPAS]].reset_index(drop=True) for part in rows]
    return parted(x, label[every], group[every])


def made_up(seed: int) -> Data:
    """Rows for a smoke test, whose groups have other base rates."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 2, 900)
    x = pd.DataFrame({"a": rng.normal(group, 1), "b": rng.normal(0, 1, 900)})
    label = x["a"] + x["b"] + rng.normal(0, 1, 900) > 0.8
    parts = [part.reset_index(drop=True) for part in (x[:500], x[500:700], x[700:])]
    return parted(parts, label.to_numpy(), group)


def compas_score() -> dict[str, float]:
    """The difference of false positive rates of the score itself, on all 7,214 rows."""
    table = pd.read_csv(folder_of("compas") / "compas-two-years.csv.gz", keep_default_na=False)
    table = table[table["race"].isin(["African-American", "Caucasian"])]
    found = fairness.of_classes(
        table["two_year_recid"], table["score_text"] != "Low", {"race": table["race"]}
    )
    return {"compas_score_fpr": found.disparities["equal false positives difference"].value}


class Trained(NamedTuple):
    """How networks are trained, and what they say."""

    task: jo.Task
    data: Data
    epochs: int
    seed: int

    def state(self, task: jo.Task, **columns: Any) -> jo.TrainState:
        train = self.data.train
        rows = {"features": train.features, "label": train.label, **columns}
        many = len(train.label) > 10_000
        return jo.fit(
            task,
            rows,
            optimizer=jo.optim.adamw(3e-3 if many else 1e-3, weight_decay=1e-2),
            batch_size=1024 if many else 128,
            epochs=self.epochs,
            seed=self.seed,
            progress=False,
        )

    def p(self, state: jo.TrainState, part: Part) -> np.ndarray:
        return np.asarray(jo.predict(self.task, state, {"features": part.features}), np.float64)


def scored(part: Part, predicted: np.ndarray, p: np.ndarray | None = None) -> dict[str, float]:
    """Accuracy, AUC, and how far the two groups are apart."""
    found = fairness.of_classes(part.label, predicted, {"group": part.group})
    figures = {
        "accuracy": float((predicted == part.label).mean()),
        "dp": found.disparities["demographic parity difference"].value,
        "odds": found.disparities["equalised odds difference"].value,
    }
    if p is not None:
        figures["auc"] = auc_of(p, part.label)(np.arange(len(p)))
    return figures


def methods(net: Trained, iterations: int, seed: int) -> dict[str, Callable[[], dict[str, float]]]:
    """Method, measure and strength -> what gives its figures."""
    train, validation, test = net.data
    by_group = {"group": train.group}
    plain = net.state(net.task)
    draws = np.random.default_rng(seed).random(len(test.label))

    def of_state(state: jo.TrainState) -> dict[str, float]:
        p = net.p(state, test)
        return scored(test, p > 0.5, p)

    def weighed(strength: float) -> dict[str, float]:
        weights = 1 + strength * (fairness.reweigh(train.label, by_group) - 1)
        return of_state(net.state(net.task, mask=weights.astype(np.float32)))

    def thresholds(constraint: str, tolerance: float) -> dict[str, float]:
        rules = fairness.optimal_thresholds(
            validation.label, net.p(plain, validation), {"group": validation.group},
            constraint, tolerance,
        )  # fmt: skip
        p, groups = net.p(plain, test), fairness.groups_of({"group": test.group})
        return scored(test, draws < fairness.chances(rules, groups, p))

    def gradient(constraint: str, bound: float) -> dict[str, float]:
        def fit(label: np.ndarray, weights: np.ndarray) -> tuple[Any, np.ndarray]:
            state = net.state(net.task, label=label, mask=weights.astype(np.float32))
            return state, net.p(state, train) > 0.5

        mixed = fairness.exponentiated_gradient(
            fit, train.label, by_group, constraint, bound, iterations
        )
        chances = mixed.chances(lambda state: net.p(state, test) > 0.5, len(test.label))
        return scored(test, draws < chances) | {"fits": mixed.fits}

    def dro(rate: float) -> dict[str, float]:
        cell = 2 * train.label + train.group
        shares = np.bincount(cell, minlength=4) / len(cell)
        state = net.state(fairness.group_dro(net.task, shares.tolist(), rate), group=cell)
        return of_state(fairness.inner_state(state))

    def adversarial(constraint: str, strength: float) -> dict[str, float]:
        task = fairness.adversarial(net.task, 2, strength, constraint)
        return of_state(fairness.inner_state(net.state(task, group=train.group)))

    found: dict[str, Callable[[], dict[str, float]]] = {"none, -, 0": partial(of_state, plain)}
    for s in (0.5, 1.0):
        found[f"reweighing, -, {s}"] = partial(weighed, s)
    for c, name in ((DP, "dp"), (ODDS, "odds")):
        for s in (0.1, 0.05, 0.0):
            found[f"thresholds, {name}, {s}"] = partial(thresholds, c, s)
        for s in (0.05, 0.01):
            found[f"gradient, {name}, {s}"] = partial(gradient, c, s)
        for s in (1.0, 4.0):
            found[f"adversarial, {name}, {s}"] = partial(adversarial, c, s)
    for s in (0.01, 0.1):
        found[f"dro, -, {s}"] = partial(dro, s)
    return found


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """All methods on both data sets."""
    sets: dict[str, Callable[[int], Data]] = {"adult": adult, "compas": compas}
    if settings.smoke:
        settings, sets = replace(settings, epochs=1, iterations=1), {"made up": made_up}
    rows: dict[str, dict[str, float]] = {}
    metrics: dict[str, float] = {}
    for name, make in sets.items():
        if settings.only and name not in settings.only:
            continue
        data = make(seed)
        task = tabular.classifier(tabular.MLP((64, 64)), features=data.train.features.shape[1])
        net = Trained(task, data, settings.epochs, seed)
        for method, figures in methods(net, settings.iterations, seed).items():
            if settings.smoke and method.endswith((", 4.0", "-, 0.1")):
                continue  # another strength of a task, which compiles anew
            row = rows[f"{name}: {method}"] = figures()
            told = ", ".join(f"{k} {v:.4f}" for k, v in row.items())
            (folder / "rows.json").write_text(json.dumps(rows))
            common.say(f"seed {seed}, {name}: {method}: {told}")
        for figure in ("accuracy", "dp", "odds"):
            metrics[f"{name}_{figure}".replace(" ", "_")] = rows[f"{name}: none, -, 0"][figure]
    if "compas" in sets and (not settings.only or "compas" in settings.only):
        metrics |= compas_score()
    frontier(spread(folder.parent, seed), folder / "frontier.png")
    return metrics | {"models": rows}


def spread(folder: Path, last: int) -> dict[str, dict[str, Any]]:
    """Row -> figure -> mean and standard deviation over the seeds up to the last."""
    files = [folder / f"seed-{seed}" / "rows.json" for seed in range(last + 1)]
    seeds = [json.loads(file.read_text()) for file in files]
    return {
        row: {name: common.summary([one[row][name] for one in seeds]) for name in seeds[0][row]}
        for row in seeds[0]
    }


def frontier(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Accuracy against both measures, of each data set a row of panels."""
    sets = [*dict.fromkeys(name.split(":")[0] for name in rows)]
    figure = new_figure(9, 3.6 * len(sets))
    panels = figure.subplots(len(sets), 2, squeeze=False)
    measures = {"dp": "difference of selection rates", "odds": "equalised odds difference"}
    for axes_of_set, name in zip(panels, sets, strict=True):
        for axes, (measure, told) in zip(axes_of_set, measures.items(), strict=True):
            lines: dict[str, list[tuple[float, str]]] = {}
            for key in rows:
                of, rest = key.split(": ")
                method, aim, strength = rest.split(", ")
                if of == name and aim in ("-", measure):
                    lines.setdefault(method, []).append((float(strength), key))
            for method, points in lines.items():
                keys = [key for _, key in sorted(points)]
                x, y, dx, dy = ([rows[k][figure][part] for k in keys] for part, figure in (
                    ("mean", measure), ("mean", "accuracy"), ("std", measure),
                    ("std", "accuracy")))  # fmt: skip
                axes.errorbar(x, y, dy, dx, fmt="o-", markersize=4, linewidth=1, capsize=2,
                              color=COLORS[method], label=method)  # fmt: skip
            axes.set(title=name, xlabel=told, ylabel="accuracy")
            axes.set_xlim(left=0)
            open_frame(axes)
    panels[0][0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    common.experiment("fairness", Settings, run, PUBLISHED)
