"""The smallest changes of a row, among those that are allowed, after which a model says otherwise.

A beam search over the cells of a row that needs nothing of a model but its predictions. The values
that a cell may take are those of the user's rows, within what the user allows.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops import _table
from jaxops.data.tables import Source
from jaxops.explain.tables import frames
from jaxops.explain.tables.frames import Predict, checked_columns, is_ordered
from jaxops.model.finished import Model

POINTS = 16  # values of a number that the first search tries
FINE = 64  # values between the row's own and the found one, in each pass of the second
BEAM = 24  # rows from which the search goes on
DEEP = 5  # changed cells after which the search ends if there is any answer
ANSWERS = 24  # of the search, which are made smaller
UP, DOWN = "up", "down"


class Counterfactuals(NamedTuple):
    """Rows near a given one of which a model says what is wanted, the nearest first.

    Attributes:
        row: a frame of the row as it is.
        rows: a frame of the K changed rows.
        changes: K dicts, column -> (value before, value after).
        costs: float64 (K,), see `counterfactuals`.
        before: what the model predicts for the row, such as its probability.
        after: float64 (K,), what it predicts for the changed rows.
        unit: what that is, such as "p(yes)".

    >>> one = Counterfactuals(None, None, [{"age": (20, 31)}], np.array([2.5]), 0.25,
    ...                       np.array([0.75]), "p(yes)")
    >>> print(one)
    | change       | p(yes) | cost |
    |--------------|-------:|-----:|
    | none         |   0.25 |    0 |
    | age 20 -> 31 |   0.75 |  2.5 |
    """

    row: Any
    rows: Any
    changes: list[dict[str, tuple[Any, Any]]]
    costs: np.ndarray
    before: float
    after: np.ndarray
    unit: str

    def __str__(self) -> str:
        rows = [{"change": "none", self.unit: self.before, "cost": 0.0}]
        for change, after, cost in zip(self.changes, self.after, self.costs, strict=True):
            cells = [f"{name} {old} -> {new}" for name, (old, new) in change.items()]
            rows.append({"change": ", ".join(cells), self.unit: float(after), "cost": float(cost)})
        return _table.table(rows)


class Cell(NamedTuple):
    """What a cell may become.

    Attributes:
        own: its value.
        low: the least allowed number; None for categories.
        high: the largest.
        step: the numbers differ from the row's own by multiples of it, or are multiples of it where
            the row has none; 0 for any number.
        scale: the unit of a number's distance.
        values: what the search tries first.
    """

    own: Any
    low: float | None
    high: float | None
    step: float
    scale: float
    values: list[Any]

    def cost(self, value: Any) -> float:
        """The distance from the row's own value, and 1 for a change."""
        if value == self.own:
            return 0.0
        if self.low is None or self.own != self.own:
            return 2.0
        return 1.0 + abs(value - self.own) / self.scale

    def between(self, value: Any) -> list[Any]:
        """Values from the row's own to another one."""
        if self.low is None or self.own != self.own:
            return [value]
        count = round(abs(value - self.own) / self.step) if self.step else FINE
        return self.stepped(np.linspace(self.own, value, min(count, FINE) + 1)[1:])

    def stepped(self, numbers: np.ndarray) -> list[Any]:
        """Numbers as the column holds them, in the allowed range."""
        numbers = np.asarray(numbers, np.float64)
        if self.step:
            start = self.own if self.own == self.own else 0.0
            numbers = start + np.round((numbers - start) / self.step) * self.step
        assert self.low is not None and self.high is not None  # of numbers
        rounding = 1e-9 * self.step
        inside = (numbers >= self.low - rounding) & (numbers <= self.high + rounding)
        found: list[Any] = np.unique(numbers[inside].clip(self.low, self.high)).tolist()
        whole = isinstance(self.own, int) and self.step and self.step % 1 == 0
        return [int(x) for x in found] if whole else found


def counterfactuals(
    model: Model | Predict,
    row: Source,
    rows: Source,
    target: Any = None,
    *,
    least: float | None = None,
    most: float | None = None,
    count: int = 3,
    columns: Sequence[str] | None = None,
    immutable: Sequence[str] = (),
    directions: Mapping[str, str] | None = None,
    ranges: Mapping[str, Sequence[Any]] | None = None,
    steps: Mapping[str, float] | None = None,
) -> Counterfactuals:
    """The cheapest allowed changes of a row after which the model predicts what is wanted.

    The cost of a change is its number of changed cells, plus for each changed number the size of
    its change in median absolute deviations of `rows` (standard deviations where that is 0), and 1
    for each changed category. Each answer changes a set of columns that contains that of no
    cheaper answer, so the answers are different ways to the goal.

    A search over the cells keeps the best of the changed rows, changes one more cell of these, and
    ends when one more cell would cost too much. Then every answer is made smaller, cell by cell.
    Nothing guarantees the least cost; every answer has been predicted by the model itself. The
    answers say what the model would predict, not what would happen if somebody changed this.

    Args:
        model: a finished model, or a function of a frame of raw rows.
        row: a table of the one row.
        rows: other rows, such as the train rows, from which values and scales are taken.
        target: the class, label or level that is meant; by default the second of two classes, or
            the only number.
        least: the least prediction that is wanted; 0.5 for classes if `most` is not given either.
        most: the largest one.
        count: how many answers, at most.
        columns: which columns may change; by default all that the model reads. Dates do not change.
        immutable: those that stay as they are.
        directions: column -> "up" or "down", for numbers that only rise or only fall.
        ranges: column -> (least, largest) of a number, or the categories that are allowed; by
            default what `rows` have, of categories those that the model has learned.
        steps: column -> what a number changes by multiples of, 0 for any change; by default 1 for
            columns of whole numbers.

    Raises:
        ValueError: a column that is not there; a setting of a column that may not change or is of
            another kind; no column left to change; a row of which the model says it already; no
            allowed change that is enough, with the nearest that was found.

    References:
        Wachter, Mittelstadt and Russell 2017, arXiv:1711.00399; Mothilal, Sharma and Tan 2020,
        arXiv:1905.07697.

    >>> rows = {"age": [20, 30, 40, 50], "plan": ["a", "b", "a", "b"]}
    >>> says_yes = lambda frame: 0.02 * frame["age"] + 0.2 * (frame["plan"] == "b")
    >>> row = {"age": [20], "plan": ["a"]}
    >>> print(counterfactuals(says_yes, row, rows, least=0.55))
    | change       | prediction | cost |
    |--------------|-----------:|-----:|
    | none         |        0.4 |    0 |
    | age 20 -> 28 |       0.56 |  1.8 |
    | plan a -> b  |        0.6 |    2 |
    """
    text = frames.texts_of(model)
    one, known = frames.frame_of(row, "row", text), frames.frame_of(rows, text=text)
    if len(one) != 1 or count < 1:
        raise ValueError(
            f"row must be a table of 1 row and count at least 1, got {len(one)} and {count}"
        )
    limits = directions or {}, ranges or {}, steps or {}
    names = _changeable(model, one, known, columns, immutable, limits)
    cells = {name: _cell(name, one[name], _read(model, known[name]), *limits) for name in names}
    cells = {name: cell for name, cell in cells.items() if cell.values}
    if not cells:
        raise ValueError("columns must leave at least one value to change to, got none")
    numbers, unit = frames.numbers_of(model, one, target)
    if least is None and most is None:
        least = 0.5 if unit.startswith("p(") else None
    search = _Search(numbers, one, cells, least, most)
    search.check(unit)
    best = search.chosen(search.smaller(search.found(count)), count)
    if not best:
        raise ValueError(search.failed(unit))
    changed = search.frame(best)
    return Counterfactuals(
        one,
        changed,
        [{name: (cells[name].own, value) for name, value in change.items()} for change in best],
        np.array([search.cost(change) for change in best]),
        search.before,
        numbers(changed),
        unit,
    )


def _changeable(
    model: Any, one: Any, known: Any, columns: Any, immutable: Any, limits: Any
) -> list[str]:
    """The columns that may change."""
    if columns is None:
        columns = frames.columns_read(model, known) if isinstance(model, Model) else [*one.columns]
    columns = checked_columns("columns", checked_columns("columns", columns, one), known)
    immutable = checked_columns("immutable", immutable, one)
    dates = getattr(getattr(model, "reader", None), "dates", None) or ()
    fixed = {*immutable, *dates, *(c for c in columns if known[c].dtype.kind == "M")}
    columns = [column for column in columns if column not in fixed]
    for name, given in zip(("directions", "ranges", "steps"), limits, strict=True):
        for column in checked_columns(name, [*given], one):
            if column not in columns:
                raise ValueError(f"{name} must be of columns that may change, got {column!r}")
    if not columns:
        raise ValueError("immutable must leave a column that may change, got all of them")
    return columns


def _read(model: Any, column: Any) -> Any:
    """The column without texts that the model has not learned, if it is known which it has."""
    encoder = getattr(getattr(model, "reader", None), "encoder", None)
    if encoder is None or column.name not in encoder.values:
        return column
    texts = {*encoder.values[column.name], *encoder.rare.get(column.name, ())}
    return column[[str(value).strip() in texts for value in column]]


def _cell(name: str, own: Any, known: Any, directions: Any, ranges: Any, steps: Any) -> Cell:
    """What the cell may become."""
    value = own.tolist()[0]
    if own.isna().any():
        value = np.nan if is_ordered(known) else None
    if not is_ordered(known):
        for what, given in (("directions", directions), ("steps", steps)):
            if name in given:
                raise ValueError(f"{what} must be of numbers, got {name!r}, which has categories")
        allowed = ranges.get(name, frames.known_values(known).tolist())
        if isinstance(allowed, str):
            raise ValueError(f"ranges[{name!r}] must be a list of categories, got {allowed!r}")
        return Cell(value, None, None, 0.0, 1.0, [one for one in allowed if one != value])
    present = known.dropna().to_numpy(np.float64)
    if not len(present):
        raise ValueError(f"{name} must have a value in some row, got none")
    low, high = _bounds(name, present, value, directions.get(name), ranges.get(name))
    step = float(steps.get(name, 1.0 if (present % 1 == 0).all() else 0.0))
    if not 0 <= step < np.inf:
        raise ValueError(f"steps[{name!r}] must be at least 0, got {step}")
    scale = float(np.median(np.abs(present - np.median(present)))) or float(present.std()) or 1.0
    cell = Cell(value, low, high, step, scale, [])
    tried = np.quantile(present, np.linspace(0, 1, POINTS + 1))
    tried = np.concatenate([tried, [x for x in (low, high) if np.isfinite(x)]])
    return cell._replace(values=[one for one in cell.stepped(tried) if one != value])


def _bounds(name: str, present: np.ndarray, own: Any, way: Any, given: Any) -> tuple[float, float]:
    """The least and the largest number that a cell may become."""
    pair = (present.min(), present.max()) if given is None else tuple(given)
    if len(pair) != 2 or not pair[0] <= pair[1]:
        raise ValueError(f"ranges[{name!r}] must be (least, largest), got {given!r}")
    if way not in (None, UP, DOWN):
        raise ValueError(f'directions[{name!r}] must be "up" or "down", got {way!r}')
    low, high = map(float, pair)
    if own != own and way is not None:
        raise ValueError(f"directions must be of cells with a number, got {name!r}, which is none")
    return (max(low, own) if way == UP else low), (min(high, own) if way == DOWN else high)


Change = dict[str, Any]
"""Column -> its new value."""


class _Search:
    """The search for changes of one row."""

    def __init__(
        self, numbers: Predict, row: Any, cells: dict[str, Cell], least: Any, most: Any
    ) -> None:
        self.numbers, self.row, self.cells = numbers, row, cells
        self.least: float = -np.inf if least is None else least
        self.most: float = np.inf if most is None else most
        self.before = float(numbers(row)[0])
        self.nearest: tuple[float, Change, float] = (np.inf, {}, self.before)

    def check(self, unit: str) -> None:
        """Raise `ValueError` if nothing is wanted, or if it holds already."""
        least, most = self.least, self.most
        if not least <= most or not np.isfinite([least, most]).any():
            raise ValueError(
                f"least or most must be given, and least at most most, got {least} and {most}"
            )
        if self.short(self.before) <= 0:
            raise ValueError(
                f"row must not be as wanted already, got {unit} {self.before:.4g}, wanted "
                f"{least:.4g} to {most:.4g}"
            )

    def failed(self, unit: str) -> str:
        """What to say if there is no answer."""
        _, change, number = self.nearest
        cells = ", ".join(f"{name} = {value}" for name, value in change.items()) or "no change"
        return (
            f"{unit} must become {self.least:.4g} to {self.most:.4g} by a change that is allowed, "
            f"got at best {number:.4g} by {cells}; allow more columns or wider ranges"
        )

    def short(self, number: Any) -> Any:
        """What is lacking to what is wanted; 0 or less if nothing is."""
        return np.maximum(self.least - number, number - self.most)

    def cost(self, change: Change) -> float:
        """The cost of a change."""
        return sum(self.cells[name].cost(value) for name, value in change.items())

    def frame(self, changes: Sequence[Change]) -> Any:
        """The changed rows."""
        many = self.row.iloc[np.zeros(len(changes), int)].reset_index(drop=True)
        columns = {}
        for name in {name for change in changes for name in change}:
            values = [change.get(name, self.cells[name].own) for change in changes]
            number = self.cells[name].low is not None
            columns[name] = np.array(values) if number else frames.objects(values)
        return many.assign(**columns)

    def lacking(self, changes: Sequence[Change]) -> np.ndarray:
        """What is lacking after each change, by the model's own predictions."""
        numbers = self.numbers(self.frame(changes))
        lacking: np.ndarray = self.short(numbers)
        best = int(lacking.argmin())
        if lacking[best] < self.nearest[0]:
            self.nearest = float(lacking[best]), changes[best], float(numbers[best])
        return lacking

    def found(self, count: int) -> list[Change]:
        """Changes that are enough, the cheapest first."""
        beam: list[Change] = [{}]
        enough: list[Change] = []
        for size in range(1, len(self.cells) + 1):
            tried = (
                {**change, name: value}
                for change in beam
                for name, cell in self.cells.items()
                if name not in change
                for value in cell.values
            )
            changes = [*{frozenset(change.items()): change for change in tried}.values()]
            if not changes:
                break
            lacking = self.lacking(changes)
            costs = np.array([self.cost(change) for change in changes])
            enough += [changes[i] for i in np.flatnonzero(lacking <= 0)]
            # one more cell costs at least 1 for each cell
            best = self.chosen(enough, count)
            cheap = len(best) == count and self.cost(best[-1]) <= size + 1
            if cheap or (enough and size >= DEEP):
                break
            left = np.flatnonzero(lacking > 0)
            gain = (self.short(self.before) - lacking[left]) / costs[left]
            ways = np.argsort(lacking[left], kind="stable"), np.argsort(-gain, kind="stable")
            kept = dict.fromkeys([*ways[0][: BEAM // 2], *ways[1][: BEAM // 2]])
            beam = [changes[left[place]] for place in kept]
        return sorted(enough, key=self.cost)

    def chosen(self, changes: Sequence[Change], count: int) -> list[Change]:
        """The cheapest changes of which none changes all that a cheaper one changes."""
        best: list[Change] = []
        for change in sorted(changes, key=self.cost):
            if not any(other.keys() <= change.keys() for other in best):
                best.append(change)
        return best[:count]

    def smaller(self, changes: list[Change]) -> list[Change]:
        """The cheapest change of each set of columns, each made as cheap as it can be."""
        sets: dict[frozenset[str], Change] = {}
        for change in changes:
            sets.setdefault(frozenset(change), change)
        return [self._smaller(change) for change in [*sets.values()][:ANSWERS]]

    def _smaller(self, change: Change) -> Change:
        """Cell by cell the cheapest value that is enough, until nothing changes."""
        for _ in range(4):
            start = change
            for name in sorted(start, key=lambda name: -self.cells[name].cost(start[name])):
                cell = self.cells[name]
                others = cell.values if cell.low is None else cell.between(change[name])
                tried = [{key: value for key, value in change.items() if key != name}]
                tried += [{**change, name: value} for value in others]
                tried = [one for one in tried if one and self.cost(one) < self.cost(change)]
                if tried:
                    enough = [t for t, x in zip(tried, self.lacking(tried), strict=True) if x <= 0]
                    change = min([change, *enough], key=self.cost)
            if change == start:
                break
        return change
