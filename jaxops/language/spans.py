"""T5's span corruption: cuts spans out of a text, on the device, in fixed shapes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops.task import Array, Key


class Spans(NamedTuple):
    """How spans are cut out of texts of up to `length` tokens; see `span_corruption`.

    Attributes:
        cut: int32 (length + 1,), number of tokens that are cut out of a text of 0, 1, ... tokens.
        spans: int32 (length + 1,), number of spans in which they are cut out.
        source_length: number of tokens in a row of sources, with `end`.
        target_length: number of tokens in a row of targets, with `end`.
        first_sentinel: sentinel k is the token `first_sentinel - k`.
        end: the token at the end of sources and targets.
        padding: the token after the end.
    """

    cut: np.ndarray
    spans: np.ndarray
    source_length: int
    target_length: int
    first_sentinel: int
    end: int
    padding: int

    @property
    def length(self) -> int:
        """The largest number of tokens in a text."""
        return len(self.cut) - 1

    @property
    def sentinels(self) -> int:
        """The largest number of spans in a text."""
        return int(self.spans.max())

    def corrupt(self, key: Key, tokens: Array, count: Array) -> tuple[Array, Array]:
        """Source (source_length,) and target (target_length,) of one text.

        Args:
            key: the key of the random draws.
            tokens: int (T,), T <= length.
            count: int (), number of tokens of the text; the rest is padding.
        """
        cut, spans = jnp.asarray(self.cut)[count], jnp.asarray(self.spans)[count]
        place = jnp.arange(len(tokens))
        first, second = jax.random.split(key)
        kept_lengths = self._parts(first, count - cut, spans, len(tokens))
        cut_lengths = self._parts(second, cut, spans, len(tokens))
        # parts of the text are kept, cut, kept, ...: find where each ends, and each token's part
        ends = jnp.stack([kept_lengths, cut_lengths], 1).reshape(-1).cumsum()
        part = jnp.searchsorted(ends, place, side="right", method="compare_all")
        span, is_cut, is_text = part // 2, part % 2 == 1, place < count
        begins = is_cut & jnp.append(True, part[1:] != part[:-1])
        sentinel = self.first_sentinel - span

        kept = is_text & (~is_cut | begins)
        at = jnp.where(kept, jnp.cumsum(kept) - 1, self.source_length)  # out of range: dropped
        source = self._row(self.source_length, count - cut + spans, count)
        source = source.at[at].set(jnp.where(is_cut, sentinel, tokens), mode="drop")

        removed = is_text & is_cut
        at = jnp.where(removed, jnp.cumsum(removed) + span, self.target_length)
        target = self._row(self.target_length, cut + spans, count)
        target = target.at[at].set(tokens, mode="drop")
        at = jnp.where(removed & begins, at - 1, self.target_length)
        return source, target.at[at].set(sentinel, mode="drop")

    def _row(self, length: int, used: Array, count: Array) -> Array:
        """A row of padding with the end token at `used`; only padding if there is no text."""
        end = jnp.where(count > 0, self.end, self.padding)
        return jnp.full(length, self.padding, jnp.int32).at[used].set(end)

    def _parts(self, key: Key, count: Array, parts: Array, length: int) -> Array:
        """Random lengths (sentinels,) of `parts` parts of `count` tokens, each at least 1.

        Among the count - 1 positions between two tokens, parts - 1 are chosen at random for cuts.
        """
        place = jnp.arange(length)
        draw = jnp.where(place < count - 1, jax.random.uniform(key, (length,)), -1.0)
        _, chosen = lax.top_k(draw, min(self.sentinels, length))
        is_cut = (jnp.arange(len(chosen)) < parts - 1).astype(jnp.int32)
        begins = jnp.zeros(length, jnp.int32).at[chosen + 1].add(is_cut, mode="drop")
        number = jnp.where(place < count, begins.cumsum(), self.sentinels)
        return jnp.zeros(self.sentinels, jnp.int32).at[number].add(1, mode="drop")


def make_spans(
    first_sentinel: int,
    context: int,
    length: int | None,
    share: float,
    mean_span: float,
    end: int,
    padding: int,
) -> Spans:
    """The settings of `span_corruption`; by default for the longest texts that fit the context.

    Raises:
        ValueError: see `span_corruption`.

    >>> spans = make_spans(32_099, 512, None, share=0.15, mean_span=3.0, end=1, padding=0)
    >>> spans.length, spans.source_length, spans.target_length  # those of T5
    (568, 512, 114)
    """
    if not 0 < share < 1 or mean_span < 1:
        raise ValueError(
            "share and mean_span must be between 0 and 1 and at least 1, got "
            f"{share} and {mean_span}"
        )
    lengths = np.arange(2 * context + 1 if length is None else length + 1)
    cut = np.minimum(np.maximum(np.round(lengths * share), 1), lengths - 1).clip(0).astype(np.int32)
    spans = np.minimum(np.maximum(np.round(cut / mean_span), 1), np.minimum(cut, lengths - cut))
    sources = np.maximum.accumulate(lengths - cut + spans + 1)
    targets = np.maximum.accumulate(cut + spans + 1)
    fitting = int(np.flatnonzero((sources <= context) & (targets <= context))[-1])
    most = fitting if length is None else length
    if not 2 <= most <= fitting:
        raise ValueError(
            f"length must be in 2 to {fitting} (so that source and target fit the module's context "
            f"of {context}), got {length}"
        )
    cut, spans = cut[: most + 1], spans[: most + 1].astype(np.int32)
    if spans.max() > first_sentinel:
        raise ValueError(
            f"first_sentinel must be at least {spans.max()} (the number of sentinels), got "
            f"{first_sentinel}"
        )
    return Spans(cut, spans, int(sources[most]), int(targets[most]), first_sentinel, end, padding)
