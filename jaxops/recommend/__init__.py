"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.events import Events, Histories, Report, events
from jaxops.recommend.recommender import Recommender
from jaxops.recommend.splits import Split, joined, leave_one_out

__all__ = [
    "Events",
    "Histories",
    "Recommender",
    "Report",
    "Split",
    "events",
    "joined",
    "leave_one_out",
]
