"""Event logs: which user took which item, and when."""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np


class Histories(NamedTuple):
    """The items that each user took, oldest first, concatenated over users.

    Attributes:
        items: (E,) int32, indices into the catalogue.
        starts: (U + 1,) int64: user u has `items[starts[u] : starts[u + 1]]`.

    >>> two = Histories(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
    >>> two.lengths.tolist(), two.rows(np.array([1, 0]), length=2, padding=9).tolist()
    ([2, 1], [[7, 9], [5, 6]])
    """

    items: np.ndarray
    starts: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """The number of items of each user, (U,) int64."""
        return np.diff(self.starts)

    def rows(self, users: np.ndarray, length: int, padding: int) -> np.ndarray:
        """The last `length` items of the given users: (B, length) int32.

        Args:
            users: (B,) int, indices of users.
            length: length of a row.
            padding: value after the last item of a shorter history.
        """
        users = np.asarray(users)
        kept = np.minimum(self.lengths[users], length)
        place = np.arange(length)
        filled = place < kept[:, None]
        index = np.where(filled, (self.starts[users + 1] - kept)[:, None] + place, 0)
        if len(self.items) == 0:
            return np.full((len(users), length), padding, np.int32)
        return np.where(filled, self.items[index], padding).astype(np.int32)

    def part(self, users: np.ndarray) -> "Histories":
        """The histories of some users, by their indices, in that order."""
        lengths = self.lengths[users]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(self.starts.dtype)
        moved = np.repeat(self.starts[users] - starts[:-1], lengths)
        return Histories(self.items[np.arange(starts[-1]) + moved], starts)

    def check(self, name: str, count: int) -> None:
        """Raise `ValueError` for items outside a catalogue of `count`; messages use `name`."""
        outside = np.flatnonzero((self.items < 0) | (self.items >= count))
        if len(outside):
            raise ValueError(
                f"{name} must hold items in [0, {count:,}), got {self.items[outside[0]]}"
            )


class Report(NamedTuple):
    """Counts from the reading of a log.

    Attributes:
        rows: rows of the source.
        duplicates: rows with the user, item and time of an earlier row.
        repeats: rows with the user and item of an earlier row, at another time.
        dropped: duplicates or repeats that were left out.
        ties: events at the same time as the same user's previous event. Their order is that of the
            source, which may not be meaningful.
        users: number of users, including those without events.
        items: number of items, including those without events.
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
    """An event log sorted by time; events at equal times keep the order of the source.

    Attributes:
        user: (E,) int32, indices into `users`.
        item: (E,) int32, indices into `items`.
        time: (E,) float64 or int64, not decreasing.
        weight: (E,) float32, the weight of each event.
        users: (U,) the users' ids, str, or int64 if the source has integers.
        items: (N,) the items' ids, of the same types: the catalogue.
        user_features: columns of U rows.
        item_features: columns of N rows.
        report: counts from reading the log; None for a part of a log.

    >>> log = Events(np.array([0, 1, 0]), np.array([1, 1, 0]), np.arange(3), np.ones(3, np.float32),
    ...              np.array(["ann", "bob"]), np.array(["tea", "jam"]))
    >>> len(log), log.histories().items.tolist(), len(log.part(log.user == 1))
    (3, [1, 0, 1], 1)
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
        """The events selected by a mask or by increasing indices; the ids stay the same."""
        parts = {name: getattr(self, name)[keep] for name in ("user", "item", "time", "weight")}
        return replace(self, **parts, report=None)
