"""How a batch of texts becomes a question to a model, and its answers a loss by tokens."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxops import metrics
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, masked_sum, row_weights

START = (np.zeros((1, 2), np.int32),)  # a row of tokens to initialise a model with


class Question(NamedTuple):
    """What a batch asks of a model.

    Attributes:
        arguments: the model's, in their order.
        targets: int (B, T), the token that is right at each place.
        weights: (B, T), 0 where a place does not count.
    """

    arguments: tuple[Any, ...]
    targets: Array
    weights: Array


class Perplexity(NamedTuple):
    """The exponential of the mean loss of a token: among how many it is as good as guessed.

    >>> round(Perplexity(np.array(np.log(8.0)), np.array(1.0)).compute(), 6)
    8.0
    """

    total: Any
    weight: Any

    def merge(self, other: "Perplexity") -> "Perplexity":
        """That of both sets of tokens."""
        return Perplexity(self.total + other.total, self.weight + other.weight)

    def fold(self) -> "Perplexity":
        """(K,) -> ()."""
        return Perplexity(self.total.sum(0), self.weight.sum(0))

    def compute(self) -> float:
        """exp(total / weight)."""
        with np.errstate(over="ignore"):
            return float(np.exp(metrics.Mean(self.total, self.weight).compute()))


def token_task(
    model: Any,
    ask: Callable[[Batch, Key | None], Question],
    predict: Callable[[Params, Extra, Batch], Any],
    start: tuple[Any, ...],
    columns: tuple[Column, ...],
) -> Task:
    """A task whose loss is a sum over tokens: the cross-entropy of each with the model's logits.

    Args:
        model: a Flax module: the arguments of a question, and `train`, to logits (B, T, V).
        ask: `(batch, key) -> Question`; the key is `None` outside training.
        predict: as a task's.
        start: arguments to initialise the model with; only shapes matter.
        columns: what the data must look like.
    """

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        if all(np.shape(batch[c.name])[1] > 1 for c in columns):  # not `task.example`
            jax.eval_shape(lambda b: ask(b, None), dict(batch))  # are its rows too long?
        variables = dict(model.init(key, *start))
        return variables.pop("params", {}), variables

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        look, drop = jax.random.split(key)
        question = ask(batch, look if train else None)
        logits, new = model.apply(
            {"params": params, **extra},
            *question.arguments,
            train=train,
            rngs={"dropout": drop},
            mutable=list(extra) if train else [],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, question.targets)
        weights = question.weights * row_weights(batch)[:, None]
        # where, not a product: what a model makes of a row of padding may be infinite
        total, count = masked_sum(losses, weights), weights.sum()
        read = {
            "accuracy": metrics.accuracy(logits, question.targets, weights),
            "perplexity": Perplexity(total, count),
        }
        return total, Out(count, read, {**extra, **new})

    return Task(init, loss, predict, columns)


def config_of(model: Any, causal: bool | None) -> Any:
    """What says the model's `vocabulary` and `context`; a decoder or an encoder, as is wanted."""
    config = getattr(model, "config", model)
    if causal is not None and getattr(config, "causal", causal) != causal:
        raise ValueError(f"model: causal={config.causal} found, causal={causal} wanted")
    return config


def token_columns(vocabulary: int) -> tuple[Column, ...]:
    """What `pack` and `windows` make."""
    return (
        Column("tokens", (None,), "int", classes=vocabulary),
        Column("segments", (None,), "int"),
    )


def length_of(config: Any, length: int | None) -> int:
    """The most tokens a model sees at once: its context, unless fewer are wanted."""
    context = getattr(config, "context", None)
    length = length or context
    if length is None:
        raise ValueError("length: how many tokens the model sees at once wanted; None found")
    if context is not None and length > context:
        raise ValueError(f"length: {length} found, at most {context}, the model's context, wanted")
    return length


def seen_by(batch: Batch, length: int, more: int, key: Key | None) -> tuple[Array, Array]:
    """Tokens and segments of a batch, int32 (B, T), T <= length + more.

    Of rows as `windows` makes them these are a window, at a random place where there is a key.
    """
    tokens, segments = (jnp.asarray(batch[name], jnp.int32) for name in ("tokens", "segments"))
    found, wanted = tokens.shape[1], length + more
    if segments.shape != tokens.shape:
        raise ValueError(f"segments: {segments.shape} found, {tokens.shape} wanted, as of tokens")
    if not 1 + more <= found <= wanted and found != 2 * length:
        raise ValueError(
            f"tokens: rows of {found} found, of at most {wanted} wanted (the model sees {length}), "
            f"or as windows(tokens, {length}) makes them"
        )
    if found <= wanted:
        return tokens, segments
    if key is None:
        return tokens[:, :wanted], segments[:, :wanted]
    room = jnp.clip((segments > 0).sum(1) - wanted, 0, length - 1)
    place = jax.random.randint(key, room.shape, 0, room + 1)
    cut = jax.vmap(lambda row, i: lax.dynamic_slice(row, (i,), (wanted,)))
    return cut(tokens, place), cut(segments, place)


def rows_seen(batch: Batch, length: int, key: Key | None) -> tuple[Array, Array, Array]:
    """As `seen_by`, and a key for each row, (B,), that has no part in where its window begins."""
    place, draw = (None, None) if key is None else jax.random.split(key)
    tokens, segments = seen_by(batch, length, 0, place)
    return tokens, segments, row_keys(draw, tokens)


def row_keys(key: Key | None, tokens: Array) -> Array:
    """A key for each row: in training of the step, else of the row's own tokens.

    So an evaluation asks the same of a row in whatever batch, on however many devices, it comes.
    """
    if key is not None:
        return jax.random.split(key, len(tokens))
    factors = 2 * jax.random.bits(jax.random.key(0), (1, tokens.shape[1])) + 1
    told = (tokens.astype(jnp.uint32) * factors).sum(1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), told)
