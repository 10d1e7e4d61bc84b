"""Turns rows in any order into series of one regular frequency; fills gaps or reports them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Report, Series, as_time

Fill = Literal["zero", "previous", "linear"]
Duplicates = Literal["error", "sum", "mean", "last"]


class Groups(NamedTuple):
    """The names of the columns of each kind."""

    values: tuple[str, ...]
    known: tuple[str, ...]
    past: tuple[str, ...]
    static: tuple[str, ...]


class Table(NamedTuple):
    """The rows of a table: N rows and W columns of S series.

    Attributes:
        name: the source's name, for messages.
        ids: str (S,).
        code: int (N,), the series of each row.
        times: int64 or datetime64[s] (N,).
        data: float32 (N, W), NaN for missing numbers; the columns have the order of `groups`.
        groups: the names of the columns.
        report: the counts so far.
        zone: see `Series`.
    """

    name: str
    ids: np.ndarray
    code: np.ndarray
    times: np.ndarray
    data: np.ndarray
    groups: Groups
    report: Report
    zone: str = ""

    def part(self, rows: np.ndarray) -> "Table":
        """Some of the rows, or all rows in another order."""
        return self._replace(code=self.code[rows], times=self.times[rows], data=self.data[rows])

    def place(self, row: int) -> str:
        """A row with its source, for messages."""
        return f"{self.at(row)} of {self.name}"

    def at(self, row: int) -> str:
        """Series and time of a row, for messages."""
        return f"series {str(self.ids[self.code[row]])!r} at {self.times[row]}"


def regular(
    table: Table,
    frequency: str | None,
    fill: Fill | Mapping[str, Fill] | None,
    duplicates: Duplicates,
    end: object = None,
) -> Series:
    """Make series from the rows of a table; see `reading.series`."""
    table = _sorted(table)
    frequency, place = _places(table, frequency)
    table, place = _distinct(table, place, duplicates)
    static = _static(table)

    begin = np.flatnonzero(np.append(True, np.diff(table.code) != 0))
    last = np.append(begin[1:], len(place)) - 1
    early = int((table.times[last] < table.times.max()).sum())
    lengths = place[last] + 1 if end is None else _lengths(table, begin, last, frequency, end)
    offsets = np.append(0, np.cumsum(lengths))
    groups = table.groups
    names = (*groups.values, *groups.known, *groups.past)
    table = table._replace(data=table.data[:, : len(names)])
    how = _how(fill, names)
    table = _gaps(table, place, lengths, how, names)
    table = _given(table, how, names)
    data = table.data
    if table.report.gaps:
        data = np.full((offsets[-1], len(names)), np.nan, np.float32)
        data[offsets[table.code] + place] = table.data
    missing = int(np.isnan(data).sum())
    if missing:
        data = data.copy()  # it may share memory with the user's own frame
        for j, name in enumerate(names):
            _fill(data, j, how[name], table, offsets, f"{table.name}: column {name!r}")
    borders = len(groups.values), len(groups.values) + len(groups.known)
    values, known, past = (np.ascontiguousarray(x) for x in np.split(data, borders, axis=1))
    return Series(
        ids=table.ids,
        start=table.times[begin],
        frequency=frequency,
        offsets=offsets,
        values=values,
        channels=groups.values,
        known=known,
        past=past,
        static=static,
        known_names=groups.known,
        past_names=groups.past,
        static_names=groups.static,
        report=table.report._replace(filled=missing, early=early),
        zone=table.zone,
    )


def _sorted(table: Table) -> Table:
    """Sort the rows by series and time. Rows of equal times keep their order."""
    if (np.diff(table.code) < 0).any():
        table = table.part(np.argsort(table.code, kind="stable"))
    falls = (np.diff(table.times).astype(np.int64) < 0) & (np.diff(table.code) == 0)
    unsorted = int(falls.sum())
    if unsorted:
        table = table.part(np.lexsort((table.times, table.code)))
    report = table.report._replace(unsorted=table.report.unsorted + unsorted)
    return table._replace(report=report)


def _places(table: Table, frequency: str | None) -> tuple[str, np.ndarray]:
    """The frequency, and for each row the number of steps since the first row of its series."""
    same = np.diff(table.code) == 0
    origin = ""
    if frequency is None:
        frequency = grid.inferred(table.times, same)
        origin = " (inferred as the most frequent step)"
    grid.check(frequency, table.times)
    begin = np.append(True, ~same)
    since = table.times[begin][np.cumsum(begin) - 1]
    place, whole = grid.places(table.times, since, frequency)
    if not whole.all():
        row = int((~whole).argmax())
        raise ValueError(
            f"times must be of frequency {frequency!r}{origin} from {since[row]} on, got "
            f"{table.place(row)} ({(~whole).sum():,} such rows); give another frequency="
            + (", or zone= if these are dates of a local clock" if grid.long(frequency) else "")
        )
    return frequency, place


def _distinct(table: Table, place: np.ndarray, duplicates: Duplicates) -> tuple[Table, np.ndarray]:
    again = np.append(False, (np.diff(place) == 0) & (np.diff(table.code) == 0))
    count = int(again.sum())
    if count == 0:
        return table, place
    if duplicates == "error":
        raise ValueError(
            f"{table.name} must have one row for each series and time, got two for "
            f"{table.at(int(again.argmax()))} ({count:,} duplicates); "
            'duplicates="sum", "mean" or "last" joins them'
        )
    first = np.flatnonzero(~again)
    ends = np.append(first[1:], len(place))
    data = table.data[ends - 1]
    if duplicates != "last":
        sums = np.add.reduceat(table.data.astype(np.float64), first, axis=0)
        data = sums / (ends - first)[:, None]
        if duplicates == "sum":
            width = len(table.groups.values)
            data[:, :width] = sums[:, :width]
    report = table.report._replace(duplicates=count)
    table = table.part(first)._replace(data=data.astype(np.float32), report=report)
    return table, place[first]


def _lengths(
    table: Table, begin: np.ndarray, last: np.ndarray, frequency: str, end: object
) -> np.ndarray:
    """The number of rows of each series up to an end that is the same for all series."""
    times = table.times[last]
    latest = isinstance(end, str) and end == "latest"
    until = times.max() if latest else as_time(end, "end", frequency)
    if until.dtype.kind != times.dtype.kind or until.ndim or until < times.max():
        row = last[int(times.argmax())]
        raise ValueError(
            'end must be "latest", or a time not before the last row, which is '
            f"{table.place(row)}, got {end!r}"
        )
    steps, whole = grid.places(np.full_like(times, until), table.times[begin], frequency)
    if grid.step(frequency) is None:
        steps = steps - ~whole  # an end between two steps counts as the first of them
    return np.asarray(steps + 1)


def _static(table: Table) -> np.ndarray:
    """The static columns, with a row for each series."""
    names = table.groups.static
    columns = table.data[:, table.data.shape[1] - len(names) :]
    begin = np.append(True, np.diff(table.code) != 0)
    static = columns[begin]
    other = columns != static[np.cumsum(begin) - 1]  # True for NaN too
    if other.any():
        row, j = np.argwhere(other)[0]
        raise ValueError(
            f"static column {names[j]!r} must have one finite number for all rows of a series, got "
            f"{columns[row, j]:g} in {table.place(row)}"
        )
    return static


def _how(fill: Fill | Mapping[str, Fill] | None, names: tuple[str, ...]) -> dict[str, Fill | None]:
    """How to fill each column; None for a column that is not filled."""
    chosen: dict[str, Fill | None] = dict.fromkeys(names)
    chosen |= fill if isinstance(fill, Mapping) else dict.fromkeys(names, fill)
    for name, how in chosen.items():
        if name not in names:
            raise ValueError(f"fill must name columns among {', '.join(names)}, got {name!r}")
        if how not in (None, "zero", "previous", "linear"):
            raise ValueError(f'fill must be "zero", "previous", "linear" or None, got {how!r}')
    return chosen


def _gaps(
    table: Table,
    place: np.ndarray,
    lengths: np.ndarray,
    how: dict[str, Fill | None],
    names: tuple[str, ...],
) -> Table:
    """Count the gaps of the table, up to the end of each series."""
    ends = np.append(np.diff(table.code) != 0, True)
    missing = np.append(np.diff(place), 1) - 1
    missing[ends] = lengths - 1 - place[ends]
    gaps, rows = int(missing.sum()), int(lengths.sum())
    among = len(np.unique(table.code[missing > 0]))
    unfilled = [name for name in names if how[name] is None]
    if gaps and unfilled:
        row = int((missing > 0).argmax())
        until = "to the end" if ends[row] else f"to {table.times[row + 1]}"
        raise ValueError(
            f"{table.name} must have no gaps, got {missing[row]} missing rows "
            f"after {table.at(row)}, up {until} ({gaps:,} in {among:,} series); "
            f'fill="zero", "previous" or "linear" fills the columns {", ".join(unfilled)}'
        )
    if rows >= 2**31:
        raise ValueError(
            f"{table.name} must have fewer than 2^31 rows with the gaps filled, got {rows}"
        )
    return table._replace(report=table.report._replace(gaps=gaps, with_gaps=among))


def _given(table: Table, how: dict[str, Fill | None], names: tuple[str, ...]) -> Table:
    """Count the missing numbers of the table; raise if one is in a column that is not filled."""
    missing = np.isnan(table.data)
    if not missing.any():
        return table
    for j, name in enumerate(names):
        if how[name] is None and missing[:, j].any():
            raise ValueError(
                f"column {name!r} must be finite, got NaN in "
                f"{table.place(int(missing[:, j].argmax()))} ({missing[:, j].sum():,} in all); "
                "fill= fills them"
            )
    return table._replace(report=table.report._replace(missing=int(missing.sum())))


def _fill(
    data: np.ndarray, j: int, how: Fill | None, table: Table, offsets: np.ndarray, what: str
) -> None:
    """Fill column j in place."""
    column = data[:, j]
    missing = np.isnan(column)
    if not missing.any():
        return
    if how == "zero":
        column[missing] = 0
        return
    rows = np.arange(len(column))
    empty = np.flatnonzero(missing)
    number = np.searchsorted(offsets, empty, "right") - 1
    before = np.maximum.accumulate(np.where(missing, -1, rows))[empty]
    after = np.minimum.accumulate(np.where(missing, len(column), rows)[::-1])[::-1][empty]
    lost = before < offsets[number]
    if how == "linear":
        lost |= after >= offsets[number + 1]
    if lost.any():
        series = int(number[lost.argmax()])
        side = "before" if how == "previous" else "on either side of"
        raise ValueError(
            f"{what} must have a number {side} each gap for fill={how!r}, got none for row "
            f"{empty[lost.argmax()] - offsets[series]} of series {str(table.ids[series])!r}; "
            "leave such rows at the ends of a series out, or choose another fill="
        )
    if how == "previous":
        column[empty] = column[before]
    else:
        share = (empty - before) / (after - before)
        column[empty] = column[before] * (1 - share) + column[after] * share
