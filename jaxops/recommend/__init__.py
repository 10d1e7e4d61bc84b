"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.events import Events, Histories
from jaxops.recommend.ranking import Ranks, average_precision, hr, mrr, ndcg, ranks, recall
from jaxops.recommend.recommender import Recommender

__all__ = [
    "Events",
    "Histories",
    "Ranks",
    "Recommender",
    "average_precision",
    "hr",
    "mrr",
    "ndcg",
    "ranks",
    "recall",
]
