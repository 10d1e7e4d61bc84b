"""Rows of a table to features and labels, and `TableReader`, which a model file keeps."""

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxops.data.columns import MISSING, of_dates, read, read_with_dates, warn_of_unknown
from jaxops.data.encoders import LARGEST, Encoder, Encoding, encode, fit_encoder
from jaxops.data.tables import Source
from jaxops.model.finished import Classes, Model, frame
from jaxops.model.players import Players
from jaxops.monitor.observing import Observed
from jaxops.tabular.cells import cells
from jaxops.tabular.train_rows import represented
from jaxops.task import recorded

__all__ = [
    "Classes",
    "Encoder",
    "Labels",
    "Quantiles",
    "TableReader",
    "Values",
    "encode",
    "fit_encoder",
    "read",
]

TARGETS = ("classes", "number", "counts", "quantiles", "zero_inflated")
FEW = 20  # as many whole numbers as a label may have and still name classes
ENCODED = 2**16  # rows whose features are in memory at once


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


class Quantiles(NamedTuple):
    """The predicted quantiles of N rows.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        values: float32 (N, Q), in the unit of the target, rising.
        levels: the Q levels of the quantiles, such as 0.9.

    >>> one = Quantiles(np.arange(1), np.array([[1.0, 2.0]]), (0.1, 0.9))
    >>> one.frame().columns.tolist()
    ['id', 'q(0.1)', 'q(0.9)']
    """

    ids: np.ndarray
    values: np.ndarray
    levels: tuple[float, ...]

    def frame(self) -> Any:
        """One row each: id, and the quantile of each level."""
        of_level = {f"q({level:g})": self.values[:, i] for i, level in enumerate(self.levels)}
        return frame({"id": self.ids, **of_level})


class Labels(NamedTuple):
    """The several labels of N rows, each of two classes.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the rows.
        labels: `str` objects (N, L), the likelier class of each label.
        probabilities: float32 (N, L), of the second class of each label.
        classes: label -> its two classes, in the order of the labels.

    >>> one = Labels(np.arange(1), np.array([["no"]]), np.array([[0.1]]), {"left": ["no", "yes"]})
    >>> one.frame().columns.tolist()
    ['id', 'left', 'p(left=yes)']
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: dict[str, list[str]]

    def frame(self) -> Any:
        """One row each: id, the class of each label, and the probabilities of the second ones."""
        second = [f"p({name}={classes[1]})" for name, classes in self.classes.items()]
        labels = dict(zip(self.classes, self.labels.T, strict=True))
        return frame(
            {"id": self.ids, **labels, **dict(zip(second, self.probabilities.T, strict=True))}
        )


Answer = Classes | Labels | Values | Quantiles


@recorded(before={"dates": None})
@dataclass(frozen=True, eq=False)
class TableReader:
    """What a finished tabular model knows of its input.

    Attributes:
        encoder: makes the features.
        id: the column of the user's ids; None numbers the rows.
        dates: the columns of dates; None, as in older files, takes those among numbers as days.
        target: what a label without classes is: "number", "counts", "quantiles" (a number whose
            quantiles are predicted) or "zero_inflated"; or "labels", of which there are several.
        levels: of the quantiles.
        since: the column of dates since which the days of the others are features; None for none.
        labels: of several labels each with its two classes; together they are the encoder's label.
        weights: the column of the rows' weights in training; None for none.
        class_weights: the weight of each class in training; none if they count alike.

    >>> reader = TableReader(fit_encoder({"plan": ["a", "b"]}))
    >>> ids, columns = reader.columns({"plan": ["b"]})
    >>> ids.tolist(), columns["features"].tolist()
    ([0], [[0.0, 1.0]])
    """

    room: ClassVar[str] = "tabular"
    streams: ClassVar[bool] = True
    encoder: Encoder
    id: str | None = None
    dates: tuple[str, ...] | None = ()
    target: str = "number"
    levels: tuple[float, ...] = ()
    since: str | None = None
    labels: dict[str, list[str]] = field(default_factory=dict)
    weights: str | None = None
    class_weights: tuple[float, ...] = ()

    @property
    def kind(self) -> str:
        """What the label is: "classes", or the `target`."""
        return "classes" if self.encoder.classes else self.target

    def table(
        self, source: Source, label: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The ids, and the columns of the table that the encoder knows, as `read` gives them.

        Args:
            source: see `read`.
            label: whether the label is read too: names of classes, numbers, or of several labels
                the numbers of their classes, int32 (N, L).

        Raises:
            ValueError: a column that is missing or cannot be read, with its row.

        Warns:
            UserWarning: a column of text has in 20 rows or more no value of the train rows.
        """
        encoder, dates = self.encoder, self.dates or ()
        made, texts = {*self.derived, *dates}, self._texts
        known = [*encoder.mean, *encoder.values]
        wanted = [*dates, *(name for name in known if name not in made)]
        target = [*self.labels] or [str(encoder.label)]
        target = target if label and encoder.label is not None else []
        own = [] if self.id is None else [self.id]
        names = [*dict.fromkeys([*wanted, *target, *own])]
        exact = [*own, *target]
        table, _ = read_with_dates(source, names, encoder.mean, exact, texts, self.dates, self.id)
        table |= days_since(table, dates, self.since)
        warn_of_unknown(texts, table)
        classes = self.kind in ("classes", "labels")
        for name in target:
            table[name] = label_of(name, table[name], classes, self.target)
        count = len(next(iter(table.values())))
        ids = table[self.id] if self.id is not None else np.arange(count)
        if target and self.labels:
            table[str(encoder.label)] = numbered(self.labels, table)
        last = [str(encoder.label)] if target else []
        return ids, {name: table[name] for name in [*known, *last]}

    @functools.cached_property
    def encoding(self) -> Encoding:
        """What makes the features."""
        return Encoding(self.encoder)

    @functools.cached_property
    def _texts(self) -> dict[str, list[str]]:
        """Column of text -> its values in the train rows."""
        rare = self.encoder.rare
        return {n: [*known, *rare.get(n, ())] for n, known in self.encoder.values.items()}

    @property
    def derived(self) -> list[str]:
        """The names of the columns that are made of dates, beside these themselves."""
        dates = self.dates or ()
        return [*of_dates(dates), *names_since(dates, self.since).values()]

    def columns(
        self, source: Source, label: bool = False
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The ids, and the columns that the task takes; see `table`."""
        ids, table = self.table(source, label)
        return ids, encode_target(self.encoder, table)

    def predict(self, model: Model, data: Source, batch_size: int = 4096, first: int = 0) -> Answer:
        """Classes or labels with their probabilities, values or quantiles, for rows of a table.

        Args:
            model: the model.
            data: see `read`; the label may be absent.
            batch_size: rows in one call of the device.
            first: the number of the first row, where rows have no ids.
        """
        self.check(model)
        ids, table = self.table(data)
        ids = ids + first if self.id is None else ids
        outputs = outputs_of(model, self.encoding, table, batch_size)
        if isinstance(model, Observed) and model.observer is not None:
            model.observer.lacking(table)
        return self.answer(model.task, ids, outputs)

    def check(self, model: Model) -> None:
        """Check that a model numbers its classes as the encoder numbers the labels.

        Raises:
            ValueError: other classes, or in another order.
        """
        given, wanted = getattr(model.task, "classes", ()), tuple(self.encoder.classes)
        if wanted and tuple(given) != wanted:
            raise ValueError(f"classes must be {wanted}, as the encoder has them, got {given}")

    def players(self, model: Model, data: Source) -> Players:
        """The cells of rows, for `jaxops.explain`."""
        self.check(model)
        outputs = functools.partial(outputs_of, model, self.encoding)
        return cells(self, model, *self.table(data), outputs)

    def exported(self, model: Model) -> dict[str, Any]:
        """What it knows, as plain data for `jaxops.export`."""
        self.check(model)
        return {
            "kind": "table",
            "id": self.id,
            "dates": [*(self.dates or ())],
            "since": self.since,
            "encoder": self.encoder._asdict(),
            "classes": [*self.encoder.classes],
            "labels": self.labels,
            "levels": [*self.levels],
        }

    def describe(self) -> dict[str, str]:
        """What it reads, for people."""
        encoder, dates = self.encoder, self.dates or ()
        target = {} if encoder.classes else {"target": self.target}
        return {
            "label": str(encoder.label),
            **target,
            "numbers": ", ".join(n for n in encoder.mean if n not in self.derived),
            "dates": ", ".join(dates),
            "texts": ", ".join(encoder.values),
            "ids": self.id or "",
        }

    def answer(self, task: Any, ids: np.ndarray, outputs: np.ndarray) -> Answer:
        """What the task predicts, as the user reads it."""
        if self.target == "quantiles":
            return Quantiles(ids, outputs, self.levels)
        if self.labels:
            told = outputs >= 0.5
            pairs = zip(self.labels.values(), told.T, strict=True)
            names = [np.array(pair, object)[one.astype(int)] for pair, one in pairs]
            return Labels(ids, np.stack(names, -1), outputs, self.labels)
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


def label_of(name: str, column: np.ndarray, classes: bool, target: str = "number") -> np.ndarray:
    """A label as `read` keeps it, as names of classes, or as numbers, float64.

    Args:
        name: the column's.
        column: `str` objects (N,).
        classes: whether it names classes.
        target: what it is else, see `TableReader`.

    Raises:
        ValueError: a missing value, also one written as "NA" or "null"; or text where numbers are
            wanted, or numbers that the target cannot have.

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
    numbers = column.astype(np.float64)
    odd, wanted = np.zeros(len(numbers), bool), ""
    if target == "counts":
        odd, wanted = (numbers < 0) | (numbers % 1 > 0), "counts (whole numbers from 0)"
    elif target == "zero_inflated":
        odd, wanted = numbers < 0, "numbers from 0"
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(
            f"{name} must be {wanted}, got {column[row]} in row {row} ({odd.sum():,} such rows)"
        )
    return numbers


def names_since(dates: Collection[str], since: str | None) -> dict[str, str]:
    """A column of dates -> the name of the days since another one.

    >>> names_since(("joined", "left"), "joined")
    {'left': 'left since joined'}
    """
    others = () if since is None else [name for name in dates if name != since]
    return {name: f"{name} since {since}" for name in others}


def days_since(
    table: Mapping[str, np.ndarray], dates: Collection[str], since: str | None
) -> dict[str, np.ndarray]:
    """The days of each column of dates since another one; see `names_since`.

    >>> days_since({"a": np.array([1.0]), "b": np.array([3.5])}, ("a", "b"), "a")
    {'b since a': array([2.5])}
    """
    if since is None:
        return {}
    return {new: table[name] - table[since] for name, new in names_since(dates, since).items()}


def reads_table(task: Any) -> bool:
    """Whether what a model holds reads the table itself, as trees do, and not features."""
    return getattr(task, "reads_table", False)


def target_of(encoder: Encoder, column: np.ndarray) -> np.ndarray:
    """A label as `TableReader.table` has it as numbers of classes, int32, or as numbers, float32.

    Several labels are numbers of classes already.

    Raises:
        ValueError: a label that is none of the classes, with its row.

    >>> encoder = fit_encoder({"age": [1, 2], "left": ["no", "yes"]}, label="left")
    >>> target_of(encoder, np.array(["yes"], object)).tolist()
    [1]
    """
    if encoder.classes:
        return numbered({str(encoder.label): encoder.classes}, {str(encoder.label): column})[:, 0]
    return column if column.ndim == 2 else column.astype(np.float32)


def numbered(labels: Mapping[str, list[str]], table: Mapping[str, np.ndarray]) -> np.ndarray:
    """The numbers of the classes of L labels, int32 (N, L).

    Args:
        labels: the classes of each label.
        table: the columns of the labels, as `label_of` gives them.

    Raises:
        ValueError: a label that is none of its classes, with its row.

    >>> numbered({"left": ["no", "yes"]}, {"left": np.array(["yes"], object)}).tolist()
    [[1]]
    """
    made = [
        encode(Encoder({}, {}, [], {}, name, classes), {name: table[name]})["label"]
        for name, classes in labels.items()
    ]
    return np.stack(made, -1)


def encode_target(encoder: Encoder, columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The features, and the label as `target_of` has it."""
    encoded, name = encode(encoder._replace(label=None), columns), str(encoder.label)
    return {**encoded, "label": target_of(encoder, columns[name])} if name in columns else encoded


def outputs_of(
    model: Model, encoding: Encoding, table: Mapping[str, np.ndarray], batch_size: int = 4096
) -> np.ndarray:
    """What a model predicts for the rows of a table.

    65,536 rows are encoded at a time, so that few features are in memory at once.

    Args:
        model: of features, or one that reads the table itself.
        encoding: makes the features.
        table: see `TableReader.table`.
        batch_size: rows in one call of the device.
    """
    if reads_table(model.task):
        return np.asarray(model.outputs(table, batch_size))
    model = represented(model)
    parts = (
        {name: column[first : first + ENCODED] for name, column in table.items()}
        for first in range(0, len(next(iter(table.values()))), ENCODED)
    )
    outputs = [model.outputs({"features": encoding(part)}, batch_size) for part in parts]
    return np.concatenate(outputs)
