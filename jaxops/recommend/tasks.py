"""Tasks on event logs: predict the next item, predict masked items, or retrieve items."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.data.packing import pack
from jaxops.nn.attention import document_positions
from jaxops.recommend.data.events import Events, Histories
from jaxops.recommend.data.features import Catalogue
from jaxops.recommend.losses import CrossEntropy, fits, in_batch_softmax
from jaxops.recommend.models.sequence import SequenceModel
from jaxops.recommend.models.two_tower import TwoTower, TwoTowerModule
from jaxops.recommend.ranking import above_and_alike
from jaxops.recommend.recommenders import last_items
from jaxops.task import (
    Array,
    Batch,
    Column,
    Extra,
    Key,
    Out,
    Params,
    Task,
    masked_sum,
    recorded,
    row_weights,
)

Loss = Callable[[Array, Array, Array, Array, Key], Array]
"""Takes hidden (B, T, D), table (N, D), targets and weights (B, T) and a key; returns a sum."""


def rows(histories: Histories, length: int, overlap: int = 1) -> dict[str, np.ndarray]:
    """Training rows of packed histories: `items` and `segments`, int32 (R, length).

    A history longer than a row is cut into several parts, counted from its end, which share
    `overlap` items. With an overlap of 1, every item except a history's first is a prediction
    target exactly once. Histories of a single item have no target and are left out. Short histories
    share a row as segments 1, 2, ... (see `jaxops.data.packing.pack`); 0 is padding.

    Args:
        histories: the histories of the training events.
        length: length of a row: for `next_item` the model's context + 1, for `masked_item` the
            context.
        overlap: 1 for `next_item`, 0 for `masked_item`.

    Raises:
        ValueError: no history has two items.

    >>> two = Histories(np.array([5, 6, 7, 8, 9], np.int32), np.array([0, 3, 5]))
    >>> rows(two, length=5)["segments"].tolist()
    [[1, 1, 1, 2, 2]]
    """
    parts = []
    for start, end in zip(
        histories.starts[:-1].tolist(), histories.starts[1:].tolist(), strict=True
    ):
        while end - start > 1:
            parts.append(histories.items[max(start, end - length) : end])
            end -= length - overlap
    if not parts:
        longest = int(histories.lengths.max(initial=0))
        raise ValueError(
            f"histories must hold a user with at least 2 items, got at most {longest} per user"
        )
    columns = pack(parts, length).columns
    return {"items": columns["tokens"], "segments": columns["segments"]}


def held_out(histories: Histories, targets: Histories, length: int) -> dict[str, np.ndarray]:
    """Evaluation rows: one history each, with its target last; the columns are those of `rows`.

    Args:
        histories: the histories of U users, before the targets. Users with an empty history are
            left out.
        targets: the targets of the same users; only the first of each user counts. Users without
            one are left out.
        length: length of a row, which holds the history's last items and the target; see `rows`.

    >>> before = Histories(np.array([5, 6, 7], np.int32), np.array([0, 2, 3]))
    >>> after = Histories(np.array([8, 9], np.int32), np.array([0, 2, 2]))
    >>> held_out(before, after, length=4)["items"].tolist()
    [[5, 6, 8, 0]]
    """
    users = np.flatnonzero((histories.lengths > 0) & (targets.lengths > 0))
    items = np.pad(histories.rows(users, length - 1, -1), ((0, 0), (0, 1)), constant_values=-1)
    items[np.arange(len(users)), (items >= 0).sum(1)] = targets.items[targets.starts[users]]
    return {"items": np.maximum(items, 0), "segments": (items >= 0).astype(np.int32)}


@recorded
def next_item(module: Any, loss: Loss = CrossEntropy()) -> Task:  # noqa: B008
    """Predict each item of a history from the items before it. Event weights are not used.

    In training a batch holds `rows`; every item of a history except the first is a target. In
    evaluation a batch holds `held_out` rows; only the last item of each row is a target.

    Args:
        module: a causal Flax module, as made by `sasrec`, `esasrec`, `gru4rec` or `hstu`.
        loss: the training loss; see `jaxops.recommend.losses`. Evaluations report cross-entropy.

    Returns:
        A task with the metrics `loss` and, in evaluations, `hr@10` and `ndcg@10` of the held-out
        item among all items except those before it in its row. It predicts a vector (B, D) for the
        history in each row.

    Raises:
        ValueError: the module is not causal, so it would see the items to predict.

    >>> from jaxops.recommend import sasrec
    >>> task = next_item(sasrec(items=5, context=4, width=8, depth=1))
    >>> [column.name for column in task.columns]
    ['items', 'segments']
    """
    if not module.config.causal:
        raise ValueError("module must be causal, got one that also attends to later items")

    def split(items: Array, segments: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        following = segments[:, 1:]
        same_history = (segments[:, :-1] == following) & (following > 0)
        return items[:, :-1], segments[:, :-1], items[:, 1:], same_history.astype(jnp.float32)

    return _sequence_task(module, loss, split, 1)


@recorded
def masked_item(module: Any, loss: Loss = CrossEntropy(), share: float = 0.2) -> Task:  # noqa: B008
    """Predict items that are masked at random from the items on both sides (BERT4Rec).

    In training a batch holds `rows(..., overlap=0)`. In each step `share` of the items of each row,
    and at least one, are masked at random. The evaluation is that of `next_item`: only the last
    item of a history is masked. The original draws for each history, and adds copies of the
    histories in which only the last item is masked; here the histories of a row share one draw.

    Args:
        module: a bidirectional Flax module, as made by `bert4rec`.
        loss: the training loss; see `jaxops.recommend.losses`.
        share: share of the items that are masked, between 0 and 1.

    Returns:
        A task with the metrics and predictions of `next_item`.

    Raises:
        ValueError: a causal module, or a share outside (0, 1).

    References:
        Sun et al. 2019, arXiv:1904.06690.

    >>> from jaxops.recommend import bert4rec
    >>> task = masked_item(bert4rec(items=5, context=4, width=8, depth=1), share=0.5)
    >>> task is masked_item(bert4rec(items=5, context=4, width=8, depth=1), share=0.5)
    True
    """
    if module.config.causal:
        raise ValueError("module must attend to items on both sides, got a causal one")
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    mask = module.config.vocabulary - 1

    def split(items: Array, segments: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        draws = jnp.where(segments > 0, jax.random.uniform(key, items.shape), 2.0)
        place = draws.argsort(1).argsort(1)
        count = jnp.maximum(jnp.round(share * (segments > 0).sum(1, keepdims=True)), 1)
        masked = (place < count) & (segments > 0)
        return jnp.where(masked, mask, items), segments, items, masked.astype(jnp.float32)

    return _sequence_task(module, loss, split, 0)


def _sequence_task(module: Any, loss: Loss, split: Any, ahead: int) -> Task:
    """A task over packed histories.

    Args:
        module: the Flax module.
        loss: the training loss.
        split: `(items, segments, key) -> (inputs, their segments, targets, 1 where one counts)`.
        ahead: number of items by which a row may be longer than the module's context.
    """
    items, model = module.config.vocabulary - 1, SequenceModel(module)
    read = functools.partial(_read, module.config.context + ahead)

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        if np.shape(batch["items"])[1] > 1:  # the batch is not `task.example`
            jax.eval_shape(read, dict(batch))
        start = jnp.zeros((1, 2), jnp.int32)
        params = module.init(key, start, start + 1, start, method="hidden")["params"]
        return params, {}

    def loss_fn(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights = row_weights(batch)
        if not train:
            total, states = _held_out_metrics(model, params, *read(batch), weights)
            return total, Out(weights.sum(), states, extra)
        mask_key, loss_key, dropout_key = jax.random.split(key, 3)
        inputs, segments, targets, counted = split(*read(batch), mask_key)
        counted *= weights[:, None]
        hidden = module.apply(
            {"params": params},
            inputs,
            segments,
            document_positions(segments),
            train=True,
            rngs={"dropout": dropout_key},
            method="hidden",
        )
        total = loss(hidden, model.table(params), targets, counted, loss_key)
        return total, Out(counted.sum(), {}, extra)

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        row, segments = read(batch)
        history = jnp.where(segments > 0, row, items)
        return model.queries(params, last_items(history, model.context, items))

    columns = (
        Column("items", (None,), "int", classes=items),
        Column("segments", (None,), "int"),
    )
    return Task(init, loss_fn, predict, columns)


def _read(longest: int, batch: Batch) -> tuple[Array, Array]:
    """The columns `items` and `segments` of a batch, int32 (B, T), T at most `longest`."""
    items, segments = (jnp.asarray(batch[n], jnp.int32) for n in ("items", "segments"))
    if items.shape != segments.shape or items.shape[1] > longest:
        raise ValueError(
            f"items and segments must have the same shape, with at most {longest} items per row, "
            f"got {items.shape} and {segments.shape}"
        )
    return items, segments


def _held_out_metrics(
    model: SequenceModel, params: Params, row: Array, segments: Array, weights: Array
) -> tuple[Array, dict[str, Any]]:
    """The summed cross-entropy of each row's last item, and its ranking metrics.

    Args:
        model: the model.
        params: its parameters.
        row: (B, T) int32, histories and their targets, as in `held_out`.
        segments: (B, T) int32, 0 for padding.
        weights: (B,).
    """
    items = model.module.config.vocabulary - 1
    last = jnp.maximum((segments > 0).sum(1, keepdims=True) - 1, 0)
    target = jnp.take_along_axis(row, last, 1)
    history = jnp.where(jnp.arange(row.shape[1])[None] < last, row, items)[:, :-1]
    # in parts, to bound the memory of the scores; the rows of a part are far apart, so that each
    # device has its share of every part
    parts = next(p for p in range(1, len(row) + 1) if fits(len(row), p, items))

    def part(x: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        return _held_out_ranks(model, params, *x)

    split = [a.reshape(-1, parts, a.shape[1]).swapaxes(0, 1) for a in (history, target)]
    losses, *rank = (a.swapaxes(0, 1).reshape(-1) for a in jax.lax.map(part, tuple(split)))
    gains = {"hr@10": jnp.ones(10), "ndcg@10": 1 / jnp.log2(jnp.arange(2.0, 12.0))}
    states = {n: metrics.mean(_expected(gain, *rank), weights) for n, gain in gains.items()}
    return masked_sum(losses, weights), states


def _held_out_ranks(
    model: SequenceModel, params: Params, history: Array, target: Array
) -> tuple[Array, Array, Array]:
    """The cross-entropy of `target` (B, 1) after `history` (B, L), and its rank, all (B,).

    The rank is given by two numbers, over all items except those of the history: the number of
    items above the target, and the number of items with its score. If a score is NaN or the target
    was seen before, the first number is 2**30.
    """
    scores = jnp.matmul(
        model.queries(params, history),
        model.table(params).T,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    right = jnp.take_along_axis(scores, target, 1)
    losses = (jax.nn.logsumexp(scores, axis=1, keepdims=True) - right)[:, 0]
    left = scores.at[jnp.arange(len(scores))[:, None], history].set(-jnp.inf, mode="drop")
    above, alike = (counts[:, 0] for counts in above_and_alike(left, target))
    never = jnp.isnan(losses) | (above == scores.shape[1])
    return losses, jnp.where(never, 2**30, above), alike


def _expected(gain: Array, above: Array, alike: Array) -> Array:
    """The mean gain (B,) over the positions from `above` to `above` + `alike`, counted from 0."""
    place = jnp.arange(len(gain))[None]
    inside = (above[:, None] <= place) & (place < (above + alike)[:, None])
    return jnp.where(inside, gain, 0).sum(1) / alike


def retrieval(towers: TwoTower, events: Events) -> Task:
    """Learn which item a user takes next; the other items of the batch are the negatives.

    A batch holds `towers.rows(events)`. The items' features are in the state's `extra`, which is
    not trained. The loss of a row depends on the other rows of its batch, so larger batches give
    more negatives, and `accumulate` is refused. Calls with equal arguments return the same task, so
    that they compile once.

    A task that `jaxops.load` reads has its catalogue in the model's state. To train it further, use
    `fit(..., state=model.state)`; without a state, `fit` raises an error.

    Args:
        towers: the settings, usually `TwoTower.fitted(events)`.
        events: the training log. Its `items` are the catalogue, including those without events.

    Returns:
        A task that predicts users' queries (B, D); see `two_tower_recommender`.

    Raises:
        ValueError: no events, a feature column missing, or another number of known items.

    >>> from jaxops import recommend
    >>> columns = {"user": ["a", "a", "b"], "item": ["x", "y", "x"]}
    >>> log = recommend.events(columns, time=None, item_features={"item": ["x", "y"], "p": [1, 2]})
    >>> towers = TwoTower.fitted(log, width=4)
    >>> retrieval(towers, log) is retrieval(TwoTower.fitted(log, width=4), log)
    True
    """
    return _retrieval(towers, Catalogue.of(events, towers.item_features, towers.known))


@recorded
def _retrieval(towers: TwoTower, catalogue: Catalogue) -> Task:
    count = catalogue.size
    columns = [
        Column("history", (towers.context,), "int", count + 1),
        Column("item", (), "int", count, target=True),
    ]
    if towers.user_features.names:
        categories, numbers = towers.user_features.widths
        columns += [
            Column("categories", (categories,), "int"),
            Column("numbers", (numbers,), "float"),
        ]

    def init(key: Key, batch: Batch) -> tuple[Params, Any]:
        extra = catalogue.arrays(towers.item_features)
        first = {name: values[:1] for name, values in extra["items"].items()}
        users = None
        if towers.user_features.names:  # not from the batch: `task.example` has no width of 0
            users = {
                "categories": jnp.zeros((1, categories), jnp.int32),
                "numbers": jnp.zeros((1, numbers), jnp.float32),
            }
        start: Any = TwoTowerModule(towers).init
        return start(key, **first, users=users)["params"], extra

    def loss(params: Params, extra: Any, batch: Batch, key: Key, train: bool) -> tuple[Array, Out]:
        weights = row_weights(batch)
        # a row of padding may hold any values, so it is replaced by the first item, no history
        item = jnp.where(weights > 0, batch["item"], 0)
        history = jnp.where((weights > 0)[:, None], batch["history"], count)
        users = jax.tree.map(lambda x: jnp.where((weights > 0)[:, None], x, 0), _users(batch))
        item_key, user_key = jax.random.split(key) if train else (None, None)
        queries = towers.user_vectors(params, extra["items"], history, users, user_key)
        taken = jax.tree.map(lambda x: x[item], extra["items"])
        vectors = towers.item_vectors(params, taken, item_key)
        losses = in_batch_softmax(queries @ vectors.T, item, extra["log_q"][item], weights)
        return masked_sum(losses, weights), Out(weights.sum(), {}, extra)

    def predict(params: Params, extra: Any, batch: Batch) -> Array:
        return towers.user_vectors(params, extra["items"], batch["history"], _users(batch))

    return Task(init, loss, predict, tuple(columns), coupled=True)


def _users(batch: Batch) -> dict[str, Array] | None:
    return {n: batch[n] for n in ("categories", "numbers")} if "categories" in batch else None
