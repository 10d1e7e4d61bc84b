"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.evaluation import Evaluation, compare, evaluate, segments, table
from jaxops.recommend.events import Events, Histories
from jaxops.recommend.intervals import Interval, Paired, interval, paired
from jaxops.recommend.lists import coverage, gini, mean_popularity, novelty, popularity_bias
from jaxops.recommend.ranking import (
    Ranks,
    average_precision,
    hr,
    mrr,
    ndcg,
    ranks,
    ranks_and_lists,
    recall,
    sampled_metrics,
)
from jaxops.recommend.recommender import Recommender

__all__ = [
    "Evaluation",
    "Events",
    "Histories",
    "Interval",
    "Paired",
    "Ranks",
    "Recommender",
    "average_precision",
    "compare",
    "coverage",
    "evaluate",
    "gini",
    "hr",
    "interval",
    "mean_popularity",
    "mrr",
    "ndcg",
    "novelty",
    "paired",
    "popularity_bias",
    "ranks",
    "ranks_and_lists",
    "recall",
    "sampled_metrics",
    "segments",
    "table",
]
