"""One evaluation of a recommender, and the comparison of several."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxops.recommend.data.events import Histories
from jaxops.recommend.lists import coverage, gini, novelty, popularity_bias
from jaxops.recommend.ranking import METRICS, ranks_and_lists
from jaxops.recommend.recommenders import Recommender
from jaxops.trust import report
from jaxops.trust.intervals import interval, paired


class Evaluation(NamedTuple):
    """What a recommender gave to the users that have a target.

    Attributes:
        k: the length of a list.
        items: how many there are, N.
        users: (R,) int64, which users.
        ranks: (R, M) float64, exact, inf where a user has fewer than M targets.
        lists: (R, k) int32, the items shown, N where fewer than k are left.
        values: metric -> (R,) float64: "hr@10", "recall@10", "ndcg@10", "mrr@10", "map@10",
            "novelty@10" and "popularity_bias@10"; their means are the figures.
    """

    k: int
    items: int
    users: np.ndarray
    ranks: np.ndarray
    lists: np.ndarray
    values: dict[str, np.ndarray]

    def figures(self) -> dict[str, float]:
        """The mean of each metric over the users, and the lists' "coverage" and "gini"."""
        means = {name: float(np.nanmean(values)) for name, values in self.values.items()}
        shown = self.lists, self.items
        return {**means, f"coverage@{self.k}": coverage(*shown), f"gini@{self.k}": gini(*shown)}


def evaluate(
    recommender: Recommender,
    histories: Histories,
    targets: Histories,
    k: int = 10,
    exclude_seen: bool = True,
    counts: np.ndarray | None = None,
    users: Mapping[str, Any] | None = None,
) -> Evaluation:
    """All metrics of a recommender, over the full catalogue; of any users, in training or not.

    Args:
        recommender: any.
        histories: of U users, as they were before the targets.
        targets: of the same U users, what they took next; users without any are left out.
        k: length of a list, 1 to N.
        exclude_seen: leave out of the ranking what a user's history holds; see `ranks`.
        counts: (N,) how many events each item has, for the novelty and popularity bias of what is
            shown; by default in `histories`. Give those of training where other users are tested.
        users: columns of U rows, where the model reads features of users.

    Raises:
        ValueError: k outside 1 to N, and what `ranks` raises.
    """
    ranks, lists = ranks_and_lists(recommender, histories, targets, k, exclude_seen, users)
    items = len(recommender.items)
    if counts is None:
        counts = np.bincount(histories.items, minlength=items)
    elif np.shape(counts) != (items,):
        raise ValueError(f"counts: found shape {np.shape(counts)}, wanted ({items},)")
    values = {f"{name}@{k}": metric(ranks.ranks, k) for name, metric in METRICS.items()}
    values[f"novelty@{k}"] = novelty(lists, counts)
    values[f"popularity_bias@{k}"] = popularity_bias(lists, counts)
    return Evaluation(k, items, ranks.users, ranks.ranks, lists, values)


def segments(evaluation: Evaluation, labels: Sequence[Any] | np.ndarray) -> dict[Any, Evaluation]:
    """An evaluation apart for each kind of user.

    Args:
        evaluation: of all.
        labels: (U,) one for each user of the histories, such as a bucket of their lengths.

    Returns:
        label -> the evaluation of its users, by label. Labels without a user that has a target are
        left out.

    Raises:
        ValueError: fewer labels than users.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or len(labels) <= evaluation.users.max():
        raise ValueError(f"labels: found shape {labels.shape}, wanted one for each user")
    own = labels[evaluation.users]

    def part(there: np.ndarray) -> Evaluation:
        return evaluation._replace(
            users=evaluation.users[there],
            ranks=evaluation.ranks[there],
            lists=evaluation.lists[there],
            values={name: values[there] for name, values in evaluation.values.items()},
        )

    return {label: part(own == label) for label in np.unique(own).tolist()}


def compare(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
) -> list[dict[str, str]]:
    """Evaluations side by side, as rows for `report.table`.

    A value stands with its bootstrap interval, and in bold where it is the best of its column and
    the interval of its paired difference from every other row excludes 0: from intervals that
    overlap nothing follows, as the rows share their users. Coverage has no interval, and of what
    is neither good nor bad in itself (novelty, popularity bias, coverage) nothing is marked. Rows
    of different users (`segments`) say how many they are, and nothing is marked.

    Args:
        evaluations: name -> evaluation.
        metrics: of `Evaluation.figures`, such as "ndcg@10"; by default all.
        level: of confidence.

    Raises:
        ValueError: no evaluation, or a metric that one of them lacks.
    """
    every = list(evaluations.values())
    if not every:
        raise ValueError("evaluations: found none")
    figures = {name: one.figures() for name, one in evaluations.items()}
    metrics = list(next(iter(figures.values())) if metrics is None else metrics)
    for name in evaluations:
        if lacking := [metric for metric in metrics if metric not in figures[name]]:
            raise ValueError(f"metrics: {lacking} wanted, {name!r} has {list(figures[name])}")
    same = all(np.array_equal(one.users, every[0].users) for one in every)
    rows = [
        {"model": str(name)} | ({} if same else {"users": f"{len(one.users):,}"})
        for name, one in evaluations.items()
    ]
    for metric in metrics:
        columns = [one.values.get(metric) for one in every]
        best = _best(metric, columns, level) if same else None
        for place, (name, values) in enumerate(zip(evaluations, columns, strict=True)):
            text = f"{figures[name][metric]:.4f}"
            rows[place][metric] = f"**{text}**" if place == best else text
            if values is not None and np.isfinite(values).sum() > 1:
                found = interval(values[np.isfinite(values)], coverage=level)
                rows[place][metric] += f" [{found.low:.4f}, {found.high:.4f}]"
    return rows


def _best(metric: str, columns: list[Any], level: float) -> int | None:
    """The row that is better than every other, or None."""
    if metric.split("@")[0] not in METRICS or len(columns) < 2:
        return None
    best = int(np.argmax([values.mean() for values in columns]))
    rest = [values for place, values in enumerate(columns) if place != best]
    return best if all(paired(columns[best], v, coverage=level).low > 0 for v in rest) else None


def table(
    evaluations: Mapping[Any, Evaluation],
    metrics: Sequence[str] | None = None,
    level: float = 0.95,
) -> str:
    """`compare` as an aligned Markdown table."""
    return report.table(compare(evaluations, metrics, level))
