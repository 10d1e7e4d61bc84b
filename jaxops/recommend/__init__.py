"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.events import Events, Histories
from jaxops.recommend.features import Features
from jaxops.recommend.recommender import Recommender
from jaxops.recommend.two_tower import (
    TwoTower,
    in_batch_softmax,
    retrieval,
    two_tower_recommender,
    with_items,
)

__all__ = [
    "Events",
    "Features",
    "Histories",
    "Recommender",
    "TwoTower",
    "in_batch_softmax",
    "retrieval",
    "two_tower_recommender",
    "with_items",
]
