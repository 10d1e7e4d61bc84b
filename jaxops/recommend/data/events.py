"""An event log: who took which item, and when."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np


class Histories(NamedTuple):
    """The items of each user, oldest first, one user's behind the other's.

    Attributes:
        items: (E,) int32, indices into the catalogue.
        starts: (U + 1,) int64: user u has `items[starts[u] : starts[u + 1]]`.
    """

    items: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """(U,) int64."""
        return np.diff(self.starts)

    def rows(self, users: np.ndarray, length: int, padding: int) -> np.ndarray:
        """The last `length` items of some users: (len(users), length) int32.

        Args:
            users: (B,) int.
            length: of a row.
            padding: what stands behind a shorter history.
        """
        users = np.asarray(users)
        kept = np.minimum(self.lengths[users], length)
        place = np.arange(length)
        there = place < kept[:, None]
        index = np.where(there, (self.starts[users + 1] - kept)[:, None] + place, 0)
        if len(self.items) == 0:
            return np.full((len(users), length), padding, np.int32)
        return np.where(there, self.items[index], padding).astype(np.int32)


class Report(NamedTuple):
    """What reading a log has found.

    Attributes:
        rows: that the source has.
        duplicates: rows with user, item and time of an earlier one.
        repeats: rows of the same user and item as an earlier one, but at another time.
        dropped: rows that were left out, being duplicates or repeats.
        ties: events at the same time as the one before of the same user: of these the order
            is that of the source, which may mean nothing.
        users: ids, also those without events.
        items: ids, also those without events.
    """

    rows: int
    duplicates: int
    repeats: int
    dropped: int
    ties: int
    users: int
    items: int


@dataclass(frozen=True, eq=False)
class Events:
    """An event log, in the order of time; of equal times, in the order they were given.

    Attributes:
        user: (E,) int32, indices into `users`.
        item: (E,) int32, indices into `items`.
        time: (E,) float64 or int64, never falling.
        weight: (E,) float32, of how much an event counts.
        users: (U,) the users' own ids, str.
        items: (N,) the items' own ids, str: the catalogue.
        user_features: columns of U rows.
        item_features: columns of N rows.
        report: of the reading; None for a part of a log.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    weight: np.ndarray
    users: np.ndarray
    items: np.ndarray
    user_features: dict[str, np.ndarray] = field(default_factory=dict)
    item_features: dict[str, np.ndarray] = field(default_factory=dict)
    report: Report | None = None

    def __len__(self) -> int:
        return len(self.item)

    def histories(self) -> Histories:
        """The items of each of the U users, oldest first; empty for a user without events."""
        order = np.argsort(self.user, kind="stable")
        counts = np.bincount(self.user, minlength=len(self.users))
        return Histories(self.item[order], np.concatenate([[0], np.cumsum(counts)]))

    def part(self, keep: np.ndarray) -> "Events":
        """The events of a mask or of rising indices, with the same ids."""
        parts = {name: getattr(self, name)[keep] for name in ("user", "item", "time", "weight")}
        return replace(self, **parts, report=None)
