"""What to learn from histories: the next item (SASRec), or those that were hidden (BERT4Rec)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxops import metrics
from jaxops.data.packing import pack
from jaxops.nn.attention import document_positions
from jaxops.recommend.data.events import Histories
from jaxops.recommend.losses import CrossEntropy, fits
from jaxops.recommend.models.sequence import SequenceModel
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
"""Of hidden (B, T, D), table (N, D), targets and weights (B, T) and a key: a sum over places."""


def rows(histories: Histories, length: int, overlap: int = 1) -> dict[str, np.ndarray]:
    """Histories to learn from, packed: `items` and `segments`, int32 (R, length).

    A history that is longer comes in several parts, counted from its end, which share `overlap`
    items: with 1, every item but a history's first is foretold once. Histories of one item, which
    teach nothing, are left out. Short ones share a row, as segments 1, 2, ... (see
    `language.pack`); 0 is padding.

    Args:
        histories: of the training events.
        length: of a row: the model's context and 1 for `next_item`, the context for `masked_item`.
        overlap: 1 for `next_item`, 0 for `masked_item`.

    Raises:
        ValueError: no history of two items.

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
        raise ValueError(
            "histories: none of two items found; two of one user wanted, to learn from"
        )
    columns = pack(parts, length).columns
    return {"items": columns["tokens"], "segments": columns["segments"]}


def held_out(histories: Histories, targets: Histories, length: int) -> dict[str, np.ndarray]:
    """Histories with what came next at the end, one a row: `items` and `segments`, as in `rows`.

    Args:
        histories: of U users, as they were before; a user whose is empty is left out.
        targets: of the same users, of which the first counts; a user without any is left out.
        length: of a row, the history's last items and the target; see `rows`.

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
    """Foretell each item of a history from those before it; weights of events are not looked at.

    In training a batch is of `rows`: of each history every item but the first is foretold. In an
    evaluation each row is one history, as `held_out` makes it, and its last item alone is foretold.

    Args:
        module: as `sasrec`, `esasrec`, `gru4rec` or `hstu` makes it.
        loss: in training; see `jaxops.recommend.losses`. In an evaluation it is the cross-entropy.

    Returns:
        A task with the metrics loss, `hr@10` and `ndcg@10`, the last two in evaluations alone, of
        the held-out item among all items but those before it in its row. It predicts the vector
        (B, D) of the history that is the row.

    Raises:
        ValueError: a module that sees the items to come.
    """
    if not module.config.causal:
        raise ValueError("module: one that sees the items to come found, a causal one wanted")

    def ask(items: Array, segments: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        following = segments[:, 1:]
        there = (segments[:, :-1] == following) & (following > 0)
        return items[:, :-1], segments[:, :-1], items[:, 1:], there.astype(jnp.float32)

    return _task(module, loss, ask, 1)


@recorded
def masked_item(module: Any, loss: Loss = CrossEntropy(), share: float = 0.2) -> Task:  # noqa: B008
    """Restore items that were hidden at random, from those on both sides (BERT4Rec).

    In training a batch is of `rows(..., overlap=0)`; of each row `share` of the items are hidden,
    drawn anew in each step, and at least one. An evaluation is that of `next_item`: the last item
    of a history is hidden, and no other. The original draws by history and adds histories with the
    last item alone hidden; here a row's histories share its draw.

    Args:
        module: as `bert4rec` makes it.
        loss: in training; see `jaxops.recommend.losses`.
        share: of the items that are hidden.

    Returns:
        A task as `next_item`'s.

    Raises:
        ValueError: a causal module, or a share outside (0, 1).
    """
    if module.config.causal:
        raise ValueError("module: a causal one found, one that sees both sides wanted")
    if not 0 < share < 1:
        raise ValueError(f"share: {share} found, in (0, 1) wanted")
    mask = module.config.vocabulary - 1

    def ask(items: Array, segments: Array, key: Key) -> tuple[Array, Array, Array, Array]:
        draws = jnp.where(segments > 0, jax.random.uniform(key, items.shape), 2.0)
        place = draws.argsort(1).argsort(1)
        count = jnp.maximum(jnp.round(share * (segments > 0).sum(1, keepdims=True)), 1)
        hidden = (place < count) & (segments > 0)
        return jnp.where(hidden, mask, items), segments, items, hidden.astype(jnp.float32)

    return _task(module, loss, ask, 0)


def _task(module: Any, loss: Loss, ask: Any, ahead: int) -> Task:
    items, model = module.config.vocabulary - 1, SequenceModel(module)

    def read(batch: Batch) -> tuple[Array, Array]:
        found, segments = (jnp.asarray(batch[n], jnp.int32) for n in ("items", "segments"))
        context = module.config.context + ahead
        if found.shape != segments.shape or found.shape[1] > context:
            raise ValueError(
                f"items, segments: {found.shape}, {segments.shape} found, "
                f"the same wanted, with at most {context} in a row"
            )
        return found, segments

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        if np.shape(batch["items"])[1] > 1:  # not `task.example`
            jax.eval_shape(read, dict(batch))
        start = jnp.zeros((1, 2), jnp.int32)
        params = module.init(key, start, start + 1, start, method="hidden")["params"]
        return params, {}

    def loss_fn(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        weights = row_weights(batch)
        if not train:
            total, read_of = evaluated(params, *read(batch), weights)
            return total, Out(weights.sum(), read_of, extra)
        look, draw, drop = jax.random.split(key, 3)
        seen, segments, targets, there = ask(*read(batch), look)
        there *= weights[:, None]
        hidden = module.apply(
            {"params": params},
            seen,
            segments,
            document_positions(segments),
            train=True,
            rngs={"dropout": drop},
            method="hidden",
        )
        total = loss(hidden, model.table(params), targets, there, draw)
        return total, Out(there.sum(), {}, extra)

    def evaluated(
        params: Params, found: Array, segments: Array, weights: Array
    ) -> tuple[Array, dict[str, Any]]:
        last = jnp.maximum((segments > 0).sum(1, keepdims=True) - 1, 0)
        target = jnp.take_along_axis(found, last, 1)
        history = jnp.where(jnp.arange(found.shape[1])[None] < last, found, items)[:, :-1]
        # in parts, so that no more than some scores are held; the rows of a part are far apart, so
        # that each device has its share of them
        parts = next(p for p in range(1, len(found) + 1) if fits(len(found), p, items))

        def part(x: tuple[Array, Array]) -> tuple[Array, Array]:
            return held_out_ranks(model, params, *x)

        split = [a.reshape(-1, parts, a.shape[1]).swapaxes(0, 1) for a in (history, target)]
        losses, rank = (a.swapaxes(0, 1).reshape(-1) for a in jax.lax.map(part, tuple(split)))
        hit = rank <= 10
        gain = jnp.where(hit, 1 / jnp.log2(rank + 1), 0.0)
        read_of = {
            "hr@10": metrics.mean(hit.astype(jnp.float32), weights),
            "ndcg@10": metrics.mean(gain, weights),
        }
        return masked_sum(losses, weights), read_of

    def predict(params: Params, extra: Extra, batch: Batch) -> Array:
        found, segments = read(batch)
        history = jnp.where(segments > 0, found, items)
        return model.queries(params, last_items(history, model.context, items))

    columns = (
        Column("items", (None,), "int", classes=items),
        Column("segments", (None,), "int"),
    )
    return Task(init, loss_fn, predict, columns)


def held_out_ranks(
    model: Any, params: Params, history: Array, target: Array
) -> tuple[Array, Array]:
    """The cross-entropy of `target` (B, 1) after `history` (B, L), and its rank, both (B,).

    The rank is among all items but those of the history, ties at their mean, from 1.
    """
    scores = jnp.matmul(
        model.queries(params, history),
        model.table(params).T,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    right = jnp.take_along_axis(scores, target, 1)
    losses = (jax.nn.logsumexp(scores, axis=1, keepdims=True) - right)[:, 0]
    row = jnp.arange(len(scores))[:, None]
    others = scores.at[row, history].set(-jnp.inf, mode="drop").at[row, target].set(-jnp.inf)
    rank = 1.0 + (others > right).sum(1) + 0.5 * (others == right).sum(1)
    return losses, jnp.where(jnp.isnan(losses), jnp.inf, rank)
