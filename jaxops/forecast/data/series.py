"""Series of one regular frequency, ragged, with their covariates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from typing import Any, NamedTuple

import numpy as np

from jaxops.forecast.data import grid

Columns = Sequence[np.ndarray | Sequence[float]] | np.ndarray
"""S arrays, one for each series."""


class Report(NamedTuple):
    """Counts of what was found and filled while a table was read.

    Attributes:
        rows: rows of the table.
        unsorted: rows that are earlier than the row before them in the same series.
        duplicates: rows that have the series and the time of an earlier row.
        gaps: rows that are missing between the first and the last row of a series, or its `end`.
        with_gaps: series that have gaps.
        missing: numbers that are missing in the rows of the table.
        filled: numbers that were filled in, including those in gaps.
        trimmed: rows of a wide table before a series' first number and after its last.
        early: series that end before the latest time of the table.
    """

    rows: int
    unsorted: int = 0
    duplicates: int = 0
    gaps: int = 0
    with_gaps: int = 0
    missing: int = 0
    filled: int = 0
    trimmed: int = 0
    early: int = 0

    def __str__(self) -> str:
        text = (
            f"{self.rows} rows read, {self.unsorted} unsorted, {self.duplicates} duplicates, "
            f"{self.gaps} rows missing in {self.with_gaps} series, {self.missing} numbers missing, "
            f"{self.filled} filled, {self.trimmed} rows trimmed"
        )
        return text + (f", {self.early} series end before the last row" if self.early else "")


@dataclass(frozen=True, eq=False)
class Series:
    """S series of C channels each, stored end to end in R rows.

    Attributes:
        ids: str (S,), the names of the series.
        start: the time of each series' first row, datetime64[s] (S,), or int64 (S,) if times are
            counts.
        frequency: a pandas offset alias such as "h", "D", "MS", or an offset, which is stored as
            its canonical alias ("60min" is "h"); or a whole number such as "1" if times are counts.
        offsets: int64 (S + 1,); the rows of series s are offsets[s] to offsets[s + 1] - 1.
        values: float32 (R, C).
        channels: names of the C channels.
        known: float32 (R, K), covariates whose future is known, such as holidays; K may be 0.
        past: float32 (R, P), covariates whose future is not known.
        static: float32 (S, Q), one row for each series.
        known_names, past_names, static_names: names of the covariates' columns.
        report: the counts from reading the table; None for series that were not read from a table.
        zone: for steps shorter than a day, a time zone such as "Europe/Berlin" whose clock the
            calendar reads, while the times are in UTC; "" for the clock of UTC. Steps of a day or
            longer have local dates and no zone.

    Raises:
        ValueError: the shapes of the arrays do not fit together; values or covariates are not
            finite float32; the frequency is unknown; or a start is not one of its times.
    """

    ids: np.ndarray
    start: np.ndarray
    frequency: str
    offsets: np.ndarray
    values: np.ndarray
    channels: tuple[str, ...]
    known: np.ndarray
    past: np.ndarray
    static: np.ndarray
    known_names: tuple[str, ...] = ()
    past_names: tuple[str, ...] = ()
    static_names: tuple[str, ...] = ()
    report: Report | None = None
    zone: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "frequency", grid.canonical(self.frequency))
        grid.check(self.frequency, self.start)
        if self.zone and (self.start.dtype.kind != "M" or grid.long(self.frequency)):
            raise ValueError(
                f"zone must be '' for steps of {self.frequency!r}, whose times are local dates or "
                f"counts, got {self.zone!r}"
            )
        grid.on_the_clock(self.start, self.zone)  # raises if the zone is unknown
        count, rows = len(self.ids), len(self.values)
        shapes = {
            "start": (count,),
            "offsets": (count + 1,),
            "values": (rows, len(self.channels)),
            "known": (rows, len(self.known_names)),
            "past": (rows, len(self.past_names)),
            "static": (count, len(self.static_names)),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        if count == 0 or self.offsets[0] != 0 or self.offsets[-1] != rows:
            raise ValueError(
                f"offsets must run from 0 to {rows} (the rows) for at least one series, got "
                f"{self.offsets[0]} to {self.offsets[-1]} for {count}"
            )
        if (self.lengths < 1).any():
            empty = str(self.ids[self.lengths.argmin()])
            raise ValueError(
                f"offsets must give each series at least 1 row, got none for {empty!r}"
            )
        _, whole = grid.places(self.start, self.start, self.frequency)
        if not whole.all():
            s = int(whole.argmin())
            raise ValueError(
                f"start must be a time of frequency {self.frequency!r}, got {self.start[s]} of "
                f"series {str(self.ids[s])!r}"
            )
        if rows >= 2**31:
            raise ValueError(
                f"values must have fewer than {2**31} rows, as rows are int32, got {rows}"
            )
        for name, columns in (
            ("values", self.channels),
            ("known", self.known_names),
            ("past", self.past_names),
            ("static", self.static_names),
        ):
            self._check_numbers(name, columns)
        names = self.known_names + self.past_names + self.static_names + self.channels
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"column names must differ, got {twice!r} twice")

    def _check_numbers(self, name: str, columns: tuple[str, ...]) -> None:
        array = getattr(self, name)
        if array.dtype != np.float32:
            raise ValueError(f"{name} must be float32, got {array.dtype}")
        finite = np.isfinite(array)
        if finite.all():
            return
        row, j = np.argwhere(~finite)[0]
        s, place = row, ""
        if name != "static":
            s = np.searchsorted(self.offsets, row, "right") - 1
            place = f", row {row - self.offsets[s]}"
        raise ValueError(
            f"{name} must be finite, got {array[row, j]} in column {columns[j]!r} of series "
            f"{str(self.ids[s])!r}{place}"
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __str__(self) -> str:
        lengths = self.lengths
        return (
            f"{len(self)} series of {lengths.min()} to {lengths.max()} rows, "
            f"{len(self.values)} in all, every {self.frequency}; "
            f"{len(self.channels)} channels; covariates: {len(self.known_names)} known, "
            f"{len(self.past_names)} past, {len(self.static_names)} static"
        )

    @property
    def lengths(self) -> np.ndarray:
        """Rows of each series, int64 (S,)."""
        return np.diff(self.offsets)

    def index(self) -> np.ndarray:
        """The index of each row's series, int32 (R,)."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    def times(self) -> np.ndarray:
        """The time of each row, (R,), in the dtype of `start`.

        >>> months = from_arrays(["a"], [[5, 6]], start="2024-01-31", frequency="ME")
        >>> months.times().astype("datetime64[D]")
        array(['2024-01-31', '2024-02-29'], dtype='datetime64[D]')
        """
        steps = np.arange(len(self.values)) - np.repeat(self.offsets[:-1], self.lengths)
        return grid.moved(np.repeat(self.start, self.lengths), steps, self.frequency)

    def future(self, horizon: int) -> np.ndarray:
        """The times of the `horizon` steps after the end of each series, (S, horizon)."""
        steps = self.lengths[:, None] + np.arange(horizon)
        return grid.moved(self.start[:, None], steps, self.frequency)

    def part(self, keep: np.ndarray) -> "Series":
        """Some of the series.

        Args:
            keep: bool (S,), or int indices in any order.

        >>> from_arrays(["a", "b", "c"], [[1], [2, 3], [4]]).part([2, 1]).values[:, 0].tolist()
        [4.0, 2.0, 3.0]
        """
        kept = np.arange(len(self))[np.asarray(keep)]
        return taken(self, kept, self.offsets[kept], self.offsets[kept + 1])


def check_rounding(
    numbers: np.ndarray, what: str, ids: np.ndarray | None = None, code: np.ndarray | None = None
) -> None:
    """Raise `ValueError` if float32 rounds numbers by more than a hundredth of their range.

    A range that is not larger than the rounding of float64 is taken for a constant, and passes.

    Args:
        numbers: (N,), the numbers of one series, or of several with `ids` and `code`.
        what: what the numbers are, for the message.
        ids: (S,), the ids of several series.
        code: int (N,), the index in `ids` of each number's series.

    >>> check_rounding(np.array([167772161.0, 167772163.0]), "meter")
    Traceback (most recent call last):
    ValueError: meter must range over much more than float32 rounds, got a range of 2 ...
    """
    finite = np.isfinite(numbers)
    numbers = numbers[finite].astype(np.float64)
    code = np.zeros(len(numbers), np.int64) if code is None else code[finite]
    if len(code) == 0:
        return
    if (np.diff(code) < 0).any():
        order = np.argsort(code, kind="stable")
        numbers, code = numbers[order], code[order]
    begin = np.flatnonzero(np.diff(code, prepend=-1))
    with np.errstate(over="ignore"):
        lost = np.maximum.reduceat(np.abs(numbers - numbers.astype(np.float32)), begin)
        low, high = np.minimum.reduceat(numbers, begin), np.maximum.reduceat(numbers, begin)
        extent, largest = high - low, np.maximum(-low, high)
    wrong = np.isfinite(lost) & (lost > 0.01 * extent) & (extent > 1e-12 * largest)
    if wrong.any():
        i = int(wrong.argmax())
        series = "" if ids is None else f" of series {str(ids[code[begin[i]]])!r}"
        raise ValueError(
            f"{what}{series} must range over much more than float32 rounds, got a range of "
            f"{extent[i]:g} and numbers rounded by up to {lost[i]:g}; subtract a constant, or take "
            "differences"
        )


def ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put N ranges of rows, each from first to last - 1, end to end.

    Returns:
        The offsets of the ranges, int64 (N + 1,), and all their rows, int64.

    >>> ranges(np.array([5, 1]), np.array([7, 4]))
    (array([0, 2, 5]), array([5, 6, 1, 2, 3]))
    """
    offsets = np.append(0, np.cumsum(last - first))
    return offsets, np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], last - first)


def taken(series: Series, number: np.ndarray, first: np.ndarray, last: np.ndarray) -> Series:
    """N series from the rows first to last - 1 of the series with these indices; all are (N,)."""
    offsets, rows = ranges(first, last)
    return replace(
        series,
        ids=series.ids[number],
        start=grid.moved(series.start[number], first - series.offsets[number], series.frequency),
        offsets=offsets,
        values=series.values[rows],
        known=series.known[rows],
        past=series.past[rows],
        static=series.static[number],
        report=None,
    )


def from_arrays(
    ids: Sequence[str] | np.ndarray,
    values: Columns,
    *,
    start: object = 0,
    frequency: Any = "1",
    channels: Sequence[str] = ("value",),
    known: Mapping[str, Columns] | None = None,
    past: Mapping[str, Columns] | None = None,
    static: Mapping[str, Sequence[float] | np.ndarray] | None = None,
) -> Series:
    """Make series from a list of arrays of any lengths, such as the rows of M4, without dates.

    Args:
        ids: (S,), all different.
        values: S arrays of shape (T,) or (T, C), of any lengths.
        start: the time of the first row, an integer or a date; one for all series, or (S,).
        frequency: "1" if times are counts, else a pandas alias such as "h", or an offset.
        channels: names of the C channels.
        known: covariates whose future is known, by name: S arrays of shape (T,) each, as long as
            the values.
        past: covariates whose future is not known, in the same form.
        static: static covariates by name, (S,) numbers each.

    Raises:
        ValueError: an id occurs twice, a shape is wrong, a number is not finite, or numbers differ
            by less than float32 can tell.

    M4's table has one series in each row, with blanks after the end of the series:

        frame = pandas.read_csv("Hourly-train.csv.gz", index_col=0)
        series = from_arrays(frame.index, [row[~np.isnan(row)] for row in frame.to_numpy()])

    >>> series = from_arrays(["H1", "H2"], [[605, 586, 559], [3124, 2990]])
    >>> series.offsets.tolist(), series.start.tolist(), series.frequency
    ([0, 3, 5], [0, 0], '1')
    >>> from_arrays(["a"], [[5, 6]], known={"sunday": [[0, 1]]}, static={"size": [80]}).known_names
    ('sunday',)
    """
    known, past, static = known or {}, past or {}, static or {}
    names = np.asarray([str(name) for name in ids])
    if len(names) == 0 or len(names) != len(values):
        raise ValueError(
            f"ids and values must have the same length, at least 1, got {len(names)} and "
            f"{len(values)}"
        )
    unique, counts = np.unique(names, return_counts=True)
    if len(unique) < len(names):
        raise ValueError(f"ids must differ, got {str(unique[counts.argmax()])!r} twice")
    width, tables = len(channels), []
    for name, rows in zip(names, values, strict=True):
        table = np.asarray(rows, np.float32)
        table = table[:, None] if table.ndim == 1 else table
        if table.ndim != 2 or table.shape[1] != width or len(table) == 0:
            raise ValueError(
                f"values must have shape (T, {width}), T at least 1, for each series, got "
                f"{np.shape(rows)} for series {str(name)!r}"
            )
        for j, channel in enumerate(channels):
            given = np.asarray(rows, np.float64).reshape(len(table), width)[:, j]
            check_rounding(given, f"values: {channel!r} of series {str(name)!r}")
        tables.append(table)
    offsets = np.append(0, np.cumsum([len(table) for table in tables]))
    table = np.concatenate(tables)
    return Series(
        ids=names,
        start=np.broadcast_to(
            as_time(start, "start", grid.canonical(frequency)), names.shape
        ).copy(),
        frequency=frequency,
        offsets=offsets,
        values=table,
        channels=tuple(channels),
        known=_covariates("known", known, names, offsets),
        past=_covariates("past", past, names, offsets),
        static=_covariates("static", {k: [[x] for x in v] for k, v in static.items()}, names),
        known_names=tuple(known),
        past_names=tuple(past),
        static_names=tuple(static),
    )


def _covariates(
    kind: str, given: Mapping[str, Columns], ids: np.ndarray, offsets: np.ndarray | None = None
) -> np.ndarray:
    """Make a table (R, K) from K columns of S arrays; without offsets, each series has one row."""
    offsets = np.arange(len(ids) + 1) if offsets is None else offsets
    table = np.empty((offsets[-1], len(given)), np.float32)
    for j, (name, arrays) in enumerate(given.items()):
        if len(arrays) != len(ids):
            raise ValueError(f"{kind} must have {len(ids)} series for {name!r}, got {len(arrays)}")
        for s, array in enumerate(arrays):
            rows = offsets[s + 1] - offsets[s]
            if np.shape(array) != (rows,):
                raise ValueError(
                    f"{kind} must have shape ({rows},) for {name!r} of series {str(ids[s])!r}, got "
                    f"{np.shape(array)}"
                )
            table[offsets[s] : offsets[s + 1], j] = array
    return table


def as_time(time: object, name: str, frequency: str) -> np.ndarray:
    """Convert integers to int64 and dates to datetime64[s], in any shape.

    Dates with a zone become local dates if steps are a day or longer, and times in UTC otherwise.
    """
    array = np.asarray(time)
    if array.dtype == object:
        days = grid.long(frequency)
        bare = [
            (x if days else x.astimezone(UTC)).replace(tzinfo=None)
            if getattr(x, "tzinfo", None) is not None
            else x
            for x in array.ravel()
        ]
        array = np.array(bare, object).reshape(array.shape)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    try:
        return array.astype("datetime64[s]")
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be integers or dates, got {time!r}") from None
