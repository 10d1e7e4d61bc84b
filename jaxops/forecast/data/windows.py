"""Windows: where they begin, which to learn from and which to score, and their rows."""

from dataclasses import replace
from itertools import pairwise
from typing import Literal, NamedTuple

import jax
import numpy as np

from jaxops.forecast.data import grid
from jaxops.forecast.data.series import Series, as_time, taken

Windows = dict[str, np.ndarray]
"""Columns `series` and `origin`, int32 (W,): the series, and the row of the first step forecast."""
Rows = np.ndarray
"""int64 (S, 2): of each series the first row of a range, and the one behind its last."""
Count = int | float | None


def gather(values: jax.Array, origin: jax.Array, start: int, stop: int) -> jax.Array:
    """The rows origin + start to origin + stop - 1 of each window.

    Pure and traceable. The rows have to be there, as they are for windows of `origins`: beyond
    the first and the last row of `values` the window is moved inwards, without a sign.

    Args:
        values: (R, C), C may be 0.
        origin: int32 (B,).
        start: of the window, relative to its origin: -L for a look-back of L rows.
        stop: its end, relative too: 0 for the look-back, H for a target of H rows.

    Returns:
        (B, stop - start, C).

    >>> import jax.numpy as jnp
    >>> gather(jnp.arange(6.0)[:, None], jnp.array([2, 4]), -1, 2)[:, :, 0]
    Array([[1., 2., 3.],
           [3., 4., 5.]], dtype=float32)
    """
    # of nine ways none was faster on a CPU; jnp.take needs up to 1.4x (clip), 1.9x (fill) the time
    return jax.vmap(lambda i: jax.lax.dynamic_slice_in_dim(values, i + start, stop - start))(origin)


class Split(NamedTuple):
    """Ranges of rows of each series: what may be forecast, not what may be looked back upon.

    Attributes:
        train: int64 (S, 2), to learn from.
        validation: to choose by.
        test: to score, once.
    """

    train: Rows
    validation: Rows
    test: Rows


def split(series: Series, train: Count, validation: Count, test: Count) -> Split:
    """Each series' first rows to learn from, the next to choose by, the next to score.

    Args:
        series: S of them.
        train: a number of rows; a share of the series' rows (a float below 1, rounded down); or
            None, what the other two leave, of one of the three.
        validation: likewise.
        test: likewise.

    Raises:
        ValueError: another number, or a series with fewer rows, which is named.

    ETT's 12, 4 and 4 months are `split(series, 8640, 2880, 2880)`; the shares common for
    electricity and traffic `split(series, 0.7, None, 0.2)`; M4's hourly series, the test rows
    behind their own, `split(series, None, 48, 48)`.

    >>> from jaxops.forecast import from_arrays
    >>> split(from_arrays(["a", "b"], [range(10), range(7)]), None, 2, 2).validation.tolist()
    [[6, 8], [13, 15]]
    """
    parts = {"train": train, "validation": validation, "test": test}
    counts = {name: _rows_of(part, name, series.lengths) for name, part in parts.items()}
    left = series.lengths - sum(count for count in counts.values() if count is not None)
    open_ended = [name for name, part in parts.items() if part is None]
    if len(open_ended) > 1:
        raise ValueError(f"{', '.join(open_ended)}: None found, of one at most wanted")
    if (left < 0).any():
        s = int(left.argmin())
        raise ValueError(
            f"series {str(series.ids[s])!r}: {series.lengths[s]} rows found, "
            f"{series.lengths[s] - left[s]} wanted for train={train}, validation={validation}, "
            f"test={test}"
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
    raise ValueError(f"{name}={part!r}: a number of rows, a share below 1 or None wanted")


def split_by_time(series: Series, validation: object, test: object, end: object = None) -> Split:
    """The same split of all series, at times: nothing learned from is later than what is scored.

    Args:
        series: S of them; a series may have no rows in a range.
        validation: the first time of validation, a date or an integer as the series' times are.
        test: the first time of test.
        end: the time behind test; that of the series' end by default.

    Raises:
        ValueError: times that do not rise, or are no times of the series.

    >>> from jaxops.forecast import from_arrays
    >>> late = from_arrays(["a", "b"], [range(4), range(4)], start=[0, 2])
    >>> split_by_time(late, 2, 4).train.tolist()
    [[0, 2], [4, 4]]
    """
    limits = [validation, test] if end is None else [validation, test, end]
    times, edges = series.times(), [series.offsets[:-1]]
    borders = [as_time(limit, "split_by_time") for limit in limits]
    if any(b.dtype.kind != times.dtype.kind or b.ndim or b != b for b in borders):
        raise ValueError(f"split_by_time: {limits} found, times such as {times[0]} wanted")
    if any(b < a for a, b in pairwise(borders)):
        raise ValueError(f"split_by_time: {limits} found, rising times wanted")
    for border in borders:
        before = np.add.reduceat((times < border).astype(np.int64), series.offsets[:-1])
        edges.append(series.offsets[:-1] + before)
    edges += [series.offsets[1:]] if end is None else []
    return Split(*(np.stack(pair, axis=1) for pair in pairwise(edges)))


def _first_last(
    series: Series, context: int, horizon: int, rows: Rows | None
) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last origin of each series; where the last is before, there is none."""
    if context < 0 or horizon < 1:
        raise ValueError(f"context={context}, horizon={horizon}: 0 or more, and 1 or more, wanted")
    rows = checked_rows(series, rows)
    return np.maximum(rows[:, 0], series.offsets[:-1] + context), rows[:, 1] - horizon


def checked_rows(series: Series, rows: Rows | None) -> Rows:
    """Ranges of rows that are of these series, (S, 2); all rows for None."""
    ends = np.stack([series.offsets[:-1], series.offsets[1:]], axis=1)
    rows = ends if rows is None else np.asarray(rows)
    if rows.shape != ends.shape or (rows < ends[:, :1]).any() or (rows > ends[:, 1:]).any():
        raise ValueError(
            f"rows: ranges of the rows of these {len(series)} series wanted, as `split` gives them"
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
) -> Windows:
    """All windows whose target lies in a range of rows; they may look back before it.

    Args:
        series: S of them.
        context: L, rows before the origin, of the same series.
        horizon: H, rows from the origin on.
        rows: the range of each series, such as `split(...).test`; all rows by default.
        stride: rows between two origins of a series, counted from its last, which is always there.
        short: what to do with series without a window: "error", or "skip" them. To keep them,
            lengthen them first (`padded`). `too_short` says which they are.

    Returns:
        The windows, series by series, in the order of time: columns for `jaxops.fit`.

    Raises:
        ValueError: a series without a window, which is named, or none with one.

    >>> from jaxops.forecast import from_arrays
    >>> two = from_arrays(["a", "b"], [range(5), range(4)])
    >>> {name: column.tolist() for name, column in origins(two, 2, 1).items()}
    {'series': [0, 0, 0, 1, 1], 'origin': [2, 3, 4, 7, 8]}
    """
    if stride < 1 or short not in ("error", "skip"):
        raise ValueError(
            f'stride={stride}, short={short!r}: 1 or more, and "error" or "skip", wanted'
        )
    first, last = _first_last(series, context, horizon, rows)
    none = last < first
    if none.all() or (none.any() and short == "error"):
        s = int(none.argmax())
        length = first[s] - series.offsets[s], last[s] + horizon - series.offsets[s]
        raise ValueError(
            f"series {str(series.ids[s])!r}: {length[1]} rows up to the end of the range found, "
            f"{length[0] + horizon} wanted for context={context} and horizon={horizon} in it; "
            f'{none.sum()} of {len(series)} series are too short; short="skip" leaves them out, '
            "`padded` lengthens them"
        )
    count = np.where(none, 0, (last - first) // stride + 1)
    of = np.repeat(np.arange(len(series), dtype=np.int32), count)
    to_come = np.repeat(np.cumsum(count), count) - 1 - np.arange(len(of))
    return {"series": of, "origin": (last[of] - stride * to_come).astype(np.int32)}


def check_windows(series: Series, windows: Windows, context: int, horizon: int) -> None:
    """Check that the rows of each window lie within its series, as `gather` wants them.

    Args:
        series: that the windows are of.
        windows: W of them, from anywhere.
        context: L, rows before each origin that will be read.
        horizon: H, rows from the origin on.

    Raises:
        ValueError: a series that is none, or a window that reaches beyond its series' first or last
            row; series and origin are named.

    >>> from jaxops.forecast import from_arrays
    >>> two = from_arrays(["a", "b"], [range(5), range(4)])
    >>> check_windows(two, origins(two, 2, 1), 2, 1)
    >>> check_windows(two, origins(two, 2, 1), 3, 1)
    Traceback (most recent call last):
    ValueError: windows: origin 2 of series 'a' (rows 0 to 4) found, 3 to 4 wanted ...
    """
    of, origin = windows["series"], windows["origin"]
    none = (of < 0) | (of >= len(series))
    if none.any():
        found = of[none.argmax()]
        raise ValueError(f"windows: series {found} found, 0 to {len(series) - 1} wanted")
    first, last = series.offsets[of] + context, series.offsets[of + 1] - horizon
    beyond = (origin < first) | (origin > last)
    if beyond.any():
        w = int(beyond.argmax())
        begin, end = series.offsets[of[w] : of[w] + 2]
        raise ValueError(
            f"windows: origin {origin[w]} of series {str(series.ids[of[w]])!r} (rows {begin} to "
            f"{end - 1}) found, {first[w]} to {last[w]} wanted for context={context} and "
            f"horizon={horizon}; {beyond.sum()} of {len(of)} windows reach beyond their series"
        )


def padded(series: Series, rows: int) -> Series:
    """The series, those with fewer rows lengthened at their beginning by repeats of the first row.

    So a model can be given series that are shorter than its look-back: `padded(series, L)` to
    forecast them, `padded(series, L + H)` to learn from them or score them too. Give covariates of
    the calendar afterwards, for the time of the first row moves.

    Args:
        series: S of them; those long enough stay as they are.
        rows: each has at least.

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
    """The series with only some of their rows, such as a history up to an earlier origin.

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
        raise ValueError(f"rows: series {empty!r}: none found, at least 1 wanted")
    return taken(series, np.arange(len(series)), rows[:, 0], rows[:, 1])


class Fold(NamedTuple):
    """One fit of a backtest.

    Attributes:
        train: int64 (S, 2), rows to learn from: all before validation.
        validation: int64 (S, 2), rows to choose by: the last before the first origin.
        test: windows to forecast with this fit, `series` and `origin`.
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
    """Forecasts from the last origins of each series, as they would have been made then.

    One origin a series is a fixed origin, as in M4; more are a rolling one (Tashman 2000). The last
    target ends where its series does. Series that end at different times have different origins:
    where one must not learn from the other's future, use `split_by_time`.

    Args:
        series: S of them.
        context: L.
        horizon: H.
        count: origins a series.
        step: rows from one origin to the next; H by default, so that targets do not overlap.
        refit: origins that a fit serves, then the next fold learns from all rows up to its own
            first origin; one fit for all by default.
        validation: rows before a fold's first origin that are kept to choose by.
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
            f"count={count}, step={step}, refit={refit}, validation={validation}: 1 or more wanted,"
            " of validation 0 or more"
        )
    tested = horizon + step * (count - 1)
    ends = series.offsets[1:]
    rows = np.stack([np.maximum(ends - tested, series.offsets[:-1]), ends], axis=1)
    lacks = series.lengths < context + validation + tested
    if lacks.all() or (lacks.any() and short == "error"):
        s = int(lacks.argmax())
        raise ValueError(
            f"series {str(series.ids[s])!r}: {series.lengths[s]} rows found, "
            f"{context + validation + tested} wanted: context={context}, "
            f"validation={validation}, and {tested} for count={count} origins every {step} and "
            f'horizon={horizon}; {lacks.sum()} of {len(series)} series are too short; short="skip" '
            "leaves them out, `padded` lengthens them"
        )
    rows[lacks] = ends[lacks, None]  # no window
    windows = origins(series, context, horizon, rows, stride=step, short="skip")
    of, origin = (windows[name].reshape(-1, count) for name in ("series", "origin"))
    folds = []
    for first in range(0, count, refit):
        until = series.offsets[1:] - horizon - step * (count - 1 - first)
        until = np.maximum(until, series.offsets[:-1])
        edges = (series.offsets[:-1], np.maximum(until - validation, series.offsets[:-1]), until)
        test = {
            "series": of[:, first : first + refit].reshape(-1),
            "origin": origin[:, first : first + refit].reshape(-1),
        }
        folds.append(Fold(np.stack(edges[:2], axis=1), np.stack(edges[1:], axis=1), test))
    return tuple(folds)
