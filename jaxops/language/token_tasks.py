"""Parts of all language tasks: rows of tokens, targets with weights, and a loss by token."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxops import metrics
from jaxops.task import Array, Batch, Column, Extra, Key, Out, Params, Task, masked_sum, row_weights

START = (np.zeros((1, 2), np.int32),)  # a row of tokens, to initialise a module by its shape


class TokenTargets(NamedTuple):
    """The arguments of a module for a batch, and the tokens that it should predict.

    Attributes:
        arguments: the positional arguments of the module.
        targets: int (B, T), the target token at each position.
        weights: (B, T), 0 where a position is not a target.
    """

    arguments: tuple[Any, ...]
    targets: Array
    weights: Array


class Perplexity(NamedTuple):
    """exp(mean loss of a token), which is the effective number of equally likely tokens.

    Attributes:
        total: (), the sum of the losses in nats.
        weight: (), the number of tokens.

    >>> round(Perplexity(np.array(np.log(8.0)), np.array(1.0)).compute(), 6)
    8.0
    """

    total: Any
    weight: Any

    def merge(self, other: "Perplexity") -> "Perplexity":
        """The perplexity of both sets of tokens."""
        return Perplexity(self.total + other.total, self.weight + other.weight)

    def fold(self) -> "Perplexity":
        """(K,) -> ()."""
        return Perplexity(self.total.sum(0), self.weight.sum(0))

    def compute(self) -> float:
        """exp(total / weight)."""
        with np.errstate(over="ignore"):
            return float(np.exp(metrics.Mean(self.total, self.weight).compute()))


def token_task(
    module: Any,
    make_targets: Callable[[Batch, Key | None], TokenTargets],
    predict: Callable[[Params, Extra, Batch], Any],
    start: tuple[Any, ...],
    columns: tuple[Column, ...],
) -> Task:
    """A task whose loss is the sum over target tokens of their cross-entropies.

    Args:
        module: a Flax module, (arguments of `TokenTargets`, train=) to logits (B, T, V).
        make_targets: `(batch, key) -> TokenTargets`; the key is `None` outside training.
        predict: see `Task`.
        start: arguments to initialise the module with; only their shapes matter.
        columns: what the data must look like.
    """

    def init(key: Key, batch: Batch) -> tuple[Params, Extra]:
        if all(np.shape(batch[c.name])[1] > 1 for c in columns):  # the batch is not `task.example`
            jax.eval_shape(lambda b: make_targets(b, None), dict(batch))  # refuses rows too long
        variables = dict(module.init(key, *start))
        return variables.pop("params", {}), variables

    def loss(
        params: Params, extra: Extra, batch: Batch, key: Key, train: bool
    ) -> tuple[Array, Out]:
        target_key, dropout_key = jax.random.split(key)
        arguments, targets, target_weights = make_targets(batch, target_key if train else None)
        logits, new = module.apply(
            {"params": params, **extra},
            *arguments,
            train=train,
            rngs={"dropout": dropout_key},
            mutable=list(extra) if train else [],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        weights = target_weights * row_weights(batch)[:, None]
        total, count = masked_sum(losses, weights), weights.sum()
        states = {
            "accuracy": metrics.accuracy(logits, targets, weights),
            "perplexity": Perplexity(total, count),
        }
        return total, Out(count, states, {**extra, **new})

    return Task(init, loss, predict, columns)


def config_of(module: Any, causal: bool | None) -> Any:
    """The object with the module's `vocabulary` and `context`: its config, or the module itself.

    Raises:
        ValueError: the module is an encoder and `causal` is True, or a decoder and it is False.
    """
    config = getattr(module, "config", module)
    if causal is not None and getattr(config, "causal", causal) != causal:
        raise ValueError(f"module must have causal={causal}, got causal={config.causal}")
    return config


def token_columns(vocabulary: int) -> tuple[Column, ...]:
    """The columns that `pack` and `windows` make."""
    return (
        Column("tokens", (None,), "int", classes=vocabulary),
        Column("segments", (None,), "int"),
    )


def context_of(config: Any, context: int | None) -> int:
    """The number of tokens that a task reads at once: by default the module's context.

    Raises:
        ValueError: more tokens than the module's context, or `None` and the module has no context.
    """
    largest = getattr(config, "context", None)
    context = context or largest
    if context is None:
        raise ValueError(
            "context must be a number of tokens, got None; the module has no context of its own"
        )
    if largest is not None and context > largest:
        raise ValueError(f"context must be at most {largest} (the module's), got {context}")
    return context


def read_rows(batch: Batch, context: int, more: int, key: Key | None) -> tuple[Array, Array]:
    """Tokens and segments of a batch, int32 (B, T), T <= context + more.

    From each row of `windows` one window is read: at a random position if there is a key, and at
    the beginning if not.

    Raises:
        ValueError: in tracing, for rows that are too long or segments of another shape.
    """
    tokens, segments = (jnp.asarray(batch[name], jnp.int32) for name in ("tokens", "segments"))
    length, longest = tokens.shape[1], context + more
    if segments.shape != tokens.shape:
        raise ValueError(f"segments must be {tokens.shape} (as tokens), got {segments.shape}")
    if not 1 + more <= length <= longest and length != 2 * context:
        raise ValueError(
            f"tokens must be rows of at most {longest} (the task reads {context}), or windows("
            f"tokens, {context}), got rows of {length}"
        )
    if length <= longest:
        return tokens, segments
    if key is None:
        return tokens[:, :longest], segments[:, :longest]
    room = jnp.clip((segments > 0).sum(1) - longest, 0, context - 1)
    place = jax.random.randint(key, room.shape, 0, room + 1)
    cut = jax.vmap(lambda row, i: lax.dynamic_slice(row, (i,), (longest,)))
    return cut(tokens, place), cut(segments, place)


def read_rows_with_keys(batch: Batch, context: int, key: Key | None) -> tuple[Array, Array, Array]:
    """The result of `read_rows`, and a key for each row, (B,), independent of where it begins."""
    place, draw = (None, None) if key is None else jax.random.split(key)
    tokens, segments = read_rows(batch, context, 0, place)
    return tokens, segments, row_keys(draw, tokens)


def row_keys(key: Key | None, tokens: Array) -> Array:
    """A key for each row: in training from the step's key, else from a hash of the row's tokens.

    Therefore an evaluation draws the same for a row in any batch, on any number of devices.
    """
    if key is not None:
        return jax.random.split(key, len(tokens))
    factors = 2 * jax.random.bits(jax.random.key(0), (1, tokens.shape[1])) + 1
    hashes = (tokens.astype(jnp.uint32) * factors).sum(1, dtype=jnp.uint32)
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), hashes)
