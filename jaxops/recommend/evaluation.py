"""The evaluation of a recommender for histories and targets."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxops.model.finished import Model
from jaxops.recommend.data.events import Histories
from jaxops.recommend.lists import coverage, gini, novelty, popularity_bias
from jaxops.recommend.metrics import METRICS
from jaxops.recommend.ranking import ranks_and_lists
from jaxops.recommend.recommenders import Recommender, recommender_of
from jaxops.trust.evaluation import Evaluation


def evaluated(
    model: Model | Recommender,
    histories: Histories,
    targets: Histories,
    k: int = 10,
    exclude_seen: bool = True,
    counts: np.ndarray | None = None,
    user_features: Mapping[str, Any] | None = None,
    outside: np.ndarray | None = None,
) -> Evaluation:
    """All metrics of a recommender over the full catalogue, also for users not seen in training.

    `recommend.evaluate` does the same for a log.

    Args:
        model: a model from `recommend.fit`, or a recommender.
        histories: the histories of U users, before the targets.
        targets: the items that the same U users took next; users without any are left out.
        k: length of a list, 1 to N.
        exclude_seen: leave the items of a user's history out of the ranking and of the lists. A
            target that is one of them is a miss.
        counts: (N,) number of events of each item, for novelty and popularity bias; by default
            those in `histories`. Give the training counts if other users are tested.
        user_features: columns of U rows, for a model that reads features of users.
        outside: (U,) number of targets that are not in the catalogue; see `ranks_and_lists`.

    Returns:
        An evaluation. For k = 10 its metrics are "hr@10", "recall@10", "ndcg@10", "mrr@10",
        "map@10", "novelty@10" and "popularity_bias@10" of R users, and "coverage@10" and "gini@10"
        of all lists. The ids are the indices of the users. The parts are "users" (R,) int64, these
        indices; "ranks" (R, M) float64, exact ranks, inf where a user has fewer than M targets;
        "ties" (R, M) int32, the numbers of tied items, over whose orders each metric is the mean;
        "never_shown" (R,) int64, the number of the user's targets that no list can show, because
        they were seen before or are not in the catalogue; and "lists" (R, k) int32, the recommended
        items, N where fewer than k are left.

    Warns:
        UserWarning: some targets were seen before and count as misses. If users take the same items
            again, as with groceries, use `exclude_seen=False`.

    Raises:
        ValueError: k is outside 1 to N, or counts have another shape; see also `ranks`.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaabbb"), "item": list("xyzxyz")}, time=None)
    >>> split = recommend.leave_one_out(log)
    >>> model = recommend.fitted(recommend.Popularity(), split.train)
    >>> test = split.before_test().histories(), split.test.histories()
    >>> evaluated(model, *test, k=1).figures()["hr@1"]
    1.0
    """
    ranks, lists = ranks_and_lists(
        model, histories, targets, k, exclude_seen, user_features, outside
    )
    items = len(recommender_of(model).items)
    if counts is None:
        counts = np.bincount(histories.items, minlength=items)
    elif np.shape(counts) != (items,):
        raise ValueError(f"counts must have shape ({items},), got {np.shape(counts)}")
    never = (np.isfinite(ranks.ranks) & (ranks.ranks > items)).sum(1)
    again = never.sum() - (0 if outside is None else outside.sum())
    if again and exclude_seen:
        warnings.warn(
            f"{again:,} of {np.isfinite(ranks.ranks).sum():,} targets are items of their user's "
            "history: with exclude_seen=True no list shows them, so they count as misses",
            stacklevel=2,
        )
    values = {f"{name}@{k}": metric(ranks.ranks, k, ranks.ties) for name, metric in METRICS.items()}
    tastes = {
        f"novelty@{k}": novelty(lists, counts),
        f"popularity_bias@{k}": popularity_bias(lists, counts),
    }
    wholes = {
        f"coverage@{k}": lambda rows: coverage(lists[rows], items),
        f"gini@{k}": lambda rows: gini(lists[rows], items),
    }
    return Evaluation(
        "user",
        ranks.users,
        values | tastes,
        wholes,
        neutral=frozenset([*tastes, *wholes]),
        bare=frozenset(wholes),
        parts={
            "users": ranks.users,
            "ranks": ranks.ranks,
            "ties": ranks.ties,
            "never_shown": never,
            "lists": lists,
        },
    )


def segments(evaluation: Evaluation, labels: Sequence[Any] | np.ndarray) -> dict[Any, Evaluation]:
    """A separate evaluation for each group of users.

    Args:
        evaluation: the evaluation of all users, from `evaluate` or `evaluated`.
        labels: (U,) the group of each user of the histories, such as a range of their lengths.

    Returns:
        label -> the evaluation of its users, sorted by label. Groups in which no user has a target
        are left out.

    Raises:
        ValueError: there are fewer labels than users.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaabbb"), "item": list("xyzxzy")}, time=None)
    >>> split = recommend.leave_one_out(log)
    >>> model = recommend.fitted(recommend.Popularity(), split.train)
    >>> test = split.before_test().histories(), split.test.histories()
    >>> one = evaluated(model, *test, k=1, exclude_seen=False)
    >>> {label: part.figures()["mrr@1"] for label, part in segments(one, ["new", "old"]).items()}
    {'new': 0.0, 'old': 0.0}
    """
    labels, users = np.asarray(labels), evaluation.parts["users"]
    if labels.ndim != 1 or len(labels) <= users.max():
        raise ValueError(
            "labels must be one for each user, (U,) with U at least "
            f"{users.max() + 1:,}, got shape {labels.shape}"
        )
    groups = labels[users]
    return {label: evaluation.part(groups == label) for label in np.unique(groups).tolist()}
