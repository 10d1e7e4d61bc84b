"""EASE: every item is predicted from the others by ridge regression, in closed form."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxops.recommend.data.counts import (
    check_context,
    check_log,
    check_share,
    interactions,
    recency,
)
from jaxops.recommend.data.events import Events
from jaxops.task import recorded

Array = jax.Array
ITEMS_AT_ONCE = 1024
SOLVED_AT_ONCE = 1024


@recorded
@dataclass(frozen=True)
class EASE:
    """Embarrassingly shallow autoencoder: x B, with B = argmin |X - XB|^2 + l2 |B|^2, diag B = 0.

    With P = (X'X + l2 I)^-1, B = I - P / diag P (each column divided by its diagonal element).
    X (U, N) holds the summed weights of each user's events with each item. A user's scores are the
    sum of decay^a B[item] over the history, where a is the number of later events, whether or not
    the user was in the log.

    M items take 8 M^2 bytes in the parameters and 16 M^2 while fitting: 1.6 GB for 10,000 items,
    6.4 GB for 20,000. For a larger catalogue, `min_count` leaves rare items out.

    `fit` with parameters adds the new events' counts to the stored ones and solves again. This
    equals a fit to all events if no user of the new events had events before. For a user who had,
    the old and the new items are not counted together; only a fit to all events is exact. An item
    that is new or was left out is included once it has `min_count` new events.

    Attributes:
        l2: regularisation, added to the diagonal of X'X; 100 to 1,000 for most logs.
        min_count: items with fewer events are left out: they change no score, and score 0 like
            items without events.
        context: number of a user's last items that are read; by default all.
        decay: the weight of an event of the history relative to the next, in (0, 1]. With 1 the
            order of the history does not matter.

    References:
        Steck 2019, arXiv:1905.03375; for `decay` see `recommend.ItemKNN`.

    >>> log = Events(np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 2]), np.arange(5),
    ...              np.ones(5, np.float32), np.array(list("abc")), np.array(["tea", "jam", "ink"]))
    >>> model = EASE(l2=1.0)
    >>> scores = model.queries(model.fit(log), jnp.array([[0, 3]]))  # one item, and padding
    >>> [round(float(score), 3) for score in scores[0]]
    [0.0, 0.667, 0.0]
    """

    l2: float = 100.0
    min_count: int = 1
    context: int | None = None
    decay: float = 1.0

    for_update: ClassVar[tuple[str, ...]] = ("gram",)

    def __post_init__(self) -> None:
        if not self.l2 > 0:
            raise ValueError(f"l2 must be above 0, got {self.l2}")
        check_context(self.context)
        check_share("decay", self.decay)

    def fit(self, events: Events, params: Any = None) -> dict[str, Any]:
        """The parameters, or `params` updated with new events.

        Args:
            events: the log.
            params: earlier parameters to update.

        Returns:
            `weights` B (M, M) float32; `gram` X'X (M, M) float32; `place` (N,) int32, the row of
            each item in both, M for an item left out.

        Raises:
            ValueError: see `check_log`; or no item has `min_count` events.
        """
        known = {} if params is None else params
        old = np.asarray(known.get("place", np.zeros(0, np.int32)))
        check_log(events, len(old))
        count = np.bincount(events.item, minlength=len(events.items))
        before = len(known.get("gram", ()))
        out = np.pad(old, (0, len(count) - len(old)), constant_values=before) == before
        new = np.flatnonzero(out & (count >= max(1, self.min_count)))
        kept = np.concatenate([np.argsort(old, kind="stable")[:before], new])
        total = len(kept)
        if total == 0:
            raise ValueError(
                f"min_count must be at most {count.max():,} (the events of the most frequent "
                f"item), got {self.min_count:,}"
            )
        place = np.full(len(count), total, np.int32)
        place[kept] = np.arange(total)
        gram = np.zeros((total, total), np.float32)
        gram[:before, :before] = known.get("gram", 0)
        log = interactions(events)[:, kept]
        of_item = log.T.tocsr()
        for start in range(0, total, ITEMS_AT_ONCE):
            rows = slice(start, start + ITEMS_AT_ONCE)
            gram[rows] += (of_item[rows] @ log).toarray()
        return {"weights": _weights(gram, self.l2), "gram": gram, "place": place}

    def queries(self, params: Any, history: Array) -> Array:
        """The scores (B, N) float32 of histories (B, L)."""
        weights, place = params["weights"], jnp.asarray(params["place"])
        rows = place.at[history].get(mode="fill", fill_value=len(weights))

        def add(scores: Array, event: tuple[Array, Array]) -> tuple[Array, None]:
            row, share = event
            return scores + share[:, None] * weights.at[row].get(mode="fill", fill_value=0), None

        start = jnp.zeros((len(history), len(weights)), jnp.float32)
        share = recency(history, len(place), self.decay)
        scores, _ = jax.lax.scan(add, start, (rows.T, share.T))
        return scores.at[:, place].get(mode="fill", fill_value=0)

    def table(self, params: Any) -> None:
        """None: the queries are the scores."""
        return None


@jax.jit
def _weights(gram: Array, l2: Array) -> Array:
    """B from X'X, scaled to a unit diagonal first, so that float32 keeps rare items exact."""
    identity = jnp.eye(len(gram), dtype=jnp.float32)
    scale = jnp.sqrt(jnp.diagonal(gram) + l2)
    with jax.default_matmul_precision("highest"):
        inverse = _inverse((gram + l2 * identity) / jnp.outer(scale, scale))
    inverse = inverse / jnp.outer(scale, scale)
    return jnp.where(identity > 0, 0, -inverse / jnp.diagonal(inverse)[None])


def _inverse(a: Array) -> Array:
    """The inverse of a positive definite matrix, by halves with the Schur complement.

    Nearly all work is in matrix products, which on a CPU is six times as fast as solving with one
    Cholesky factor of the whole matrix.
    """
    half = len(a) // 2
    if len(a) <= SOLVED_AT_ONCE:
        return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(a), True), jnp.eye(len(a)))
    first = _inverse(a[:half, :half])
    below = a[half:, :half] @ first
    last = _inverse(a[half:, half:] - below @ a[:half, half:])
    cross = last @ below
    return jnp.block([[first + below.T @ cross, -cross.T], [-cross, last]])
