"""Ids and their indices in the catalogue; logs whose items are indices in a known catalogue."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from jaxops.data.tables import plain_id
from jaxops.recommend.data.events import Events, Histories


def as_text(ids: Iterable[Any], name: str, where: str = "") -> list[str]:
    """Ids as text; in messages `name` is the name of the argument, and `where` a part of it.

    Raises:
        ValueError: an id is neither text nor an integer, or a single text is given, not a list.

    >>> as_text(["007", 7], "allow")
    ['007', '7']
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise ValueError(f"{name} must be a list of ids, got {ids!r}{where}")
    found = [plain_id(one) for one in ids]
    for one in found:
        if not isinstance(one, str | int | np.integer) or isinstance(one, bool):
            raise ValueError(f"{name} must hold ids, text or integers, got {one!r}{where}")
    return [str(one) for one in found]


def of_type(ids: Any, integers: bool) -> np.ndarray:
    """Ids as int64 if they were integers before and all of them can be, and as text otherwise.

    >>> of_type(["7", "10"], integers=True).tolist(), of_type(["7", "x"], integers=True).tolist()
    ([7, 10], ['7', 'x'])
    """
    text = np.array(ids, str)
    if integers:
        try:
            numbers = text.astype(np.int64)
        except (ValueError, OverflowError):
            return text
        if np.array_equal(numbers.astype(str), text):  # "007" is another id than 7
            return numbers
    return text


def places(ids: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The index of each id among the known ids followed by the new ones; and all these ids.

    >>> places(np.array(["b", "c"]), np.array(["a", "b"]))
    (array([1, 2], dtype=int32), array(['a', 'b', 'c'], dtype='<U1'))
    """
    place_of = {name: i for i, name in enumerate(known.astype(str).tolist())}
    place = [place_of.setdefault(name, len(place_of)) for name in ids.astype(str).tolist()]
    integers = known.dtype.kind == "i" if len(known) else ids.dtype.kind == "i"
    return np.array(place, np.int32), of_type([*place_of], integers)


def in_catalogue(log: Events, items: np.ndarray) -> Events:
    """A log whose catalogue begins with the known items.

    >>> log = Events(np.array([0]), np.array([0]), np.arange(1), np.ones(1, np.float32),
    ...              np.array(["ann"]), np.array(["tea"]))
    >>> in_catalogue(log, np.array(["jam", "tea"])).item.tolist()
    [1]
    """
    if same_ids(log.items[: len(items)], items):
        return log
    place, catalogue = places(log.items, items)
    return replace(log, item=place[log.item], items=catalogue, item_features={})


def same_ids(some: np.ndarray, others: np.ndarray) -> bool:
    """Whether ids are the same, in the same order; 7 and "7" are one id."""
    return np.array_equal(some.astype(str), others.astype(str))


def of_users(log: Events, users: Iterable[Any]) -> Events:
    """A log with only the events of some users, given by their ids, in that order.

    Raises:
        ValueError: an id is not in the log, or is given twice.

    >>> log = Events(np.array([0, 1]), np.array([0, 0]), np.arange(2), np.ones(2, np.float32),
    ...              np.array(["ann", "bob"]), np.array(["tea"]))
    >>> of_users(log, ["bob"]).users.tolist()
    ['bob']
    """
    place_of = {name: i for i, name in enumerate(log.users.astype(str).tolist())}
    ids = as_text(users, "users")
    unknown = next((name for name in ids if name not in place_of), None)
    if unknown is not None:
        raise ValueError(f"users must be users of the log, got {unknown!r}")
    if len(set(ids)) < len(ids):
        twice = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise ValueError(f"users must be distinct, got {twice!r} twice")
    chosen = np.array([place_of[name] for name in ids], int)
    number = np.full(len(log.users), -1, np.int32)
    number[chosen] = np.arange(len(chosen))
    kept = log.part(number[log.user] >= 0)
    features = {name: column[chosen] for name, column in log.user_features.items()}
    return replace(kept, user=number[kept.user], users=log.users[chosen], user_features=features)


def within(log: Events, count: int) -> tuple[Histories, np.ndarray]:
    """The histories within a catalogue of `count`, and each user's number of other items, (U,)."""
    inside = log.item < count
    pairs = np.unique(np.stack([log.user[~inside], log.item[~inside]]), axis=1)
    return log.part(inside).histories(), np.bincount(pairs[0], minlength=len(log.users))
