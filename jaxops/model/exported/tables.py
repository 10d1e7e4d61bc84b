"""Rows of a table to features: as `jaxops.data.columns` and `jaxops.data.encoders` make them."""

import re
import warnings
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from numbers import Real
from statistics import NormalDist
from typing import Any

import numpy as np

MISSING = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None")
DATE = r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?([zZ]|[+-]\d{2}(:?\d{2})?)?)?"
NO_CELLS = (list, tuple, set, dict, bytes, np.ndarray, np.timedelta64)
DATES = (date, np.datetime64)
JUDGED = 20  # rows of which a column of text should have a known value
LARGEST = float(np.finfo(np.float32).max)
Columns = dict[str, Any]


def by_name(raw: Any) -> tuple[Columns, int]:
    """Columns, or a list of rows by name, as columns; and how many rows there are."""
    if isinstance(raw, list | tuple) and raw and all(isinstance(row, Mapping) for row in raw):
        names = dict.fromkeys(name for row in raw for name in row)
        raw = {name: [row.get(name) for row in raw] for name in names}
    if not isinstance(raw, Mapping) or not raw:
        given = type(raw).__name__
        raise ValueError(f"raw must be columns by name, or a list of rows by name, got {given}")
    counts = {name: count_of(f"column {name!r}", column) for name, column in raw.items()}
    if len({*counts.values()}) > 1 or 0 in counts.values():
        raise ValueError(f"raw must have as many rows in each column, at least 1, got {counts}")
    return dict(raw), max(counts.values())


def count_of(name: str, given: Any) -> int:
    """The length of a list or an array; not of one text, which has letters."""
    one = isinstance(given, str | bytes | Mapping | set) or getattr(given, "ndim", 1) == 0
    if one or not hasattr(given, "__len__"):
        raise ValueError(f"{name} must be a list or an array, got {given!r}")
    return len(given)


def column(raw: Columns, name: str) -> Any:
    """A column of raw input."""
    if name not in raw:
        raise ValueError(f"raw must have a column {name!r}, got {', '.join(raw)}")
    return raw[name]


def read_table(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The ids of the rows of a table, and their features."""
    raw, count = by_name(raw)
    encoder, dates, since = reader["encoder"], reader["dates"], reader["since"]
    table: Columns = {}
    for name in dates:
        table |= _calendar(name, _moments(name, column(raw, name)))
    if since is not None:
        others = [name for name in dates if name != since]
        table |= {f"{name} since {since}": table[name] - table[since] for name in others}
    for name in encoder["mean"]:
        if name not in table:
            table[name] = numbers(name, column(raw, name))
    for name in encoder["values"]:
        table[name] = _texts(name, column(raw, name))
        known = [*encoder["values"][name], *encoder["rare"].get(name, ())]
        if count >= JUDGED and set(known).isdisjoint(table[name]):
            warnings.warn(
                f"{name} should have values of the train rows, such as {known[0]!r}, got none in "
                f"{count:,} rows, such as {table[name][0]!r}",
                stacklevel=3,
            )
    ids = np.arange(count) if reader["id"] is None else ids_of(column(raw, reader["id"]))
    if "members" not in reader:
        return ids, _columns(reader, table)
    return ids, {
        f"{name} {place}": value
        for place, member in enumerate(reader["members"])
        for name, value in _columns(member, table).items()
    }


def _columns(reader: Columns, table: Columns) -> Columns:
    """What a network reads of a table, or trees."""
    if "trees" not in reader:
        return {"features": _features(reader["encoder"], table)}
    known, parts = reader["trees"], []
    for name, values in known["texts"].items():
        number = {value: place for place, value in enumerate(values)}
        parts.append(np.array([number.get(text, -1) for text in table[name]]))
    parts += [table[name] - offset for name, offset in known["numbers"].items()]
    cells = np.stack(parts, -1).astype(np.float32)
    missing = np.isnan(cells)
    return {"cells": np.where(missing, 0, cells), "missing": missing}


def of_table(reader: Columns, ids: np.ndarray, outputs: np.ndarray) -> Columns:
    """The answers for rows: classes, several labels, numbers or quantiles."""
    if reader["labels"]:
        pairs = zip(reader["labels"].values(), (outputs >= 0.5).T, strict=True)
        labels = [np.array(pair, object)[told.astype(int)] for pair, told in pairs]
        named = {"labels": np.stack(labels, -1), "classes": reader["labels"]}
        return {"ids": ids, "probabilities": outputs, **named}
    if reader["classes"]:
        both = np.stack([1 - outputs, outputs], -1) if outputs.ndim == 1 else outputs
        return of_classes(reader, ids, both)
    answer = {"ids": ids, "values": outputs}
    return answer | {"levels": tuple(reader["levels"])} if reader["levels"] else answer


def of_classes(reader: Columns, ids: np.ndarray, outputs: np.ndarray) -> Columns:
    """The likeliest class of each row, and the probabilities of all."""
    classes = tuple(reader["classes"])
    labels = np.array(classes, object)[outputs.argmax(1)]
    return {"ids": ids, "labels": labels, "probabilities": outputs, "classes": classes}


def _refuse(name: str, wanted: str, value: Any, row: int) -> None:
    raise ValueError(
        f"column {name!r} must be {wanted}, as in the train rows, got {value!r} in row {row} "
        "(counted from 0)"
    ) from None


def _cells(name: str, cells: Any, wanted: str, odd: tuple[type, ...]) -> Iterator[tuple[int, Any]]:
    """The number and the value of each row; None where it is masked."""
    if isinstance(cells, np.ma.MaskedArray):
        masks = np.ma.getmaskarray(cells)
        cells = [None if mask else cell for cell, mask in zip(cells.data, masks, strict=True)]
    for row, value in enumerate(cells):
        if isinstance(value, odd):
            _refuse(name, wanted, value, row)
        yield row, value


def _text(value: Any, missing: tuple[str, ...] = MISSING) -> str | None:
    """A cell as text, 1.0 as "1"; None where it is missing."""
    if value is None or value != value:
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text in missing else text


def ids_of(cells: Any) -> np.ndarray:
    """The user's ids, whole numbers or text."""
    ids = np.asarray(cells)
    return ids.astype(f"{ids.dtype.kind}8") if ids.dtype.kind in "iu" else as_text(cells)


def as_text(cells: Any) -> np.ndarray:
    """Cells as text that is kept as it is, `str` objects (N,), "" where they are missing."""
    return np.array([_text(cell, ()) or "" for cell in cells], object)


def _texts(name: str, cells: Any) -> list[str]:
    return [_text(cell) or "" for _, cell in _cells(name, cells, "text", NO_CELLS + DATES)]


def numbers(name: str, cells: Any) -> np.ndarray:
    """Numbers, float64 (N,), with NaN where they are missing."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        found = np.ma.filled(cells.astype(np.float64), np.nan)
    else:
        found = np.full(len(cells), np.nan)
        for row, cell in _cells(name, cells, "numbers", NO_CELLS + DATES):
            text = _text(cell)
            try:
                if isinstance(cell, Real) and not isinstance(cell, bool):
                    found[row] = float(cell)
                elif text is not None:
                    found[row] = float(text)  # not of True, nor of words
            except ValueError:
                _refuse(name, "numbers", cell, row)
    for row in np.flatnonzero(np.abs(found) > LARGEST)[:1]:
        _refuse(name, "finite numbers that float32 holds", found[row], row)
    return found


def _moments(name: str, cells: Any) -> np.ndarray:
    """Dates, datetime64 (N,) in UTC, with NaT where they are missing."""
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        return np.ma.filled(cells.astype("datetime64[us]"), np.datetime64("NaT"))
    found, wanted = np.full(len(cells), "NaT", "datetime64[us]"), "dates such as 2024-12-31"
    zoned: bool | None = None
    for row, cell in _cells(name, cells, wanted, NO_CELLS):
        text = _text(cell)
        if text is None:
            continue
        if isinstance(cell, Real) or not re.fullmatch(DATE, text):
            _refuse(name, wanted, cell, row)
        try:
            moment = datetime.fromisoformat(text.upper())
        except ValueError:
            _refuse(name, wanted, cell, row)
        zone = moment.tzinfo is not None
        if zoned not in (None, zone):
            _refuse(name, "dates with an offset from UTC in every row or in none", cell, row)
        found[row], zoned = moment.astimezone(UTC).replace(tzinfo=None) if zone else moment, zone
    return found


def _calendar(name: str, moments: np.ndarray) -> Columns:
    """Days since 1970, month, weekday and hour, float64 with NaN."""
    epoch, day = np.datetime64(0, "D"), moments.astype("datetime64[D]")
    months = (moments.astype("datetime64[M]") - np.datetime64(0, "M")) / np.timedelta64(1, "M")
    return {
        name: (moments - epoch) / np.timedelta64(1, "D"),
        f"{name} month": months % 12 + 1,
        f"{name} weekday": ((day - epoch) / np.timedelta64(1, "D") + 3) % 7,
        f"{name} hour": (moments - day) / np.timedelta64(1, "h"),
    }


def _features(encoder: Columns, table: Columns) -> np.ndarray:
    """The features of columns of numbers and texts, float32 (N, D)."""
    edges, coded = encoder["edges"], {}
    parts: list[Any] = [_scaled(encoder, n, table[n]) for n in encoder["mean"] if n not in edges]
    parts += [np.isnan(table[name]) for name in encoder["missing"]]
    for name, known in encoder["values"].items():
        rare = encoder["rare"].get(name, ())
        number = dict.fromkeys(rare, len(known) + 1) | {v: i for i, v in enumerate(known, 1)}
        coded[name] = np.array([number.get(text, 0) for text in table[name]])
        if name not in encoder["codes"]:
            parts.append(coded[name][:, None] == np.arange(1, len(known) + 1 + bool(rare)))
    for name, bounds in edges.items():
        low, high = np.array(bounds[:-1]), np.array(bounds[1:])
        least, most = np.zeros(len(low)), np.ones(len(low))
        least[0], most[-1] = -np.inf, np.inf
        share = (table[name][:, None] - low) / (high - low)
        parts.append(np.nan_to_num(np.clip(share, least, most)))
    parts += [coded[name] for name in encoder["codes"]]
    with np.errstate(over="ignore"):
        features = np.column_stack(parts).astype(np.float32)
    for row, place in np.argwhere(~np.isfinite(features))[:1]:
        raise ValueError(
            f"feature {place} must be finite when it is encoded, got {features[row, place]} in row "
            f"{row}; its value is too far from the values of the train rows"
        )
    return features


def _scaled(encoder: Columns, name: str, x: np.ndarray) -> np.ndarray:
    """Numbers as one feature, 0 where they are missing."""
    if name in encoder["quantiles"]:
        return _normal(x, np.array(encoder["quantiles"][name]))
    x = np.nan_to_num((x - encoder["mean"][name]) / encoder["std"][name])
    return x / np.sqrt(1 + np.square(x / 3)) if encoder["robust"] else x


def _normal(x: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The values of a normal distribution with the same quantiles, 0 where they are missing."""
    share = np.linspace(0, 1, len(quantiles))
    up, down = np.interp(x, quantiles, share), np.interp(-x, -quantiles[::-1], -share[::-1])
    probability = np.nan_to_num((up - down) / 2, nan=0.5)
    probability[x <= quantiles[0]] = 0
    probability[x >= quantiles[-1]] = 1
    end = 1e-7 - np.spacing(1)
    scores = np.frompyfunc(NormalDist().inv_cdf, 1, 1)(np.clip(probability, end, 1 - end))
    return np.asarray(scores, np.float64)


def none_such(bad: np.ndarray, values: np.ndarray, wanted: str, hint: str = "") -> None:
    """Raise `ValueError` with the first row where `bad` is true, and its value."""
    if bad.any():
        row = int(bad.argmax())
        value = values[row].item() if isinstance(values[row], np.generic) else values[row]
        raise ValueError(
            f"{wanted}, got {value!r} in row {row} (counted from 0; {bad.sum():,} such rows){hint}"
        )
