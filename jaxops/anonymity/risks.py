"""How easily somebody finds a person's row again, and which columns give the row away."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops._table import table as text_table
from jaxops.anonymity.groups import numbered, read
from jaxops.data.tables import Source


class ColumnRisk(NamedTuple):
    """What one quasi-identifier contributes.

    Attributes:
        name: the column.
        alone: share of rows that are unique by this column alone.
        without: share of rows that are unique by all the others; 0 where there are none.

    >>> ColumnRisk("zip", alone=0.1, without=0.25).without
    0.25
    """

    name: str
    alone: float
    without: float


class Risk(NamedTuple):
    """The risk that a person's row is found again.

    Attributes:
        rows: number of rows.
        groups: number of groups of rows that are alike in the quasi-identifiers.
        unique: share of rows that are alone in their group.
        prosecutor: the highest risk, 1 / size of the smallest group: of somebody who knows that the
            person is in the table.
        prosecutor_mean: groups / rows, the share of all persons whom somebody with all
            quasi-identifiers finds by guessing in each group.
        journalist: the highest risk of somebody who knows only that the person is in the
            population, 1 / size of the smallest such group there; None without a population.
        columns: the quasi-identifiers, the one that gives most rows away first.

    `str(risk)` is a table.

    >>> table = {"age": [30, 30, 41, 52], "sex": ["f", "f", "m", "m"]}
    >>> risk = reidentification(table, ["age", "sex"])
    >>> risk.unique, risk.prosecutor, risk.columns[0].name, isinstance(risk, Risk)
    (0.5, 1.0, 'age', True)
    """

    rows: int
    groups: int
    unique: float
    prosecutor: float
    prosecutor_mean: float
    journalist: float | None
    columns: tuple[ColumnRisk, ...]

    def __str__(self) -> str:
        """The figures, and below them the columns."""
        lines = [
            f"{self.rows:,} rows in {self.groups:,} groups",
            f"unique rows           {self.unique:.2%}",
            f"prosecutor, highest   {self.prosecutor:.2%}",
            f"prosecutor, mean      {self.prosecutor_mean:.2%}",
        ]
        if self.journalist is not None:
            lines.append(f"journalist, highest   {self.journalist:.2%}")
        rows = [
            {
                "column": c.name,
                "alone": f"{c.alone:.2%}",
                "without": f"{c.without:.2%}",
            }
            for c in self.columns
        ]
        return "\n".join([*lines, "", text_table(rows)])


def reidentification(
    table: Source, identifiers: Sequence[str], population: Source | None = None
) -> Risk:
    """What somebody who knows the quasi-identifiers of a person can find in a table.

    Args:
        table: a CSV or Parquet file, a frame, or arrays by name.
        identifiers: the quasi-identifiers.
        population: a table of all persons that those in `table` are from, with the same columns.

    Raises:
        ValueError: no rows, a column is missing, or a row of the table has no like in the
            population.

    References:
        El Emam and Dankar 2008, Protecting privacy using k-anonymity, JAMIA 15 (the prosecutor and
        the journalist).

    >>> everybody = {"age": [30] * 4 + [40] * 10}
    >>> reidentification({"age": [30, 40, 40]}, ["age"], population=everybody).journalist
    0.25
    """
    frame = read(table, identifiers)
    sizes = np.bincount(numbered(frame, identifiers))
    columns = [
        ColumnRisk(
            name,
            _unique(frame, [name]),
            _unique(frame, [other for other in identifiers if other != name]),
        )
        for name in identifiers
    ]
    return Risk(
        rows=len(frame),
        groups=len(sizes),
        unique=float((sizes == 1).sum() / len(frame)),
        prosecutor=1 / int(sizes.min()),
        prosecutor_mean=len(sizes) / len(frame),
        journalist=None if population is None else _journalist(frame, identifiers, population),
        columns=tuple(sorted(columns, key=lambda column: (column.without, -column.alone))),
    )


def _unique(frame: object, identifiers: Sequence[str]) -> float:
    """The share of rows that are alone in their group."""
    if not identifiers:
        return 0.0
    sizes = np.bincount(numbered(frame, identifiers))
    return float((sizes == 1).sum() / sizes.sum())


def _journalist(frame: object, identifiers: Sequence[str], population: Source) -> float:
    """1 / size of the smallest group of the population that has rows in the table."""
    pd = require("pandas", extra="data")
    both = pd.concat(
        [read(table, identifiers)[[*identifiers]] for table in (frame, population)],
        keys=["table", "population"],
    )
    groups = numbered(both, identifiers)
    of_table = groups[: len(frame)]  # type: ignore[arg-type]
    sizes = np.bincount(groups[len(of_table) :], minlength=groups.max() + 1)
    alone = sizes[of_table] == 0
    if alone.any():
        raise ValueError(
            "population must have all rows of the table, got none like row "
            f"{int(alone.argmax())} (counted from 0)"
        )
    return 1 / int(sizes[of_table].min())
