"""Tables of several models: each metric with its interval, and the best of a column in bold."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def side_by_side(
    figures: Mapping[Any, Mapping[str, float]],
    metrics: Sequence[str] | None,
    best: Callable[[str], int | None],
    bounds: Callable[[Any, str], str],
) -> list[dict[str, str]]:
    """Rows for `jaxops.report.table`, one for each model.

    Args:
        figures: the model's name -> metric -> its value.
        metrics: the columns; by default the metrics of the first model.
        best: metric -> the index of the model to print in bold, or None.
        bounds: `(name, metric) -> text` that follows the value, such as " [0.1000, 0.2000]".

    Raises:
        ValueError: a metric that one of the models does not have.

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
