"""Models of histories: SASRec, BERT4Rec, GRU4Rec, eSASRec and HSTU, and their scores.

Each is a Flax module with `config`, whose vocabulary is the N items and one token more, for padding
and for BERT4Rec's mask; and with `hidden(tokens, segments, positions, train=)`, (B, T, D), whose
products with the items' embeddings are the scores.
"""

from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxops.nn.attention import attention_mask, relative_bucket
from jaxops.nn.blocks import TransformerConfig, arange
from jaxops.nn.product import Dense
from jaxops.nn.recurrence import GRU
from jaxops.nn.transformer import Embedding, Transformer
from jaxops.recommend.data.events import Events
from jaxops.recommend.recommenders import Recommender, event_counts
from jaxops.state import TrainState
from jaxops.task import recorded

Array = jax.Array


def sasrec(
    items: int,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 1,
    dropout: float = 0.2,
) -> Transformer:
    """SASRec: a causal transformer over the items (Kang and McAuley 2018, arXiv:1808.09781).

    As its authors have it, items come in scaled by sqrt(width), what is added to is normalised
    (post-norm, and a norm of the embeddings), and the feed-forward network is as wide as the model.
    It matters: tried on Beauty's validation, a pre-norm transformer of the same size took twice as
    many epochs, and learned little from one negative. Here keys and values are normalised as well.

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
    items: int,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> Transformer:
    """BERT4Rec: an encoder that restores hidden items (Sun et al. 2019, arXiv:1904.06690)."""
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
    items: int,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> Transformer:
    """eSASRec: SASRec with LiGR layers (2025, arXiv:2508.06450), for a sampled softmax.

    Of a LiGR layer each branch is gated by its input, x + branch(norm(x)) * sigmoid(x W), and the
    feed-forward network is SwiGLU's (Borisyuk et al. 2025, arXiv:2502.03417).
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
    """A GRU over the items (Hidasi et al. 2016, arXiv:1511.06939).

    Of `config` it uses vocabulary, context, depth, width and dropout.
    """

    config: TransformerConfig

    def setup(self) -> None:
        """Embeddings, GRU, and the way back to the embeddings' space."""
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
        """(B, T, D) of items (B, T)."""
        x = self.embedding(tokens, positions, train=train)
        return self.out(self.gru(x, segments, train=train)[0])


def gru4rec(
    items: int, context: int = 50, width: int = 64, depth: int = 1, dropout: float = 0.2
) -> GRU4Rec:
    """A `GRU4Rec` of so many items."""
    return GRU4Rec(
        TransformerConfig(items + 1, context, depth, 1, width, position="none", dropout=dropout)
    )


class HSTUBlock(nn.Module):
    """One layer of HSTU: attention without a softmax, and a gate in place of a feed-forward net.

    u, v, q, k = silu(W norm(x)); a = silu(q k^T + bias) / T; x + W' (norm(a v) * u).
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array, bucket: Array, train: bool) -> Array:
        """Of x (B, T, D), with what sees what (B or 1, 1, T, T) and distances (B or 1, T, T)."""
        config = self.config
        heads, size, init = config.heads, config.per_head, nn.initializers.normal(0.02)
        y = nn.LayerNorm(name="norm")(x)
        y = nn.silu(Dense(4 * heads * size, kernel_init=init, name="uvqk")(y))
        u, v, q, k = jnp.split(y.reshape(*x.shape[:2], heads, -1), 4, axis=-1)
        bias = nn.Embed(32, heads, embedding_init=init, name="relative")(bucket)
        scores = jnp.einsum("bthc,bshc->bhts", q, k) + bias.transpose(0, 3, 1, 2)
        # 1 / T by what is seen, so that padding and other documents change nothing
        seen = jnp.maximum(mask.sum(-1, keepdims=True), 1)
        a = jnp.where(mask, nn.silu(scores), 0.0) / seen
        y = jnp.einsum("bhts,bshc->bthc", a, v)
        y = nn.LayerNorm(name="attended_norm")(y.reshape(*x.shape[:2], -1))
        y = Dense(config.width, kernel_init=init, name="out")(y * u.reshape(y.shape))
        return x + nn.Dropout(config.dropout, deterministic=not train)(y)


class HSTU(nn.Module):
    """Hierarchical sequential transduction units (Zhai et al. 2024, arXiv:2402.17152).

    The distances between places are those in the history; times of events are not looked at. Of
    `config` it uses vocabulary, context, depth, heads, width and dropout.
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
        """(B, T, D) of items (B, T)."""
        own = arange(tokens.shape[1]) if positions is None else positions
        mask = attention_mask(own, own, segments, segments, causal=True)
        assert mask is not None  # it is causal
        bucket = relative_bucket(own[:, None] - own[:, :, None], True)
        x = Embedding(self.config, name="embedding")(tokens, positions, train=train)
        for i in range(self.config.depth):
            x = HSTUBlock(self.config, name=f"block_{i}")(x, mask, bucket, train)
        return nn.LayerNorm(name="norm")(x)


def hstu(
    items: int,
    context: int = 50,
    width: int = 64,
    depth: int = 2,
    heads: int = 2,
    dropout: float = 0.2,
) -> HSTU:
    """An `HSTU` of so many items."""
    return HSTU(
        TransformerConfig(items + 1, context, depth, heads, width, position="none", dropout=dropout)
    )


@recorded
@dataclass(frozen=True)
class SequenceModel:
    """What a `Recommender` of histories is by: the last place's vector, and the items' embeddings.

    Attributes:
        module: as `sasrec`, `bert4rec`, `gru4rec`, `esasrec` or `hstu` makes it.
    """

    module: Any

    @property
    def masked(self) -> bool:
        """Whether it reads the answer at a mask behind the history, as BERT4Rec does."""
        return not self.module.config.causal

    @property
    def context(self) -> int:
        """How many of a user's last items it reads."""
        return int(self.module.config.context) - self.masked

    def queries(self, params: Any, history: Array) -> Array:
        """(B, D) of items (B, L), N behind the last."""
        items = self.module.config.vocabulary - 1
        if self.masked:
            history = jnp.pad(history, ((0, 0), (0, 1)), constant_values=items)
        length = (history < items).sum(1)  # without the mask
        there = jnp.arange(history.shape[1])[None] < (length + self.masked)[:, None]
        hidden = self.module.apply(
            {"params": params}, history, there.astype(jnp.int32), method="hidden"
        )
        last = jnp.maximum(length - (not self.masked), 0)
        return jnp.take_along_axis(hidden, last[:, None, None], 1)[:, 0]

    def table(self, params: Any) -> Array:
        """(N, D)."""
        return params["embedding"]["tokens"][:-1]


def recommender(
    module: Any, state: TrainState, events: Events, known: Recommender | None = None
) -> Recommender:
    """What `next_item` or `masked_item` has learned, ready to recommend.

    Args:
        module: that was trained.
        state: of it.
        events: it was trained on, for the items' ids and how often each was taken.
        known: what it went on from, by `extended`, whose counts are added.

    Raises:
        ValueError: a module of another number of items.
    """
    items = module.config.vocabulary - 1
    if items != len(events.items):
        raise ValueError(f"module: {items:,} items found, {len(events.items):,} wanted, as events")
    counts = event_counts(events)
    if known is not None:
        counts[: len(known.counts)] += known.counts
    return Recommender(SequenceModel(module), state.params, events.items, counts)


def extended(recommender: Recommender, items: int, seed: int = 0) -> tuple[Any, TrainState]:
    """The module and state of a model of histories with room for new items, to go on training.

    Known items keep their places and vectors; new ones begin as in an untrained model. Train on
    new events, whose catalogue begins with the known items (`events(..., items=model.items)`), by
    `fit(task, rows(...), state=state)`, and `recommender` makes the result ready.

    Args:
        recommender: of a module that `sasrec` or another function here has made.
        items: how many there are now, at least as many as before.
        seed: of the new vectors.

    Raises:
        ValueError: fewer items, or a model of another kind.
    """
    model = recommender.model
    if not isinstance(model, SequenceModel):
        raise ValueError(f"recommender: {type(model).__name__} found, a model of histories wanted")
    before = len(recommender.items)
    if items < before:
        raise ValueError(f"items: {items:,} found, at least the {before:,} known ones wanted")
    config = replace(model.module.config, vocabulary=items + 1)
    key = jax.random.key(seed)
    new = 0.02 * jax.random.normal(key, (items - before, config.width))  # as in `nn.Embedding`
    params = dict(recommender.params)
    table = params["embedding"]["tokens"]
    table = jnp.concatenate([table[:-1], new, table[-1:]])  # the mask stays last
    params["embedding"] = {**params["embedding"], "tokens": table}
    state = TrainState(jnp.int32(0), params, (), {}, key)
    return model.module.clone(config=config), state
