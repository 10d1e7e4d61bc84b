"""Rows of a table to features and labels, and the reader that a model file keeps.

`fit_encoder` learns from the train rows what the values of each column mean: the mean and standard
deviation of numbers, the known values of text. `encode` applies it to any rows. Both are defined in
`jaxops.data.encoders`, below the rooms. `read` gives the columns of any table, and `TableReader`
all that a finished model has to know of its input.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.encoders import LARGEST, Encoder, encode, fit_encoder
from jaxops.data.tables import Source, array, as_texts, csv_frame, source_frame
from jaxops.data.text_numbers import as_numbers, comma
from jaxops.model.finished import Classes, Model, frame
from jaxops.task import recorded

__all__ = ["Classes", "Encoder", "TableReader", "Values", "encode", "fit_encoder", "read"]

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
FEW = 20  # as many whole numbers as a label may have and still name classes
BINS = 32  # of the piecewise linear encoding of a number


class Values(NamedTuple):
    """The predicted numbers of N rows.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        values: float32 (N,), in the unit of the target.

    >>> Values(np.arange(1), np.array([2.5])).frame().columns.tolist()
    ['id', 'value']
    """

    ids: np.ndarray
    values: np.ndarray

    def frame(self) -> Any:
        """One row each: id and value."""
        return frame({"id": self.ids, "value": self.values})


def read(
    source: Source,
    wanted: Sequence[str] | None = None,
    numbers: Collection[str] | None = None,
    exact: Collection[str] = (),
    text: Collection[str] = (),
) -> dict[str, np.ndarray]:
    """The columns of a table: numbers as float64 with NaN where missing, all else as text.

    A column is of numbers if every value that is not missing is one, without leading zeros; text is
    stripped of blanks around it. Booleans are the texts True and False, and the categories of a
    frame are text. Columns of dates and times, not texts of them, are days since 1970-01-01.

    Args:
        source: a CSV or Parquet file, a frame of pandas, polars or PyArrow, or arrays by name.
        wanted: the columns to read; all by default.
        numbers: the columns that must be numbers; by default each column decides by its values.
        exact: the columns that are kept as text, with "" where missing, such as ids and labels.
        text: the columns that are text, though their values may be numbers, such as zip codes.

    Raises:
        ValueError: no rows; a missing column; text in a column of `numbers`, numbers that float32
            cannot hold, or numbers with decimal commas, with their row.

    >>> table = {"age": ["20", " 40", ""], "plan": ["a", "b ", "a"], "zip": ["01234", "90210", "1"]}
    >>> {name: column.tolist() for name, column in read(table).items()}
    {'age': [20.0, 40.0, nan], 'plan': ['a', 'b', 'a'], 'zip': ['01234', '90210', '1']}
    """
    name, table = source_frame(
        source, wanted, (), lambda path: csv_frame(path, wanted, "utf-8", (), text=None)
    )
    columns = {}
    for column in table.columns:
        where = f"{name}: column {column!r}"
        if column in exact:
            columns[column] = _objects(as_texts(table[column]))
        elif column in text:
            columns[column] = _column(where, table[column], False)
        else:
            forced = None if numbers is None else column in numbers
            columns[column] = _column(where, table[column], forced)
    return columns


def _column(where: str, series: Any, number: bool | None) -> np.ndarray:
    """A column of a frame as float64 with NaN, or as an object array of `str`."""
    pa, pc = require("pyarrow", extra="data"), require("pyarrow.compute", extra="data")

    kind = series.dtype.kind
    if kind == "M":
        since = array(where, series) - np.datetime64(0, "D")
        return np.asarray(since / np.timedelta64(1, "D"))
    if kind in "iuf" and number is not False:
        return _finite(where, series.to_numpy(np.float64, na_value=np.nan))
    texts = as_texts(series)
    texts = pc.if_else(pc.is_in(texts, value_set=pa.array(MISSING)), None, texts)
    category = hasattr(series.dtype, "categories")
    if number or (number is None and texts.null_count < len(texts) and not category):
        values = as_numbers(texts, exact=False)
        if values is not None:
            values = values.cast(pa.float64(), safe=False)
            return _finite(where, values.to_numpy(zero_copy_only=False))
        if number:
            return _finite(where, _forced(where, texts.to_pylist()))
        row = comma(texts)
        if row is not None:
            raise ValueError(
                f"{where} must be numbers with a decimal point and no other signs, got "
                f"{texts[row].as_py()!r} in row {row} (counted from 0); write decimal commas as "
                "points, leave out those between thousands, or name the column in text=[...]"
            )
    return _objects(texts)


def _objects(texts: Any) -> np.ndarray:
    """An Arrow column of text as an object array of `str`, "" where missing."""
    return np.asarray(texts.fill_null("").to_numpy(zero_copy_only=False), object)


def _forced(where: str, texts: list[str | None]) -> np.ndarray:
    """Texts as numbers, with leading zeros too."""
    values = np.full(len(texts), np.nan)
    for row, text in enumerate(texts):
        try:
            values[row] = np.nan if text is None else float(text)
        except ValueError:
            raise ValueError(
                f"{where} must be numbers, as in the train rows, got {text!r} in row {row} "
                "(counted from 0)"
            ) from None
    return values


def _finite(where: str, values: np.ndarray) -> np.ndarray:
    large = np.flatnonzero(np.abs(values) > LARGEST)
    if len(large):
        raise ValueError(
            f"{where} must be finite numbers that float32 holds, got {values[large[0]]:g} in row "
            f"{large[0]} (counted from 0)"
        )
    return values


@recorded
@dataclass(frozen=True, eq=False)
class TableReader:
    """What a finished tabular model knows of its input.

    Attributes:
        encoder: makes the features.
        id: the column of the user's ids; None numbers the rows.

    >>> reader = TableReader(fit_encoder({"plan": ["a", "b"]}))
    >>> ids, columns = reader.columns({"plan": ["b"]})
    >>> ids.tolist(), columns["features"].tolist()
    ([0], [[0.0, 1.0]])
    """

    room: ClassVar[str] = "tabular"
    streams: ClassVar[bool] = True
    encoder: Encoder
    id: str | None = None

    def columns(
        self, source: Source, label: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The ids, and the columns that the task takes.

        Args:
            source: see `read`.
            label: whether the label is read too.

        Raises:
            ValueError: a column that is missing or cannot be read, with its row.
        """
        encoder = self.encoder
        wanted = [*encoder.mean, *encoder.values]
        target = [encoder.label] if label and encoder.label is not None else []
        own = [] if self.id is None else [self.id]
        names = [*dict.fromkeys([*wanted, *target, *own])]
        table = read(source, names, encoder.mean, [*own, *target])
        for name in target:
            table[name] = label_of(name, table[name], bool(encoder.classes))
        count = len(next(iter(table.values())))
        ids = table[self.id] if self.id is not None else np.arange(count)
        return ids, encode_target(encoder, {name: table[name] for name in [*wanted, *target]})

    def predict(
        self, model: Model, data: Source, batch_size: int = 4096, first: int = 0
    ) -> Classes | Values:
        """Classes with their probabilities, or values, for the rows of a table.

        Args:
            model: the model.
            data: see `read`; the label may be absent.
            batch_size: rows in one call of the device.
            first: the number of the first row, where rows have no ids.
        """
        self.check(model)
        ids, columns = self.columns(data)
        ids = ids + first if self.id is None else ids
        return self.answer(model.task, ids, model.outputs(columns, batch_size))

    def check(self, model: Model) -> None:
        """Check that a model numbers its classes as the encoder numbers the labels.

        Raises:
            ValueError: other classes, or in another order.
        """
        given, wanted = getattr(model.task, "classes", ()), tuple(self.encoder.classes)
        if wanted and tuple(given) != wanted:
            raise ValueError(f"classes must be {wanted}, as the encoder has them, got {given}")

    def describe(self) -> dict[str, str]:
        """What it reads, for people."""
        encoder = self.encoder
        return {
            "label": str(encoder.label),
            "numbers": ", ".join(encoder.mean),
            "texts": ", ".join(encoder.values),
            "ids": self.id or "",
        }

    def answer(self, task: Any, ids: np.ndarray, outputs: np.ndarray) -> Classes | Values:
        """What the task predicts, as the user reads it."""
        if not task.classes:
            return Values(ids, outputs)
        probabilities = of_classes(outputs)
        labels = np.array(task.classes, object)[probabilities.argmax(1)]
        return Classes(ids, labels, probabilities, task.classes)


def of_classes(outputs: np.ndarray) -> np.ndarray:
    """The probabilities of all classes, (N, K), where a task gives (N,) for two.

    >>> of_classes(np.array([0.25])).tolist()
    [[0.75, 0.25]]
    """
    return np.stack([1 - outputs, outputs], -1) if outputs.ndim == 1 else outputs


def names_classes(column: np.ndarray) -> bool:
    """Whether a label names classes: it is text, or at most 20 different whole numbers.

    >>> names_classes(np.array(["0", "1"], object)), names_classes(np.array(["0.5"], object))
    (True, False)
    """
    values = set(column.tolist())
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return True
    return len(values) <= FEW and all(number.is_integer() for number in numbers)


def label_of(name: str, column: np.ndarray, classes: bool) -> np.ndarray:
    """A label as `read` keeps it, as names of classes, or as numbers, float64.

    Args:
        name: the column's.
        column: `str` objects (N,).
        classes: whether it names classes.

    Raises:
        ValueError: a missing value, also one written as "NA" or "null"; or text where numbers are
            wanted.

    >>> label_of("left", np.array(["0", "1"], object), classes=False).tolist()
    [0.0, 1.0]
    """
    missing = np.isin(column, [word for word in MISSING if word != "None"])
    if missing.any():
        row = int(missing.argmax())
        given = f"{column[row]!r}" if column[row] else "none"
        raise ValueError(
            f"{name} must have a value in every row, got {given} in row {row} "
            f"({missing.sum():,} such rows); drop them, or rename a class of that name"
        )
    if classes:
        return column
    for row, value in enumerate(column.tolist()):
        try:
            number = float(value)
        except ValueError:
            number = np.nan
        if not abs(number) <= LARGEST:
            raise ValueError(f"{name} must be finite float32 numbers, got {value!r} in row {row}")
    return column.astype(np.float64)


def encode_target(encoder: Encoder, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`encode`, where a label without classes is a number, float32."""
    if encoder.classes or encoder.label not in columns:
        return encode(encoder, columns)
    target = columns[encoder.label]
    rest = {name: value for name, value in columns.items() if name != encoder.label}
    return {**encode(encoder, rest), "label": target.astype(np.float32)}
