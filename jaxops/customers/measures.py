"""How good values and churn scores of customers are: order, deciles and calibration."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy

from jaxops.model.exported.tables import none_such
from jaxops.model.finished import frame
from jaxops.trust._figures import (
    BLUE,
    GREY,
    ORANGE,
    PathLike,
    new_figure,
    open_frame,
    save_figure,
)
from jaxops.trust.evaluation import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESAMPLES = 500  # of the customers


def normalized_gini(expected: Any, actual: Any) -> float:
    """The Gini coefficient of the actual values in the expected order, over that in the best.

    It is 1 for the right order, 0 in the mean for a random one; equal expectations share their
    place. For outcomes 0 and 1 it is 2 AUC - 1.

    Args:
        expected: (N,).
        actual: (N,), at least 0.

    Returns:
        NaN where the actual values are equal.

    Raises:
        ValueError: other shapes, or values that are not finite.

    References:
        Wang, Liu and Miao 2019, arXiv:1912.07753.

    >>> normalized_gini([1, 2, 3, 4], [0, 5, 0, 9])
    0.6875
    """
    expected, actual = pair(expected=expected, actual=actual)
    best = (scipy.stats.rankdata(actual) - (len(actual) + 1) / 2) @ actual
    got = (scipy.stats.rankdata(expected) - (len(actual) + 1) / 2) @ actual
    return float(got / best) if best > 0 else np.nan


def spearman(expected: Any, actual: Any) -> float:
    """The correlation of the ranks; equal values share a rank. NaN where all of a side are equal.

    Args:
        expected: (N,).
        actual: (N,).

    Raises:
        ValueError: see `normalized_gini`.

    >>> round(spearman([1, 2, 3, 4], [0, 5, 0, 9]), 4)
    0.6325
    """
    a, b = (scipy.stats.rankdata(x) for x in pair(expected=expected, actual=actual))
    a, b = a - a.mean(), b - b.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 0 else np.nan


def value_scores(ids: Any, expected: Any, actual: Any) -> Evaluation:
    """The scores of expected values of customers, of any model.

    Args:
        ids: (N,) the customers.
        expected: (N,) money.
        actual: (N,) money.

    Returns:
        A unit is a customer. "mae"; and the wholes "spearman", "gini" (see `normalized_gini`),
        "total_error" (expected less actual total) and "total_ratio" (expected over actual).

    Raises:
        ValueError: see `normalized_gini`.

    >>> scored = value_scores(np.arange(3), [10.0, 2.0, 0.0], [9.0, 0.0, 0.0])
    >>> {name: round(value, 3) for name, value in scored.figures().items()}
    {'mae': 1.0, 'spearman': 0.866, 'gini': 1.0, 'total_error': 3.0, 'total_ratio': 1.333}
    """
    expected, actual = pair(expected=expected, actual=actual)
    return Evaluation(
        "customer",
        np.asarray(ids),
        {"mae": np.abs(expected - actual)},
        {
            "spearman": lambda rows: spearman(expected[rows], actual[rows]),
            "gini": lambda rows: normalized_gini(expected[rows], actual[rows]),
            "total_error": lambda rows: float((expected[rows] - actual[rows]).sum()),
            "total_ratio": lambda rows: _ratio(expected[rows].sum(), actual[rows].sum()),
        },
        smaller=frozenset({"mae"}),
        neutral=frozenset({"total_error", "total_ratio"}),
        parts={"expected": expected, "actual": actual},
    )


def _ratio(a: float, b: float) -> float:
    return float(a / b) if b else np.nan


class Deciles(NamedTuple):
    """Customers in groups of equal number, by decreasing expectation.

    Attributes:
        rows: (D,) customers of each group.
        expected: (D,) the mean expectation.
        actual: (D,) the mean of what came.
        low: (D,) bound of its 95 % bootstrap interval; NaN for fewer than 2 customers.
        high: (D,) likewise.
        share: (D,) of the actual total.

    >>> groups = deciles(np.arange(100.0), np.arange(100.0))
    >>> print(groups.rows[0], groups.share[0].round(3), groups.mape())
    10 0.191 0.0
    >>> isinstance(groups, Deciles)
    True
    """

    rows: np.ndarray
    expected: np.ndarray
    actual: np.ndarray
    low: np.ndarray
    high: np.ndarray
    share: np.ndarray

    def mape(self) -> float:
        """The mean of |expected - actual| / actual over the groups: the error of calibration.

        NaN where nothing came of a group.
        """
        if (self.actual == 0).any():
            return np.nan
        return float(np.mean(np.abs(self.expected - self.actual) / self.actual))

    def frame(self) -> Any:
        """One row a group, the highest expectation first."""
        return frame({"decile": np.arange(len(self.rows)) + 1, **self._asdict()})


def deciles(expected: Any, actual: Any, groups: int = 10) -> Deciles:
    """What came of the customers of whom most was expected, and so on: gain and calibration.

    Customers of equal expectation count with their mean, so that their order is no matter.

    Args:
        expected: (N,), such as values or probabilities.
        actual: (N,), in the same unit.
        groups: at most N.

    Raises:
        ValueError: see `normalized_gini`; more groups than customers.

    >>> deciles([1.0, 9.0, 2.0, 8.0], [0.0, 7.0, 2.0, 9.0], groups=2).actual.tolist()
    [8.0, 1.0]
    """
    expected, actual = pair(expected=expected, actual=actual)
    if not 1 <= groups <= len(actual):
        raise ValueError(f"groups must be 1 to {len(actual):,} (the customers), got {groups}")
    rows = np.array([len(part) for part in np.array_split(actual, groups)])
    places = np.append(0, rows.cumsum())
    order, ends = by_score(expected)
    told, came = (up_to(places, ends, x[order]) for x in (expected, actual))
    means = []
    for drawn in samples(len(actual)):
        number, total = (up_to(places, ends, x) for x in (drawn, drawn * actual[order]))
        with np.errstate(invalid="ignore", divide="ignore"):
            means.append(np.diff(total) / np.diff(number))
    low, high = np.full((2, groups), np.nan)
    for i in np.flatnonzero(rows > 1):
        low[i], high[i] = np.nanquantile([mean[i] for mean in means], (0.025, 0.975))
    sums = np.diff(came)
    share = sums / sums.sum() if sums.sum() else np.full(groups, np.nan)
    return Deciles(rows, np.diff(told) / rows, sums / rows, low, high, share)


def by_score(score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows by decreasing score, and where those of equal scores end, counted from 0 before."""
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True)
    return order, np.append(0, np.flatnonzero(last) + 1)


def up_to(places: np.ndarray, ends: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The totals of the first rows up to some places; of equal scores each has the mean."""
    totals = np.append(0.0, np.cumsum(values))[ends]
    return np.interp(places, ends, totals)


def samples(count: int) -> Iterator[np.ndarray]:
    """How often each row is in a bootstrap sample, (N,), sample by sample."""
    rng = np.random.default_rng(0)
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(0, count, count), minlength=count)


def plot_deciles(
    groups: Deciles | Mapping[str, Deciles], path: PathLike | None = None, unit: str = "value"
) -> "Figure":
    """Actual means of the groups as bars with their intervals, and the expectations as points.

    Args:
        groups: of `deciles`; or of several models by name, a panel each.
        path: where to write the picture; None writes nothing.
        unit: of the values, for the axis.

    >>> figure = plot_deciles(deciles(np.arange(100.0), np.arange(100.0)))
    >>> len(figure.axes)
    1
    """
    named = groups if isinstance(groups, Mapping) else {"": groups}
    figure = new_figure(4.2 * len(named) + 0.4, 3.2)
    panels = figure.subplots(1, len(named), sharey=True, squeeze=False)[0]
    for axes, (name, one) in zip(panels, named.items(), strict=True):
        place = np.arange(len(one.rows)) + 1
        bars = np.stack([one.actual - one.low, one.high - one.actual])
        axes.bar(place, one.actual, color=BLUE, alpha=0.75, label="actual, 95 %")
        axes.errorbar(place, one.actual, np.maximum(bars, 0), fmt="none", color=GREY, capsize=2)
        axes.plot(place, one.expected, "o", color=ORANGE, label="expected")
        axes.set_xlabel("group by expectation, highest first")
        axes.set_xticks(place)
        axes.set_title(name)
        open_frame(axes)
    panels[0].set_ylabel(f"mean {unit}")
    panels[0].legend()
    return save_figure(figure, path)


def pair(**named: Any) -> tuple[np.ndarray, np.ndarray]:
    """Two arguments as (N,) float64, finite, at least 1.

    Raises:
        ValueError: other shapes or values; names the argument and the row.
    """
    (one, a), (other, b) = ((name, np.asarray(x, np.float64)) for name, x in named.items())
    if a.shape != b.shape or a.ndim != 1 or len(a) == 0:
        raise ValueError(
            f"{one} and {other} must have shape (N,), N at least 1, got {a.shape} and {b.shape}"
        )
    for name, x in ((one, a), (other, b)):
        none_such(~np.isfinite(x), x, f"{name} must be finite")
    return a, b
