"""Parts of a log to learn from, to choose by, and to test on."""

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from jaxops.recommend.events import Events


class Split(NamedTuple):
    """Parts of one log, with the same ids.

    Attributes:
        train: to learn from.
        validation: to be foretold; to choose by.
        test: to be foretold, once.
        known: of users who are not in train, the events before those to be foretold.
    """

    train: Events
    validation: Events
    test: Events
    known: Events

    def before_validation(self) -> Events:
        """What is known when validation is foretold: the histories to recommend for."""
        return joined(self.train, self.known)

    def before_test(self) -> Events:
        """What is known when test is foretold: validation too."""
        return joined(self.train, self.validation, self.known)


def joined(*parts: Events) -> Events:
    """Parts of one log as one; of equal times, in the order of the parts.

    Raises:
        ValueError: the parts have different ids.
    """
    first, *others = parts
    for other in others:
        _same_ids(first, other)
    time = np.concatenate([part.time for part in parts])
    order = np.argsort(time, kind="stable")
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in ("user", "item", "weight")
    }
    return replace(first, time=time[order], **columns, report=None)


def _same_ids(one: Events, other: Events) -> None:
    for name in ("users", "items"):
        if not np.array_equal(getattr(one, name), getattr(other, name)):
            raise ValueError(f"{name}: other ids found; parts of one log wanted")


def leave_one_out(events: Events) -> Split:
    """The last event of each user is test, the one before it validation, the rest train.

    A user with fewer than three events is in train alone. Training holds events of some users
    that are later than others' test: a model that must not see the future is tested by
    `split_by_time`.

    Raises:
        ValueError: no user has three events.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaab"), "item": list("xyzx")}, time=None)
    >>> split = leave_one_out(log)
    >>> split.train.item.tolist(), split.validation.item.tolist(), split.test.item.tolist()
    ([0, 0], [1], [2])
    """
    order = np.argsort(events.user, kind="stable")
    count = np.bincount(events.user, minlength=len(events.users))
    user = events.user[order]
    from_end = np.empty(len(events), np.int64)
    from_end[order] = np.cumsum(count)[user] - np.arange(len(events))  # 1 is the last
    long = count[events.user] >= 3
    if not long.any():
        raise ValueError(f"events: {count.max()} events of one user at most, 3 wanted")
    test, validation = long & (from_end == 1), long & (from_end == 2)
    return Split(
        events.part(~test & ~validation),
        events.part(validation),
        events.part(test),
        events.part(np.zeros(len(events), bool)),
    )
