"""How anonymous a table is: k-anonymity, l-diversity and t-closeness of its groups.

A group is the rows with equal values in all quasi-identifiers, the columns that somebody may know
of a person, such as age and zip code. A missing value is a value like others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.data.columns import frame_of
from jaxops.data.tables import Source


class Diversity(NamedTuple):
    """The l-diversity of the least diverse group.

    Attributes:
        distinct: number of sensitive values in the group with the fewest.
        entropy: exp of the entropy of the sensitive values, in the group where it is smallest; a
            table is entropy l-diversity for every l up to this. At most `distinct`.

    >>> table = {"age": [30, 30, 40, 40], "ill": ["flu", "cold", "flu", "flu"]}
    >>> l_diversity(table, ["age"], "ill") == Diversity(distinct=1, entropy=1.0)
    True
    """

    distinct: int
    entropy: float


def k_anonymity(table: Source, identifiers: Sequence[str]) -> int:
    """The size of the smallest group: each row is alike at least k - 1 others.

    Args:
        table: a CSV or Parquet file, a frame, or arrays by name.
        identifiers: the quasi-identifiers.

    Raises:
        ValueError: no rows, or a column is missing.

    References:
        Sweeney 2002, k-anonymity: a model for protecting privacy.

    >>> k_anonymity({"age": [30, 30, 40, 40, 40], "sex": ["f", "f", "m", "m", "m"]}, ["age", "sex"])
    2
    """
    frame = read(table, identifiers)
    return int(np.bincount(numbered(frame, identifiers)).min())


def l_diversity(table: Source, identifiers: Sequence[str], sensitive: str) -> Diversity:
    """How many sensitive values somebody must reckon with who knows a person's group.

    Args:
        table: see `k_anonymity`.
        identifiers: the quasi-identifiers.
        sensitive: the column that nobody should learn.

    Raises:
        ValueError: no rows, a column is missing, or `sensitive` is a quasi-identifier.

    References:
        Machanavajjhala et al. 2006, l-diversity: privacy beyond k-anonymity.

    >>> table = {"age": [30, 30, 40, 40], "ill": ["flu", "cold", "flu", "ulcer"]}
    >>> l_diversity(table, ["age"], "ill").distinct
    2
    """
    shares, _, _ = _shares(read(table, identifiers, sensitive), identifiers, sensitive)
    logs = np.log(shares, where=shares > 0, out=np.zeros_like(shares))
    entropy = float(np.exp((-shares * logs).sum(1).min()))
    return Diversity(int((shares > 0).sum(1).min()), entropy)


def t_closeness(
    table: Source,
    identifiers: Sequence[str],
    sensitive: str,
    order: Sequence[Any] | None = None,
) -> float:
    """The largest distance of a group's sensitive values from those of the whole table.

    For numbers, and for texts with an order, it is the earth mover's distance with the ordered
    distance of the paper: neighbouring values are 1 / (m - 1) apart, where m is the number of
    different ones. For other texts all are 1 apart, and it is the total variation, half the sum of
    the differences.

    Args:
        table: see `k_anonymity`.
        identifiers: the quasi-identifiers.
        sensitive: the column that nobody should learn.
        order: the values of a column of texts from the lowest to the highest; None for no order.

    Returns:
        t, in [0, 1]; 0 if knowing the group tells nothing.

    Raises:
        ValueError: no rows, a column is missing, `sensitive` is a quasi-identifier or has a missing
            number, or `order` lacks a value.

    References:
        Li, Li and Venkatasubramanian 2007, t-closeness: privacy beyond k-anonymity and l-diversity.

    >>> table = {"age": [30, 30, 40, 40], "pay": [1, 2, 3, 4]}
    >>> round(t_closeness(table, ["age"], "pay"), 4)
    0.3333
    """
    frame = read(table, identifiers, sensitive)
    shares, all_shares, values = _shares(frame, identifiers, sensitive)
    column = frame[sensitive]
    if order is not None:
        unknown = next((v for v in values if v not in {*order}), None)
        if unknown is not None:
            raise ValueError(f"order must have all values of {sensitive!r}, got none {unknown!r}")
        by_rank = np.argsort([[*order].index(v) for v in values])
    elif column.dtype.kind in "iufb":
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise ValueError(
                f"column {sensitive!r} must have no missing numbers, got one in row {row} "
                "(counted from 0)"
            )
        by_rank = np.argsort(np.asarray(values, np.float64))
    else:
        return float(np.abs(shares - all_shares).sum(1).max() / 2)
    if len(values) == 1:
        return 0.0
    moved = (shares - all_shares)[:, by_rank].cumsum(1)
    return float(np.abs(moved).sum(1).max() / (len(values) - 1))


def read(table: Source, identifiers: Sequence[str], sensitive: str | None = None) -> Any:
    """The table as a pandas frame that has these columns, at least one and each once."""
    if isinstance(identifiers, str) or not identifiers:
        raise ValueError(f"identifiers must be names of columns, at least one, got {identifiers!r}")
    columns = [*identifiers, *([] if sensitive is None else [sensitive])]
    if len({*columns}) < len(columns):
        raise ValueError(
            "identifiers must be distinct and without the sensitive column, got "
            + ", ".join(columns)
        )
    name, frame = frame_of(table)
    absent = next((column for column in columns if column not in frame.columns), None)
    if absent is not None:
        known = ", ".join(frame.columns)
        raise ValueError(f"{name} must have a column {absent!r}, got {known}")
    return frame


def numbered(frame: Any, identifiers: Sequence[str]) -> np.ndarray:
    """The number of each row's group, int (N,)."""
    groups = frame.groupby([*identifiers], dropna=False, observed=True, sort=False)
    return np.asarray(groups.ngroup(), np.int64)


def _shares(
    frame: Any, identifiers: Sequence[str], sensitive: str
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Of each group (G, S), and of all rows (S,), the shares of the sensitive values; these."""
    pd = require("pandas", extra="data")
    codes, values = pd.factorize(frame[sensitive], use_na_sentinel=False)
    groups = numbered(frame, identifiers)
    counts = np.zeros((groups.max() + 1, len(values)))
    np.add.at(counts, (groups, codes), 1)
    return counts / counts.sum(1, keepdims=True), counts.sum(0) / len(frame), [*values]
