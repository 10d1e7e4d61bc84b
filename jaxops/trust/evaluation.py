"""The scores of a model on a test set: a value for each unit, so that each figure has an interval.

A unit is the thing that was sampled: a row, a user, or a window of a series. All rooms use the same
`Evaluation`. `table` compares several models on the same units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from jaxops import _table
from jaxops._optional import require
from jaxops.trust.comparisons import side_by_side
from jaxops.trust.intervals import Interval, Paired, block_interval, interval, paired

BLOCKS = 20  # the smallest number of independent units for an interval
RESAMPLES = 500  # number of resamples of the units, for a figure that is not a mean


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of a model on N units.

    Attributes:
        unit: the kind of unit: "row", "user" or "window".
        ids: (N,) the units' ids.
        values: metric -> (N,), or (N, H) for H steps ahead; NaN where it is not defined for a unit.
        wholes: metric -> a function that computes the figure from indices of units, for a figure
            that is not a mean over units, such as the area under the ROC curve.
        smaller: the metrics for which a smaller value is better.
        neutral: the metrics for which neither direction is better, such as coverage.
        bare: those of `wholes` that have no interval because they grow with the number of units,
            such as the share of a catalogue that is shown.
        block: number of consecutive units that are correlated; 1 for independent units.
        parts: additional arrays of N rows, such as the predictions.

    >>> one = Evaluation("row", np.arange(40), {"accuracy": np.arange(40) % 4 > 0})
    >>> print(one)
    | metric   | value  | 95 % interval    |
    |----------|--------|------------------|
    | accuracy | 0.7500 | [0.6000, 0.8750] |
    >>> other = Evaluation("row", np.arange(40), {"accuracy": np.arange(40) % 2 > 0})
    >>> one.paired(other, "accuracy").difference
    0.25
    """

    unit: str
    ids: np.ndarray
    values: dict[str, np.ndarray]
    wholes: dict[str, Callable[[np.ndarray], float]] = field(default_factory=dict)
    smaller: frozenset[str] = frozenset()
    neutral: frozenset[str] = frozenset()
    bare: frozenset[str] = frozenset()
    block: int = 1
    parts: dict[str, np.ndarray] = field(default_factory=dict)
    _drawn: dict[Any, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def figures(self) -> dict[str, float]:
        """Metric -> the mean over the units, or the figure computed from all units."""
        everything = np.arange(len(self))
        known = {name: values[~np.isnan(values)] for name, values in self.values.items()}
        means = {name: float(x.mean()) if x.size else np.nan for name, x in known.items()}
        return means | {name: whole(everything) for name, whole in self.wholes.items()}

    def interval(self, metric: str, coverage: float = 0.95, step: int | None = None) -> Interval:
        """A figure with its bootstrap interval, which describes the sampling of the units.

        Args:
            metric: a name in `figures`.
            coverage: coverage of the interval.
            step: the step ahead, from 0, for a metric with steps; None for the mean over steps.

        Returns:
            The interval. Its bounds are NaN for a metric in `bare`, and if there are fewer than 20
            independent units or blocks.

        Raises:
            ValueError: a metric or a step that is not there.
        """
        if metric in self.wholes:
            if step is not None:
                raise ValueError(f"step must be None for {metric!r}, got {step}")
            figure = self.wholes[metric](np.arange(len(self)))
            if metric in self.bare or len(self) // self.block < BLOCKS:
                return Interval(figure, np.nan, np.nan)
            return Interval(figure, *_bounds(self._resampled(metric, self.block), coverage))
        values = self._units(metric, step)
        values = values[np.isfinite(values)]
        if len(values) // self.block < BLOCKS:
            return Interval(float(values.mean()), np.nan, np.nan)
        return _interval(values, self.block, coverage)

    def paired(self, other: "Evaluation", metric: str, coverage: float = 0.95) -> Paired:
        """The difference from another model on the same units, with its interval and p-value.

        Args:
            other: an evaluation of the same units.
            metric: a name in `figures` of both.
            coverage: coverage of the interval.

        Raises:
            ValueError: the units differ, one model does not have the metric, or there are fewer
                than 20 independent units or blocks.
        """
        if not same_units([self, other]):
            raise ValueError(
                f"other must have the same {len(self):,} units, got {len(other):,} units"
            )
        if len(self) // self.block < BLOCKS:
            raise ValueError(f"units must be at least {BLOCKS}, got {len(self) // self.block}")
        if metric in self.wholes and metric in other.wholes:
            everything = np.arange(len(self))
            difference = self.wholes[metric](everything) - other.wholes[metric](everything)
            drawn = self._resampled(metric, self.block) - other._resampled(metric, self.block)
            beyond = min((drawn <= 0).mean(), (drawn >= 0).mean())
            p = min(1.0, max(2 * beyond, 1 / (RESAMPLES + 1)))
            return Paired(difference, *_bounds(drawn, coverage), float(p))
        a, b = self._units(metric), other._units(metric)
        both = np.isfinite(a) & np.isfinite(b)
        if self.block == 1:
            return paired(a[both], b[both], coverage=coverage)
        mean, low, high = _interval((a - b)[both], self.block, coverage)
        return Paired(mean, low, high, np.nan)

    def part(self, units: np.ndarray) -> "Evaluation":
        """The evaluation of some of the units, which a mask (N,) or their indices select."""
        rows = np.arange(len(self))[units]
        wholes: dict[str, Callable[[np.ndarray], float]] = {
            name: lambda some, whole=whole: whole(rows[some])  # type: ignore[misc]
            for name, whole in self.wholes.items()
        }
        return replace(
            self,
            ids=self.ids[rows],
            values={name: values[rows] for name, values in self.values.items()},
            parts={name: values[rows] for name, values in self.parts.items()},
            wholes=wholes,
        )

    def frame(self) -> Any:
        """A pandas frame: for each unit its id, and each metric's value or mean over steps."""
        pd = require("pandas", extra="data")

        columns = {name: self._units(name) for name in self.values}
        return pd.DataFrame({self.unit: self.ids, **columns})

    def __str__(self) -> str:
        rows = []
        for metric in self.figures():
            value, low, high = self.interval(metric)
            bounds = f"[{low:.4f}, {high:.4f}]" if np.isfinite(low) else "[-]"
            rows.append({"metric": metric, "value": f"{value:.4f}", "95 % interval": bounds})
        return _table.table(rows)

    def _resampled(self, metric: str, block: int) -> np.ndarray:
        """A figure of `wholes` for each resample of the units, kept: every comparison needs it."""
        whole = self.wholes[metric]
        if (whole, block) not in self._drawn:
            samples = _samples(len(self), block)
            self._drawn[whole, block] = np.array([whole(rows) for rows in samples])
        return self._drawn[whole, block]

    def _units(self, metric: str, step: int | None = None) -> np.ndarray:
        if metric not in self.values:
            known = [*self.values, *self.wholes]
            raise ValueError(f"metric must be one of {known}, got {metric!r}")
        values = np.asarray(self.values[metric], np.float64)
        if step is not None:
            steps = values.shape[1] if values.ndim == 2 else 0
            if not 0 <= step < steps:
                raise ValueError(f"step must be in [0, {steps}), got {step}")
            return values[:, step]
        return values.mean(1) if values.ndim == 2 else values


def of_classes(
    unit: str, ids: np.ndarray, probabilities: np.ndarray, target: np.ndarray
) -> Evaluation:
    """The scores of a classifier: accuracy, log loss, macro F1, and for two classes AUC.

    Args:
        unit: the kind of unit.
        ids: (N,) the units' ids.
        probabilities: (N, C).
        target: (N,) integers in [0, C).

    >>> one = of_classes("row", np.arange(2), np.array([[0.5, 0.5], [0.2, 0.8]]), np.array([1, 1]))
    >>> {name: round(value, 4) for name, value in one.figures().items()}
    {'accuracy': 0.5, 'log_loss': 0.4581, 'macro_f1': 0.3333, 'auc': nan}
    """
    p, target = np.asarray(probabilities, np.float64), np.asarray(target)
    told = p.argmax(1)
    own = np.clip(p[np.arange(len(p)), target], 1e-15, None)
    count = p.shape[1]

    def macro_f1(rows: np.ndarray) -> float:
        right = target[rows][told[rows] == target[rows]]
        hits, have, said = (
            np.bincount(x, minlength=count) for x in (right, target[rows], told[rows])
        )
        there = have + said > 0  # only classes that occur, as in scikit-learn
        return float((2 * hits[there] / (have + said)[there]).mean())

    values = {"accuracy": (told == target).astype(float), "log_loss": -np.log(own)}
    wholes: dict[str, Callable[[np.ndarray], float]] = {"macro_f1": macro_f1}
    wholes |= {"auc": auc_of(p[:, -1], target)} if count == 2 else {}
    parts = {"probabilities": p, "target": target}
    return Evaluation(unit, ids, values, wholes, frozenset({"log_loss"}), parts=parts)


def of_labels(
    unit: str,
    ids: np.ndarray,
    probabilities: np.ndarray,
    target: np.ndarray,
    threshold: float = 0.5,
) -> Evaluation:
    """The scores of a classifier that gives each unit several labels, or none.

    "accuracy" counts the units of which every label is right, "log_loss" is the mean over the
    labels, "macro_f1" that of the labels' F1, and "micro_f1" the F1 of all labels together.

    Args:
        unit: what a unit is.
        ids: (N,) the units' ids.
        probabilities: (N, L), of each label.
        target: (N, L) of 0 and 1.
        threshold: the probability from which a unit is given a label.

    >>> p, target = np.array([[0.9, 0.5], [0.2, 0.4]]), np.array([[1, 1], [0, 1]])
    >>> one = of_labels("row", np.arange(2), p, target)
    >>> {name: round(value, 4) for name, value in one.figures().items()}
    {'accuracy': 0.5, 'log_loss': 0.4845, 'macro_f1': 0.8333, 'micro_f1': 0.8}
    """
    p, target = np.asarray(probabilities, np.float64), np.asarray(target) > 0
    told = p >= threshold

    def f1(rows: np.ndarray, axis: int | None) -> Any:
        both = (told[rows].astype(int) + target[rows]).sum(axis)
        return 2 * (told[rows] & target[rows]).sum(axis) / np.maximum(both, 1)

    own = np.clip(np.where(target, p, 1 - p), 1e-15, None)
    values = {"accuracy": (told == target).all(1).astype(float), "log_loss": -np.log(own).mean(1)}
    wholes: dict[str, Callable[[np.ndarray], float]] = {
        "macro_f1": lambda rows: float(f1(rows, 0).mean()),
        "micro_f1": lambda rows: float(f1(rows, None)),
    }
    smaller = frozenset({"log_loss"})
    return Evaluation(unit, ids, values, wholes, smaller, parts={"probabilities": p})


def auc_of(p: np.ndarray, target: np.ndarray) -> Callable[[np.ndarray], float]:
    """The area under the ROC curve of some units, as one of `Evaluation.wholes`.

    It is the share of (negative, positive) pairs in the right order, equal ones counted half.

    Args:
        p: (N,) scores, sorted here once, so that a resample takes no sorting.
        target: (N,) of 0 and 1.

    >>> auc_of(np.array([0.2, 0.9, 0.4]), np.array([0, 1, 1]))(np.arange(3))
    1.0
    """
    levels, level = np.unique(p, return_inverse=True)

    def auc(rows: np.ndarray) -> float:
        negative, positive = (
            np.bincount(level[rows][target[rows] == label], minlength=len(levels))
            for label in (0, 1)
        )
        right = (positive * (negative.cumsum() - negative / 2)).sum()
        pairs = float(negative.sum()) * positive.sum()
        return float(right / pairs) if pairs else np.nan

    return auc


def same_units(evaluations: Sequence[Evaluation]) -> bool:
    """Whether evaluations are of the same units in the same order."""
    first = evaluations[0]
    return all(one.unit == first.unit and np.array_equal(one.ids, first.ids) for one in evaluations)


def compare(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    coverage: float = 0.95,
) -> list[dict[str, str]]:
    """Evaluations side by side, as rows for `jaxops.report.table`.

    Each figure is followed by its interval, or by [-] if there are too few units for one. The best
    value of a metric is in bold if the interval of its paired difference from every other row
    excludes 0. (Whether two intervals overlap is not a test, because the rows share their units.)
    If the rows have different units, the table shows the numbers of units, and nothing is in bold.

    Args:
        evaluations: name -> evaluation.
        metrics: names of `Evaluation.figures`; by default all of the first evaluation.
        coverage: coverage of the intervals.

    Raises:
        ValueError: there is no evaluation, or one does not have a metric.

    >>> ids, hit = np.arange(40), np.ones(40)
    >>> both = {"good": Evaluation("row", ids, {"hit": hit})}
    >>> both["bad"] = Evaluation("row", ids, {"hit": 0 * hit})
    >>> [row["hit"] for row in compare(both)]
    ['**1.0000** [1.0000, 1.0000]', '0.0000 [0.0000, 0.0000]']
    """
    every = list(evaluations.values())
    if not every:
        raise ValueError("evaluations must hold at least 1, got none")
    same = same_units(every)

    def best(metric: str) -> int | None:
        neutral = any(metric in one.neutral for one in every)
        few = any(len(one) // one.block < BLOCKS for one in every)
        known = [figure[metric] for figure in figures.values()]
        if len(every) < 2 or neutral or few or not same or not np.isfinite(known).all():
            return None
        sign = -1 if metric in every[0].smaller else 1
        place = int(np.argmax(sign * np.array(known)))
        pairs = [every[place].paired(other, metric, coverage) for other in every]
        bounds = [pair.low if sign > 0 else -pair.high for pair in pairs]
        return place if all(bound > 0 for i, bound in enumerate(bounds) if i != place) else None

    def bounds(name: Any, metric: str) -> str:
        figure, low, high = evaluations[name].interval(metric, coverage)
        if not np.isfinite(figure):
            return ""
        return f" [{low:.4f}, {high:.4f}]" if np.isfinite(low) else " [-]"

    figures = {name: one.figures() for name, one in evaluations.items()}
    rows = side_by_side(figures, metrics, best, bounds)
    if same:
        return rows
    return [
        {"model": row["model"], f"{one.unit}s": f"{len(one):,}", **row}
        for row, one in zip(rows, every, strict=True)
    ]


def table(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    coverage: float = 0.95,
) -> str:
    """The rows of `compare` as an aligned Markdown table.

    Args:
        evaluations: the evaluations, see `compare`.
        metrics: the metrics, see `compare`.
        coverage: the coverage, see `compare`.

    >>> print(table({"good": Evaluation("row", np.arange(40), {"hit": np.ones(40)})}))
    | model | hit                     |
    |-------|-------------------------|
    | good  | 1.0000 [1.0000, 1.0000] |
    """
    return _table.table(compare(evaluations, metrics, coverage))


def _interval(values: np.ndarray, block: int, coverage: float) -> Interval:
    if block > 1:
        return block_interval(values, block, coverage=coverage)
    return interval(values, coverage=coverage)


def _bounds(drawn: np.ndarray, coverage: float) -> tuple[float, float]:
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) == 0:  # never defined, such as the area under the ROC curve of one class
        return np.nan, np.nan
    low, high = np.quantile(drawn, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def _samples(count: int, block: int) -> Any:
    """Samples of the units with replacement, in circular blocks, the same for every model."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        starts = rng.integers(0, count, -(-count // block))
        yield ((starts[:, None] + np.arange(block)) % count).ravel()[:count]
