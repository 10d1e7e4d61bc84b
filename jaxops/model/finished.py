"""A finished model: its task or closed form, the reader of raw input, and its description."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxops._optional import require
from jaxops.optim import averaged
from jaxops.state import TrainState
from jaxops.task import Batch, Column, Task


class Reader(Protocol):
    """Turns a user's raw input into the columns of a model, and its outputs into answers.

    A reader is a dataclass marked by `jaxops.recorded`, so that a model file can hold it.

    >>> class Lengths(Reader):
    ...     room = "text"
    ...     def predict(self, model, data):
    ...         return [len(text) for text in data]
    >>> Lengths().predict(None, ["my card"])
    [7]
    """

    room: str
    """The name of the model's room, such as "tabular". A reader whose rows are independent also has
    `streams = True` and takes the option `first`, the number of the first row. A reader may have a
    method `describe()` that says what it reads, and a method `exported(model)` that describes it as
    plain data for `jaxops.export`."""

    def predict(self, model: "Model", data: Any, **options: Any) -> Any:
        """The answer for raw data: a NamedTuple of arrays with the user's ids and a `frame()`."""


@dataclass(frozen=True, eq=False)
class Model:
    """A finished model, which `ROOM.fit` returns, and which `jaxops.save` and `jaxops.load` use.

    Attributes:
        task: the task; or a closed form, such as a `recommend.Recommender`, which holds its own
            arrays.
        state: the task's trained parameters and extra; None for a closed form. If `optim.ema` has
            kept averaged parameters, it holds those.
        reader: reads the user's raw input; without a reader, `predict` takes the task's columns.
        about: JSON-like data about the model: its units, its validation figures, the fingerprint
            of its training data.
        versions: package -> version, of the process that wrote the model's file.
        reference: what its later input is compared with, see `jaxops.monitor`; None without one, as
            in older files.

    >>> import jax, jaxops as jo
    >>> from jaxops import tabular
    >>> task = tabular.classifier(tabular.MLP((4,)), features=3)
    >>> rows = {"features": np.eye(3, dtype=np.float32)}
    >>> model = Model(task, jo.init_state(task, jo.optim.sgd(0.1), seed=0, batch=rows))
    >>> model.predict(rows).shape, jax.jit(model.apply)(rows).shape
    ((3,), (3,))
    """

    task: Any
    state: Any = None  # a TrainState
    reader: Any = None
    about: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    reference: Any = None

    def __post_init__(self) -> None:
        if isinstance(self.state, TrainState):
            object.__setattr__(self, "state", averaged(self.state))

    def predict(self, data: Any, **options: Any) -> Any:
        """The predictions for raw data, in order.

        Args:
            data: raw input that the reader can read, such as a file, a frame or texts. Without a
                reader, the task's columns by name, or the array of its only column.
            **options: options of the reader's `predict`; without a reader `batch_size`, see
                `outputs`.

        Returns:
            A NamedTuple of arrays with the user's ids, and a method `frame()`. Without a reader,
            the predictions of the task.

        Raises:
            ValueError: data that the reader cannot read.
            TypeError: options that the reader does not have.
        """
        if self.reader is not None:
            return self.reader.predict(self, data, **options)
        task, _ = self.trained()
        if not isinstance(data, Mapping):
            names = [column.name for column in task.columns if not column.target]
            if len(names) != 1:
                raise ValueError(f"data must be the columns {names} by name, got one array")
            data = {names[0]: np.asarray(data)}
        return self.outputs(data, **options)

    def outputs(self, columns: Any, batch_size: int = 1024) -> Any:
        """The predictions of the task (or of a `Blend` of several) for encoded columns, in order.

        Args:
            columns: arrays (N, ...) by name, as `task.columns` says, or a stream of batches.
            batch_size: number of rows that are computed in one call.

        Raises:
            ValueError: the model is a closed form other than a `Blend`.
        """
        from jaxops.train.evaluation import predict

        if hasattr(self.task, "outputs"):
            return self.task.outputs(columns, batch_size)
        task, state = self.trained()
        return predict(task, state, columns, batch_size=batch_size)

    def apply(self, columns: Batch) -> Any:
        """The predictions of the task for encoded columns; a pure function, for `jax.jit`.

        Args:
            columns: arrays (B, ...) by name, as `task.columns` says.

        Raises:
            ValueError: the model is a closed form, which has its own functions.
        """
        task, state = self.trained()
        return task.predict(state.params, state.extra, columns)

    def trained(self) -> tuple[Task, TrainState]:
        """The task and its state.

        Raises:
            ValueError: the model is a closed form.
        """
        if not isinstance(self.task, Task) or self.state is None:
            raise ValueError(
                f"model must have a task and its state, got {type(self.task).__name__}"
            )
        return self.task, self.state

    @property
    def room(self) -> str:
        """The name of the model's room, such as "tabular"; "" without a reader."""
        return "" if self.reader is None else self.reader.room


@dataclass(frozen=True, eq=False)
class Watched(Model):
    """A model that keeps the columns from which it predicts, and what it predicts; of `watched`.

    Attributes:
        seen: (columns, outputs) of each call of `outputs`.
    """

    seen: list[tuple[Mapping[str, Any], Any]] = field(default_factory=list)

    def outputs(self, columns: Any, batch_size: int = 1024) -> Any:
        """See `Model.outputs`."""
        outputs = super().outputs(columns, batch_size)
        self.seen.append((columns, outputs))
        return outputs


def watched(model: Model) -> Watched:
    """The same model, which keeps what it predicts, and from which columns."""
    return Watched(**{one.name: getattr(model, one.name) for one in fields(Model)})


def columns_of(model: Model, data: Any) -> dict[str, np.ndarray]:
    """The encoded columns from which a model predicts raw data.

    Args:
        model: a model whose reader calls `Model.outputs`, or without a reader.
        data: what `model.predict` takes.

    Raises:
        ValueError: the model does not predict by `outputs`.

    >>> from jaxops import init_state, optim, tabular
    >>> task, x = tabular.classifier(tabular.MLP((4,)), features=3), np.ones((2, 3), np.float32)
    >>> state = init_state(task, optim.sgd(0.1), seed=0, batch={"features": x})
    >>> columns_of(Model(task, state), x)["features"].shape
    (2, 3)
    """
    seeing = watched(model)
    seeing.predict(data)
    if not seeing.seen:
        raise ValueError(
            f"model must predict from encoded columns, got one of the room {model.room!r}, which "
            "reads its data in another way"
        )
    return {
        name: np.concatenate([np.asarray(part[name]) for part, _ in seeing.seen])
        for name in seeing.seen[0][0]
    }


class Program(NamedTuple):
    """What is exported of a closed form: its method `exported(**options)` returns it.

    Attributes:
        function: `(params, columns) -> outputs` of B rows, which are independent of each other: an
            array (B, ...) or a tree of them.
        params: its arrays.
        columns: what it takes.
        reader: how raw input is read and answers are made, as JSON-like data with the `kind` of
            reader, see `jaxops.model.exported.run.KINDS`; {} takes it from the model's reader.

    >>> one = Program(lambda params, columns: columns["x"] * params, 2.0, (Column("x"),))
    >>> one.reader
    {}
    """

    function: Callable[[Any, Mapping[str, Any]], Any]
    params: Any
    columns: tuple[Column, ...]
    reader: dict[str, Any] = {}  # noqa: RUF012  # a default, never changed


class Classes(NamedTuple):
    """The classes of N rows or images.

    Attributes:
        ids: (N,), the user's ids, such as paths; or the numbers of the rows.
        labels: `str` objects (N,), names of the predicted classes.
        probabilities: float32 (N, K), the probability of each class.
        classes: the K names, in the order of the probabilities.

    >>> one = Classes(np.arange(1), np.array(["no"], object), np.array([[0.9, 0.1]]), ("no", "yes"))
    >>> one.frame().columns.tolist()
    ['id', 'label', 'p(no)', 'p(yes)']
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    def frame(self) -> Any:
        """A pandas frame: id, label and the probability of each class in each row."""
        of_class = {f"p({c})": self.probabilities[:, i] for i, c in enumerate(self.classes)}
        return frame({"id": self.ids, "label": self.labels, **of_class})


def inside(model: Any, wanted: Callable[[Any], bool], what: str) -> Any:
    """The closed form or reader of the wanted kind: the argument itself, or a part of a `Model`.

    Args:
        model: a `Model`, or its closed form or reader.
        wanted: a function that says whether an object is of the wanted kind.
        what: the name of the kind in messages, such as "a recommender".

    Raises:
        ValueError: the argument is not of that kind and has no such part.

    >>> inside(Model(task="a closed form"), lambda part: isinstance(part, str), "a text")
    'a closed form'
    """
    for part in (model, getattr(model, "task", None), getattr(model, "reader", None)):
        if wanted(part):
            return part
    room = getattr(model, "room", "")
    given = f"a model of the room {room}" if room else type(getattr(model, "task", model)).__name__
    raise ValueError(f"model must be {what}, got {given}")


def frame(columns: Mapping[str, Any]) -> Any:
    """A pandas frame of an answer: (N,) as a column, (N, K) as K columns `name_0` and so on.

    Args:
        columns: name -> array of N rows.

    >>> frame({"id": np.array(["a", "b"]), "p": np.eye(2)}).columns.tolist()
    ['id', 'p_0', 'p_1']
    """
    pd = require("pandas", extra="data")

    flat: dict[str, Any] = {}
    for name, value in columns.items():
        value = np.asarray(value)
        if value.ndim == 1:
            flat[name] = value
        else:
            for place, column in enumerate(value.reshape(len(value), -1).T):
                flat[f"{name}_{place}"] = column
    return pd.DataFrame(flat)


def fingerprint(columns: Mapping[str, np.ndarray]) -> str:
    """A hash of columns with 16 digits, by which a model's data can be recognised.

    Args:
        columns: name -> array.

    >>> fingerprint({"x": np.zeros(3)}) == fingerprint({"x": np.ones(3)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(columns):
        value = np.asarray(columns[name])
        data = "\n".join(value.tolist()).encode() if value.dtype.kind == "O" else value.tobytes()
        digest.update(f"{name} {value.dtype} {value.shape}".encode() + data)
    return digest.hexdigest()[:16]


def seconds(budget: str | float) -> float:
    """A time as seconds: "90s", "10min", "2h", or a number of seconds.

    Raises:
        ValueError: another text, or a time that is not positive.

    >>> seconds("10min")
    600.0
    """
    match = re.fullmatch(r"([\d.]+) ?(s|min|h)", budget) if isinstance(budget, str) else None
    value = float(match[1]) * {"s": 1, "min": 60, "h": 3600}[match[2]] if match else budget
    if not isinstance(value, int | float | np.number) or not value > 0:
        raise ValueError(f'budget must be a time such as "90s", "10min" or "2h", got {budget!r}')
    return float(value)
