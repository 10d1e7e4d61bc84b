"""How a model's predictions depend on one column: partial dependence, ICE and ALE."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxops.data.tables import Source
from jaxops.explain.tables import frames
from jaxops.explain.tables.frames import Predict, is_ordered
from jaxops.model.finished import Model, frame
from jaxops.trust._figures import BLUE, GREY, PathLike, new_figure, open_frame, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = 50  # rows of which a picture shows the curve


class Dependence(NamedTuple):
    """How predictions depend on one column.

    Attributes:
        kind: "partial dependence" or "accumulated local effect".
        column: its name.
        unit: what is predicted, such as "p(yes)".
        grid: (G,), values of the column; categories in the order in which they are accumulated.
        effect: float64 (G,). Of partial dependence the mean prediction; of ALE the effect less its
            mean over the rows.
        rows: float64 (N, G), the prediction of each row at each value (ICE); (0, G) for ALE.
        counts: (G,), of partial dependence and of categories the rows that have this value, or the
            nearest; of ALE of numbers the rows in the bin that ends here.

    >>> one = Dependence("partial dependence", "plan", "price", np.array(["a", "b"], object),
    ...                  np.array([1.0, 3.0]), np.zeros((0, 2)), np.array([5, 7]))
    >>> one.frame().to_dict("list")
    {'plan': ['a', 'b'], 'effect': [1.0, 3.0], 'rows': [5, 7]}
    """

    kind: str
    column: str
    unit: str
    grid: np.ndarray
    effect: np.ndarray
    rows: np.ndarray
    counts: np.ndarray

    def frame(self) -> Any:
        """A pandas frame: the column's values, the effect, and how many rows there are."""
        return frame({self.column: self.grid, "effect": self.effect, "rows": self.counts})

    def plot(self, path: PathLike | None = None) -> "Figure":
        """The effect; of partial dependence with the curves of 50 rows, each less its mean."""
        figure = new_figure(5.4, 3.6)
        axes = figure.subplots()
        open_frame(axes)
        ordered = self.grid.dtype != object
        x = self.grid if ordered else np.arange(len(self.grid))
        step = -(-len(self.rows) // LINES) if len(self.rows) else 1
        for row in self.rows[::step]:
            axes.plot(x, row - row.mean() + self.effect.mean(), color=GREY, alpha=0.25, lw=0.7)
        axes.plot(x, self.effect, color=BLUE, lw=2, marker=None if ordered else "o")
        if not ordered:
            axes.set_xticks(x, [str(value) for value in self.grid], rotation=30, ha="right")
        axes.set_xlabel(self.column)
        axes.set_ylabel(f"{self.unit}\n{self.kind}")
        return save_figure(figure, path)


def partial_dependence(
    model: Model | Predict,
    rows: Source,
    column: str,
    target: Any = None,
    *,
    grid: Sequence[Any] | None = None,
    points: int = 20,
) -> Dependence:
    """The mean prediction with one column set to each of some values in all rows, and each row's.

    The curves of single rows (individual conditional expectation) that are not parallel show an
    interaction. Rows get combinations that may not occur, such as a child with a pension; ALE does
    not do that.

    Args:
        model: a finished model, or a function of a frame of raw rows.
        rows: N rows.
        column: its name.
        target: the class, label or level that is explained; by default the second of two classes,
            or the only number.
        grid: the values; by default every value of categories, and of numbers and dates at most
            `points` of those that occur, with equally many rows between them.
        points: see `grid`.

    Raises:
        ValueError: a column that is not there or has no value; points below 2; an unknown target.

    References:
        Friedman 2001, Greedy function approximation; Goldstein et al. 2015, arXiv:1309.6392.

    >>> rows = {"x": [0.0, 1.0, 2.0], "plan": ["a", "b", "b"]}
    >>> model = lambda frame: 2 * frame["x"] + (frame["plan"] == "b")
    >>> partial_dependence(model, rows, "x", grid=[0.0, 1.0]).effect.round(4).tolist()
    [0.6667, 2.6667]
    """
    table = frames.frame_of(rows, text=frames.texts_of(model))
    (column,) = frames.checked_columns("column", [column], table)
    if points < 2:
        raise ValueError(f"points must be at least 2, got {points}")
    values = _values(table[column], points - 1) if grid is None else _own(grid, table[column])
    if len(values) == 0:
        raise ValueError(f"{column} must have a value in some row, got none")
    numbers, unit = frames.numbers_of(model, table, target)
    curves = _varied(numbers, table, column, values)
    counts = _nearest(table[column], values)
    kind = "partial dependence"
    return Dependence(kind, column, unit, values, curves.mean(1), curves.T, counts)


def _own(grid: Sequence[Any], column: Any) -> np.ndarray:
    values = np.asarray(grid) if is_ordered(column) else frames.objects(grid)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"grid must be at least one value, got {grid!r}")
    return values


def _values(column: Any, bins: int) -> np.ndarray:
    """All categories; or the edges of bins, values that occur, with the least and the largest."""
    values = frames.known_values(column)
    if not is_ordered(column) or len(values) == 0:
        return values
    present, levels = column.dropna().to_numpy(), np.linspace(0, 1, bins + 1)
    return np.unique(np.quantile(present, levels, method="inverted_cdf"))


def _varied(numbers: Predict, table: Any, column: str, values: np.ndarray) -> np.ndarray:
    """What the model predicts for all rows with each value, float64 (G, N)."""
    count, parts = len(table), []
    at_once = max(1, frames.AT_ONCE // count)
    for start in range(0, len(values), at_once):
        some = values[start : start + at_once]
        many = table.iloc[np.tile(np.arange(count), len(some))].reset_index(drop=True)
        many = many.assign(**{column: np.repeat(some, count)})
        parts.append(numbers(many).reshape(len(some), count))
    return np.concatenate(parts)


def _nearest(column: Any, values: np.ndarray) -> np.ndarray:
    """How many rows have each value, or one for which it is the nearest."""
    if not is_ordered(column):
        return column.value_counts().reindex(values, fill_value=0).to_numpy()
    present = column.dropna().to_numpy()
    order = np.argsort(values, kind="stable")
    middles = values[order][:-1] + np.diff(values[order]) / 2
    counts = np.zeros(len(values), np.int64)
    counts[order] = np.bincount(np.searchsorted(middles, present), minlength=len(values))
    return counts


def ale(
    model: Model | Predict, rows: Source, column: str, target: Any = None, *, bins: int = 20
) -> Dependence:
    """Accumulated local effects: the mean change of the prediction across each bin, added up.

    Of numbers and dates, each row's prediction is computed with the column at both edges of the
    bin in which the row lies, so that only values near its own are set. Categories are first put
    in an order in which neighbours have similar other columns (the first coordinate of a
    multidimensional scaling of the sums, over the other columns, of Kolmogorov-Smirnov or total
    variation distances); each row's prediction is then computed with the neighbouring categories.
    Rows in which the column is missing are left out.

    Args:
        model: a finished model, or a function of a frame of raw rows.
        rows: N rows.
        column: its name.
        target: see `partial_dependence`.
        bins: of numbers and dates, with equally many rows as far as equal values allow.

    Raises:
        ValueError: a column that is not there, or has fewer than two values; bins below 1; an
            unknown target.

    References:
        Apley and Zhu 2020, arXiv:1612.08468.

    >>> rows = {"x": [0.0, 1.0, 2.0, 4.0]}
    >>> ale(lambda frame: 3 * frame["x"], rows, "x", bins=2).effect.tolist()
    [-4.5, -1.5, 7.5]
    """
    table = frames.frame_of(rows, text=frames.texts_of(model))
    (column,) = frames.checked_columns("column", [column], table)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    ordered = is_ordered(table[column])
    missing = table[column].isna() | (False if ordered else table[column] == "")
    table = table[~missing].reset_index(drop=True)
    values = _values(table[column], bins)
    if len(values) < 2:
        raise ValueError(f"{column} must have at least 2 values, got {len(values)}")
    numbers, unit = frames.numbers_of(model, table, target)
    of = _of_ordered if ordered else _of_categories
    values, effect, counts = of(numbers, table, column, values)
    kind, none = "accumulated local effect", np.zeros((0, len(values)))
    return Dependence(kind, column, unit, values, effect, none, counts)


def _of_ordered(
    numbers: Predict, table: Any, column: str, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    place = np.clip(np.searchsorted(edges, table[column].to_numpy()), 1, len(edges) - 1)
    change = numbers(table.assign(**{column: edges[place]}))
    change -= numbers(table.assign(**{column: edges[place - 1]}))
    counts = np.bincount(place, minlength=len(edges))
    steps = np.bincount(place, change, len(edges)) / np.maximum(counts, 1)
    effect = steps.cumsum()
    middle = (effect[:-1] + effect[1:]) / 2
    return edges, effect - (counts[1:] * middle).sum() / counts.sum(), counts


def _of_categories(
    numbers: Predict, table: Any, column: str, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = values[_similar(table, column, values)]
    number = {value: place for place, value in enumerate(values)}
    own = np.array([number[value] for value in table[column]])
    counts = np.bincount(own, minlength=len(values))
    here = numbers(table)
    up, down = np.flatnonzero(own < len(values) - 1), np.flatnonzero(own > 0)
    above, below = (
        numbers(table.iloc[some].assign(**{column: values[own[some] + way]}))
        for some, way in ((up, 1), (down, -1))
    )
    places = np.concatenate([own[up], own[down] - 1])
    change = np.concatenate([above - here[up], here[down] - below])
    many = np.maximum(np.bincount(places, minlength=len(values) - 1), 1)
    steps = np.bincount(places, change, len(values) - 1) / many
    effect = np.concatenate([[0], steps.cumsum()])
    return values, effect - (counts * effect).sum() / counts.sum(), counts


def _similar(table: Any, column: str, values: np.ndarray) -> np.ndarray:
    """The order of the categories by the first coordinate of their distances' scaling."""
    count = len(values)
    distances = np.zeros((count, count))
    inside = [(table[column] == value).to_numpy() for value in values]
    for name in table.columns.drop(column):
        ordered = is_ordered(table[name])
        codes = table[name].factorize(sort=ordered)[0] + 1  # 0 where missing
        counts = [np.bincount(codes[rows], minlength=codes.max() + 1) for rows in inside]
        shares = np.stack([one / one.sum() for one in counts])
        shares = shares.cumsum(1) if ordered else shares
        for place, one in enumerate(shares):
            gaps = np.abs(shares - one[None])
            distances[place] += gaps.max(1) if ordered else gaps.sum(1) / 2
    squares = distances**2
    middle = np.eye(count) - 1 / count
    first = np.linalg.eigh(-middle @ squares @ middle / 2)[1][:, -1]
    return np.argsort(first * (1 if first[np.abs(first).argmax()] > 0 else -1), kind="stable")
