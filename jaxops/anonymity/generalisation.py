"""Tables made anonymous: values become ranges, sets or more general values, and rows are dropped.

Each function gives the new table with the information it lost, by Iyengar's loss metric: the loss
of a cell is (U - L) / (max - min) for numbers that became a range from L to U, and
(s - 1) / (S - 1) for one of S texts that became a set of s. That of a dropped row is 1.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops._optional import require
from jaxops.anonymity.groups import read
from jaxops.data.tables import Source, as_text

Level = Callable[[Any], str] | Mapping[Any, str]
"""A step of a hierarchy: a value of the table to a more general one."""
ALL = "*"


class Anonymised(NamedTuple):
    """A table that is anonymous, and what that cost.

    Attributes:
        table: a pandas frame with the columns of the source; the quasi-identifiers are texts.
        rows: the places in the source of the rows that are left.
        dropped: number of rows that are not.
        loss: the mean loss of a quasi-identifier's cell, in [0, 1].
        losses: that of each quasi-identifier.

    >>> told = mondrian({"age": [30, 31, 40, 49]}, ["age"], k=2)
    >>> told.table["age"].tolist(), round(told.loss, 3), isinstance(told, Anonymised)
    (['[30, 31]', '[30, 31]', '[40, 49]', '[40, 49]'], 0.263, True)
    """

    table: Any
    rows: np.ndarray
    dropped: int
    loss: float
    losses: dict[str, float]


class _Column:
    """The values of one quasi-identifier by their rank; a missing one is the last."""

    def __init__(self, series: Any) -> None:
        pd = require("pandas", extra="data")
        self.number = series.dtype.kind in "iuf"
        texts = series if self.number else series.astype(object)
        codes, values = pd.factorize(texts, sort=False)
        order = sorted(range(len(values)), key=lambda i: _rank(values[i]))
        rank = np.empty(len(values) + 1, np.int64)
        rank[order], rank[-1] = np.arange(len(values)), len(values)
        self.codes = rank[codes]  # the code -1 of a missing value is the last
        self.values = [values[i] for i in order]
        missing = bool((codes == -1).any())
        self.count = len(self.values) + missing
        if self.number and self.values:
            self.span = float(self.values[-1]) - float(self.values[0])

    def loss(self, codes: np.ndarray) -> float:
        """What is lost where these different values become one; a missing one counts as all."""
        if len(codes) == 1:
            return 0.0
        if not self.number:
            return (len(codes) - 1) / (self.count - 1)
        if codes[-1] == len(self.values):
            return 1.0
        return (float(self.values[codes[-1]]) - float(self.values[codes[0]])) / self.span

    def text(self, codes: np.ndarray) -> str | None:
        """What these different values become."""
        known = [as_text(self.values[code]) for code in codes if code < len(self.values)]
        missing = len(known) < len(codes)
        if len(codes) == 1:
            return None if missing else known[0]
        if not self.number:
            return "{" + ", ".join(known + ["missing"] * missing) + "}"
        span = known[0] if len(known) == 1 else f"[{known[0]}, {known[-1]}]"
        return span + " or missing" * missing


def _rank(value: Any) -> tuple[int, Any]:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    return (0, value) if number else (1, str(value))


class _Wanted:
    """What a group of rows must hold."""

    def __init__(
        self, frame: Any, k: int, sensitive: str | None, diversity: int, closeness: float
    ) -> None:
        if not 2 <= k <= len(frame):
            raise ValueError(f"k must be in [2, {len(frame)}] (the number of rows), got {k}")
        if sensitive is None and (diversity > 1 or closeness < 1):
            raise ValueError("sensitive must be given with diversity or closeness, got none")
        if diversity < 1 or not 0 <= closeness <= 1:
            raise ValueError(
                "diversity must be at least 1 and closeness in [0, 1], got "
                f"{diversity} and {closeness}"
            )
        self.k, self.diversity, self.closeness = k, diversity, closeness
        column = _Column(frame[sensitive]) if sensitive else None
        if column and column.number and closeness < 1 and column.count > len(column.values):
            raise ValueError(
                f"column {sensitive!r} must have no missing numbers for closeness, got one in row "
                f"{int(column.codes.argmax())} (counted from 0)"
            )
        self.codes = column.codes if column else np.zeros(len(frame), np.int64)
        self.count = column.count if column else 1
        self.ordered = bool(column and column.number)
        if self.count < diversity:
            raise ValueError(
                f"diversity must be at most {self.count} (the different values of {sensitive!r}), "
                f"got {diversity}"
            )
        self.shares = np.bincount(self.codes, minlength=self.count) / len(frame)

    def held(self, rows: np.ndarray, shares: np.ndarray | None = None) -> bool:
        """Whether a group of these rows holds it, in a table with these shares."""
        if len(rows) < self.k:
            return False
        if self.diversity == 1 and self.closeness == 1:
            return True
        counts = np.bincount(self.codes[rows], minlength=self.count)
        if (counts > 0).sum() < self.diversity:
            return False
        gap = counts / len(rows) - (self.shares if shares is None else shares)
        if self.ordered and self.count > 1:
            return float(np.abs(gap.cumsum()).sum()) / (self.count - 1) <= self.closeness
        return float(np.abs(gap).sum()) / 2 <= self.closeness


def mondrian(
    table: Source,
    identifiers: Sequence[str],
    k: int,
    sensitive: str | None = None,
    diversity: int = 1,
    closeness: float = 1.0,
) -> Anonymised:
    """Ranges and sets that fit the rows, by dividing them at medians as long as groups allow it.

    A group is divided at the median of the column in which it is widest, or of the next one if a
    part would be too small, and so on. Numbers become ranges such as "[20, 39]" and texts sets such
    as "{baker, cook}", in the order of the alphabet. No row is dropped.

    Args:
        table: a CSV or Parquet file, a frame, or arrays by name.
        identifiers: the quasi-identifiers.
        k: least rows of a group.
        sensitive: the column that nobody should learn, for the two that follow.
        diversity: least number of different sensitive values in a group.
        closeness: largest distance of a group's sensitive values from the table's; see
            `t_closeness`. Texts have no order here.

    Raises:
        ValueError: a column is missing, or an argument is out of its range: k below 2 or above the
            number of rows.

    References:
        LeFevre, DeWitt and Ramakrishnan 2006, Mondrian multidimensional k-anonymity, ICDE; Iyengar
        2002, Transforming data to satisfy privacy constraints, KDD (the loss).

    >>> table = {"age": [20, 25, 60, 61], "job": ["cook", "baker", "cook", "cook"]}
    >>> mondrian(table, ["age", "job"], k=2).table.to_numpy().tolist()[1:3]
    [['[20, 25]', '{baker, cook}'], ['[60, 61]', 'cook']]
    """
    frame = read(table, identifiers, sensitive)
    wanted = _Wanted(frame, k, sensitive, diversity, closeness)
    columns = {name: _Column(frame[name]) for name in identifiers}
    texts = {name: np.empty(len(frame), object) for name in identifiers}
    losses = dict.fromkeys(identifiers, 0.0)
    waiting = [np.arange(len(frame))]
    while waiting:
        rows = waiting.pop()
        found = {name: np.unique(column.codes[rows]) for name, column in columns.items()}
        width = {name: column.loss(found[name]) for name, column in columns.items()}
        widest = sorted((n for n in identifiers if len(found[n]) > 1), key=lambda n: -width[n])
        parts = next((p for n in widest if (p := _halves(columns[n].codes, rows, wanted))), None)
        if parts is not None:
            waiting += parts
            continue
        for name, column in columns.items():
            texts[name][rows] = column.text(found[name])
            losses[name] += width[name] * len(rows) / len(frame)
    mean = sum(losses.values()) / len(losses)
    return Anonymised(frame.assign(**texts), np.arange(len(frame)), 0, mean, losses)


def _halves(codes: np.ndarray, rows: np.ndarray, wanted: _Wanted) -> list[np.ndarray] | None:
    """The rows below and above the median, if both may be groups."""
    values = codes[rows]
    middle = np.sort(values)[len(rows) // 2]
    cuts = sorted((values < middle, values <= middle), key=lambda low: abs(low.mean() - 0.5))
    for low in cuts:
        parts = [rows[low], rows[~low]]
        if all(wanted.held(part) for part in parts):
            return parts
    return None


def ranges(width: float) -> Callable[[Any], str]:
    """A level of a hierarchy of numbers: the ranges of this width, from 0 on.

    Args:
        width: above 0.

    Raises:
        ValueError: `width` is not above 0 and finite.

    >>> ranges(20)(37), ranges(0.5)(-0.2)
    ('[20, 40)', '[-0.5, 0)')
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width must be above 0 and finite, got {width}")

    def level(value: Any) -> str:
        low = math.floor(value / width)
        return f"[{as_text(low * width)}, {as_text((low + 1) * width)})"

    return level


def generalised(
    table: Source,
    hierarchies: Mapping[str, Sequence[Level]],
    k: int,
    sensitive: str | None = None,
    diversity: int = 1,
    closeness: float = 1.0,
    drop: float = 0.0,
) -> Anonymised:
    """One level of each column's hierarchy for all rows, the one with the least loss.

    All combinations of levels are tried. Rows whose group is too small, or has sensitive values
    that are not wanted, are dropped, up to the share `drop`; what is left holds what was asked for.

    Args:
        table: a CSV or Parquet file, a frame, or arrays by name.
        hierarchies: quasi-identifier -> levels above the values themselves, from the finest to the
            coarsest. Each takes a value of the table, and not one of the level below. Missing
            values stay missing. A last level, "*" for all, is added.
        k: see `mondrian`.
        sensitive: see `mondrian`.
        diversity: see `mondrian`.
        closeness: see `mondrian`.
        drop: the largest share of rows that may be dropped, in [0, 1).

    Raises:
        ValueError: see `mondrian`; a mapping lacks a value, a level separates what the level below
            has joined, or not even the last levels give what was asked for.

    References:
        Sweeney 2002, Achieving k-anonymity privacy protection using generalization and suppression;
        Iyengar 2002, Transforming data to satisfy privacy constraints, KDD (the loss).

    >>> table = {"zip": ["10115", "10117", "20095", "20097"], "age": [31, 38, 33, 55]}
    >>> levels = {"zip": [lambda code: code[:2] + "***"], "age": [ranges(10), ranges(20)]}
    >>> told = generalised(table, levels, k=2, drop=0.5)
    >>> told.table.to_numpy().tolist(), told.dropped
    ([['10***', '[30, 40)'], ['10***', '[30, 40)']], 2)
    """
    frame = read(table, [*hierarchies], sensitive)
    wanted = _Wanted(frame, k, sensitive, diversity, closeness)
    if not 0 <= drop < 1:
        raise ValueError(f"drop must be in [0, 1), got {drop}")
    levels = {n: _levels(n, _Column(frame[n]), given) for n, given in hierarchies.items()}
    best: tuple[float, tuple[int, ...], np.ndarray] | None = None
    for node in itertools.product(*(range(len(each)) for each in levels.values())):
        chosen = [levels[name][place] for name, place in zip(levels, node, strict=True)]
        kept = _kept([level.codes for level in chosen], wanted, int(drop * len(frame)))
        if kept is None:
            continue
        lost = sum(float(level.losses[kept].sum()) for level in chosen) / len(chosen)
        loss = (lost + len(frame) - len(kept)) / len(frame)
        if best is None or loss < best[0]:
            best = loss, node, kept
    if best is None:
        raise ValueError(
            f"hierarchies must allow groups of {k} rows as wanted with drop={drop}, got none"
        )
    loss, node, kept = best
    chosen_of = {name: levels[name][place] for name, place in zip(levels, node, strict=True)}
    gone = len(frame) - len(kept)
    losses = {name: (float(level.losses[kept].sum()) + gone) / len(frame)
              for name, level in chosen_of.items()}  # fmt: skip
    texts = {name: level.texts[kept] for name, level in chosen_of.items()}
    return Anonymised(frame.iloc[kept].assign(**texts), kept, gone, loss, losses)


class _Rows(NamedTuple):
    """A column at one level of its hierarchy, for each row."""

    texts: np.ndarray
    codes: np.ndarray
    losses: np.ndarray


def _levels(name: str, column: _Column, given: Sequence[Level]) -> list[_Rows]:
    """All levels of a column, from the values themselves to one for all."""
    every = np.arange(column.count)
    below, made = every, list[_Rows]()
    for level in [None, *given, ALL]:
        texts = [_text(name, column, code, level) for code in every.tolist()]
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        codes = np.array([number[text] for text in texts])
        members = [every[codes == i] for i in range(len(number))]
        for joined in (every[below == i] for i in range(below.max() + 1)):
            if len({*codes[joined].tolist()}) > 1:
                raise ValueError(
                    f"hierarchies[{name!r}] must join at each level what the one below joins, got "
                    f"{len(made)} levels and then one that separates {texts[joined[0]]!r} and "
                    f"{texts[joined[-1]]!r}"
                )
        losses = np.array([column.loss(members[i]) for i in codes])
        of_row = column.codes
        made.append(_Rows(np.array(texts, object)[of_row], codes[of_row], losses[of_row]))
        below = codes
    return made


def _text(name: str, column: _Column, code: int, level: Level | str | None) -> str | None:
    """A value at a level of its hierarchy."""
    if level == ALL:
        return ALL
    if code == len(column.values):
        return None
    value = column.values[code]
    if level is None:
        return as_text(value)
    if isinstance(level, Mapping):
        if value not in level:
            raise ValueError(f"hierarchies[{name!r}] must have all values, got none for {value!r}")
        return str(level[value])
    assert callable(level)
    return str(level(value))


def _kept(codes: list[np.ndarray], wanted: _Wanted, most: int) -> np.ndarray | None:
    """The rows that are left, at most so many dropped; None if that is not enough."""
    key = np.zeros(len(codes[0]), np.int64)
    for each in codes:
        key = np.unique(key * (each.max() + 1) + each, return_inverse=True)[1]
    order = np.argsort(key, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(key[order])) + 1)
    small = sum(len(rows) for rows in groups if len(rows) < wanted.k)
    if small > most:
        return None
    held = [rows for rows in groups if wanted.held(rows)]
    kept = np.sort(np.concatenate(held)) if held else key[:0]
    if len(kept) == 0 or len(key) - len(kept) > most:
        return None
    if wanted.closeness < 1 and len(kept) < len(key):
        # the table's own shares have changed with the rows that went
        shares = np.bincount(wanted.codes[kept], minlength=wanted.count) / len(kept)
        if not all(wanted.held(rows, shares) for rows in held):
            return None
    return kept
