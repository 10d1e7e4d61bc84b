"""What a sketch says: histograms in the user's units, moments, categories, and their drift."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxops.monitor.sketches import Reference, Sketch
from jaxops.monitor.statistics import psi


class Numbers(NamedTuple):
    """What a sketch has counted of a number.

    Attributes:
        edges: float64 (k + 1,), of the k bins, in the user's unit.
        counts: int64 (k + 2,): the rows below the first edge, in each bin (its lower edge belongs
            to it), and from the last edge on.
        missing: how many rows have no value.
        mean: of the others; NaN where there are none, and so below.
        std: their standard deviation, with divisor N.
        low: the smallest value.
        high: the largest value.

    >>> Numbers(np.array([0.0, 1.0]), np.array([0, 3, 1]), 2, 0.5, 0.1, 0.0, 2.0).rows
    6
    """

    edges: np.ndarray
    counts: np.ndarray
    missing: int
    mean: float
    std: float
    low: float
    high: float

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.counts.sum()) + self.missing

    @property
    def outside(self) -> int:
        """How many rows are below the first edge, or from the last one on."""
        return int(self.counts[0] + self.counts[-1])

    @property
    def cells(self) -> np.ndarray:
        """The counts of the cells by which two sketches are compared: bins, and missing rows."""
        return np.append(self.counts, self.missing)


class Categories(NamedTuple):
    """What a sketch has counted of a column of categories.

    Attributes:
        names: of the c categories.
        counts: int64 (c,).
        unseen: how many rows have another category, such as a text that training had not.

    >>> Categories(("a", "b"), np.array([3, 1]), 1).rows
    5
    """

    names: tuple[str, ...]
    counts: np.ndarray
    unseen: int

    @property
    def rows(self) -> int:
        """All rows."""
        return int(self.counts.sum()) + self.unseen

    @property
    def missing(self) -> int:
        """How many rows have no value: the empty text, where training had it; else it is unseen."""
        return int(self.counts[self.names.index("")]) if "" in self.names else 0

    @property
    def outside(self) -> int:
        """How many rows have a new category."""
        return self.unseen

    @property
    def cells(self) -> np.ndarray:
        """See `Numbers`."""
        return np.append(self.counts, self.unseen)


def told(reference: Reference, sketch: Sketch) -> dict[str, Numbers | Categories]:
    """What a sketch says of each column and prediction, by name.

    Args:
        reference: of the model.
        sketch: of rows that the model was given; `reference.sketch` for those of the reference.

    Raises:
        ValueError: a sketch of another reference.

    >>> from jaxops.monitor.sketches import learned
    >>> from jaxops.monitor.views import NumberPart
    >>> reference = learned((NumberPart("x"),), {"x": np.array([0.0, 2.0, np.nan])}, None)
    >>> x = told(reference, reference.sketch)["x"]
    >>> x.missing, x.mean, x.std, x.low, x.high, x.counts.tolist(), x.edges.round(3).tolist()
    (1, 1.0, 1.0, 0.0, 2.0, [0, 1, 1, 0], [-0.0, 1.0, 2.0])
    """
    shapes = [part.shape for part in reference.sketch]
    if [np.shape(part) for part in sketch] != shapes:
        raise ValueError(
            f"sketch must have shapes {shapes}, as the reference has, got "
            f"{[np.shape(part) for part in sketch]}"
        )
    counts, sums, extremes = (np.asarray(part) for part in sketch)
    n, edges = len(reference.shift), reference.edges.shape[1]
    rows, above = int(counts[0]), counts[1 + n : 1 + n + n * edges].reshape(n, edges)
    first, unit = units(reference)
    found: dict[str, Numbers | Categories] = {}
    for i, name in enumerate(reference.numbers):
        # a window that ends between rows and what they lack has less than no rows of a number
        present, kept = max(int(counts[1 + i]), 0), np.isfinite(reference.edges[i])
        limits = reference.edges[i][kept].astype(np.float64)
        cells = np.maximum(-np.diff(np.concatenate([[present], above[i][kept], [0]])), 0)
        mean = sums[i] / present if present else np.nan
        variance = max(sums[n + i] / present - mean**2, 0.0) if present else np.nan
        low, high = (-extremes[n + i], extremes[i]) if present else (np.nan, np.nan)
        found[name] = Numbers(
            first[i] + unit[i] * limits,
            cells.astype(np.int64),
            rows - present,
            float(first[i] + unit[i] * mean),
            float(unit[i] * np.sqrt(variance)),
            float(first[i] + unit[i] * low),
            float(first[i] + unit[i] * high),
        )
    start = 1 + n + n * edges
    for name, names in reference.categories.items():
        own = counts[start : start + len(names)].astype(np.int64)
        found[name] = Categories(names, own, rows - int(own.sum()))
        start += len(names)
    return found


def units(reference: Reference) -> tuple[np.ndarray, np.ndarray]:
    """(n,) and (n,): a number of a sketch times the second plus the first is in the user's unit.

    >>> from jaxops.monitor.sketches import learned
    >>> from jaxops.monitor.views import NumberPart
    >>> units(learned((NumberPart("x"),), {"x": np.array([1.0, 5.0])}, None))
    (array([3.]), array([2.]))
    """
    parts = [part.units for part in reference.parts]
    first = np.concatenate([first for first, _ in parts])
    unit = np.concatenate([unit for _, unit in parts])
    return first + unit * reference.shift, unit * reference.scale


def psi_of(reference: Reference, sketch: Sketch) -> dict[str, float]:
    """The population stability index of each column and prediction, by name.

    PSI = sum_i (q_i - p_i) ln(q_i / p_i), over the bins of a number with one for missing values, or
    the categories with one for new ones; p_i is the share of the reference and q_i that of the
    sketch. A cell that only one of them has counts half a row in the other. Of N and M rows with k
    cells and no drift it is about (k - 1) (1 / N + 1 / M). Above 0.1 is often called a small shift,
    and above 0.25 a large one.

    Args:
        reference: of the model.
        sketch: of at least one row.

    References:
        Siddiqi 2006, Credit Risk Scorecards; Yurdakul and Naranjo 2020, Statistical properties of
        the population stability index.

    >>> from jaxops.monitor.sketches import learned, update
    >>> from jaxops.monitor.views import NumberPart
    >>> rows = {"x": np.arange(1000.0)}
    >>> reference = learned((NumberPart("x"),), rows, None)
    >>> moved = update(reference, None, {"x": rows["x"] + 100}, None, np.ones(1000), np)
    >>> round(psi_of(reference, reference.sketch)["x"], 3), psi_of(reference, moved)["x"] > 0.25
    (0.0, True)
    """
    before, after = told(reference, reference.sketch), told(reference, sketch)
    return {n: float(psi(before[n].cells, one.cells).statistic) for n, one in after.items()}


def vector_mean(reference: Reference, sketch: Sketch) -> np.ndarray:
    """The mean of the outputs that are vectors, (d,); (0,) for others.

    >>> from jaxops.monitor.sketches import learned
    >>> from jaxops.monitor.views import VectorPart
    >>> reference = learned((VectorPart(2),), {}, np.array([[3.0, 4.0], [5.0, 0.0]]))
    >>> vector_mean(reference, reference.sketch).tolist()
    [4.0, 2.0]
    """
    start = 2 * len(reference.shift)
    mean: np.ndarray = np.asarray(sketch.sums)[start:] / max(int(sketch.counts[0]), 1)
    return mean


def missing_rates(found: Mapping[str, Numbers | Categories]) -> dict[str, float]:
    """The share of rows without a value, by name.

    A text that is missing in a column which had none missing in training is a new category, see
    `out_of_range_rates`.

    Args:
        found: of `told`, of at least one row.

    >>> missing_rates({"plan": Categories(("a", ""), np.array([2, 1]), 1)})
    {'plan': 0.25}
    """
    return {name: one.missing / one.rows for name, one in found.items()}


def out_of_range_rates(found: Mapping[str, Numbers | Categories]) -> dict[str, float]:
    """The share of rows below or above all of the reference, or of a new category, by name.

    Args:
        found: of `told`, of at least one row.

    >>> out_of_range_rates({"plan": Categories(("a", ""), np.array([2, 0]), 2)})
    {'plan': 0.5}
    """
    return {name: one.outside / one.rows for name, one in found.items()}
