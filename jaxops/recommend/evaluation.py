"""The evaluation of a recommender, and the comparison of several evaluations."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops import _table
from jaxops.recommend.data.events import Histories
from jaxops.recommend.lists import coverage, gini, novelty, popularity_bias
from jaxops.recommend.ranking import METRICS, ranks_and_lists
from jaxops.recommend.recommenders import Recommender
from jaxops.trust.comparisons import side_by_side, surely_best
from jaxops.trust.intervals import Paired, interval, paired


class Evaluation(NamedTuple):
    """The ranks, lists and metrics of a recommender, for the users that have a target.

    Attributes:
        k: length of a list.
        items: N, the number of items in the catalogue.
        users: (R,) int64, indices of the users.
        ranks: (R, M) float64, exact ranks, inf where a user has fewer than M targets.
        lists: (R, k) int32, the recommended items, N where fewer than k are left.
        values: metric -> (R,) float64: "hr@10", "recall@10", "ndcg@10", "mrr@10", "map@10",
            "novelty@10" and "popularity_bias@10", for k = 10.

    >>> hits = {"hr@1": np.array([1.0, 0.0])}
    >>> one = Evaluation(1, 2, np.arange(2), np.array([[1.0], [2.0]]), np.array([[0], [1]]), hits)
    >>> one.figures()
    {'hr@1': 0.5, 'coverage@1': 1.0, 'gini@1': 0.0}
    """

    k: int
    items: int
    users: np.ndarray
    ranks: np.ndarray
    lists: np.ndarray
    values: dict[str, np.ndarray]

    def figures(self) -> dict[str, float]:
        """The mean of each metric over the users, and the "coverage" and "gini" of the lists."""
        means = {name: float(np.nanmean(values)) for name, values in self.values.items()}
        return {
            **means,
            f"coverage@{self.k}": coverage(self.lists, self.items),
            f"gini@{self.k}": gini(self.lists, self.items),
        }


def evaluate(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    k: int = 10,
    exclude_seen: bool = True,
    counts: np.ndarray | None = None,
    users: Mapping[str, Any] | None = None,
) -> Evaluation:
    """All metrics of a recommender, over the full catalogue, for any users, in training or not.

    Args:
        recommender: the recommender.
        histories: of U users, before the targets.
        targets: of the same U users, the items they took next; users without any are left out.
        k: length of a list, 1 to N.
        exclude_seen: leave the items of a user's history out of the ranking; see `ranks`.
        counts: (N,) number of events of each item, for novelty and popularity bias; by default
            those in `histories`. Give the training counts if other users are tested.
        users: columns of U rows, for a model that reads features of users.

    Raises:
        ValueError: k outside 1 to N, counts of another shape, and as in `ranks`.

    >>> from jaxops import recommend
    >>> log = recommend.events({"user": list("aaabbb"), "item": list("xyzxyz")}, time=None)
    >>> split = recommend.leave_one_out(log)
    >>> model = recommend.fit(recommend.Popularity(), split.train)
    >>> test = split.before_test().histories(), split.test.histories()
    >>> evaluate(model, *test, k=1).figures()["hr@1"]
    1.0
    """
    ranks, lists = ranks_and_lists(recommender, histories, targets, k, exclude_seen, users)
    items = len(recommender.items)
    if counts is None:
        counts = np.bincount(histories.items, minlength=items)
    elif np.shape(counts) != (items,):
        raise ValueError(f"counts must have shape ({items},), got {np.shape(counts)}")
    values = {f"{name}@{k}": metric(ranks.ranks, k) for name, metric in METRICS.items()}
    values[f"novelty@{k}"] = novelty(lists, counts)
    values[f"popularity_bias@{k}"] = popularity_bias(lists, counts)
    return Evaluation(k, items, ranks.users, ranks.ranks, lists, values)


def segments(evaluation: Evaluation, labels: Sequence[Any] | np.ndarray) -> dict[Any, Evaluation]:
    """A separate evaluation for each group of users.

    Args:
        evaluation: of all users.
        labels: (U,) the group of each user of the histories, such as a range of their lengths.

    Returns:
        label -> the evaluation of its users, sorted by label. Labels of which no user has a target
        are left out.

    Raises:
        ValueError: fewer labels than users.

    >>> hits = {"hr@1": np.array([1.0, 0.0])}
    >>> one = Evaluation(1, 2, np.arange(2), np.array([[1.0], [2.0]]), np.array([[0], [1]]), hits)
    >>> {label: part.figures()["hr@1"] for label, part in segments(one, ["new", "old"]).items()}
    {'new': 1.0, 'old': 0.0}
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) <= evaluation.users.max():
        raise ValueError(
            "labels must be one for each user, (U,) with U at least "
            f"{evaluation.users.max() + 1:,}, got shape {labels.shape}"
        )
    groups = labels[evaluation.users]

    def part(chosen: np.ndarray) -> Evaluation:
        return evaluation._replace(
            users=evaluation.users[chosen],
            ranks=evaluation.ranks[chosen],
            lists=evaluation.lists[chosen],
            values={name: values[chosen] for name, values in evaluation.values.items()},
        )

    return {label: part(groups == label) for label in np.unique(groups).tolist()}


def compare(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
) -> list[dict[str, str]]:
    """Evaluations side by side, as rows for `jaxops.report.table`.

    Each value is followed by its bootstrap interval. The best value of a column is in bold if the
    interval of its paired difference from every other row excludes 0; overlapping intervals are
    not a test, as the rows share their users. Coverage has no interval. Novelty, popularity bias,
    coverage and gini are never in bold, as neither direction is better in itself. If the rows are
    of different users (`segments`), the table gives their numbers and nothing is in bold.

    Args:
        evaluations: name -> evaluation.
        metrics: names of `Evaluation.figures`, such as "ndcg@10"; by default all.
        level: coverage of the intervals.

    Raises:
        ValueError: no evaluation, or a metric that one of them lacks.

    >>> users = np.arange(40)
    >>> ranks, lists = np.ones((40, 1)), np.zeros((40, 1), np.int32)
    >>> hit, miss = ({"hr@1": np.full(40, value)} for value in (1.0, 0.0))
    >>> both = {"good": Evaluation(1, 2, users, ranks, lists, hit)}
    >>> both["bad"] = Evaluation(1, 2, users, ranks, lists, miss)
    >>> [row["hr@1"] for row in compare(both, ["hr@1"])]
    ['**1.0000** [1.0000, 1.0000]', '0.0000 [0.0000, 0.0000]']
    """
    every = list(evaluations.values())
    if not every:
        raise ValueError("evaluations must hold at least 1, got none")
    same = all(np.array_equal(one.users, every[0].users) for one in every)

    def best(metric: str) -> int | None:
        if not same or metric.split("@")[0] not in METRICS:
            return None
        return surely_best([one.values[metric] for one in every], difference)

    def difference(one: np.ndarray, other: np.ndarray) -> Paired:
        return paired(one, other, coverage=level)

    def bounds(name: Any, metric: str) -> str:
        values = evaluations[name].values.get(metric, np.zeros(0))
        values = values[np.isfinite(values)]
        if len(values) < 2:
            return ""
        mean = interval(values, coverage=level)
        return f" [{mean.low:.4f}, {mean.high:.4f}]"

    figures = {name: one.figures() for name, one in evaluations.items()}
    rows = side_by_side(figures, metrics, best, bounds)
    if same:
        return rows
    numbers = [f"{len(one.users):,}" for one in every]
    return [
        {"model": row["model"], "users": number, **row}
        for row, number in zip(rows, numbers, strict=True)
    ]


def table(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
) -> str:
    """The rows of `compare` as an aligned Markdown table.

    Args:
        evaluations: as in `compare`.
        metrics: as in `compare`.
        level: as in `compare`.

    >>> users, hit = np.arange(40), {"hr@1": np.ones(40)}
    >>> one = Evaluation(1, 2, users, np.ones((40, 1)), np.zeros((40, 1), np.int32), hit)
    >>> print(table({"good": one}, ["hr@1"]))
    | model | hr@1                    |
    |-------|-------------------------|
    | good  | 1.0000 [1.0000, 1.0000] |
    """
    return _table.table(compare(evaluations, metrics, level))
