"""An event log: who took which item, and when."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
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
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    weight: np.ndarray
    users: np.ndarray
    items: np.ndarray
    user_features: dict[str, np.ndarray] = field(default_factory=dict)
    item_features: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.item)

    def histories(self) -> Histories:
        """The items of each of the U users, oldest first; empty for a user without events."""
        order = np.argsort(self.user, kind="stable")
        counts = np.bincount(self.user, minlength=len(self.users))
        return Histories(self.item[order], np.concatenate([[0], np.cumsum(counts)]))
