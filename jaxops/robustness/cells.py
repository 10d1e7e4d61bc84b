"""Corruptions of tables and of series: outliers and missing cells, spikes and gaps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy

from jaxops._optional import require
from jaxops.explain.tables.frames import frame_of

DISTANCE = 10.0  # of an outlier, in robust standard deviations
TABLES = {  # kind -> the share of cells at each level
    "outliers": (0.01, 0.02, 0.05, 0.1, 0.2),
    "missing": (0.05, 0.1, 0.2, 0.3, 0.5),
}
SERIES = {  # kind -> the share of the values of a series
    "spikes": (0.01, 0.02, 0.03, 0.05, 0.1),
    "gaps": (0.05, 0.1, 0.15, 0.2, 0.3),
}


def corrupted_table(
    rows: Any,
    kind: str,
    level: int,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    by: str | None = None,
) -> Any:
    """A table with a corruption, as a pandas frame; see `jaxops.robustness.corrupt`.

    Args:
        rows: a file, a frame or arrays by name.
        kind: one of `TABLES` or `SERIES`.
        level: 1 to 5; a cell that changes at one level also does at higher ones, but for gaps.
        seed: of the draws.
        columns: the columns that change: by default all columns of numbers, for missing cells all.
        by: the column of the ids of series.

    >>> table = corrupted_table({"age": np.arange(100), "plan": ["a"] * 100}, "missing", 5)
    >>> bool(30 < table["age"].isna().sum() < 70)
    True
    """
    pd = require("pandas", extra="data")
    found = frame_of(rows)
    numbers = [
        name
        for name, column in found.items()
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    ]
    chosen = _chosen(found, numbers, kind, columns, by)
    share = {**TABLES, **SERIES}[kind][level - 1]
    group = np.zeros(len(found), int) if by is None else pd.factorize(found[by])[0]
    for place, name in enumerate(chosen):
        rng = np.random.default_rng([seed, place])
        if kind in ("outliers", "spikes"):
            found[name] = _moved(found[name], rng, share, group)
        elif kind == "missing":
            found[name] = _without(found[name], rng.random(len(found)) < share)
        else:
            found[name] = _without(found[name], _gaps(rng, share, group))
    return found


def _chosen(
    table: Any, numbers: Sequence[str], kind: str, columns: Sequence[str] | None, by: str | None
) -> list[str]:
    """The columns that change; raises `ValueError` for some that cannot."""
    if isinstance(columns, str):
        raise ValueError(f'columns must be names, as in ["age"], got {columns!r}')
    for name in [*(columns or ()), *([by] if by else [])]:
        if name not in table:
            raise ValueError(f"rows must have a column {name!r}, got {', '.join(table)}")
    possible = [*table] if kind == "missing" else [*numbers]
    chosen = [name for name in (possible if columns is None else columns) if name != by]
    wrong = next((name for name in chosen if name not in possible), None)
    if wrong is not None:
        raise ValueError(
            f"columns must be numbers for {kind}, got {wrong!r} of {table[wrong].dtype}"
        )
    if not chosen:
        raise ValueError(f"rows must have a column of numbers for {kind}, got {', '.join(table)}")
    return chosen


def _moved(column: Any, rng: np.random.Generator, share: float, group: np.ndarray) -> Any:
    """Some cells, moved up or down by robust standard deviations of their group."""
    x = column.to_numpy(np.float64, na_value=np.nan)
    spread = np.zeros(len(x))
    for one in range(group.max() + 1):
        own = x[(group == one) & np.isfinite(x)]
        if len(own):
            spread[group == one] = (
                scipy.stats.median_abs_deviation(own, scale="normal") or own.std()
            )
    moved = (rng.random(len(x)) < share) & np.isfinite(x)
    x = np.where(moved, x + rng.choice([-1, 1], len(x)) * DISTANCE * spread, x)
    if column.dtype.kind in "iu":  # counts and numbers of categories stay whole
        changed = column.astype("Int64" if column.isna().any() else "int64")
        changed[moved] = np.round(x[moved]).astype(np.int64)
        return changed
    return x


def _without(column: Any, gone: np.ndarray) -> Any:
    """A column with missing cells; whole numbers and booleans stay what they are."""
    nullable = {"i": "Int64", "u": "UInt64", "b": "boolean"}.get(column.dtype.kind)
    return (column if nullable is None else column.astype(nullable)).mask(gone)


def _gaps(rng: np.random.Generator, share: float, group: np.ndarray) -> np.ndarray:
    """One run of each series' rows, between its first and its last."""
    gone = np.zeros(len(group), bool)
    for one in range(group.max() + 1):
        rows = np.flatnonzero(group == one)
        length = min(max(1, round(share * len(rows))), len(rows) - 2)
        if length > 0:
            start = 1 + rng.integers(0, len(rows) - 1 - length)
            gone[rows[start : start + length]] = True
    return gone
