"""Parts of a log for training, validation and test."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops.recommend.data.events import Events


class Split(NamedTuple):
    """Parts of one log, with the same ids.

    Attributes:
        train: the events for training.
        validation: the events to predict in order to choose a model.
        test: the events to predict in the final test.
        known: the earlier events of those validation and test users who are not in train.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaab"), "item": list("xyzx")}, time=None)
    >>> split = recommend.leave_one_out(log)
    >>> len(split.before_validation()), len(split.before_test())
    (2, 3)
    """

    train: Events
    validation: Events
    test: Events
    known: Events

    def before_validation(self) -> Events:
        """The events known before validation: the histories to recommend for."""
        return joined(self.train, self.known)

    def before_test(self) -> Events:
        """The events known before test, including validation."""
        return joined(self.train, self.known, self.validation)


def joined(*parts: Events) -> Events:
    """Join parts of one log; events at equal times are in the order of the parts.

    Args:
        parts: at least one part.

    Raises:
        ValueError: the parts have different ids.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaab"), "item": list("xyzx")}, time=None)
    >>> split = leave_one_out(log)
    >>> joined(split.test, split.train).time.tolist()
    [0, 2, 3]
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
            raise ValueError(f"{name} must be the same in all parts of a log, got different ids")


def k_core(events: Events, k: int) -> Events:
    """The events of users and items that each have at least k events in the result.

    Users and items with fewer events are removed in turns until there are no such users and items.
    The others keep their order and get new indices. Repeats count: a user who took one item k times
    has k events.

    Args:
        events: the log.
        k: smallest number of events.

    Raises:
        ValueError: k is below 1, or no event is left.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aabbc"), "item": list("xyxyz")}, time=None)
    >>> k_core(log, 2).items.tolist()
    ['x', 'y']
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    keep = np.ones(len(events), bool)
    while True:
        of_user = np.bincount(events.user[keep], minlength=len(events.users))
        of_item = np.bincount(events.item[keep], minlength=len(events.items))
        still = keep & (of_user[events.user] >= k) & (of_item[events.item] >= k)
        if still.sum() == keep.sum():
            break
        keep = still
    if not keep.any():
        raise ValueError(f"k must leave at least 1 event, got {k}, which leaves none")
    user, item = of_user > 0, of_item > 0
    part = events.part(keep)
    return replace(
        part,
        user=(np.cumsum(user, dtype=np.int32) - 1)[part.user],
        item=(np.cumsum(item, dtype=np.int32) - 1)[part.item],
        users=events.users[user],
        items=events.items[item],
        user_features={name: column[user] for name, column in events.user_features.items()},
        item_features={name: column[item] for name, column in events.item_features.items()},
    )


def leave_one_out(events: Events) -> Split:
    """Split off the last event of each user for test, and the one before it for validation.

    A user with fewer than three events is only in train. Some users have training events that are
    later than the test events of others. If a model must not see the future, use `split_by_time`.

    Args:
        events: the log.

    Raises:
        ValueError: no user has three events.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaab"), "item": list("xyzx")}, time=None)
    >>> split = leave_one_out(log)
    >>> split.train.item.tolist(), split.validation.item.tolist(), split.test.item.tolist()
    ([0, 0], [1], [2])
    """
    count, from_end = _from_end(events)
    long = count[events.user] >= 3
    if not long.any():
        raise ValueError(
            "events must hold a user with at least 3 events, got at most "
            f"{count.max(initial=0)} per user"
        )
    test, validation = long & (from_end == 1), long & (from_end == 2)
    return _split(events, ~test & ~validation, validation, test)


def split_by_time(
    events: Events, *, share: float = 0.1, at: tuple[float, float] | None = None
) -> Split:
    """Split by time, the same for all users: train, then validation, then test.

    Validation and test may also have users and items that are not in train.

    Args:
        events: the log.
        share: approximate share of the events in validation and in test, each. Events at the same
            time stay together.
        at: the times at which validation and test begin, in the unit of `events.time`, instead of
            `share`.

    Raises:
        ValueError: a part has no events, there are fewer than three events, or the share is outside
            (0, 1/2).

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("abab"), "item": list("xyzx")}, time=None)
    >>> [part.time.tolist() for part in split_by_time(log, at=(2, 3))[:3]]
    [[0, 1], [2], [3]]
    """
    if len(events) < 3:
        raise ValueError(f"events must hold at least 3 events, got {len(events)}")
    if at is None:
        _check_share(share)
        size = max(1, round(share * len(events)))
        at = tuple(events.time[[-2 * size, -size]])
    parts = [events.time < at[0], (events.time >= at[0]) & (events.time < at[1])]
    parts.append(events.time >= max(at))
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        if not part.any():
            raise ValueError(
                f"{name} must hold at least 1 event, got none; validation begins at {at[0]} and "
                f"test at {at[1]}, and the log goes from {events.time[0]} to {events.time[-1]}"
            )
    return _split(events, *parts)


def split_by_user(
    events: Events, *, share: float = 0.1, target: float = 0.2, seed: int = 0
) -> Split:
    """Hold out all events of some users for validation and for test ("strong generalisation").

    The last events of a held-out user are to be predicted; the earlier ones are `known`. Liang et
    al. draw the events to predict at random instead.

    Args:
        events: the log.
        share: share of the users in validation and in test, each.
        target: share of a held-out user's events to predict, at least one and never all. A user
            with a single event is in train.
        seed: seed of the drawing of users.

    Raises:
        ValueError: fewer than three users with two events, a share outside (0, 1/2), or a target
            outside (0, 1).

    References:
        Liang et al. 2018, arXiv:1802.05814.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aabbcc"), "item": list("xyxyxy")}, time=None)
    >>> [len(part) for part in split_by_user(log)]
    [2, 1, 1, 2]
    """
    _check_share(share)
    if not 0 < target < 1:
        raise ValueError(f"target must be in (0, 1), got {target}")
    count, from_end = _from_end(events)
    able = np.flatnonzero(count >= 2)
    if len(able) < 3:
        raise ValueError(
            f"events must hold at least 3 users with at least 2 events, got {len(able)}"
        )
    drawn = np.random.default_rng(seed).permutation(able)
    size = max(1, min(round(share * np.count_nonzero(count)), (len(able) - 1) // 2))
    group = np.zeros(len(count), np.int8)
    group[drawn[:size]], group[drawn[size : 2 * size]] = 1, 2
    of_event = group[events.user]
    targets = np.clip(np.round(target * count), 1, np.maximum(count - 1, 1))
    last = from_end <= targets[events.user]
    return _split(events, of_event == 0, (of_event == 1) & last, (of_event == 2) & last)


def check_leakage(
    train: Events,
    test: Events,
    protocol: Literal["leave_one_out", "by_time", "by_user"],
) -> None:
    """Raise an error if the training events include any that the test must not reveal.

    Args:
        train: all events that the model was trained on, including updates.
        test: the events to predict.
        protocol: "by_time": every event of train is earlier than all of test. "leave_one_out": for
            each user, no event of train is later than the user's first event of test, or is that
            event. "by_user": train has no event of the users of test.

    Raises:
        ValueError: an event leaks (the message names user, item and time); the ids differ; or there
            are no events.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaab"), "item": list("xyzx")}, time=None)
    >>> split = leave_one_out(log)
    >>> check_leakage(split.before_test(), split.test, "leave_one_out")
    """
    _same_ids(train, test)
    if not len(train) or not len(test):
        raise ValueError(
            f"train and test must hold at least 1 event each, got {len(train)} and {len(test)}"
        )
    if protocol == "by_time":
        leak = train.time >= test.time[0]
        limit = np.broadcast_to(test.time[0], len(train))
    elif protocol == "leave_one_out":
        leak, limit = _later_than_own(train, test)
    elif protocol == "by_user":
        leak = np.isin(train.user, test.user)
        limit = None
    else:
        raise ValueError(
            f'protocol must be "leave_one_out", "by_time" or "by_user", got {protocol!r}'
        )
    if leak.any():
        last = np.flatnonzero(leak)[-1]
        user, item = train.users[train.user[last]], train.items[train.item[last]]
        rule = "no event of a user of test" if limit is None else f"events before {limit[last]}"
        raise ValueError(
            f"train must hold {rule} (split {protocol}), got user {str(user)!r} item {str(item)!r} "
            f"at time {train.time[last]} ({leak.sum():,} such events)"
        )


def _later_than_own(train: Events, test: Events) -> tuple[np.ndarray, np.ndarray]:
    """Which train events are later than their user's first test event, or are that event."""
    none = len(test)
    first = np.full(len(test.users), none)
    first[test.user[::-1]] = np.arange(none)[::-1]  # the last assignment wins: the earliest event
    of_train = first[train.user]
    limit = test.time[np.minimum(of_train, none - 1)]
    has = of_train < none
    # at equal times the order of the source decides, so only the event itself leaks
    key = np.int64(len(test.items))
    at_limit = test.time == test.time[first[test.user]]
    targets = test.user[at_limit] * key + test.item[at_limit]
    itself = (train.time == limit) & np.isin(train.user * key + train.item, targets)
    return has & ((train.time > limit) | itself), limit


def _from_end(events: Events) -> tuple[np.ndarray, np.ndarray]:
    """Each user's number of events, and each event's position counted from the user's last (1)."""
    order = np.argsort(events.user, kind="stable")
    count = np.bincount(events.user, minlength=len(events.users))
    place = np.empty(len(events), np.int64)
    place[order] = np.cumsum(count)[events.user[order]] - np.arange(len(events))
    return count, place


def _check_share(share: float) -> None:
    if not 0 < share < 0.5:
        raise ValueError(f"share must be in (0, 0.5), got {share}")


def _split(events: Events, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Split:
    known = ~(train | validation | test)
    return Split(*(events.part(mask) for mask in (train, validation, test, known)))
