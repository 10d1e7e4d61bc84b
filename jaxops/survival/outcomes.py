"""Times and events, checked: what every function of this room takes."""

from typing import Any, NamedTuple

import numpy as np


class Outcome(NamedTuple):
    """What was seen of N rows.

    Attributes:
        time: float64 (N,), when the row was last seen; at least 0.
        event: int64 (N,), what happened then: 0 for nothing (censored), else the number of a cause.
        entry: float64 (N,), from when on the row was watched (left truncation); below `time`. None
            if all were watched from 0 on.

    >>> outcome([2.0, 3.0], [1, 0]).events
    1
    """

    time: np.ndarray
    event: np.ndarray
    entry: np.ndarray | None = None

    @property
    def events(self) -> int:
        """The number of rows with an event."""
        return int((self.event > 0).sum())

    def take(self, rows: np.ndarray) -> "Outcome":
        """Some of the rows, by a mask or by their numbers."""
        entry = None if self.entry is None else self.entry[rows]
        return Outcome(self.time[rows], self.event[rows], entry)


def outcome(
    time: Any,
    event: Any,
    entry: Any = None,
    *,
    causes: int | None = 1,
    some: bool = False,
    names: tuple[str, str, str] = ("time", "event", "entry"),
) -> Outcome:
    """Check times and events.

    A row is at risk at t if entry < t <= time. A time of 0 is taken as it is: the row is at risk at
    0 alone. Rows that are censored where others have an event are at risk there.

    Args:
        time: (N,), finite numbers of at least 0.
        event: (N,), 0 or False for censored rows, 1 or True for an event; with several causes the
            number of the cause.
        entry: (N,), finite numbers of at least 0 and below `time`; None for 0 in every row.
        causes: the largest number of a cause; None for any.
        some: whether at least one row must have an event.
        names: of the three, for messages.

    Raises:
        ValueError: other values, with the row of the first; no rows; arrays of other shapes; with
            `some` no event at all.

    >>> outcome([2.0, -1.0], [1, 0])
    Traceback (most recent call last):
    ValueError: time must be finite and at least 0, got -1 in row 1 (1 such row)
    """
    times = _numbers(names[0], time)
    _check(names[0], times, times >= 0, "finite and at least 0")
    events = _numbers(names[1], event, len(times))
    most = np.inf if causes is None else causes
    wanted = {1: "0 or 1", np.inf: "whole numbers of at least 0"}.get(most, f"0 to {most}")
    _check(
        names[1], events, (events == np.floor(events)) & (events >= 0) & (events <= most), wanted
    )
    if some and not events.any():
        raise ValueError(
            f"{names[1]} must be an event in some row, got {len(events):,} censored rows alone"
        )
    entries = None
    if entry is not None:
        entries = _numbers(names[2], entry, len(times))
        _check(names[2], entries, entries >= 0, "finite and at least 0")
        late = np.flatnonzero(entries >= times)
        if len(late):
            raise ValueError(
                f"{names[2]} must be below {names[0]}, got {entries[late[0]]:g} and "
                f"{times[late[0]]:g} in row {late[0]} ({_rows(len(late))})"
            )
    return Outcome(times, events.astype(np.int64), entries)


def _numbers(name: str, values: Any, count: int | None = None) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be numbers, got {array.dtype}")
    if array.ndim != 1 or len(array) == 0 or len(array) != (count or len(array)):
        wanted = "(N,), N at least 1" if count is None else f"({count},)"
        raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
    return array.astype(np.float64)


def _check(name: str, values: np.ndarray, fine: np.ndarray, wanted: str) -> None:
    wrong = np.flatnonzero(~(fine & np.isfinite(values)))
    if len(wrong):
        raise ValueError(
            f"{name} must be {wanted}, got {values[wrong[0]]:g} in row {wrong[0]} "
            f"({_rows(len(wrong))})"
        )


def _rows(count: int) -> str:
    return f"{count:,} such row{'s' * (count > 1)}"


def codes(name: str, labels: Any, count: int) -> tuple[np.ndarray, list[str]]:
    """The number of each row's label, (N,), and the sorted labels as text.

    Args:
        name: the argument's.
        labels: (N,), or None for one label.
        count: N.

    Raises:
        ValueError: another number of labels.

    >>> codes("groups", ["b", "a", "b"], 3)
    (array([1, 0, 1]), ['a', 'b'])
    """
    if labels is None:
        return np.zeros(count, np.int64), [""]
    array = np.asarray(labels)
    if array.shape != (count,):
        raise ValueError(f"{name} must have shape ({count},), got {array.shape}")
    values, number = np.unique(array, return_inverse=True)
    return number, [str(value) for value in values]
