"""The groups of rows that one protected column makes, or the intersections of several."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxops.data.columns import read_with_dates

MOST = 100  # groups
MISSING = "(missing)"
WHOLE = re.compile(r"(?<=\d)\.0+$")  # of a whole number that stands among floats


class Groups(NamedTuple):
    """The group of each row.

    Attributes:
        columns: the names of the protected columns.
        names: of the G groups, such as "Female", or "Female, Black" of two columns.
        place: int64 (N,), the number of each row's group.

    >>> Groups(("sex",), ("a", "b"), np.array([0, 1, 1])).rows.tolist()
    [1, 2]
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    place: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """The number of rows of each group, (G,)."""
        return np.bincount(self.place, minlength=len(self.names))


def groups_of(protected: Mapping[str, Any]) -> Groups:
    """The groups of rows by the values of protected columns; a missing value is one of its own.

    Args:
        protected: name -> values (N,), compared as text. Only intersections that occur are groups.

    Raises:
        ValueError: no column; columns of unequal lengths; more than 100 groups, or two of the same
            name.

    >>> groups = groups_of({"sex": ["f", "m", "f"], "plan": ["a", "a", "b"]})
    >>> groups.names, groups.place.tolist()
    (('f, a', 'f, b', 'm, a'), [0, 2, 1])
    """
    if not isinstance(protected, Mapping) or not protected:
        raise ValueError(
            f'protected must be columns by name, such as {{"sex": sex}}, got {protected!r}'
        )
    names = [*protected]
    table, _ = read_with_dates(dict(protected), names, exact=names)
    found, place = [""], np.zeros(len(table[names[0]]), np.int64)
    for name in names:
        values, own = np.unique(table[name], return_inverse=True)
        kept, place = np.unique(place * len(values) + own, return_inverse=True)
        if len(kept) > MOST:
            raise ValueError(
                f"protected must have at most {MOST} groups, got {len(kept):,} of "
                f"{', '.join(names)}; cut numbers into ranges before, as pandas.cut does"
            )
        told = [WHOLE.sub("", value) or MISSING for value in values.tolist()]
        pairs = (divmod(one, len(values)) for one in kept.tolist())
        found = [f"{found[a]}, {told[b]}".removeprefix(", ") for a, b in pairs]
    if len({*found}) < len(found):
        twice = next(one for one in found if found.count(one) > 1)
        raise ValueError(f"protected must have groups of different names, got {twice!r} twice")
    return Groups(tuple(names), tuple(found), place)


def binary(name: str, values: Any) -> np.ndarray:
    """A column of 0 and 1 as bool, (N,).

    Raises:
        ValueError: other values, with the row.

    >>> binary("label", [0, 1]).tolist()
    [False, True]
    """
    given = np.asarray(values)
    if given.ndim != 1 or given.dtype.kind not in "biuf":
        raise ValueError(f"{name} must be (N,) of 0 and 1, got {given.dtype} {given.shape}")
    odd = (given != 0) & (given != 1)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(f"{name} must be 0 or 1, got {given[row]} in row {row}")
    return given.astype(bool)


def finite(name: str, values: Any) -> np.ndarray:
    """A column of numbers, float64 (N,).

    Raises:
        ValueError: one that is not finite, with the row.

    >>> finite("label", [1]).tolist()
    [1.0]
    """
    given = np.asarray(values, np.float64)
    if given.ndim != 1:
        raise ValueError(f"{name} must be (N,) numbers, got shape {given.shape}")
    odd = ~np.isfinite(given)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(f"{name} must be finite numbers, got {given[row]} in row {row}")
    return given


def probabilities_of(name: str, values: Any) -> np.ndarray:
    """A column of probabilities, float64 (N,).

    Raises:
        ValueError: one that is not in [0, 1], with the row.

    >>> probabilities_of("probabilities", [0.5]).tolist()
    [0.5]
    """
    given = finite(name, values)
    odd = (given < 0) | (given > 1)
    if odd.any():
        row = int(odd.argmax())
        raise ValueError(f"{name} must be in [0, 1], got {given[row]} in row {row}")
    return given


def check_rows(columns: Mapping[str, np.ndarray], groups: Groups) -> None:
    """Check that columns have as many rows as the protected ones.

    Raises:
        ValueError: one has not.

    >>> check_rows({"label": np.zeros(2)}, Groups((), (), np.zeros(2)))
    """
    for name, column in columns.items():
        if len(column) != len(groups.place):
            raise ValueError(
                f"{name} must have {len(groups.place):,} rows, as protected, got {len(column):,}"
            )
