"""`corrupt`: rows with a corruption of a kind and level; `corrupted`: what it costs a model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxops import _table
from jaxops._optional import require
from jaxops.data.columns import frame_of
from jaxops.explain.tables import frames
from jaxops.fairness.rates import wilson
from jaxops.model.finished import Model, frame
from jaxops.robustness.cells import SERIES, TABLES, corrupted_table
from jaxops.robustness.images import IMAGES, corrupted_images
from jaxops.robustness.labelled import rows_of
from jaxops.robustness.typos import TYPOS, mistyped
from jaxops.trust.intervals import Interval, interval
from jaxops.trust.page import grid
from jaxops.uncertainty.answers import numbers_of, seen, several_of, values_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (*IMAGES, *TABLES, *SERIES, *TYPOS)
LEVELS = (1, 2, 3, 4, 5)


def corrupt(
    rows: Any,
    kind: str,
    level: int,
    seed: int = 0,
    columns: Sequence[str] | None = None,
    by: str | None = None,
) -> Any:
    """Rows with a corruption. Equal arguments give equal rows.

    | kind | what it does, at the levels 1 to 5 |
    |---|---|
    | images | |
    | "gaussian_noise" | normal noise, of 0.04 to 0.1 of the range |
    | "shot_noise" | Poisson noise of 500 to 50 photons |
    | "impulse_noise" | 1 % to 7 % of the values become black or white |
    | "gaussian_blur" | by 0.4 to 1 pixels |
    | "motion_blur" | by 1 to 3 pixels along a direction in ±45° |
    | "contrast" | multiplied by 0.75 to 0.15 |
    | "brightness" | raised by 0.05 to 0.3 of the range |
    | "pixelate" | to 0.95 to 0.65 of the size and back |
    | "rotation" | by 5° to 30°, to either side |
    | "occlusion" | a black box of 2 % to 25 % of the area |
    | tables | |
    | "outliers" | 1 % to 20 % of the numbers move by 10 robust standard deviations |
    | "missing" | 5 % to 50 % of the cells are empty |
    | series | |
    | "spikes" | 1 % to 10 % of the values move by 10 robust standard deviations of their series |
    | "gaps" | a run of 5 % to 30 % of a series is empty; not its first and last value |
    | texts | in 5 % to 50 % of the words |
    | "swap", "drop", "double" | two letters change places, one is lost, one is there twice |
    | "neighbour" | a letter of a key beside |

    The levels of noise, Gaussian blur, contrast, brightness and pixels are those of CIFAR-10-C;
    pixels are counted for images of 32 by 32, and grow with the image. The others are our own. A
    robust standard deviation is 1.4826 times the median absolute deviation, or the standard
    deviation where that is 0. Images change on the device, the rest on the host.

    Args:
        rows: images, uint8 (N, H, W, C) or (N, H, W), or one such array by name; a table: a file, a
            frame, arrays by name, or float (N, F); or texts: a list, or a table with `columns`.
            Series are a table whose rows are in the order of time.
        kind: see the table.
        level: 1 to 5.
        seed: of the draws.
        columns: of a table, the columns that change; by default all with numbers, for "missing"
            all.
        by: of series, the column of their ids; without it the table is one series.

    Returns:
        Images and lists as they were given; a table as a pandas frame.

    Raises:
        ValueError: another kind or level; rows of another form; columns that are missing, or that
            are no numbers; columns for images or for a list of texts.

    References:
        Hendrycks and Dietterich 2019, arXiv:1903.12261.

    >>> corrupt(["please cancel my transfer"], "drop", 5)
    ['please cancl my transfer']
    >>> corrupt(np.ones((3, 2, 2, 1), np.uint8), "contrast", 3).shape
    (3, 2, 2, 1)
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if level not in LEVELS:
        raise ValueError(f"level must be in 1 to 5, got {level!r}")
    name = _image_column(rows)
    listed = isinstance(rows, list | tuple)
    if (columns is not None or by is not None) and (kind in IMAGES or listed):
        raise ValueError(f"columns and by must be None for {kind} of this form, got some")
    if by is not None and kind not in SERIES:
        raise ValueError(f"by must be None for {kind}, got {by!r}")
    if kind in IMAGES:
        if name is None:
            raise ValueError(
                f"rows must be images, uint8 (N, H, W, C) or (N, H, W), for {kind}, got "
                f"{type(rows).__name__}; read files first"
            )
        changed = corrupted_images(rows[name] if name else np.asarray(rows), kind, level, seed)
        return {**rows, name: changed} if name else changed
    if kind in TYPOS:
        return _texts(rows, kind, level, seed, columns)
    if isinstance(rows, np.ndarray) and rows.ndim == 2 and rows.dtype.kind == "f":
        pd = require("pandas", extra="data")
        table = pd.DataFrame(rows, columns=[str(place) for place in range(rows.shape[1])])
        return corrupted_table(table, kind, level, seed, columns, by).to_numpy(rows.dtype)
    return corrupted_table(rows, kind, level, seed, columns, by)


def _image_column(rows: Any) -> str | None:
    """The name of the images in a mapping, "" for an array of them, else None."""

    def are_images(value: Any) -> bool:
        return getattr(value, "dtype", None) == np.uint8 and np.ndim(value) in (3, 4)

    if isinstance(rows, Mapping):
        names = [name for name, value in rows.items() if are_images(value)]
        return names[0] if len(names) == 1 else None
    return "" if are_images(rows) else None


def _texts(rows: Any, kind: str, level: int, seed: int, columns: Sequence[str] | None) -> Any:
    if isinstance(rows, list | tuple):
        wrong = next((type(one).__name__ for one in rows if not isinstance(one, str)), None)
        if wrong is not None:
            raise ValueError(f"rows must be texts for {kind}, got {wrong}")
        return mistyped(rows, kind, level, seed)
    if columns is None:
        raise ValueError(f"columns must name the texts of a table for {kind}, got None")
    table = frame_of(rows)[1].copy()
    for name in columns:
        if name not in table:
            raise ValueError(f"rows must have a column {name!r}, got {', '.join(table)}")
        table[name] = mistyped(table[name].astype(str).tolist(), kind, level, seed)
    return table


class Corrupted(NamedTuple):
    """What corruptions of N rows cost a model; of `corrupted`.

    Attributes:
        metric: "accuracy", the share of right answers, or "absolute error", in the unit of the
            labels.
        clean: float64 (N,), the metric of each row as it is.
        values: (kind, level) -> float64 (N,), of the corrupted row.
        coverage: of the intervals.

    >>> one = Corrupted("accuracy", np.ones(50), {("drop", 1): np.arange(50) % 2.0})
    >>> [round(number, 2) for number in one.interval("drop", 1)]
    [0.5, 0.37, 0.63]
    >>> [round(number, 2) for number in one.change("drop", 1)]
    [-0.5, -0.64, -0.36]
    """

    metric: str
    clean: np.ndarray
    values: dict[tuple[str, int], np.ndarray]
    coverage: float = 0.95

    def interval(self, kind: str | None = None, level: int | None = None) -> Interval:
        """The mean and its interval over the rows, of a kind and level; of neither, of clean rows.

        Shares have Wilson's interval, errors that of the bootstrap.
        """
        values = self.clean if kind is None or level is None else self.values[kind, level]
        if self.metric == "accuracy" and np.isin(values, (0, 1)).all():
            low, high = wilson(values.sum(), np.array(len(values)), self.coverage)
            return Interval(float(values.mean()), float(low), float(high))
        return interval(values, coverage=self.coverage)

    def change(self, kind: str, level: int) -> Interval:
        """How much more the metric is than of the same rows when clean, with its interval."""
        return interval(self.values[kind, level] - self.clean, coverage=self.coverage)

    def rows(self) -> list[dict[str, Any]]:
        """A line for each kind and level: the metric and its change, with intervals."""
        clean = self.interval()
        lines = [{"kind": "clean", "level": 0, self.metric: clean.mean, **_ends(clean)}]
        for kind, level in self.values:
            found, change = self.interval(kind, level), self.change(kind, level)
            line = {"kind": kind, "level": level, self.metric: found.mean, **_ends(found)}
            lines.append({**line, "change": change.mean, **_ends(change, "change ")})
        return lines

    def frame(self) -> Any:
        """The lines of `rows` as a pandas frame."""
        lines = self.rows()
        return frame({name: [line.get(name) for line in lines] for name in lines[-1]})

    def __str__(self) -> str:
        return _table.table(self.rows())

    def plot(self) -> "Figure":
        """A panel for each kind: the metric by level, with intervals; level 0 is clean."""
        kinds: dict[str, list[tuple[int, Interval]]] = {}
        for kind, level in self.values:
            start = kinds.setdefault(kind, [(0, self.interval())])
            start.append((level, self.interval(kind, level)))

        def draw(axes: Any, points: list[tuple[int, Interval]]) -> None:
            level, found = zip(*points, strict=True)
            mean, low, high = np.array(found).T
            ends = np.maximum([mean - low, high - mean], 0)
            axes.errorbar(level, mean, ends, marker=".", capsize=2)
            axes.set(xlabel="level", ylabel=self.metric, xticks=level)

        return grid(kinds, draw)


def _ends(found: Interval, before: str = "") -> dict[str, float]:
    return {f"{before}low": found.low, f"{before}high": found.high}


def corrupted(
    model: Model,
    rows: Any,
    labels: Any,
    *,
    kinds: Sequence[str] | None = None,
    levels: Sequence[int] = LEVELS,
    columns: Sequence[str] | None = None,
    by: str | None = None,
    seed: int = 0,
    coverage: float = 0.95,
) -> Corrupted:
    """What corruptions of raw rows cost a finished model, by kind and level, with intervals.

    The model predicts each corrupted copy by its own reader, as it would in use.

    Args:
        model: of any room, whose answers are classes, labels, numbers, quantiles or forecasts.
        rows: N rows as `model.predict` takes them and as `corrupt` takes them.
        labels: (N,) names of classes or numbers; of several labels for each row see
            `jaxops.uncertainty.conformal`; of forecasts the values (S, H) or (S, H, C), NaN where
            unknown.
        kinds: of `corrupt`; by default all that go with the rows.
        levels: some of 1 to 5.
        columns: of a table, the columns that change; by default those that `corrupt` takes, but for
            the reader's ids, times and labels.
        by: the column of the ids of series; by default the reader's.
        seed: of the draws.
        coverage: of the intervals.

    Returns:
        `Corrupted`. Of classes and labels it has the accuracy (with several labels the share of a
        row's labels that are told rightly), of numbers and forecasts the mean absolute error, of
        quantiles that of the one nearest to the median.

    Raises:
        ValueError: see `corrupt`; labels that do not fit; rows that the model refuses, such as
            missing cells if it has learned from none.

    >>> from jaxops import tabular
    >>> table = {"age": np.arange(80.0) % 40, "left": np.arange(80) % 40 < 20}
    >>> model = tabular.fit(table, tabular.MLP((4,)), label="left", epochs=1, progress=False)
    >>> found = corrupted(model, table, table["left"], kinds=["outliers"], levels=[1, 5])
    >>> found.metric, [*found.values]
    ('accuracy', [('outliers', 1), ('outliers', 5)])
    """
    kinds = [*kinds_of(model, rows)] if kinds is None else [*kinds]
    for name in kinds:  # before anything compiles
        if name not in KINDS:
            raise ValueError(f"kinds must be among {', '.join(KINDS)}, got {name!r}")
    if not kinds:
        raise ValueError("kinds must name at least one, got none")
    check_levels(levels)
    if isinstance(rows, str | Path) and {*kinds} <= {*TABLES, *SERIES}:
        rows = rows_of(model, rows)
    metric, clean = scored(model, rows, labels)
    values = {}
    for kind in kinds:
        chosen, series = _places(model, rows, kind, columns, by)
        for level in levels:
            changed = corrupt(rows, kind, level, seed, chosen, series)
            values[kind, level] = scored(model, changed, labels)[1]
    return Corrupted(metric, clean, values, coverage)


def check_levels(levels: Sequence[int]) -> None:
    """Raise `ValueError` for levels other than some of 1 to 5."""
    if not len(levels) or not {*levels} <= {*LEVELS}:
        raise ValueError(f"levels must be some of 1 to 5, got {[*levels]}")


def scored(model: Model, rows: Any, labels: Any) -> tuple[str, np.ndarray]:
    """The metric of `Corrupted`, and its value of each row, float64 (N,)."""
    answer = model.predict(rows)
    if hasattr(answer, "mean") and hasattr(answer, "times"):  # forecasts
        target = np.asarray(labels, np.float64)
        target = target[..., None] if target.ndim == answer.mean.ndim - 1 else target
        if target.shape != answer.mean.shape:
            raise ValueError(f"labels must have shape {answer.mean.shape}, got {target.shape}")
        return "absolute error", np.nanmean(np.abs(answer.mean - target), axis=(1, 2))
    told = seen(answer, getattr(model.task, "classes", ()))
    count = len(told.ids)
    if told.kind == "classes":
        right = told.outputs.argmax(1) == numbers_of(labels, told.names, count)
        return "accuracy", right.astype(np.float64)
    if told.kind == "labels":
        by_name = isinstance(answer.labels[0], tuple)  # else each label has two classes
        given = np.array([np.isin(told.names, one) for one in answer.labels] if by_name else
                         told.outputs >= 0.5)  # fmt: skip
        return "accuracy", (given == several_of(labels, told.names, count)).mean(1)
    place = int(np.argmin(np.abs(np.array(told.levels) - 0.5))) if told.levels else 0
    predicted = told.outputs[:, place] if told.levels else told.outputs
    return "absolute error", np.abs(predicted - values_of(labels, count))


def kinds_of(model: Model, rows: Any) -> tuple[str, ...]:
    """The kinds of corruption that go with the rows of a model.

    >>> kinds_of(Model("a closed form"), ["lost my card"])
    ('swap', 'drop', 'double', 'neighbour')
    """
    if _image_column(rows) is not None:
        return tuple(IMAGES)
    if isinstance(rows, list | tuple) or isinstance(getattr(model.reader, "text", None), str):
        return tuple(TYPOS)
    return tuple(SERIES if hasattr(model.reader, "horizon") else TABLES)


def _places(
    model: Model, rows: Any, kind: str, columns: Sequence[str] | None, by: str | None
) -> tuple[Sequence[str] | None, str | None]:
    """The columns that change, and the column of the ids of series."""
    reader = model.reader
    if kind in IMAGES or isinstance(rows, list | tuple | np.ndarray):
        return columns, by
    if kind in TYPOS:
        text = getattr(reader, "text", None)
        return ([text] if columns is None and isinstance(text, str) else columns), by
    if kind in SERIES and by is None and getattr(reader, "layout", "long") == "long":
        by = getattr(reader, "id", None)
    if columns is None:
        encoder = getattr(reader, "encoder", None)
        parts = [(reader, "id"), (reader, "time"), (reader, "label"), (encoder, "label")]
        kept = {getattr(owner, name, None) for owner, name in parts}
        table = frames.frame_of(rows)
        columns = [
            name
            for name, column in table.items()
            if name not in kept and (kind == "missing" or column.dtype.kind in "iuf")
        ]
    return columns, by
