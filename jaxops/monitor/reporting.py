"""A report of drift and performance: figures as JSON, and the same as one HTML page.

`report` compares what a model was given with its reference, column by column, and says of what
somebody should know: its alerts.
"""

import datetime
import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy
from scipy.special import ndtri

from jaxops._optional import require
from jaxops.data.columns import frame_of, read_with_dates
from jaxops.data.tables import Source
from jaxops.model.finished import Model
from jaxops.monitor.estimated import confidence_based, with_labels
from jaxops.monitor.observing import observed
from jaxops.monitor.reading import Categories, Numbers, missing_rates, psi_of, told
from jaxops.monitor.sketches import Reference, Sketch, merge
from jaxops.monitor.snapshots import Snapshot
from jaxops.monitor.statistics import chi_squared, ks, psi, rate_changed
from jaxops.monitor.views import OutputPart, VectorPart
from jaxops.trust._figures import BLUE, GREY, ORANGE, new_figure, open_frame
from jaxops.trust.evaluation import Evaluation, of_classes
from jaxops.trust.page import grid, page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALPHA = 0.01  # of an alert, for p-values corrected over the columns
SMALL = 0.1  # the index below which a shift is no alert, however many rows show it
TESTS = ("chi_squared", "ks", "missing", "outside")
WHILES = 40  # the largest number of points over time
DRAWN = 12  # histograms, of the columns that have shifted most
LINES = 6  # columns over time


@dataclass(frozen=True, eq=False)
class Report:
    """What a model was given beside its reference.

    Attributes:
        told: the figures, as JSON holds them: "model", "rows", "reference_rows", "alpha", "start"
            and "end" (UTC; None without snapshots), "columns", "over_time", "performance" and
            "alerts". Figures that are not defined are None.

    >>> Report({"alerts": []}).alerts
    []
    """

    told: dict[str, Any]

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """The alerts, each with "kind", "column" (or the figure) and "message"."""
        found: list[dict[str, Any]] = self.told["alerts"]
        return found

    def html(self) -> str:
        """The page, which contains its pictures and names no address."""
        told = self.told
        facts = {name: told[name] for name in ("rows", "reference_rows", "start", "end", "alpha")}
        tables = {
            "Rows": [{"what": k.replace("_", " "), "value": v} for k, v in facts.items()],
            "Alerts": told["alerts"] or [{"message": "none"}],
            "Columns": [_row(name, one) for name, one in told["columns"].items()],
        }
        for kind, one in told["performance"].items():
            tables[f"Performance, {kind}"] = [
                {"metric": metric, **figure} for metric, figure in one["figures"].items()
            ]
        return page(f"Monitor of {told['model']}", tables, figures=_figures(told))

    def write(self, folder: str | Path) -> Path:
        """Write `report.html` and `report.json` to a folder, which is made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.told, indent=1, allow_nan=False, ensure_ascii=False)
        (folder / "report.json").write_text(text + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self.html(), encoding="utf-8")
        return folder / "report.html"


def report(
    model: Model,
    snapshots: Sequence[Snapshot] = (),
    data: Source | None = None,
    labels: Source | None = None,
    validation: Source | None = None,
    *,
    name: str = "model",
    alpha: float = ALPHA,
) -> Report:
    """Compare what a model was given with its reference, and tell its performance.

    Of each column and prediction the histogram or the categories now are compared with those of the
    reference: by the population stability index and the chi-squared test over bins (or categories),
    new and missing values; of numbers also by Kolmogorov-Smirnov over the bins; by Fisher's exact
    test the rates of missing values, and of values outside the range, or the categories, of the
    reference. The p-values of each test are corrected over the columns by Benjamini and Hochberg.

    An alert is a column with a corrected p-value of chi-squared below `alpha` and an index of at
    least 0.1; a rate with a corrected p-value below `alpha`; a figure of the performance that is
    worse than before, by a one-sided test of level `alpha`, not corrected, for which both have
    standard errors in the ratio of the roots of their rows. What it was before is that of the
    validation rows for the estimate, and of `model.about["validation"]` with labels; as many rows
    as the reference has are taken to stand behind the latter.

    Args:
        model: with a reference.
        snapshots: of `read_snapshots`. Without them the rows of `data` are compared.
        data: rows that the model predicts, for its performance.
        labels: a table of the ids of rows of `data` (the column that the model reads, or "id" for
            row numbers) and one other column, the label, of as many rows as have one.
        validation: labelled rows that the model has not learned from. Of a classifier, they
            calibrate the estimate of its performance on `data` without labels.
        name: of the model.
        alpha: in (0, 1).

    Raises:
        ValueError: a model without a reference; neither snapshots nor data, or labels or validation
            rows without data; labels of no row, or that the model cannot have.

    References:
        Benjamini and Hochberg 1995, Controlling the false discovery rate.

    >>> from jaxops import tabular
    >>> rng = np.random.default_rng(0)
    >>> table = {"age": rng.normal(40, 9, 800), "left": rng.integers(0, 2, 800)}
    >>> model = tabular.fit(table, tabular.MLP((2,)), label="left", epochs=1, progress=False)
    >>> found = report(model, data={"age": table["age"] + 20})
    >>> found.alerts[0]["column"], found.told["columns"]["age"]["psi"] > 0.25
    ('age', True)
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    if data is None and (labels is not None or validation is not None):
        raise ValueError("data must be given with labels or validation rows, got None")
    if data is None and not snapshots:
        raise ValueError("snapshots must hold rows where no data are given, got none")
    answer = None
    if data is not None:
        watched: Any = observed(model)
        answer = watched.predict(data)
    reference = model.reference
    if reference is None:
        raise ValueError("model must have a reference, got none; see monitor.with_reference")
    if snapshots:
        sketch = functools.reduce(merge, [one.sketch for one in snapshots])
    else:
        sketch = watched.observer.sketch()
    columns = compared(reference, sketch)
    performance: dict[str, Any] = {}
    if validation is not None:
        performance["estimated"] = _estimated(model, answer, validation)
    if labels is not None:
        performance["labelled"] = _labelled(model, answer, labels)
    told = {
        "model": name,
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "rows": int(sketch.counts[0]),
        "reference_rows": int(reference.sketch.counts[0]),
        "start": min((one.start for one in snapshots), default=None),
        "end": max((one.end for one in snapshots), default=None),
        "alpha": alpha,
        "columns": columns,
        "over_time": _over_time(reference, snapshots),
        "performance": performance,
        "alerts": _alerts(columns, performance, alpha),
    }
    return Report(_plain(told))


def compared(reference: Reference, sketch: Sketch) -> dict[str, dict[str, Any]]:
    """Of each column and prediction both histograms, and the tests that compare them.

    Args:
        reference: of the model.
        sketch: of at least one row.

    Returns:
        name -> "kind", "prediction" (whether it is one), "edges" or "names", "reference" and
        "current" (counts of the cells, see `Numbers`; the last is of missing or new values), "psi",
        and for each test "statistic", "p" and "adjusted"; of rates also "reference" and "current".

    >>> from jaxops.monitor.sketches import learned, update
    >>> from jaxops.monitor.views import NumberPart
    >>> reference = learned((NumberPart("x"),), {"x": np.arange(100.0)}, None)
    >>> sketch = update(reference, None, {"x": np.arange(50.0, 150)}, None, np.ones(100), np)
    >>> x = compared(reference, sketch)["x"]
    >>> x["current"][0], x["outside"]["current"], x["ks"]["statistic"].round(2)
    (np.int64(0), 0.5, np.float64(0.5))
    """
    before, now = told(reference, reference.sketch), told(reference, sketch)
    last = reference.parts[-1]
    predicts = isinstance(last, OutputPart | VectorPart)
    predictions = {*last.numbers, *last.categories} if predicts else set()
    columns = {
        name: {"prediction": name in predictions, **_tests(before[name], one)}
        for name, one in now.items()
    }
    for test in TESTS:
        tested = [one[test] for one in columns.values() if test in one]
        adjusted = (
            scipy.stats.false_discovery_control([one["p"] for one in tested]) if tested else []
        )
        for one, p in zip(tested, adjusted, strict=True):
            one["adjusted"] = p
    return columns


def _tests(before: Numbers | Categories, now: Numbers | Categories) -> dict[str, Any]:
    """The comparison of one column, before p-values are corrected."""
    found: dict[str, Any] = {
        "reference": before.cells,
        "current": now.cells,
        "psi": psi(before.cells, now.cells).statistic,
        "chi_squared": chi_squared(before.cells, now.cells)._asdict(),
    }
    rates = {
        "missing": (before.missing, now.missing),
        "outside": (before.outside, now.outside),
    }
    for name, (was, is_) in rates.items():
        counts = map(np.asarray, (was, before.rows, is_, now.rows))
        found[name] = rate_changed(*counts)._asdict() | {
            "reference": was / before.rows,
            "current": is_ / now.rows,
        }
    if not isinstance(now, Numbers):
        return {"kind": "categories", "names": now.names, **found}
    if before.counts.any() and now.counts.any():
        found["ks"] = ks(before.counts, now.counts)._asdict()
    moments = {"mean": now.mean, "std": now.std, "low": now.low, "high": now.high}
    return {"kind": "numbers", "edges": now.edges, **found, **moments}


def _over_time(reference: Reference, snapshots: Sequence[Snapshot]) -> list[dict[str, Any]]:
    """Index and missing rates by snapshot, or by at most 40 runs of several."""
    found = []
    for run in np.array_split(np.arange(len(snapshots)), min(len(snapshots), WHILES) or 1):
        some = [snapshots[place] for place in run]
        if some:
            sketch = functools.reduce(merge, [one.sketch for one in some])
            found.append(
                {
                    "start": min(one.start for one in some),
                    "end": max(one.end for one in some),
                    "rows": int(sketch.counts[0]),
                    "psi": psi_of(reference, sketch),
                    "missing": missing_rates(told(reference, sketch)),
                }
            )
    return found


def _estimated(model: Model, answer: Any, validation: Source) -> dict[str, Any]:
    """The figures of a classifier without labels, beside those of the validation rows."""
    scored = importlib.import_module(f"jaxops.{model.room}").evaluate(model, validation)
    p = getattr(answer, "probabilities", None)
    if not hasattr(answer, "classes") or p is None or scored.parts["target"].ndim != 1:
        raise ValueError(
            f"model must be a classifier of one label for an estimate, got {type(answer).__name__}"
        )
    found = confidence_based(scored.parts["probabilities"], scored.parts["target"], p)
    was = scored.figures()
    shown = {"accuracy": found.accuracy, "f1": found.f1, "auc": found.auc}
    figures = {name: _figure(one, was.get(name)) for name, one in shown.items()}
    return {"rows": len(p), "rows_before": len(scored), "figures": figures}


def _labelled(model: Model, answer: Any, labels: Source) -> dict[str, Any]:
    """The figures of the rows whose labels have arrived, beside those of the model's validation."""
    file, frame = frame_of(labels)
    id = getattr(model.reader, "id", None) or "id"
    others = [name for name in frame.columns if name != id]
    if id not in frame.columns or len(others) != 1:
        raise ValueError(
            f"{file} must have the column {id!r} and one of labels, got {', '.join(frame.columns)}"
        )
    come, _ = read_with_dates(frame, [id, *others], exact=[id, *others])
    rows = {"id": np.asarray(answer.ids).astype(str), "row": np.arange(len(answer.ids))}
    joined = with_labels(rows, {"id": come[id].astype(str), "label": come[others[0]]})
    if not len(joined.rows["row"]):
        raise ValueError(f"{file} must have labels of rows of data, got {joined.unknown} others")
    scored = _scored(answer, joined.rows["row"], joined.rows["label"], f"{file}: {others[0]}")
    was = model.about.get("validation", {})
    figures = {name: _figure(scored.interval(name), was.get(name)) for name in scored.figures()}
    for name in figures.keys() & scored.smaller:
        figures[name]["smaller"] = True
    return {
        "rows": len(scored),
        "rows_before": int(model.reference.sketch.counts[0]),
        "share": joined.share,
        "unknown": joined.unknown,
        "figures": figures,
    }


def _scored(answer: Any, rows: np.ndarray, labels: np.ndarray, where: str) -> Evaluation:
    """The scores of some rows of an answer, of classes or of numbers."""
    classes = getattr(answer, "classes", None)
    if isinstance(classes, tuple):
        numbers = {name: number for number, name in enumerate(classes)}
        odd = next((label for label in labels if label not in numbers), None)
        if odd is not None:
            raise ValueError(f"{where} must be one of {', '.join(classes[:10])}, got {odd!r}")
        target = np.array([numbers[label] for label in labels])
        return of_classes("row", rows, answer.probabilities[rows], target)
    values = getattr(answer, "values", None)
    if values is None or np.ndim(values) != 1:
        raise ValueError(f"model must predict classes or numbers, got {type(answer).__name__}")
    try:
        error = values[rows].astype(np.float64) - labels.astype(np.float64)
    except ValueError:
        raise ValueError(f"{where} must be numbers, got {labels[0]!r} first") from None
    scores = {"mae": np.abs(error), "mse": error**2}
    return Evaluation("row", rows, scores, smaller=frozenset(scores))


def _figure(interval: Any, before: float | None) -> dict[str, Any]:
    mean, low, high = interval
    return {"value": mean, "low": low, "high": high, "before": before}


def _alerts(
    columns: Mapping[str, Any], performance: Mapping[str, Any], alpha: float
) -> list[dict[str, Any]]:
    """What somebody should know, in the order of the columns."""
    found = []
    for name, one in columns.items():
        p = one["chi_squared"]["adjusted"]
        if p < alpha and one["psi"] >= SMALL:
            kind = "prediction drift" if one["prediction"] else "drift"
            found.append((kind, name, f"{kind}, PSI {one['psi']:.3g}, corrected p {p:.2g}"))
        for rate in ("missing", "outside"):
            is_ = one[rate]
            if is_["adjusted"] < alpha:
                what = f"{rate}, {is_['reference']:.2%} before and {is_['current']:.2%} now"
                found.append((rate, name, f"{what}, corrected p {is_['adjusted']:.2g}"))
    for kind, one in performance.items():
        for metric, figure in one["figures"].items():
            value, low, high, before = (figure[k] for k in ("value", "low", "high", "before"))
            if before is None or np.isnan(low):
                continue
            error = (
                (high - low) / (2 * ndtri(0.975)) * np.sqrt(1 + one["rows"] / one["rows_before"])
            )
            worse = value - before if figure.get("smaller") else before - value
            if worse > -ndtri(alpha) * error:
                text = f"{kind} {value:.4f} [{low:.4f}, {high:.4f}], before {before:.4f}"
                found.append(("performance", metric, text))
    return [{"kind": k, "column": name, "message": f"{name}: {text}"} for k, name, text in found]


def _plain(value: Any) -> Any:
    """The value as JSON holds it; NaN is None, and times are ISO 8601."""
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _row(name: str, one: Mapping[str, Any]) -> dict[str, Any]:
    """A column in the table of the page."""
    return {
        "column": name,
        "PSI": one["psi"],
        "chi-squared, p": one["chi_squared"]["adjusted"],
        "KS": one["ks"]["statistic"] if "ks" in one else None,
        "KS, p": one["ks"]["adjusted"] if "ks" in one else None,
        "missing before": one["missing"]["reference"],
        "missing": one["missing"]["current"],
        "outside": one["outside"]["current"],
    }


def _figures(told: Mapping[str, Any]) -> "dict[str, Figure]":
    """Histograms of the columns that have shifted most, and the index over time."""
    order = sorted(told["columns"], key=lambda name: -told["columns"][name]["psi"])
    some = {name: told["columns"][name] for name in order[:DRAWN]}
    found = {"Shares of rows, before (grey) and now (blue)": grid(some, _bars)}
    points = told["over_time"]
    if len(points) > 1:
        figure = new_figure(8, 3)
        axes = figure.subplots()
        ends: Any = [datetime.datetime.fromisoformat(one["end"]) for one in points]
        for name in order[:LINES]:
            axes.plot(ends, [one["psi"][name] for one in points], ".-", linewidth=1, label=name)
        axes.axhline(SMALL, color=ORANGE, linestyle="--", linewidth=1)
        axes.set_ylabel("PSI")
        axes.set_ylim(bottom=0)
        dates = require("matplotlib.dates", extra="plots")
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        open_frame(axes)
        found["Population stability index over time"] = figure
    return found


def _bars(axes: Any, one: Mapping[str, Any]) -> None:
    """Both histograms of a column, with missing or new values last."""
    before, now = (np.array(one[k], np.float64) for k in ("reference", "current"))
    if one["kind"] == "numbers":
        names = ["below", *(f"{edge:.3g}" for edge in one["edges"][:-1]), "above", "missing"]
    else:
        names = [*(name or "(empty)" for name in one["names"]), "new"]
    shown = np.flatnonzero((before > 0) | (now > 0))
    if len(shown) > 2 * DRAWN:  # of many categories those with most rows
        shown = np.sort(shown[np.argsort(-(before + now)[shown], kind="stable")[: 2 * DRAWN]])
    at = np.arange(len(shown))
    axes.bar(at - 0.2, (before / before.sum())[shown], 0.4, color=GREY)
    axes.bar(at + 0.2, (now / now.sum())[shown], 0.4, color=BLUE)
    labels = [names[place][:12].replace("$", r"\$") for place in shown]
    axes.set_xticks(at, labels, rotation=90, fontsize=6)
    axes.tick_params(axis="y", labelsize=7)
