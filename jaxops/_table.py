"""Rows as an aligned Markdown table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Rows as an aligned Markdown table; floats have four digits, and numbers are right-aligned.

    >>> print(table([{"name": "mlp", "accuracy": 0.97512}, {"name": "cnn", "steps": 10}]))
    | name | accuracy | steps |
    |------|---------:|------:|
    | mlp  |   0.9751 |       |
    | cnn  |          |    10 |
    """
    columns = list(columns or dict.fromkeys(k for row in rows for k in row))
    cells, rules = [], []
    for name in columns:
        values = [row.get(name) for row in rows]
        right = all(isinstance(v, int | float | np.number | None) for v in values)
        texts = [str(name), *(_cell(v) for v in values)]
        width = max(3, *map(len, texts))
        cells.append([t.rjust(width) if right else t.ljust(width) for t in texts])
        rules.append("-" * (width + 1) + (":" if right else "-"))
    lines = ["| " + " | ".join(line) + " |" for line in zip(*cells, strict=True)]
    return "\n".join([lines[0], "|" + "|".join(rules) + "|", *lines[1:]])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|")
