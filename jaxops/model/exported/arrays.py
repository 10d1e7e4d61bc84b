"""Images, histories of items and series to columns: as the rooms' readers make them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxops.model.exported.tables import Columns, column, count_of


def read_columns(reader: Columns, raw: Any) -> tuple[None, Any]:
    """Encoded columns, for a model without a reader."""
    return None, raw


def of_columns(reader: Columns, ids: None, outputs: Any) -> Any:
    """What the program computes."""
    return outputs


def read_images(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The numbers of images, and their bytes."""
    images = np.asarray(column(dict(raw), "image") if isinstance(raw, Mapping) else raw)
    if images.dtype != np.uint8:
        raise ValueError(
            f"images must be an array uint8 (N, H, W, C), got {images.dtype} {images.shape}; files "
            "are read by jaxops alone"
        )
    grey = images.ndim == 3 and reader["channels"] == 1
    return np.arange(len(images)), {"image": images[..., None] if grey else images}


def read_histories(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The users, and the places of their items in the catalogue, filled up with their number."""
    named = isinstance(raw, Mapping)
    log = reader.get("log", ("user", "item"))
    if hasattr(raw, "columns") or (named and {*log} <= {*raw}):
        raise ValueError(f"raw must be lists of ids by user, got a log with {' and '.join(log)}")
    if not named:
        count_of("raw", raw)
    users = np.array([*raw], object) if named else np.arange(len(raw))
    place = reader.setdefault("place", {str(item): i for i, item in enumerate(reader["items"])})
    rows: list[list[int]] = []
    for row, history in enumerate(raw.values() if named else raw):
        if isinstance(history, str | bytes | Mapping) or not hasattr(history, "__iter__"):
            raise ValueError(f"histories must be lists of ids, got {history!r} in row {row}")
        history = [*history]
        for item in history:
            if not isinstance(item, str | int | np.integer) or isinstance(item, bool):
                raise ValueError(f"ids must be text or integers, got {item!r} in row {row}")
        rows.append([place[str(item)] for item in history if str(item) in place])
    length = reader["length"]
    while length < max(map(len, rows), default=0):  # few lengths, so that few programs compile
        length *= 2
    context = reader["context"] or length
    columns = {"history": _padded([row[-context:] for row in rows], context, len(place))}
    if reader["exclude_seen"]:
        columns["seen"] = _padded(rows, length, len(place))
    return users, columns


def _padded(rows: list[list[int]], length: int, filling: int) -> np.ndarray:
    padded = np.full((len(rows), length), filling, np.int32)
    for out, row in zip(padded, rows, strict=True):
        out[: len(row)] = row
    return padded


def of_histories(reader: Columns, ids: np.ndarray, outputs: Columns) -> Columns:
    """The ids of the best items of each user, best first, and the scores."""
    items, scores = reader["items"], outputs["scores"]
    for row in np.flatnonzero(np.isnan(scores).any(1))[:1]:
        raise FloatingPointError(f"scores must not be NaN, got NaN for user {ids[row]!r}")
    named = [[items[i] for i in row if i < len(items)] for row in outputs["places"].tolist()]
    return {"users": ids, "items": named, "scores": scores}


def read_windows(reader: Columns, raw: Any) -> tuple[np.ndarray, Columns]:
    """The ids of series, and their last rows, scaled, with what else the program takes."""
    context, horizon = reader["context"], reader["horizon"]
    rows = _series(reader, raw, "values", reader["channels"], None)
    given = raw.get("id", range(len(rows)))
    if count_of("id", given) != len(rows):
        raise ValueError(f"id must have {len(rows)} rows, as values, got {len(given)}")
    ids = np.array([str(one) for one in given], object)
    columns: Columns = {}
    if reader["unit"] is not None:
        columns["unit"] = np.stack([_unit(i, x, **reader["unit"]) for i, x in enumerate(rows)])
    if "members" in reader:  # of an ensemble
        for place, member in enumerate(reader["members"]):
            own = read_windows(member, raw)[1]
            columns |= {f"{name} {place}": value for name, value in own.items()}
        return ids, columns
    seen = [_logarithms(x) for x in rows] if reader["log"] else rows
    columns["loc"], columns["scale"] = loc, scale = _scales(reader["scaling"], ids, seen)
    last = np.stack([_last(reader, x, context) for x in seen])
    columns["values"] = (last - loc[:, None]) / scale[:, None]
    for name, more in (("past", 0), ("known", horizon)):
        if reader[name]:
            given = _series(reader, raw, name, reader[name], [len(x) + more for x in rows])
            cut = np.stack([_last(reader, x, context + more) for x in given])
            columns[name] = _covariates(reader["scaling"][name], cut)
    if reader["static"]:
        given = _series(reader, raw, "static", reader["static"], [1] * len(rows))
        columns["static"] = _covariates(reader["scaling"]["static"], np.concatenate(given))
    return ids, columns


def of_windows(reader: Columns, ids: np.ndarray, outputs: Columns) -> Columns:
    """The mean of each step, (S, H, C), and its quantiles, (S, H, C, Q)."""
    answer = {"ids": ids, "mean": outputs["mean"], "levels": tuple(reader["levels"])}
    return answer | {name: outputs[name] for name in ("quantiles",) if name in outputs}


def _series(
    reader: Columns, raw: Any, name: str, columns: list[str], lengths: list[int] | None
) -> list[np.ndarray]:
    """The rows of each series, float32 (T, C)."""
    if not isinstance(raw, Mapping) or name not in raw:
        wanted = f"{name} ({', '.join(columns)}) of each series"
        raise ValueError(f"raw must have {wanted}, got {type(raw).__name__}")
    found: list[np.ndarray] = []
    count_of(name, raw[name])
    for place, given in enumerate(raw[name]):
        rows = np.asarray(given, np.float32)
        rows = rows[None] if name == "static" else rows[:, None] if rows.ndim == 1 else rows
        length = len(rows) if lengths is None else lengths[place]
        if rows.shape != (length, len(columns)) or length == 0:
            raise ValueError(
                f"{name} must have shape ({'T' if lengths is None else length}, {len(columns)}) "
                f"for series {place}, got {rows.shape}"
            )
        if not np.isfinite(rows).all():
            raise ValueError(f"{name} must be finite, got another number in series {place}")
        if name == "values" and reader["counts"] and ((rows < 0) | (rows != np.round(rows))).any():
            raise ValueError(
                f"values must be whole numbers from 0 up, got others in series {place}"
            )
        found.append(rows)
    if not found:
        raise ValueError(f"{name} must have at least 1 series, got none")
    return found


def _last(reader: Columns, rows: np.ndarray, count: int) -> np.ndarray:
    """The last rows; short series are lengthened by repeats of the first."""
    short = count - len(rows)
    if short > 0 and not reader["lengthens"]:
        raise ValueError(f"values must have at least {count} rows of each series, got {len(rows)}")
    return np.concatenate([rows[:1].repeat(max(short, 0), 0), rows])[-count:]


def _logarithms(rows: np.ndarray) -> np.ndarray:
    if (rows < 0).any():
        raise ValueError(f"values must be at least 0 for this model, got {rows.min():g}")
    return np.log1p(rows)


def _scales(
    scaling: Columns, ids: np.ndarray, series: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What is subtracted and divided by; of a new series the moments of all its rows."""
    loc, scale = (np.array(scaling[name], np.float32) for name in ("loc", "scale"))
    if scaling["kind"] != "series":
        shape = len(series), loc.shape[1]
        return np.broadcast_to(loc, shape), np.broadcast_to(scale, shape)
    place = {name: i for i, name in enumerate(scaling["ids"])}
    known = np.array([place.get(name, -1) for name in ids])
    loc, scale = loc[known], scale[known]
    for row in np.flatnonzero(known < 0):
        values = series[row].astype(np.float64)
        mean, std = values.mean(0), values.std(0)
        loc[row], scale[row] = mean, np.where(std > 1e-9 * np.abs(mean), std, 1.0)
    return loc, scale


def _covariates(pair: Any, x: np.ndarray) -> np.ndarray:
    return x if pair is None else (x - np.float32(pair[0])) / np.float32(pair[1])


def _unit(series: int, rows: np.ndarray, context: int, season: int) -> np.ndarray:
    """The mean absolute difference of values one season apart."""
    rows = rows[-context:].astype(np.float64)
    if len(rows) <= season:
        raise ValueError(
            f"values must have more than {season} rows, a season, for series {series}, got "
            f"{len(rows)}"
        )
    return np.asarray(np.abs(rows[season:] - rows[:-season]).mean(0), np.float32)
