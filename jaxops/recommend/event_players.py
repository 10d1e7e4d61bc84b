"""The past events of users as the players of an explanation."""

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxops.model.finished import Program
from jaxops.model.players import Columns, Players
from jaxops.recommend.data.events import Histories
from jaxops.recommend.recommenders import Recommender, scores
from jaxops.task import Array, Batch, Column

AT_ONCE = 256  # users that are scored in one call


@dataclass(frozen=True)
class _Scores:
    """The scores of all items, for JAX."""

    model: Any

    def __call__(self, arrays: Any, columns: Batch) -> Array:
        params, table, share = arrays
        return scores(self.model, params, table, share, columns["history"])


def events_of(recommender: Recommender, histories: Histories, ids: np.ndarray) -> Players:
    """The players of users: the events of their histories that the model reads.

    An absent event is left out. The outputs are the scores of the items; that which is explained by
    default is the best one that is not in the history.

    Args:
        recommender: of any kind that reads no features of users.
        histories: of N users.
        ids: (N,) of the users.

    Raises:
        ValueError: a model that reads features of users, or a user without history.
    """
    model, count = recommender.model, len(recommender.items)
    if hasattr(model, "user_features"):
        raise ValueError(
            f"model must read histories alone to be explained, got {type(model).__name__}, which "
            "reads features of users"
        )
    empty = np.flatnonzero(histories.lengths == 0)
    if len(empty):
        raise ValueError(
            f"histories must have an item of the catalogue each, got none of {ids[empty[0]]!r}"
        )
    longest = int(histories.lengths.max())
    history = histories.rows(np.arange(len(ids)), min(longest, model.context or longest), count)
    columns = (Column("history", (history.shape[1],), "int", count + 1),)
    program = Program(_Scores(model), recommender.on_device, columns)
    score = jax.jit(program.function)

    def predict(some: Any) -> np.ndarray:
        rows = some["history"]
        parts = [score(program.params, {"history": rows[first : first + AT_ONCE]})
                 for first in range(0, len(rows), AT_ONCE)]  # fmt: skip
        return np.concatenate([np.asarray(part) for part in parts])

    def without(rows: np.ndarray, present: np.ndarray) -> Columns:
        kept = present & (history[rows] < count)
        order = np.argsort(~kept, axis=1, kind="stable")
        moved = np.take_along_axis(np.where(kept, history[rows], count), order, 1)
        return {"history": moved.astype(np.int32)}

    best = np.array(predict({"history": history}))
    row, place = np.nonzero(history < count)
    best[row, history[row, place]] = -np.inf
    return Players(
        "events",
        ids,
        np.where(history < count, np.append(recommender.items.astype(object), "")[history], ""),
        None,
        history < count,
        {"history": history},
        {"history": np.arange(history.shape[1])[None]},
        {"history": np.full((1, history.shape[1]), count, np.int32)},
        tuple(map(str, recommender.items)),
        best.argmax(1),
        predict,
        program,
        "",
        without,
    )
