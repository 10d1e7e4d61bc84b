"""What a model of any room answers, seen alike; and labels as their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.tables import csv_frame, source_frame
from jaxops.model.finished import Model


class Seen(NamedTuple):
    """The answer of a model.

    Attributes:
        kind: "classes", "labels" (several for each row), "values", "quantiles" or "spread" (values
            with their standard deviation).
        ids: (N,), the user's ids, or the numbers of the rows.
        outputs: (N, C) probabilities of classes or labels, (N,) values, or (N, Q) quantiles.
        names: of the classes or labels.
        spread: (N,), the standard deviations; None without them.
        levels: of the quantiles.
    """

    kind: str
    ids: np.ndarray
    outputs: np.ndarray
    names: tuple[str, ...] = ()
    spread: np.ndarray | None = None
    levels: tuple[float, ...] = ()


def seen(answer: Any, classes: Sequence[str]) -> Seen:
    """The answer of a reader, or the predictions of a task without a reader.

    Args:
        answer: what `Model.predict` returns.
        classes: names of the task's classes.

    Raises:
        ValueError: an answer of another kind, such as texts or items.

    >>> seen(np.array([0.25]), ("no", "yes")).outputs.tolist()
    [[0.75, 0.25]]
    """
    if hasattr(answer, "probabilities"):
        p, names = answer.probabilities, answer.classes
        if isinstance(names, Mapping):
            return Seen("labels", answer.ids, p, tuple(names))
        several = any(isinstance(one, tuple) for one in answer.labels[:1])
        return Seen("labels" if several else "classes", answer.ids, p, tuple(names))
    if hasattr(answer, "values") and hasattr(answer, "levels"):
        return Seen("quantiles", answer.ids, answer.values, (), None, tuple(answer.levels))
    if hasattr(answer, "_asdict") and getattr(getattr(answer, "values", None), "ndim", 0) == 1:
        return Seen("values", answer.ids, answer.values)
    if isinstance(answer, Mapping) and answer.keys() == {"mean", "std"}:  # of `monte_carlo`
        told = seen(np.asarray(answer["mean"]), classes)
        if told.kind == "values":
            return told._replace(kind="spread", spread=np.asarray(answer["std"]))
        return told
    if isinstance(answer, np.ndarray) and answer.ndim <= 2:
        ids = np.arange(len(answer))
        if classes:
            p = np.stack([1 - answer, answer], -1) if answer.ndim == 1 else answer
            return Seen("classes", ids, p, tuple(classes))
        if answer.ndim == 1:
            return Seen("values", ids, answer)
    raise ValueError(
        "model must answer with the probabilities of classes, with values or with quantiles, got "
        f"{type(answer).__name__}"
    )


@dataclass(frozen=True, eq=False)
class Wrapper:
    """A reader around another one, whose attributes it has too.

    Attributes:
        reader: the reader of the model before; None if it had none.
    """

    reader: Any

    @property
    def room(self) -> str:
        """The name of the model's room; "" without a reader."""
        return "" if self.reader is None else self.reader.room

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("reader", "exported", "describe"):
            raise AttributeError(name)
        return getattr(self.reader, name)

    def answered(self, model: Model, data: Any, options: Mapping[str, Any]) -> Any:
        """What the model answers without this reader."""
        if self.reader is None:
            return replace(model, reader=None).predict(data, **options)
        return self.reader.predict(model, data, **options)

    def exported(self, model: Model) -> dict[str, Any]:
        """Refused, because the exported program would answer without it.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"model must have its own reader to be exported, got {type(self).__name__}; export "
            "dataclasses.replace(model, reader=model.reader.reader)"
        )


def check_no_rules(model: Model) -> None:
    """Raise `ValueError` for a model of `fairness.thresholds`, whose labels would be lost.

    >>> check_no_rules(Model("a closed form", None))
    """
    if hasattr(model.reader, "rules"):
        raise ValueError(
            "model must be without thresholds by group, whose labels would give way to the "
            "likeliest classes, got some; give the model within, and the result to "
            "fairness.thresholds"
        )


def name_of(cell: Any) -> str:
    """The name of a class or a group: 1, 1.0 and "1" are the same.

    >>> [name_of(cell) for cell in (1, 1.0, "1", np.bool_(True))]
    ['1', '1', '1', 'True']
    """
    return str(int(cell)) if isinstance(cell, float) and cell % 1 == 0 else str(cell)


def numbers_of(labels: Any, names: Sequence[str], rows: int) -> np.ndarray:
    """The number of each row's class, int (N,).

    Args:
        labels: (N,) names of classes, or numbers that are names.
        names: of the C classes.
        rows: N.

    Raises:
        ValueError: another number of labels, or one that is no class, with its row.

    >>> numbers_of(["yes", "no"], ("no", "yes"), 2).tolist()
    [1, 0]
    """
    given = of_rows(labels, rows)
    number = {name: i for i, name in enumerate(names)}
    told = [name_of(cell) for cell in given.tolist()]
    unknown = next((row for row, name in enumerate(told) if name not in number), None)
    if unknown is not None:
        raise ValueError(
            f"labels must be among {', '.join(names)}, got {told[unknown]!r} in row {unknown}"
        )
    return np.array([number[name] for name in told])


def several_of(labels: Any, names: Sequence[str], rows: int) -> np.ndarray:
    """Which labels each row has, bool (N, L).

    Args:
        labels: (N, L) of 0 and 1; or for each row the names of its labels.
        names: of the L labels.
        rows: N.

    Raises:
        ValueError: another number of rows or labels, or a name that is no label, with its row.

    >>> several_of([["late"], []], ("late", "broken"), 2).tolist()
    [[True, False], [False, False]]
    """
    if len(labels) != rows:
        raise ValueError(f"labels must have {rows:,} rows, as data, got {len(labels):,}")
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.dtype.kind in "biuf":
        if labels.shape[1] != len(names) or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"labels must be ({rows}, {len(names)}) of 0 and 1, got shape {labels.shape}"
            )
        return labels > 0
    found = np.zeros((rows, len(names)), bool)
    for row, own in enumerate(labels):
        for name in [own] if isinstance(own, str) else own:
            if name not in names:
                raise ValueError(
                    f"labels must be among {', '.join(names)}, got {name!r} in row {row}"
                )
            found[row, list(names).index(name)] = True
    return found


def values_of(labels: Any, rows: int) -> np.ndarray:
    """Targets as float64 (N,).

    Raises:
        ValueError: another number of rows, or one that is no finite number, with its row.

    >>> values_of([1, "2.5"], 2).tolist()
    [1.0, 2.5]
    """
    given = of_rows(labels, rows).tolist()
    found = np.full(rows, np.nan)
    for row, cell in enumerate(given):
        try:
            found[row] = float(cell)
        except (TypeError, ValueError):
            break
    if not np.isfinite(found).all():
        row = int((~np.isfinite(found)).argmax())
        raise ValueError(f"labels must be finite numbers, got {given[row]!r} in row {row}")
    return found


def of_rows(labels: Any, rows: int) -> np.ndarray:
    """Labels of a list or a column of a frame as an array (N,); raises `ValueError` otherwise."""
    given = np.asarray(labels)
    if given.shape != (rows,):
        raise ValueError(f"labels must have shape ({rows},), one for each row, got {given.shape}")
    return given


def column_of(data: Any, name: str, rows: int) -> np.ndarray:
    """A column of raw data as names, (N,): of a file, a frame, or arrays by name.

    Args:
        data: what the model predicts from.
        name: of the column.
        rows: N.

    Raises:
        ValueError: data without that column, or with another number of rows.

    >>> column_of({"age": [1, 2], "sex": ["f", "m"]}, "sex", 2).tolist()
    ['f', 'm']
    """
    if isinstance(data, str | Path):
        _, data = source_frame(data, [name], (), lambda path: csv_frame(path, [name], "utf-8", ()))
    if not (isinstance(data, Mapping) or hasattr(data, "columns")) or name not in [
        *(data if isinstance(data, Mapping) else getattr(data, "column_names", data.columns))
    ]:
        raise ValueError(
            f"data must be a file, a frame or arrays by name with the column {name!r} of the "
            f"groups, got {type(data).__name__}"
        )
    cells = of_rows(np.asarray(data[name]), rows).tolist()
    return np.array([name_of(cell) for cell in cells], object)
