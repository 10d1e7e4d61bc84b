"""Windows of series: their origins, splits for training and evaluation, and a window's rows."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Series, as_time, taken

Windows = dict[str, np.ndarray]
"""Columns `series` and `origin`, int32 (W,): the index of the series, and the row of the first step
to forecast. Windows with partial targets also have `steps`, the number of known target steps."""
Rows = np.ndarray
"""int64 (S, 2): for each series the first row of a range, and the row after its last."""
Count = int | float | None


def gather(values: jax.Array, origin: jax.Array, start: int, stop: int) -> jax.Array:
    """The rows origin + start to origin + stop - 1 of each window.

    The function is pure and can be traced. The rows must exist, as they do for windows of
    `origins`: a window that reaches beyond the first or the last row of `values` is moved inwards,
    without an error.

    Args:
        values: (R, C), C may be 0.
        origin: int32 (B,).
        start: the window's first row relative to its origin: -L for a context of L rows.
        stop: the end of the window relative to its origin: 0 for the context, H for a target of H
            rows.

    Returns:
        (B, stop - start, C).

    >>> import jax.numpy as jnp
    >>> gather(jnp.arange(6.0)[:, None], jnp.array([2, 4]), -1, 2)[:, :, 0]
    Array([[1., 2., 3.],
           [3., 4., 5.]], dtype=float32)
    """
    # the fastest of nine ways on a CPU; jnp.take needs up to 1.4x (clip) or 1.9x (fill) the time
    return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(values, i + start, stop - start))(origin)


class Split(NamedTuple):
    """Ranges of each series' rows that are targets. A window's context may lie before its range.

    Attributes:
        train: int64 (S, 2), the rows to train on.
        validation: the rows to choose models and settings with.
        test: the rows to evaluate on, once.
    """

    train: Rows
    validation: Rows
    test: Rows


def split(series: Series, train: Count, validation: Count, test: Count) -> Split:
    """Split each series: its first rows are for training, the next for validation, then for test.

    Args:
        series: S series.
        train: a number of rows, or a share of the series' rows (a float below 1, rounded down). One
            of the three may be None; it gets the rows that the other two leave.
        validation: a number, a share or None, see `train`.
        test: a number, a share or None, see `train`.

    Raises:
        ValueError: a number or share is not valid, or a series, which is named, is too short.

    Examples: ETT's 12, 4 and 4 months are `split(series, 8640, 2880, 2880)`. The usual shares for
    electricity and traffic are `split(series, 0.7, None, 0.2)`. M4's hourly series, with the test
    rows appended, need `split(series, None, 48, 48)`.

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
        series: S series; a series may have no rows in a range.
        validation: the first time of the validation rows, a date or an integer like the times of
            the series.
        test: the first time of the test rows.
        end: the first time after the test rows; by default test lasts to the end of each series.

    Raises:
        ValueError: the times do not rise, or they are dates and the series' times are counts, or
            the reverse.

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
    """The first and last origin of each series. There is none if the last is below the first."""
    if context < 0 or horizon < 1:
        raise ValueError(
            "context must be at least 0 and horizon at least 1, got "
            f"context={context} and horizon={horizon}"
        )
    rows = checked_rows(series, rows)
    last = rows[:, 1] - (1 if partial else horizon)
    if series.known_names:  # known covariates must exist for all steps
        last = np.minimum(last, series.offsets[1:] - horizon)
    return np.maximum(rows[:, 0], series.offsets[:-1] + context), last


def checked_rows(series: Series, rows: Rows | None) -> Rows:
    """Check ranges of rows within each series, (S, 2). None stands for all rows."""
    ends = np.stack([series.offsets[:-1], series.offsets[1:]], axis=1)
    rows = ends if rows is None else np.asarray(rows)
    if rows.shape != ends.shape or (rows < ends[:, :1]).any() or (rows > ends[:, 1:]).any():
        raise ValueError(
            f"rows must be a range within each of these {len(series)} series, as `split` gives "
            f"them, got an array of shape {rows.shape} that is not"
        )
    return rows


def too_short(series: Series, context: int, horizon: int, rows: Rows | None = None) -> np.ndarray:
    """Find the series that have no window; see `origins`.

    Returns:
        bool (S,), True for a series without a window.
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
    """All windows whose target lies in a range of rows. Their context may lie before the range.

    Args:
        series: S series.
        context: L, the number of rows before the origin, in the same series.
        horizon: H, the number of rows from the origin on.
        rows: the range of each series, such as `split(...).test`; all rows by default.
        stride: rows from one origin of a series to the next. They are counted back from the last
            possible origin, which is always included.
        short: what to do with series that have no window: "error", or "skip" to leave them out. To
            keep them, lengthen them first with `padded`. `too_short` tells which they are.
        partial: also return windows whose target begins in the range and ends beyond it. Use them
            with `direct(..., partial=True)`: then the newest rows are targets at every step ahead,
            which helps short series. If there are known covariates, they must exist for all steps
            of a window.

    Returns:
        The windows, series by series and in the order of time, as columns for `jaxops.fit`.

    Raises:
        ValueError: a series, which is named, has no window; or there are no windows at all.

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
    """Check that the rows of each window lie within its series, as `gather` requires.

    Args:
        ids: (S,), the ids of the series.
        offsets: (S + 1,), the offsets of their rows.
        windows: W windows.
        context: L, the number of rows that are read before each origin.
        horizon: H, the number of rows from the origin on. Partial windows use their `steps`
            instead.

    Raises:
        ValueError: the index of a series does not exist, or a window reaches beyond the first or
            last row of its series; the message names the series and the origin.

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
    """Lengthen short series by repeating their first row at the beginning.

    With it you can use series that are shorter than a model's context L: `padded(series, L)` to
    forecast them, and `padded(series, L + H)` to train or evaluate on them. Add covariates of the
    calendar afterwards, because the time of the first row changes.

    Args:
        series: S series. A series that is long enough does not change.
        rows: the least number of rows of each series.

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
    """Keep a range of rows of each series, such as the history up to an earlier origin.

    Args:
        series: S series.
        rows: the range of each series, with at least one row, such as `backtest(...)[0].train`.

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
    """The rows and windows of one fit of a backtest.

    Attributes:
        train: int64 (S, 2), the rows to train on: all rows before validation.
        validation: int64 (S, 2), the rows for validation: the last rows before the first origin.
        test: the windows to forecast with this fit, columns `series` and `origin`.
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
    """Make windows at the last origins of each series, with the rows that precede each fit.

    With one origin for each series this is a fixed-origin evaluation, as in M4; with more it is a
    rolling-origin evaluation (Tashman 2000). The last target ends where its series ends. Series
    that end at different times have different origins. If a model must not learn one series' future
    from another series, use `split_by_time`.

    Args:
        series: S series.
        context: L, the number of rows before each origin.
        horizon: H, the number of rows from the origin on.
        count: number of origins of each series.
        step: rows from one origin to the next; H by default, so that targets do not overlap.
        refit: number of origins forecast with one fit. The next fold trains on all rows up to its
            own first origin. By default one fit forecasts all origins.
        validation: number of rows before a fold's first origin that are kept for validation.
        short: what to do with series that are too short: "error", or "skip", which leaves them out
            of the test windows of all folds.

    Returns:
        The folds, the earliest first. Together they have S * count windows, less those of skipped
        series.

    Raises:
        ValueError: a series, which is named, is too short; or a number is out of its range.

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
