"""A model card: what a model file says, the figures of given rows, and what its user writes."""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxops import _table
from jaxops.fairness.measures import Report
from jaxops.fairness.reporting import report
from jaxops.model.describing import described
from jaxops.model.encoding import encode
from jaxops.model.finished import Model
from jaxops.monitor.reading import Numbers, told
from jaxops.trust.evaluation import Evaluation
from jaxops.trust.page import page, pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOT_GIVEN = "Not given."
SHOWN = 40  # columns of the training data
MEANINGS = {
    "accuracy": "share of rows with the right class",
    "auc": "share of pairs of a row of class 1 and one of class 0 that are in the right order",
    "base rate": "share of rows of class 1",
    "calibration error": "mean of |mean probability - share of class 1| over 15 bins",
    "calibration gap": "mean probability less share of class 1",
    "coverage": "share of labels between the first and the last quantile",
    "deviance": "mean Poisson deviance",
    "false positive rate": "share of the rows of class 0 that are told to be of class 1",
    "log_loss": "mean of -log(probability of the right class)",
    "mae": "mean absolute error",
    "macro_f1": "mean of the classes' F1",
    "mean absolute error": "mean of |prediction - label|",
    "mean error": "mean of prediction - label",
    "mean label": "mean of the label",
    "mean prediction": "mean of the prediction",
    "mse": "mean squared error",
    "precision": "share of class 1 among the rows that are told to be of class 1",
    "r2": "1 - mse / variance of the label",
    "rmse": "root of the mean squared error",
    "selection rate": "share of rows that are told to be of class 1",
    "true positive rate": "share of the rows of class 1 that are told to be of class 1",
}


@dataclass(frozen=True, eq=False)
class Card:
    """A model card, in the sections of Mitchell et al. 2019; of `model_card`.

    Attributes:
        title: its heading.
        sections: heading -> a text, or the rows of a table.
        figures: heading -> a picture, for the HTML page.

    >>> print(Card("churn", {"Intended use": "Not given."}, {}).markdown())
    # Model card: churn
    <BLANKLINE>
    ## Intended use
    <BLANKLINE>
    Not given.
    """

    title: str
    sections: dict[str, str | Sequence[dict[str, Any]]]
    figures: "dict[str, Figure]"

    def markdown(self) -> str:
        """The card as Markdown, without pictures."""
        parts = [f"# Model card: {self.title}"]
        for heading, one in self.sections.items():
            parts += [f"## {heading}", one if isinstance(one, str) else _table.table(one)]
        return "\n\n".join(parts)

    def html(self) -> str:
        """The card as one page that contains its pictures."""
        return page(f"Model card: {self.title}", self.sections, figures=self.figures)

    def write(self, path: str | Path) -> Path:
        """Write the card as its name ends: .md or .html.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        if path.suffix not in (".md", ".html"):
            raise ValueError(f"out must end in .md or .html, got {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        text = self.html() if path.suffix == ".html" else self.markdown() + "\n"
        path.write_text(text, encoding="utf-8")
        return path


def model_card(
    model: Model,
    rows: Any = None,
    *,
    name: str = "model",
    protected: Sequence[str] = (),
    label: str | None = None,
    positive: str | None = None,
    use: str = "",
    ethics: str = "",
    caveats: str = "",
) -> Card:
    """The card of a finished model, made of its file, of given rows, and of the user's own words.

    Nothing is guessed: a section of which neither says anything reads "Not given."

    Args:
        model: of `ROOM.fit` or a file.
        rows: labelled rows that the model has not learned from, as the room's `evaluate` takes
            them. Without them the figures are those of validation, for which files have no
            intervals.
        name: of the model.
        protected: columns of the rows; their groups and intersections are reported, see `report`.
        label: see `report`.
        positive: see `report`.
        use: text of "Intended use": primary uses and users, and what is out of scope.
        ethics: text of "Ethical considerations".
        caveats: text of "Caveats and recommendations".

    Raises:
        ValueError: protected columns without rows; rows that the room cannot evaluate; see
            `report`.

    References:
        Mitchell et al. 2019, arXiv:1810.03993.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    >>> card = model_card(model, table, use="To call customers who may leave.")
    >>> card.sections["Intended use"], card.sections["Factors"]
    ('To call customers who may leave.', 'Not given.')
    """
    if protected and rows is None:
        raise ValueError(f"rows must be given for the groups of {', '.join(protected)}, got None")
    found = None
    if protected:
        found = report(model, rows, protected=protected, label=label, positive=positive)
    scored = None if rows is None else _scored(model, rows)
    sections: dict[str, Any] = {"Model details": _details(model), "Intended use": use or NOT_GIVEN}
    sections["Factors"] = NOT_GIVEN if found is None else _factors(found)
    figures = _quantities(model, scored, found)
    sections["Metrics"] = _metrics(figures)
    sections["Evaluation data"] = _evaluation(rows, scored)
    sections["Training data"] = _training(model)
    if model.reference is not None:
        sections["Training data: columns, on the validation rows"] = _columns(model)
    if not figures:
        sections["Quantitative analyses"] = NOT_GIVEN
    sections |= {f"Quantitative analyses: {heading}": one for heading, one in figures.items()}
    sections["Ethical considerations"] = ethics or NOT_GIVEN
    sections["Caveats and recommendations"] = "\n\n".join(
        [*([caveats] if caveats else []), *_limits(model, scored, found)]
    )
    drawn = {} if scored is None else pictures(scored, getattr(model.task, "classes", ()))
    drawn |= {} if found is None else {"groups": found.plot()}
    return Card(name, sections, drawn)


def _scored(model: Model, rows: Any) -> Evaluation:
    if not model.room:
        raise ValueError("rows must be left out for a model without a reader, got some")
    scored: Evaluation = importlib.import_module(f"jaxops.{model.room}").evaluate(model, rows)
    return scored


def _details(model: Model) -> list[dict[str, Any]]:
    """What the file says of the model, with its size in memory."""
    arrays: dict[str, np.ndarray] = {}
    if model.state is None:
        encode(model.task, arrays)
    held = jax.tree.leaves((arrays, model.state and (model.state.params, model.state.extra)))
    size = sum(np.asarray(leaf).nbytes for leaf in held)
    recipe = getattr(model.task, "recipe", None)
    own = {} if recipe is None else {
        f"{name} of the task": str(value)
        for name, value in recipe[1]
        if name not in ("module", "model", "classes") and not hasattr(value, "shape")
    }  # fmt: skip
    rows = [*described(model)["model"], *({"what": k, "value": v} for k, v in own.items())]
    steps = model.about.get("compressed", [])
    done = ", ".join(str(step.get("method")) for step in steps)
    return [
        *(row for row in rows if row["what"] not in ("data", "rows")),
        {"what": "bytes of its arrays", "value": f"{size:,}"},
        *([{"what": "compressed by", "value": done}] if steps else []),
        {"what": "training settings", "value": "not in the file"},
    ]


def _factors(found: Report) -> str:
    rows = zip(found.groups.names, found.groups.rows.tolist(), strict=True)
    told = "; ".join(f"{name} ({count:,} rows)" for name, count in rows)
    return f"Groups by {', '.join(found.groups.columns)}: {told}."


def _quantities(
    model: Model, scored: Evaluation | None, found: Report | None
) -> dict[str, list[dict[str, Any]]]:
    tables: dict[str, list[dict[str, Any]]] = {}
    validation = model.about.get("validation")
    if validation:
        tables["validation"] = [{"metric": k, "value": v} for k, v in validation.items()]
    if scored is not None:
        tables[f"the {len(scored):,} {scored.unit}s given, with 95 % intervals"] = [
            {"metric": metric, **_interval(scored, metric)} for metric in scored.figures()
        ]
    return tables | ({} if found is None else {k.lower(): v for k, v in found.tables().items()})


def _interval(scored: Evaluation, metric: str) -> dict[str, Any]:
    value, low, high = scored.interval(metric)
    return {"value": value} | ({} if np.isnan(low) else {"low": low, "high": high})


def _metrics(figures: dict[str, list[dict[str, Any]]]) -> str | list[dict[str, Any]]:
    """What the figures that occur in the card mean."""
    names = [row["metric"] for rows in figures.values() for row in rows if "metric" in row]
    names += [name for rows in figures.values() for row in rows if "group" in row for name in row]
    known = [name for name in dict.fromkeys(names) if name in MEANINGS]
    return [{"metric": name, "meaning": MEANINGS[name]} for name in known] or NOT_GIVEN


def _evaluation(rows: Any, scored: Evaluation | None) -> str:
    if scored is None:
        return NOT_GIVEN
    source = f" of {rows}" if isinstance(rows, str | Path) else ""
    return f"{len(scored):,} {scored.unit}s{source}."


def _training(model: Model) -> str | list[dict[str, Any]]:
    about = model.about
    left_out = about.get("left out") or {}
    known = {
        "fingerprint": about.get("data"),
        "rows": about.get("rows"),
        "left out": ", ".join(f"{name} ({why})" for name, why in left_out.items()) or None,
        "folds": about.get("folds"),
        "updated with": about.get("updated with"),
    }
    rows = [{"what": name, "value": str(v)} for name, v in known.items() if v is not None]
    return rows or NOT_GIVEN


def _columns(model: Model) -> list[dict[str, Any]]:
    """What the reference says of the columns that the model reads."""
    rows: list[dict[str, Any]] = []
    for name, one in [*told(model.reference, model.reference.sketch).items()][:SHOWN]:
        row: dict[str, Any] = {"column": name, "missing": one.missing}
        if isinstance(one, Numbers):
            row |= {"mean": one.mean, "std": one.std, "lowest": one.low, "highest": one.high}
        else:
            pairs = sorted(zip(one.counts.tolist(), one.names, strict=True), reverse=True)[:5]
            row["commonest"] = ", ".join(f"{n or '(missing)'} {c / one.rows:.0%}" for c, n in pairs)
        rows.append(row)
    return rows


def _limits(model: Model, scored: Evaluation | None, found: Report | None) -> list[str]:
    """What the figures of this card cannot say."""
    limits = []
    if scored is None:
        limits.append("No rows were given: the validation figures have no intervals.")
    else:
        limits.append(
            "The intervals describe the draw of the rows, not another training, and not rows of "
            "another time or place."
        )
    if found is None:
        limits.append("No protected columns were given: nothing is known of groups.")
    elif found.small:
        small = ", ".join(f"{name} ({count:,} rows)" for name, count in found.small.items())
        limits.append(f"Groups too small for the disparities: {small}.")
    rules = model.about.get("thresholds", {}).get("rules", {})
    drawn = [group for group, rule in rules.items() if len(rule) > 1]
    if drawn:
        limits.append(f"Some decisions are drawn at random in the groups {'; '.join(drawn)}.")
    if model.reference is None:
        limits.append("The file has no reference, so that drift of its input cannot be seen.")
    return limits
