"""Counts from an event log: of users and items, and of pairs of items of the same users."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.events import Events
from jaxops.task import Array
from jaxops.train.settings import whole


def check_log(events: Events, known: int = 0) -> None:
    """Raise an error for a log that no model can be fitted to.

    Args:
        events: the log.
        known: number of items that the model already knows.

    Raises:
        ValueError: no events, a weight that is negative or not finite, no weight above 0, or fewer
            items than known.
    """
    if len(events) == 0:
        raise ValueError("events must hold at least 1 event, got none")
    wrong = np.flatnonzero(~((events.weight >= 0) & np.isfinite(events.weight)))
    if len(wrong):
        raise ValueError(
            f"weight must be finite and at least 0, got {events.weight[wrong[0]]} in row {wrong[0]}"
        )
    if not events.weight.any():
        raise ValueError("weight must be above 0 for an event, got 0 for all")
    if len(events.items) < known:
        raise ValueError(
            f"items must begin with the {known:,} known items, got {len(events.items):,} items"
        )


def interactions(events: Events) -> Any:
    """The summed weight of each user's events with each item, (U, N) float32, a SciPy CSR array.

    >>> log = Events(np.array([0, 1, 1]), np.array([0, 0, 1]), np.arange(3), np.ones(3, np.float32),
    ...              np.array(["ann", "bob"]), np.array(["tea", "jam"]))
    >>> interactions(log).toarray().tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    from scipy import sparse

    shape = len(events.users), len(events.items)
    weight = np.asarray(events.weight, np.float32)
    return sparse.coo_array((weight, (events.user, events.item)), shape).tocsr()


def together(events: Events, backward: float = 1.0) -> Any:
    """The counts of pairs of items of the same users, (N, N) float32, a SciPy CSR array.

    Element (i, j) is the number of pairs of events of one user in which j is taken after i, plus
    `backward` times the number of pairs in which j is taken before i. A pair counts as the product
    of its weights. With X the `interactions`, the diagonal is that of X'X, and with `backward` = 1
    the whole matrix is X'X.

    >>> log = Events(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]), np.arange(4),
    ...              np.ones(4, np.float32), np.array(["ann", "bob"]), np.array(["tea", "jam"]))
    >>> together(log, backward=0.5).toarray().tolist()
    [[2.0, 2.0], [1.0, 2.0]]
    """
    log = interactions(events)
    either = (log.T.tocsr() @ log).tocsr()
    if backward == 1:
        return either
    counts = (backward * either + (1 - backward) * _following(events)).tocsr()
    counts.setdiag(either.diagonal())
    counts.eliminate_zeros()
    return counts


def _following(events: Events) -> Any:
    """The part of X'X, with the diagonal, that comes from pairs whose second event is later.

    Compare the positions of two events of a user as binary numbers. In the first digit in which
    they differ, the earlier event has 0 and the later has 1. So for each digit the pairs are a
    product of two sparse matrices, with a row for each user and value of the higher digits.
    """
    from scipy import sparse

    order = np.argsort(events.user, kind="stable")  # by user, and then by time
    user, item = events.user[order].astype(np.int64), events.item[order]
    weight = np.asarray(events.weight, np.float32)[order]
    place = np.arange(len(user)) - np.searchsorted(user, user)
    longest, size = int(place.max()) + 1, len(events.items)
    pairs = sparse.csr_array((size, size), dtype=np.float32)
    for digit in range((longest - 1).bit_length()):
        above = user * longest + (place >> (digit + 1))  # ascending
        row = np.cumsum(np.diff(above, prepend=above[0]) != 0)
        later = (place >> digit) % 2 == 1
        first, second = (
            sparse.coo_array((weight[x], (row[x], item[x])), (row[-1] + 1, size)).tocsr()
            for x in (~later, later)
        )
        pairs = pairs + first.T.tocsr() @ second
    return pairs


def recency(history: Array, padding: int, decay: float) -> Array:
    """The weights of the events of histories: decay^(number of later events), 0 for padding.

    Args:
        history: (B, L) int32, oldest first.
        padding: the number that stands for padding, which comes last; larger numbers do too.
        decay: the weight of an event relative to the next one.

    Returns:
        (B, L) float32.

    References:
        Garg et al. 2019, Sequence and time aware neighborhood for session-based recommendations:
        STAN, which also weighs by the distance from the last event.

    >>> recency(jnp.array([[4, 7, 9], [5, 9, 9]]), padding=9, decay=0.5).tolist()
    [[0.5, 1.0, 0.0], [1.0, 0.0, 0.0]]
    """
    known = history < padding
    later = known.sum(1, keepdims=True) - 1 - jnp.arange(history.shape[1])[None]
    return jnp.where(known, jnp.float32(decay) ** later, 0)


def check_context(context: int | None) -> None:
    """Raise `ValueError` if the number of last items is neither None nor at least 1."""
    if context is not None:
        whole("context", context, 1)


def check_share(name: str, value: float) -> None:
    """Raise `ValueError` for a setting outside (0, 1]."""
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {value}")
