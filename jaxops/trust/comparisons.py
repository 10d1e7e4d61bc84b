"""Several models side by side: each metric with its interval, and the best of a column in bold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


def surely_best(
    columns: Sequence[np.ndarray],
    difference: Callable[[np.ndarray, np.ndarray], Any],
    smaller: bool = False,
) -> int | None:
    """Which model is better than every other, beyond chance.

    From two intervals that overlap nothing follows, as the models share their rows; so the best
    model is compared with each other one by the interval of their difference, row by row.

    Args:
        columns: for each model its values of a metric, (N,), of the same rows in the same order.
        difference: `(a, b) -> interval` of the mean of a - b, with the bound `low`.
        smaller: whether a smaller value is the better one.

    Returns:
        The place of the model with the best mean if every interval excludes 0; else None, also
        for a single model.

    >>> from jaxops.trust.intervals import paired
    >>> rng = np.random.default_rng(0)
    >>> base = rng.normal(size=500)
    >>> surely_best([base, base + 0.5 + 0.1 * rng.normal(size=500), base - 0.1], paired)
    1
    >>> surely_best([base, base + 0.1 * rng.normal(size=500)], paired) is None
    True
    """
    if len(columns) < 2:
        return None
    means = [values.mean() for values in columns]
    best = int(np.argmin(means) if smaller else np.argmax(means))
    others = [values for place, values in enumerate(columns) if place != best]
    pairs = [(other, columns[best]) if smaller else (columns[best], other) for other in others]
    return best if all(difference(*pair).low > 0 for pair in pairs) else None


def side_by_side(
    figures: Mapping[Any, Mapping[str, float]],
    metrics: Sequence[str] | None,
    best: Callable[[str], int | None],
    bounds: Callable[[Any, str], str],
) -> list[dict[str, str]]:
    """Rows for `jaxops.report.table`, one a model.

    Args:
        figures: the model's name -> metric -> its value.
        metrics: which columns; by default those of the first model.
        best: metric -> the place of the model to print in bold, or None; see `surely_best`.
        bounds: `(name, metric) -> text` that follows the value, such as " [0.1000, 0.2000]".

    Raises:
        ValueError: a metric that one of the models lacks.

    >>> side_by_side({"a": {"mae": 2.0}, "b": {"mae": 1.0}}, None, lambda _: 1, lambda *_: "")
    [{'model': 'a', 'mae': '2.0000'}, {'model': 'b', 'mae': '**1.0000**'}]
    """
    metrics = list(next(iter(figures.values())) if metrics is None else metrics)
    for name, known in figures.items():
        if unknown := [metric for metric in metrics if metric not in known]:
            raise ValueError(f"metrics must be among {list(known)} of {name!r}, got {unknown}")
    rows = [{"model": str(name)} for name in figures]
    for metric in metrics:
        place = best(metric)
        for i, (name, values) in enumerate(figures.items()):
            text = f"{values[metric]:.4f}"
            text = f"**{text}**" if i == place else text
            rows[i][metric] = text + bounds(name, metric)
    return rows
