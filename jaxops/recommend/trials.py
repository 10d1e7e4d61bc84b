"""The choice of the best method by validation, or of a blend of two methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxops.recommend.data.events import Events
from jaxops.recommend.evaluation import evaluated
from jaxops.recommend.metrics import ndcg
from jaxops.recommend.models.blend import blend
from jaxops.recommend.models.ease import EASE
from jaxops.recommend.models.item_knn import ItemKNN
from jaxops.recommend.ranking import ranks
from jaxops.recommend.reader import Held
from jaxops.recommend.recommenders import Recommender, fitted
from jaxops.trust.evaluation import Evaluation

USERS = 2_000  # number of users by which a weight or a decay is chosen
WEIGHTS = (0.1, 0.3, 0.6, 0.85, 0.95)
DECAYS = (1.0, 0.8, 0.6, 0.4, 0.2)


def best_of(scores: Mapping[str, Evaluation], k: int) -> str:
    """The name with the largest NDCG."""
    return max(scores, key=lambda name: scores[name].figures()[f"ndcg@{k}"])


def pair_of(
    methods: Mapping[str, Any], scores: Mapping[str, Evaluation], k: int
) -> tuple[str, ...]:
    """The best network and the best of `EASE` and `ItemKNN`; () if one kind is missing."""
    networks = {name: one for name, one in scores.items() if hasattr(methods[name], "config")}
    similar = {n: one for n, one in scores.items() if isinstance(methods[n], EASE | ItemKNN)}
    return (best_of(networks, k), best_of(similar, k)) if networks and similar else ()


def blended(pair: list[Recommender], weight: float) -> Recommender:
    """The blend of a network and `EASE` or `ItemKNN`, whose scores are not log-probabilities."""
    together: Recommender = blend(pair, [1 - weight, weight], [1.0, 0.1])
    return together


def weight_of(pair: list[Recommender], held: Held) -> float:
    """The second model's weight with the best NDCG@10 of some users."""
    pair = [replace(one, params=one.on_device[0]) for one in pair]  # moved to the device only once
    return _best(WEIGHTS, lambda weight: blended(pair, weight), held)


def with_decay(recommender: Recommender, held: Held) -> Recommender:
    """The model with the decay of the best NDCG@10 of some users; unchanged if it has no decay."""
    if not hasattr(recommender.model, "decay"):
        return recommender
    here = replace(recommender, params=recommender.on_device[0])

    def decayed(one: Recommender, decay: float) -> Recommender:
        return replace(one, model=replace(one.model, decay=decay))

    return decayed(recommender, _best(DECAYS, lambda decay: decayed(here, decay), held))


def _best(values: Sequence[float], made: Callable[[float], Recommender], held: Held) -> float:
    """The value whose recommender has the best NDCG@10 of some users, drawn at random."""
    users = np.random.default_rng(0).permutation(np.flatnonzero(held.targets.lengths))[:USERS]
    histories, targets = (part.part(users) for part in (held.histories, held.targets))

    def score(value: float) -> float:
        found = ranks(made(value), histories, targets)
        return float(ndcg(found.ranks, 10, found.ties).mean())

    return max(values, key=score)


def chosen_of(
    methods: Mapping[str, Any],
    found: Mapping[str, Recommender],
    scores: dict[str, Evaluation],
    held: Held,
    log: Events | None,
    blends: bool,
) -> tuple[str, Recommender]:
    """The name and the recommender of the best method, or of a blend; adds a blend's scores.

    Args:
        methods: name -> method.
        found: name -> recommender, for the methods that were tried.
        scores: name -> scores on the held-out users.
        held: the held-out users.
        log: all events, to fit closed forms again; None if there are no events but those used.
        blends: whether a blend is tried.
    """
    k = min(10, len(next(iter(found.values())).items))
    pair = pair_of(methods, scores, k) if blends else ()
    name, share = " and ".join(pair), 0.0
    if pair:
        members = [found[one] for one in pair]
        share = weight_of(members, held)
        scores[name] = scored(blended(members, share), held, k)
    best = best_of(scores, k)
    final = {
        one: fitted(made.model, log) if log is not None and hasattr(made.model, "fit") else made
        for one, made in found.items()
        if one in (pair if best == name else (best,))
    }
    return best, blended([final[one] for one in pair], share) if best == name else final[best]


def scored(recommender: Recommender, held: Held, k: int, exclude_seen: bool = True) -> Evaluation:
    """The scores of a recommender on the held-out users."""
    of_users = evaluated(
        recommender,
        held.histories,
        held.targets,
        k,
        exclude_seen,
        recommender.counts,
        held.features,
        held.outside,
    )
    return replace(of_users, ids=held.users[of_users.ids])
