"""Recommendation: one function for each job, and its parts: event logs, models, tasks, lists."""

from jaxops.recommend.data.events import Events, Histories, Report
from jaxops.recommend.data.features import Features
from jaxops.recommend.data.reading import events
from jaxops.recommend.data.splits import (
    Split,
    check_leakage,
    joined,
    k_core,
    leave_one_out,
    split_by_time,
    split_by_user,
)
from jaxops.recommend.evaluation import evaluated, segments
from jaxops.recommend.inference import Recommendations, recommend, similar_items
from jaxops.recommend.jobs import evaluate, fit, recipe, update
from jaxops.recommend.lists import (
    coverage,
    gini,
    novelty,
    popularity_bias,
)
from jaxops.recommend.losses import (
    BinaryCrossEntropy,
    BPRLoss,
    CrossEntropy,
    SampledSoftmax,
    cross_entropy,
    in_batch_softmax,
    sampled_softmax,
)
from jaxops.recommend.metrics import average_precision, hr, mrr, ndcg, recall
from jaxops.recommend.models.blend import Blend, blend
from jaxops.recommend.models.bpr import BPR
from jaxops.recommend.models.ease import EASE
from jaxops.recommend.models.ials import IALS
from jaxops.recommend.models.item_knn import ItemKNN
from jaxops.recommend.models.popularity import Popularity
from jaxops.recommend.models.sequence import (
    HSTU,
    GRU4Rec,
    SequenceModel,
    bert4rec,
    esasrec,
    gru4rec,
    hstu,
    sasrec,
    sequence_recommender,
    sequence_with_items,
)
from jaxops.recommend.models.two_tower import (
    TwoTower,
    two_tower_recommender,
    two_tower_with_items,
)
from jaxops.recommend.ranking import (
    Ranks,
    ranks,
    ranks_and_lists,
    sampled_metrics,
)
from jaxops.recommend.reader import LogReader
from jaxops.recommend.recommenders import Method, Recommender, fitted, updated
from jaxops.recommend.tasks import held_out, masked_item, next_item, retrieval, rows
from jaxops.trust.evaluation import Evaluation, compare, table
from jaxops.trust.intervals import Interval, Paired, interval, paired

__all__ = [
    "BPR",
    "EASE",
    "HSTU",
    "IALS",
    "BPRLoss",
    "BinaryCrossEntropy",
    "Blend",
    "CrossEntropy",
    "Evaluation",
    "Events",
    "Features",
    "GRU4Rec",
    "Histories",
    "Interval",
    "ItemKNN",
    "LogReader",
    "Method",
    "Paired",
    "Popularity",
    "Ranks",
    "Recommendations",
    "Recommender",
    "Report",
    "SampledSoftmax",
    "SequenceModel",
    "Split",
    "TwoTower",
    "average_precision",
    "bert4rec",
    "blend",
    "check_leakage",
    "compare",
    "coverage",
    "cross_entropy",
    "esasrec",
    "evaluate",
    "evaluated",
    "events",
    "fit",
    "fitted",
    "gini",
    "gru4rec",
    "held_out",
    "hr",
    "hstu",
    "in_batch_softmax",
    "interval",
    "joined",
    "k_core",
    "leave_one_out",
    "masked_item",
    "mrr",
    "ndcg",
    "next_item",
    "novelty",
    "paired",
    "popularity_bias",
    "ranks",
    "ranks_and_lists",
    "recall",
    "recipe",
    "recommend",
    "retrieval",
    "rows",
    "sampled_metrics",
    "sampled_softmax",
    "sasrec",
    "segments",
    "sequence_recommender",
    "sequence_with_items",
    "similar_items",
    "split_by_time",
    "split_by_user",
    "table",
    "two_tower_recommender",
    "two_tower_with_items",
    "update",
    "updated",
]
