"""From an event log to counts: who took what how often, as a sparse matrix."""

from typing import Any

import numpy as np

from jaxops.recommend.data.events import Events


def check_log(events: Events, known: int = 0) -> None:
    """Refuse a log that nothing can be fitted to.

    Args:
        events: the log.
        known: how many items the model has already.

    Raises:
        ValueError: no events, a weight below 0, or fewer items than are known.
    """
    if len(events) == 0:
        raise ValueError("events: none found, at least one wanted")
    wrong = ~((events.weight >= 0) & np.isfinite(events.weight))
    if wrong.any():
        raise ValueError(f"weight: {events.weight[wrong][0]} found, finite and not below 0 wanted")
    if len(events.items) < known:
        raise ValueError(
            f"items: {len(events.items)} found, wanted the {known} known ones and then the new"
        )


def interactions(events: Events) -> Any:
    """The weight of each user's events with each item, (U, N) float32, a SciPy CSR array.

    Events of one user with one item are added.

    >>> log = Events(np.array([0, 1, 1]), np.array([0, 0, 1]), np.arange(3), np.ones(3, np.float32),
    ...              np.array(["ann", "bob"]), np.array(["tea", "jam"]))
    >>> interactions(log).toarray().tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    from scipy import sparse

    shape = len(events.users), len(events.items)
    weight = np.asarray(events.weight, np.float32)
    return sparse.coo_array((weight, (events.user, events.item)), shape).tocsr()
