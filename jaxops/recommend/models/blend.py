"""Several recommenders as one: a weighted sum of their log-probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from numbers import Real
from typing import Any

import jax

from jaxops.model.finished import Model
from jaxops.recommend.data.catalogue import same_ids
from jaxops.recommend.recommenders import (
    Recommender,
    last_items,
    recommender_of,
    scores,
)
from jaxops.task import Array, Params, recorded


@recorded
@dataclass(frozen=True)
class Blend:
    """The sum over models of weight * log softmax(scores / temperature).

    This puts the scores of all models on the same scale. For models whose scores are logits, such
    as those trained with cross-entropy, use temperature 1; equal weights then give the geometric
    mean of their predicted probabilities.

    Attributes:
        models: the models of the recommenders.
        weights: the weight of each model.
        temperatures: the temperature of each model.

    >>> from jaxops.recommend import ItemKNN, Popularity
    >>> Blend((ItemKNN(context=5), Popularity()), (0.5, 0.5), (1.0, 1.0)).context
    5
    """

    models: tuple[Any, ...]
    weights: tuple[float, ...]
    temperatures: tuple[float, ...]

    @property
    def context(self) -> int | None:
        """The longest context of the models."""
        contexts = [model.context for model in self.models]
        return None if None in contexts else max(contexts)

    def queries(self, params: Params, history: Array) -> Array:
        """The scores (B, N) of histories (B, L)."""
        total: Any = 0.0
        settings = zip(self.models, self.weights, self.temperatures, strict=True)
        for i, (model, weight, temperature) in enumerate(settings):
            part, share = params[str(i)], params["share"]
            last = last_items(history, model.context, len(share))
            every = scores(model, part, model.table(part), share, last)
            total += weight * jax.nn.log_softmax(every / temperature)
        return total

    def table(self, params: Params) -> None:
        """None: the queries are the scores."""


def members_of(blended: Recommender) -> list[Recommender]:
    """The recommenders that a blend combines.

    >>> from jaxops import recommend as r
    >>> log = r.events({"user": ["a", "a", "b"], "item": ["x", "y", "x"]}, time=None)
    >>> [type(one.model).__name__ for one in members_of(blend([r.fitted(r.Popularity(), log)]))]
    ['Popularity']
    """
    models = enumerate(blended.model.models)
    return [replace(blended, model=one, params=blended.params[str(i)]) for i, one in models]


def blend(
    recommenders: Sequence[Model | Recommender],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
) -> Any:
    """Combine several models of one catalogue; see `Blend`.

    Args:
        recommenders: at least one finished model, or recommender.
        weights: the weight of each recommender; by default equal weights.
        temperatures: the temperature of each recommender; by default 1.

    Returns:
        A model with the reader of the first model; or a `Recommender`, if the first is one.

    Raises:
        ValueError: there is no recommender; the number of weights or temperatures differs; a weight
            is below 0; a temperature is not above 0; no weight is above 0; or the items differ.

    >>> from jaxops import recommend as r
    >>> log = r.events({"user": ["a", "a", "b"], "item": ["x", "y", "x"]}, time=None)
    >>> both = blend([r.fitted(r.Popularity(), log), r.fitted(r.ItemKNN(neighbours=1), log)])
    >>> r.recommend(both, [["x"]], k=1).ids()
    [['y']]
    """
    if isinstance(recommenders, Model | Recommender):
        raise ValueError("recommenders must be a list of models, got one model")
    count = len(recommenders)
    weights = [1.0 / max(count, 1)] * count if weights is None else weights
    temperatures = [1.0] * count if temperatures is None else temperatures
    if not count == len(weights) == len(temperatures) or count == 0:
        raise ValueError(
            "recommenders, weights and temperatures must have the same length, at least 1, got "
            f"{count}, {len(weights)} and {len(temperatures)}"
        )
    for value in weights:
        if not isinstance(value, Real) or not 0 <= value < inf:
            raise ValueError(f"weights must be finite and at least 0, got {value!r}")
    for value in temperatures:
        if not isinstance(value, Real) or not 0 < value < inf:
            raise ValueError(f"temperatures must be finite and above 0, got {value!r}")
    if not any(weights):
        raise ValueError("weights must hold one above 0, got zeros")
    members = [recommender_of(one) for one in recommenders]
    first = members[0]
    for i, other in enumerate(members):
        if not same_ids(other.items, first.items):
            raise ValueError(f"recommenders must have the same items, got others in number {i}")
    params: dict[str, Any] = {str(i): r.params for i, r in enumerate(members)}
    params["share"] = first.on_device[2]
    model = Blend(tuple(r.model for r in members), tuple(weights), tuple(temperatures))
    blended = Recommender(model, params, first.items, first.counts)
    of = recommenders[0]
    return Model(blended, None, of.reader) if isinstance(of, Model) else blended
