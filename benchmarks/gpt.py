"""The suite's GPT: the library's transformer, characters in, the next ones out."""

import dataclasses
from typing import Any

import jax
import optax

import jaxops as jo
from benchmarks import workloads
from jaxops.nn import Transformer, TransformerConfig

Array = jax.Array


def network(size: workloads.GPT, **changes: Any) -> Transformer:
    """The network of a size; `changes` are other fields of its config."""
    shape: dict[str, Any] = dataclasses.asdict(size)
    return Transformer(TransformerConfig(**shape, tied=False, **changes))


@jo.recorded
def next_character(model: Transformer) -> jo.Task:
    """Learn the next character of each of a window's; a row is a window of context + 1."""

    def loss(logits: Array, batch: Any, train: bool) -> Array:
        targets = batch["tokens"][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(-1)

    config = model.config
    return jo.supervised(
        model,
        lambda batch, key: batch["tokens"][:, :-1],
        loss,
        lambda logits, batch, weights: {},
        jax.nn.softmax,
        (jo.Column("tokens", (config.context + 1,), "int", classes=config.vocabulary),),
    )


def task(size: workloads.GPT) -> jo.Task:
    """What a network of this size learns."""
    return next_character(network(size))
