"""Reading an event log from files, frames and arrays."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data import tables
from jaxops.data.dates import utc
from jaxops.data.tables import Source, none_missing
from jaxops.recommend.data.catalogue import of_type
from jaxops.recommend.data.events import Events, Report

Repeats = Literal["keep", "distinct", "first", "last"]
MISSING = ("", "nan", "NaN")


def events(
    source: Source,
    *,
    user: str = "user",
    item: str = "item",
    time: str | None = "time",
    weight: str | None = None,
    user_features: Source | None = None,
    item_features: Source | None = None,
    repeats: Repeats = "keep",
    items: Sequence[Any] | np.ndarray = (),
    header: Sequence[str] | None = None,
    separator: str | None = None,
    encoding: str = "utf-8",
) -> Events:
    """Read an event log.

    Ids of a CSV file are text, so "007" stays "007". Integers of a frame, of arrays or of a Parquet
    file stay integers; "7" and 7 are the same id of a known catalogue. The catalogue begins with
    `items`, then come the items of the log in the order of their first appearance, then items that
    are only in `item_features`. The order of users is made in the same way. Events are sorted by
    time; events at equal times keep the order of the source.

    Args:
        source: a CSV file (also .gz) or Parquet file, a pandas frame, or arrays by name.
        user: name of the column of user ids, text or integers.
        item: name of the column of item ids, text or integers.
        time: name of the column of times: numbers (kept as int64 or float64), dates, or dates as
            ISO 8601 text (float64, seconds since 1970 UTC), all with an offset from UTC or all
            without. None uses the row number.
        weight: name of the column of event weights, at least 0; by default every weight is 1.
        user_features: a table with the column `user` and a row for every user.
        item_features: a table with the column `item` and a row for every item. Numbers become
            int64, or float64 with NaN for missing; text becomes an object array, "" for missing.
        repeats: which rows with the same user and item to keep: "keep" all, "distinct" one for
            each time, the "first" or the "last".
        items: ids of a known catalogue, such as that of a trained recommender; the ids of the log
            then get their type.
        header: names of the columns of a CSV file without a header line.
        separator: separator of the columns of a CSV file, by default a comma, or a semicolon or a
            tab if the first line has it and no comma; " " stands for any number of spaces.
        encoding: encoding of a CSV file.

    Returns:
        The events, with a `report`.

    Raises:
        ValueError: a column that is missing or of another type or length; a missing id or time; a
            weight that is negative or missing; an id without a row of features, or with two; no
            rows.

    >>> log = events({"user": ["ann", "bob", "ann"], "item": [7, 7, 8], "time": [3, 2, 1]})
    >>> log.users.tolist(), log.items.tolist(), log.item.tolist(), log.time.tolist()
    (['ann', 'bob'], [7, 8], [1, 0, 0], [1, 2, 3])
    """
    names = [name for name in (user, item, time, weight) if name is not None]
    if len(set(names)) < len(names):
        raise ValueError(f"user, item, time and weight must be distinct, got {', '.join(names)}")
    form = _Form(header, separator, encoding)
    name, columns = _columns(source, names, (user, item), form)
    if repeats not in ("keep", "distinct", "first", "last"):
        raise ValueError(f'repeats must be "keep", "distinct", "first" or "last", got {repeats!r}')
    rows = len(columns[user])
    times = np.arange(rows) if time is None else _times(columns[time], f"{name}: column {time!r}")
    weights = np.ones(rows, np.float32)
    if weight is not None:
        weights = _weights(columns[weight], f"{name}: column {weight!r}")
    user_table = _features(user_features, user)
    item_table = _features(item_features, item)
    user_index, users = _codes(columns[user], f"{name}: column {user!r}", (), user_table)
    item_index, catalogue = _codes(columns[item], f"{name}: column {item!r}", items, item_table)

    order = np.argsort(times, kind="stable")
    log = Events(
        user_index[order],
        item_index[order],
        times[order],
        weights[order],
        users,
        catalogue,
        _aligned(user_table, users),
        _aligned(item_table, catalogue),
    )
    return _without_repeats(log, repeats)


def features_of(source: Source, column: str, ids: np.ndarray) -> dict[str, np.ndarray]:
    """The columns of a table of features, with one row for each of the ids.

    Args:
        source: see `events`.
        column: the column of ids.
        ids: (N,) str; other rows of the table are left out.

    Raises:
        ValueError: an id has no row, or has two.

    >>> features_of({"item": ["x", "y"], "price": [1, 2]}, "item", np.array(["y"]))["price"]
    array([2])
    """
    return _aligned(_features(source, column), ids)


def _without_repeats(log: Events, repeats: Repeats) -> Events:
    pd = require("pandas", extra="data")

    pair = pd.Series(log.user.astype(np.int64) * len(log.items) + log.item)
    same = pd.DataFrame({"pair": pair, "time": log.time}).duplicated().to_numpy()
    again = pair.duplicated().to_numpy()
    drop = {
        "keep": np.zeros(len(log), bool),
        "distinct": same,
        "first": again,
        "last": pair.duplicated(keep="last").to_numpy(),
    }[repeats]
    kept = log.part(~drop) if drop.any() else log
    by_user = np.argsort(kept.user, kind="stable")
    ties = (np.diff(kept.user[by_user]) == 0) & (np.diff(kept.time[by_user]) == 0)
    report = Report(
        rows=len(log),
        duplicates=int(same.sum()),
        repeats=int(again.sum() - same.sum()),
        dropped=int(drop.sum()),
        ties=int(ties.sum()),
        users=len(log.users),
        items=len(log.items),
    )
    return replace(kept, report=report)


class _Form(NamedTuple):
    """The format of a CSV file."""

    header: Sequence[str] | None = None
    separator: str | None = None
    encoding: str = "utf-8"


def _columns(
    source: Source, wanted: Sequence[str] | None, text: Sequence[str], form: _Form
) -> tuple[str, Any]:
    """The source's name for messages, and the wanted columns (None for all) as a pandas frame."""
    file = isinstance(source, str | Path) and Path(source).suffix not in tables.PARQUET
    if form.header and not file:
        raise ValueError(
            f"header must be None for a source other than a CSV file, got {', '.join(form.header)}"
        )

    def read(path: str | Path) -> Any:
        return tables.csv_frame(
            path, wanted, form.encoding, MISSING, text, form.separator, form.header
        )

    return tables.source_frame(source, wanted, text, read)


def _times(column: Any, what: str) -> np.ndarray:
    pd = require("pandas", extra="data")

    none_missing(column, what, "a time for every event")
    kind = column.dtype.kind
    if kind in "iu":
        return np.asarray(column.to_numpy(np.int64))
    if kind == "f":
        times = column.to_numpy(np.float64)
        wrong = np.flatnonzero(~np.isfinite(times))
        if len(wrong):
            raise ValueError(f"{what} must be finite, got {times[wrong[0]]} in row {wrong[0]}")
        return np.asarray(times)
    wanted = "numbers or dates in ISO 8601"
    if kind != "M":
        number = pd.to_numeric(column, errors="coerce").notna()
        if number.all():  # digits as text may be a date or a number
            first = column.iloc[0]
            hint = "; convert the text to numbers" if isinstance(first, str) else ""
            raise ValueError(f"{what} must be {wanted}, got {first!r}{hint}")
    dates = utc(column, what, wanted)
    unit = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[np.datetime_data(dates.dtype)[0]]
    return np.asarray(dates.astype(np.int64) / unit)


def _weights(column: Any, what: str) -> np.ndarray:
    pd = require("pandas", extra="data")

    none_missing(column, what, "a number of at least 0")
    if column.dtype.kind not in "iuf":
        number = pd.to_numeric(column, errors="coerce").notna()
        first = column[number if number.all() else ~number].iloc[0]
        raise ValueError(f"{what} must be numbers, got {first!r}")
    weights = column.to_numpy(np.float32)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        raise ValueError(
            f"{what} must be finite and at least 0, got {weights[bad.argmax()]} in row "
            f"{bad.argmax()} ({bad.sum()} such rows)"
        )
    return np.asarray(weights)


def _codes(
    column: Any, what: str, known: Sequence[Any] | np.ndarray, table: tuple[Any, Any, str] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices into the ids, and the ids: first `known`, then the column's, then the table's."""
    pd = require("pandas", extra="data")

    codes, in_log = _ids(column, what)
    first = np.asarray(known).astype(str).astype(object)
    last = np.empty(0, object) if table is None else table[0]
    ids = pd.unique(np.concatenate([first, in_log, last]))
    twice = pd.Series(first).duplicated()
    if twice.any():
        raise ValueError(f"items must be distinct, got {str(first[twice.argmax()])!r} twice")
    place = pd.Index(ids).get_indexer(in_log).astype(np.int32)
    integers = np.asarray(known).dtype.kind == "i" if len(known) else column.dtype.kind in "iu"
    return place[codes], of_type(ids, integers)


def _ids(column: Any, what: str) -> tuple[np.ndarray, np.ndarray]:
    """`tables.ids`, where empty text is a missing id, as in a CSV file."""
    codes, ids = tables.ids(column, what)
    empty = np.flatnonzero(ids == "")
    if len(empty):
        row = int((codes == empty[0]).argmax())
        raise ValueError(f"{what} must have an id for every row, got '' in row {row}")
    return codes, ids


def _features(source: Source | None, column: str) -> tuple[Any, Any, str] | None:
    """The ids of a table, its other columns, and its name for messages."""
    if source is None:
        return None
    name, frame = _columns(source, None, (column,), _Form())
    codes, ids = _ids(frame[column], f"{name}: column {column!r}")
    if len(ids) < len(codes):
        twice = ids[np.bincount(codes).argmax()]
        raise ValueError(f"{name}: column {column!r} must be distinct, got {twice!r} twice")
    return ids, tables.from_frame(name, frame.drop(columns=column)), f"{name}: column {column!r}"


def _aligned(table: tuple[Any, Any, str] | None, ids: np.ndarray) -> dict[str, np.ndarray]:
    pd = require("pandas", extra="data")

    if table is None:
        return {}
    place = pd.Index(table[0]).get_indexer(ids.astype(str).astype(object))
    if (place < 0).any():
        missing = str(ids[(place < 0).argmax()])
        raise ValueError(f"{table[2]} must have a row for every id, got none for {missing!r}")
    return {name: column[place] for name, column in table[1].items()}
