"""How encoded columns and outputs become the few numbers and categories that a sketch counts.

Each part looks at one column, or at the outputs; its `look` makes its numbers and categories of a
batch, by the `xp` it is given: `numpy` on the host, or `jax.numpy` inside a program.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.data.encoders import Encoder
from jaxops.task import Batch, Column, Task, recorded

FEW = 64  # numbers of a row that are counted each by itself
RUNS = 4  # of numbers of a longer row
MOST = 256  # categories of a column
GROUPS = 32  # of the middle token of a text
BLOCK = 16  # columns whose bins one product turns back into numbers


class Part:
    """One column, or the outputs; a part has numbers, categories, or both.

    >>> Part().numbers, Part().categories
    ((), {})
    """

    @property
    def numbers(self) -> tuple[str, ...]:
        """The names of its n numbers."""
        return ()

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """The names of its columns of categories, each with those of its categories, c in all."""
        return {}

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) and (n,): a number times the second plus the first is in the user's unit."""
        return np.zeros(len(self.numbers)), np.ones(len(self.numbers))

    @property
    def filled(self) -> dict[str, float]:
        """What a number is when it is missing, of those whose missing values it cannot see."""
        return {}

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """Its numbers, float (B, n) with NaN where one is missing, and categories, (B, c).

        A row has 1 or True at its category, and nothing where that is new.
        """
        raise NotImplementedError


def dot(a: Any, b: Any, xp: Any) -> Any:
    """The product of two matrices; on all devices in full float32.

    >>> dot(np.ones((1, 2)), np.ones((2, 1)), np).tolist()
    [[2.0]]
    """
    return a @ b if xp is np else jnp.matmul(a, b, precision="highest")


def settled(x: Any, xp: Any) -> Any:
    """The same array, computed once: XLA would compute a row's again for each edge that it passes.

    >>> settled(np.ones(1), np).tolist()
    [1.0]
    """
    return x if xp is np else jax.lax.optimization_barrier(x)


@recorded
@dataclass(frozen=True, eq=False)
class TablePart(Part):
    """The column `features` that an `Encoder` makes of a table: its numbers, and its texts.

    A number in bins is their sum, each times its width, plus the first edge. Numbers of the scales
    "quantile" and "robust" stay in the unit of the feature.

    Attributes:
        encoder: of the model's reader.

    >>> from jaxops.data.encoders import encode, fit_encoder
    >>> table = {"age": [20.0, 30.0, 50.0, np.nan], "plan": ["a", "b", "b", "a"]}
    >>> part = TablePart(fit_encoder(table, bins=2))
    >>> numbers, categories = part.look(encode(part.encoder, table), None, np)
    >>> first, unit = part.units
    >>> (numbers * unit + first).round(4).tolist(), part.categories, categories.sum(0).tolist()
    ([[20.0], [30.0], [50.0], [nan]], {'plan': ('a', 'b')}, [2.0, 2.0])
    """

    encoder: Encoder

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        return (*self.encoder.numbers, *self.encoder.edges)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """See `Part`."""
        encoder = self.encoder
        first = [name for name in encoder.values if name not in encoder.codes]
        return {
            name: (*encoder.values[name], *(["rare"] if name in encoder.rare else []))
            for name in (*first, *encoder.codes)
        }

    @property
    def units(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Part`."""
        encoder, units = self.encoder, list[tuple[float, float]]()
        for name in self.numbers:
            bent = name in encoder.quantiles or (encoder.robust and name not in encoder.edges)
            units.append((0.0, 1.0) if bent else (encoder.mean[name], encoder.std[name]))
        first, unit = np.array(units, np.float64).reshape(-1, 2).T
        return first, unit

    @property
    def filled(self) -> dict[str, float]:
        """See `Part`: the mean, or of a number in bins the first edge."""
        encoder = self.encoder
        bins = {n: (e[0] - encoder.mean[n]) / encoder.std[n] for n, e in encoder.edges.items()}
        return {n: bins.get(n, 0.0) for n in self.numbers if n not in encoder.missing}

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x, encoder = columns["features"], self.encoder
        shown = self.categories
        indicators = sum(len(shown[n]) for n in encoder.values if n not in encoder.codes)
        ends = np.cumsum([len(encoder.numbers), len(encoder.missing), indicators])
        last = x.shape[1] - len(encoder.codes)
        numbers = xp.concatenate([x[:, : ends[0]], *self._unbinned(x[:, ends[2] : last], xp)], 1)
        if encoder.missing:
            where = [[name == one for one in self.numbers] for name in encoder.missing]
            absent = dot(x[:, ends[0] : ends[1]], np.array(where, np.float32), xp) > 0.5
            numbers = xp.where(absent, np.float32(np.nan), numbers)
        coded = [
            x[:, last + place, None] == np.arange(1, 1 + len(shown[name]), dtype=np.float32)[None]
            for place, name in enumerate(encoder.codes)
        ]
        return numbers, xp.concatenate([x[:, ends[1] : ends[2]], *coded], 1)

    def _unbinned(self, x: Any, xp: Any) -> list[Any]:
        """The numbers in bins, less their mean, in standard deviations: (B, at most 16) each."""
        found, start, names = [], 0, [*self.encoder.edges]
        for first in range(0, len(names), BLOCK):
            block = names[first : first + BLOCK]
            widths = [np.diff(self.encoder.edges[name]) for name in block]
            matrix = np.zeros((sum(map(len, widths)), len(block)))
            offset, row = np.zeros((1, len(block)), np.float32), 0
            for place, (name, width) in enumerate(zip(block, widths, strict=True)):
                mean, std = self.encoder.mean[name], self.encoder.std[name]
                matrix[row : row + len(width), place] = width / std
                offset[0, place] = (self.encoder.edges[name][0] - mean) / std
                row += len(width)
            part = x[:, start : start + row]
            found.append(dot(part, matrix.astype(np.float32), xp) + offset)
            start += row
        return found


@recorded
@dataclass(frozen=True)
class NumberPart(Part):
    """A column of one number a row, or of at most 64.

    Attributes:
        column: its name.
        count: how many numbers a row has; None for one without an axis.

    >>> NumberPart("x", 2).numbers
    ('x 0', 'x 1')
    """

    column: str
    count: int | None = None

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        if self.count is None:
            return (self.column,)
        return tuple(f"{self.column} {place}" for place in range(self.count))

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = xp.asarray(columns[self.column], np.float32)
        return x.reshape(len(x), -1), _none(x, xp)


@recorded
@dataclass(frozen=True)
class CategoryPart(Part):
    """A column of one whole number a row, that stands for one of at most 256 categories.

    Attributes:
        column: its name.
        count: of categories.

    >>> CategoryPart("day", 2).categories
    {'day': ('0', '1')}
    """

    column: str
    count: int

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """See `Part`."""
        return {self.column: tuple(map(str, range(self.count)))}

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = columns[self.column]
        return _none(x, xp), x[:, None] == np.arange(self.count, dtype=np.int32)[None]


@recorded
@dataclass(frozen=True)
class GridPart(Part):
    """A column of many numbers a row, such as an image: mean and standard deviation of 64 of them.

    They are four runs of 16 of the flat row, since neighbours are read several times faster than
    others. The mean of an image is its brightness, and the standard deviation its contrast.

    Attributes:
        column: its name.

    >>> GridPart("image").look({"image": np.array([[[0], [255]]], np.uint8)}, None, np)[0].tolist()
    [[127.5, 127.5]]
    """

    column: str

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        return f"{self.column} mean", f"{self.column} deviation"

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = columns[self.column]
        flat = x.reshape(len(x), -1)
        if flat.shape[1] > FEW:
            run, width = FEW // RUNS, flat.shape[1] // RUNS
            starts = [place * width + (width - run) // 2 for place in range(RUNS)]
            flat = xp.concatenate([flat[:, start : start + run] for start in starts], 1)
        some = flat.astype(np.float32)
        first = some[:, :1]  # less which the squares of close numbers keep their digits
        both = xp.concatenate([some - first, xp.square(some - first)], 1)
        share = np.full((some.shape[1], 1), 1 / some.shape[1])
        means = dot(both, np.kron(np.eye(2), share).astype(np.float32), xp)
        spread = xp.maximum(means[:, 1:] - xp.square(means[:, :1]), np.float32(0))
        return xp.concatenate([first + means[:, :1], xp.sqrt(spread)], 1), _none(x, xp)


@recorded
@dataclass(frozen=True)
class TokenPart(Part):
    """A column of tokens, 0 for padding: how many a row has, and the group of the middle one.

    The groups are by the remainder of the token's number by 32. (All texts may begin alike.)

    Attributes:
        column: its name.

    >>> TokenPart("tokens").look({"tokens": np.array([[5, 7, 0]])}, None, np)[0].tolist()
    [[2.0]]
    """

    column: str

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        return (f"{self.column} in a row",)

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """See `Part`."""
        return {f"middle of {self.column}": tuple(map(str, range(GROUPS)))}

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = columns[self.column].reshape(len(columns[self.column]), -1)
        count = (x != 0).sum(1, keepdims=True)
        group = xp.take_along_axis(x, count // 2, 1) % GROUPS
        return count.astype(np.float32), group == np.arange(GROUPS, dtype=np.int32)[None]


@recorded
@dataclass(frozen=True)
class OutputPart(Part):
    """The predictions: a score, several numbers, or the classes.

    Of K classes the likeliest is counted, and its probability is a number.

    Attributes:
        classes: the names of the K classes of probabilities (B, K); empty for others.
        count: how many numbers a row has; None for one without an axis.
        prefix: of the names, where a column has such a name.

    >>> p = np.array([[0.25, 0.75]], np.float32)
    >>> numbers, likeliest = OutputPart(("no", "yes")).look({}, p, np)
    >>> numbers.tolist(), likeliest.tolist()
    ([[0.75]], [[False, True]])
    """

    classes: tuple[str, ...] = ()
    count: int | None = None
    prefix: str = ""

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        if self.classes:
            return (f"{self.prefix}largest probability",)
        return NumberPart(f"{self.prefix}prediction", self.count).numbers

    @property
    def categories(self) -> dict[str, tuple[str, ...]]:
        """See `Part`."""
        few = 0 < len(self.classes) <= MOST
        return {f"{self.prefix}predicted class": self.classes} if few else {}

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = outputs.astype(np.float32).reshape(len(outputs), -1)
        if not self.classes:
            return x, _none(x, xp)
        largest = x.max(1, keepdims=True)
        if not self.categories:
            return largest, _none(x, xp)
        likeliest = settled(x.argmax(1), xp)
        return largest, likeliest[:, None] == np.arange(x.shape[1])[None]


@recorded
@dataclass(frozen=True)
class VectorPart(Part):
    """Outputs that are vectors of more than 64 numbers: their norm; a sketch has their mean too.

    Attributes:
        width: of the vectors.

    >>> VectorPart(2).look({}, np.array([[3.0, 4.0]]), np)[0].tolist()
    [[5.0]]
    """

    width: int

    @property
    def numbers(self) -> tuple[str, ...]:
        """See `Part`."""
        return ("norm of the output",)

    def look(self, columns: Batch, outputs: Any, xp: Any) -> tuple[Any, Any]:
        """See `Part`."""
        x = outputs.reshape(len(outputs), -1)
        return xp.sqrt(xp.square(x).sum(1, keepdims=True)), _none(x, xp)


def parts_of(task: Task, reader: Any, outputs: Any) -> tuple[Part, ...]:
    """The parts for what a model reads and predicts.

    Args:
        task: of the model; it names the columns.
        reader: of the model, whose `encoder`, if it has one, knows what the features are; or None.
        outputs: an output of the task.

    Raises:
        ValueError: outputs that are no array.

    >>> from jaxops import vision
    >>> task = vision.classifier(vision.MLP())
    >>> [type(part).__name__ for part in parts_of(task, None, np.eye(10))]
    ['GridPart', 'OutputPart']
    """
    columns = [column for column in task.columns if not column.target]
    encoder = getattr(reader, "encoder", None)
    parts: list[Part] = []
    for column in columns:
        if isinstance(encoder, Encoder) and column[:2] == ("features", (len(encoder.names),)):
            rare: dict[str, list[str]] = {name: [] for name in encoder.rare}  # they may be many
            parts.append(TablePart(encoder._replace(rare=rare, classes=[])))
        else:
            parts.append(_part_of(column))
    if not isinstance(outputs, np.ndarray | jax.Array):
        raise ValueError(f"outputs must be an array to be counted, got {type(outputs).__name__}")
    many = any(column.target and column.shape for column in task.columns)
    width = int(np.prod(outputs.shape[1:]))
    if task.classes and outputs.ndim == 2 and not many:
        last = OutputPart(tuple(task.classes))
    elif width > FEW:
        return (*parts, VectorPart(width))
    else:
        last = OutputPart((), None if outputs.ndim == 1 else width)
    taken = {name for part in parts for name in (*part.numbers, *part.categories)}
    while taken & {*last.numbers, *last.categories}:
        last = replace(last, prefix=f"model's {last.prefix}")
    return (*parts, last)


def _part_of(column: Column) -> Part:
    whole = column.dtype.lstrip("u").startswith("int") and column.dtype != "uint8"
    if not column.shape:
        few = whole and column.classes is not None and column.classes <= MOST
        return CategoryPart(column.name, column.classes or 0) if few else NumberPart(column.name)
    if whole:
        return TokenPart(column.name)
    (*_, width), free = column.shape, None in column.shape
    if len(column.shape) > 1 or free or (width or 0) > FEW:
        return GridPart(column.name)
    return NumberPart(column.name, width)


def _none(x: Any, xp: Any) -> Any:
    """No numbers, or no categories, of as many rows as `x` has: float32 (B, 0)."""
    return xp.zeros((len(x), 0), np.float32)


def all_of(
    parts: tuple[Part, ...], columns: Mapping[str, Any], outputs: Any, xp: Any
) -> tuple[Any, Any, Any]:
    """Of all parts the numbers (B, n), the categories (B, c), and vectors (B, d) of outputs.

    Args:
        parts: of `parts_of`.
        columns: the encoded columns of B rows.
        outputs: of the task.
        xp: `numpy` or `jax.numpy`.

    >>> numbers, _, vectors = all_of((NumberPart("x"),), {"x": np.ones(2)}, None, np)
    >>> numbers.tolist(), vectors.shape
    ([[1.0], [1.0]], (2, 0))
    """
    looked = [part.look(columns, outputs, xp) for part in parts]
    numbers = settled(xp.concatenate([numbers for numbers, _ in looked], 1), xp)
    categories = xp.concatenate([some.astype(np.float32) for _, some in looked], 1)
    vectors = _none(numbers, xp)
    if any(isinstance(part, VectorPart) for part in parts):
        vectors = outputs.astype(np.float32).reshape(len(outputs), -1)
    return numbers, categories, vectors
