"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.events import Events, Histories, Report
from jaxops.recommend.reading import events
from jaxops.recommend.recommender import Recommender
from jaxops.recommend.splits import (
    Split,
    check_leakage,
    joined,
    k_core,
    leave_one_out,
    split_by_time,
    split_by_user,
)

__all__ = [
    "Events",
    "Histories",
    "Recommender",
    "Report",
    "Split",
    "check_leakage",
    "events",
    "joined",
    "k_core",
    "leave_one_out",
    "split_by_time",
    "split_by_user",
]
