"""Splits of labelled rows over clients, as experiments with federation draw them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxops.train.settings import whole

TRIES = 1000


def even(rows: int, clients: int, seed: int = 0) -> list[np.ndarray]:
    """Rows at random, equally many for each client up to one (the "IID" split of McMahan et al.).

    Args:
        rows: the number of rows.
        clients: the number of clients.
        seed: the seed of the draw.

    Returns:
        The row numbers of each client, int64, ascending.

    Raises:
        ValueError: fewer rows than clients.

    >>> [part.tolist() for part in even(5, clients=2)]
    [[2, 3, 4], [0, 1]]
    """
    clients = _clients(clients, rows)
    drawn = np.random.default_rng(seed).permutation(rows)
    return [np.sort(part) for part in np.array_split(drawn, clients)]


def by_shard(
    labels: Sequence[Any] | np.ndarray, clients: int, shards: int = 2, seed: int = 0
) -> list[np.ndarray]:
    """Rows sorted by their label and cut into shards, of which each client gets a few at random.

    With two shards, most clients have rows of two classes only: the non-IID split of McMahan et
    al. 2017, section 3.

    Args:
        labels: (N,), the label of each row.
        clients: the number of clients.
        shards: the number of shards of each client.
        seed: the seed of the draw.

    Returns:
        The row numbers of each client, int64, ascending.

    Raises:
        ValueError: fewer rows than shards.

    References:
        McMahan et al. 2017, arXiv:1602.05629.

    >>> labels = np.repeat([0, 1, 2, 3], 6)
    >>> [np.unique(labels[part]).tolist() for part in by_shard(labels, clients=4)]
    [[0, 1], [1, 3], [0, 2], [2, 3]]
    """
    labels = np.asarray(labels)
    clients, shards = _clients(clients, len(labels)), whole("shards", shards, 1)
    if clients * shards > len(labels):
        raise ValueError(
            f"shards must be at most {len(labels) // clients} for {len(labels)} rows of {clients} "
            f"clients, got {shards}"
        )
    rng = np.random.default_rng(seed)
    order = np.lexsort((rng.permutation(len(labels)), labels))  # at random within a label
    pieces = np.array_split(order, clients * shards)
    drawn = rng.permutation(clients * shards).reshape(clients, shards)
    return [np.sort(np.concatenate([pieces[i] for i in of])) for of in drawn]


def dirichlet(
    labels: Sequence[Any] | np.ndarray,
    clients: int,
    concentration: float,
    seed: int = 0,
    least: int = 1,
) -> list[np.ndarray]:
    """The rows of each label, divided over the clients by shares from a Dirichlet distribution.

    For each label the clients' shares are one draw of Dir(concentration, ..., concentration). So
    the clients differ in their labels and in their number of rows, the more the smaller the
    concentration is. The draw is repeated until each client has enough rows.

    Args:
        labels: (N,), the label of each row.
        clients: the number of clients.
        concentration: above 0; 0.1 gives most clients few labels, 100 gives all nearly the same.
        seed: the seed of the draw.
        least: the smallest number of rows of a client, at least 1.

    Returns:
        The row numbers of each client, int64, ascending.

    Raises:
        ValueError: a number out of range, or no draw of 1,000 gives each client enough rows.

    References:
        Yurochkin et al. 2019, arXiv:1905.12022.

    >>> parts = dirichlet(np.repeat([0, 1], 50), clients=4, concentration=1.0)
    >>> [len(part) for part in parts], len(np.unique(np.concatenate(parts)))
    ([21, 47, 26, 6], 100)
    """
    labels = np.asarray(labels)
    clients, least = _clients(clients, len(labels)), whole("least", least, 1)
    if not concentration > 0:
        raise ValueError(f"concentration must be above 0, got {concentration}")
    rng = np.random.default_rng(seed)
    of_label = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(TRIES):
        parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
        for rows in of_label:
            shares = rng.dirichlet(np.full(clients, concentration))
            cuts = np.round(shares.cumsum()[:-1] * len(rows)).astype(int)
            for part, chosen in zip(parts, np.split(rng.permutation(rows), cuts), strict=True):
                part.append(chosen)
        joined = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, joined)) >= least:
            return joined
    raise ValueError(
        f"concentration must be large enough that {clients} clients get {least} of {len(labels)} "
        f"rows each in one of {TRIES:,} draws, got {concentration}"
    )


def by_id(ids: Sequence[Any] | np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """The rows of each id, such as a user's or a hospital's.

    Args:
        ids: (N,), the id of each row.

    Returns:
        The row numbers of each client, int64, ascending, and the clients' ids, sorted.

    >>> parts, names = by_id(["ann", "bob", "ann"])
    >>> [part.tolist() for part in parts], names.tolist()
    ([[0, 2], [1]], ['ann', 'bob'])
    """
    names, client = np.unique(np.asarray(ids), return_inverse=True)
    order = np.argsort(client, kind="stable")
    return np.split(order, np.bincount(client).cumsum()[:-1]), names


def _clients(clients: int, rows: int) -> int:
    clients = whole("clients", clients, 1)
    if clients > rows:
        raise ValueError(f"clients must be at most {rows} (the number of rows), got {clients}")
    return clients
