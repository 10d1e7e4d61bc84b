"""The figures of groups of a finished model, by what its reader answers for raw rows."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.columns import read_with_dates
from jaxops.fairness.measures import Report, of_classes, of_numbers
from jaxops.model.finished import Model
from jaxops.trust.evaluation import BLOCKS, Evaluation


class Told(NamedTuple):
    """What a model answers for N rows, and what is true of them.

    Attributes:
        classes: both, the second is class 1; () for numbers.
        label: bool (N,), whether a row is of class 1; or the number, float64.
        predicted: the same of the answer.
        probabilities: (N,) of class 1; None for numbers.
        protected: name -> `str` objects (N,).

    >>> Told((), np.ones(1), np.ones(1), None, {}).classes
    ()
    """

    classes: tuple[str, ...]
    label: np.ndarray
    predicted: np.ndarray
    probabilities: np.ndarray | None
    protected: dict[str, np.ndarray]


def report(
    model: Model,
    rows: Any,
    *,
    label: str | None = None,
    protected: Sequence[str],
    positive: str | None = None,
    least: int = BLOCKS,
    coverage: float = 0.95,
) -> Report:
    """How a finished model treats groups of people, on rows whose labels are known.

    Args:
        model: of any room whose answers are one class or one number a row; with thresholds by group
            (see `thresholds`) its decisions count.
        rows: a table with the label and the protected columns, or arrays by name; the model need
            not read these columns.
        label: the column of the label; by default the one that the reader has.
        protected: the protected columns, such as ["sex"]; of several their intersections.
        positive: the class whose selection counts, of two classes the second by default; it is held
            against all others.
        least: see `of_classes`.
        coverage: see `of_classes`.

    Raises:
        ValueError: a missing column; a model of several labels, of quantiles or without classes;
            labels that are none of the classes; see `of_classes`.

    >>> from jaxops import tabular
    >>> rng = np.random.default_rng(0)
    >>> table = {"age": rng.uniform(20, 60, 400), "sex": rng.choice(["f", "m"], 400)}
    >>> table["left"] = table["age"] < 40
    >>> model = tabular.fit(table, tabular.MLP((8,)), label="left", drop=["sex"], progress=False)
    >>> found = report(model, table, protected=["sex"])
    >>> found.figures["accuracy"]["m"].value > 0.9
    True
    """
    told = answered(model, rows, label, protected, positive)
    if told.probabilities is None:
        return of_numbers(
            told.label, told.predicted, told.protected, least=least, coverage=coverage
        )
    return of_classes(
        told.label,
        told.predicted,
        told.protected,
        told.probabilities,
        least=least,
        coverage=coverage,
    )


def evaluate(model: Model, data: Any) -> Evaluation:
    """Score a model with thresholds by group on rows with labels; see `Report.scored`.

    Args:
        model: of `thresholds`.
        data: see `report`.

    Raises:
        ValueError: a model without thresholds by group; see `report`.
    """
    reader = model.reader
    if not hasattr(reader, "rules"):
        raise ValueError(
            f"model must have thresholds by group, got one of the room {model.room!r}; its own "
            "`evaluate` scores it"
        )
    positive = model.task.classes[reader.positive]
    return report(model, data, protected=reader.protected, positive=positive).scored


def answered(
    model: Model,
    rows: Any,
    label: str | None,
    protected: Sequence[str],
    positive: str | None = None,
) -> Told:
    """What a model answers, and the labels and protected columns of the same rows.

    Args:
        model: see `report`.
        rows: see `report`.
        label: see `report`.
        protected: see `report`.
        positive: see `report`.
    """
    if isinstance(protected, str) or not len(protected):
        raise ValueError(f'protected must be names of columns, as in ["sex"], got {protected!r}')
    label = label_of(model) if label is None else label
    table = columns_of(rows, [label, *protected])
    told = table.pop(label) if label not in protected else table[label]
    missing = told == ""
    if missing.any():
        raise ValueError(f"{label} must have a value in every row, got none in row "
                         f"{int(missing.argmax())}")  # fmt: skip
    answer = model.predict(rows)
    if len(getattr(answer, "ids", ())) != len(told):
        raise ValueError("model must answer with one class or number a row, as classifiers do, got "
                         f"{type(answer).__name__}")  # fmt: skip
    classes = getattr(answer, "classes", ())
    if not classes and np.ndim(getattr(answer, "values", 0.0)) == 1:
        if positive is not None:
            raise ValueError(f"positive must be left out for numbers, got {positive!r}")
        return Told((), told.astype(np.float64), answer.values.astype(np.float64), None, table)
    several = isinstance(classes, Mapping) or not classes or np.ndim(answer.labels) != 1
    if several or isinstance(answer.labels[0], tuple):  # a tuple of labels for each text
        raise ValueError(
            "model must answer with one class or one number a row, got several labels or numbers"
        )
    number = positive_of(classes, positive)
    unknown = ~np.isin(told.astype(str), [*classes])
    if unknown.any():
        row = int(unknown.argmax())
        raise ValueError(f"{label} must be one of {', '.join(classes)}, got {told[row]!r} in row "
                         f"{row}")  # fmt: skip
    name = classes[number]
    other = classes[1 - number] if len(classes) == 2 else f"not {name}"
    p = np.asarray(answer.probabilities[:, number], np.float64)
    return Told((other, name), told == name, answer.labels == name, p, table)


def positive_of(classes: Sequence[str], positive: str | None) -> int:
    """The number of the class whose selection counts.

    >>> positive_of(("no", "yes"), None)
    1
    """
    if positive is None and len(classes) == 2:
        return 1
    if positive is None or positive not in classes:
        raise ValueError(f"positive must be one of {', '.join(classes)}, got {positive!r}")
    return list(classes).index(positive)


def label_of(model: Model) -> str:
    """The column of the label that a model's reader has.

    Raises:
        ValueError: a reader without one.

    >>> from jaxops import text
    >>> label_of(Model(None, None, text.TextReader(text.NGrams(8), label="intent")))
    'intent'
    """
    reader = model.reader
    reader = getattr(reader, "reader", reader)
    found = getattr(reader, "label", None) or getattr(
        getattr(reader, "encoder", None), "label", None
    )
    if found is None:
        raise ValueError("label must be given for a model whose reader names none, got None")
    return str(found)


def columns_of(rows: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Some columns of raw rows as `str` objects, (N,), "" where missing.

    Args:
        rows: a table, or arrays by name, of which others may be images.
        names: of the columns.

    Raises:
        ValueError: a column that is missing.

    >>> columns_of({"sex": ["f", None], "age": [1, 2]}, ["sex"])["sex"].tolist()
    ['f', '']
    """
    if isinstance(rows, Mapping):
        lost = next((name for name in names if name not in rows), None)
        if lost is not None:
            raise ValueError(f"rows must have a column {lost!r}, got {', '.join(map(str, rows))}")
        rows = {name: rows[name] for name in names}
    names = [*dict.fromkeys(names)]
    return read_with_dates(rows, names, exact=names)[0]
