"""Several recommenders as one: a weighted sum of what they say."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxops.recommend.recommenders import Recommender, last_items, scores
from jaxops.task import Array, Params, recorded


@recorded
@dataclass(frozen=True)
class Blend:
    """The sum over models of weight * log softmax(scores / temperature).

    So each model speaks in log-probabilities, whatever its scores are; for models whose scores are
    logits, as those trained by cross-entropy, the temperature is 1, and equal weights are the
    geometric mean of what they foretell.

    Attributes:
        models: of the recommenders.
        weights: of each.
        temperatures: of each.
    """

    models: tuple[Any, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    @property
    def context(self) -> int | None:
        """The longest of the models'."""
        found = [model.context for model in self.models]
        return None if None in found else max(found)

    def queries(self, params: Params, history: Array) -> Array:
        """Scores (B, N) of items (B, L)."""
        total: Any = 0.0
        together = zip(self.models, self.weights, self.temperatures, strict=True)
        for i, (model, weight, temperature) in enumerate(together):
            own, share = params[str(i)], params["share"]
            last = last_items(history, model.context, len(share))
            found = scores(model, own, model.table(own), share, last)
            total += weight * jax.nn.log_softmax(found / temperature)
        return total

    def table(self, params: Params) -> None:
        """None: the queries are the scores."""


def blend(
    recommenders: Sequence[Recommender],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
) -> Recommender:
    """Several recommenders of one catalogue as one; see `Blend`.

    Args:
        recommenders: at least one.
        weights: of each; equal ones by default.
        temperatures: of each; 1 by default.

    Raises:
        ValueError: none, other numbers of weights or temperatures, a temperature that is not
            positive, or different items.

    >>> from jaxops import recommend as r
    >>> log = r.events({"user": ["a", "a", "b"], "item": ["x", "y", "x"]}, time=None)
    >>> both = blend([r.fit(r.Popularity(), log), r.fit(r.ItemKNN(neighbours=1), log)])
    >>> r.recommend(both, [["x"]], k=1).ids()
    [['y']]
    """
    count = len(recommenders)
    weights = [1.0 / max(count, 1)] * count if weights is None else weights
    temperatures = [1.0] * count if temperatures is None else temperatures
    if not count == len(weights) == len(temperatures) or count == 0:
        raise ValueError(
            f"recommenders, weights, temperatures: {count}, {len(weights)} and "
            f"{len(temperatures)} found, as many of each wanted, at least one"
        )
    if min(temperatures) <= 0:
        raise ValueError(f"temperatures: {min(temperatures)} found, above 0 wanted")
    first = recommenders[0]
    for i, other in enumerate(recommenders):
        if not np.array_equal(other.items, first.items):
            raise ValueError(f"recommenders: number {i} has other items than number 0")
    params: dict[str, Any] = {str(i): r.on_device[0] for i, r in enumerate(recommenders)}
    params["share"] = first.on_device[2]
    model = Blend(tuple(r.model for r in recommenders), tuple(weights), tuple(temperatures))
    return Recommender(model, params, first.items, first.counts)
