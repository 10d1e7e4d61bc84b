"""From an event log to counts: how often each user took each item, as a sparse matrix."""

from typing import Any

import numpy as np

from jaxops.recommend.data.events import Events


def check_log(events: Events, known: int = 0) -> None:
    """Raise an error for a log that no model can be fitted to.

    Args:
        events: the log.
        known: number of items that the model knows already.

    Raises:
        ValueError: no events, a weight that is negative or not finite, or fewer items than known.
    """
    if len(events) == 0:
        raise ValueError("events must hold at least 1 event, got none")
    wrong = np.flatnonzero(~((events.weight >= 0) & np.isfinite(events.weight)))
    if len(wrong):
        raise ValueError(
            f"weight must be finite and at least 0, got {events.weight[wrong[0]]} in row {wrong[0]}"
        )
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
