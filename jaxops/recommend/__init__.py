"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.events import Events, Histories
from jaxops.recommend.recommender import Recommender

__all__ = ["Events", "Histories", "Recommender"]
