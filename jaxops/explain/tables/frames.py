"""Rows of a table as the user has them, and what a model says of them as one number a row."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxops.data.columns import MISSING
from jaxops.data.tables import Source, csv_frame, source_frame
from jaxops.model.finished import Model

Predict = Callable[[Any], Any]
"""From a frame of N raw rows to their numbers, (N,)."""
AT_ONCE = 2**16  # rows in one call of a model


def frame_of(rows: Source, name: str = "rows", text: Sequence[str] = ()) -> Any:
    """The rows as a pandas frame, numbered from 0.

    Args:
        rows: a file, a frame or arrays by name.
        name: of the rows, for messages.
        text: columns of a CSV file that stay text, such as "true"; the values decide of others.

    Raises:
        ValueError: what is no table, or has no rows.

    >>> frame_of({"age": [20, 40]})["age"].tolist()
    [20, 40]
    """
    if rows is None:
        raise ValueError(f"{name} must be a table, such as a frame, got None")
    _, read = source_frame(
        rows, None, (), lambda path: csv_frame(path, None, "utf-8", MISSING, text)
    )
    return read.reset_index(drop=True)


def texts_of(model: Any) -> list[str]:
    """The columns that a finished model reads as text; none of a function.

    >>> texts_of(abs)
    []
    """
    encoder = getattr(getattr(model, "reader", None), "encoder", None)
    return [*getattr(encoder, "values", ())]


def checked_columns(name: str, columns: Sequence[str], frame: Any) -> list[str]:
    """The columns as a list.

    Raises:
        ValueError: one that is not in the frame.

    >>> checked_columns("immutable", ["plan"], frame_of({"age": [20]}))
    Traceback (most recent call last):
    ValueError: immutable must be columns of the rows (age), got 'plan'
    """
    columns = [columns] if isinstance(columns, str) else [*columns]
    for column in columns:
        if column not in frame:
            known = ", ".join(map(str, frame.columns))
            raise ValueError(f"{name} must be columns of the rows ({known}), got {column!r}")
    return columns


def columns_read(model: Any, frame: Any) -> list[str]:
    """The columns of a frame from which a model predicts, by its encoder.

    Raises:
        ValueError: a model of which this is not known; none of its columns is there.
    """
    reader = getattr(model, "reader", None)
    encoder = getattr(reader, "encoder", None)
    if encoder is None:
        raise ValueError("columns must be given for a model without a table's encoder, got None")
    more = [*(getattr(reader, "dates", None) or ()), *getattr(reader, "strata", ())]
    known = {*encoder.mean, *encoder.values, *more}
    found = [column for column in frame if column in known]
    if not found:
        raise ValueError(f"rows must have a column of the model, got {', '.join(frame)}")
    return found


def numbers_of(model: Model | Predict, frame: Any, target: Any = None) -> tuple[Predict, str]:
    """A function from raw rows to one number a row, and what the number is.

    Args:
        model: a finished model of any room whose answer has a number a row; or a function of rows.
        frame: rows, of which the first tells what the model answers.
        target: which of several numbers, see `number_of`.

    Raises:
        ValueError: see `number_of`.
    """
    say: Predict = model.predict if isinstance(model, Model) else model
    if not callable(say):
        raise ValueError(f"model must be a model or a function of rows, got {type(model).__name__}")
    _, unit = number_of(say(frame.head(1)), 1, target)

    def numbers(rows: Any) -> np.ndarray:
        parts = [rows.iloc[i : i + AT_ONCE] for i in range(0, len(rows), AT_ONCE)]
        return np.concatenate([number_of(say(part), len(part), target)[0] for part in parts])

    return numbers, unit


def number_of(answer: Any, count: int, target: Any = None) -> tuple[np.ndarray, str]:
    """One number of each row of an answer, float64 (N,), and what it is in words.

    Args:
        answer: classes or labels with probabilities, values, quantiles, curves of survival (their
            risk), or an array (N,) or (N, K).
        count: N.
        target: the class, the label, the level or the place among K; by default the second of two
            classes, or the only number.

    Raises:
        ValueError: an answer of another kind; a target that is not there, or none among several;
            numbers that are not finite.

    >>> from jaxops.model.finished import Classes
    >>> labels, p = np.array(["no"], object), np.array([[0.75, 0.25]])
    >>> number_of(Classes(np.arange(1), labels, p, ("no", "yes")), 1)
    (array([0.25]), 'p(yes)')
    """
    names: list[Any] = []
    if hasattr(answer, "probabilities"):
        values, names = np.asarray(answer.probabilities), [*answer.classes]
    else:
        field = next((name for name in ("values", "risk") if hasattr(answer, name)), None)
        values = np.asarray(answer if field is None else getattr(answer, field))
        names = [*getattr(answer, "levels", range(values.shape[-1] if values.ndim == 2 else 0))]
    if values.dtype.kind not in "biuf" or values.shape not in ((count,), (count, len(names))):
        raise ValueError(
            f"model must answer {count:,} rows with numbers, got {type(answer).__name__} of shape "
            f"{values.shape}"
        )
    unit = "prediction"
    if values.ndim == 2:
        place = _place(names, target, hasattr(answer, "labels"), answer)
        values, unit = values[:, place], str(names[place])
        unit = f"p({unit})" if hasattr(answer, "probabilities") else f"prediction {unit}"
    elif target is not None:
        raise ValueError(f"target must be None for one number a row, got {target!r}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise ValueError(f"model must predict finite numbers, got {values[row]} in row {row}")
    return values, unit


def _place(names: list[Any], target: Any, classes: bool, answer: Any) -> int:
    """Which of several numbers is meant."""
    several = isinstance(getattr(answer, "classes", None), Mapping)
    two = len(names) == 2 and classes and not several
    if target is None and (len(names) == 1 or two):
        return len(names) - 1
    texts = [str(name) for name in names]
    if target is None or str(target) not in texts:
        raise ValueError(f"target must be one of {', '.join(texts)}, got {target!r}")
    return texts.index(str(target))


def taken(frame: Any, columns: Sequence[str], donors: np.ndarray) -> Any:
    """The frame of N rows with the values of some columns from other rows, whose numbers are (N,).

    >>> taken(frame_of({"a": [1, 2], "b": [3, 4]}), ["b"], np.array([1, 0])).to_numpy().tolist()
    [[1, 4], [2, 3]]
    """
    return frame.assign(**{name: frame[name].array.take(donors) for name in columns})


def is_ordered(column: Any) -> bool:
    """Whether a column of a frame has numbers or dates, and not categories."""
    return column.dtype.kind in "iufM" and not hasattr(column.dtype, "categories")


def known_values(column: Any) -> np.ndarray:
    """The values of a column that are not missing, sorted, each once.

    >>> known_values(frame_of({"plan": ["b", None, "a", "b"]})["plan"]).tolist()
    ['a', 'b']
    """
    present = column[column.notna()]
    if is_ordered(column):
        return np.unique(present.to_numpy())
    return objects(sorted((x for x in present.unique().tolist() if x != ""), key=str))


def objects(values: Sequence[Any]) -> np.ndarray:
    """An array (N,) of any values, lists among them."""
    return np.array([*values, None], object)[:-1]
