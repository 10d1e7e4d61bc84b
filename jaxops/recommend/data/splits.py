"""Parts of a log to learn from, to choose by, and to test on."""

from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxops.recommend.data.events import Events


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
        return joined(self.train, self.known, self.validation)


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


def k_core(events: Events, k: int) -> Events:
    """The events of users and items that have at least k events each, among themselves.

    Users and items are left out in turns until none has fewer; those that stay are numbered anew
    in the same order. Repeats count: a user who took one item k times has k events.

    Raises:
        ValueError: k is below 1, or nothing is left.
    """
    if k < 1:
        raise ValueError(f"k={k}: 1 or more wanted")
    keep = np.ones(len(events), bool)
    while True:
        of_user = np.bincount(events.user[keep], minlength=len(events.users))
        of_item = np.bincount(events.item[keep], minlength=len(events.items))
        still = keep & (of_user[events.user] >= k) & (of_item[events.item] >= k)
        if still.sum() == keep.sum():
            break
        keep = still
    if not keep.any():
        raise ValueError(f"k={k}: no event is left")
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
    count, from_end = _from_end(events)
    long = count[events.user] >= 3
    if not long.any():
        raise ValueError(f"events: a user has {count.max(initial=0)} at most, 3 wanted")
    test, validation = long & (from_end == 1), long & (from_end == 2)
    return _split(events, ~test & ~validation, validation, test)


def split_by_time(
    events: Events, *, share: float = 0.1, at: tuple[float, float] | None = None
) -> Split:
    """What is past is train; then comes validation, and last test, for all users alike.

    Users and items that come up late are in validation and test too.

    Args:
        share: of the events, about, in validation and in test each. Events of one time stay
            together.
        at: the times at which validation and test begin, in the unit of `events.time`; instead
            of `share`.

    Raises:
        ValueError: a part without events, fewer than three events, or a share that is not
            between 0 and 1/2.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("abab"), "item": list("xyzx")}, time=None)
    >>> [part.time.tolist() for part in split_by_time(log, at=(2, 3))[:3]]
    [[0, 1], [2], [3]]
    """
    if len(events) < 3:
        raise ValueError(f"events: {len(events)} found, 3 wanted")
    if at is None:
        _check_share(share)
        size = max(1, round(share * len(events)))
        at = tuple(events.time[[-2 * size, -size]])
    parts = [events.time < at[0], (events.time >= at[0]) & (events.time < at[1])]
    parts.append(events.time >= max(at))
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        if not part.any():
            raise ValueError(
                f"{name}: 0 events: validation would begin at {at[0]}, test at {at[1]}; the log "
                f"goes from {events.time[0]} to {events.time[-1]}"
            )
    return _split(events, *parts)


def split_by_user(
    events: Events, *, share: float = 0.1, target: float = 0.2, seed: int = 0
) -> Split:
    """Some users are held out whole, for validation and for test: strong generalisation.

    Of a held-out user the last events are to be foretold; those before are `known`. (Liang et
    al. 2018, https://arxiv.org/abs/1802.05814, who draw them instead of taking the last.)

    Args:
        share: of the users, in validation and in test each.
        target: the share of a held-out user's events that is to be foretold; one at least, and
            never all. A user with one event is in train.
        seed: of the users' drawing.

    Raises:
        ValueError: fewer than three users with two events, or a share that is not between 0 and
            1/2, or a target that is not between 0 and 1.
    """
    _check_share(share)
    if not 0 < target < 1:
        raise ValueError(f"target={target}: between 0 and 1 wanted")
    count, from_end = _from_end(events)
    able = np.flatnonzero(count >= 2)
    if len(able) < 3:
        raise ValueError(f"events: {len(able)} users with two events or more found, 3 wanted")
    drawn = np.random.default_rng(seed).permutation(able)
    size = max(1, min(round(share * np.count_nonzero(count)), (len(able) - 1) // 2))
    group = np.zeros(len(count), np.int8)
    group[drawn[:size]], group[drawn[size : 2 * size]] = 1, 2
    of_event = group[events.user]
    wanted = np.clip(np.round(target * count), 1, np.maximum(count - 1, 1))
    last = from_end <= wanted[events.user]
    return _split(events, of_event == 0, (of_event == 1) & last, (of_event == 2) & last)


def check_leakage(
    train: Events,
    test: Events,
    protocol: Literal["leave_one_out", "by_time", "by_user"],
) -> None:
    """Fail where training has seen what its test must not have shown it.

    Args:
        train: what the model has learned from, of all its updates.
        test: what is to be foretold.
        protocol: "by_time": all of train is earlier than all of test. "leave_one_out": of each
            user, no event of train is later than the first of test, nor is it that event.
            "by_user": train has no event of test's users.

    Raises:
        ValueError: naming a user and, where it is one, the time; or other ids, or no events.
    """
    _same_ids(train, test)
    if not len(train) or not len(test):
        raise ValueError(f"{len(train)} events of train and {len(test)} of test found, some wanted")
    if protocol == "by_time":
        leak = train.time >= test.time[0]
        limit = np.broadcast_to(test.time[0], len(train))
    elif protocol == "leave_one_out":
        leak, limit = _later_than_own(train, test)
    elif protocol == "by_user":
        leak = np.isin(train.user, test.user)
        limit = None
    else:
        raise ValueError(f'protocol={protocol!r}: "leave_one_out", "by_time" or "by_user" wanted')
    if leak.any():
        last = np.flatnonzero(leak)[-1]
        user, item = train.users[train.user[last]], train.items[train.item[last]]
        rule = "no event of a user of test" if limit is None else f"events before {limit[last]}"
        raise ValueError(
            f"train: {leak.sum():,} events leak, such as of user {str(user)!r} item {str(item)!r} "
            f"at time {train.time[last]}; {rule} wanted, as split {protocol}"
        )


def _later_than_own(train: Events, test: Events) -> tuple[np.ndarray, np.ndarray]:
    """Which events of train are later than their user's first of test, or are that event."""
    none = len(test)
    first = np.full(len(test.users), none)
    first[test.user[::-1]] = np.arange(none)[::-1]  # of several the last assignment stays
    of_train = first[train.user]
    limit = test.time[np.minimum(of_train, none - 1)]
    has = of_train < none
    # of equal times the source's order decides, so that only the event itself is a leak
    key = np.int64(len(test.items))
    at_limit = test.time == test.time[first[test.user]]
    targets = test.user[at_limit] * key + test.item[at_limit]
    itself = (train.time == limit) & np.isin(train.user * key + train.item, targets)
    return has & ((train.time > limit) | itself), limit


def _from_end(events: Events) -> tuple[np.ndarray, np.ndarray]:
    """How many events each user has, and the place of each event from its user's end: 1 is last."""
    order = np.argsort(events.user, kind="stable")
    count = np.bincount(events.user, minlength=len(events.users))
    place = np.empty(len(events), np.int64)
    place[order] = np.cumsum(count)[events.user[order]] - np.arange(len(events))
    return count, place


def _check_share(share: float) -> None:
    if not 0 < share < 0.5:
        raise ValueError(f"share={share}: between 0 and 1/2 wanted")


def _split(events: Events, train: np.ndarray, validation: np.ndarray, test: np.ndarray) -> Split:
    known = ~(train | validation | test)
    return Split(*(events.part(mask) for mask in (train, validation, test, known)))
