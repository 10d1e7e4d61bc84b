"""`audit`: what can be known of how far a finished model is to be trusted, on one page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxops.data.columns import frame_of
from jaxops.explain.checking import checked
from jaxops.fairness.rates import wilson
from jaxops.fairness.reporting import label_of, report
from jaxops.model.finished import Model
from jaxops.robustness.corrupting import (
    Corrupted,
    check_levels,
    corrupted,
    kinds_of,
    scored,
)
from jaxops.robustness.labelled import labelled
from jaxops.trust.calibration import brier, ece_interval, plot_reliability
from jaxops.trust.page import page
from jaxops.uncertainty.answers import Seen, numbers_of, seen, values_of
from jaxops.uncertainty.covered import Sets, conformal

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EXPLAINED = 8  # rows whose explanation is checked
MEANINGS = {  # of the checks of explanations
    "gap": "|sum of the values - what they are to sum to|; 0 is best",
    "deletion": "mean output while what has the largest values leaves; low, below random order",
    "deletion at random": "the same in a random order",
    "insertion": "mean output while it comes into an empty row; high, above random order",
    "insertion at random": "the same in a random order",
    "random parameters": "rank correlation with the explanation of random parameters; near 0",
    "sensitivity": "largest relative change by small changes of the row; low",
}


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    Attributes:
        title: the heading.
        sections: heading -> rows of a table, or a text that says why there are none.
        figures: heading -> a picture.

    >>> Audit("churn", {"Fairness": "Not done: no protected columns."}, {}).html()[:15]
    '<!doctype html>'
    """

    title: str
    sections: dict[str, str | Sequence[dict[str, Any]]]
    figures: "dict[str, Figure]"

    def html(self) -> str:
        """One page that contains its pictures."""
        return page(self.title, self.sections, figures=self.figures)

    def write(self, path: str | Path) -> Path:
        """Write the page.

        Raises:
            ValueError: a path that does not end in .html.
        """
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"path must end in .html, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path


def audit(
    model: Model,
    rows: Any,
    labels: Any = None,
    *,
    protected: Sequence[str] = (),
    positive: str | None = None,
    levels: Sequence[int] = (1, 3, 5),
    coverage: float = 0.9,
    seed: int = 0,
    name: str = "model",
) -> Audit:
    """Everything that applies of calibration, coverage, fairness, robustness and explanations.

    - The accuracy, or the mean absolute error.
    - The calibration of the probabilities of classes: expected calibration error, Brier score.
    - The coverage of `jaxops.uncertainty.conformal`, which has its margins from one half of the
      rows, on the other half.
    - With protected columns the report of `jaxops.fairness`.
    - What corruptions cost, see `corrupted`.
    - The checks of the explanations of 8 rows, see `jaxops.explain.checked`.

    What does not apply, or what the model refuses, is named on the page with the reason.

    Args:
        model: a finished model of any room.
        rows: N rows that the model has not learned from, see `corrupted`.
        labels: see `corrupted`. None takes them from the rows, which then are what the room's
            `evaluate` takes, see `labelled`.
        protected: columns of the rows, a table, for the report of groups.
        positive: the class whose selection counts, see `jaxops.fairness.report`.
        levels: of the corruptions.
        coverage: of the conformal sets or intervals.
        seed: of the halves and of the corruptions.
        name: of the model, for the heading.

    Returns:
        An `Audit`, whose `write("audit.html")` writes the page.

    Raises:
        ValueError: rows that the model cannot read, labels that do not fit, a protected column that
            is missing, or levels out of range.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    >>> found = audit(model, table, table["left"], levels=[5])
    >>> [heading for heading, told in found.sections.items() if not isinstance(told, str)]
    ['Accuracy', 'Calibration', 'Conformal coverage', 'Robustness', 'Explanations']
    """
    check_levels(levels)
    if labels is None:
        rows, labels = labelled(model, rows)
    metric, clean = scored(model, rows, labels)
    sections: dict[str, Any] = {}
    figures: dict[str, Figure] = {}
    value = Corrupted(metric, clean, {}).interval()
    sections[metric.capitalize()] = [{"rows": len(clean), metric: value.mean, "low": value.low,
                                      "high": value.high}]  # fmt: skip
    sections["Calibration"] = _tried(lambda: _calibration(model, rows, labels, figures))
    sections["Conformal coverage"] = _tried(lambda: _covered(model, rows, labels, coverage, seed))
    if protected:
        sections |= _fairness(model, rows, labels, protected, positive, figures)
    else:
        sections["Fairness"] = "Not done: no protected columns were given."
    sections |= _robustness(model, rows, labels, levels, seed, figures)
    sections["Explanations"] = _tried(lambda: _explained(model, rows, seed))
    return Audit(f"Audit of {name}", sections, figures)


def _tried(part: Callable[[], Any]) -> Any:
    try:
        return part()
    except ValueError as error:
        return f"Not done: {error}"


def _seen(model: Model, answer: Any) -> Seen:
    return seen(answer, getattr(model.task, "classes", ()))


def _calibration(
    model: Model, rows: Any, labels: Any, figures: "dict[str, Figure]"
) -> list[dict[str, Any]]:
    told = _seen(model, model.predict(rows))
    if told.kind != "classes":
        raise ValueError(f"model must answer with one class for each row, got {told.kind}")
    number = numbers_of(labels, told.names, len(told.ids))
    error, score = ece_interval(told.outputs, number), brier(told.outputs, number)
    figures["Calibration: reliability"] = plot_reliability(told.outputs, number)
    return [
        {"figure": "expected calibration error", "value": error.mean, "low": error.low,
         "high": error.high},
        {"figure": "Brier score", "value": score.score},
        {"figure": "its reliability, 0 is best", "value": score.reliability},
        {"figure": "its resolution, more is better", "value": score.resolution},
    ]  # fmt: skip


def _covered(
    model: Model, rows: Any, labels: Any, coverage: float, seed: int
) -> list[dict[str, Any]]:
    """The coverage of margins of one half on the other."""
    told = _seen(model, model.predict(rows))
    if told.kind == "labels":
        raise ValueError("model must answer with one class or number for each row, got labels")
    order = np.random.default_rng(seed).permutation(len(told.ids))
    half = len(order) // 2
    given = np.asarray(labels)
    known = conformal(model, taken(rows, order[:half]), given[order[:half]], coverage)
    answer, own = known.predict(taken(rows, order[half:])), given[order[half:]]
    if isinstance(answer, Sets):
        number = numbers_of(own, told.names, len(own))
        names = np.array(told.names, object)[number]
        held = np.array([one in some for one, some in zip(names, answer.sets, strict=True)])
        size = {"mean size of the sets": float(np.mean([len(one) for one in answer.sets]))}
    else:
        value = values_of(own, len(own))
        held = (answer.low <= value) & (value <= answer.high)
        size = {"mean width": float((answer.high - answer.low).mean())}
    low, high = wilson(held.sum(), np.array(len(held)))
    return [{"method": known.reader.method, "rows": len(held), "wanted": coverage,
             "coverage": held.mean(), "low": float(low), "high": float(high), **size}]  # fmt: skip


def taken(rows: Any, places: np.ndarray) -> Any:
    """Some rows of raw rows.

    Args:
        rows: an array, a list, arrays by name, a frame or a file.
        places: int (M,), the numbers of the rows.

    >>> taken({"age": [30, 40, 50]}, np.array([2, 0]))["age"].tolist()
    [50, 30]
    """
    if isinstance(rows, np.ndarray):
        return rows[places]
    if isinstance(rows, list | tuple):
        return [rows[place] for place in places]
    if isinstance(rows, Mapping):
        return {name: np.asarray(column)[places] for name, column in rows.items()}
    return frame_of(rows)[1].iloc[places]


def _fairness(
    model: Model,
    rows: Any,
    labels: Any,
    protected: Sequence[str],
    positive: str | None,
    figures: "dict[str, Figure]",
) -> dict[str, Any]:
    """The report's tables, by their headings."""
    label = label_of(model)
    table = frame_of(rows)[1].assign(**{label: np.asarray(labels)})
    found = report(model, table, label=label, protected=protected, positive=positive)
    figures["Fairness: groups"] = found.plot()
    return {f"Fairness: {heading}": told for heading, told in found.tables().items() if told}


def _robustness(
    model: Model,
    rows: Any,
    labels: Any,
    levels: Sequence[int],
    seed: int,
    figures: "dict[str, Figure]",
) -> dict[str, Any]:
    """The table of all kinds that the model does not refuse; the others are named."""
    parts: list[Corrupted] = []
    refused = {}
    for kind in kinds_of(model, rows):
        found = _tried(
            lambda: corrupted(model, rows, labels, kinds=[kind], levels=levels, seed=seed)  # noqa: B023
        )
        if isinstance(found, str):
            refused[kind] = found.removeprefix("Not done: ")
        else:
            parts.append(found)
    named = "\n\n".join(f"{kind}: {why}" for kind, why in refused.items())
    others = {"Robustness: not measured": named} if refused else {}
    if not parts:
        return others
    values = {key: value for part in parts for key, value in part.values.items()}
    joined = parts[0]._replace(values=values)
    figures["Robustness: by level"] = joined.plot()
    return {"Robustness": joined.rows(), **others}


def _explained(model: Model, rows: Any, seed: int) -> list[dict[str, Any]]:
    """The means of the checks over the first rows, or of series over the first of them."""
    reader = model.reader
    if not hasattr(reader, "series"):
        some = taken(rows, np.arange(min(EXPLAINED, len(_ids(rows)))))
    else:
        some = frame_of(rows)[1]
        if reader.layout == "long":
            some = some[some[reader.id].isin(some[reader.id].unique()[:EXPLAINED])]
    told = checked(model, some, seed=seed)
    lines = told.summary()
    names = ["gap", *(name for check, one in told.checks.items() for name in one.told(check, 0))]
    return [
        {
            "check": name,
            "mean": float(np.mean([line[name] for line in lines])),
            "rows": len(lines),
            "meaning": MEANINGS[name],
        }
        for name in names
    ]


def _ids(rows: Any) -> Any:
    """Something with as many elements as there are rows."""
    if isinstance(rows, np.ndarray | list | tuple):
        return rows
    return next(iter(rows.values())) if isinstance(rows, Mapping) else frame_of(rows)[1]
