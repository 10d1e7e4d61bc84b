"""Recommendation: from an event log to exact top-k for anyone."""

from jaxops.recommend.blend import Blend, blend
from jaxops.recommend.events import Events, Histories, Report
from jaxops.recommend.features import Features
from jaxops.recommend.losses import (
    BinaryCrossEntropy,
    BPRLoss,
    CrossEntropy,
    SampledSoftmax,
    cross_entropy,
    sampled_softmax,
)
from jaxops.recommend.ranking import Ranks, average_precision, hr, mrr, ndcg, ranks, recall
from jaxops.recommend.reading import events
from jaxops.recommend.recommend import Recommendations, recommend
from jaxops.recommend.recommender import Model, Recommender, fit, load, save, update
from jaxops.recommend.sequence import (
    HSTU,
    GRU4Rec,
    Sequence,
    bert4rec,
    esasrec,
    gru4rec,
    hstu,
    sasrec,
)
from jaxops.recommend.splits import (
    Split,
    check_leakage,
    joined,
    k_core,
    leave_one_out,
    split_by_time,
    split_by_user,
)
from jaxops.recommend.tasks import held_out, masked_item, next_item, rows
from jaxops.recommend.two_tower import (
    TwoTower,
    in_batch_softmax,
    retrieval,
    two_tower_recommender,
    with_items,
)

__all__ = [
    "HSTU",
    "BPRLoss",
    "BinaryCrossEntropy",
    "Blend",
    "CrossEntropy",
    "Events",
    "Features",
    "GRU4Rec",
    "Histories",
    "Model",
    "Ranks",
    "Recommendations",
    "Recommender",
    "Report",
    "SampledSoftmax",
    "Sequence",
    "Split",
    "TwoTower",
    "average_precision",
    "bert4rec",
    "blend",
    "check_leakage",
    "cross_entropy",
    "esasrec",
    "events",
    "fit",
    "gru4rec",
    "held_out",
    "hr",
    "hstu",
    "in_batch_softmax",
    "joined",
    "k_core",
    "leave_one_out",
    "load",
    "masked_item",
    "mrr",
    "ndcg",
    "next_item",
    "ranks",
    "recall",
    "recommend",
    "retrieval",
    "rows",
    "sampled_softmax",
    "sasrec",
    "save",
    "split_by_time",
    "split_by_user",
    "two_tower_recommender",
    "update",
    "with_items",
]
