"""Item-based k nearest neighbours: items that users took together with those in the history."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import check_context, check_log, check_share, recency, together
from jaxops.recommend.data.events import Events
from jaxops.task import recorded
from jaxops.train.settings import whole

Array = jax.Array


@recorded
@dataclass(frozen=True)
class ItemKNN:
    """Each item of a history adds its similarity to its `neighbours` nearest items.

    s_ij = (f_ij + backward f_ji) / (|x_i| |x_j| + shrink), where f_ij is the number of pairs of
    events of one user in which j is taken after i, each with the product of its weights, and x_i
    (U,) holds the summed weights of item i's events by user. With `backward` = 1 it is the cosine
    similarity, reduced for items with few events. A user's scores are the sum of decay^a s[item]
    over the history, where a is the number of later events.

    `fit` with parameters adds the counts of the new events. This equals a fit to all events if no
    user of the new events had events before. For a user who had, the old and the new items are not
    counted together; only a fit to all events is exact. The stored counts take 8 bytes for each
    pair of items that share a user.

    Attributes:
        neighbours: number of neighbours kept for each item.
        shrink: added to the denominator of the similarity.
        context: number of a user's last items that are read; by default all.
        decay: the weight of an event of the history relative to the next, in (0, 1]. With 1 the
            order of the history does not matter.
        backward: the weight of pairs in which the neighbour was taken before the item, in [0, 1].
            With 1 the order of the log does not matter.

    References:
        Deshpande and Karypis 2004, Item-based top-N recommendation algorithms; with shrinkage as in
        Ferrari Dacrema et al. 2019, arXiv:1907.06902; recent events weigh more as in Garg et al.
        2019 (STAN), and pairs by their order as in the sequential rules of Kamehkhosh et al. 2017
        (CEUR 1922).

    >>> log = Events(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]), np.arange(5),
    ...              np.ones(5, np.float32), np.array(list("abc")), np.array(["tea", "jam"]))
    >>> model = ItemKNN(neighbours=1, shrink=0.0)
    >>> scores = model.queries(model.fit(log), jnp.array([[0]]))
    >>> [round(float(score), 3) for score in scores[0]]  # 2 / sqrt(3 * 2)
    [0.0, 0.816]
    """

    neighbours: int = 100
    shrink: float = 10.0
    context: int | None = None
    decay: float = 1.0
    backward: float = 1.0

    for_update: ClassVar[tuple[str, ...]] = ("count", "column", "start")

    def __post_init__(self) -> None:
        whole("neighbours", self.neighbours, 1)
        check_context(self.context)
        if not self.shrink >= 0:
            raise ValueError(f"shrink must be at least 0, got {self.shrink}")
        check_share("decay", self.decay)
        if not 0 <= self.backward <= 1:
            raise ValueError(f"backward must be in [0, 1], got {self.backward}")

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or `params` updated with new events.

        Args:
            events: the log.
            params: earlier parameters to update.

        Returns:
            `neighbours` (N, K) int32, N where there are fewer; `similarity` (N, K) float32,
            decreasing along a row; and for updates the counts of pairs, with |x_i|^2 on the
            diagonal, in SciPy's CSR format: `count` float32, `column` int32, `start` (N + 1,)
            int64.

        Raises:
            ValueError: see `check_log`.
        """
        from scipy import sparse

        size = len(events.items)
        check_log(events, 0 if params is None else len(params["start"]) - 1)
        gram = together(events, self.backward)
        if params is not None:
            start = np.asarray(params["start"])
            start = np.pad(start, (0, size + 1 - len(start)), mode="edge")
            parts = np.asarray(params["count"]), np.asarray(params["column"]), start
            gram = (gram + sparse.csr_array(parts, shape=(size, size))).tocsr()
        gram.sort_indices()
        nearest, similarity = self._nearest(gram)
        return {
            "neighbours": nearest,
            "similarity": similarity,
            "count": gram.data,
            "column": gram.indices.astype(np.int32),
            "start": gram.indptr.astype(np.int64),
        }

    def _nearest(self, gram: Any) -> tuple[np.ndarray, np.ndarray]:
        size = gram.shape[0]
        norm = np.sqrt(gram.diagonal())
        row = np.repeat(np.arange(size), np.diff(gram.indptr))
        column = gram.indices
        other = row != column
        row, column, value = row[other], column[other], gram.data[other]
        value = value / (norm[row] * norm[column] + self.shrink)
        order = np.lexsort((column, -value, row))  # equal values stay in the catalogue's order
        row, column, value = row[order], column[order], value[order]
        rank = np.arange(len(row)) - np.searchsorted(row, row)
        near = rank < self.neighbours
        width = min(self.neighbours, max(1, size - 1))
        nearest = np.full((size, width), size, np.int32)
        similarity = np.zeros((size, width), np.float32)
        nearest[row[near], rank[near]] = column[near]
        similarity[row[near], rank[near]] = value[near]
        return nearest, similarity

    def queries(self, params: Any, history: Array) -> Array:
        """The scores (B, N) float32 of histories (B, L)."""
        nearest, similarity = jnp.asarray(params["neighbours"]), jnp.asarray(params["similarity"])
        size, user = len(nearest), jnp.arange(len(history))[:, None]

        def add(scores: Array, event: tuple[Array, Array]) -> tuple[Array, None]:
            item, share = event
            column = nearest.at[item].get(mode="fill", fill_value=size)
            value = similarity.at[item].get(mode="fill", fill_value=0)
            return scores.at[user, column].add(share[:, None] * value, mode="drop"), None

        start = jnp.zeros((len(history), size), jnp.float32)
        share = recency(history, size, self.decay)
        return jax.lax.scan(add, start, (history.T, share.T))[0]

    def table(self, params: Any) -> None:
        """None: the queries are the scores."""
        return None
