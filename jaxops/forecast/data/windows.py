"""Windows of series: origins, splits for training and evaluation, and the rows of a window."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Series, as_time, taken

Windows = dict[str, np.ndarray]
"""Columns `series` and `origin`, int32 (W,): the number of the series, and the row of the
first step to forecast; where targets are partial, `steps` too: how many of theirs are known."""
Rows = np.ndarray
"""int64 (S, 2): for each series the first row of a range, and the row after its last."""
Count = int | float | None


def gather(values: jax.Array, origin: jax.Array, start: int, stop: int) -> jax.Array:
    """The rows origin + start to origin + stop - 1 of each window.

    Pure and traceable. The rows have to exist, as they do for windows of `origins`: a window that
    reaches beyond the first or the last row of `values` is moved inwards, without an error.

    Args:
        values: (R, C), C may be 0.
        origin: int32 (B,).
        start: of the window, relative to its origin: -L for a context of L rows.
        stop: its end, relative too: 0 for the context, H for a target of H rows.

    Returns:
        (B, stop - start, C).

    >>> import jax.numpy as jnp
    >>> gather(jnp.arange(6.0)[:, None], jnp.array([2, 4]), -1, 2)[:, :, 0]
    Array([[1., 2., 3.],
           [3., 4., 5.]], dtype=float32)
    """
    # the fastest of nine ways on a CPU; jnp.take takes up to 1.4x (clip) or 1.9x (fill) the time
    return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(values, i + start, stop - start))(origin)


class Split(NamedTuple):
    """Ranges of rows of each series that may be forecast; a window's context may lie before them.

    Attributes:
        train: int64 (S, 2), to learn from.
        validation: to choose models and settings.
        test: to evaluate, once.
    """

    train: Rows
    validation: Rows
    test: Rows


def split(series: Series, train: Count, validation: Count, test: Count) -> Split:
    """Split each series: the first rows to learn from, the next for validation, the next for test.

    Args:
        series: S of them.
        train: a number of rows; a share of the series' rows (a float below 1, rounded down); or
            None, for one of the three, which gets the rows that the other two leave.
        validation: as `train`.
        test: as `train`.

    Raises:
        ValueError: another number, or a series that is too short, which is named.

    ETT's 12, 4 and 4 months are `split(series, 8640, 2880, 2880)`; the shares common for
    electricity and traffic `split(series, 0.7, None, 0.2)`; M4's hourly series, with the test rows
    appended, `split(series, None, 48, 48)`.

    >>> from jaxops.forecast import from_arrays
    >>> split(from_arrays(["a", "b"], [range(10), range(7)]), None, 2, 2).validation.tolist()
    [[6, 8], [13, 15]]
    """
    parts = {"train": train, "validation": validation, "test": test}
    counts = {name: _rows_of(part, name, series.lengths) for name, part in parts.items()}
    left = series.lengths - sum(count for count in counts.values() if count is not None)
    open_ended = [name for name, part in parts.items() if part is None]
    if len(open_ended) > 1:
        raise ValueError(
            f"at most one of train, validation and test must be None, got {', '.join(open_ended)}"
        )
    if (left < 0).any():
        s = int(left.argmin())
        raise ValueError(
            f"series must have at least {series.lengths[s] - left[s]} rows for train={train}, "
            f"validation={validation}, test={test}, got {series.lengths[s]} in "
            f"{str(series.ids[s])!r}"
        )
    rows = [left if count is None else count for count in counts.values()]
    edges = series.offsets[:-1] + np.cumsum([np.zeros_like(left), *rows], axis=0)
    return Split(*(np.stack(pair, axis=1) for pair in pairwise(edges)))


def _rows_of(part: Count, name: str, lengths: np.ndarray) -> np.ndarray | None:
    if part is None:
        return None
    if isinstance(part, float) and 0 <= part < 1:
        return np.floor(np.round(part * lengths, 6)).astype(np.int64)
    if isinstance(part, int | np.integer) and part >= 0:
        return np.full_like(lengths, part)
    raise ValueError(f"{name} must be a number of rows, a share below 1 or None, got {part!r}")


def split_by_time(series: Series, validation: object, test: object, end: object = None) -> Split:
    """Split all series at the same times, so that no training row is later than a test row.

    Args:
        series: S of them; a series may have no rows in a range.
        validation: the first time of validation, a date or an integer as the series' times are.
        test: the first time of test.
        end: the time after test; the end of each series by default.

    Raises:
        ValueError: times that do not rise, or are not of the kind of the series' times.

    >>> from jaxops.forecast import from_arrays
    >>> late = from_arrays(["a", "b"], [range(4), range(4)], start=[0, 2])
    >>> split_by_time(late, 2, 4).train.tolist()
    [[0, 2], [4, 4]]
    """
    limits = [validation, test] if end is None else [validation, test, end]
    times, edges = series.times(), [series.offsets[:-1]]
    borders = [as_time(limit, "validation, test and end", series.frequency) for limit in limits]
    if any(b.dtype.kind != times.dtype.kind or b.ndim or b != b for b in borders):
        raise ValueError(f"validation, test and end must be times such as {times[0]}, got {limits}")
    if any(b < a for a, b in pairwise(borders)):
        raise ValueError(f"validation, test and end must be rising times, got {limits}")
    for border in borders:
        before = np.add.reduceat((times < border).astype(np.int64), series.offsets[:-1])
        edges.append(series.offsets[:-1] + before)
    edges += [series.offsets[1:]] if end is None else []
    return Split(*(np.stack(pair, axis=1) for pair in pairwise(edges)))


def _first_last(
    series: Series, context: int, horizon: int, rows: Rows | None, partial: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last origin of each series; none where the last is before the first."""
    if context < 0 or horizon < 1:
        raise ValueError(
            "context must be at least 0 and horizon at least 1, got "
            f"context={context} and horizon={horizon}"
        )
    rows = checked_rows(series, rows)
    last = rows[:, 1] - (1 if partial else horizon)
    if series.known_names:  # those of all steps exist
        last = np.minimum(last, series.offsets[1:] - horizon)
    return np.maximum(rows[:, 0], series.offsets[:-1] + context), last


def checked_rows(series: Series, rows: Rows | None) -> Rows:
    """Ranges of rows within each series, (S, 2); all rows for None."""
    ends = np.stack([series.offsets[:-1], series.offsets[1:]], axis=1)
    rows = ends if rows is None else np.asarray(rows)
    if rows.shape != ends.shape or (rows < ends[:, :1]).any() or (rows > ends[:, 1:]).any():
        raise ValueError(
            f"rows must be a range within each of these {len(series)} series, as `split` gives "
            f"them, got an array of shape {rows.shape} that is not"
        )
    return rows


def too_short(series: Series, context: int, horizon: int, rows: Rows | None = None) -> np.ndarray:
    """Which series have no window; see `origins`.

    Returns:
        bool (S,).
    """
    first, last = _first_last(series, context, horizon, rows)
    return np.asarray(last < first)


def origins(
    series: Series,
    context: int,
    horizon: int,
    rows: Rows | None = None,
    *,
    stride: int = 1,
    short: Literal["error", "skip"] = "error",
    partial: bool = False,
) -> Windows:
    """All windows whose target lies in a range of rows; their context may lie before it.

    Args:
        series: S of them.
        context: L, rows before the origin, of the same series.
        horizon: H, rows from the origin on.
        rows: the range of each series, such as `split(...).test`; all rows by default.
        stride: rows between two origins of a series, counted from its last, which is always
            included.
        short: what to do with series without a window: "error", or "skip" them. To keep them,
            lengthen them first (`padded`). `too_short` tells which they are.
        partial: also windows whose target reaches beyond the range, of which at least one step
            lies in it, for `direct(..., partial=True)`: the newest rows are learned from at each
            step ahead, which short series need. With known covariates only where these are known.

    Returns:
        The windows, series by series, in the order of time: columns for `jaxops.fit`.

    Raises:
        ValueError: a series without a window, which is named; or no windows at all.

    >>> from jaxops.forecast import from_arrays
    >>> two = from_arrays(["a", "b"], [range(5), range(4)])
    >>> {name: column.tolist() for name, column in origins(two, 2, 1).items()}
    {'series': [0, 0, 0, 1, 1], 'origin': [2, 3, 4, 7, 8]}
    >>> origins(two, 3, 2, partial=True)["steps"].tolist()
    [2, 1, 1]
    """
    if stride < 1 or short not in ("error", "skip"):
        raise ValueError(
            f'stride must be at least 1 and short "error" or "skip", got {stride} and {short!r}'
        )
    first, last = _first_last(series, context, horizon, rows, partial)
    none, end = last < first, checked_rows(series, rows)[:, 1]
    if none.all() or (none.any() and short == "error"):
        s = int(none.argmax())
        length = first[s] - series.offsets[s], end[s] - series.offsets[s]
        ahead = 1 if partial and not series.known_names else horizon
        raise ValueError(
            f"series must have at least {length[0] + ahead} rows up to the end of the range for "
            f"context={context} and horizon={horizon}, got {length[1]} in "
            f"{str(series.ids[s])!r}; {none.sum()} of {len(series)} series are too short; "
            'short="skip" leaves them out, `padded` lengthens them'
        )
    count = np.where(none, 0, (last - first) // stride + 1)
    number = np.repeat(np.arange(len(series), dtype=np.int32), count)
    to_come = np.repeat(np.cumsum(count), count) - 1 - np.arange(len(number))
    origin = last[number] - stride * to_come
    windows = {"series": number, "origin": origin.astype(np.int32)}
    if partial:
        windows["steps"] = np.minimum(end[number] - origin, horizon).astype(np.int32)
    return windows


def check_windows(
    ids: np.ndarray, offsets: np.ndarray, windows: Windows, context: int, horizon: int
) -> None:
    """Check that the rows of each window lie within its series, as `gather` wants them.

    Args:
        ids: (S,), of the series.
        offsets: (S + 1,), of their rows.
        windows: W of them, from anywhere.
        context: L, rows before each origin that will be read.
        horizon: H, rows from the origin on; of partial windows their `steps`.

    Raises:
        ValueError: the number of a series that does not exist, or a window that reaches beyond its
            series' first or last row; series and origin are named.

    >>> from jaxops.forecast import from_arrays
    >>> two = from_arrays(["a", "b"], [range(5), range(4)])
    >>> check_windows(two.ids, two.offsets, origins(two, 2, 1), 2, 1)
    >>> check_windows(two.ids, two.offsets, origins(two, 2, 1), 3, 1)
    Traceback (most recent call last):
    ValueError: origin must be in [3, 5) in series 'a' (rows 0 to 4) for context=3 ...
    """
    number, origin = windows["series"], windows["origin"]
    none = (number < 0) | (number >= len(ids))
    if none.any():
        w = int(none.argmax())
        raise ValueError(f"series must be in [0, {len(ids)}), got {number[w]} in window {w}")
    steps = windows.get("steps", np.full(len(origin), horizon))
    first, last = offsets[number] + context, offsets[number + 1] - steps
    beyond = (origin < first) | (origin > last)
    if beyond.any():
        w = int(beyond.argmax())
        name, rows = str(ids[number[w]]), offsets[number[w] : number[w] + 2]
        raise ValueError(
            f"origin must be in [{first[w]}, {last[w] + 1}) in series {name!r} (rows {rows[0]} to "
            f"{rows[1] - 1}) for context={context} and horizon={steps[w]}, got {origin[w]} in "
            f"window {w}; {beyond.sum():,} of {len(number):,} windows reach beyond their series"
        )


def padded(series: Series, rows: int) -> Series:
    """Lengthen short series at their beginning by repeats of the first row.

    So series shorter than a model's context L can be used: `padded(series, L)` to forecast them,
    `padded(series, L + H)` to train or evaluate on them. Add covariates of the calendar afterwards,
    since the time of the first row moves.

    Args:
        series: S of them; those long enough stay as they are.
        rows: the least number of rows of each.

    >>> from jaxops.forecast import from_arrays
    >>> long = padded(from_arrays(["a", "b"], [[5, 6], [7, 8, 9]]), 3)
    >>> long.values[:, 0].tolist(), long.start.tolist()
    ([5.0, 5.0, 6.0, 7.0, 8.0, 9.0], [-1, 0])
    """
    added = np.maximum(rows - series.lengths, 0)
    offsets = np.append(0, np.cumsum(series.lengths + added))
    before = np.repeat(np.cumsum(added), np.diff(offsets))
    first = np.repeat(series.offsets[:-1], np.diff(offsets))
    index = np.maximum(np.arange(offsets[-1]) - before, first)
    return replace(
        series,
        start=grid.moved(series.start, -added, series.frequency),
        offsets=offsets,
        values=series.values[index],
        known=series.known[index],
        past=series.past[index],
        report=None,
    )


def cut(series: Series, rows: Rows) -> Series:
    """The series with a range of their rows each, such as the history up to an earlier origin.

    Args:
        series: S of them.
        rows: the range of each, at least one row, such as `backtest(...)[0].train`.

    >>> from jaxops.forecast import from_arrays
    >>> past = cut(from_arrays(["a", "b"], [range(4), range(3)]), np.array([[1, 3], [4, 6]]))
    >>> past.values[:, 0].tolist(), past.start.tolist()
    ([1.0, 2.0, 0.0, 1.0], [1, 0])
    """
    rows = checked_rows(series, rows)
    lengths = rows[:, 1] - rows[:, 0]
    if (lengths < 1).any():
        empty = str(series.ids[int(lengths.argmin())])
        raise ValueError(f"rows must have at least 1 row of each series, got none of {empty!r}")
    return taken(series, np.arange(len(series)), rows[:, 0], rows[:, 1])


class Fold(NamedTuple):
    """One fit of a backtest.

    Attributes:
        train: int64 (S, 2), rows to learn from: all before validation.
        validation: int64 (S, 2), rows for validation: the last before the first origin.
        test: windows to forecast with this fit, columns `series` and `origin`.
    """

    train: Rows
    validation: Rows
    test: Windows


def backtest(
    series: Series,
    context: int,
    horizon: int,
    *,
    count: int = 1,
    step: int | None = None,
    refit: int | None = None,
    validation: int = 0,
    short: Literal["error", "skip"] = "error",
) -> tuple[Fold, ...]:
    """Windows at the last origins of each series, with the rows that were known at each.

    One origin a series is a fixed origin, as in M4; more are a rolling origin (Tashman 2000). The
    last target ends where its series does. Series that end at different times have different
    origins; where a model must not learn one series' future from another, use `split_by_time`.

    Args:
        series: S of them.
        context: L, rows before each origin.
        horizon: H, rows from the origin on.
        count: origins a series.
        step: rows from one origin to the next; H by default, so that targets do not overlap.
        refit: origins for each fit; the next fold learns from all rows up to its own first
            origin. One fit for all by default.
        validation: rows before a fold's first origin that are kept for validation.
        short: what to do with series that lack the rows: "error", or "skip", which leaves them
            out of all folds' test.

    Returns:
        The folds, the earliest first. Their windows together are S * count.

    Raises:
        ValueError: a series that is too short, which is named; numbers that do not fit together.

    References:
        Tashman 2000, Out-of-sample tests of forecasting accuracy, IJF 16.

    >>> from jaxops.forecast import from_arrays
    >>> folds = backtest(from_arrays(["a"], [range(20)]), 4, 3, count=4, refit=2)
    >>> [(fold.train.tolist(), fold.test["origin"].tolist()) for fold in folds]
    [([[0, 8]], [8, 11]), ([[0, 14]], [14, 17])]
    """
    step, refit = horizon if step is None else step, count if refit is None else refit
    if count < 1 or step < 1 or refit < 1 or validation < 0:
        raise ValueError(
            "count, step and refit must be at least 1 and validation at least 0, got "
            f"count={count}, step={step}, refit={refit} and validation={validation}"
        )
    tested = horizon + step * (count - 1)
    ends = series.offsets[1:]
    rows = np.stack([np.maximum(ends - tested, series.offsets[:-1]), ends], axis=1)
    lacks = series.lengths < context + validation + tested
    if lacks.all() or (lacks.any() and short == "error"):
        s = int(lacks.argmax())
        raise ValueError(
            f"series must have at least {context + validation + tested} rows (context={context}, "
            f"validation={validation}, and {tested} for count={count} origins every {step} and "
            f"horizon={horizon}), got {series.lengths[s]} in {str(series.ids[s])!r}; {lacks.sum()} "
            f'of {len(series)} series are too short; short="skip" leaves them out, `padded` '
            "lengthens them"
        )
    rows[lacks] = ends[lacks, None]  # no window
    windows = origins(series, context, horizon, rows, stride=step, short="skip")
    number, origin = (windows[name].reshape(-1, count) for name in ("series", "origin"))
    folds = []
    for first in range(0, count, refit):
        until = series.offsets[1:] - horizon - step * (count - 1 - first)
        until = np.maximum(until, series.offsets[:-1])
        edges = (series.offsets[:-1], np.maximum(until - validation, series.offsets[:-1]), until)
        test = {
            "series": number[:, first : first + refit].reshape(-1),
            "origin": origin[:, first : first + refit].reshape(-1),
        }
        folds.append(Fold(np.stack(edges[:2], axis=1), np.stack(edges[1:], axis=1), test))
    return tuple(folds)
