"""Sequence models of histories: SASRec, BERT4Rec, GRU4Rec, eSASRec and HSTU.

Each is a Flax module with a `config`, whose vocabulary is the N items and one more token, for
padding and BERT4Rec's mask, and with a method `hidden(tokens, segments, positions, train=)` that
returns (B, T, D). The inner products of these vectors and the items' embeddings are the scores.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.model.finished import Model
from jaxops.nn.attention import attention_mask, relative_bucket
from jaxops.nn.blocks import TransformerConfig, arange
from jaxops.nn.product import Dense
from jaxops.nn.recurrence import GRU
from jaxops.nn.transformer import Embedding, Transformer
from jaxops.recommend.data.events import Events
from jaxops.recommend.recommenders import Recommender, event_counts, recommender_of
from jaxops.state import TrainState
from jaxops.task import recorded

Array = jax.Array


def sasrec(
    items: int = 0,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 1,
    dropout: float = 0.2,
) -> Transformer:
    """SASRec: a causal transformer over the items (Kang and McAuley 2018, arXiv:1808.09781).

    As in the original, embeddings are scaled by sqrt(width) and normalised, blocks are post-norm,
    and the feed-forward network has the width of the model. On the validation split of Beauty, a
    pre-norm transformer of the same size took twice as many epochs and learned little from a single
    negative. Unlike in the original, keys and values are normalised as well.

    Args:
        items: N, the number of items; `recommend.fit` sets it to that of the log.
        context: number of items read.
        width: D, size of a hidden vector.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: dropout rate.

    >>> sasrec(items=100).config.vocabulary
    101
    """
    return Transformer(
        TransformerConfig(
            items + 1,
            context,
            depth,
            heads,
            width,
            hidden=width,
            activation="relu",
            dropout=dropout,
            post_norm=True,
            embedding_norm=True,
            embedding_scale=width**0.5,
        )
    )


def bert4rec(
    items: int = 0,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> Transformer:
    """BERT4Rec: an encoder that predicts masked items (Sun et al. 2019, arXiv:1904.06690).

    Args:
        items: N, the number of items; `recommend.fit` sets it to that of the log.
        context: number of tokens read; one of them is the mask.
        width: D, size of a hidden vector.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: dropout rate.

    >>> bert4rec(items=100).config.causal
    False
    """
    return Transformer(
        TransformerConfig(
            items + 1,
            context,
            depth,
            heads,
            width,
            causal=False,
            dropout=dropout,
            post_norm=True,
            embedding_norm=True,
        )
    )


def esasrec(
    items: int = 0,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> Transformer:
    """eSASRec: SASRec with LiGR layers (2025, arXiv:2508.06450), meant for a sampled softmax.

    Each branch of a LiGR layer is gated by its input, x + branch(norm(x)) * sigmoid(x W), and the
    feed-forward network is SwiGLU (Borisyuk et al. 2025, arXiv:2502.03417).

    Args:
        items: N, the number of items; `recommend.fit` sets it to that of the log.
        context: number of items read.
        width: D, size of a hidden vector.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: dropout rate.

    >>> esasrec(items=100).config.gated_residual
    True
    """
    return Transformer(
        TransformerConfig(
            items + 1,
            context,
            depth,
            heads,
            width,
            activation="swiglu",
            gated_residual=True,
            bias=False,
            dropout=dropout,
        )
    )


class GRU4Rec(nn.Module):
    """GRU4Rec: a GRU over the items (Hidasi et al. 2016, arXiv:1511.06939).

    Attributes:
        config: the configuration; vocabulary, context, depth, width and dropout are used.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Embeddings, the GRU, and a linear map into the embedding space."""
        self.embedding = Embedding(self.config)
        self.gru = GRU(self.config.width, self.config.depth, dropout=self.config.dropout)
        self.out = Dense(self.config.width)

    def hidden(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Hidden vectors (B, T, D) of items (B, T)."""
        x = self.embedding(tokens, positions, train=train)
        return self.out(self.gru(x, segments, train=train)[0])


def gru4rec(
    items: int = 0, context: int = 50, width: int = 64, depth: int = 1, dropout: float = 0.2
) -> GRU4Rec:
    """A `GRU4Rec` module.

    Args:
        items: N, the number of items; `recommend.fit` sets it to that of the log.
        context: number of items read.
        width: D, size of a hidden vector.
        depth: number of GRU layers.
        dropout: dropout rate.

    >>> isinstance(gru4rec(items=100), GRU4Rec)
    True
    """
    return GRU4Rec(
        TransformerConfig(items + 1, context, depth, 1, width, position="none", dropout=dropout)
    )


class HSTUBlock(nn.Module):
    """One layer of HSTU: attention without softmax, and a gate instead of a feed-forward network.

    u, v, q, k = silu(W norm(x)); a = silu(q k^T + bias) / T; x + W' (norm(a v) * u), where T is the
    number of positions attended to.

    Attributes:
        config: the configuration; heads, width and dropout are used.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array, bucket: Array, train: bool) -> Array:
        """The layer's output (B, T, D).

        Args:
            x: (B, T, D).
            mask: (B or 1, 1, T, T) bool, which positions attend to which.
            bucket: (B or 1, T, T) int, buckets of their distances.
            train: whether dropout is on.
        """
        config = self.config
        heads, size, init = config.heads, config.per_head, nn.initializers.normal(0.02)
        y = nn.LayerNorm(name="norm")(x)
        y = nn.silu(Dense(4 * heads * size, kernel_init=init, name="uvqk")(y))
        u, v, q, k = jnp.split(y.reshape(*x.shape[:2], heads, -1), 4, axis=-1)
        bias = nn.Embed(32, heads, embedding_init=init, name="relative")(bucket)
        scores = jnp.einsum("bthc,bshc->bhts", q, k) + bias.transpose(0, 3, 1, 2)
        # T counts only visible positions, so that padding and other segments change nothing
        seen = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        a = jnp.where(mask, nn.silu(scores), 0.0) / seen
        y = jnp.einsum("bhts,bshc->bthc", a, v)
        y = nn.LayerNorm(name="attended_norm")(y.reshape(*x.shape[:2], -1))
        y = Dense(config.width, kernel_init=init, name="out")(y * u.reshape(y.shape))
        return x + nn.Dropout(config.dropout, deterministic=not train)(y)


class HSTU(nn.Module):
    """Hierarchical sequential transduction units (Zhai et al. 2024, arXiv:2402.17152).

    Distances are between positions in the history; times of events are not used.

    Attributes:
        config: the configuration; vocabulary, context, depth, heads, width and dropout are used.
    """

    config: TransformerConfig

    @nn.compact
    def hidden(
        self,
        tokens: Array,
        segments: Array | None = None,
        positions: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        """Hidden vectors (B, T, D) of items (B, T)."""
        place = arange(tokens.shape[1]) if positions is None else positions
        mask = attention_mask(place, place, segments, segments, causal=True)
        assert mask is not None  # it is causal
        bucket = relative_bucket(place[:, None] - place[:, :, None], True)
        x = Embedding(self.config, name="embedding")(tokens, positions, train=train)
        for i in range(self.config.depth):
            x = HSTUBlock(self.config, name=f"block_{i}")(x, mask, bucket, train)
        return nn.LayerNorm(name="norm")(x)


def hstu(
    items: int = 0,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> HSTU:
    """An `HSTU` module.

    Args:
        items: N, the number of items; `recommend.fit` sets it to that of the log.
        context: number of items read.
        width: D, size of a hidden vector.
        depth: number of blocks.
        heads: number of attention heads.
        dropout: dropout rate.

    >>> isinstance(hstu(items=100), HSTU)
    True
    """
    return HSTU(
        TransformerConfig(items + 1, context, depth, heads, width, position="none", dropout=dropout)
    )


@recorded
@dataclass(frozen=True)
class SequenceModel:
    """The model of a sequence recommender: queries are hidden vectors of the last position.

    Attributes:
        module: the Flax module, as made by `sasrec`, `bert4rec`, `gru4rec`, `esasrec` or `hstu`.

    >>> model = SequenceModel(sasrec(items=5, context=4, width=8, depth=1))
    >>> model.context, model.masked
    (4, False)
    """

    module: Any

    @property
    def masked(self) -> bool:
        """Whether the query is read at a mask after the history, as in BERT4Rec."""
        return not self.module.config.causal

    @property
    def context(self) -> int:
        """Number of a user's last items that are read."""
        return int(self.module.config.context) - self.masked

    def queries(self, params: Any, history: Array) -> Array:
        """Queries (B, D) of histories (B, L), with N for padding, which comes last."""
        items = self.module.config.vocabulary - 1
        if self.masked:
            history = jnp.pad(history, ((0, 0), (0, 1)), constant_values=items)
        length = (history < items).sum(1)  # does not count the mask
        filled = jnp.arange(history.shape[1])[None] < (length + self.masked)[:, None]
        hidden = self.module.apply(
            {"params": params}, history, filled.astype(jnp.int32), method="hidden"
        )
        last = jnp.maximum(length - (not self.masked), 0)
        return jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]

    def table(self, params: Any) -> Array:
        """The items' embeddings (N, D)."""
        return params["embedding"]["tokens"][:-1]


def sequence_recommender(
    module: Any, state: TrainState, events: Events, known: Recommender | None = None
) -> Recommender:
    """The recommender that a `next_item` or `masked_item` task has trained.

    Args:
        module: the Flax module that was trained.
        state: the trained state.
        events: the training log, for the items' ids and counts.
        known: if training continued from a recommender by `sequence_with_items`, that recommender;
            its counts are added.

    Raises:
        ValueError: the module has another number of items.

    >>> import jaxops as jo
    >>> from jaxops import recommend as r
    >>> log = r.events({"user": ["a"] * 8, "item": list("xyzxyzxy")}, time=None)
    >>> module = r.sasrec(items=3, context=4, width=8, depth=1, dropout=0.0)
    >>> state = jo.fit(r.next_item(module), r.rows(log.histories(), 5), batch_size=2, epochs=20,
    ...                optimizer=jo.optim.adam(0.05), progress=False)
    >>> model = sequence_recommender(module, state, log)
    >>> r.recommend(model, [["x"], ["x", "y"]], k=1).ids()
    [['y'], ['z']]
    >>> larger, new = sequence_with_items(model, items=5)  # to train on a log with five items
    >>> larger.config.vocabulary, SequenceModel(larger).table(new.params).shape
    (6, (5, 8))
    """
    items = module.config.vocabulary - 1
    if items != len(events.items):
        raise ValueError(
            f"module must have {len(events.items):,} items, as events have, got {items:,}"
        )
    counts = event_counts(events)
    if known is not None:
        counts[: len(known.counts)] += known.counts
    return Recommender(SequenceModel(module), state.params, events.items, counts)


def sequence_with_items(
    recommender: Model | Recommender, items: int, seed: int = 0
) -> tuple[Any, TrainState]:
    """The module and state of a sequence recommender with vectors for new items, to train further.

    Known items keep their indices and vectors; new vectors are initialised as in an untrained
    model. Read the new events with a catalogue that begins with the known items
    (`events(..., items=recommender.items)`), train with `fit(task, rows(...), state=state)`, and
    pass the result to `sequence_recommender`.

    Args:
        recommender: a model from `recommend.fit`, or a `sequence_recommender`.
        items: the new number of items, at least as many as before.
        seed: seed of the new vectors.

    Raises:
        ValueError: there are fewer items, or the recommender is of another kind.
    """
    recommender = recommender_of(recommender)
    model = recommender.model
    if not isinstance(model, SequenceModel):
        raise ValueError(
            f"recommender must have a SequenceModel, got one with {type(model).__name__}"
        )
    before = len(recommender.items)
    if items < before:
        raise ValueError(f"items must be at least {before:,} (the known items), got {items:,}")
    config = replace(model.module.config, vocabulary=items + 1)
    key = jax.random.key(seed)
    new = 0.02 * jax.random.normal(key, (items - before, config.width))  # as in `nn.Embedding`
    params = dict(recommender.params)
    table = params["embedding"]["tokens"]
    table = jnp.concatenate([table[:-1], new, table[-1:]])  # the mask stays last
    params["embedding"] = {**params["embedding"], "tokens": table}
    state = TrainState(jnp.int32(0), params, (), {}, key)
    return model.module.clone(config=config), state
