"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.bpr import BPR
from jaxops.recommend.ease import EASE
from jaxops.recommend.events import Events, Histories
from jaxops.recommend.ials import IALS
from jaxops.recommend.item_knn import ItemKNN
from jaxops.recommend.popularity import Popularity
from jaxops.recommend.recommender import Recommender

__all__ = [
    "BPR",
    "EASE",
    "IALS",
    "Events",
    "Histories",
    "ItemKNN",
    "Popularity",
    "Recommender",
]
