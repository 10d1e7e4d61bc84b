"""The programs of `generate`: they read prompts into a cache, then make one token after another.

Prompt lengths, numbers of rows and the slots of the cache are rounded up to powers of two, so that
few compilations serve all requests. The number of slots doubles when all are used. The number of
new tokens, the seed and the numbers in `Sampling` are arguments and need no new compilation.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxops._shapes import next_power_of_two
from jaxops.language.sampling import Sampling, choose
from jaxops.nn import Cache, empty_cache
from jaxops.train.program import COMPILER_OPTIONS

Array = jax.Array
Variables = Any

CHUNK = 64
"""The largest number of tokens that one call makes before the host reads them."""
LEAST_PROMPT, LEAST_SLOTS = 16, 64
NONE = -1
"""The value in place of a token for a row that has ended."""


class Prompts(NamedTuple):
    """Prompts as arrays, aligned at their ends.

    Attributes:
        tokens: int32 (B, T), all tokens of each prompt but the last, with padding before them.
        start: int32 (B,), the position in `tokens` at which a prompt begins.
        last: int32 (B,), the last token of each prompt.
        row: int32 (B,), the number of the prompt in the request; `NONE` for padding.
        source: int32 (B, S), the input of an encoder, with padding after it.
        segments: int32 (B, S), 1 where `source` is not padding.
    """

    tokens: Any
    start: Any
    last: Any
    row: Any
    source: Any = None
    segments: Any = None


class Run(NamedTuple):
    """The state of a decoding loop between two tokens.

    Attributes:
        cache: keys and values of all tokens but the last.
        token: int32 (B,), the last token.
        done: bool (B,), whether the answer has ended.
        log_probability: (B,), the log-probability of the answer so far.
        seen: bool (B, V), tokens that have occurred; `None` without a repetition penalty.
        keys: (B,), random keys of the rows.
        made: int32 (), number of tokens so far; of a `Decoder` (B,), as the cache's `length`.
    """

    cache: Cache
    token: Array
    done: Array
    log_probability: Array
    seen: Any
    keys: Array
    made: Array


class Beams(NamedTuple):
    """The state of beam search: the W best unfinished answers and the best finished of each prompt.

    Attributes:
        cache: the cache of B * W rows.
        token: int32 (B * W,), the last tokens.
        done: bool (B,), whether no unfinished answer can become better than `best`.
        log_probability: (B, W); -inf for an empty beam.
        best: (B,), the score of the best finished answer: its log-probability divided by its length
            to the power of the length penalty.
        best_at: int32 (B,), the step at which it ended.
        best_beam: int32 (B,), the beam in which it ended.
        made: int32 (), number of steps so far.
    """

    cache: Cache
    token: Array
    done: Array
    log_probability: Array
    best: Array
    best_at: Array
    best_beam: Array
    made: Array


class Programs(NamedTuple):
    """The jitted functions for one module, compiled once for each shape.

    Attributes:
        begin: `(variables, prompts, key, slots, beams, penalty) -> Run`, or `Beams` for `beams`.
        sample: `(variables, run, steps, stop, sampling, most) -> (run, tokens (CHUNK, B))`.
        beam: `(variables, run, steps, stop, longest, length_penalty) ->
            (run, (tokens, parents (CHUNK, B, W)))`.
    """

    begin: Callable[..., Any]
    sample: Callable[..., Any]
    beam: Callable[..., Any]


@functools.lru_cache(maxsize=32)
def programs(module: Any) -> Programs:
    """The jitted functions for a transformer; equal modules share them."""
    return Programs(
        jitted(begin, module, static_argnames=("slots", "beams", "penalty")),
        jitted(_sample, module, static_argnames="most", donate_argnums=1),
        jitted(_beam, module, donate_argnums=1),
    )


def jitted(program: Callable[..., Any], module: Any, **how: Any) -> Callable[..., Any]:
    """A jitted function for one module, its first argument, as training is compiled."""
    options = COMPILER_OPTIONS.get(jax.default_backend(), {})
    return jax.jit(functools.partial(program, module), compiler_options=options, **how)


def aligned(
    prompts: list[np.ndarray], first_row: int, sources: list[np.ndarray] | None, context: int
) -> Prompts:
    """Prompts of different lengths, and an encoder-decoder's sources, as arrays."""
    rows = next_power_of_two(len(prompts))
    width = next_power_of_two(max(map(len, prompts)) - 1, LEAST_PROMPT)
    tokens = np.zeros((rows, width), np.int32)
    start = np.full(rows, width, np.int32)
    last, row = np.zeros(rows, np.int32), np.full(rows, NONE, np.int32)
    for i, prompt in enumerate(prompts):
        start[i] = width - len(prompt) + 1
        tokens[i, start[i] :], last[i], row[i] = prompt[:-1], prompt[-1], first_row + i
    if sources is None:
        return Prompts(tokens, start, last, row)
    source = np.zeros(
        (rows, min(next_power_of_two(max(map(len, sources)), LEAST_PROMPT), context)), np.int32
    )
    segments = np.zeros_like(source)
    for i, one in enumerate(sources):
        source[i, : len(one)], segments[i, : len(one)] = one, 1
    return Prompts(tokens, start, last, row, source, segments)


def first_slots(prompts: Prompts) -> int:
    """The first number of slots of the cache, into which the prompts are read."""
    return next_power_of_two(prompts.tokens.shape[1] + 1, LEAST_SLOTS)


def chunks(program: Callable[..., Any], run: Any, most: int, chunk: int) -> Iterator[Any]:
    """Make up to `most` tokens; yield `(run, NumPy outputs)` after at most `chunk` tokens.

    If the cache is full, it is doubled. `run` is donated to the next call.

    Args:
        program: `(run, steps) -> (run, outputs)`, outputs (CHUNK, ...).
        run: the state after reading the prompts.
        most: largest number of tokens in an answer.
        chunk: number of tokens between two yields, at most `CHUNK`.
    """
    length = int(run.cache.length)
    while most:
        slots = jax.tree.leaves(run.cache.layers)[0].shape[-1]  # the first leaf has the keys
        if length == slots:
            run, slots = run._replace(cache=_grown(run.cache)), 2 * slots
        steps = min(most, chunk, slots - length)
        run, outputs = program(run, np.int32(steps))
        done, outputs = jax.device_get((run.done, outputs))
        yield run, jax.tree.map(lambda leaf: leaf[:steps], outputs)  # noqa: B023
        if done.all():
            return
        most, length = most - steps, length + steps


@jax.jit
def _grown(cache: Cache) -> Cache:
    def double(path: Any, leaf: Array) -> Array:
        return jnp.concatenate([leaf, jnp.zeros_like(leaf)], -1 if path[-1].idx == 0 else -2)

    return cache._replace(layers=jax.tree_util.tree_map_with_path(double, cache.layers))


def begin(
    module: Any,
    variables: Variables,
    prompts: Prompts,
    key: Any,
    slots: int,
    beams: int | None = None,
    penalty: bool = False,
) -> Run | Beams:
    """Read the prompts into a cache. The first step of the loop reads their last tokens."""
    # positions count only a row's own tokens, so there may be more slots than the context
    config = replace(module.config, context=slots)
    cache: Any = empty_cache(config, slots, jnp.asarray(prompts.start))
    if hasattr(module, "begin"):  # an encoder-decoder
        arguments = (prompts.source, prompts.segments, prompts.tokens, cache)
        _, cache = module.apply(variables, *arguments, method="begin")
    else:
        _, cache = module.apply(variables, prompts.tokens, cache, method="advance")
    rows, padding = len(prompts.row), prompts.row < 0
    if beams is not None:
        index = jnp.repeat(jnp.arange(rows), beams)
        first = jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf)
        return Beams(
            _taken(cache, index, config.scan, everything=True),
            jnp.repeat(prompts.last, beams),
            padding,
            jnp.where(padding[:, None], -jnp.inf, first[None]),
            jnp.full(rows, -jnp.inf),
            jnp.zeros(rows, jnp.int32),
            jnp.zeros(rows, jnp.int32),
            jnp.int32(0),
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, prompts.row)
    seen = None
    if penalty:
        width = prompts.tokens.shape[1]
        real = jnp.arange(width)[None] >= prompts.start[:, None]
        each = jnp.arange(rows)
        seen = jnp.zeros((rows, config.vocabulary), bool)
        seen = seen.at[each[:, None], prompts.tokens].max(real).at[each, prompts.last].set(True)
    zeros = jnp.zeros(rows)
    return Run(cache, jnp.asarray(prompts.last), padding, zeros, seen, keys, jnp.int32(0))


def _taken(cache: Cache, index: Array, scan: bool, everything: bool = False) -> Cache:
    """The rows `index` of a cache; with `everything` also of arrays that a prompt's beams share."""

    def take(tree: Any, axis: int) -> Any:
        return jax.tree.map(lambda leaf: leaf.take(index, axis), tree)

    cache = cache._replace(layers=take(cache.layers, int(scan)))
    if not everything:
        return cache
    return cache._replace(
        start=take(cache.start, 0),
        memory=take(cache.memory, int(scan)),
        memory_mask=take(cache.memory_mask, 0),
    )


def _among(token: Array, stop: Array) -> Array:
    return (token[..., None] == stop.reshape(*[1] * token.ndim, -1)).any(-1)


def advanced(
    module: Any, variables: Variables, run: Run, stop: Array, choice: Callable[..., Array]
) -> Run:
    """A run with one more token of each row, `choice(logits (B, V), keys (B,), run)`."""
    logits, cache = module.apply(variables, run.token[:, None], run.cache, method="advance")
    logits = logits[:, 0].astype(jnp.float32)
    made = jnp.broadcast_to(run.made, run.token.shape)
    token = choice(logits, jax.vmap(jax.random.fold_in)(run.keys, made), run)
    each = jnp.arange(len(token))
    added = jax.nn.log_softmax(logits)[each, token]
    return Run(
        cache,
        token,
        run.done | _among(token, stop),
        run.log_probability + jnp.where(run.done, 0.0, added),
        None if run.seen is None else run.seen.at[each, token].set(True),
        run.keys,
        run.made + 1,
    )


def _sample(
    module: Any,
    variables: Variables,
    run: Run,
    steps: Array,
    stop: Array,
    sampling: Sampling,
    most: int | None = None,
    chunk: int = CHUNK,
) -> tuple[Run, Array]:
    def more(carry: Any) -> Array:
        i, run, _ = carry
        return (i < steps) & ~run.done.all()

    def choice(logits: Array, keys: Array, run: Run) -> Array:
        return choose(logits, keys, sampling, most, run.seen)

    def step(carry: Any) -> Any:
        i, run, tokens = carry
        run = advanced(module, variables, run, stop, choice)
        return i + 1, run, tokens.at[i].set(jnp.where(run.done, NONE, run.token))

    tokens = jnp.full((chunk, len(run.token)), NONE, jnp.int32)
    _, run, tokens = lax.while_loop(more, step, (jnp.int32(0), run, tokens))
    return run, tokens


def greedy(
    module: Any, variables: Variables, source: Array, length: int, end: int, padding: int
) -> Array:
    """Greedy decoding up to `end`, int32 (B, length), with padding after it.

    Args:
        module: an `EncoderDecoder`, whose decoder starts with padding.
        variables: the variables of the module.
        source: int (B, S), with padding after each text.
        length: number of tokens in the longest answer, with `end`.
        end: the token that ends an answer.
        padding: the token after the end.
    """
    rows, segments = len(source), (source != padding).astype(jnp.int32)
    nothing, start = jnp.full((rows, 1), padding, jnp.int32), jnp.ones(rows, jnp.int32)
    prompts = Prompts(nothing, start, nothing[:, 0], jnp.arange(rows), source, segments)
    run: Any = begin(module, variables, prompts, jax.random.key(0), slots=length + 1)
    stop, steps = jnp.array([end]), jnp.int32(length)
    tokens = _sample(module, variables, run, steps, stop, Sampling(), chunk=length)[1].T
    ended = tokens == NONE
    tokens = jnp.where(ended, padding, tokens)
    return jnp.where(ended & (ended.cumsum(1) == 1), end, tokens)


def _beam(
    module: Any,
    variables: Variables,
    run: Beams,
    steps: Array,
    stop: Array,
    longest: Array,
    length_penalty: Array,
) -> tuple[Beams, tuple[Array, Array]]:
    rows, beams = run.log_probability.shape
    vocabulary = module.config.vocabulary

    def more(carry: Any) -> Array:
        i, run, _ = carry
        return (i < steps) & ~run.done.all()

    def step(carry: Any) -> Any:
        i, run, outputs = carry
        logits, cache = module.apply(variables, run.token[:, None], run.cache, method="advance")
        added = jax.nn.log_softmax(logits[:, 0].astype(jnp.float32))
        scores = run.log_probability[..., None] + added.reshape(rows, beams, -1)
        # enough candidates that at least W of them do not end
        count = min(beams * (1 + len(stop)), beams * vocabulary)
        scores, index = lax.top_k(scores.reshape(rows, -1), count)
        parent, token = index // vocabulary, index % vocabulary
        stopped = _among(token, stop)
        # an answer ends if its stop token is among the W best; for the penalty see `generate`
        length = (run.made + 1).astype(jnp.float32)
        ended = jnp.where(stopped & (jnp.arange(count)[None] < beams), scores, -jnp.inf)
        ended /= length**length_penalty
        which = ended.argmax(-1, keepdims=True)
        score, beam = (jnp.take_along_axis(x, which, -1)[:, 0] for x in (ended, parent))
        better = score > run.best
        best = jnp.where(better, score, run.best)
        # the W best candidates that do not end
        on = jnp.argsort(stopped, stable=True)[:, :beams]
        scores = jnp.where(stopped, -jnp.inf, scores)
        scores, parent, token = (jnp.take_along_axis(x, on, -1) for x in (scores, parent, token))
        row = (parent + beams * jnp.arange(rows)[:, None]).reshape(-1)
        run = Beams(
            _taken(cache, row, module.config.scan),
            token.reshape(-1),
            # a bound for all unfinished answers: log-probabilities only fall, length is <= longest
            run.done | (best >= scores.max(-1) / longest.astype(jnp.float32) ** length_penalty),
            scores,
            best,
            jnp.where(better, run.made, run.best_at),
            jnp.where(better, beam, run.best_beam),
            run.made + 1,
        )
        return (
            i + 1,
            run,
            tuple(x.at[i].set(y) for x, y in zip(outputs, (token, parent), strict=True)),
        )

    nothing = jnp.full((CHUNK, rows, beams), NONE, jnp.int32)
    _, run, outputs = lax.while_loop(more, step, (jnp.int32(0), run, (nothing, nothing)))
    return run, outputs
