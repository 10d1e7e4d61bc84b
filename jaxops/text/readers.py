"""The reader of a finished classifier or encoder: texts from a list, a frame or a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from jaxops.data.tables import Source, csv_frame, source_frame
from jaxops.data.tokenizer import Tokenizer, check_texts
from jaxops.model.finished import Model, frame
from jaxops.model.players import Players
from jaxops.task import recorded
from jaxops.text.data import NGrams, Reader, Tokens, labels
from jaxops.text.tasks import classifier
from jaxops.text.word_players import words_of
from jaxops.trust.calibration import scaled

FILES = (".csv", ".gz", ".parquet", ".pq")


class Classes(NamedTuple):
    """The classes of N texts.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the texts.
        labels: (N,) objects: the name of the likeliest class; with many labels, a tuple of the
            names whose probability reaches the threshold.
        probabilities: float64 (N, K), the probability of each class.
        in_scope: bool (N,), whether the largest probability reaches the threshold.
        classes: the K names, in the order of the probabilities.

    >>> one = Classes(np.arange(1), np.array(["lost"], object), np.array([[0.9, 0.1]]),
    ...               np.array([True]), ("lost", "pin"))
    >>> one.frame().columns.tolist()
    ['id', 'label', 'in_scope', 'p(lost)', 'p(pin)']
    """

    ids: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    in_scope: np.ndarray
    classes: tuple[str, ...]

    def frame(self) -> Any:
        """A row for each text: id, label (several as one string), scope, class probabilities."""
        names = [one if isinstance(one, str) else "; ".join(one) for one in self.labels]
        of_class = {f"p({c})": self.probabilities[:, i] for i, c in enumerate(self.classes)}
        told = {"id": self.ids, "label": np.array(names, object), "in_scope": self.in_scope}
        return frame({**told, **of_class})


class Vectors(NamedTuple):
    """The vectors of N texts.

    Attributes:
        ids: (N,), the user's ids, or the numbers of the texts.
        vectors: float32 (N, D).

    >>> Vectors(np.arange(1), np.eye(1, 2)).frame().columns.tolist()
    ['id', 'vector_0', 'vector_1']
    """

    ids: np.ndarray
    vectors: np.ndarray

    def frame(self) -> Any:
        """A row for each text: id, and the numbers of the vector."""
        return frame({"id": self.ids, "vector": self.vectors})


@recorded
@dataclass(frozen=True)
class TextReader:
    """The reader of a finished model of `text.classifier` or `text.contrastive`.

    Attributes:
        read: turns texts into tokens, as in training.
        text: the column of the texts, in a file, a frame or arrays by name.
        label: the column of the labels.
        id: the column of the user's ids; with None, the numbers of the texts are used.
        separator: the separator of the labels of a text, if it may have several.
        temperature: divides the log-probabilities; see `calibrate`.
        threshold: a text whose largest probability is below it is out of scope. With many labels,
            the answer has those that reach it.

    >>> reader = TextReader(NGrams(context=8), text="message")
    >>> ids, texts = reader.texts({"message": ["my card", "lost"]})
    >>> ids.tolist(), texts
    ([0, 1], ['my card', 'lost'])
    """

    room: ClassVar[str] = "text"
    streams: ClassVar[bool] = True  # rows are independent
    read: Reader
    text: str = "text"
    label: str = "label"
    id: str | None = None
    separator: str | None = None
    temperature: float = 1.0
    threshold: float = 0.0

    def texts(self, source: Source | Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """The ids and the texts.

        Args:
            source: a list of texts; or a CSV or Parquet file, a frame of pandas, polars or PyArrow,
                or arrays by name.

        Raises:
            ValueError: a missing column, no texts, or an empty text; the message names the row.
        """
        ids, table = columns_of(source, self.id, self.text)
        return ids, check_texts(table[self.text])

    def columns(
        self, source: Source, classes: tuple[str, ...], many: bool
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The ids, and the columns of the task, with labels.

        Args:
            source: a table, see `texts`.
            classes: the classes of the task.
            many: whether a text may have several labels.

        Raises:
            ValueError: see `texts`; or a label is missing or is not a class; the message names the
                row.
        """
        ids, table = columns_of(source, self.id, self.text, self.label)
        names = names_of(self.label, table[self.label], self.separator, many)
        return ids, {**self.read(table[self.text]), "label": labels(names, classes, many)}

    def predict(
        self, model: Model, data: Source | Sequence[str], first: int = 0
    ) -> Classes | Vectors:
        """Classes with their probabilities, or vectors, for texts.

        Args:
            model: the model.
            data: see `texts`.
            first: the number of the first text, if texts have no ids.

        Raises:
            ValueError: see `texts`; or the reader and the module have different vocabularies.
        """
        self.check(model)
        task, _ = model.trained()
        ids, texts = self.texts(data)
        ids = ids + first if ids.dtype.kind == "i" else ids
        outputs = model.outputs(self.read(texts))
        return self.answer(task, ids, outputs) if task.classes else Vectors(ids, outputs)

    def check(self, model: Model) -> None:
        """Check that the module has the reader's vocabulary.

        Raises:
            ValueError: it has another one.
        """
        vocabulary = model.trained()[0].columns[0].classes
        if vocabulary not in (None, self.read.vocabulary):
            raise ValueError(
                f"read must have a vocabulary of {vocabulary:,} (the module's), got "
                f"{self.read.vocabulary:,}; this reader belongs to another model"
            )

    def players(self, model: Model, data: Source | Sequence[str]) -> Players:
        """The words of texts, for `jaxops.explain`."""
        self.check(model)
        ids, texts = self.texts(data)
        many = has_many(model.task)
        return words_of(self.read, model, ids, texts, many, self.temperature)

    def exported(self, model: Model) -> dict[str, Any]:
        """What it knows, as plain data for `jaxops.export`."""
        task, _ = model.trained()
        return {
            "kind": "texts",
            "text": self.text,
            "id": self.id,
            "read": self.read.exported(),
            "classes": [*task.classes],
            "many": has_many(task),
            "temperature": self.temperature,
            "threshold": self.threshold,
        }

    def answer(self, task: Any, ids: np.ndarray, outputs: np.ndarray) -> Classes:
        """The predictions of the task, calibrated, as an answer for the user."""
        if has_many(task):
            p = outputs.astype(np.float64)
            names = np.empty(len(p), object)
            for row, told in enumerate(p >= self.threshold):
                names[row] = tuple(c for c, one in zip(task.classes, told, strict=True) if one)
        else:
            p = scaled(outputs, self.temperature)
            names = np.array(task.classes, object)[p.argmax(1)]
        return Classes(ids, names, p, p.max(1) >= self.threshold, task.classes)


def has_many(task: Any) -> bool:
    """Whether a text may have several labels."""
    return any(column.target and column.shape for column in task.columns)


def columns_of(
    source: Any, id: str | None, *wanted: str, groups: str | None = None
) -> tuple[np.ndarray, dict[str, list[Any]]]:
    """The ids, and the wanted columns of a table; a list of texts is its first column.

    Args:
        source: see `TextReader.texts`.
        id: the column of the ids, or None.
        *wanted: names of columns.
        groups: the name of one more column.

    Raises:
        ValueError: a column is missing, or the source is only a list of texts and more columns are
            wanted.

    >>> columns_of({"text": ["my card"], "label": [["lost", "card"]]}, None, "text", "label")
    (array([0]), {'text': ['my card'], 'label': [['lost', 'card']]})
    """
    path = isinstance(source, Path) or (isinstance(source, str) and source.endswith(FILES))
    if not (path or isinstance(source, Mapping) or hasattr(source, "columns")):
        if len(wanted) > 1:
            raise ValueError(
                f"data must be a file, a frame or arrays with the columns {', '.join(wanted)}, got "
                f"{type(source).__name__}"
            )
        texts = check_texts(source)
        return np.arange(len(texts)), {wanted[0]: texts}
    if isinstance(source, Mapping):
        source = {name: _cells(column) for name, column in source.items()}
    names = [name for name in (*wanted, id, groups) if name is not None]
    _, table = source_frame(source, [*dict.fromkeys(names)], (), _csv)
    columns = {n: [None if _absent(cell) else cell for cell in table[n]] for n in table.columns}
    for name in wanted[:1]:
        columns[name] = ["" if cell is None else cell for cell in columns[name]]
    ids = np.arange(len(table)) if id is None else np.array([str(x) for x in columns[id]], object)
    return ids, columns


def _csv(path: Any) -> Any:
    return csv_frame(path, None, "utf-8", (), text=None)


def _cells(column: Any) -> np.ndarray:
    """A column whose cells may be lists, from which NumPy would make a matrix."""
    column = list(column)
    cells = np.empty(len(column), object)
    for row, cell in enumerate(column):
        cells[row] = cell
    return cells


def _absent(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and np.isnan(cell))


def names_of(label: str, cells: Sequence[Any], separator: str | None, many: bool) -> list[Any]:
    """The names of each text's class, or of its classes.

    Args:
        label: the name of the column in messages.
        cells: N texts, numbers, or lists of them; None is missing.
        separator: the separator of the labels in a text.
        many: whether a text may have several labels, or none.

    Raises:
        ValueError: a missing label, or an empty separator.

    >>> names_of("team", ["a, b", None], ",", many=True), names_of("team", [1.0], None, many=False)
    ([['a', 'b'], []], ['1'])
    """
    if separator == "":
        raise ValueError('separator must be a text such as ", ", got an empty one')
    if many:
        return [_several(cell, separator) for cell in cells]
    names = ["" if cell is None else _name(cell) for cell in cells]
    if "" in names:
        raise ValueError(
            f"{label} must have a value in every row, got none in row {names.index('')}"
        )
    return names


def _several(cell: Any, separator: str | None) -> list[str]:
    if cell is None:
        return []
    if isinstance(cell, str):
        cell = cell.split(separator) if separator is not None else [cell]
    return [name for name in map(_name, cell) if name]


def _name(cell: Any) -> str:
    return str(int(cell)) if isinstance(cell, float) and cell % 1 == 0 else str(cell).strip()


def _of_0_1(model: Model) -> Model:
    """A classifier from a file of format 1, which has its reader in `about`."""
    about = model.about
    if model.reader is not None or not ({"ngrams", "tokenizer"} & about.keys()):
        return model
    length = {"length": "context"}  # the name in jaxops 0.1
    read: Reader
    if "ngrams" in about:
        settings: dict[str, Any] = {
            length.get(name, name): value for name, value in about["ngrams"].items()
        }
        settings = {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
        read = NGrams(**settings, uax29=False)
    else:
        context = about["context"] if "context" in about else about["length"]
        read = Tokens(Tokenizer.from_json(about["tokenizer"]), context, special=False)
    kept = ("ngrams", "tokenizer", "context", "length", "temperature", "threshold")
    reader = TextReader(
        read,
        temperature=about.get("temperature", 1.0),
        threshold=about.get("threshold", 0.0),
    )
    rest = {name: value for name, value in about.items() if name not in kept}
    return replace(model, reader=reader, about=rest)


classifier.finished = _of_0_1  # type: ignore[attr-defined]  # what `jaxops.load` calls
