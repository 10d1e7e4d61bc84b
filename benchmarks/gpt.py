"""A small GPT in plain Flax, its products by `jaxops.nn`: characters in, the next ones out."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxops as jo
from benchmarks import workloads
from jaxops.nn import Dense, matmul

Array = jax.Array
_INIT = nn.initializers.normal(0.02)


def _dense(x: Array, features: int, name: str, use_bias: bool = True) -> Array:
    return Dense(features, use_bias=use_bias, kernel_init=_INIT, name=name)(x)


def _norm(x: Array, name: str) -> Array:
    return nn.LayerNorm(epsilon=1e-5, name=name)(x)  # PyTorch's


class Block(nn.Module):
    """Causal self-attention, then a perceptron, each after a norm and added to what came in."""

    heads: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(B, T, width) to the same."""
        batch, length, width = x.shape
        qkv = _dense(_norm(x, "norm_1"), 3 * width, "qkv")
        q, k, v = (
            part.reshape(batch, length, self.heads, -1).swapaxes(1, 2)
            for part in jnp.split(qkv, 3, axis=-1)
        )
        scores = matmul(q, k.mT) / (width // self.heads) ** 0.5
        causal = jnp.tril(jnp.ones((1, 1, length, length), bool))
        weights = jax.nn.softmax(jnp.where(causal, scores, -jnp.inf))
        mixed = matmul(weights, v).swapaxes(1, 2).reshape(x.shape)
        x += _dense(mixed, width, "project")
        hidden = nn.gelu(_dense(_norm(x, "norm_2"), 4 * width, "up"), approximate=True)
        return x + _dense(hidden, width, "down")


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, vocabulary)."""

    size: workloads.GPT

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Logits of the token after each."""
        size = self.size
        positions = self.param("positions", _INIT, (size.context, size.width))
        embed = nn.Embed(size.vocabulary, size.width, embedding_init=_INIT, name="tokens")
        x = embed(tokens) + positions[None, : tokens.shape[1]]
        for i in range(size.layers):
            x = Block(size.heads, name=f"block_{i}")(x)
        return _dense(_norm(x, "norm"), size.vocabulary, "logits", use_bias=False)


@functools.cache
def task(size: workloads.GPT) -> jo.Task:
    """Learn the next character of each of a window's; a row is a window of context + 1."""

    def loss(logits: Array, batch: Any, train: bool) -> Array:
        targets = batch["tokens"][:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(-1)

    return jo.supervised(
        GPT(size),
        lambda batch, key: batch["tokens"][:, :-1],
        loss,
        lambda logits, batch, weights: {},
        jax.nn.softmax,
        (jo.Column("tokens", (size.context + 1,), "int", classes=size.vocabulary),),
    )
