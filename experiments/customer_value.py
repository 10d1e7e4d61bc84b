"""What customers buy and bring after a cut-off: closed forms beside gradient-boosted trees.

CDNOW, the sample of 2,357 customers and all 23,570: purchases up to 1997-09-30 are seen, the 39
weeks after are to be told. The parameters are compared with the published ones; a picture has
expected and actual purchases by frequency.

UCI online retail, 4,266 customers known at 2010-11-30 (rows with a customer, a quantity and a price
above 0; those of the first file from 2010-12-01 on are in the second as well):

- year: the value within 365 days. The closed forms see purchases before the cut-off alone. Learned
  models see the snapshot table of the first year and the second-year values of other customers
  (five folds, so a customer's value is told by models that did not see it). They have labels of
  the very year that is told, which the closed forms have not.
- quarter: the value within 90 days, and whether a customer comes back. Learned models are trained
  on earlier snapshots, whose labels end by the cut-off, as one would have to on that day; survival
  models (Cox, DeepSurv) on these and on later ones, censored at the cut-off.

`mae`, `total_error` and so on are those of `customers.value_scores`, in pounds (CDNOW: purchases);
differences from BG/NBD are paired, with 95 % bootstrap intervals over customers. `before` is the
value of as much time before the cut-off (frequency, where it is who comes back). Purchases of a day
count as one.

Expected on CDNOW: r 0.243, alpha 4.414, a 0.793, b 2.426, p 6.25, q 3.74, v 15.44; 0.88 of the
purchases of the 39 weeks after (all customers: 0.86). Of the shop's second year BG/NBD tells 1.31
times the value, with a Spearman correlation of 0.584 and a Gini of 0.826; trees (Poisson) 0.616 and
0.834 with labels of that year; the value of the year before 0.619 and 0.845. Of who stays away for
90 days Cox has an AUC of 0.794, BG/NBD 0.787, trees 0.771. Six minutes on two cores that did other
work as well.

    JAXOPS_DATA_DIR=DATA python -m experiments.customer_value [--tabular]
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from experiments import common
from jaxops import customers, survival, tabular
from jaxops.trust import report
from jaxops.trust._figures import BLUE, ORANGE, new_figure, open_frame, save_figure
from jaxops.trust.evaluation import Evaluation, of_classes

PUBLISHED = {
    "cdnow_r": "0.243 (Fader, Hardie and Lee 2005)",
    "cdnow_alpha": "4.414 (Fader, Hardie and Lee 2005)",
    "cdnow_a": "0.793 (Fader, Hardie and Lee 2005)",
    "cdnow_b": "2.426 (Fader, Hardie and Lee 2005)",
    "cdnow_p": "6.25 (Fader and Hardie 2013)",
    "cdnow_q": "3.74 (Fader and Hardie 2013)",
    "cdnow_v": "15.45 (Fader and Hardie 2013)",
}
METHODS = {
    "BG/NBD": customers.BGNBD(),
    "MBG/NBD": customers.MBGNBD(),
    "Pareto/NBD": customers.ParetoNBD(),
}
CUTOFF = "2010-11-30"
EARLIER = ["2010-06-30", "2010-07-31", "2010-08-31"]  # + 90 days is up to the cut-off
LATE = ["2010-09-30", "2010-10-31"]  # whose 90 days are not over at the cut-off
SURVIVAL = {  # rows of one customer are dependent
    "Cox": survival.Cox(l2=10.0, cluster="customer"),
    "DeepSurv": survival.DeepSurv(),
}
FIGURES = ("mae", "spearman", "gini", "total_error", "total_ratio")
Table = dict[str, np.ndarray]


@dataclass(frozen=True)
class Settings(common.Settings):
    """What is tried."""

    tabular: bool = False
    """train two networks of the tabular room as well, of the mean and of a zero-inflated lognormal
    distribution, each five times and once, for a minute each"""


def folder_of(name: str) -> Path:
    return Path(os.environ.get("JAXOPS_DATA_DIR", "."), name)


def cdnow(whole: bool) -> customers.Purchases:
    """The log of the sample, or of all customers."""
    if whole:
        file, names = folder_of("cdnow_master") / "CDNOW_master.txt.gz", ["customer", "time"]
    else:
        file, names = folder_of("cdnow") / "CDNOW_sample.txt", ["master", "customer", "time"]
    names = [*names, "discs", "amount"]
    table = pd.read_csv(file, sep=r"\s+", names=names, skiprows=int(whole))
    table["time"] = pd.to_datetime(table["time"], format="%Y%m%d")
    return customers.purchases(table, amount="amount")


def retail() -> customers.Purchases:
    """The log of the shop's two years."""
    first, second = (
        pd.read_parquet(folder_of("online_retail") / f"online_retail_{years}.parquet")
        for years in ("2009_2010", "2010_2011")
    )
    first = first.rename(columns={"Price": "UnitPrice", "Customer ID": "CustomerID"})
    first["InvoiceDate"] = pd.to_datetime(first["InvoiceDate"])
    names = ["CustomerID", "InvoiceDate", "Quantity", "UnitPrice"]
    both = pd.concat([first.loc[first["InvoiceDate"] < "2010-12-01", names], second[names]])
    real = both["CustomerID"].notna() & (both["Quantity"] > 0) & (both["UnitPrice"] > 0)
    both = both[real]
    return customers.purchases(
        {
            "customer": both["CustomerID"].astype(int).to_numpy(),
            "time": both["InvoiceDate"].to_numpy(),
            "amount": (both["Quantity"] * both["UnitPrice"]).to_numpy(),
        },
        amount="amount",
    )


def made_up(count: int, days: int = 740) -> customers.Purchases:
    """A small log with the dates of the shop's, for a smoke test."""
    rng = np.random.default_rng(0)
    born = rng.uniform(0, 300, count)[:, None]
    rate = rng.gamma(0.9, 0.04, count)[:, None]
    leaves = rng.uniform(size=(count, 59)) < rng.beta(1, 5, count)[:, None]
    left = np.cumsum(np.pad(leaves, ((0, 0), (2, 0))), 1) > 0
    times = born + np.cumsum(np.pad(rng.exponential(1 / rate, (count, 60)), ((0, 0), (1, 0))), 1)
    kept = (times < days) & ~left
    amount = rng.gamma(5, 1, times.shape) * (30 / rng.gamma(4, 1, count))[:, None]
    moments = np.datetime64("2009-12-01") + np.floor(times[kept]).astype("timedelta64[D]")
    who = np.broadcast_to(np.arange(count)[:, None], times.shape)[kept]
    table = {"customer": who, "time": moments, "amount": amount[kept]}
    return customers.purchases(table, amount="amount")


def methods(settings: Settings) -> dict[str, Any]:
    return {"BG/NBD": METHODS["BG/NBD"]} if settings.smoke else METHODS


def holdout(
    settings: Settings, log: customers.Purchases, cutoff: str, name: str, folder: Path
) -> dict[str, Any]:
    """Fits, and expected against actual purchases of the 39 weeks after; the rows of the models."""
    rows, groups = {}, {}
    metrics: dict[str, float] = {}
    for method_name, method in methods(settings).items():
        start = time.perf_counter()
        model = customers.fit(log, method, horizon=39, cutoff=cutoff, unit="week")
        seconds = time.perf_counter() - start
        scored = customers.evaluate(model, log)
        expected, actual = (scored.parts[f"{w}_purchases"] for w in ("expected", "actual"))
        figures = customers.value_scores(scored.ids, expected, actual).figures()
        rows[f"{name}: {method_name}"] = {key: figures[key] for key in FIGURES} | {
            "return_auc": scored.figures()["return_auc"],
            "value_total_ratio": scored.figures()["total_ratio"],
            "log_likelihood": model.about["log_likelihood"],
            "seconds": seconds,
        }
        groups[method_name] = by_frequency(scored.parts["frequency"], expected, actual)
        if method_name == "BG/NBD":
            found = {**model.task.of_purchases, **model.task.of_spend}
            metrics |= {f"{name}_{key}": value for key, value in found.items()}
            metrics[f"{name}_total_ratio"] = figures["total_ratio"]
            common.say(report.table(model.task.estimates().round(4).to_dict("records")))
    common.say(report.table(side_by_side(groups)))
    plot_by_frequency(groups, folder / f"{name}_by_frequency.png")
    return metrics | {"models": rows}


def by_frequency(x: np.ndarray, expected: np.ndarray, actual: np.ndarray) -> pd.DataFrame:
    """Mean purchases after the cut-off, expected and actual, by frequency; 7 is 7 or more."""
    table = pd.DataFrame({"x": np.minimum(x, 7), "expected": expected, "actual": actual})
    groups = table.groupby("x")
    return groups.mean().assign(
        customers=groups.size(), error=groups["actual"].std() / np.sqrt(groups.size())
    )


def side_by_side(groups: dict[str, pd.DataFrame]) -> list[dict[str, Any]]:
    first = next(iter(groups.values()))
    return [
        {
            "frequency": f"{x:.0f}" if x < 7 else "7 or more",
            "customers": f"{first.loc[x, 'customers']:.0f}",
            "actual": f"{first.loc[x, 'actual']:.3f} ± {1.96 * first.loc[x, 'error']:.3f}",
        }
        | {name: f"{table.loc[x, 'expected']:.3f}" for name, table in groups.items()}
        for x in first.index
    ]


def plot_by_frequency(groups: dict[str, pd.DataFrame], path: Path) -> None:
    """Expected and actual means by frequency, a panel each model."""
    figure = new_figure(3.6 * len(groups), 3.2)
    panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
    for axes, (name, table) in zip(panels, groups.items(), strict=True):
        axes.errorbar(
            table.index, table["actual"], 1.96 * table["error"], fmt="o-", color=BLUE, capsize=3,
            label="actual, 95 %",
        )  # fmt: skip
        axes.plot(table.index, table["expected"], "s--", color=ORANGE, label="expected")
        axes.set(title=name, xlabel="purchases after the first, before the cut-off")
        axes.set_xticks(table.index, [f"{x:.0f}" if x < 7 else "7+" for x in table.index])
        open_frame(axes)
    panels[0].set_ylabel("mean purchases in the 39 weeks after")
    panels[0].legend(frameon=False)
    save_figure(figure, path)


def features(table: Table, label: str) -> np.ndarray:
    return np.stack([v for k, v in table.items() if k not in ("customer", "cutoff", label)], 1)


def trees(loss: str, iterations: int) -> Callable[[Table, Table], np.ndarray]:
    """Learns values from a table by gradient-boosted trees, and tells those of another."""

    def told(train: Table, test: Table) -> np.ndarray:
        from sklearn.ensemble import HistGradientBoostingRegressor

        model = HistGradientBoostingRegressor(loss=loss, max_iter=iterations, random_state=0)
        model.fit(features(train, "value"), train["value"])
        return np.maximum(model.predict(features(test, "value")), 0)

    return told


def tabular_default(train: Table, test: Table) -> np.ndarray:
    """The same by the default of the tabular room."""
    model = tabular.fit(
        train, tabular.TabM(), label="value", groups="customer", drop=["cutoff"], classes=False,
        budget="60s", progress=False,
    )  # fmt: skip
    return np.maximum(model.predict(test).values, 0)


def zero_inflated(train: Table, test: Table) -> np.ndarray:
    """The same by a zero-inflated lognormal distribution of the value."""
    model = tabular.fit(
        train, tabular.TabM(), label="value", groups="customer", drop=["cutoff"],
        target="zero_inflated", budget="60s", progress=False,
    )  # fmt: skip
    return np.asarray(model.predict(test).values, np.float64)


def learners(settings: Settings) -> dict[str, Callable[[Table, Table], np.ndarray]]:
    iterations = 10 if settings.smoke else 100
    losses = {"trees": "squared_error", "trees, Poisson": "poisson"}
    known = {name: trees(loss, iterations) for name, loss in losses.items()}
    networks = {"tabular": tabular_default, "tabular, zero-inflated": zero_inflated}
    return known | (networks if settings.tabular else {})


def part(table: Table, rows: np.ndarray) -> Table:
    return {name: column[rows] for name, column in table.items()}


def year(settings: Settings, log: customers.Purchases) -> dict[str, Evaluation]:
    """The value within 365 days of each customer known at the cut-off, by model."""
    scored = {name: closed(log, method, 365) for name, method in methods(settings).items()}
    table = customers.snapshots(log, [CUTOFF], 365, windows=[30, 90, 180, 365])
    fold = np.random.default_rng(0).permutation(len(table["value"])) % 5
    for name, learn in learners(settings).items():
        told = np.zeros(len(fold))
        for i in range(5):
            told[fold == i] = learn(part(table, fold != i), part(table, fold == i))
        scored[name] = customers.value_scores(table["customer"], told, table["value"])
    before = table["amount in 365"]
    return scored | {"before": customers.value_scores(table["customer"], before, table["value"])}


def quarter(settings: Settings, log: customers.Purchases) -> dict[str, Evaluation]:
    """The value within 90 days, likewise; learned from earlier snapshots."""
    scored = {name: closed(log, method, 90) for name, method in methods(settings).items()}
    train, test = (customers.snapshots(log, cutoffs, 90) for cutoffs in (EARLIER, [CUTOFF]))
    for name, learn in learners(settings).items():
        scored[name] = customers.value_scores(test["customer"], learn(train, test), test["value"])
    before = test["amount in 90"]
    return scored | {"before": customers.value_scores(test["customer"], before, test["value"])}


def closed(log: customers.Purchases, method: Any, days: float) -> Evaluation:
    model = customers.fit(log, method, horizon=days, cutoff=CUTOFF)
    return customers.evaluate(model, log)


def compared(scored: dict[str, Evaluation], name: str, folder: Path) -> dict[str, Any]:
    """The rows of the models, printed with intervals; and a picture of deciles."""
    common.say(report.table(value_rows(scored)))
    shown = {
        key: customers.deciles(scored[key].parts["expected"], scored[key].parts["actual"])
        for key in ("BG/NBD", "trees")
    }
    customers.plot_deciles(shown, folder / f"{name}_deciles.png", "value, pounds")
    rows = {}
    for key, one in scored.items():
        figures = one.figures()
        rows[f"{name}: {key}"] = {figure: figures[figure] for figure in FIGURES}
        rows[f"{name}: {key}"]["decile_mape"] = customers.deciles(
            one.parts["expected"], one.parts["actual"]
        ).mape()
        if key != "BG/NBD":
            for figure in ("mae", "spearman", "gini"):
                difference = one.paired(scored["BG/NBD"], figure)
                rows[f"{name}: {key}"] |= {
                    f"{figure}_less_bgnbd": difference.difference,
                    f"{figure}_less_bgnbd_low": difference.low,
                    f"{figure}_less_bgnbd_high": difference.high,
                }
    return rows


def value_rows(scored: dict[str, Evaluation]) -> list[dict[str, str]]:
    """Each figure with its interval; and its difference from BG/NBD, paired."""
    table = []
    for name, one in scored.items():
        row = {"model": name}
        for figure in FIGURES:
            value, low, high = one.interval(figure)
            form = "{:,.0f} [{:,.0f}, {:,.0f}]" if abs(value) > 10 else "{:.3f} [{:.3f}, {:.3f}]"
            row[figure] = form.format(value, low, high)
        table.append(row)
    return table


def staying_away(method: Any) -> Callable[[customers.Purchases, Table], np.ndarray]:
    """The probability of no purchase within 90 days, by a survival model of earlier snapshots.

    Snapshots of the last months before the cut-off are in training too, censored there.
    """

    def told(log: customers.Purchases, test: Table) -> np.ndarray:
        train = customers.snapshots(log, [*EARLIER, *LATE], 90, label="time", end=CUTOFF)
        model = survival.fit(
            logarithms(train), method, time="time", event="returned", drop=["customer", "cutoff"],
            progress=False,
        )  # fmt: skip
        return 1 - survival.probability_before(model, logarithms(test), [90.0])[:, 0]

    return told


def logarithms(table: Table) -> Table:
    """The table with its features as log(1 + feature)."""
    as_they_are = ("customer", "cutoff", "time", "returned")
    return {k: v if k in as_they_are else np.log1p(v) for k, v in table.items()}


def churn(log: customers.Purchases, settings: Settings, folder: Path) -> dict[str, Any]:
    """Who does not come back within 90 days: AUC, log loss, and the profit of a campaign."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    train, test = (
        customers.snapshots(log, cutoffs, 90, label="returned") for cutoffs in (EARLIER, [CUTOFF])
    )
    left = ~test["returned"]
    told = {
        name: 1 - closed(log, method, 90).parts["returns"]
        for name, method in methods(settings).items()
    }
    model = HistGradientBoostingClassifier(random_state=0)
    model.fit(features(train, "returned"), train["returned"])
    told["trees"] = 1 - model.predict_proba(features(test, "returned"))[:, 1]
    for name, method in SURVIVAL.items():
        if not settings.smoke or name == "Cox":
            told[name] = staying_away(method)(log, test)
    told["before"] = 1 / (1.0 + test["frequency"])
    scored = {
        name: of_classes("customer", test["customer"], np.stack([1 - p, p], 1), left.astype(int))
        for name, p in told.items()
    }
    rows = {f"churn: {name}": churn_row(one, scored["BG/NBD"]) for name, one in scored.items()}
    del rows["churn: before"]["log_loss"]  # no probability
    common.say(report.table([{"model": k} | v for k, v in rows.items()]))
    curves = {
        name: customers.profit_curve(told[name], left, benefit=0.3 * 190, cost=11.0)
        for name in ("BG/NBD", "trees")
    }
    customers.plot_profit(curves, folder / "profit.png")
    return rows


def churn_row(scored: Evaluation, first: Evaluation) -> dict[str, float]:
    """The figures of a churn score with intervals, and the AUC less that of the first, paired."""
    auc, less = scored.interval("auc"), scored.paired(first, "auc")
    p, left = scored.parts["probabilities"][:, 1], scored.parts["target"]
    best = customers.expected_maximum_profit(p, left)
    return {
        "auc": auc.mean,
        "auc_low": auc.low,
        "auc_high": auc.high,
        "auc_less_bgnbd": less.difference,
        "auc_less_bgnbd_low": less.low,
        "auc_less_bgnbd_high": less.high,
        "log_loss": scored.figures()["log_loss"],
        "empc": best.profit,
        "empc_low": best.low,
        "empc_high": best.high,
        "contacted": best.contacted,
    }


def run(settings: Settings, seed: int, folder: Path) -> dict[str, Any]:
    """CDNOW, then the shop."""
    metrics: dict[str, Any] = {}
    models: dict[str, Any] = {}
    small = made_up(400)
    for name, whole in (("cdnow", False), ("master", True)):
        if settings.smoke and whole:
            continue
        log = small if settings.smoke else cdnow(whole)
        cutoff = CUTOFF if settings.smoke else "1997-09-30"
        found = holdout(settings, log, cutoff, name, folder)
        models |= found.pop("models")
        metrics |= found
    log = small if settings.smoke else retail()
    for name, told in (("year", year), ("quarter", quarter)):
        scored = told(settings, log)
        models |= compared(scored, name, folder)
        metrics |= {f"{name}_{k}": scored["BG/NBD"].figures()[k] for k in FIGURES}
    return metrics | {"models": models | churn(log, settings, folder)}


if __name__ == "__main__":
    common.experiment("customer_value", Settings, run, PUBLISHED)
