"""A table made ready to learn from: roles of columns, checks, rows to hold out, features."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.columns import of_dates, read_with_dates
from jaxops.data.dataset import take
from jaxops.data.encoders import Encoder, encode, fit_encoder
from jaxops.data.splits import held_out
from jaxops.data.tables import Source
from jaxops.survival.data import SurvivalReader, outcome_of
from jaxops.survival.families import Grid
from jaxops.survival.methods import AFT, CLOSED, Cox, DeepHit
from jaxops.survival.outcomes import Outcome, count_rows

ANSWERED = 50  # times of an answer


class Roles(NamedTuple):
    """The columns that are no features; see `survival.fit`.

    Attributes:
        time: of times.
        event: of events.
        entry: of entry times, or None.
        id: of ids, or None.
        groups: of the strata and clusters of the methods.
    """

    time: str
    event: str
    entry: str | None
    id: str | None
    groups: tuple[str, ...]


class Parts(NamedTuple):
    """A table, ready to learn from.

    Attributes:
        reader: learned from the train rows, with a family yet to be set.
        train: the features of the train rows, and the columns of strata and clusters.
        rows: their times and events.
        held: reader -> the ids, features, times and events of the validation rows; or None.
        left_out: names of columns that look like identifiers or have no value.
    """

    reader: SurvivalReader
    train: dict[str, np.ndarray]
    rows: Outcome
    held: Callable[[SurvivalReader], tuple[np.ndarray, dict[str, np.ndarray], Outcome]] | None
    left_out: list[str]


def prepared(
    data: Source,
    methods: Sequence[Any],
    roles: Roles,
    drop: Sequence[str],
    text: Sequence[str],
    validation: Any,
    seed: int,
) -> Parts:
    """Read a table; see `survival.fit`."""
    time, event, entry, id, groups = roles
    exact = [name for name in (event, id, *groups) if name is not None]
    unread = {*drop} - {*exact, time, entry}
    table, dates = read_with_dates(data, exact=exact, text=text, unread=unread, id=id)
    _check_columns(table, roles, dates, drop, text)
    rows = outcome_of(table, time, event, entry, None)
    ids = None if id is None else table[id]
    check_rows(methods, ids, rows, roles)
    kept_rows, held = _held_out(methods, validation, table, rows, seed)
    used = {time, event, entry, id, *groups, *drop}
    kept = {name: column[kept_rows] for name, column in table.items() if name not in used}
    useless = _useless(kept)
    kept = {name: column for name, column in kept.items() if name not in useless}
    if not kept:
        raise ValueError("data must have a column to learn from, got none that is kept")
    encoder, seen = fit_encoder(kept), rows.take(kept_rows)
    reader = SurvivalReader(
        encoder,
        time,
        event,
        entry,
        id,
        tuple(name for name in dates if name in kept),
        (),
        Grid(np.ones(1)),
        **of_rows(seen),
        causes=int(rows.event.max()),
    )
    columns = encode(encoder, kept) | {name: table[name][kept_rows] for name in groups}
    left_out = [name for name in useless if name not in of_dates(dates)]
    return Parts(reader, columns, seen, held, left_out)


def _check_columns(
    table: Mapping[str, Any], roles: Roles, dates: Sequence[str], drop: Any, text: Any
) -> None:
    named = [(what, name) for what, name in roles._asdict().items() if isinstance(name, str)]
    more = [("method", name) for name in roles.groups]
    for what, name in [*named, *more, *(("drop", d) for d in drop), *(("text", t) for t in text)]:
        if name not in table:
            raise ValueError(f"{what} must be one of {', '.join(table)}, got {name!r}")
    names = [name for _, name in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"time, event, entry and id must be different, got {twice!r} twice")
    for what, name in (("time", roles.time), ("entry", roles.entry)):
        if name is not None and (name in dates or table[name].dtype.kind == "O"):
            given = "dates" if name in dates else f"text, such as {table[name][0]!r}"
            raise ValueError(
                f"{what} must be a column of numbers or durations, got {given}: {name!r}"
            )


def check_rows(
    methods: Sequence[Any],
    ids: np.ndarray | None,
    rows: Outcome,
    roles: Roles | SurvivalReader,
) -> None:
    """Check that methods can learn from times and events.

    Args:
        methods: of `survival.fit`; none for a network that is trained further.
        ids: (N,), or None where rows have no ids.
        rows: N of them.
        roles: names of columns, for messages.

    Raises:
        ValueError: no event; times or causes that a method cannot take, or ids that are repeated.
    """
    time, event = roles.time, roles.event
    if rows.events == 0:
        raise ValueError(
            f"{event} must be an event in some row, got {len(rows.time):,} censored rows alone"
        )
    several, zero = np.flatnonzero(rows.event > 1), np.flatnonzero(rows.time == 0)
    for one in methods:
        if len(zero) and isinstance(one, AFT):
            raise ValueError(
                f"{time} must be above 0 for {type(one).__name__}, got 0 in row {zero[0]} "
                f"({count_rows(len(zero))})"
            )
        if len(several) and not isinstance(one, DeepHit):
            raise ValueError(
                f"{event} must be 0 or 1 for {type(one).__name__}, got {rows.event[several[0]]} in "
                f"row {several[0]}; DeepHit takes several causes"
            )
    if ids is not None:
        _check_spells(methods, ids, rows, str(roles.id))


def _check_spells(methods: Sequence[Any], ids: np.ndarray, rows: Outcome, id: str) -> None:
    """Check that the rows of one id follow each other in time."""
    values, number = np.unique(ids, return_inverse=True)
    if len(values) == len(ids):
        return
    order = np.lexsort((rows.time, number))
    one, then = order[:-1], order[1:]
    same = number[one] == number[then]
    entry = rows.entry
    if entry is None or not methods or not all(isinstance(method, Cox) for method in methods):
        place = int(np.argmax(same))
        raise ValueError(
            f"{id} must be different in every row, but for Cox with entry times, got "
            f"{ids[one[place]]} in rows {one[place]} and {then[place]}"
        )
    wrong = np.flatnonzero(same & ((entry[then] < rows.time[one]) | (rows.event[one] > 0)))
    if len(wrong):
        a, b = one[wrong[0]], then[wrong[0]]
        raise ValueError(
            f"rows of one {id} must follow each other, with an event in the last alone, got "
            f"{ids[a]} in rows {a} (until {rows.time[a]:g}, event {rows.event[a]}) and {b} (from "
            f"{entry[b]:g})"
        )


def _held_out(
    methods: Sequence[Any], validation: Any, table: Mapping[str, Any], rows: Outcome, seed: int
) -> tuple[np.ndarray, Any]:
    """The train rows, and what reads the validation rows, or None."""
    everything = np.arange(len(rows.time))
    if validation is None:
        if len(methods) == 1 and isinstance(methods[0], CLOSED):
            return everything, None
        validation = 0.15
    if isinstance(validation, int):
        raise ValueError(f"validation must be a share in (0, 1) or a table, got {validation}")
    if rows.entry is not None and len(methods) > 1:
        raise ValueError(
            "method must be one with entry times, as rows that enter late are not scored, got a "
            f"list of {len(methods)}"
        )
    if rows.entry is not None and isinstance(methods[0], CLOSED):
        raise ValueError(
            "validation must be None with entry times, as rows that enter late are not scored, got "
            f"{validation if isinstance(validation, float) else 'a table'}"
        )
    if not isinstance(validation, float):
        return everything, lambda reader: reader.columns(validation, seen=True)
    rest, held = held_out(len(everything), validation, rows.event, None, seed)
    part = take(dict(table), held)
    return rest, lambda reader: reader.of_table(part, seen=True)


def _useless(table: Mapping[str, np.ndarray]) -> list[str]:
    """Text with so many values that nothing can be learned of them; numbers without a value."""
    found = []
    for name, column in table.items():
        if column.dtype.kind == "O":
            useless = len(set(column.tolist())) > max(20, len(column) / 2)
        else:
            useless = bool(np.isnan(column).all())
        found += [name] * useless
    return found


def of_rows(rows: Outcome) -> dict[str, Any]:
    """What a reader knows of the times of its train rows: `grid` and `horizon`."""
    return {
        "grid": times_of(rows, ANSWERED),
        "horizon": float(rows.time[rows.event > 0].max(initial=0)),
    }


def times_of(rows: Outcome, count: int) -> np.ndarray:
    """At most so many of the times of events, the first and the last among them.

    >>> times_of(Outcome(np.arange(9.0), np.ones(9, int)), 3).tolist()
    [0.0, 4.0, 8.0]
    """
    times = np.unique(rows.time[rows.event > 0])
    places = np.linspace(0, len(times) - 1, min(count, len(times))).round().astype(int)
    return times[np.unique(places)]


def design_places(encoder: Encoder, features: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which features a regression takes, and the names of those that it leaves out.

    The first indicator of each text column is the reference, which is not named. Left out are
    features that are constant, and those that repeat an earlier one.

    Raises:
        ValueError: none is left.

    >>> made = fit_encoder({"age": [1.0, 2.0], "plan": ["a", "b"], "still": [1.0, 1.0]})
    >>> places, left_out = design_places(made, encode(made, {"age": [1.0, 2.0],
    ...     "plan": ["b", "a"], "still": [1.0, 1.0]})["features"])
    >>> places.tolist(), left_out
    ([0, 3], ['still'])
    """
    references = {f"{name}={values[0]}" for name, values in encoder.values.items()}
    seen: set[bytes] = set()
    places, left_out = [], []
    for place, name in enumerate(encoder.names):
        key = features[:, place].tobytes()
        if name in references:
            continue
        if np.ptp(features[:, place]) == 0 or key in seen:
            left_out.append(name)
            continue
        seen.add(key)
        places.append(place)
    if not places:
        raise ValueError("data must have a feature that varies, got none")
    return np.array(places), left_out
