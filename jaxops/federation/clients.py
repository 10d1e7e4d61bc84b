"""Clients and their rows, and the clients that take part in each round."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from jaxops.data.checks import rows
from jaxops.devices import hosts
from jaxops.devices.plans import Plan
from jaxops.task import Array
from jaxops.train.resident import Columns, Resident, checksums

# A Poisson draw has room for so many clients that more are drawn in one of 1e12 rounds.
OVERFLOW = 1e-12


class Clients:
    """Columns in memory, and which of their rows each client has.

    Args:
        columns: name -> array (N, ...); a column `mask` (N,) holds the weights of the rows.
        parts: the row numbers of each client, as `even`, `by_shard`, `dirichlet` and `by_id` give
            them. Rows that no client has are not used.

    Attributes:
        columns: the columns.
        parts: the row numbers of each client, int64.
        weights: float64 (clients,), the weight of each client: its number of rows, or the sum of
            their `mask`.

    Raises:
        ValueError: no client, a client without a row (of a weight above 0), a row that there is
            not, or a row of two clients.

    >>> clients = Clients({"x": np.zeros((5, 2))}, [[0, 1, 2], [4]])
    >>> len(clients), clients.weights.tolist()
    (2, [3.0, 1.0])
    """

    def __init__(self, columns: Mapping[str, Any], parts: Sequence[Any]) -> None:
        self.columns: Columns = {name: np.asanyarray(value) for name, value in columns.items()}
        count = rows(self.columns)
        self.parts = [_row_numbers(i, part, count) for i, part in enumerate(parts)]
        if not self.parts:
            raise ValueError("parts must have at least one client, got none")
        _check_once(self.parts, count)
        mask = np.asarray(self.columns.get("mask", np.ones(count)), np.float64)
        self.weights = np.array([mask[part].sum() for part in self.parts])
        if not self.weights.all():
            raise ValueError(
                f"client {int(self.weights.argmin())} must have a row whose mask is above 0, got "
                "0 in all"
            )

    def __len__(self) -> int:
        return len(self.parts)


def _row_numbers(client: int, part: Any, count: int) -> np.ndarray:
    numbers = np.asarray(part)
    if numbers.size == 0:
        raise ValueError(
            f"client {client} must have at least 1 row, got 0; leave such clients out of parts"
        )
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise ValueError(
            f"client {client} must have row numbers (n,), got {numbers.dtype}{list(numbers.shape)}"
        )
    if numbers.min() < 0 or numbers.max() >= count:
        bad = numbers[(numbers < 0) | (numbers >= count)][0]
        raise ValueError(f"client {client} must have rows in [0, {count}), got {bad}")
    return numbers.astype(np.int64)


def _check_once(parts: list[np.ndarray], count: int) -> None:
    """Raise `ValueError` if a row is in two places."""
    owner = np.full(count, -1)
    for client, part in enumerate(parts):
        numbers, times = np.unique(part, return_counts=True)
        if (times > 1).any():
            raise ValueError(
                f"client {client} must have each row once, got row {numbers[times > 1][0]} "
                f"{times.max()} times"
            )
        taken = numbers[owner[numbers] >= 0]
        if len(taken):
            raise ValueError(
                f"row {taken[0]} must be of one client, got clients {owner[taken[0]]} and {client}"
            )
        owner[part] = client


class Chosen(NamedTuple):
    """What the clients of a round have; the leading axis of each array is that of the clients.

    Attributes:
        rows: the columns of a client, (C, n, ...), flat, and `mask` (C, n), which is 0 for padding.
        client: (C,) int32, the client's number; the number of clients for a place without a client.
        share: (C,) float32, the client's share of the weight of all clients.
    """

    rows: dict[str, Array]
    client: Array
    share: Array


class TakeClients(NamedTuple):
    """Gathers the rows of the clients of a round, inside the program.

    Attributes:
        clients: the number of all clients.
    """

    clients: int

    def __call__(self, fixed: dict[str, Any], index: Array) -> Chosen:
        """The clients of `index` (C,) int32; -1 is a place without a client."""
        there, client = index >= 0, jnp.maximum(index, 0)
        place = jnp.where(there[:, None], fixed["parts"][client], -1)
        chosen = jnp.maximum(place, 0)
        columns = {name: value[chosen] for name, value in fixed["columns"].items()}
        present = (place >= 0).astype(jnp.float32)
        columns["mask"] = present * columns["mask"] if "mask" in columns else present
        return Chosen(columns, jnp.where(there, client, self.clients), fixed["share"][client])


class Rounds(Resident):
    """The clients of each round, as a source of `fit`: a batch is the clients of a round.

    Which clients take part is drawn for each round anew, by the seed and the number of the round.

    Args:
        clients: the clients.
        columns: the columns that the task names.
        per_round: number of clients in a round; with `poisson` the expected number.
        seed: determines the draws.
        plan: the devices.
        block: number of clients that are computed together on a device.
        poisson: each client takes part with probability per_round / clients, independently of the
            others. Otherwise `per_round` of them are drawn without replacement.
    """

    def __init__(
        self,
        clients: Clients,
        columns: Columns,
        per_round: int,
        seed: int,
        plan: Plan,
        block: int,
        poisson: bool,
    ) -> None:
        self.clients, self.poisson = clients, poisson
        self.batch_size, self.seed, self.plan = per_round, seed, plan
        self.rows, self.probability = len(clients), per_round / len(clients)
        self.most = per_round
        if poisson:
            most = scipy.stats.binom.isf(OVERFLOW, len(clients), self.probability)
            self.most = min(int(most) + 1, len(clients))
        parts = plan.batch_shards * block
        self.padded = -(-self.most // parts) * parts
        self.example = {name: value[:1] for name, value in columns.items()}
        self.steps_per_epoch = None
        self._real = None
        self._columns = columns
        self._place(columns)

    def _rows_of(self, step: int) -> np.ndarray:
        """The numbers of the clients of a round."""
        random = np.random.default_rng((self.seed, step))
        if self.poisson:
            drawn = np.flatnonzero(random.uniform(size=self.rows) < self.probability)
            if len(drawn) > self.most:  # to leave one out would change the law of the draw
                raise RuntimeError(
                    f"round {step} must have at most {self.most} clients, which are exceeded with "
                    f"probability {OVERFLOW}, got {len(drawn)}; use another seed"
                )
            return drawn
        return random.choice(self.rows, self.most, replace=False)

    def _place(self, columns: Columns) -> None:
        self.take = TakeClients(self.rows)
        longest = max(map(len, self.clients.parts))
        parts = np.full((self.rows, longest), -1, np.int32)
        for line, part in zip(parts, self.clients.parts, strict=True):
            line[: len(part)] = part
        weights = self.clients.weights
        fixed = {
            "columns": {
                name: value.reshape(len(value), -1) if value.ndim > 2 else value
                for name, value in columns.items()
            },
            "parts": parts,
            "share": (weights / weights.sum()).astype(np.float32),
        }
        self.fixed = hosts.put(jax.tree.map(np.asarray, fixed), self.plan.whole())

    def identity(self) -> dict[str, Any]:
        """The settings that must be the same in a resumed run and in its checkpoint."""
        return {
            "clients_per_round": self.batch_size,
            "seed": self.seed,
            "clients": self.rows,
            "poisson": self.poisson,
        }

    def sample(self) -> Any:
        """Checksums, to notice that another process has other data."""
        return self.fingerprint if hosts.count() > 1 else None

    @property
    def fingerprint(self) -> dict[str, str]:
        """The checksum of each column and of the clients' rows."""
        sizes = np.array([len(part) for part in self.clients.parts])
        split = {"rows of clients": np.concatenate([sizes, *self.clients.parts])}
        return checksums({**self._columns, **split})
