"""The choice of the next token from logits: filters of a distribution, and a draw from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
ALL = 2**31 - 1  # as `top_k`, all tokens


class Sampling(NamedTuple):
    """How a token is chosen. A field that is `None` is left out of the program.

    A field is one number, or an array (B, 1) with one for each row, see `choose_each`.

    Attributes:
        temperature: divides the logits; `None` takes the most probable token.
        top_k: keeps the k most probable tokens.
        top_p: keeps the smallest set of tokens with at least this probability, after `top_k`
            (nucleus sampling).
        min_p: keeps tokens with at least this share of the largest probability.
        repetition_penalty: lowers tokens that occurred before, see `penalised`.

    References:
        Fan et al. 2018, arXiv:1805.04833 (top-k); Holtzman et al. 2020, arXiv:1904.09751 (top-p);
        Nguyen et al. 2024, arXiv:2407.01082 (min-p).
    """

    temperature: Any = None
    top_k: Any = None
    top_p: Any = None
    min_p: Any = None
    repetition_penalty: Any = None


def penalised(logits: Array, seen: Array, penalty: Array | float) -> Array:
    """Logits in which those of tokens that occurred are divided, or if negative multiplied.

    The paper divides all of them, which would make a token with a negative logit more probable.

    Args:
        logits: (B, V).
        seen: bool (B, V), the tokens that occurred.
        penalty: above 0; 1 changes nothing.

    References:
        Keskar et al. 2019 (CTRL), arXiv:1909.05858, section 4.1.

    >>> penalised(jnp.array([2.0, -1.0, 1.0]), jnp.array([True, True, False]), 2.0).tolist()
    [1.0, -2.0, 1.0]
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def filtered(logits: Array, sampling: Sampling, most: int | None = None) -> Array:
    """Logits with -inf for the tokens that top-k, top-p and min-p remove.

    The most probable token always stays. Each filter keeps all tokens above a threshold, so of
    tokens with equal probability either all stay or none.

    Args:
        logits: (B, V), divided by the temperature.
        sampling: see `Sampling`.
        most: number of tokens that top-k and top-p examine, at least k; all by default.

    >>> logits = jnp.log(jnp.array([[0.4, 0.3, 0.2, 0.1]]))
    >>> jnp.isfinite(filtered(logits, Sampling(top_p=0.6))).tolist()
    [[True, True, False, False]]
    """
    if sampling.top_k is not None or sampling.top_p is not None:
        vocabulary = logits.shape[-1]
        best = lax.top_k(logits, vocabulary if most is None else min(most, vocabulary))[0]
    if sampling.top_k is not None:
        last = jnp.minimum(sampling.top_k, best.shape[-1]) - 1
        last = jnp.broadcast_to(last, (len(best), 1))
        logits = _at_least(logits, jnp.take_along_axis(best, last, -1))
    if sampling.top_p is not None:
        # probabilities are renormalised after top-k; a token stays if the sum before it is < p
        share = jnp.exp(best - jax.nn.logsumexp(logits, -1, keepdims=True))
        needed = jnp.cumsum(share, -1) - share < sampling.top_p
        least = jnp.where(needed, best, jnp.inf).min(-1, keepdims=True)
        logits = _at_least(logits, least)
    if sampling.min_p is not None:
        least = logits.max(-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = _at_least(logits, least)
    return logits


def _at_least(logits: Array, least: Array) -> Array:
    return jnp.where(logits >= least, logits, -jnp.inf)


def choose(
    logits: Array, keys: Array, sampling: Sampling, most: int | None = None, seen: Any = None
) -> Array:
    """The next token of each row, int32 (B,).

    Args:
        logits: (B, V).
        keys: (B,), one for each row, so that no row's token depends on another row.
        sampling: see `Sampling`.
        most: see `filtered`.
        seen: bool (B, V), the tokens that occurred, for the penalty.

    >>> logits = jnp.array([[0.1, 2.0, 0.3]])
    >>> choose(logits, None, Sampling()).tolist()  # the most probable
    [1]
    """
    if sampling.repetition_penalty is not None:
        logits = penalised(logits, seen, sampling.repetition_penalty)
    if sampling.temperature is None:
        return logits.argmax(-1).astype(jnp.int32)
    logits = filtered(logits / sampling.temperature, sampling, most)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def each(sampling: Sampling) -> Sampling:
    """The settings of a row in `choose_each`: a field that is `None` becomes one without effect.

    >>> each(Sampling(top_p=0.5)).top_p
    0.5
    """
    off = (np.float32(0), np.int32(ALL), np.float32(2), np.float32(0), np.float32(1))
    pairs = zip(sampling, off, strict=True)
    return Sampling(*(unused if given is None else given for given, unused in pairs))


def choose_each(logits: Array, keys: Array, sampling: Sampling, seen: Array, live: Array) -> Array:
    """The next token of each row, as `choose` gives it with the settings of the row alone.

    What no row asks for is not computed: draws, and the filters that sort the vocabulary.

    Args:
        logits: (B, V).
        keys: (B,).
        sampling: arrays (B, 1) of what `each` returns; a temperature of 0 takes the most probable.
        seen: bool (B, V).
        live: bool (B,), rows whose tokens are wanted.

    >>> rows = jax.tree.map(lambda x: jnp.full((2, 1), x), each(Sampling()))
    >>> logits, seen = jnp.array([[0.1, 2.0], [3.0, 2.0]]), jnp.zeros((2, 2), bool)
    >>> choose_each(logits, jax.random.split(jax.random.key(0)), rows, seen, seen[0]).tolist()
    [1, 0]
    """
    logits = penalised(logits, seen, sampling.repetition_penalty)
    draws = live[:, None] & (sampling.temperature > 0)
    # a temperature is divided by also where nothing is drawn
    some = Sampling(jnp.where(draws, sampling.temperature, 1.0), *sampling[1:4])
    filters = (some.top_k < logits.shape[-1]) | (some.top_p < 1) | (some.min_p > 0)

    def drawn() -> Array:
        return lax.cond(
            (draws & filters).any(),
            lambda: choose(logits, keys, some),
            lambda: choose(logits, keys, Sampling(some.temperature)),
        )

    best = choose(logits, keys, Sampling())
    return jnp.where(draws[:, 0], lax.cond(draws.any(), drawn, lambda: best), best)
